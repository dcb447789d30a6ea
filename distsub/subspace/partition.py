"""The partition projection: every parameter follows one signed coordinate. An exact isometry at the cost of D.

Source: UniLoRA (arXiv:2506.00799) and GPart (arXiv:2605.14841), here over all parameters.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from distsub.errors import DimensionError
from distsub.subspace import bits
from distsub.subspace.projection import CHUNK, Blockwise


class Partition(Blockwise):
    """P with one entry +-1/sqrt(n_j) per row, j the row's group and n_j the group's size; P^T P = I exactly.

    Groups come from linear hashing (Litwin 1980): going from d to d + 1 splits one group in two and leaves the
    others, so the subspaces are nested for every d, at the price of groups whose sizes differ by up to two.

    Raises:
        DimensionError: Some group has no parameter; d is too close to D.
    """

    family = "partition"

    def __init__(
        self,
        sizes: Sequence[int],
        d: int,
        seed: int,
        normalization: str = "global",
        block_length: int | None = None,
        cache: bool = True,
    ) -> None:
        """Count the groups' members: one pass over all D positions."""
        super().__init__(sizes, d, seed, normalization, block_length, cache)
        counts = torch.zeros(d, dtype=torch.int64)
        for start in range(0, self.num_params, CHUNK):
            position = torch.arange(start, min(start + CHUNK, self.num_params))
            counts += torch.bincount(self._groups(position) >> 1, minlength=d)
        if (empty := int((counts == 0).sum())) > 0:
            raise DimensionError(
                f"d = {d} leaves {empty} of the partition's groups without a parameter at D = {self.num_params}; "
                f"lower d to about D / 20"
            )
        self._inverse = counts.to(torch.float64).rsqrt()

    @property
    def _code_length(self) -> int:
        return 2 * self.d

    def _groups(self, position: Tensor) -> Tensor:
        """Hash positions to 2 * group + sign bit."""
        word = bits.words(self.seed, "partition", position)
        high = 1 << self.d.bit_length()
        group = (word >> 1) & (high - 1)
        group = torch.where(group >= self.d, group & (high // 2 - 1), group)
        return group * 2 + (word & 1)

    def _state(self, blocks: Tensor) -> Tensor:
        position = blocks.unsqueeze(1) * self.block_length + torch.arange(self.block_length, device=blocks.device)
        return self._groups(position).to(torch.int16 if 2 * self.d <= 1 << 15 else torch.int32)  # kept: the smaller

    def _encode(self, theta: Tensor) -> Tensor:
        scaled = theta * self._inverse.to(theta)
        return torch.stack([-scaled, scaled], dim=1).view(-1)

    def _decode(self, code: Tensor) -> Tensor:
        pair = code.view(-1, 2)
        return (pair[:, 1] - pair[:, 0]) * self._inverse.to(code)

    def _expand(self, code: Tensor, state: Tensor) -> Tensor:
        return code.index_select(0, state.view(-1).int()).view(state.shape)

    def _collapse(self, grad: Tensor, state: Tensor, code: Tensor) -> None:
        code.index_add_(0, state.view(-1).int(), grad.reshape(-1))
