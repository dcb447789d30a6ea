"""Step sizes that are looked for in a range: what to try next, and which of the tries are kept.

What is tried follows from the range and the results of the tries before, and from nothing else: the same rows
ask for the same.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

from distsub.errors import ConfigError

KEPT = 2
"""How many of the tries go to all other seeds."""

MOST_TRIES = 20

_DIGITS = 3
_WORST = -2.0  # below the range of every metric
_DRAWS = 100  # of a sampler that asks too near to what was tried


@dataclass(frozen=True)
class Range:
    """A range of step sizes on a log scale, of which some are tried.

    Attributes:
        low: Smallest step size.
        high: Largest, at least twice as large: closer ones train alike.
        tries: How many are tried.

    Raises:
        ConfigError: There is nothing to try in it.
    """

    low: float
    high: float
    tries: int

    def __post_init__(self) -> None:
        """Refuse what holds no tries."""
        if not 0 < self.low < self.high < math.inf:
            raise ConfigError(f"low = {self.low:g} is not below high = {self.high:g}: give low < high, both above 0")
        if self.high < 2 * self.low:
            raise ConfigError(f"high = {self.high:g} is less than twice low = {self.low:g}: give a list of step sizes")
        if not KEPT <= self.tries <= MOST_TRIES:
            raise ConfigError(f"tries = {self.tries}: give a number from {KEPT} (that many are kept) to {MOST_TRIES}")

    def __contains__(self, value: float) -> bool:
        """Return whether a value lies in the range, both ends included."""
        return self.low <= value <= self.high

    @property
    def middle(self) -> float:
        """The middle of the range on a log scale."""
        return self.at(0.5)

    def at(self, share: float) -> float:
        """Return the value that stands at a share of the way from low to high on a log scale, in three digits."""
        return self._rounded(self.low * (self.high / self.low) ** share)

    @property
    def first(self) -> tuple[float, ...]:
        """The tries that wait for no result: two thirds of them, the middles of equal parts of the range.

        So few tries are spent better on an even spread than on a sampler alone (benchmarks/tries.py).
        """
        count = -(-2 * self.tries // 3)
        return tuple(self.at((part + 0.5) / count) for part in range(count))

    @property
    def rounds(self) -> int:
        """How often the next tries wait for the results of those before."""
        return 1 + self.tries - len(self.first)

    def _rounded(self, value: float) -> float:
        """Round to three significant digits, within the range."""
        return min(max(float(f"{value:.{_DIGITS - 1}e}"), self.low), self.high)


class Course(NamedTuple):
    """How far the tries of a range are.

    Attributes:
        values: What was tried or is to be tried now, in the order of asking.
        kept: The best two, rising; None while tries are to come.
    """

    values: tuple[float, ...]
    kept: tuple[float, ...] | None


Score = tuple[bool, float | None]
"""Whether a try came to an end of its own, and what it scored; None where it diverged or failed."""


def course(given: Range, result_of: Callable[[float], Score | None]) -> Course:
    """Follow the tries of a range as far as there are results.

    Args:
        given: The range.
        result_of: The result of a try, None where it is still to come.
    """
    values = given.first
    while True:
        results = [result_of(value) for value in values]
        scores = [result[1] for result in results if result is not None]
        if len(scores) < len(values):
            return Course(values, None)
        if len(values) == given.tries:
            break
        values = (*values, propose(given, tuple(zip(values, scores, strict=True))))
    centre = (math.log(given.low) + math.log(given.high)) / 2

    def rank(index: int) -> tuple[float, ...]:
        """Order by score; of equal ones the middle of the range first, of those that diverged the smallest."""
        value, (ended, score) = values[index], results[index] or (False, None)
        return (0, -score, abs(math.log(value) - centre)) if score is not None else (1 + (not ended), value)

    best = sorted(range(len(values)), key=rank)[:KEPT]
    return Course(values, tuple(sorted(values[index] for index in best)))


@lru_cache(maxsize=10_000)
def propose(given: Range, known: tuple[tuple[float, float | None], ...]) -> float:
    """Ask Optuna's sampler (TPE) for the next try, at least half as far from the others as an even spread has them.

    Args:
        given: The range.
        known: The tries so far with their scores, in the order of asking; None is worse than any score.
    """
    import optuna

    tried, apart = [math.log(value) for value, _ in known], math.log(given.high / given.low) / (2 * given.tries)
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        space = optuna.distributions.FloatDistribution(given.low, given.high, log=True)
        sampler = optuna.samplers.TPESampler(seed=len(known), n_startup_trials=0)
        study = optuna.create_study(sampler=sampler, direction="maximize")
        for value, score in known:
            study.add_trial(
                optuna.create_trial(
                    params={"step": value}, distributions={"step": space}, value=_WORST if score is None else score
                )
            )
        for _ in range(_DRAWS):
            value = given._rounded(study.ask({"step": space}).params["step"])
            if min(abs(math.log(value) - each) for each in tried) >= apart:
                return value
    finally:
        optuna.logging.set_verbosity(verbosity)
    ends = [math.log(given.low), *sorted(tried), math.log(given.high)]
    width, start = max((b - a, a) for a, b in pairwise(ends))
    return given._rounded(math.exp(start + width / 2))  # the middle of the widest gap
