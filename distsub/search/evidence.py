"""What a search has observed, as an immutable fold, and what follows from it.

Folding is commutative and idempotent: any order, any repetition, any set of rows read back from disk gives
the same evidence. Nothing else has to be saved to resume a search.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain, islice
from typing import TypeVar

from distsub.metrics import variance
from distsub.records import Observation, Trial, sign
from distsub.search.outcome import Bracket, Finding, Outcome, Thresholds
from distsub.search.ranges import Course, Score, course
from distsub.search.settings import SETTINGS
from distsub.search.spec import Search, by_key, key
from distsub.search.thresholds import Result, reaches, thresholds

Key = TypeVar("Key", str, float)


@dataclass(frozen=True)
class Evidence:
    """Everything a search has observed; the state of every policy.

    Policies differ in what they propose, never in what is known, so a sweep can be resumed under another one.

    Attributes:
        asked: The search, as it was asked for.
        full: Results of full fine-tunings, and of theta_0, by trial id.
        probes: Results of the subspace trials by d, then by eta.
        earlier: What the same search found under earlier seeds, where the policy learns from them.
        tries: Results by eta of the tries of a range of etas, where they are under other seeds.
    """

    asked: Search
    full: Mapping[str, Result] = field(default_factory=dict)
    probes: Mapping[int, Mapping[float, Result]] = field(default_factory=dict)
    earlier: tuple["Evidence", ...] = ()
    tries: Mapping[float, Result] = field(default_factory=dict)

    @classmethod
    def of(cls, search: Search, observations: Iterable[Observation]) -> "Evidence":
        """Fold many observations at once: the same as adding one by one, in a fraction of the time."""
        full, probes, tries = dict[str, Result](), dict[int, dict[float, Result]](), dict[float, Result]()
        for observation in observations:
            trial, result = observation.trial, Result.of(observation)
            if trial.d is None or trial.eta is None:
                known: dict = full
                name: object = trial.id
            else:
                known, name = tries if trial.seeds != search.seeds else probes.setdefault(trial.d, {}), trial.eta
            known[name] = known[name].merge(result) if name in known else result
        return cls(search, full, probes, tries=tries)

    def add(self, observation: Observation) -> "Evidence":
        """Return the evidence with one more observation; itself when that says nothing new."""
        trial = observation.trial
        if not self.asked.owns(trial):
            return self
        result = Result.of(observation)
        if trial.d is None or trial.eta is None:
            merged = _merge(self.full, trial.id, result)
            return self if merged is self.full else replace(self, full=merged)
        if trial.seeds != self.asked.seeds:
            merged = _merge(self.tries, trial.eta, result)
            return self if merged is self.tries else replace(self, tries=merged)
        at_d = self.probes.get(trial.d, {})
        merged = _merge(at_d, trial.eta, result)
        return self if merged is at_d else replace(self, probes={**self.probes, trial.d: merged})

    def learn(self, other: "Evidence") -> "Evidence":
        """Return the evidence with what the same search found under other seeds, the latest of each; any order."""
        others = {each.search.seeds: each for each in self.earlier}
        if others.get(other.search.seeds) == (bare := replace(other, earlier=())):
            return self
        others[other.search.seeds] = bare
        order = sorted(others, key=lambda seeds: (seeds.projection, seeds.head, seeds.data))
        return replace(self, earlier=tuple(others[seeds] for seeds in order))

    @cached_property
    def rates(self) -> Course | None:
        """How far the tries of a range of learning rates are; None of a list."""
        if self.asked.rate_range is None:
            return None
        return course(self.asked.rate_range, lambda rate: _score(self.full.get(self.asked.full_at(rate).id)))

    @cached_property
    def etas(self) -> Course | None:
        """How far the tries of a range of etas are; None of a list."""
        asked = self.asked
        if asked.eta_range is None:
            return None
        return course(asked.eta_range, lambda eta: _score(self._eta_tries.get(eta)))

    @property
    def _eta_tries(self) -> Mapping[float, Result]:
        asked = self.asked
        return self.probes.get(asked.try_d, {}) if asked.seeds == asked.first_seeds else self.tries

    @cached_property
    def search(self) -> Search:
        """The search with the learning rates and etas that are kept; those tried, while none are."""
        has_lists = self.rates is None and self.etas is None
        return self.asked if has_lists else self.asked.tuned(self.rates, self.etas)

    @property
    def has_etas(self) -> bool:
        """Whether the etas are known, so that a d can have a verdict."""
        return self.etas is None or self.etas.kept is not None

    @cached_property
    def baseline(self) -> Mapping[str, Result]:
        """Results of the search's references by trial id; not of tries that were not kept."""
        if self.rates is None:
            return self.full
        return {trial.id: self.full[trial.id] for trial in self.search.references if trial.id in self.full}

    @cached_property
    def results(self) -> Mapping[int, Mapping[float, Result]]:
        """Results of the subspace trials by d, then by eta; not of tries that were not kept."""
        if self.etas is None:
            return self.probes
        etas = self.etas.kept or ()
        own = {d: {eta: at_d[eta] for eta in etas if eta in at_d} for d, at_d in self.probes.items()}
        return {d: at_d for d, at_d in own.items() if at_d}

    @cached_property
    def thresholds(self) -> Thresholds | None:
        """What has to be reached, None without a complete baseline where one is needed."""
        return thresholds(self.search, self.baseline, chain(*(each.values() for each in self.results.values())))

    @cached_property
    def obstacle(self) -> Outcome | None:
        """Why no threshold can be had from this baseline, None while or where it can."""
        if self.asked.rule.fraction is None or (self.rates is not None and self.rates.kept is None):
            return None
        if any(result.status == "error" for result in self.baseline.values()):
            return Outcome.baseline_missing
        if len(self.baseline) < len(self.search.reference_ids):
            return None
        if self.thresholds is None or self.thresholds.full is None:
            return Outcome.baseline_missing
        return Outcome.baseline_at_chance if self.thresholds.full <= self.thresholds.floor else None

    def missing_baseline(self) -> Iterator[Trial]:
        """Yield the references that have no result yet."""
        if len(self.baseline) < len(self.search.reference_ids):
            yield from (trial for trial in self.search.references if trial.id not in self.baseline)

    def missing_tries(self) -> Iterator[Trial]:
        """Yield the tries of a range of etas that are to be made now."""
        if self.etas is not None and self.etas.kept is None:
            yield from (self.asked.try_at(eta) for eta in self.etas.values if eta not in self._eta_tries)

    def missing_at(self, d: int, etas: Iterable[float]) -> Iterator[Trial]:
        """Yield the trials that d is still to be given, in the order of the etas; an error was a try as well."""
        known = self.results.get(d, {})
        left = self.search.num_tries - len(known)
        if left > 0:  # else without making the trials
            trials = dict(zip(self.search.etas, self.search.trials_at(d), strict=True))
            yield from islice((trials[eta] for eta in etas if eta not in known), left)

    def reached(self, result: Result) -> bool | None:
        """Return whether one result reaches the threshold; None if it is in error or there is no threshold."""
        if result.status == "error" or self.thresholds is None:
            return None
        return result.score is not None and reaches(result.score, self.thresholds.score)

    def passed(self, d: int) -> bool | None:
        """Return the verdict at one d: True if any eta reaches the threshold, False if all its tries fell short.

        None while it is open. What diverged fell short.
        """
        verdicts = [self.reached(result) for result in self.results.get(d, {}).values()]
        if True in verdicts:
            return True
        return False if verdicts.count(False) >= self.search.num_tries else None

    @cached_property
    def verdicts(self) -> dict[int, bool]:
        """The verdicts by position, of every d that has one, in increasing order."""
        found = {self.search.positions[d]: self.passed(d) for d in self.results} if self.thresholds else {}
        return {x: verdict for x, verdict in sorted(found.items()) if verdict is not None}

    @cached_property
    def barred(self) -> frozenset[int]:
        """The positions that all their tries left undecided, for errors; they can only be walked around."""
        if self.thresholds is None:
            return frozenset()
        tries, position = self.search.num_tries, self.search.positions
        full = {position[d] for d, at_d in self.results.items() if len(at_d) >= tries}
        return frozenset(full - self.verdicts.keys())

    @cached_property
    def _positions(self) -> dict[tuple[float, bool], list[int]]:
        found: dict[tuple[float, bool], list[int]] = {}
        for d, at_d in self.results.items() if self.thresholds else ():
            for eta, result in at_d.items():
                found.setdefault((eta, self.reached(result) or False), []).append(self.search.positions[d])
        return found

    def positions_of(self, eta: float, passed: bool) -> Sequence[int]:
        """Return the positions at which an eta reached the threshold, or did not; an error did not."""
        return self._positions.get((eta, passed), ())

    @cached_property
    def wins(self) -> tuple[float, ...]:
        """The best eta of every d at which two or more have a score."""
        found = []
        for at_d in self.results.values():
            scores = [(result.score, eta) for eta, result in at_d.items() if result.score is not None]
            if len(scores) > 1:
                found.append(max(scores)[1])
        return tuple(found)

    @cached_property
    def span(self) -> tuple[int, int]:
        """The positions of the largest d that failed (-1: none) and the smallest that passed (n: none).

        Where verdicts contradict each other, those on either side of the crossing that misjudges the fewest of them;
        of equal ones the one whose misjudged scores miss the threshold by least, then the largest.
        """
        low, high = -1, len(self.search.dims)
        if not self.verdicts or self.thresholds is None:
            return low, high
        order, wrong = list(self.verdicts.items()), [0, 0.0]
        for x, passed in order:  # a crossing above all of them misjudges every pass
            wrong = [wrong[0] + passed, wrong[1] + passed * self._miss(x)]
        best = (*wrong, len(order))
        for i in reversed(range(len(order))):  # and then one d after the other is above it
            x, passed = order[i]
            sign = -1 if passed else 1
            wrong = [wrong[0] + sign, wrong[1] + sign * self._miss(x)]
            if (wrong[0], round(wrong[1], 9)) < (best[0], round(best[1], 9)):
                best = (*wrong, i)
        low = max((x for x, passed in order[: best[2]] if not passed), default=low)
        return low, min((x for x, passed in order[best[2] :] if passed), default=high)

    def _miss(self, x: int) -> float:
        """Return how far the best score at a position is from the threshold."""
        assert self.thresholds is not None
        return abs(self._best(x) - self.thresholds.score)

    def _best(self, x: int) -> float:
        scores = [result.score for result in self.results[self.search.dims[x]].values() if result.score is not None]
        return max(scores, default=self.thresholds.floor if self.thresholds else 0.0)

    @cached_property
    def falls(self) -> Bracket | None:
        """A d that passed and a larger one that failed by more than sampling error explains, None if there is none.

        Cautious: the noise of training is taken to be as large as that of the evaluation set, and no pairing.
        """
        top: int | None = None
        metric, examples = self.search.task.metric, self.search.budget.eval_examples or SETTINGS.unknown_examples
        for x, passed in self.verdicts.items():
            if passed:
                top = x if top is None or self._best(x) > self._best(top) else top
            elif top is not None:
                above, below = self._best(top), self._best(x)
                spread = math.sqrt(2 * (variance(above, metric, examples) + variance(below, metric, examples)))
                if not spread:  # the value of an nll alone does not tell its error; the estimate has the answers
                    continue
                if above - below > SETTINGS.fall_errors * spread:
                    return self.search.dims[x], self.search.dims[top]
        return None

    def finding(self, ended: bool) -> Finding:
        """Sum up the search; anything but open is said only where it has ended: its policy wants no further trial."""
        dims, (low, high) = self.search.dims, self.span
        bracket: Bracket = (dims[low] if low >= 0 else None, dims[high] if high < len(dims) else None)
        outcome = self.obstacle if ended and self.obstacle is not None else Outcome.open
        if self.obstacle is not None:
            bracket = (None, None)
        elif ended and self.thresholds is not None:
            outcome = self._outcome(low, high)
            bracket = self.falls if outcome is Outcome.not_monotone and self.falls else bracket
        runs = [result for at_d in self.probes.values() for result in at_d.values()]
        best = max((result.score for result in runs if result.score is not None), default=None)
        sign_of_metric = sign(self.search.task.metric)
        return Finding(
            outcome=outcome,
            d=bracket[1] if outcome is Outcome.found else None,
            bracket=bracket,
            best_score=best and sign_of_metric * best,
            thresholds=self.thresholds and self.thresholds.shown(sign_of_metric),
            num_trials=len(self.full) + len(runs) + len(self.tries),
        )

    def _outcome(self, low: int, high: int) -> Outcome:
        if self.falls is not None:
            return Outcome.not_monotone
        if high - low > 1:  # what is open when nothing more comes was left open by trials in error
            return Outcome.trial_failed
        if low < 0:
            return Outcome.below_range
        return Outcome.above_range if high == len(self.search.dims) else Outcome.found


def share(searches: Sequence[Search], observations: Iterable[Observation]) -> list[list[Observation]]:
    """Give each search the observations that it owns, in the order of the searches; the others' are left out."""
    found: list[list[Observation]] = [[] for _ in searches]
    interested, known = by_key(searches), dict[str, Sequence[int]]()
    for observation in observations:
        setup = observation.trial.setup
        if setup.id not in known:
            known[setup.id] = interested.get(key(setup), ())
        for index in known[setup.id]:
            if searches[index].owns(observation.trial):
                found[index].append(observation)
    return found


def tuned(searches: Sequence[Search], observations: Sequence[Observation]) -> list[Search]:
    """Return searches with the learning rates and etas that the rows have come to, in the place of ranges."""
    if all(search.rate_range is None and search.eta_range is None for search in searches):
        return list(searches)
    return [Evidence.of(*each).search for each in zip(searches, share(searches, observations), strict=True)]


def _score(result: Result | None) -> Score | None:
    """Return what a try tells, None while it has no result."""
    return result and (result.status != "error", result.score)


def _merge(known: Mapping[Key, Result], key: Key, result: Result) -> Mapping[Key, Result]:
    """Return results with one more; the same object when it says nothing new."""
    merged = known[key].merge(result) if key in known else result
    return known if merged == known.get(key) else {**known, key: merged}
