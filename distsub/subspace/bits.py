"""Counter-based random numbers: entry i of a stream is a hash of (seed, stream, i), never a generator's state.

Any slice can be made alone, in any order, on any device, and is the same to the last bit: every step is wrapping
64-bit integer arithmetic or a look-up in one table. That is what lets d numbers and a seed rebuild an adapter
anywhere, and lets a projection make one layer's rows without the others.

The mixer is SplitMix64's finaliser (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number
generators") over a Weyl sequence that starts at a key of (seed, stream).
"""

import hashlib
from functools import cache

import torch
from torch import Tensor

_MASK = (1 << 64) - 1
_WEYL = 0x9E3779B97F4A7C15
_MUL1 = 0xBF58476D1CE4E5B9
_MUL2 = 0x94D049BB133111EB
_NORMALS_PER_WORD = 4
_SIGNS_PER_WORD = 64


def _signed(value: int) -> int:
    """Reinterpret an unsigned 64-bit value as torch's int64."""
    value &= _MASK
    return value - (1 << 64) if value >> 63 else value


def _shift(x: Tensor, bits: int) -> Tensor:
    """Shift right without the sign bit, which torch's arithmetic shift would copy."""
    return (x >> bits).bitwise_and_((1 << (64 - bits)) - 1)


@cache
def key(seed: int, stream: str) -> int:
    """Give the start of a stream's Weyl sequence."""
    return _signed(int.from_bytes(hashlib.sha256(f"{seed}/{stream}".encode()).digest()[:8], "little"))


def words(seed: int, stream: str, index: Tensor) -> Tensor:
    """Hash indices to uniform 64-bit words.

    Args:
        seed: Any integer.
        stream: A name; different names give unrelated words.
        index: int64 tensor of any shape.

    Returns:
        int64 tensor of the same shape; all 64 bits are uniform.
    """
    x = (index * _signed(_WEYL)).add_(key(seed, stream))
    x = x.bitwise_xor_(_shift(x, 30)).mul_(_signed(_MUL1))
    x = x.bitwise_xor_(_shift(x, 27)).mul_(_signed(_MUL2))
    return x.bitwise_xor_(_shift(x, 31))


@cache
def _normal_table(device: torch.device) -> Tensor:
    """Tabulate the standard normal at the centres of 2^16 equal slices of probability.

    Rounded to half precision, so that cached values may be kept in 16 bits without changing a bit, and so that
    last-digit differences between mathematical libraries vanish. Mean 0, variance 1 to 1e-6, |z| <= 4.33.
    """
    levels = (torch.arange(1 << 16, dtype=torch.float64) + 0.5) / (1 << 16)
    table = torch.special.ndtri(levels)
    return (table / table.square().mean().sqrt()).half().float().to(device)


@cache
def short_normal_table(device: torch.device) -> Tensor:
    """Give the same table in half precision, for kernels."""
    return _normal_table(device).half()


def _normals_of(word: Tensor) -> Tensor:
    """Read four normals off each word along a new last axis, then flatten it into the one before."""
    lanes = word.contiguous().view(torch.int16).to(torch.int32).bitwise_and_(0xFFFF)
    return _normal_table(word.device).index_select(0, lanes.reshape(-1)).view(lanes.shape)


def _signs_of(word: Tensor) -> Tensor:
    """Read sixty-four signs off each word, along the last axis."""
    lanes = (word.unsqueeze(-1) >> torch.arange(64, device=word.device)) & 1
    return (lanes * 2 - 1).flatten(-2).to(torch.float32)


def _slice(start: int, stop: int, per_word: int, device: torch.device | str) -> Tensor:
    """Give the words that cover entries start to stop."""
    return torch.arange(start // per_word, -(-stop // per_word), device=device)


def normals(seed: int, stream: str, start: int, stop: int, device: torch.device | str = "cpu") -> Tensor:
    """Draw entries start to stop of a stream of standard normals (float32, on a grid of 2^16 levels)."""
    values = _normals_of(words(seed, stream, _slice(start, stop, _NORMALS_PER_WORD, device)))
    offset = start - start // _NORMALS_PER_WORD * _NORMALS_PER_WORD
    return values[offset : offset + stop - start]


def normal_blocks(seed: int, stream: str, blocks: Tensor, length: int) -> Tensor:
    """Draw whole blocks of a stream of normals: row r holds entries blocks[r] * length onwards.

    Args:
        seed: Any integer.
        stream: A name.
        blocks: int64, shape [n].
        length: Entries per block, a multiple of 4.

    Returns:
        float32, shape [n, length].
    """
    per_block = length // _NORMALS_PER_WORD
    index = blocks.unsqueeze(1) * per_block + torch.arange(per_block, device=blocks.device)
    return _normals_of(words(seed, stream, index))


def normals_at(seed: int, stream: str, index: Tensor) -> Tensor:
    """Draw single entries of a stream of normals, at int64 indices of any shape (one hash each)."""
    word = words(seed, stream, index >> 2)
    lane = (word >> ((index & 3) * 16)) & 0xFFFF
    return _normal_table(word.device)[lane]


def signs(seed: int, stream: str, start: int, stop: int, device: torch.device | str = "cpu") -> Tensor:
    """Draw entries start to stop of a stream of fair signs, float32 in {-1, 1}."""
    values = _signs_of(words(seed, stream, _slice(start, stop, _SIGNS_PER_WORD, device)))
    offset = start - start // _SIGNS_PER_WORD * _SIGNS_PER_WORD
    return values[offset : offset + stop - start]


def permutation(seed: int, stream: str, index: Tensor, size: int) -> Tensor:
    """Permute 0..size-1: give the images of the indices asked for, each computed alone.

    Six rounds of an odd multiplication, an offset and a folded shift, each a bijection of k-bit numbers.

    Args:
        seed: Any integer.
        stream: A name.
        index: int64 indices in [0, size), any shape.
        size: Size of the permuted set, a power of two.

    Returns:
        int64 images, same shape.
    """
    bits = size.bit_length() - 1
    mask = size - 1
    rounds = words(seed, stream, torch.arange(12)).tolist()
    x = index.clone()
    for factor, offset in zip(rounds[::2], rounds[1::2], strict=True):
        x = x.mul_(factor | 1).add_(offset).bitwise_and_(mask)
        x = x.bitwise_xor_(x >> max(1, bits // 2))
    return x
