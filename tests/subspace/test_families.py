"""Each family against its own definition, built independently of the code under test."""

import math

import pytest
import scipy.linalg
import torch

from distsub.errors import DimensionError
from distsub.subspace import bits
from distsub.subspace.families import Dense, Partition, Sparse
from distsub.subspace.fastfood import Fastfood, FastfoodPerTensor, hadamard, next_power_of_two


class TestHadamard:
    @pytest.mark.parametrize("power", range(11))
    def test_it_is_the_sylvester_matrix(self, power):
        size = 1 << power
        matrix = torch.tensor(scipy.linalg.hadamard(size), dtype=torch.float64)
        assert torch.equal(hadamard(torch.eye(size, dtype=torch.float64)), matrix)

    def test_applied_twice_it_is_the_length(self):
        x = torch.randint(-9, 9, (3, 1 << 15)).double()
        assert torch.equal(hadamard(hadamard(x)), x * (1 << 15))

    @pytest.mark.parametrize("power", range(2, 15))
    def test_a_blocks_bytes_do_not_depend_on_its_neighbours(self, power):
        x = torch.randn(40, 1 << power)
        whole = hadamard(x)
        for start, stop in [(0, 1), (39, 40), (3, 5), (7, 10), (1, 34)]:
            assert torch.equal(hadamard(x[start:stop]), whole[start:stop])

    def test_powers_of_two(self):
        assert [next_power_of_two(n) for n in (1, 2, 3, 4, 5, 1000, 1024, 1025)] == [1, 2, 4, 4, 8, 1024, 1024, 2048]


class TestFastfood:
    @pytest.mark.parametrize(("num_params", "d", "length"), [(64, 16, 16), (150, 10, 32), (5, 3, 8)])
    def test_it_is_the_product_of_its_factors(self, num_params, d, length):
        """P_b = sqrt(L / D) H G_b Pi H B, H orthonormal; G_b, of few blocks, over the root mean square of all."""
        h = torch.tensor(scipy.linalg.hadamard(length), dtype=torch.float64) / length**0.5
        b = torch.diag(bits.signs(3, "fastfood/B", 0, length).double())
        pi = torch.eye(length, dtype=torch.float64)[bits.permutation(3, "fastfood/Pi", torch.arange(length), length)]
        count = math.ceil(num_params / length)
        g = bits.normals(3, "fastfood/G", 0, count * length).double().view(count, length)
        g /= g.square().mean(0).sqrt()
        blocks = [math.sqrt(length / num_params) * h @ torch.diag(g[i]) @ pi @ h @ b for i in range(count)]
        expected = torch.cat(blocks)[:num_params, :d]
        p = Fastfood((num_params,), d, 3, block_length=length)
        torch.testing.assert_close(p.dense(), expected, rtol=0, atol=1e-14)

    @pytest.mark.parametrize("num_params", [200, 512, pytest.param(1000, marks=pytest.mark.slow)])
    @pytest.mark.parametrize("ratio", [0.02, 0.1, 0.3, 0.5, 0.7, 0.9])
    def test_no_direction_is_lost_where_blocks_are_few(self, num_params, ratio):
        """Shared B and Pi gave condition numbers of 8 to 190 here, a dense Gaussian has 1.3 to 37."""

        def condition(p) -> float:
            values = torch.linalg.svdvals(p.dense())
            return (values[0] / values[-1]).item()

        for seed in range(2):
            d = round(num_params * ratio)
            ours, theirs = Fastfood((num_params,), d, seed), Dense((num_params,), d, seed)
            assert condition(ours) < condition(theirs)

    def test_whole_blocks_are_an_exact_isometry(self):
        for num_params, d in ((256, 60), (1024, 60), (64, 64)):
            matrix = Fastfood((num_params,), d, 1).dense()
            torch.testing.assert_close(matrix.T @ matrix, torch.eye(d, dtype=torch.float64), rtol=0, atol=1e-12)

    def test_many_blocks_are_even_by_themselves(self):
        p = Fastfood((257 * 8,), 8, 0)
        values = torch.linalg.svdvals(p.dense())
        assert 1 < values[0] / values[-1] < 1.5
        assert len(set(p._scale.tolist())) == 1  # so that a large D is not drawn twice

    @pytest.mark.parametrize("family", [Fastfood, FastfoodPerTensor])
    def test_block_lengths(self, family):
        assert family((500, 3), 100, 0).block_length == 128
        assert family((500, 3), 1, 0).block_length == 4
        with pytest.raises(DimensionError, match="block_length = 128 or more"):
            family((500, 3), 100, 0, block_length=64)
        with pytest.raises(DimensionError, match="power of two"):
            family((500, 3), 2, 0, block_length=100)

    @pytest.mark.parametrize("length", [0, 1, 2, 3, -8])
    def test_block_lengths_that_hold_nothing(self, length):
        with pytest.raises(DimensionError, match="power of two of at least 4"):
            Fastfood((500, 3), 1, 0, block_length=length)

    def test_rows_are_close_to_gaussian(self):
        # Entries of P z for a random z over 2^16 rows: kurtosis 3 with standard error sqrt(24 / 2^16) = 0.02, plus
        # the excess of about 6 / L that sharing Pi H B between blocks leaves.
        p = Fastfood((1 << 16,), 100, 0, block_length=1024)
        update = p.apply(torch.randn(100, dtype=torch.float64))
        z = (update - update.mean()) / update.std()
        assert abs(z.pow(4).mean() - 3) < 0.12
        assert abs(z.pow(3).mean()) < 0.05

    def test_per_tensor_is_one_fastfood_a_tensor(self):
        p = FastfoodPerTensor((300, 6), 10, 2, "per_tensor", block_length=16)
        big = Fastfood((300,), 10, 2, block_length=512, stream="tensor0", even=False).dense()
        torch.testing.assert_close(p.dense()[:300], big, rtol=1e-12, atol=0)
        assert FastfoodPerTensor((300, 6), 10, 2).normalization == "per_tensor"


class TestDense:
    def test_entries_are_standard_normals_over_root_num_params(self):
        p = Dense((4000,), 25, 1)
        z = p.dense().flatten() * 4000**0.5
        assert z.numel() == 100_000
        assert abs(z.mean()) < 5 / 100_000**0.5
        assert abs(z.square().mean() - 1) < 5 * (2 / 100_000) ** 0.5


class TestSparse:
    def test_one_entry_per_column_and_block_of_root_num_params(self):
        p = Sparse((10, 390), 9, 1)
        assert p.block_length == 20
        matrix = p.dense().view(20, 20, 9)
        assert ((matrix != 0).sum(1) == 1).all()
        assert torch.allclose(matrix[matrix != 0].abs(), torch.tensor((20 / 400) ** 0.5, dtype=torch.float64))
        torch.testing.assert_close(p.dense().norm(dim=0), torch.ones(9, dtype=torch.float64))
        assert abs((matrix > 0).sum() / (matrix != 0).sum() - 0.5) < 5 * 0.5 / 180**0.5

    def test_density(self):
        matrix = Sparse((10_000,), 50, 0).dense()
        assert (matrix != 0).double().mean().item() == pytest.approx(0.01, rel=1e-9)


class TestPartition:
    @pytest.mark.parametrize("d", [1, 2, 3, 31, 32, 33])
    def test_it_is_an_exact_isometry_with_one_entry_a_row(self, d):
        p = Partition((7, 2000, 993), d, 0)
        matrix = p.dense()
        torch.testing.assert_close(matrix.T @ matrix, torch.eye(d, dtype=torch.float64), rtol=0, atol=1e-12)
        assert ((matrix != 0).sum(1) == 1).all()

    def test_a_step_from_d_to_d_plus_one_splits_one_group(self):
        def groups(d: int) -> list[frozenset[int]]:
            return [frozenset(column.nonzero().flatten().tolist()) for column in Partition((3000,), d, 5).dense().T]

        for d in (1, 2, 6, 7, 8):
            before, after = set(groups(d)), set(groups(d + 1))
            assert len(before - after) == 1
            (split,) = before - after
            assert frozenset.union(*(after - before)) == split

    def test_sizes_differ_by_about_two_at_most(self):
        for d in (48, 64):
            counts = (Partition((64_000,), d, 0).dense() != 0).sum(0).double()
            # Groups of 1000 rows, and at d = 48 those not yet split of 2000, give or take five square roots.
            assert counts.min() > 1000 - 160
            assert counts.max() < (1000 + 160 if d == 64 else 2000 + 225)

    def test_empty_groups_are_an_error(self):
        with pytest.raises(DimensionError, match=r"groups without a parameter at D = 100; lower d"):
            Partition((100,), 90, 0)
