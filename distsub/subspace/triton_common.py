"""What Triton's kernels share: random words, tensors that lie in several places, rounding.

Where tensors lie is given by a table of stretches: (first position, position after the last, address, group).
"""

# pyright: reportMissingImports=false, reportIndexIssue=false
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from distsub.subspace.projection import Stretch

TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


@triton.jit
def mix(index, key):
    """Mix as `bits.words` does."""
    x = index.to(tl.uint64) * 0x9E3779B97F4A7C15 + key.to(tl.uint64)
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return x ^ (x >> 31)


@triton.jit
def gather(stretches, count, position, low, high, scales, KIND: tl.constexpr, SCALED: tl.constexpr):
    """Read what lies at some positions of [low, high), and the scale of each."""
    value = tl.zeros_like(position).to(tl.float32)
    scale = value + 1.0
    for number in range(count):
        begin = tl.load(stretches + number * 4)
        end = tl.load(stretches + number * 4 + 1)
        if (end > low) & (begin < high):
            inside = (position >= begin) & (position < end)
            at = tl.load(stretches + number * 4 + 2).to(tl.pointer_type(KIND))
            value += tl.load(at + (position - begin), mask=inside, other=0.0).to(tl.float32)
            if SCALED:
                group = tl.load(stretches + number * 4 + 3)
                scale = tl.where(inside, tl.load(scales + group), scale)
    return value, scale


@triton.jit
def rounded(value, TO: tl.constexpr):
    """Round to the nearest, ties to even: in bfloat16 by hand, for the interpreter cuts off."""
    if tl.bfloat16 == TO:
        word = value.to(tl.int32, bitcast=True)
        word = (word + 0x7FFF + ((word >> 16) & 1)) & -65536
        value = tl.where(value == value, word.to(tl.float32, bitcast=True), value)
    return value.to(TO)


def readable(tensors: Sequence[Tensor]) -> bool:
    """Tell whether kernels can read some tensors together."""
    return len({tensor.dtype for tensor in tensors}) == 1 and all(
        tensor.dtype in TYPES and tensor.is_contiguous() for tensor in tensors
    )


def operands(
    found: Sequence[Stretch], scales: Tensor | None, blocks: Tensor | None, stand_in: Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Give what every kernel takes of tensors that lie in several places.

    Args:
        found: Where they lie.
        scales: Of their groups; None is 1.
        blocks: The blocks that are listed; None is all.
        stand_in: A tensor that goes where one of these is None, and is not read.

    Returns:
        The arguments blocks, stretches, count and scales; the constants KIND, SCALED and LISTED.
    """
    table = tuple((start, start + tensor.numel(), tensor.data_ptr(), group) for start, tensor, group in found)
    where, kind = _table(table, stand_in.device), TYPES[found[0][1].dtype] if found else tl.float32
    given = (stand_in if blocks is None else blocks, where, len(found), stand_in if scales is None else scales)
    return given, {"KIND": kind, "SCALED": scales is not None, "LISTED": blocks is not None}


@lru_cache(maxsize=4096)
def _table(rows: tuple[tuple[int, ...], ...], device: torch.device) -> Tensor:
    """Send a table once, without waiting: weights stay where they are, and gradients come back to where others were."""
    table = torch.tensor(rows or [[0, 0, 0, 0]], dtype=torch.int64)
    return (table.pin_memory() if device.type == "cuda" else table).to(device, non_blocking=True)
