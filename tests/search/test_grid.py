"""The grid of d, against the published one."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distsub.errors import ConfigError
from distsub.search import PUBLISHED_RATIO, log_grid

PUBLISHED_D90 = (207, 322, 774, 896, 1000, 1037, 1200, 1389, 1608, 1861, 2493, 8030, 9295)
"""The distinct values of Aghajanyan et al. 2020, Table 1."""


def test_default_is_the_published_grid():
    """All 64 values, the last one included, which a plain int() rounds down to 999,999."""
    grid = log_grid(100, 1_000_000)
    assert grid == tuple(int(value) for value in np.logspace(2, 6, 64))
    assert grid[-1] == 1_000_000


def test_holds_the_published_d90():
    """Twelve of the thirteen: 1000 lies half a step off the grid."""
    assert [d for d in PUBLISHED_D90 if d not in log_grid(100, 1_000_000)] == [1000]


@given(st.integers(1, 10**7), st.floats(1, 10**4), st.floats(1.01, 20))
def test_is_strictly_increasing_within_its_ends(low: int, factor: float, ratio: float):
    """Starts at low, never passes high, and leaves no room for another point."""
    high = int(low * factor)
    grid = log_grid(low, high, ratio)
    assert grid[0] == low
    assert grid[-1] <= high
    assert all(a < b for a, b in itertools.pairwise(grid))
    assert (grid[-1] + 1) * ratio * (1 + 1e-9) >= high


def test_exact_powers_are_hit():
    """Whole powers do not fall a unit short."""
    assert log_grid(1, 1024, 2) == tuple(2**k for k in range(11))
    assert log_grid(10, 10**9, 10) == tuple(10**k for k in range(1, 10))
    assert log_grid(7, 7) == (7,)
    assert log_grid(1, 4) == (1, 2, 3)


@pytest.mark.parametrize(
    ("low", "high", "ratio"),
    [
        (0, 10, 2.0),
        (-1, 10, 2.0),
        (10, 9, 2.0),
        (1.5, 10, 2.0),
        (True, 10, 2.0),
        (1, 10, 1.0),
        (1, 10, math.nan),
        (1, 10, math.inf),
        (1, 10, "2"),
        (1, 10**6, 1 + 1e-9),
    ],
)
def test_nonsense_is_refused(low: int, high: int, ratio: float):
    """With one line that names the setting."""
    with pytest.raises(ConfigError, match=r"^grid .*: (give|make|.*raise)"):
        log_grid(low, high, ratio)


def test_ratio_is_the_published_one():
    """Ten to the 4/63, 15.7% a step."""
    assert pytest.approx(1.1574, abs=1e-4) == PUBLISHED_RATIO
