"""Kernels for CUDA: theta_0 + lambda * P theta in one write, P^T g in one read, random numbers made in registers.

For Fastfood with blocks of 256 to 16,384 rows, and for the partition's rows (not its transpose). Nothing of P is kept:
each program hashes the words of its rows as `bits` does, entry by entry the same; Hadamard transforms are two products
with matrices of order 128 at most, made of signs, in float32 without TF32. Sums over blocks have a fixed order, so that
the same input gives the same bits.

Where tensors lie is given by a table of stretches: (first position, position after the last, address, group).
`TRITON_INTERPRET=1` runs the kernels on a CPU, which is how they are tested: they never ran on a GPU.
"""

# pyright: reportMissingImports=false, reportIndexIssue=false
from collections.abc import Sequence
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from distsub.subspace.projection import Stretch

SHORTEST, LONGEST = 256, 1 << 14
"""Block lengths: below, a product of matrices is too small; above, a block does not fit a multiprocessor."""

PROGRAMS = 512
"""Partial sums of a transpose; their number is part of the order in which it is summed, so not a device's."""

ROWS = 1024
"""Rows of a partition that a program makes."""

TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


@triton.jit
def _hash(index, key):
    """Mix as `bits.words` does."""
    x = index.to(tl.uint64) * 0x9E3779B97F4A7C15 + key.to(tl.uint64)
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return x ^ (x >> 31)


@triton.jit
def _normals(block, key, table, L: tl.constexpr):
    """Draw a block's G, as `bits.normal_blocks` does: four to a word."""
    word = _hash(block * (L // 4) + tl.arange(0, L // 4), key)
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
def _gather(stretches, count, position, low, high, scales, KIND: tl.constexpr, SCALED: tl.constexpr):
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
def _rounded(value, TO: tl.constexpr):
    """Round to the nearest, ties to even: in bfloat16 by hand, for the interpreter cuts off."""
    if tl.bfloat16 == TO:
        word = value.to(tl.int32, bitcast=True)
        word = (word + 0x7FFF + ((word >> 16) & 1)) & -65536
        value = tl.where(value == value, word.to(tl.float32, bitcast=True), value)
    return value.to(TO)


@triton.jit
def _make_fastfood(
    out,
    code,
    table,
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
):
    block = start // L + tl.program_id(0).to(tl.int64)
    within = tl.arange(0, L)
    update = _hadamard(_normals(block, key, table, L) * tl.load(code + within), L, R, S, T)
    position = block * L + within
    value, scale = _gather(stretches, count, position, block * L, block * L + L, scales, KIND, SCALED)
    value = value + scale * update if SCALED else value + update
    inside = (position >= start) & (position < stop)
    tl.store(out + (position - start), _rounded(value, out.dtype.element_ty), mask=inside)


@triton.jit
def _reduce_fastfood(
    partial,
    table,
    stretches,
    count,
    key,
    start,
    stop,
    programs,
    L: tl.constexpr,
    R: tl.constexpr,
    S: tl.constexpr,
    T: tl.constexpr,
    KIND: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    within = tl.arange(0, L)
    total = tl.zeros([L], dtype=tl.float32)
    for block in range(start // L + program, (stop + L - 1) // L, programs):
        position = block * L + within
        grad, _ = _gather(stretches, count, position, block * L, block * L + L, partial, KIND, False)
        total += _hadamard(grad, L, R, S, T) * _normals(block, key, table, L)
    tl.store(partial + program * L + within, total)


@triton.jit
def _make_partition(
    out,
    code,
    stretches,
    count,
    scales,
    key,
    start,
    stop,
    groups,
    mask,
    ROWS: tl.constexpr,
    KIND: tl.constexpr,
    SCALED: tl.constexpr,
):
    low = start + tl.program_id(0).to(tl.int64) * ROWS
    position = low + tl.arange(0, ROWS)
    word = _hash(position, key)
    group = ((word >> 1) & mask.to(tl.uint64)).to(tl.int64)
    group = tl.where(group >= groups, group & (mask // 2), group)
    update = tl.load(code + group * 2 + (word & 1).to(tl.int64))
    value, scale = _gather(stretches, count, position, low, low + ROWS, scales, KIND, SCALED)
    value = value + scale * update if SCALED else value + update
    tl.store(out + (position - start), _rounded(value, out.dtype.element_ty), mask=position < stop)


def supports(block_length: int) -> bool:
    """Tell whether there are kernels for Fastfood of a block length."""
    return SHORTEST <= block_length <= LONGEST


def readable(tensors: Sequence[Tensor]) -> bool:
    """Tell whether kernels can read some tensors together."""
    return len({tensor.dtype for tensor in tensors}) == 1 and all(
        tensor.dtype in TYPES and tensor.is_contiguous() for tensor in tensors
    )


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

    Returns:
        Shape [stop - start].
    """
    length = code.numel()
    out = torch.empty(stop - start, dtype=dtype, device=code.device)
    where, kind = _stretches(add, code.device)
    grid = (-(-stop // length) - start // length,)
    if out.numel():
        _make_fastfood[grid](
            out, code, table, where, len(add), code if scales is None else scales, key, start, stop,
            KIND=kind, SCALED=scales is not None, **_sizes(length),
        )  # fmt: skip
    return out


def fastfood_transpose(length: int, table: Tensor, key: int, start: int, stop: int, grads: Sequence[Stretch]) -> Tensor:
    """Collapse a gradient to the code's: the transpose of `fastfood` without scales, in one read.

    Args:
        length: L.
        table: See `fastfood`.
        key: See `fastfood`.
        start: First position.
        stop: Position after the last.
        grads: Where the gradient lies; what no stretch covers is 0. All of one type.

    Returns:
        float32, shape [L].
    """
    programs = min(PROGRAMS, max(1, -(-stop // length) - start // length))
    partial = torch.empty(programs, length, dtype=torch.float32, device=table.device)
    where, kind = _stretches(grads, table.device)
    _reduce_fastfood[(programs,)](
        partial, table, where, len(grads), key, start, stop, programs, KIND=kind, **_sizes(length)
    )
    return partial.sum(0)


def partition(
    code: Tensor,
    key: int,
    start: int,
    stop: int,
    *,
    add: Sequence[Stretch] = (),
    scales: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Make rows as `fastfood` does, of the partition: each is one of the code's 2 d numbers; arguments as there."""
    groups = code.numel() // 2
    out = torch.empty(stop - start, dtype=dtype, device=code.device)
    where, kind = _stretches(add, code.device)
    if out.numel():
        _make_partition[(-(-out.numel() // ROWS),)](
            out, code, where, len(add), code if scales is None else scales, key, start, stop, groups,
            (1 << groups.bit_length()) - 1, ROWS=ROWS, KIND=kind, SCALED=scales is not None,
        )  # fmt: skip
    return out


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


def _stretches(found: Sequence[Stretch], device: torch.device) -> tuple[Tensor, tl.dtype]:
    """Put down where tensors lie, for a kernel."""
    table = tuple((start, start + tensor.numel(), tensor.data_ptr(), group) for start, tensor, group in found)
    return _table(table, device), TYPES[found[0][1].dtype] if found else tl.float32


@lru_cache(maxsize=4096)
def _table(rows: tuple[tuple[int, ...], ...], device: torch.device) -> Tensor:
    """Send a table once, without waiting: weights stay where they are, and gradients come back to where others were."""
    table = torch.tensor(rows or [[0, 0, 0, 0]], dtype=torch.int64)
    return (table.pin_memory() if device.type == "cuda" else table).to(device, non_blocking=True)
