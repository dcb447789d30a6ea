from itertools import pairwise

import pytest
import torch

from distsub.errors import ShapeError
from distsub.subspace.assemble import build
from distsub.subspace.stacked import PerLayer

SIZES = ((40, 7), (100,), (20, 20))


def make(d: int = 4, family: str = "fastfood") -> PerLayer:
    return PerLayer([build(family, sizes, d, seed, "global", 16) for seed, sizes in enumerate(SIZES)])


def test_it_is_block_diagonal():
    whole = make()
    columns = torch.block_diag(*(part.dense() for part in whole.parts))
    by_rank = columns.view(-1, 3, 4).transpose(1, 2).reshape(-1, 12)  # the first of every part, then the second, ...
    torch.testing.assert_close(whole.dense(), by_rank, rtol=0, atol=0)
    assert (whole.num_coordinates, whole.num_params, whole.sizes) == (12, 187, (40, 7, 100, 20, 20))


def test_adjoint_is_the_transpose_in_any_cut():
    p, g = make(), torch.randn(187, dtype=torch.float64)
    torch.testing.assert_close(p.adjoint(g), p.dense().T @ g, rtol=0, atol=1e-12)
    edges = [0, 3, 40, 47, 60, 147, 150, 187]
    total = sum(p.adjoint(g[a:b], a) for a, b in pairwise(edges))
    torch.testing.assert_close(total, p.adjoint(g), rtol=0, atol=1e-12)


def test_slices_and_rows_are_those_of_the_whole():
    p, z, rows = make(), torch.randn(12), torch.tensor([3, 0, 3])
    whole = p.apply(z)
    for start, stop in [(0, 187), (5, 6), (39, 48), (46, 148), (100, 100), (186, None)]:
        assert torch.equal(p.apply(z, start, stop), whole[start:stop])
    assert torch.equal(p.apply_rows(z, 147, 5, rows), whole[147:167].view(4, 5)[rows])
    g = torch.randn(3, 5, dtype=torch.float64)
    full = torch.zeros(187, dtype=torch.float64)
    full[147:167].view(4, 5).index_add_(0, rows, g)
    torch.testing.assert_close(p.adjoint_rows(g, 147, rows), p.adjoint(full), rtol=0, atol=1e-12)


def test_smaller_d_are_prefixes():
    torch.testing.assert_close(make(2).dense(), make(3).dense()[:, :6], rtol=0, atol=0)


def test_shapes():
    with pytest.raises(ShapeError, match=r"takes \[12\]"):
        make().apply(torch.zeros(4))
    with pytest.raises(ShapeError, match="D = 187"):
        make().adjoint(torch.zeros(10), 180)
