"""Fastfood projections: P = H G Pi H B in stacked blocks, and the per-tensor layout of the released code.

Sources: Le, Sarlos and Smola 2013 (the transform); Aghajanyan et al. 2020, Eq. 2 (its use here).

B and Pi are drawn once and shared by all blocks, G once per block. Given B and Pi every row of P is then exactly
Gaussian with independent entries, blocks are independent of each other, and E|P z|^2 = |z|^2 holds as for blocks
with a B and Pi of their own; but the inner Pi H B theta is the same for all blocks, so that a block costs one
multiplication and one Hadamard transform instead of two transforms and a gather.

What sharing costs: P^T P = (H B)^T Pi^T diag(s) Pi H B with s the mean of the blocks' G^2, so that with few blocks some
directions are nearly lost (condition number 100 and more where a dense Gaussian has 3). There s is divided out, which
leaves P^T P = I up to the block that D cuts short.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from distsub.errors import DimensionError
from distsub.subspace import bits, kernels
from distsub.subspace.blockwise import Blockwise
from distsub.subspace.projection import Stretch
from distsub.subspace.stacked import Stacked

_FEW = 256
"""From more blocks on s is even by itself: a condition number below 1.5, up to L = 16,384."""

_RADIX_BITS = 5
"""log2 of the order of the Hadamard matrices a transform is factored into: products of 16 to 64 are fastest."""


@cache
def _sylvester(order: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Build the Sylvester Hadamard matrix with entries +-1, symmetric, order a power of two."""
    index = torch.arange(order)
    common = index.unsqueeze(0) & index.unsqueeze(1)
    parity = torch.zeros_like(common)
    while common.any():
        parity ^= common & 1
        common = common >> 1
    return (1 - 2 * parity).to(dtype=dtype, device=device)


def hadamard(x: Tensor) -> Tensor:
    """Apply the unnormalised Walsh-Hadamard transform along the last axis, whose length is a power of two.

    Uses H_(ab) = H_a (x) H_b: a transform of length 2^k is a few products with small matrices, 2 * 32 operations
    per entry and factor, which beats k passes of additions over memory.
    """
    shape, flat, inner = x.shape, x.reshape(-1), x.shape[-1]
    for radix in _radices(inner):
        inner //= radix
        matrix = _sylvester(radix, x.dtype, x.device)
        flat = flat.view(-1, radix) @ matrix if inner == 1 else torch.matmul(matrix, flat.view(-1, radix, inner))
        flat = flat.reshape(-1)
    return flat.view(shape)


@cache
def _radices(length: int) -> tuple[int, ...]:
    """Factor a power of two into as equal powers as can be: one small factor left over costs more than all others.

    >>> _radices(1024), _radices(2048), _radices(4096), _radices(8192), _radices(16384)
    ((32, 32), (64, 32), (16, 16, 16), (32, 16, 16), (32, 32, 16))
    """
    total = length.bit_length() - 1
    # Two factors at least: a product of one row with a matrix is summed in another order than one of many rows, and
    # a block's numbers must not depend on how many blocks are transformed together.
    count = min(max(2, -(-(total - 1) // _RADIX_BITS)), max(total, 1))
    each, more = divmod(total, count)
    return tuple(1 << each + (number < more) for number in range(count)) if total else ()


def next_power_of_two(n: int) -> int:
    """Round up to a power of two."""
    return 1 << (n - 1).bit_length()


class Fastfood(Blockwise):
    """P in stacked blocks of L = `block_length` rows: P_b = sqrt(L / D) H G_b Pi H B, H orthonormal, L >= d.

    Where D has no more than 256 blocks, G_b is divided by the root mean square of all blocks' G, entry by entry.

    Cost: D log L. Norm: E|P z|^2 = |z|^2 over all D. Nested: yes for a fixed block length, since fewer
    coordinates are the same ones with zeros behind them. One L serves a whole search.
    Source: Aghajanyan et al. 2020, Eq. 2; Le et al. 2013.

    Raises:
        DimensionError: The coordinates exceed the block length, or that is not a power of two of at least 4.
    """

    family = "fastfood"

    def __init__(self, *args: Any, stream: str = "fastfood", even: bool = True, **kwargs: Any) -> None:
        """Name the stream of random bits, and say whether few blocks are made even; the rest is as in `Blockwise`."""
        self._stream, self._even = stream, even
        super().__init__(*args, **kwargs)

    def _length(self, asked: int | None) -> int:
        needed = max(4, next_power_of_two(self.num_coordinates))
        length = needed if asked is None else asked
        if length < 4 or length != next_power_of_two(length):
            raise DimensionError(f"block_length = {length} must be a power of two of at least 4")
        if length < needed:
            raise DimensionError(
                f"{self.num_coordinates} coordinates exceed the Fastfood block length {length}; "
                f"give the whole search block_length = {needed} or more"
            )
        return length

    def _prepare(self) -> None:
        """Draw B and Pi; G is drawn as blocks are used, and once before where few blocks are to be made even."""
        length, count = self.block_length, -(-self.num_params // self.block_length)
        self._signs = bits.signs(self.seed, f"{self._stream}/B", 0, length)
        self._order = bits.permutation(self.seed, f"{self._stream}/Pi", torch.arange(length), length)
        # H is applied with entries +-1 here, so its 1/sqrt(L), twice, and the sqrt(L / D) are put in one number.
        scale = torch.full((length,), (length * self.num_params) ** -0.5, dtype=torch.float64)
        if self._even and count <= _FEW:
            drawn = (self._state(torch.tensor([block])).double().square().view(-1) for block in range(count))
            scale *= (sum(drawn, torch.zeros_like(scale)) / count).rsqrt()
        self._scale = scale

    @property
    def _code_length(self) -> int:
        return self.block_length

    def _state(self, blocks: Tensor) -> Tensor:
        return bits.normal_blocks(self.seed, f"{self._stream}/G", blocks, self.block_length).half()

    def _encode(self, theta: Tensor) -> Tensor:
        padded = theta.new_zeros(self.block_length)
        padded[: self.num_coordinates] = theta * self._signs_on(theta)
        return hadamard(padded)[self._table("_order", theta.device)] * self._table("_scale", theta.device, theta.dtype)

    def _decode(self, code: Tensor) -> Tensor:
        inner = torch.empty_like(code)
        inner[self._table("_order", code.device)] = code * self._table("_scale", code.device, code.dtype)
        return hadamard(inner)[: self.num_coordinates] * self._signs_on(code)

    def _signs_on(self, like: Tensor) -> Tensor:
        return self._table("_signs", like.device, like.dtype)[: self.num_coordinates]

    @property
    def _kernels_fit(self) -> bool:  # type: ignore[override]
        return kernels.module() is not None and kernels.module().supports(self.block_length)

    def _kernel(self, code: Tensor, start: int, stop: int, **more: Any) -> Tensor:
        table, key = bits.short_normal_table(code.device), bits.key(self.seed, f"{self._stream}/G")
        return kernels.module().fastfood(code.float(), table, key, start, stop, **more)

    def _kernel_transposed(self, start: int, stop: int, grads: Sequence[Stretch], **more: Any) -> Tensor:
        table, key = bits.short_normal_table(grads[0][1].device), bits.key(self.seed, f"{self._stream}/G")
        return kernels.module().fastfood_transpose(self.block_length, table, key, start, stop, grads, **more)

    def _expand(self, code: Tensor, state: Tensor) -> Tensor:
        return hadamard(state.to(code.dtype, copy=True).mul_(code))

    def _collapse(self, grad: Tensor, state: Tensor, code: Tensor) -> None:
        code.add_(hadamard(grad).mul_(state.to(code.dtype)).sum(0))


class FastfoodPerTensor(Stacked):
    """One transform per tensor, padded to a power of two, as in the released code of Aghajanyan et al. 2020.

    For comparability: wasteful (any slice of a tensor costs the whole tensor's transform), but with the exact
    transpose as its adjoint, where the released backward pass scales tensor i's gradient by 1 / L_i, and with a
    transform of at least `block_length` for tensors smaller than d, whose coordinates that code drops.

    Cost: sum of L_i log L_i. Nested: yes, for a fixed block length.
    """

    family = "fastfood_per_tensor"

    def __init__(
        self,
        sizes: Sequence[int],
        num_coordinates: int,
        seed: int,
        normalization: str = "per_tensor",
        block_length: int | None = None,
        cache: bool = True,
    ) -> None:
        """Give every tensor a Fastfood of one block."""
        floor = max(4, next_power_of_two(num_coordinates)) if block_length is None else block_length
        super().__init__(sizes, num_coordinates, seed, normalization)
        self.block_length = floor
        self.parts = [
            Fastfood(
                (max(size, num_coordinates),),
                num_coordinates,
                seed,
                block_length=max(floor, next_power_of_two(size)),
                cache=cache,
                stream=f"tensor{i}",
                even=False,
            )
            for i, size in enumerate(self.sizes)
        ]

    def scale(self, number: int) -> float:
        """Turn the part's own isometry into the chosen normalisation."""
        full = self.sizes[number] if self.normalization == "per_tensor" else self.num_params
        return (self.parts[number].num_params / full) ** 0.5
