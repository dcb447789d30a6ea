"""Safetensors files written one tensor at a time, so that no more than one is held in memory."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
"""Precisions in which weights are held, and snapshots kept, by name."""

CODES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.int32: "I32",
    torch.int64: "I64",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float64: "F64",
}
"""What safetensors calls a type."""

_PIECE = 2**20
"""Numbers that are converted at once."""

Shapes = dict[str, tuple[torch.dtype, tuple[int, ...]]]
"""Type and shape of each tensor, by name."""


def order(shapes: Shapes) -> list[str]:
    """List the names as they lie in a file: the widest types first, each by name, so that all are aligned."""
    return sorted(shapes, key=lambda name: (-shapes[name][0].itemsize, CODES[shapes[name][0]], name))


def write(path: Path, shapes: Shapes, tensors: Iterable[Tensor]) -> tuple[int, str]:
    """Write a file; where all tensors have one type, with the bytes of `safetensors.torch.save_file`.

    The tensors come in the order of `order(shapes)`; each is released before the next is asked for. Gives the size in
    bytes, and the sha256 of the content.
    """
    digest, size = hashlib.sha256(), 0
    with path.open("wb") as file:
        for piece in pieces(shapes, tensors):
            digest.update(piece)
            size += file.write(piece)
    return size, digest.hexdigest()


def pieces(shapes: Shapes, tensors: Iterable[Tensor]) -> Iterator[bytes | memoryview]:
    """Give the bytes of a file in pieces; tensors of another type are rounded to theirs, piece by piece."""
    names, end = order(shapes), 0
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    for name in names:
        dtype, shape = shapes[name]
        start, end = end, end + dtype.itemsize * torch.Size(shape).numel()
        header[name] = {"dtype": CODES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for name, tensor in zip(names, tensors, strict=True):
        dtype, shape = shapes[name]
        assert tuple(tensor.shape) == shape, "the tensors come in their order"
        for piece in tensor.detach().reshape(-1).split(_PIECE):
            yield piece.to(dtype).contiguous().view(torch.uint8).numpy().data
