"""What a subspace has to reach: which full fine-tunings count, and the thresholds that follow.

The tables and the estimate decide by the same rule which full fine-tunings failed to train.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from distsub.metrics import variance
from distsub.records import TRUST, Observation, Status, Trial, sign
from distsub.search.outcome import Thresholds
from distsub.search.rule import floor_of
from distsub.search.settings import SETTINGS
from distsub.search.spec import Search

SLACK = 1e-12
"""0.9 * 0.8 is 0.7200000000000001 in floating point; a score of 0.72 reaches it all the same."""


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
        chance: Chance level, as the scores times the metric's sign; None is 0.
        metric: What was scored.
    """
    scores = [each.score for each in full if each.score is not None]
    good, floor = (float(np.quantile(scores, 0.75)) if scores else -math.inf), chance or 0.0

    def has_failed(each: Trained, good: float) -> bool:
        if each.score is None:
            return True
        error = math.sqrt(2 * variance(each.score, metric, each.num_examples))
        return (
            each.score < floor + SETTINGS.failed_share * (good - floor)
            and good - each.score > SETTINGS.failed_errors * error
        )

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


@dataclass(frozen=True)
class Result:
    """The part of an observation that a verdict needs; its arrays stay in the table.

    Attributes:
        status: As observed; "diverged" too when a finished trial's score is no finite number (the Pearson
            correlation of constant predictions is none): it fails every threshold.
        score: Times the sign of its metric, so that higher is better; finite, or None when diverged or in error.
        chance: Chance level of the task, or None.
        num_examples: Examples evaluated, 0 where the row does not tell.
    """

    status: Status
    score: float | None
    chance: float | None
    num_examples: int = 0

    @classmethod
    def of(cls, observation: Observation) -> "Result":
        """Reduce an observation to its result: no score that is not finite."""
        number = observation.num_examples or len(observation.predicted)
        score = observation.score and sign(observation.trial.task.metric) * observation.score
        return _reduce(observation.status, score, observation.chance, number)

    def merge(self, other: "Result") -> "Result":
        """Return the more trustworthy of two results for the same trial, whichever came first.

        A completed run outranks a failed one. Two scores for one trial should not happen; the lower
        is taken, which cannot make a d look better than it is.
        """
        return max(self, other, key=Result._rank)

    def _rank(self) -> tuple[int, float, bool, float, int]:
        known = self.chance is not None
        return (TRUST[self.status], -(self.score or 0.0), known, self.chance or 0.0, self.num_examples)


@lru_cache(maxsize=10_000)  # scores are counts over the same evaluation set: few of them differ
def _reduce(status: Status, score: float | None, chance: float | None, num_examples: int) -> Result:
    chance = chance if _is_finite(chance) else None
    if status == "finished" and _is_finite(score):
        return Result(status, score, chance, num_examples)
    return Result("diverged" if status in ("finished", "diverged") else "error", None, chance)


def _is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def reaches(score: float, threshold: float) -> bool:
    """Return whether a score is at or above a threshold, rounding errors forgiven."""
    return score >= threshold - SLACK


def thresholds(search: Search, results: Mapping[str, Result], others: Iterable[Result] = ()) -> Thresholds | None:
    """Compute what a subspace has to reach from the results of full fine-tuning and theta_0.

    full = the best, over the learning rates, of the mean over the seeds. The best of every seed on its own would be a
    lucky one. What diverged or failed to train is left out (`distsub.search.thresholds`).

    Args:
        search: The search.
        results: Results by trial id; others than the references' are ignored.
        others: Results of subspace trials, which tell chance where there is no baseline.

    Returns:
        None until every reference has a result, and when that can no longer be: a trial in error is a learning rate
        not tried, so the best of the others might set the bar too low; or no rate has trained. A value is known at
        once.
    """
    rule, metric = search.rule, search.task.metric
    seen = [(trial, results.get(trial.id)) for trial in search.references]
    if rule.fraction is None:
        majority, theta_0 = _chances([(trial, result) for trial, result in seen if result], others)
        chance = rule.chance_of(majority, theta_0)
        return Thresholds(None, chance, sign(metric) * (rule.value or 0.0), None, floor_of(majority, chance))
    known, full = list[tuple[Trial, Result]](), list[Trained]()
    for trial, result in seen:
        if result is None or result.status == "error":
            return None
        known.append((trial, result))
        number = result.num_examples or trial.budget.eval_examples or SETTINGS.unknown_examples
        full += [] if trial.is_theta_0 else [Trained(trial.learning_rate, result.score, number)]
    majority, theta_0 = _chances(known)
    chance = rule.chance_of(majority, theta_0)
    floor, scores = floor_of(majority, chance), dict[float, list[float]]()
    for each, is_kept in zip(full, judge(full, floor, metric).kept, strict=True):
        if is_kept and each.score is not None:
            scores.setdefault(each.rate, []).append(each.score)
    if not scores:
        return None
    best = max(math.fsum(own) / len(own) for own in scores.values())
    corrected = None if chance is None else chance + rule.fraction * (best - chance)
    paper = rule.fraction * best
    if sign(metric) < 0:  # a share of a loss says nothing
        if corrected is None:
            return None
        paper = corrected
    return Thresholds(best, chance, paper, corrected, floor)


def _chances(
    references: Iterable[tuple[Trial, Result]], others: Iterable[Result] = ()
) -> tuple[float | None, float | None]:
    """Return the mean score of the majority class and that of theta_0, None where no row tells."""
    rows = list(references)
    majority = (result.chance for result in (*(each for _, each in rows), *others))
    return mean_known(majority), mean_known(result.score for trial, result in rows if trial.is_theta_0)
