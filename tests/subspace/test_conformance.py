"""One suite that every projection family passes, under both normalisations, against the dense matrix in float64.

Source of the list: what is known to go wrong in public code for this method; the tests say which bug they catch.
"""

from itertools import pairwise

import pytest
import torch

from distsub.errors import ConfigError, DimensionError, ShapeError
from distsub.subspace import projection, trajectory
from distsub.subspace.assemble import FAMILIES, build
from distsub.subspace.projection import CHUNK, NORMALIZATIONS, Projection
from distsub.subspace.trajectory import Trajectory

SMALL = ((50,), 2)
"""One tensor, a matrix anyone can print."""

SEVERAL = ((7, 300, 64, 129, 1, 41), 12)
"""Tensors larger and smaller than a block, and smaller than d."""

MATRIX = 1
"""The tensor of SEVERAL that is read by rows: 300 = 15 x 20, starting in the middle of a block."""

KINDS = [(family, normalization) for family in FAMILIES for normalization in NORMALIZATIONS]

pytestmark = pytest.mark.parametrize(("family", "normalization"), [*KINDS, ("trajectory", "global")])


def make(family: str, normalization: str, shape=SEVERAL, seed: int = 3, block_length: int = 16) -> Projection:
    sizes, d = shape
    if family == "trajectory":
        return learned(sizes, d, seed)
    return build(family, sizes, d, seed, normalization, block_length)


def learned(sizes, d: int, seed: int) -> Trajectory:
    """The leading directions of as many Gaussian checkpoints as the largest d of the suite, or as d asks for."""
    generator = torch.Generator().manual_seed(seed)
    rows = [[torch.randn(n, generator=generator) for n in sizes] for _ in range(max(12, d) if sum(sizes) > 60 else 2)]
    return Trajectory(rows, d)


def gaussian(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, dtype=dtype)


class TestLinearMap:
    @pytest.mark.parametrize("shape", [SMALL, SEVERAL])
    def test_apply_and_adjoint_are_the_dense_matrix(self, family, normalization, shape):
        p = make(family, normalization, shape)
        matrix, z, g = p.dense(), gaussian(p.num_coordinates), gaussian(p.num_params)
        assert matrix.shape == (p.num_params, p.num_coordinates) == (sum(shape[0]), shape[1])
        torch.testing.assert_close(p.apply(z), matrix @ z, rtol=0, atol=1e-12)
        torch.testing.assert_close(p.adjoint(g), matrix.T @ g, rtol=0, atol=1e-12)

    def test_linearity(self, family, normalization):
        p = make(family, normalization)
        x, y, g, h = (
            gaussian(p.num_coordinates),
            gaussian(p.num_coordinates),
            gaussian(p.num_params),
            gaussian(p.num_params),
        )
        torch.testing.assert_close(p.apply(2 * x - 3 * y), 2 * p.apply(x) - 3 * p.apply(y), rtol=0, atol=1e-12)
        torch.testing.assert_close(p.adjoint(2 * g - 3 * h), 2 * p.adjoint(g) - 3 * p.adjoint(h), rtol=0, atol=1e-12)
        assert not p.apply(torch.zeros(p.num_coordinates)).any()

    def test_inner_products_agree_over_more_than_one_chunk(self, family, normalization):
        sizes = (CHUNK + 4321, 17, 5000)
        p = make(family, normalization, (sizes, 6), 0, 64)
        z, g = gaussian(6), gaussian(p.num_params)
        assert torch.dot(p.apply(z), g).item() == pytest.approx(torch.dot(z, p.adjoint(g)).item(), rel=1e-10)

    def test_each_tensors_gradient_has_the_scale_of_the_transpose(self, family, normalization):
        """Known bug: a released backward pass scales tensor i's gradient by 1 / L_i."""
        p, matrix = make(family, normalization), make(family, normalization).dense()
        for start, stop in pairwise(p.offsets):
            g = gaussian(stop - start)
            torch.testing.assert_close(p.adjoint(g, start), matrix[start:stop].T @ g, rtol=0, atol=1e-12)

    def test_autograd_equals_the_adjoint(self, family, normalization):
        p = make(family, normalization)
        z, g = gaussian(p.num_coordinates).requires_grad_(), gaussian(p.num_params)
        jacobian = torch.autograd.functional.jacobian(p.apply, z)
        torch.testing.assert_close(jacobian, p.dense(), rtol=0, atol=1e-12)
        (gradient,) = torch.autograd.grad(p.apply(z), z, g)
        torch.testing.assert_close(gradient, p.adjoint(g), rtol=0, atol=1e-12)

    def test_arguments_are_not_modified_and_give_their_dtype(self, family, normalization):
        p = make(family, normalization)
        for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
            z, g = gaussian(p.num_coordinates, dtype=dtype), gaussian(p.num_params, dtype=dtype)
            before = z.clone(), g.clone()
            first, back = p.apply(z), p.adjoint(g)
            assert first.dtype == back.dtype == dtype
            assert torch.equal(z, before[0])
            assert torch.equal(g, before[1])
            assert torch.equal(p.apply(z), first)  # nothing cached was changed either

    def test_autocast_does_not_reach_inside(self, family, normalization):
        p, z, g = make(family, normalization), gaussian(12, dtype=torch.float32), gaussian(542, dtype=torch.float32)
        plain = p.apply(z), p.adjoint(g)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(p.apply(z), plain[0])
            assert torch.equal(p.adjoint(g), plain[1])

    @pytest.mark.parametrize("allowed", ["high", "medium"])
    def test_shorter_products_that_a_caller_allows_do_not_reach_inside(self, family, normalization, allowed):
        """TF32 on CUDA, bfloat16 on some processors: P would be another map, and a fingerprint another number."""
        p, z, g = make(family, normalization), gaussian(12, dtype=torch.float32), gaussian(542, dtype=torch.float32)
        plain, seen = (p.apply(z), p.adjoint(g), p.fingerprint()), []
        with projection.full_precision(z.device):
            pass
        try:
            torch.set_float32_matmul_precision(allowed)
            with projection.full_precision(z.device):
                seen += [torch.backends.cuda.matmul.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision]
            assert torch.equal(p.apply(z), plain[0])
            assert torch.equal(p.adjoint(g), plain[1])
            assert p.fingerprint() == plain[2]
            assert torch.get_float32_matmul_precision() == allowed
        finally:
            torch.set_float32_matmul_precision("highest")
        assert seen == ["ieee", "ieee"]


class TestNorm:
    def test_columns_have_expected_norm_one(self, family, normalization):
        # The mean square of a column over seeds, as a fraction of its expectation (1 in each tensor for per_tensor);
        # |mean - 1| stays within five of its own standard errors, which are small enough to see a factor of 1.1.
        shape, seeds = ((600, 203, 222), 8), 80
        tensors = 1 if normalization == "global" else 3
        squares = torch.stack([make(family, normalization, shape, s).dense().square().sum(0) for s in range(seeds)])
        per_seed = squares.mean(1) / tensors
        error = per_seed.std() / seeds**0.5
        assert error < 0.02
        assert abs(per_seed.mean() - 1) < 5 * error + 1e-3

    def test_every_tensors_share_of_the_update(self, family, normalization):
        # E|P_i z|^2 = |z|^2 for per_tensor, (D_i / D) |z|^2 for global. Five standard errors again; the smallest
        # tensor's update has relative variance of order 2 / 41, so 200 seeds see a factor of 1.1.
        shape, seeds = ((600, 41, 384), 8), 200
        z = gaussian(8)
        z /= z.norm()
        updates = [make(family, normalization, shape, seed).apply(z) for seed in range(seeds)]
        for i, size in enumerate(shape[0]):
            start = sum(shape[0][:i])
            expected = 1.0 if normalization == "per_tensor" else size / sum(shape[0])
            share = torch.stack([update[start : start + size].square().sum() / expected for update in updates])
            error = share.std() / seeds**0.5
            assert error < 0.1
            assert abs(share.mean() - 1) < 5 * error + 1e-3

    def test_normalisations_differ_by_one_factor_per_tensor(self, family, normalization):
        p, other = make(family, normalization), make(family, "global")
        z = gaussian(p.num_coordinates)
        ours, theirs = p.apply(z), other.apply(z)
        for i, size in enumerate(p.sizes):
            factor = (p.num_params / size) ** 0.5 if normalization == "per_tensor" else 1.0
            rows = slice(p.offsets[i], p.offsets[i + 1])
            torch.testing.assert_close(ours[rows], theirs[rows] * factor, rtol=1e-12, atol=1e-12)

    def test_no_coordinate_is_dropped(self, family, normalization):
        """Known bug: in tensors with fewer entries than d, coordinates beyond L_i are cut off in silence."""
        p = make(family, normalization, ((500, 5, 500), 40), block_length=64)
        assert (p.dense().abs().sum(0) > 0).all()
        if family.startswith(("fastfood", "dense")):
            assert (p.dense()[500:505].abs().sum(0) > 0).all()  # these families mix every coordinate into every entry


class TestSubspaces:
    @pytest.mark.parametrize("d", [1, 5, 8, 9])
    def test_smaller_subspaces_lie_in_larger_ones(self, family, normalization, d):
        sizes = SEVERAL[0]
        assert make(family, normalization).nested
        small, large = (make(family, normalization, (sizes, k)).dense() for k in (d, 12))
        if family == "partition":
            coefficients = torch.linalg.lstsq(large, small).solution
            torch.testing.assert_close(large @ coefficients, small, rtol=0, atol=1e-12)
        else:
            torch.testing.assert_close(small, large[:, :d], rtol=1e-14, atol=1e-15)

    def test_columns_are_independent(self, family, normalization):
        assert torch.linalg.matrix_rank(make(family, normalization).dense()) == 12

    def test_same_seed_same_bytes(self, family, normalization):
        z = gaussian(12, dtype=torch.float32)
        one, two = make(family, normalization), make(family, normalization)
        assert torch.equal(one.apply(z), two.apply(z))
        assert torch.equal(one.apply(z), one.apply(z))
        assert one.fingerprint() == two.fingerprint()
        assert len(one.fingerprint()) == 16

    def test_another_seed_is_another_subspace(self, family, normalization):
        one, two = make(family, normalization), make(family, normalization, seed=4)
        assert one.fingerprint() != two.fingerprint()
        both = torch.cat([one.dense(), two.dense()], dim=1)
        assert torch.linalg.matrix_rank(both) >= 20

    def test_blocks_and_tensors_do_not_repeat(self, family, normalization):
        update = make(family, normalization, ((64, 64, 64, 64), 12)).apply(gaussian(12)).view(-1, 16)
        overlap = torch.nn.functional.normalize(update, dim=1)
        overlap = (overlap @ overlap.T - torch.eye(16)).abs()
        assert overlap.max() < 0.999

    def test_without_a_cache_nothing_changes(self, family, normalization):
        if family == "trajectory":
            pytest.skip("it keeps nothing")
        sizes, d = SEVERAL
        bare = FAMILIES[family](sizes, d, 3, normalization, block_length=16, cache=False)
        z, g = gaussian(d, dtype=torch.float32), gaussian(542, dtype=torch.float32)
        kept = make(family, normalization)
        for _ in range(2):
            assert torch.equal(bare.apply(z), kept.apply(z))
            assert torch.equal(bare.adjoint(g), kept.adjoint(g))


class TestSlices:
    """Slices of P theta are bitwise those of the whole in float32: each row's sums are done in one order."""

    def test_odd_boundaries(self, family, normalization):
        p = make(family, normalization)
        z = gaussian(p.num_coordinates, dtype=torch.float32)
        whole = p.apply(z)
        edges = [0, 1, 6, 7, 15, 16, 17, 100, 307, 308, 371, 372, 500, 541, 542]
        for start in edges:
            for stop in edges:
                if start <= stop:
                    assert torch.equal(p.apply(z, start, stop), whole[start:stop]), (start, stop)

    def test_across_chunks(self, family, normalization):
        sizes = (1000, 2 * CHUNK, 333)
        p = make(family, normalization, (sizes, 7), 0, 1024)
        z = gaussian(7, dtype=torch.float32)
        whole = p.apply(z)
        for start, stop in [(0, 1), (999, 1001), (CHUNK - 3, CHUNK + 5), (1234, CHUNK + 4321), (2 * CHUNK, None)]:
            assert torch.equal(p.apply(z, start, stop), whole[start:stop])

    def test_adjoints_of_slices_add_up(self, family, normalization):
        p = make(family, normalization)
        g = gaussian(p.num_params)
        edges = [0, 1, 33, 307, 308, 540, 542]
        total = sum(p.adjoint(g[a:b], a) for a, b in pairwise(edges))
        torch.testing.assert_close(total, p.adjoint(g), rtol=0, atol=1e-12)

    @pytest.mark.parametrize("rows", [[0], [14], [0, 3, 9], [11, 2, 7, 2], list(range(15)), []])
    def test_rows_are_rows_of_the_slice(self, family, normalization, rows):
        p = make(family, normalization)
        start, index = p.offsets[MATRIX], torch.tensor(rows, dtype=torch.int64)
        z = gaussian(p.num_coordinates, dtype=torch.float32)
        table = p.apply(z, start, start + 300).view(15, 20)
        assert torch.equal(p.apply_rows(z, start, 20, index), table[index])
        g = gaussian(len(rows), 20)
        full = gaussian(15, 20).zero_().index_add_(0, index, g)
        expected = p.adjoint(full.view(-1), start)
        torch.testing.assert_close(p.adjoint_rows(g, start, index), expected, rtol=0, atol=1e-12)

    @pytest.mark.parametrize("most", [1, 100, 1 << 24])
    @pytest.mark.parametrize("rows", [[0], [14, 14], [0, 3, 9], [11, 2, 7, 2], list(range(15)) * 3, []])
    def test_rows_on_a_device_that_is_not_waited_for(self, family, normalization, rows, most, monkeypatch):
        p, g = make(family, normalization), gaussian(len(rows), 20)
        z, index, start = gaussian(p.num_coordinates), torch.tensor(rows, dtype=torch.int64), p.offsets[MATRIX]
        expected = p.apply_rows(z, start, 20, index), p.adjoint_rows(g, start, index)
        monkeypatch.setattr(projection, "launches", lambda device: True)
        monkeypatch.setattr(projection, "DEVICE_CHUNK", most)
        monkeypatch.setattr(trajectory, "WIDE", most)
        torch.testing.assert_close(p.apply_rows(z, start, 20, index), expected[0], rtol=0, atol=1e-12)
        torch.testing.assert_close(p.adjoint_rows(g, start, index), expected[1], rtol=0, atol=1e-12)

    def test_more_rows_than_a_chunk_holds(self, family, normalization):
        p = make(family, normalization, ((10, 3 * CHUNK), 5), 1, 256)
        z, index = gaussian(5, dtype=torch.float32), torch.arange(0, 3 * CHUNK // 96, 7)
        table = p.apply(z, 10, 10 + 3 * CHUNK).view(-1, 96)
        assert torch.equal(p.apply_rows(z, 10, 96, index), table[index])


class TestErrors:
    def test_d_outside_one_to_num_params(self, family, normalization):
        for d in (0, -1, 51):
            with pytest.raises(DimensionError, match=f"{d} coordinates do not fit"):
                make(family, normalization, ((50,), d))

    def test_shapes(self, family, normalization):
        p = make(family, normalization)
        for theta in (torch.zeros(11), torch.zeros(13), torch.zeros(12, 1)):
            with pytest.raises(ShapeError, match=r"takes \[12\]"):
                p.apply(theta)
            with pytest.raises(ShapeError, match=r"takes \[12\]"):
                p.apply_rows(theta, 0, 1, torch.tensor([0]))
        for start, stop in [(-1, 4), (0, 543), (5, 4)]:
            with pytest.raises(ShapeError, match="D = 542"):
                p.apply(torch.zeros(12), start, stop)
        with pytest.raises(ShapeError, match="533:543"):
            p.adjoint(torch.zeros(10), 533)

    def test_unknown_normalisation(self, family, normalization):
        if family == "trajectory":
            pytest.skip("it has one")
        with pytest.raises(ConfigError, match="global, per_tensor"):
            build(family, (50,), 2, 0, normalization + "s")

    def test_unknown_family(self, family, normalization):
        with pytest.raises(ConfigError, match=family.upper()):
            build(family.upper(), (50,), 2, 0, normalization)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_equals_cpu(family, normalization):
    # The random entries are the same bytes; the sums of matrix products are ordered otherwise.
    p = make(family, normalization)
    z, g, rows = gaussian(p.num_coordinates), gaussian(p.num_params), torch.tensor([2, 11])
    pairs = [
        (p.apply(z), p.apply(z.cuda())),
        (p.adjoint(g), p.adjoint(g.cuda())),
        (p.apply_rows(z, 7, 20, rows), p.apply_rows(z.cuda(), 7, 20, rows.cuda())),
    ]
    for here, there in pairs:
        torch.testing.assert_close(there.cpu(), here, rtol=0, atol=1e-12)
