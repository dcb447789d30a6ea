"""Kernels for CUDA: theta_0 + lambda * P theta in one write, P^T g in one read, random numbers made in registers.

For Fastfood with blocks of 256 to 16,384 rows, and for the partition. Nothing of P is kept: each program hashes the
words of its rows as `bits` does, entry by entry the same; Hadamard transforms are two products with matrices of order
128 at most, made of signs, in float32 without TF32. Sums over blocks have a fixed order, and those of the partition
are of integers, which no order changes, so that the same input gives the same bits.

Where tensors lie is given by a table of stretches: (first position, position after the last, address, group). Rows of
embedding tables are made of listed blocks: positions count through the list, as if its blocks were all of P.
`TRITON_INTERPRET=1` runs the kernels on a CPU, which is how they are tested: they never ran on a GPU.
"""

# pyright: reportMissingImports=false, reportIndexIssue=false
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from distsub.subspace.projection import Stretch
from distsub.subspace.triton_common import gather, mix, operands, readable, rounded
from distsub.subspace.triton_partition import partition, partition_transpose

__all__ = ["fastfood", "fastfood_transpose", "partition", "partition_transpose", "readable", "supports"]

SHORTEST, LONGEST = 256, 1 << 14
"""Block lengths: below, a product of matrices is too small; above, a block does not fit a multiprocessor."""

PROGRAMS = 512
"""Partial sums of a transpose; their number is part of the order in which it is summed, so not a device's."""


@triton.jit
def _normals(block, key, table, L: tl.constexpr):
    """Draw a block's G, as `bits.normal_blocks` does: four to a word."""
    word = mix(block * (L // 4) + tl.arange(0, L // 4), key)
    lane = (word[:, None] >> (tl.arange(0, 4) * 16).to(tl.uint64)[None, :]) & 0xFFFF
    return tl.reshape(tl.load(table + lane.to(tl.int32)).to(tl.float32), [L])


@triton.jit
def _sylvester(N: tl.constexpr):
    """Make the Hadamard matrix: -1 to the number of bits that row and column share."""
    index = tl.arange(0, N)
    common = index[:, None] & index[None, :]
    common = common ^ (common >> 4)
    common = common ^ (common >> 2)
    common = common ^ (common >> 1)
    return (1 - 2 * (common & 1)).to(tl.float32)


@triton.jit
def _stage(x, L: tl.constexpr, R: tl.constexpr):
    """Transform along the last radix, and bring it to the front."""
    x = tl.dot(tl.reshape(x, [L // R, R]), _sylvester(R), input_precision="ieee")
    return tl.reshape(tl.trans(x), [L])


@triton.jit
def _hadamard(x, L: tl.constexpr, R: tl.constexpr, S: tl.constexpr, T: tl.constexpr):
    """Transform a block [L], L = R S T: after a stage for each radix, every one is in its place again."""
    x = _stage(_stage(x, L, R), L, S)
    if T > 1:
        x = _stage(x, L, T)
    return x


@triton.jit
def _make_fastfood(
    out,
    code,
    table,
    blocks,
    stretches,
    count,
    scales,
    key,
    start,
    stop,
    L: tl.constexpr,
    R: tl.constexpr,
    S: tl.constexpr,
    T: tl.constexpr,
    KIND: tl.constexpr,
    SCALED: tl.constexpr,
    LISTED: tl.constexpr,
):
    number = start // L + tl.program_id(0).to(tl.int64)
    within = tl.arange(0, L)
    normals = _normals(tl.load(blocks + number) if LISTED else number, key, table, L)
    update = _hadamard(normals * tl.load(code + within), L, R, S, T)
    position = number * L + within
    value, scale = gather(stretches, count, position, number * L, number * L + L, scales, KIND, SCALED)
    value = value + scale * update if SCALED else value + update
    inside = (position >= start) & (position < stop)
    tl.store(out + (position - start), rounded(value, out.dtype.element_ty), mask=inside)


@triton.jit
def _reduce_fastfood(
    partial,
    table,
    blocks,
    stretches,
    count,
    scales,
    key,
    start,
    stop,
    programs,
    L: tl.constexpr,
    R: tl.constexpr,
    S: tl.constexpr,
    T: tl.constexpr,
    KIND: tl.constexpr,
    SCALED: tl.constexpr,
    LISTED: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    within = tl.arange(0, L)
    total = tl.zeros([L], dtype=tl.float32)
    for number in range(start // L + program, (stop + L - 1) // L, programs):
        position = number * L + within
        grad, scale = gather(stretches, count, position, number * L, number * L + L, scales, KIND, SCALED)
        grad = grad * scale if SCALED else grad
        block = tl.load(blocks + number) if LISTED else number
        total += _hadamard(grad, L, R, S, T) * _normals(block, key, table, L)
    tl.store(partial + program * L + within, total)


def supports(block_length: int) -> bool:
    """Tell whether there are kernels for Fastfood of a block length."""
    return SHORTEST <= block_length <= LONGEST


def fastfood(
    code: Tensor,
    table: Tensor,
    key: int,
    start: int,
    stop: int,
    *,
    add: Sequence[Stretch] = (),
    scales: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    blocks: Tensor | None = None,
) -> Tensor:
    """Make rows of theta_0 + lambda * P theta, rounded once.

    Args:
        code: What all blocks share, Pi H B theta scaled; float32, shape [L].
        table: Normals by their 16 bits, float16, shape [65536].
        key: Of the stream of G, see `bits`.
        start: First position.
        stop: Position after the last.
        add: theta_0 where it lies; what no stretch covers is 0, its scale 1. All of one type.
        scales: lambda, float32; None is 1.
        dtype: Of the result.
        blocks: Block numbers, int64: blocks of P that stand in the places 0, 1, ... of positions; None is all.

    Returns:
        Shape [stop - start].
    """
    length = code.numel()
    out = torch.empty(stop - start, dtype=dtype, device=code.device)
    given, constants = operands(add, scales, blocks, code)
    grid = (-(-stop // length) - start // length,)
    if out.numel():
        _make_fastfood[grid](out, code, table, *given, key, start, stop, **constants, **_sizes(length))
    return out


def fastfood_transpose(
    length: int,
    table: Tensor,
    key: int,
    start: int,
    stop: int,
    grads: Sequence[Stretch],
    *,
    scales: Tensor | None = None,
    blocks: Tensor | None = None,
) -> Tensor:
    """Collapse a gradient to the code's: the transpose of `fastfood`, in one read.

    Args:
        length: L.
        table: See `fastfood`.
        key: See `fastfood`.
        start: First position.
        stop: Position after the last.
        grads: Where the gradient lies; what no stretch covers is 0. All of one type.
        scales: See `fastfood`.
        blocks: See `fastfood`.

    Returns:
        float32, shape [L].
    """
    programs = min(PROGRAMS, max(1, -(-stop // length) - start // length))
    partial = torch.empty(programs, length, dtype=torch.float32, device=table.device)
    given, constants = operands(grads, scales, blocks, table)
    _reduce_fastfood[(programs,)](partial, table, *given, key, start, stop, programs, **constants, **_sizes(length))
    return partial.sum(0)


def _sizes(length: int) -> dict[str, int]:
    """Factor a block length into two or three radices of 16 at least, and say how many warps share a block.

    >>> _sizes(2048)["R"], _sizes(2048)["S"], _sizes(2048)["T"], _sizes(8192)["R"], _sizes(8192)["T"]
    (32, 64, 1, 16, 32)
    """
    total = length.bit_length() - 1
    count = 3 if total >= 12 else 2
    radices = [1 << (total + place) // count for place in range(count)]
    warps = 4 if total < 12 else 8 if total < 14 else 16
    return dict(zip("LRST", [length, *radices, 1], strict=False)) | {"num_warps": warps}
