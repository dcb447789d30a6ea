"""The grid of subspace dimensions that a search may try."""

import math

from distsub.errors import ConfigError

PUBLISHED_RATIO = 10 ** (4 / 63)
"""Step of Aghajanyan et al. 2020: 64 dimensions from 100 to 1,000,000; their d90 are resolved to this factor."""

MAX_POINTS = 10_000
"""More dimensions than anybody means; a ratio of 1.0000001 is a slip of the pen."""


def log_grid(low: int, high: int, ratio: float = PUBLISHED_RATIO) -> tuple[int, ...]:
    """Return the distinct whole numbers int(low * ratio**k), k = 0, 1, ..., up to high.

    `log_grid(100, 1_000_000)` is the published grid, int(logspace(2, 6, 64)). The last value is high itself
    only where high lies on the grid.

    Args:
        low: Smallest dimension, at least 1.
        high: Largest dimension allowed.
        ratio: Factor between neighbours before rounding down, above 1.

    Raises:
        ConfigError: low, high or ratio describe no grid.
    """
    for name, value in (("low", low), ("high", high)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigError(f"grid {name} = {value!r}: give a whole number of dimensions, at least 1")
    if high < low:
        raise ConfigError(f"grid from low = {low} to high = {high} is empty: make high at least low")
    if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 1 < ratio < math.inf:
        raise ConfigError(f"grid ratio = {ratio!r}: give a factor above 1, such as 1.157 (the published grid)")
    # Powers of a rounded ratio fall short of whole numbers by some 1e-15, and int() would then lose a whole step:
    # 100 * ratio**63 is 999999.9999999981. A relative 1e-12 mends that and moves no other value.
    span = math.log(high / low) / math.log(ratio)
    if span > MAX_POINTS:
        raise ConfigError(
            f"grid from {low} to {high} by ratio {ratio} has {span:.0f} points, at most {MAX_POINTS}: raise the ratio"
        )
    values = (int(low * ratio**k * (1 + 1e-12)) for k in range(math.floor(span + 1e-9) + 1))
    return tuple(dict.fromkeys(min(value, high) for value in values))
