"""Lengths of codes: Kraft's inequality by enumeration, close to the entropy, and numbers that come back."""

import itertools
import math

import pytest
import torch

from distsub.subspace.code_length import integer, rounded, sequence


def test_the_code_of_integers_exists():
    assert sum(2 ** -integer(n) for n in range(1, 100_000)) <= 1
    with pytest.raises(ValueError, match="1 or more"):
        integer(0)


@pytest.mark.parametrize(("levels", "length"), [(2, 8), (3, 6), (5, 4), (1, 3)])
def test_the_code_of_sequences_is_a_probability(levels, length):
    """Over all sequences of one length the probabilities add up to 1."""
    every = itertools.product(range(levels), repeat=length)
    assert sum(2 ** -sequence(torch.tensor(each), levels) for each in every) == pytest.approx(1)


@pytest.mark.parametrize("levels", [2, 3, 9, 25])
def test_it_is_near_the_entropy_of_what_it_codes(levels):
    draw = torch.Generator().manual_seed(levels)
    shares = torch.rand(levels, generator=draw, dtype=torch.float64).square()
    symbols = torch.multinomial(shares, 5000, replacement=True, generator=draw)
    counts = torch.bincount(symbols, minlength=levels).double()
    entropy = -(counts * (counts / 5000).clamp(min=1e-300).log2()).sum().item()
    assert entropy < sequence(symbols, levels) < entropy + (levels - 1) / 2 * math.log2(5000) + levels


def test_symbols_outside_are_refused():
    for symbols in ([0, 3], [-1, 0]):
        with pytest.raises(ValueError, match="0 to 2"):
            sequence(torch.tensor(symbols), 3)


@pytest.mark.parametrize("middle", [0.0, 1.0])
@pytest.mark.parametrize("largest", [1, 3, 12, 1000])
def test_numbers_come_back_within_half_a_step(largest, middle):
    values = middle + torch.randn(7, 60, generator=torch.Generator().manual_seed(0)) * 0.01
    found = rounded(values, largest, middle)
    away = (found.values - values).abs().max().item()
    # The step is a number of float16, so that the furthest values may lie a thousandth off.
    assert away <= 0.5 * found.step + 1e-3 * largest * found.step
    assert found.values.shape == values.shape and found.bits > 16
    assert found.step == torch.tensor(found.step).half().item()
    finer = rounded(values, 10 * largest, middle)
    assert finer.bits > found.bits


def test_numbers_that_did_not_move_cost_almost_nothing():
    found = rounded(torch.zeros(4000), 5)
    assert torch.equal(found.values, torch.zeros(4000)) and found.bits < 110
