"""What a checkpoint, its tokenizer and a task must agree on, so that a text has one result wherever it stands.

A batch pads its shorter texts, and the model must not see that. Attention masks do most of it; the rest is here: one
padding id for tokenizer, pooling and embedding, padding on the side where it changes no position, and only inputs that
the model means as the tokenizer does.
"""

import contextlib
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import nn

from distsub.errors import UnavailableError
from distsub.subspace import bits, layout


def fit_tokenizer(tokenizer: Any, directory: Path, model: str) -> None:
    """Have a tokenizer give what the sequence classifier of a directory reads.

    It pads at the right, whatever its files say: positions count from the left, and all decoders of transformers pool
    at the last token that is no padding. Only models that pool at the very last place (XLNet) are padded at the left.
    It gives token types where the model has embeddings for them: GPT-2 among others adds the embedding of the *word*
    with that number.

    Raises:
        UnavailableError: It has neither a padding token nor an end of sequence that could stand for one.
    """
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token_id is None:
        raise UnavailableError(
            f"model {model!r}: its tokenizer has no padding token, and no end of sequence to stand for one; set "
            "pad_token in its tokenizer_config.json to a token that no text uses"
        )
    try:
        config: Any = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        classifier: Any = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[type(config)]
        accepts = signature(classifier.forward).parameters
    except (OSError, ValueError, KeyError):
        return  # no classifier can be made of it, which `build` says
    tokenizer.padding_side = "left" if getattr(config, "summary_type", None) == "last" else "right"
    # XLNet and Funnel compare the types of two places, and have no embedding of them.
    types = (getattr(config, "type_vocab_size", None) or 0) > 1 or config.model_type in ("xlnet", "funnel")
    if not (types and "token_type_ids" in accepts):
        tokenizer.model_input_names = [name for name in tokenizer.model_input_names if name != "token_type_ids"]


def fit_padding(model: nn.Module, pad_token_id: int) -> None:
    """Have a model look for padding under the id that the tokenizer pads with, whatever its config says."""
    config: Any = model.config
    for each in (config, *(getattr(config, key, None) for key in config.sub_configs)):
        if each is not None:
            each.pad_token_id = pad_token_id
    with contextlib.suppress(NotImplementedError):  # CANINE has no table of tokens
        table: Any = model.get_input_embeddings().weight  # pyright: ignore[reportCallIssue]
        for module in model.modules():
            if isinstance(module, nn.Embedding) and module.weight is table and module.padding_idx is not None:
                # Its row has no gradient: were it a word's, that word would not train.
                module.padding_idx = pad_token_id if pad_token_id < module.num_embeddings else None


def init_head(model: nn.Module, names: set[str], seed: int) -> None:
    """Fill parameters from counter-based random bits, the same on every machine, in memory of their own.

    Matrices are N(0, initializer_range^2), as transformers draws them; biases 0, norm gains 1.
    """
    config: Any = model.config
    std = getattr(config, "initializer_range", None) or getattr(config, "init_std", 0.02)
    for name, parameter in layout.free(model, names).items():
        with torch.no_grad():
            if parameter.dim() > 1:
                values = bits.normals(seed, f"head/{name}", 0, parameter.numel(), parameter.device)
                parameter.copy_(values.view(parameter.shape) * std)
            else:
                parameter.fill_(1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0)


def longest(tokenizer: Any, config: Any) -> int:
    """Give the most tokens that a tokenizer and a model take; 512 where neither says."""
    given = [limit for limit in (tokenizer.model_max_length, _positions(config)) if 0 < limit < 10**6]
    return min(given, default=512)


def _positions(config: Any) -> int:
    """Give the longest row that a model's positions allow; RoBERTa's count from the padding id on."""
    most = getattr(config, "max_position_embeddings", None) or 0
    reserved = (config.pad_token_id or 0) + 1 if "roberta" in str(config.model_type) else 0
    return most - reserved
