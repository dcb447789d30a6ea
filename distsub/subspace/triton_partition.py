"""Kernels for CUDA of the partition: rows of theta_0 + lambda * P theta, and their transpose.

The transpose adds integers, which no order changes, so that the same input gives the same bits.
"""

# pyright: reportMissingImports=false, reportIndexIssue=false
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from distsub.subspace.projection import Stretch
from distsub.subspace.triton_common import gather, mix, operands, rounded

ROWS = 1024
"""Rows of a partition that a program makes."""

BITS = 38
"""Of the largest entry of a gradient, whose sums have 64: 33 million as large fit, and each is exact to 2^-38 of it."""


@triton.jit
def _group(position, stop, blocks, key, groups, mask, L: tl.constexpr, LISTED: tl.constexpr):
    """Hash positions to 2 * group + sign bit, as `Partition` does."""
    if LISTED:
        position = tl.load(blocks + position // L, mask=position < stop, other=0) * L + position % L
    word = mix(position, key)
    group = ((word >> 1) & mask.to(tl.uint64)).to(tl.int64)
    group = tl.where(group >= groups, group & (mask // 2), group)
    return group * 2 + (word & 1).to(tl.int64)


@triton.jit
def _make_partition(
    out,
    code,
    blocks,
    stretches,
    count,
    scales,
    key,
    start,
    stop,
    groups,
    mask,
    L: tl.constexpr,
    ROWS: tl.constexpr,
    KIND: tl.constexpr,
    SCALED: tl.constexpr,
    LISTED: tl.constexpr,
):
    low = start + tl.program_id(0).to(tl.int64) * ROWS
    position = low + tl.arange(0, ROWS)
    update = tl.load(code + _group(position, stop, blocks, key, groups, mask, L, LISTED))
    value, scale = gather(stretches, count, position, low, low + ROWS, scales, KIND, SCALED)
    value = value + scale * update if SCALED else value + update
    tl.store(out + (position - start), rounded(value, out.dtype.element_ty), mask=position < stop)


@triton.jit
def _reduce_partition(
    sums,
    unit,
    blocks,
    stretches,
    count,
    scales,
    key,
    start,
    stop,
    groups,
    mask,
    L: tl.constexpr,
    ROWS: tl.constexpr,
    KIND: tl.constexpr,
    SCALED: tl.constexpr,
    LISTED: tl.constexpr,
):
    low = start + tl.program_id(0).to(tl.int64) * ROWS
    position = low + tl.arange(0, ROWS)
    grad, scale = gather(stretches, count, position, low, low + ROWS, scales, KIND, SCALED)
    grad = grad * scale if SCALED else grad
    exact = tl.floor(grad.to(tl.float64) * tl.load(unit) + 0.5)
    whole = tl.where(tl.abs(exact) < 2.0**62, exact, 0.0).to(tl.int64)  # what is not finite is seen in the largest
    group = _group(position, stop, blocks, key, groups, mask, L, LISTED)
    tl.atomic_add(sums + group, whole, mask=position < stop)


def partition(
    code: Tensor,
    key: int,
    start: int,
    stop: int,
    *,
    add: Sequence[Stretch] = (),
    scales: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    blocks: Tensor | None = None,
    length: int = ROWS,
) -> Tensor:
    """Make rows as `fastfood` does, of the partition: each is one of the code's 2 d numbers.

    Arguments as there; `length` is that of listed blocks.
    """
    out = torch.empty(stop - start, dtype=dtype, device=code.device)
    given, constants = operands(add, scales, blocks, code)
    if out.numel():
        _make_partition[(-(-out.numel() // ROWS),)](
            out, code, *given, key, start, stop, *_groups(code), L=length, ROWS=ROWS, **constants
        )
    return out


def partition_transpose(
    code_length: int,
    key: int,
    start: int,
    stop: int,
    grads: Sequence[Stretch],
    *,
    scales: Tensor | None = None,
    blocks: Tensor | None = None,
    length: int = ROWS,
) -> Tensor:
    """Collapse a gradient to the code's, the transpose of `partition`: a read for the largest entry, one for the sums.

    Args:
        code_length: 2 d.
        key: Of the stream of groups, see `bits`.
        start: First position.
        stop: Position after the last.
        grads: See `fastfood_transpose`.
        scales: See `fastfood`.
        blocks: See `fastfood`.
        length: Of the listed blocks.

    Returns:
        float32, shape [2 d]; NaN where an entry of the gradient is not finite.
    """
    tensors = [tensor for _, tensor, _ in grads]
    sums = torch.zeros(code_length, dtype=torch.int64, device=tensors[0].device)
    norms = torch._foreach_norm(tensors, float("inf"))  # pyright: ignore[reportPrivateImportUsage]
    largest = torch.stack(norms).amax().float() * (1.0 if scales is None else scales.abs().amax())
    unit = torch.ldexp(torch.ones_like(largest, dtype=torch.float64), BITS - torch.frexp(largest).exponent)
    given, constants = operands(grads, scales, blocks, sums)
    _reduce_partition[(-(-(stop - start) // ROWS),)](
        sums, unit, *given, key, start, stop, *_groups(sums), L=length, ROWS=ROWS, **constants
    )
    return (sums.double() / unit + largest * 0).float()


def _groups(code: Tensor) -> tuple[int, int]:
    """Count the groups of a code of 2 d numbers, and give the mask of their numbers."""
    groups = code.numel() // 2
    return groups, (1 << groups.bit_length()) - 1
