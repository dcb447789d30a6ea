"""Counter-based random bits: pinned values, any slice alone, and that they look random."""

import pytest
import torch

from distsub.subspace import bits

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
EDGES = [(0, 1), (0, 500), (1, 2), (3, 5), (63, 65), (64, 128), (127, 401), (499, 500), (250, 250)]


class TestGolden:
    """A change here changes every saved adapter: raise the adapter's format version with it."""

    def test_words(self):
        index = torch.tensor([0, 1, 2, 3, 1 << 33])
        assert bits.words(0, "a", index).tolist() == [
            -4849901830647238336,
            -9157486603205686687,
            -4469951381034549754,
            -5175131645415227295,
            -4179293034583256582,
        ]
        assert bits.words(7, "b", index).tolist() == [
            -8282942460167511504,
            -8023559713792622516,
            -893991807401325505,
            9133054009459425457,
            -7233518415119064011,
        ]

    def test_normals(self):
        first = [-0.869140625, -1.2138671875, 0.488525390625, 0.63427734375]
        second = [0.80810546875, 1.431640625, -1.4609375, 0.00897216796875]
        assert bits.normals(0, "a", 0, 8).tolist() == first + second
        far = [1.9453125, 0.07769775390625, 0.85107421875, -0.3759765625]
        assert bits.normals(3, "x", 1000001, 1000005).tolist() == far

    def test_signs(self):
        expected = [-1, -1, -1, -1, -1, -1, 1, -1, 1, -1, -1, -1, 1, 1, -1, -1]
        assert bits.signs(0, "a", 0, 16).tolist() == expected

    def test_permutation(self):
        expected = [15, 12, 14, 9, 13, 3, 5, 10, 2, 4, 0, 7, 11, 6, 1, 8]
        assert bits.permutation(0, "a", torch.arange(16), 16).tolist() == expected
        assert bits.permutation(5, "p", torch.tensor([0, 1, 2, 4095]), 4096).tolist() == [1377, 163, 498, 3562]


class TestSlices:
    @pytest.mark.parametrize("draw", [bits.normals, bits.signs])
    @pytest.mark.parametrize(("start", "stop"), EDGES)
    def test_any_slice_is_that_slice_of_the_whole(self, draw, start, stop):
        whole = draw(2, "s", 0, 500)
        assert torch.equal(draw(2, "s", start, stop), whole[start:stop])

    def test_blocks_and_single_entries_agree_with_slices(self):
        whole = bits.normals(2, "s", 0, 12 * 40)
        blocks = bits.normal_blocks(2, "s", torch.tensor([7, 0, 39]), 12)
        assert torch.equal(blocks, whole.view(40, 12)[[7, 0, 39]])
        index = torch.tensor([[479, 0, 3], [4, 5, 250]])
        assert torch.equal(bits.normals_at(2, "s", index), whole[index])

    def test_words_keep_their_shape_and_their_input(self):
        index = torch.arange(6).view(2, 3)
        word = bits.words(0, "s", index)
        assert word.shape == (2, 3)
        assert torch.equal(word.view(-1), bits.words(0, "s", torch.arange(6)))
        assert torch.equal(index, torch.arange(6).view(2, 3))
        bits.permutation(0, "s", index, 8)
        assert torch.equal(index, torch.arange(6).view(2, 3))

    def test_positions_beyond_32_bits_do_not_repeat(self):
        near = bits.normals(0, "s", 0, 64)
        assert not torch.equal(near, bits.normals(0, "s", 1 << 32, (1 << 32) + 64))
        assert not torch.equal(near, bits.normals(0, "s", 1 << 34, (1 << 34) + 64))

    @pytest.mark.parametrize("other", [(1, "s"), (0, "t"), (-1, "s"), (1 << 70, "s")])
    def test_seeds_and_streams_are_unrelated(self, other):
        # Two independent fair 64-bit words agree in 32 +- 4 bits; the mean of 4096 stays within 0.35 (5.6 sigma).
        index = torch.arange(4096)
        differ = bits.words(0, "s", index) ^ bits.words(*other, index)
        count = ((differ.unsqueeze(1) >> torch.arange(64)) & 1).sum(1).double().mean()
        assert abs(count - 32) < 0.35


class TestDistribution:
    def test_every_bit_of_a_word_is_fair_and_changes_with_every_index_bit(self):
        index = torch.arange(1 << 14)
        lanes = torch.arange(64)
        word = bits.words(11, "s", index)
        ones = ((word.unsqueeze(1) >> lanes) & 1).double().mean(0)
        assert (ones - 0.5).abs().max() < 5 * 0.5 / 128  # sigma = 0.5 / sqrt(2^14); 64 tries at 5 sigma
        for bit in range(14):
            flipped = ((word ^ bits.words(11, "s", index ^ (1 << bit))).unsqueeze(1) >> lanes) & 1
            assert (flipped.double().mean(0) - 0.5).abs().max() < 6 * 0.5 / 128

    def test_moments_of_normals(self):
        # Standard errors at n = 2^20: mean 0.001, variance 0.0014, skewness 0.0024, kurtosis 0.0048; five of each.
        z = bits.normals(0, "moments", 0, 1 << 20).double()
        assert abs(z.mean()) < 0.005
        assert abs(z.square().mean() - 1) < 0.007
        assert abs(z.pow(3).mean()) < 0.019
        assert abs(z.pow(4).mean() - 3) < 0.048
        assert 3.9 < z.abs().max() < 4.4

    def test_neighbouring_normals_are_uncorrelated(self):
        z = bits.normals(0, "moments", 0, 1 << 18).double()
        for lag in (1, 2, 3, 4, 5, 1024):
            assert abs((z[lag:] * z[:-lag]).mean()) < 5 / 512

    def test_the_table_has_mean_zero_variance_one_and_half_precision(self):
        table = bits._normal_table(torch.device("cpu"))
        assert torch.equal(table, table.half().float())
        assert torch.equal(table, -table.flip(0))
        assert abs(table.double().square().mean() - 1) < 1e-5

    def test_signs_are_fair(self):
        values = bits.signs(0, "fair", 0, 1 << 18)
        assert set(values.unique().tolist()) == {-1.0, 1.0}
        assert abs(values.mean()) < 5 / 512


class TestPermutation:
    @pytest.mark.parametrize("power", range(13))
    def test_it_is_a_bijection(self, power):
        size = 1 << power
        for seed in range(5):
            image = bits.permutation(seed, "p", torch.arange(size), size)
            assert torch.equal(image.sort().values, torch.arange(size))

    def test_single_images_agree_with_the_whole(self):
        whole = bits.permutation(3, "p", torch.arange(1024), 1024)
        index = torch.tensor([[1023, 0], [5, 512]])
        assert torch.equal(bits.permutation(3, "p", index, 1024), whole[index])

    def test_it_looks_random(self):
        size, seeds = 1024, 100
        x = torch.arange(size)
        images = torch.stack([bits.permutation(seed, "p", x, size) for seed in range(seeds)])
        # Fixed points are Poisson(1): their mean over 100 permutations has sigma 0.1.
        assert abs((images == x).sum(1).double().mean() - 1) < 0.5
        # Correlation with the identity has sigma 1 / sqrt(size).
        unit = (x - x.double().mean()) / x.double().std()
        correlation = (images.double() - images.double().mean()) / images.double().std() @ unit / size
        assert correlation.abs().max() < 5 / size**0.5
        # |p(x+1) - p(x)| of a random permutation has mean size / 3; no affine map of x comes near for all seeds.
        step = (images[:, 1:] - images[:, :-1]).abs().double().mean(1) / size
        assert (step - 1 / 3).abs().max() < 0.05
        # Differences at a fixed distance take as many values as random ones do: size (1 - 1/e), sigma about 11.
        for lag in (1, 2, 256, 512):
            distinct = [((image - image.roll(-lag)) % size).unique().numel() for image in images[:10]]
            assert abs(sum(distinct) / 10 / size - (1 - 1 / torch.e)) < 0.02


@needs_cuda
def test_cuda_gives_the_same_bytes():
    index = torch.arange(5000)
    assert torch.equal(bits.words(1, "c", index.cuda()).cpu(), bits.words(1, "c", index))
    assert torch.equal(bits.normals(1, "c", 3, 5001, "cuda").cpu(), bits.normals(1, "c", 3, 5001))
    assert torch.equal(bits.signs(1, "c", 3, 5001, "cuda").cpu(), bits.signs(1, "c", 3, 5001))
    assert torch.equal(bits.normals_at(1, "c", index.cuda()).cpu(), bits.normals_at(1, "c", index))
    blocks = torch.tensor([9, 2])
    assert torch.equal(bits.normal_blocks(1, "c", blocks.cuda(), 64).cpu(), bits.normal_blocks(1, "c", blocks, 64))
    where = torch.arange(256)
    assert torch.equal(bits.permutation(1, "c", where.cuda(), 256).cpu(), bits.permutation(1, "c", where, 256))
