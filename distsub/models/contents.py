"""What a model is, as hashes: of the tensors that transformers loads, and of those with configuration and tokenizer."""

import contextlib
import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from distsub.models import weight_files
from distsub.models.mapped import Mappings

TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json"),
    *("merges.txt", "vocab.txt", "*.model", "*.spm", "*.tiktoken", "*.codes", "chat_template.jinja"),
)
"""What a tokenizer is made of, its chat template too: chats are other tokens under another one."""

_NO_CONTENT = frozenset(
    ("_name_or_path", "name_or_path", "tokenizer_file", "transformers_version", "torch_dtype", "dtype")
)


def of_tensors(model: Any, fresh: set[str]) -> str:
    """Hash the tensors of a model that its checkpoint gave, a tied one once; float32 goes without saying."""
    stored = set(model.state_dict())
    tensors = {**dict(model.named_parameters()), **{k: v for k, v in model.named_buffers() if k in stored}}
    prefix = f"{model.base_model_prefix}."
    given = {name.removeprefix(prefix): tensors[name] for name in tensors.keys() - fresh}  # as the base model has them
    digest, mappings = hashlib.sha256(), Mappings()
    for name in sorted(given):
        tensor = given[name]
        kind = f"{tensor.dtype} ".removeprefix("torch.") if tensor.dtype == torch.bfloat16 else ""
        digest.update(f"{name} {tuple(tensor.shape)} {kind}".encode())
        for piece in mappings.read(tensor):
            digest.update(piece)
    return digest.hexdigest()


def of_all(tensors: str, config: dict[str, Any], source: Path) -> str:
    """Hash what a model is, but for what says where or by which version its files were written."""
    digest = hashlib.sha256(tensors.encode())
    digest.update(_plain(config).encode())
    for file in sorted(file for pattern in TOKENIZER_FILES for file in source.glob(pattern)):
        said = weight_files.content_hash(file)
        if file.name == "tokenizer_config.json":
            with contextlib.suppress(ValueError, AttributeError):  # a damaged one is refused when it is loaded
                said = _plain(json.loads(file.read_bytes()))
        digest.update(f"{file.name} {said} ".encode())
    return digest.hexdigest()


def _plain(record: dict[str, Any]) -> str:
    return json.dumps({key: value for key, value in record.items() if key not in _NO_CONTENT}, sort_keys=True)
