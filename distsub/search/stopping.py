"""When a training's verdict is certain before its end, and whether that was true.

A score is over the threshold by more than the evaluation's noise: a pass. Or it is further below than trainings of
the same kind were at this point that passed in the end: hopeless. A share of those that would be stopped runs to its
end all the same, chosen by the trial's id, and tells how often a stop was false.
"""

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from distsub.search.evidence import SLACK, reaches
from distsub.trial import Observation, Trial

Mode = Literal["none", "pass", "futility"]
"""What may end early: nothing; what has passed; that and, once enough have passed, what cannot pass any more."""

Stop = Literal["pass", "hopeless"]
History = Sequence[tuple[int, float]]

MARGIN = 2.0
"""Standard errors of the score by which a pass must be over the threshold."""
LEVEL = 0.05
"""Share of the trainings that would pass which futility may stop."""
CALIBRATING = 39
"""Trainings that pass before any is stopped as hopeless."""
AUDITED = 20
"""One in so many of the trials that would be stopped runs to its end."""


@dataclass(frozen=True)
class Calibration:
    """How far below the threshold trainings have been on their way that passed in the end.

    Only those that passed count: what a small d fails to gain says nothing about a d that can pass. Only those that
    ran while nothing was stopped for futility count, or the rule would feed on its own survivors: give the first
    `CALIBRATING` of a sweep, or those of an earlier one. The lag of a training is its largest distance to the
    threshold at any evaluation, in units of threshold minus chance, so that tasks can be put together, and of the
    share of steps that was left, so that many looks cost no more than one.

    Attributes:
        lags: One per training, rising.
    """

    lags: tuple[float, ...] = ()

    @classmethod
    def of(cls, rows: Iterable[tuple[Observation, float]]) -> "Calibration":
        """Collect the subspace trials that passed and were evaluated on the way, each with its threshold."""
        lags = []
        for row, threshold in rows:
            steps = row.trial.budget.steps
            way = [(step, score) for step, score in row.curve if step < steps]
            passed = row.score is not None and row.status == "finished" and reaches(row.score, threshold)
            if passed and way and not row.trial.is_baseline:
                lags.append(max(_lag(score, threshold, row.chance, step / steps) for step, score in way))
        return cls(tuple(sorted(lags)))

    def limit(self, level: float = LEVEL) -> float | None:
        """Return a lag that a training which will pass exceeds with probability at most `level`.

        The ceil((n + 1)(1 - level))-th smallest of n: exact whatever the distribution, if trainings that pass are
        exchangeable (split conformal prediction; Lei et al. 2018). None with too few to say: 0.05 takes 19.
        """
        rank = math.ceil((len(self.lags) + 1) * (1 - level))
        return max(self.lags[rank - 1], 0.0) if 0 < rank <= len(self.lags) else None


def _lag(score: float, threshold: float, chance: float | None, share: float) -> float:
    """Return the distance to the threshold for the share of steps done; noise has its part even close to the end."""
    return _shortfall(score, threshold, chance) / (1.2 - share)


def _shortfall(score: float, threshold: float, chance: float | None) -> float:
    reach = threshold - (chance or 0.0)
    return (threshold - score) / (reach if reach > 0 else max(abs(threshold), 1e-9))


def verdict_now(
    curve: History,
    threshold: float,
    num_eval: int,
    steps_left: int,
    limit: float | None = None,
    *,
    chance: float | None = None,
    metric: str = "accuracy",
    margin: float = MARGIN,
) -> Stop | None:
    """Return the verdict of a training that still runs, if it is certain by now.

    Args:
        curve: (step, score) of the evaluations so far.
        threshold: The score that the last step has to reach.
        num_eval: Evaluated examples.
        steps_left: Steps that are still to come; at 0 there is nothing to stop.
        limit: `Calibration.limit` of trainings of the same kind; without, nothing is called hopeless.
        chance: Chance level of the task, for the limit's units.
        metric: What the score is, for its standard error.
        margin: Standard errors by which a pass must be over the threshold.
    """
    if not curve or steps_left <= 0 or not math.isfinite(curve[-1][1]):
        return None
    step, score = curve[-1]
    if score >= threshold + margin * standard_error(score, num_eval, metric):
        return "pass"
    if limit is not None and _lag(score, threshold, chance, step / (step + steps_left)) > limit + SLACK:
        return "hopeless"
    return None


@dataclass(frozen=True)
class Rule:
    """When one trial ends early: made once, when it starts, so that its row does not depend on what else goes on.

    Attributes:
        goals: Thresholds of all searches that want the trial; only a verdict that is the same for all of them counts.
        limit: Lag beyond which it is hopeless; None calls nothing hopeless.
    """

    goals: tuple[float, ...]
    limit: float | None = None

    def first(
        self, curve: History, steps: int, num_eval: int, chance: float | None = None, metric: str = "accuracy"
    ) -> Stop | None:
        """Return the first verdict along a curve, None while there is none.

        Args:
            curve: (step, score) of the evaluations so far; one after the last step says nothing more.
            steps: Steps of the whole training.
            num_eval: Evaluated examples.
            chance: Chance level of the task.
            metric: What the score is.
        """
        for count in range(1, len(curve) + 1):
            seen, left = curve[:count], steps - curve[count - 1][0]
            verdicts: set[Stop | None] = {
                verdict_now(seen, goal, num_eval, left, self.limit, chance=chance, metric=metric) for goal in self.goals
            }
            if len(verdicts) == 1 and None not in verdicts:
                return verdicts.pop()
        return None

    def mark(self, row: Observation, stop: Stop | None) -> Observation:
        """Write into a row by what it was judged, and the verdict that ended it, or would have if it is audited."""
        goal = min(self.goals) if stop == "hopeless" else max(self.goals)
        return replace(row, stop=stop, goal=goal, stop_limit=self.limit)


class Rules:
    """Gives every trial that starts its rule, and learns from what passed when the rest is hopeless.

    The calibration of a kind of trial (model, method and budget) comes from the first `CALIBRATING` that passed
    without a limit of their own, and then stays as it is.
    """

    def __init__(self, mode: Mode, goals: Callable[[str], tuple[float, ...]]) -> None:
        """Start with nothing known.

        Args:
            mode: What may end early.
            goals: The thresholds that decide a trial by its id, none where they are not known: `Board.goals`.
        """
        self.mode, self._goals = mode, goals
        self._passed: dict[Hashable, list[tuple[Observation, float]]] = {}
        self._limits: dict[Hashable, float | None] = {}
        self._stopped: set[str] = set()

    def rule(self, trial: Trial) -> Rule | None:
        """Return the rule for a trial that starts now; None lets it run to its end, as every baseline does."""
        late = trial.method.ablation == "reset"  # what its score is about happens after the last step
        # One that was stopped is asked for again only by another threshold; its row gives way to a finished one alone.
        if self.mode not in ("pass", "futility") or trial.is_baseline or late or trial.id in self._stopped:
            return None
        goals = self._goals(trial.id)
        return Rule(goals, self._limits.get(_kind(trial))) if goals else None

    def observe(self, row: Observation) -> None:
        """Learn from a row, of this run or an earlier one."""
        kind = _kind(row.trial)
        if row.status == "stopped":
            self._stopped.add(row.trial.id)
        if self.mode != "futility" or row.goal is None or row.stop_limit is not None or kind in self._limits:
            return
        if row.status == "finished" and row.score is not None and reaches(row.score, row.goal):
            passed = self._passed.setdefault(kind, [])
            passed.append((row, row.goal))
            if len(passed) >= CALIBRATING:
                self._limits[kind] = Calibration.of(passed).limit()


def _kind(trial: Trial) -> Hashable:
    return (trial.base, trial.method, trial.budget)


def standard_error(score: float, num_eval: int, metric: str = "accuracy") -> float:
    """Return the sampling error of a score: binomial for shares, of a correlation otherwise; never zero."""
    num_eval = max(num_eval, 2)
    if metric in ("accuracy", "f1", "macro_f1"):
        share = min(max(score, 1 / num_eval), 1 - 1 / num_eval)
        # To macro F1 a rare class, of few examples, is worth as much as a large one: up to twice the variance.
        return math.sqrt((2 if metric == "macro_f1" else 1) * share * (1 - share) / num_eval)
    return max(1 - score**2, 1 / num_eval) / math.sqrt(num_eval)


def audited(trial_id: str) -> bool:
    """Return whether this trial runs to its end whatever its verdict."""
    return int(trial_id, 16) % AUDITED == 0


@dataclass(frozen=True)
class Audit:
    """How often a stop would have been false, among audited trials that would have been stopped.

    Attributes:
        passes: Audited trials that would have been stopped as a pass.
        false_passes: Of those, how many fell short at the end.
        hopeless: Audited trials that would have been stopped as hopeless.
        false_hopeless: Of those, how many passed at the end.
    """

    passes: int = 0
    false_passes: int = 0
    hopeless: int = 0
    false_hopeless: int = 0

    @property
    def stops(self) -> int:
        """Audited trials that would have been stopped."""
        return self.passes + self.hopeless

    @property
    def false(self) -> int:
        """Of those, how many ended otherwise."""
        return self.false_passes + self.false_hopeless

    @property
    def rate(self) -> float | None:
        """Share of false stops; None without a stop."""
        return self.false / self.stops if self.stops else None


def audit(
    rows: Iterable[tuple[Observation, float]],
    limit: float | None = None,
    *,
    only_audited: bool = True,
    margin: float = MARGIN,
) -> Audit:
    """Replay the stopping rule on trials that ran to their end, whether there was a rule or not.

    Args:
        rows: Observations, each with the threshold to judge it by.
        limit: As in `verdict_now`.
        only_audited: Leave out trials that ran on because nothing stopped them, which would flatter the rule.
        margin: As in `verdict_now`.
    """
    counts = {"pass": [0, 0], "hopeless": [0, 0]}
    for row, threshold in rows:
        if row.status != "finished" or row.score is None or (only_audited and not audited(row.trial.id)):
            continue
        stop = first_stop(row, threshold, limit, margin)
        if stop is not None:
            counts[stop[0]][0] += 1
            counts[stop[0]][1] += (stop[0] == "pass") != reaches(row.score, threshold)
    return Audit(*counts["pass"], *counts["hopeless"])


def audit_of(rows: Iterable[Observation]) -> Audit:
    """Count the false stops among the audited trials of a table, by the verdicts that their rows carry."""
    counts = {"pass": [0, 0], "hopeless": [0, 0]}
    for row in rows:
        if row.status == "finished" and row.stop in counts and row.goal is not None and row.score is not None:
            counts[row.stop][0] += 1
            counts[row.stop][1] += (row.stop == "pass") != reaches(row.score, row.goal)
    return Audit(*counts["pass"], *counts["hopeless"])


def first_stop(
    row: Observation, threshold: float, limit: float | None = None, margin: float = MARGIN
) -> tuple[Stop, int] | None:
    """Return the verdict that would have stopped a recorded training, and how many evaluations it had by then."""
    num_eval = len(row.target) or row.trial.budget.eval_examples or 0
    for count in range(1, len(row.curve)):
        left = row.curve[-1][0] - row.curve[count - 1][0]
        verdict = verdict_now(
            row.curve[:count],
            threshold,
            num_eval,
            left,
            limit,
            chance=row.chance,
            metric=row.trial.task.metric,
            margin=margin,
        )
        if verdict is not None:
            return verdict, count
    return None


@dataclass(frozen=True)
class Limit:
    """What a sweep may spend.

    Attributes:
        hours: Slot-hours: the time of all its trials together, whatever ran beside them; None is no limit.
        trials: Trials that are started, the baseline's included, repeats after a crash not; None is no limit.
    """

    hours: float | None = None
    trials: int | None = None

    def allows(self, hours: float, trials: int, next_hours: float = 0.0) -> bool:
        """Return whether one more trial may start.

        Args:
            hours: Slot-hours of what has ended, plus what the trials in flight are expected to take in all.
            trials: Trials started so far.
            next_hours: What the next one is expected to take.
        """
        in_time = self.hours is None or hours + next_hours <= self.hours
        return in_time and (self.trials is None or trials < self.trials)

    def spent(self, hours: float) -> bool:
        """Return whether what runs must end now, its verdicts unknown: hours are counted as they pass."""
        return self.hours is not None and hours >= self.hours
