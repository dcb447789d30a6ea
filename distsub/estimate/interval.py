"""A d with its interval and outcome, as one number is reported."""

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from distsub.errors import ConfigError
from distsub.search.outcome import Outcome
from distsub.search.rule import Rule

if TYPE_CHECKING:
    from distsub.estimate.d90 import Fit

METHOD = (
    "posterior of a monotone (Richards) curve of score against log d with shifts by projection, head and data seed,"
    " failing trainings, training residual and paired sampling error of the evaluation set; median and equal-tailed"
    " interval"
)
LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """What the rows say about d_at(fraction).

    Attributes:
        rule: What has to be reached: a share of the baseline's score, 0.9 for d90, or a value.
        chance_corrected: Whether the share is of the gain over chance.
        outcome: found, below_range, above_range, or why there is no estimate.
        d: The posterior median; None unless found.
        low: Lower end of the interval; None if it lies below the smallest d of the range. At most the largest d.
        high: Upper end of the interval; None if it lies above the largest d of the range. At least the smallest d.
        range: Smallest and largest d that could be tried.
        threshold: The score to reach, posterior mean; None without a fit.
        full: Expected score of full fine-tuning and its standard error; None without a fit, or where none was trained.
        level: Probability that the interval is meant to hold.
        num_seeds: Distinct triples of seeds among the subspace trials.
        num_trials: Rows in the fit, the baseline's included.
        failed_full: Share of the full fine-tunings that failed to train, which are left out; None where there are none.
        failed_subspace: Share of the subspace trainings that failed to train or diverged, at the etas of the fit.
        warnings: What a reader must know, a sentence each.
        method: How it was computed.
        curves: What it was read off.
        metric: What was scored.
    """

    rule: Rule
    chance_corrected: bool
    outcome: Outcome
    d: float | None
    low: float | None
    high: float | None
    range: tuple[int, int]
    threshold: float | None = None
    full: tuple[float, float] | None = None
    level: float = LEVEL
    num_seeds: int = 0
    num_trials: int = 0
    failed_full: float | None = None
    failed_subspace: float = 0.0
    warnings: tuple[str, ...] = ()
    method: str = METHOD
    curves: "Fit | None" = field(default=None, repr=False, compare=False)
    metric: str = "accuracy"

    def d_at(
        self,
        fraction: float | None = None,
        chance_corrected: bool = False,
        level: float = LEVEL,
        value: float | None = None,
    ) -> "Estimate":
        """Estimate another share, or a value, from the same curves; see `Fit.d_at`.

        Raises:
            ConfigError: fraction or level is no share, value is no score, or there is no baseline to take a share of.
        """
        if self.curves is None:
            raise ConfigError("this estimate does not carry its curves: take d_at of the fit that it came from")
        return self.curves.d_at(fraction, chance_corrected, level, value)

    def __repr__(self) -> str:
        """The estimate in words, and what it rests on."""
        return f"Estimate({self.text}; {self.num_trials} trials, {self.num_seeds} seeds)"

    @property
    def fraction(self) -> float | None:
        """The share of the baseline's score to reach; None for a value."""
        return self.rule.fraction

    @property
    def width(self) -> float:
        """Length of the interval in log d, censored ends cut at the range; infinite without a fit."""
        if not self._has_interval:
            return math.inf
        return math.log((self.high or self.range[1]) / (self.low or self.range[0]))

    @property
    def text(self) -> str:
        """The estimate in words: 'd90 = 320 (95%: 180 to 560)', 'd(accuracy >= 0.8) > 10000 (95%: 7200 to > 10000)'."""
        name = self.rule.name(self.metric, self.chance_corrected)
        if not self._has_interval:
            return f"{name} unknown: {self.outcome.value}"
        smallest, largest = self.range
        low = f"<= {smallest}" if self.low is None else _short(self.low)
        high = f"> {largest}" if self.high is None else _short(self.high)
        value = {Outcome.below_range: f"<= {smallest}", Outcome.above_range: f"> {largest}"}.get(self.outcome)
        value = value or f"= {_short(self.d or math.nan)}"
        if self.low == largest or self.high == smallest:
            return f"{name} {value} ({100 * self.level:g}%)"
        return f"{name} {value} ({100 * self.level:g}%: {low} to {high})"

    @property
    def _has_interval(self) -> bool:
        return self.outcome in (Outcome.found, Outcome.below_range, Outcome.above_range)


def _short(d: float) -> str:
    return f"{d:.3g}" if d < 1000 else f"{float(f'{d:.4g}'):.0f}"  # never 1.7e+05
