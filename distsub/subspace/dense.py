"""The dense Gaussian projection: the definition all others approximate. Cost d D, for small models and tests."""

import torch
from torch import Tensor

from distsub.subspace import bits
from distsub.subspace.projection import Blockwise

_ROW = 1 << 24
"""Room for coordinates in a row's index, so that an entry's number does not depend on d."""


class Dense(Blockwise):
    """P with independent entries N(0, 1/D). Norm: E|P z|^2 = |z|^2. Nested: yes. Source: Li et al. 2018, Sec. 2."""

    family = "dense"

    def _state(self, blocks: Tensor) -> Tensor:
        rows = blocks.unsqueeze(1) * self.block_length + torch.arange(self.block_length, device=blocks.device)
        index = rows.unsqueeze(2) * _ROW + torch.arange(self.d, device=blocks.device)
        return bits.normals_at(self.seed, "dense", index) * self.num_params**-0.5

    def _expand(self, code: Tensor, state: Tensor) -> Tensor:
        return state.to(code.dtype) @ code

    def _collapse(self, grad: Tensor, state: Tensor, code: Tensor) -> None:
        code.add_(torch.einsum("nl,nld->d", grad, state.to(grad.dtype)))
