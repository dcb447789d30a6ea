"""Which full fine-tunings set the threshold: one rule, for the tables and for the estimate.

Rests on nothing but what every reader of a row has (rate, score, number of examples), so that all of them decide alike.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from distsub.metrics import variance

FAILED = 0.25
"""Share of the way from chance up to a good baseline in which a full fine-tuning has failed to train."""

ERRORS = 3.0
"""Standard errors by which it must lie below a good one besides: of few examples any score may be low."""

UNKNOWN_EXAMPLES = 400
"""Evaluation examples assumed where nothing tells."""


class Trained(NamedTuple):
    """One full fine-tuning: learning rate, score (None if it diverged), examples evaluated."""

    rate: float
    score: float | None
    num_examples: int


class Verdict(NamedTuple):
    """What is set aside.

    Attributes:
        failed: Which full fine-tunings failed to train.
        kept: Which set the threshold: those that trained, at the learning rates that are left.
        rates: Learning rates that are left out although some of their trainings trained, increasing.
        in_doubt: How many would have failed, held against the best of all, where that is so of most: then it cannot be
            told whether most failed or one was lucky, and none of them is set aside. Else 0.
    """

    failed: tuple[bool, ...]
    kept: tuple[bool, ...]
    rates: tuple[float, ...]
    in_doubt: int = 0


def mean_known(values: Iterable[float | None]) -> float | None:
    """Return the mean of the values that are known, None where none is."""
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None


def judge(full: Sequence[Trained], chance: float | None, metric: str) -> Verdict:
    """Set aside the full fine-tunings that failed to train, and the learning rates under which most did.

    What diverged has failed; so has a score in the lowest quarter of the way from chance up to the upper quartile of
    all scores, if more than three standard errors below that quartile, which is a training that works even where most
    fail. A rate under which more than half failed sets nothing, however lucky the others were, unless no rate is left.

    Args:
        full: In any order.
        chance: Chance level; None is 0.
        metric: What was scored.
    """
    scores = [each.score for each in full if each.score is not None]
    good, floor = (float(np.quantile(scores, 0.75)) if scores else -math.inf), chance or 0.0

    def has_failed(each: Trained, good: float) -> bool:
        if each.score is None:
            return True
        error = math.sqrt(2 * variance(each.score, metric, each.num_examples))
        return each.score < floor + FAILED * (good - floor) and good - each.score > ERRORS * error

    failed = tuple(has_failed(each, good) for each in full)
    below_best = sum(has_failed(each, max(scores, default=good)) for each in full)
    balance: dict[float, int] = {}
    for each, lost in zip(full, failed, strict=True):
        balance[each.rate] = balance.get(each.rate, 0) + (-1 if lost else 1)
    left = {rate for rate, surplus in balance.items() if surplus >= 0} or set(balance)
    kept = tuple(not lost and each.rate in left for each, lost in zip(full, failed, strict=True))
    trained = {each.rate for each, lost in zip(full, failed, strict=True) if not lost}
    in_doubt = below_best if below_best > max(sum(failed), len(full) / 2) else 0
    return Verdict(failed, kept, tuple(sorted(trained - left)), in_doubt)
