"""Which files are a model's weights, by the rule of transformers, and what they hold.

A folder often holds more than one checkpoint: adapters, optimiser states, other precisions, the publisher's own
format. transformers takes the first of `NAMES` and whatever an index names, so exactly that is read here.
"""

import hashlib
import time
import warnings
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from distsub.cache import remembered
from distsub.errors import UnavailableError
from distsub.files import parse_json

NAMES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
"""What transformers looks for, in its order."""

Read = Callable[[str], torch.Tensor]
"""Reads a tensor of an open file by its name."""

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
INTEGERS = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)

_SETTLED_NS = 2 * 10**9
_WORTHWHILE = 2**20  # bytes of a file whose hash is kept: smaller ones are read faster than looked up

_BUILT_IN = ("eager", "sdpa", "batched_mm", "grouped_mm")
_FOREIGN = {
    "*.gguf": "GGUF weights, which are quantised; give the model as safetensors",
    "adapter_model.*": "a PEFT adapter; merge it into its base (merge_and_unload) and save that",
    "tf_model.h5": "TensorFlow weights; save the model with transformers 4 as safetensors",
    "*.ckpt*": "TensorFlow weights; save the model with transformers 4 as safetensors",
    "flax_model*": "Flax weights; save the model with transformers 4 as safetensors",
    "*.onnx": "an ONNX graph; give the model as safetensors",
    "model.*.safetensors": "a variant; copy it to model.safetensors if it is the one you want",
    "pytorch_model.*.bin": "a variant; copy it to pytorch_model.bin if it is the one you want",
    "*.safetensors": "not named as transformers expects; rename it to model.safetensors if it is the whole model",
    "*.bin": "not named as transformers expects; rename it to pytorch_model.bin if it is the whole model",
    "*.pt*": "not named as transformers expects; save the model with save_pretrained",
}


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        UnavailableError: The file cannot be read, or holds something else.
    """
    check_present(path)
    try:
        value = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UnavailableError(f"{path.name} cannot be read as JSON: {error}") from None
    if not isinstance(value, dict):
        raise UnavailableError(f"{path.name} is no JSON object; give the model's own file")
    return value


def read_config(folder: Path) -> dict[str, Any]:
    """Read a model's config.json without what would bring code or another numeric format.

    Attention and expert kernels named there are dropped, so that transformers takes its own: an id such as "org/kernel"
    would be fetched and run.

    Raises:
        UnavailableError: It is damaged, has no model_type, or says that the weights are quantised.
    """
    config = read_json(folder / "config.json")
    if not isinstance(config.get("model_type"), str):
        raise UnavailableError('config.json has no "model_type", so it is no model of transformers')
    if kind := _quantised(config):
        raise UnavailableError(
            f"its weights are quantised (config.json: {kind}); give the original, unquantised model, or remove "
            "that key if the weights are not"
        )
    return _without_code(config)


def _quantised(config: dict[str, Any]) -> str | None:
    for key, value in config.items():
        if key in ("quantization_config", "compression_config") and value:
            method = value.get("quant_method") if isinstance(value, dict) else None
            return f"{key}, {method}" if method else key
        if isinstance(value, dict) and (found := _quantised(value)):
            return found
    return None


def _without_code(config: dict[str, Any]) -> dict[str, Any]:
    kept = {}
    for key, value in config.items():
        if key in ("custom_pipelines", "quantization_config", "compression_config"):
            continue
        if key.strip("_").removesuffix("_internal") in ("attn_implementation", "experts_implementation") and (
            value not in _BUILT_IN
        ):
            continue
        kept[key] = _without_code(value) if isinstance(value, dict) else value
    return kept


def check_present(path: Path, may_be_empty: bool = False) -> None:
    """Refuse a file that is empty, or only says where Git LFS keeps it.

    Raises:
        UnavailableError: It is.
    """
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as error:
        raise UnavailableError(f"{path.name} cannot be read: {error.strerror}") from None
    if not start and not may_be_empty:
        raise UnavailableError(f"{path.name} is empty; copy or download it again")
    if start.startswith(b"version https://git-lfs"):
        raise UnavailableError(f"{path.name} is a Git LFS pointer, not the file itself; run `git lfs pull` there")


def index_of(folder: Path, config: dict[str, Any]) -> Path | None:
    """Find the file that transformers starts from: the weights, or the index of their shards."""
    own = config.get("transformers_weights")
    names = (own,) if isinstance(own, str) else NAMES
    return next((folder / name for name in names if (folder / name).is_file()), None)


def shards(index: Path) -> list[str]:
    """List the files that an index names, in the order in which transformers reads them.

    Raises:
        UnavailableError: It is no index, or names files elsewhere.
    """
    table = read_json(index).get("weight_map")
    names = sorted({str(name) for name in table.values()}) if isinstance(table, dict) else []
    if not names:
        raise UnavailableError(f"{index.name} names no files: it has no weight_map")
    if wrong := next((name for name in names if Path(name).is_absolute() or ".." in Path(name).parts), None):
        raise UnavailableError(f"{index.name} names {wrong}, which lies outside the model's folder")
    return names


def files(folder: Path, config: dict[str, Any]) -> list[Path]:
    """List the files that hold the weights of a model's directory, in the order in which transformers reads them.

    Raises:
        UnavailableError: There are none, one is missing, or one is empty.
    """
    first = index_of(folder, config)
    if first is None:
        for pattern, what in _FOREIGN.items():
            if found := sorted(folder.glob(pattern)):
                raise UnavailableError(f"no {NAMES[0]} and no {NAMES[2]} in it; {found[0].name} is {what}")
        raise UnavailableError(f"no weights in it; transformers looks for {', '.join(NAMES)}")
    found = [folder / name for name in shards(first)] if first.suffix == ".json" else [first]
    if missing := [file.name for file in found if not file.is_file()]:
        raise UnavailableError(
            f"{first.name} names {missing[0]}, which is missing ({len(missing)} of {len(found)} files are); "
            "copy or download it"
        )
    for file in found:
        check_present(file)
    return found


def content_hash(path: Path) -> str:
    """Hash a file's bytes, once per machine as long as nobody touches it.

    The time of its last change cannot be set back as its size and modification time can, so an edit in place is seen.
    """
    about = path.stat()
    return _sha256(path, (about.st_size, about.st_mtime_ns, about.st_ctime_ns, about.st_ino, about.st_dev))


@lru_cache(maxsize=1024)
def _sha256(path: Path, stamp: tuple[int, ...]) -> str:
    def read() -> str:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    # What changed just now may change again within the same tick of the clock.
    settled = time.time_ns() - max(stamp[1:3]) > _SETTLED_NS
    return remembered(f"{path.resolve()} {stamp}", read) if stamp[0] >= _WORTHWHILE and settled else read()


def tensors(file: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Read a file's tensors one after the other, mapped where its format allows it."""
    names, read = source(file)
    for name in names:
        yield name, read(name)


def source(file: Path) -> tuple[list[str], Read]:
    """Open a file: the names of its tensors, and what reads one, mapped where its format allows it.

    Raises:
        UnavailableError: It is damaged, holds code, or, when that one is read, numbers that are no weights.
    """
    with reading(file):
        if file.suffix == ".safetensors":
            opened: Any = safe_open(file, framework="pt")
            names, get = list(opened.keys()), opened.get_tensor
        else:
            state = _unpickled(file)
            names, get = list(state), state.__getitem__

    def read(name: str) -> torch.Tensor:
        with reading(file):
            return _usable(name, get(name).detach())

    return names, read


def _unpickled(file: Path) -> dict[str, torch.Tensor]:
    # Files from before PyTorch 1.6 are no zip archives and cannot be mapped.
    with file.open("rb") as opened:
        mapped = opened.read(4) == b"PK\x03\x04"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about pickle protocols, and about types that are refused below
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    found = {str(k): v for k, v in state.items() if isinstance(v, torch.Tensor)} if isinstance(state, dict) else {}
    if not found:
        held = ", ".join(map(str, state)) if isinstance(state, dict) else type(state).__name__
        raise UnavailableError(
            f"{file.name} is no dictionary of tensors (it holds {held[:80]}); save the model with save_pretrained"
        )
    return found


def _usable(name: str, tensor: torch.Tensor) -> torch.Tensor:
    if tensor.layout != torch.strided or tensor.dtype not in (*FLOATS, *INTEGERS):
        kind = str(tensor.dtype if tensor.layout == torch.strided else tensor.layout).removeprefix("torch.")
        raise UnavailableError(f"its weights are quantised ({name} is {kind}); give the original, unquantised model")
    return tensor


class reading:
    """Turn whatever a damaged file makes its reader say into one line that names the file."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: object) -> None:
        if isinstance(error, UnpicklingError):  # its own message advises to load the file with its code
            raise UnavailableError(
                f"{self._file.name} is damaged or holds more than tensors, which could run code when loaded; "
                "give the model as safetensors"
            ) from None
        if isinstance(error, SafetensorError | RuntimeError | ValueError | EOFError | KeyError | AttributeError):
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UnavailableError(
                f"{self._file.name} cannot be read: {reason}; copy or download it again if it is cut short"
            ) from None
        if isinstance(error, OSError) and not isinstance(error, UnavailableError):
            raise UnavailableError(f"{self._file.name} cannot be read: {error.strerror or error}") from None
