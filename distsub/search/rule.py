"""What a score is held against: a share of full fine-tuning's, or a value; and what counts as not having learned."""

import math
from dataclasses import dataclass, replace
from typing import Literal

from distsub.errors import ConfigError
from distsub.records import Task, sign

Chance = Literal["majority", "theta_0"]

RANGES = {
    "accuracy": (0.0, 1.0),
    "f1": (0.0, 1.0),
    "macro_f1": (0.0, 1.0),
    "matthews": (-1.0, 1.0),
    "pearson": (-1.0, 1.0),
    "exact_match": (0.0, 1.0),
    "nll": (0.0, math.inf),
}
"""Lowest and highest value of every metric."""


def check_score(score: float, metric: str, what: str) -> None:
    """Refuse a score that its metric cannot have.

    Raises:
        ConfigError: It is outside the metric's range, or the metric is unknown.
    """
    if metric not in RANGES:
        raise ConfigError(f"metric = {metric!r}: give one of {', '.join(RANGES)} (accuracy for any share of answers)")
    low, high = RANGES[metric]
    if not low <= score <= high:
        hint = f": give {score / 100:g} for {score:g}%" if high < score <= 100 and high == 1 else ""
        raise ConfigError(f"{what} = {score:g} is outside the range of {metric}, {low:g} to {high:g}{hint}")


@dataclass(frozen=True)
class Rule:
    """What `[threshold]` of a sweep file says.

    Attributes:
        fraction: Share of full fine-tuning's score to reach, 0.9 for d90; of a metric that is better when lower, share
            of its improvement on theta_0. None where a value is.
        value: Score to reach, for which no full fine-tuning is trained; None where a fraction is.
        chance: What scores without having learned: always answering the majority class, or theta_0, the untouched
            model with its head; of completions always theta_0.

    Raises:
        ConfigError: It gives both a fraction and a value, or neither, or one that is none.
    """

    fraction: float | None = 0.9
    value: float | None = None
    chance: Chance = "majority"

    def __post_init__(self) -> None:
        """Refuse what says nothing, or two things."""
        if (self.fraction is None) == (self.value is None):
            raise ConfigError(
                f"threshold: fraction = {self.fraction!r} and value = {self.value!r}: give a fraction of full"
                " fine-tuning's score or a value, not both"
            )
        if self.fraction is not None and not 0 < self.fraction <= 1:
            raise ConfigError(f"fraction = {self.fraction!r}: give a share of the baseline's score in (0, 1], as 0.9")
        if self.value is not None and not math.isfinite(self.value):
            raise ConfigError(f"value = {self.value!r}: give the score to reach, as 0.8")

    def name(self, metric: str, chance_corrected: bool = False) -> str:
        """Name the d at which it is reached: d90, d90 (chance-corrected), d(accuracy >= 0.8)."""
        if self.fraction is None:
            return f"d({self.text(metric)})"
        return f"d{100 * self.fraction:g}" + (" (chance-corrected)" if chance_corrected else "")

    def text(self, metric: str) -> str:
        """Say what has to be reached: 0.9 x full, accuracy >= 0.8, theta_0 + 0.9 x (full - theta_0)."""
        if self.fraction is None:
            return f"{metric} {'>=' if sign(metric) > 0 else '<='} {self.value:g}"
        return f"{self.fraction:g} x full" if sign(metric) > 0 else f"theta_0 + {self.fraction:g} x (full - theta_0)"

    def of(self, task: Task) -> "Rule":
        """Return the rule as it is for a task: no majority answers completions, so that chance is theta_0's score."""
        return replace(self, chance="theta_0") if task.is_completion else self

    def chance_of(self, majority: float | None, theta_0: float | None) -> float | None:
        """Return the chance level, None where it is not known.

        Args:
            majority: Score of the majority class.
            theta_0: Score of the untouched model.
        """
        return theta_0 if self.chance == "theta_0" else majority


D90_RULE = Rule()
"""Nine tenths of full fine-tuning's score, the paper's."""


def floor_of(*levels: float | None) -> float:
    """Return the best score (times its sign) that takes no training, 0 where none is known: what failed is near it.

    A training that fails tends to the majority class even where theta_0, with a random head, scores less.
    """
    return max((level for level in levels if level is not None), default=0.0)
