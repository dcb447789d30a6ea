"""The projection families that make few or independent entries a row: dense, sparse, partition."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from distsub.errors import DimensionError
from distsub.subspace import bits, kernels
from distsub.subspace.blockwise import Blockwise
from distsub.subspace.projection import CHUNK, Stretch

_ROOM = 1 << 24
"""Room for coordinates in a row's or a block's index, so that an entry's number does not depend on d."""


class Dense(Blockwise):
    """P with independent entries N(0, 1/D): the definition all others approximate. Cost d D: for small models.

    Norm: E|P z|^2 = |z|^2. Nested: yes. Source: Li et al. 2018, Sec. 2.
    """

    family = "dense"

    def _state(self, blocks: Tensor) -> Tensor:
        rows = blocks.unsqueeze(1) * self.block_length + torch.arange(self.block_length, device=blocks.device)
        index = rows.unsqueeze(2) * _ROOM + torch.arange(self.num_coordinates, device=blocks.device)
        return bits.normals_at(self.seed, "dense", index) * self.num_params**-0.5

    def _expand(self, code: Tensor, state: Tensor) -> Tensor:
        return state.to(code.dtype) @ code

    def _collapse(self, grad: Tensor, state: Tensor, code: Tensor) -> None:
        code.add_(torch.einsum("nl,nld->d", grad, state.to(grad.dtype)))


class Sparse(Blockwise):
    """P with one entry +-v per column and block of about sqrt(D) rows, so density 1 / sqrt(D).

    Stratifying the positions (one per block, uniform within it) keeps every column's norm exactly 1 where blocks
    divide D, and lets a slice be made alone. Nested: yes. Source: Li et al. 2018, supplement (density).
    """

    family = "sparse"

    def _length(self, asked: int | None) -> int:
        """Take sqrt(D), rounded, whatever is asked: it is the density."""
        return max(1, round(self.num_params**0.5))

    def _prepare(self) -> None:
        # The expected share of a last, partial block counts too, so that E|P z|^2 = |z|^2 for any D.
        self._value = (self.block_length / self.num_params) ** 0.5

    def _state(self, blocks: Tensor) -> Tensor:
        """Draw each block's row per column; the sign is the lowest bit, so that one integer holds both."""
        index = blocks.unsqueeze(1) * _ROOM + torch.arange(self.num_coordinates, device=blocks.device)
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


class Partition(Blockwise):
    """P with one entry +-1/sqrt(n_j) per row, j the row's group and n_j the group's size; P^T P = I exactly.

    Groups come from linear hashing (Litwin 1980): going from d to d + 1 splits one group in two and leaves the
    others, so the subspaces are nested for every d, at the price of groups whose sizes differ by up to two. Cost: D.
    Source: UniLoRA (arXiv:2506.00799) and GPart (arXiv:2605.14841), here over all parameters.

    Raises:
        DimensionError: Some group has no parameter; d is too close to D.
    """

    family = "partition"

    def _prepare(self) -> None:
        """Count the groups' members: one pass over all D positions."""
        counts = torch.zeros(self.num_coordinates, dtype=torch.int64)
        for start in range(0, self.num_params, CHUNK):
            position = torch.arange(start, min(start + CHUNK, self.num_params))
            counts += torch.bincount(self._groups(position) >> 1, minlength=self.num_coordinates)
        if (empty := int((counts == 0).sum())) > 0:
            raise DimensionError(
                f"{self.num_coordinates} coordinates leave {empty} of the partition's groups without a parameter at "
                f"D = {self.num_params}; lower d to about D / 20"
            )
        self._inverse = counts.to(torch.float64).rsqrt()

    @property
    def _code_length(self) -> int:
        return 2 * self.num_coordinates

    def _groups(self, position: Tensor) -> Tensor:
        """Hash positions to 2 * group + sign bit."""
        word = bits.words(self.seed, "partition", position)
        high = 1 << self.num_coordinates.bit_length()
        group = (word >> 1) & (high - 1)
        group = torch.where(group >= self.num_coordinates, group & (high // 2 - 1), group)
        return group * 2 + (word & 1)

    def _state(self, blocks: Tensor) -> Tensor:
        position = blocks.unsqueeze(1) * self.block_length + torch.arange(self.block_length, device=blocks.device)
        return self._groups(position).to(
            torch.int16 if 2 * self.num_coordinates <= 1 << 15 else torch.int32
        )  # kept: the smaller

    def _encode(self, theta: Tensor) -> Tensor:
        scaled = theta * self._table("_inverse", theta.device, theta.dtype)
        return torch.stack([-scaled, scaled], dim=1).view(-1)

    def _decode(self, code: Tensor) -> Tensor:
        pair = code.view(-1, 2)
        return (pair[:, 1] - pair[:, 0]) * self._table("_inverse", code.device, code.dtype)

    _kernels_fit = True

    def _kernel(self, code: Tensor, start: int, stop: int, **more: Any) -> Tensor:
        key, length = bits.key(self.seed, "partition"), self.block_length
        return kernels.module().partition(code.float(), key, start, stop, length=length, **more)

    def _kernel_transposed(self, start: int, stop: int, grads: Sequence[Stretch], **more: Any) -> Tensor:
        key, length = bits.key(self.seed, "partition"), self.block_length
        return kernels.module().partition_transpose(self._code_length, key, start, stop, grads, length=length, **more)

    def _expand(self, code: Tensor, state: Tensor) -> Tensor:
        return code.index_select(0, state.view(-1).int()).view(state.shape)

    def _collapse(self, grad: Tensor, state: Tensor, code: Tensor) -> None:
        code.index_add_(0, state.view(-1).int(), grad.reshape(-1))
