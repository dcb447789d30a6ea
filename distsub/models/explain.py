"""Why a model cannot be loaded, in one line: what its libraries say in many, or by the way."""

import re
from importlib.util import find_spec
from pathlib import Path

from distsub.errors import first_line

_EXTRAS = {"sentencepiece": '"distsub[sentencepiece]"', "tiktoken": "tiktoken", "protobuf": "protobuf"}


def reason(error: Exception, folder: Path | None = None) -> str:
    """Say why something could not be loaded; `folder` is where the tokenizer's files lie, if it was one."""
    if folder is not None and (package := missing_package(folder)):
        return package
    text = str(error)
    if isinstance(error, ImportError) or "pip install" in text:
        asked = re.search(r"pip install (?:-U |--upgrade )?['\"`]?([\w.\-\[\]]+)", text)
        name = getattr(error, "name", None) or (asked[1] if asked else None)
        if name and "transformers" not in name:
            return f"it needs the package {name}; pip install {name}"
    if "instantiate the backend tokenizer" in text:
        return "it has no tokenizer.json, nor files that one could be made from; add what save_pretrained of it writes"
    if "custom code" in text or "trust_remote_code" in text:
        return "it needs code of its own (auto_map in its configuration), which is never run; use another model"
    kind = "" if isinstance(error, OSError | ValueError | ImportError) else f"{type(error).__name__}: "
    return kind + first_line(error)


def missing_package(folder: Path) -> str | None:
    """Say which package a folder's tokenizer needs, if it is not installed.

    A tokenizer.json needs none. Without one, the tokenizer is read from a SentencePiece model, which is a protocol
    buffer, or from a tiktoken file, which is text; both are often called tokenizer.model.
    """
    if (folder / "tokenizer.json").is_file():
        return None
    for file in sorted([*folder.glob("*.model"), *folder.glob("*.spm"), *folder.glob("*.tiktoken")]):
        with file.open("rb") as opened:
            needed = ("sentencepiece", "google.protobuf") if opened.read(1) == b"\n" else ("tiktoken",)
        for module in needed:
            if not _installed(module):
                name = module.replace("google.", "")
                return f"{file.name} needs the package {name}; pip install {_EXTRAS[name]}"
    return None


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def lacking(wanted: list[str], held: list[str]) -> str:
    """Say that a checkpoint lacks `wanted`, parameters of the base model, and why, as far as the names it has tell."""
    what = f"its weights lack {len(wanted)} tensors of the base model, or have them in other shapes, first {wanted[0]}"
    for prefix, made in (("_orig_mod.", "torch.compile"), ("module.", "DataParallel")):
        if any(prefix in f".{name}" and f".{prefix}" in f".{name}" for name in held):
            return (
                f'{what}: its names begin with "{prefix}", as {made} leaves them; '
                f'save {{name.replace("{prefix}", ""): tensor}} instead'
            )
    if any(name.endswith((".qweight", ".weight_packed", ".absmax", "_scale_inv", ".SCB")) for name in held):
        return f"{what}: they are quantised; give the original, unquantised model"
    if any(".lora_" in name or "base_model.model." in name for name in held):
        return f"{what}: they are those of a PEFT adapter; merge it into its base (merge_and_unload) and save that"
    first = f" (its first is {held[0]})" if held else ""
    return f"{what}{first}: its config.json does not belong to its weights; give a whole transformers directory"
