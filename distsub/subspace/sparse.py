"""The sparse projection of Li et al. 2018: one entry in sqrt(D) is not zero."""

from collections.abc import Sequence

import torch
from torch import Tensor

from distsub.subspace import bits
from distsub.subspace.projection import Blockwise

_BLOCK = 1 << 24
"""Room for coordinates in a block's index, so that an entry's number does not depend on d."""


class Sparse(Blockwise):
    """P with one entry +-v per column and block of about sqrt(D) rows, so density 1 / sqrt(D).

    Stratifying the positions (one per block, uniform within it) keeps every column's norm exactly 1 where blocks
    divide D, and lets a slice be made alone. Nested: yes. Source: Li et al. 2018, supplement (density).
    """

    family = "sparse"

    def __init__(
        self,
        sizes: Sequence[int],
        d: int,
        seed: int,
        normalization: str = "global",
        block_length: int | None = None,
        cache: bool = True,
    ) -> None:
        """Set the block length to sqrt(D), rounded up, whatever is asked: it is the density."""
        del block_length
        length = max(1, round(sum(sizes) ** 0.5))
        super().__init__(sizes, d, seed, normalization, length, cache)
        # The expected share of a last, partial block counts too, so that E|P z|^2 = |z|^2 for any D.
        self._value = (length / self.num_params) ** 0.5

    def _state(self, blocks: Tensor) -> Tensor:
        """Draw each block's row per column; the sign is the lowest bit, so that one integer holds both."""
        index = blocks.unsqueeze(1) * _BLOCK + torch.arange(self.d, device=blocks.device)
        word = bits.words(self.seed, "sparse", index)
        row = ((word >> 32) & 0x7FFFFFFF) * self.block_length >> 31
        return (row * 2 + (word & 1)).to(torch.int32)

    def _entries(self, state: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        return (state >> 1).long(), ((state & 1) * 2 - 1).to(dtype) * self._value

    def _expand(self, code: Tensor, state: Tensor) -> Tensor:
        row, value = self._entries(state, code.dtype)
        return code.new_zeros(len(state), self.block_length).scatter_add_(1, row, value * code)

    def _collapse(self, grad: Tensor, state: Tensor, code: Tensor) -> None:
        row, value = self._entries(state, code.dtype)
        code.add_(grad.gather(1, row).mul_(value).sum(0))
