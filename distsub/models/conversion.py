"""A checkpoint as safetensors in the precision that a model is held in: linked where it is that already, else written.

Tensors are read, rounded and written one after the other in pieces, from a mapped file: memory holds the pages of one
shard and a piece.
"""

import json
import os
import stat
from pathlib import Path

import torch
from safetensors import safe_open

from distsub.models import tensor_files, weight_files
from distsub.models.tensor_files import CODES, DTYPES
from distsub.models.weight_files import NAMES

_SHARD_BYTES = 2**30  # of what is written

# What old versions of transformers saved beside the weights; any other integer tensor might be a quantised weight.
_COUNTERS = ("position_ids", "token_type_ids", "num_batches_tracked")
_MASKS = ("attn.bias", "attention.bias")  # causal masks [1, 1, length, length]


def dtype_of(found: list[Path]) -> str:
    """Name the precision in which a checkpoint loses nothing: bfloat16 where all of it is that, else float32.

    Raises:
        UnavailableError: A file is damaged, or holds numbers that are no weights.
    """
    floats = {each.dtype for file in found for _, each in weight_files.tensors(file) if each.is_floating_point()}
    return "bfloat16" if floats == {torch.bfloat16} else "float32"


def is_ready(found: list[Path], dtype: str) -> bool:
    """Tell from the headers alone whether files can be mapped as they are.

    Raises:
        UnavailableError: One is damaged, or holds numbers that are no weights.
    """
    ready = all(file.suffix == ".safetensors" for file in found)
    for file in found if ready else []:
        with weight_files.reading(file), safe_open(file, framework="pt") as opened:
            # Other versions of transformers refuse a file that does not say that its tensors are PyTorch's.
            ready &= (opened.metadata() or {}).get("format") == "pt"
            for name in opened.keys():  # noqa: SIM118 - not a dictionary
                part = opened.get_slice(name)
                ready &= part.get_dtype() == CODES[DTYPES[dtype]] or (
                    part.get_dtype().startswith(("BOOL", "I", "U")) and _is_table(name, len(part.get_shape()))
                )
    return ready


def names(found: list[Path]) -> list[str]:
    """List the tensors' names, sorted."""
    return sorted({name for file in found for name, _ in weight_files.tensors(file)})


def link(found: list[Path], folder: Path) -> None:
    """Make files appear in another folder under the names that transformers looks for."""
    placed = _places(folder, len(found))
    for file, place in zip(found, placed, strict=True):
        place.symlink_to(file.resolve())
    _write_index(placed)


def write(found: list[Path], folder: Path, dtype: str) -> None:
    """Write the tensors of a checkpoint as safetensors of a precision.

    Floating-point values are widened exactly, or rounded to the nearest. Integers that are no known table are left
    out: where they were a weight, it is then missing, which is refused.

    Raises:
        UnavailableError: A file is damaged, holds code, or numbers that are no weights.
    """
    parts: list[Path] = []
    for file in found:
        listed, read = weight_files.source(file)
        for shapes in _shards(listed, read, DTYPES[dtype]) or ([{}] if len(found) == 1 else []):
            parts.append(folder / f"part-{len(parts):05d}.safetensors")
            with parts[-1].open("wb") as sink:
                for piece in tensor_files.pieces(shapes, map(read, tensor_files.order(shapes))):
                    sink.write(piece)
    placed = _places(folder, len(parts))
    for part, place in zip(parts, placed, strict=True):
        part.rename(place)
    _write_index(placed)


def _shards(listed: list[str], read: weight_files.Read, dtype: torch.dtype) -> list[tensor_files.Shapes]:
    """Say what is written of a file: type and shape of each tensor, in shards of a GiB and what goes beyond."""
    found: list[tensor_files.Shapes] = []
    size = _SHARD_BYTES
    for name in listed:
        tensor = read(name)
        if not (tensor.is_floating_point() or tensor.dtype == torch.bool or _is_table(name, tensor.dim())):
            continue
        kept = dtype if tensor.is_floating_point() else tensor.dtype
        if size >= _SHARD_BYTES:
            found.append({})
            size = 0
        found[-1][name] = kept, tuple(tensor.shape)
        size += kept.itemsize * tensor.numel()
    return found


def share(folder: Path) -> None:
    """Give a new folder's files the rights that the umask gives."""
    mode = stat.S_IMODE(folder.stat().st_mode) & 0o666
    for file in folder.iterdir():
        if not file.is_symlink():
            os.chmod(file, mode)


def _is_table(name: str, dimensions: int) -> bool:
    return name.endswith(_COUNTERS) or (name.endswith(_MASKS) and dimensions == 4)


def _places(folder: Path, count: int) -> list[Path]:
    if count == 1:
        return [folder / NAMES[0]]
    return [folder / f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]


def _write_index(placed: list[Path]) -> None:
    if len(placed) == 1:
        return
    table = {}
    for place in placed:
        with safe_open(place, framework="pt") as opened:
            table |= dict.fromkeys(opened.keys(), place.name)
    (placed[0].parent / NAMES[1]).write_text(json.dumps({"metadata": {}, "weight_map": table}))
