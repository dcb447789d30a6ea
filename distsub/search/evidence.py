"""What a search has observed, as an immutable fold, and what follows from it.

Folding is commutative and idempotent: any order, any repetition, any set of rows read back from disk gives
the same evidence. Nothing else has to be saved to resume a search.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from typing import TypeVar

from distsub.search.outcome import Finding, Outcome, Thresholds, Verdict
from distsub.search.spec import Search, confirmed_by
from distsub.search.study import Scored, ask
from distsub.trial import Observation, Status, Trial

SLACK = 1e-12
"""0.9 * 0.8 is 0.7200000000000001 in floating point; a score of 0.72 reaches it all the same."""

CHANCES = 2
"""Etas of a d that are confirmed, one after the other, before the d has failed."""

Key = TypeVar("Key", str, float)

_TRUST = {"error": 0, "stopped": 1, "diverged": 2, "finished": 3}


@dataclass(frozen=True)
class Result:
    """The part of an observation that a verdict needs; its arrays stay in the table.

    Attributes:
        status: As observed; "diverged" too when a finished trial's score is no finite number (the Pearson
            correlation of constant predictions is none): it fails every threshold.
        score: Finite, or None when diverged or in error.
        chance: Chance level of the task, or None.
        goal: Of one that was stopped early the threshold that it was judged by, None where that is not known.
    """

    status: Status
    score: float | None
    chance: float | None
    goal: float | None = None

    @classmethod
    def of(cls, observation: Observation) -> "Result":
        """Reduce an observation to its result."""
        return cls.reduce(observation.status, observation.score, observation.chance, observation.goal)

    @classmethod
    def reduce(cls, status: Status, score: float | None, chance: float | None, goal: float | None = None) -> "Result":
        """Reduce what was observed to a result: no score that is not finite, none that nobody can check."""
        chance = chance if _is_finite(chance) else None
        if status in ("finished", "stopped") and _is_finite(score):
            return cls(status, score, chance, goal if status == "stopped" else None)
        # Stopped without a score is a verdict that nobody can check: no result.
        return cls("diverged" if status in ("finished", "diverged") else "error", None, chance)

    def merge(self, other: "Result") -> "Result":
        """Return the more trustworthy of two results for the same trial, whichever came first.

        A completed run outranks a stopped or failed one. Two scores for one trial should not happen; the lower
        is taken, which cannot make a d look better than it is.
        """
        return max(self, other, key=Result._rank)

    def holds(self, threshold: float) -> bool:
        """Return whether a training that was stopped early would end there too by another threshold.

        A sweep that has grown by a seed or a learning rate of full fine-tuning has another one: then what was stopped
        for passing and falls short of it, or as hopeless for one that was higher, has to be trained to its end.
        """
        if self.status != "stopped" or self.goal is None or self.score is None or reaches(self.score, threshold):
            return True
        return self.score < self.goal and threshold >= self.goal - SLACK

    def _rank(self) -> tuple[int, float, bool, float]:
        return (_TRUST[self.status], -(self.score or 0.0), self.chance is not None, self.chance or 0.0)


def _is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def reaches(score: float, threshold: float) -> bool:
    """Return whether a score is at or above a threshold, rounding errors forgiven."""
    return score >= threshold - SLACK


def thresholds(
    search: Search, results: Mapping[str, Result], again: Mapping[str, Result] | None = None
) -> Thresholds | None:
    """Compute what a subspace has to reach from the baseline's results.

    full = mean over the baseline's seeds of the best score over that seed's learning rates; where the search confirms,
    the mean of what the best ones scored under fresh seeds.

    Args:
        search: The search.
        results: Results by trial id; others than the baseline's are ignored.
        again: Results of the confirmations by the id of what they confirm.

    Returns:
        None until every baseline trial has a result, and when that can no longer be: a trial in error is a
        learning rate not tried, so the best of the others might set the bar too low; a seed whose trials
        all diverged has no score.
    """
    deciding: list[Result | None] = []
    chances: list[float] = []
    for group in search.baseline_groups.values():
        tried = [results.get(trial.id) for trial in group]
        if any(result is None or result.status == "error" for result in tried):
            return None
        chances += [result.chance for result in tried if result is not None and result.chance is not None]
        best = best_of(group, results)
        deciding.append((again or {}).get(best.id) if search.confirm and len(group) > 1 else results[best.id])
    scores = [result.score for result in deciding if result is not None and result.score is not None]
    if len(scores) < len(deciding):
        return None
    full = math.fsum(scores) / len(scores)
    chance = math.fsum(chances) / len(chances) if chances else None
    corrected = None if chance is None else chance + search.fraction * (full - chance)
    return Thresholds(full=full, chance=chance, relative=search.fraction * full, chance_corrected=corrected)


def best_of(trials: Sequence[Trial], results: Mapping[str, Result]) -> Trial:
    """Return the trial with the best score, the first of several; one that diverged has none."""
    scores = [results[trial.id].score for trial in trials]
    return max(zip(scores, trials, strict=True), key=lambda each: -math.inf if each[0] is None else each[0])[1]


@dataclass(frozen=True)
class Evidence:
    """Everything a search has observed; the state of every policy.

    Policies differ in what they propose, never in what is known, so a sweep can be resumed under another one.

    Attributes:
        search: The search.
        baseline: Results of the baseline by trial id.
        probes: Results of the subspace trials by d, then by eta.
        elders: What the same search found under other seeds, where the policy learns from them.
        baseline_again: Results of the baseline's confirmations by the id of the trial that they confirm.
        again: Results of subspace confirmations by d, then by eta.
    """

    search: Search
    baseline: Mapping[str, Result] = field(default_factory=dict)
    probes: Mapping[int, Mapping[float, Result]] = field(default_factory=dict)
    elders: tuple["Evidence", ...] = ()
    baseline_again: Mapping[str, Result] = field(default_factory=dict)
    again: Mapping[int, Mapping[float, Result]] = field(default_factory=dict)

    def add(self, observation: Observation) -> "Evidence":
        """Return the evidence with one more observation; itself when that says nothing new."""
        if not self.search.owns(observation.trial):
            return self
        original = confirmed_by(observation.trial) if self.search.confirm else None
        trial, result = original or observation.trial, Result.of(observation)
        if trial.d is None or trial.eta is None:
            name, every = ("baseline", self.baseline) if original is None else ("baseline_again", self.baseline_again)
            merged = _merge(every, trial.id, result)
            return self if merged is every else replace(self, **{name: merged})
        name, probes = ("probes", self.probes) if original is None else ("again", self.again)
        at_d = probes.get(trial.d, {})
        merged = _merge(at_d, trial.eta, result)
        return self if merged is at_d else replace(self, **{name: {**probes, trial.d: merged}})

    def learn(self, elder: "Evidence") -> "Evidence":
        """Return the evidence with what the same search found under other seeds, the latest of each; any order."""
        others = {each.search.seeds: each for each in self.elders}
        if others.get(elder.search.seeds) == (bare := replace(elder, elders=())):
            return self
        others[elder.search.seeds] = bare
        order = sorted(others, key=lambda seeds: (seeds.projection, seeds.head, seeds.data))
        return replace(self, elders=tuple(others[seeds] for seeds in order))

    @cached_property
    def thresholds(self) -> Thresholds | None:
        """Both thresholds, None without a complete baseline."""
        return thresholds(self.search, self.baseline, self.baseline_again)

    @cached_property
    def results(self) -> Mapping[int, Mapping[float, Result]]:
        """What decides: the results of the subspace trials, where one was run again the second, which decides alone."""
        probes, checks = self._sound(self.probes), self.checks
        if not checks:
            return probes
        return {d: {**probes.get(d, {}), **checks.get(d, {})} for d in {**probes, **checks}}

    @cached_property
    def checks(self) -> Mapping[int, Mapping[float, Result]]:
        """Results of subspace confirmations, without those that have to be trained to their end."""
        return self._sound(self.again)

    def _sound(self, results: Mapping[int, Mapping[float, Result]]) -> Mapping[int, Mapping[float, Result]]:
        """Leave out what was stopped early and would not be by the threshold as it is now."""
        marks = self.thresholds
        if marks is None or all(each.holds(marks.relative) for at_d in results.values() for each in at_d.values()):
            return results
        return {
            d: left
            for d, at_d in results.items()
            if (left := {eta: each for eta, each in at_d.items() if each.holds(marks.relative)})
        }

    @cached_property
    def obstacle(self) -> Outcome | None:
        """Why no threshold can be had from this baseline, None while or where it can."""
        if any(result.status == "error" for result in (*self.baseline.values(), *self.baseline_again.values())):
            return Outcome.baseline_missing
        if next(self.missing_baseline(), None) is not None:
            return None
        if self.thresholds is None:
            return Outcome.baseline_missing
        at_chance = self.thresholds.full <= (self.thresholds.chance or 0.0)
        return Outcome.baseline_at_chance if at_chance else None

    def missing_baseline(self) -> Iterator[Trial]:
        """Yield the baseline's trials that have no result yet; then those that confirm the best of each seed."""
        if len(self.baseline) < len(self.search.baseline_ids):
            yield from (trial for trial in self.search.baseline if trial.id not in self.baseline)
        elif self.search.confirm:
            for group in self.search.baseline_groups.values():
                best = best_of(group, self.baseline)
                if len(group) > 1 and self.baseline[best.id].score is not None and best.id not in self.baseline_again:
                    yield self.search.confirmation(best)

    def missing_at(self, d: int) -> Iterator[Trial]:
        """Yield the trials that d is still to be given, most promising first; an error was a try as well."""
        known = self.results.get(d, {})
        left = self.search.num_tries - len(known)
        if left > 0:  # else without making the trials
            trials = self.search.trials_at(d)
            yield from islice((trials[j] for j in self.order_at(d) if trials[j].eta not in known), left)

    def order_at(self, d: int) -> Sequence[int]:
        """Return the indices of the etas in the order in which d is given them: the list's, or Optuna's."""
        if self.search.eta_choice == "belief":
            return range(len(self.search.etas))
        if d not in self._orders:
            rows = [row for row in self._scored if row[0] != math.log(d)]
            rows += (row for elder in self.elders for row in elder._scored)
            self._orders[d] = ask(rows, math.log(d), len(self.search.etas), self.search.num_tries)
        return self._orders[d]

    @cached_property
    def _orders(self) -> dict[int, tuple[int, ...]]:
        return {}

    @cached_property
    def _scored(self) -> tuple[Scored, ...]:
        """What every subspace trial says of its eta; nothing without thresholds or of one in error."""
        marks, index = self.thresholds, {eta: j for j, eta in enumerate(self.search.etas)}
        if marks is None:
            return ()
        chance = marks.chance or 0.0
        reach = max(marks.full - chance, 0.05)  # at chance there is nothing to search for; this only has to be finite
        return tuple(
            (math.log(d), index[eta], 0.0 if result.score is None else (result.score - chance) / reach)
            for d, at_d in self.results.items()
            for eta, result in at_d.items()
            if result.status != "error"
        )

    def passed(self, d: int, threshold: float) -> bool | None:
        """Return the verdict at one d: True if any eta reaches the threshold, False if all its tries fell short.

        False too after `CHANCES` confirmations that fell short; None while it is open.
        """
        if self.checks:
            again = [self.reached(result, threshold) for result in self.checks.get(d, {}).values()]
            if True not in again and len(again) >= CHANCES:
                return None if None in again else False
        results, bar = self.results.get(d, {}).values(), threshold - SLACK
        for result in results:  # `reached`, but that a table of 100,000 rows is asked in no time
            if result.score is not None and result.score >= bar:
                return True
        verdicts = [self.reached(result, threshold) for result in results]
        return False if verdicts.count(False) >= self.search.num_tries else None

    def reached(self, result: Result, threshold: float) -> bool | None:
        """Return whether one result reaches a threshold, None if it cannot tell."""
        if result.status == "error":
            return None
        if result.score is None:
            return False
        if reaches(result.score, threshold):
            return True
        # Early stopping goes by the relative threshold: what stopped above it never tried for a stricter one.
        above = self.thresholds is not None and reaches(result.score, self.thresholds.relative)
        return None if result.status == "stopped" and above else False

    def span(self, threshold: float) -> tuple[int, int]:
        """Return the positions of the largest d that failed (-1: none) and the smallest that passed (n: none)."""
        low, high = -1, len(self.search.dims)
        for d in self.results:
            verdict, position = self.passed(d, threshold), self.search.positions[d]
            if verdict is False:
                low = max(low, position)
            elif verdict:
                high = min(high, position)
        return low, high

    def verdict(self, threshold: float) -> Verdict:
        """Return what all trials together say about one threshold; running while a d between is open."""
        dims = self.search.dims
        low, high = self.span(threshold)
        bracket = (dims[low] if low >= 0 else None, dims[high] if high < len(dims) else None)
        if low > high:
            return Verdict(Outcome.not_monotone, None, bracket)
        if high - low > 1:
            return Verdict(Outcome.open, None, bracket)
        if low < 0:
            return Verdict(Outcome.below_range, None, bracket)
        if high == len(dims):
            return Verdict(Outcome.above_range, None, bracket)
        return Verdict(Outcome.found, dims[high], bracket)

    def finding(self, ended: bool, unconfirmed: bool = False) -> Finding:
        """Sum up the search.

        Args:
            ended: Whether the policy wants no further trial; only then is anything but running said.
            unconfirmed: Whether it ended on a pass that too many trials under fresh seeds did not bear out.
        """
        # What is open for want of trials when nothing more comes was left open by trials in error.
        relative = self._final(self.thresholds and self.thresholds.relative, ended, Outcome.trial_failed)
        if ended and unconfirmed:
            relative = replace(relative, outcome=Outcome.not_confirmed, d=None)
        corrected = self._final(self.thresholds and self.thresholds.chance_corrected, ended, Outcome.undecided)
        runs = [result for part in (self.probes, self.again) for at_d in part.values() for result in at_d.values()]
        return Finding(
            outcome=relative.outcome,
            d=relative.d,
            bracket=relative.bracket,
            chance_corrected=corrected,
            best_score=max((result.score for result in runs if result.score is not None), default=None),
            thresholds=self.thresholds,
            num_trials=len(self.baseline) + len(self.baseline_again) + len(runs),
        )

    def _final(self, threshold: float | None, ended: bool, if_open: Outcome) -> Verdict:
        if self.obstacle is not None:
            return Verdict(self.obstacle if ended else Outcome.open)
        if threshold is None:
            return Verdict(if_open if ended else Outcome.open)
        verdict = self.verdict(threshold)
        if not ended:
            return Verdict(Outcome.open, None, verdict.bracket)
        return replace(verdict, outcome=if_open) if verdict.outcome is Outcome.open else verdict


def _merge(known: Mapping[Key, Result], key: Key, result: Result) -> Mapping[Key, Result]:
    """Return results with one more; the same object when it says nothing new."""
    merged = known[key].merge(result) if key in known else result
    return known if merged == known.get(key) else {**known, key: merged}
