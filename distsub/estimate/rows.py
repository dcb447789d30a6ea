"""The rows that an estimate rests on, wherever they came from: what is set aside, what is said of them, as arrays.

Rows are put in an order that follows from their values alone, and so are the groups of rows that share seeds: no name,
number of a seed or order of arrival has a part in the estimate.
"""

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from distsub.estimate.curves import Noise, Scores
from distsub.estimate.settings import SETTINGS
from distsub.estimate.shared import Shared, knot_scores, shared
from distsub.metrics import variance
from distsub.records import sign
from distsub.search.rule import D90_RULE, RANGES, Rule, floor_of
from distsub.search.thresholds import Trained, judge


@dataclass(frozen=True)
class Row:
    """One training.

    Attributes:
        d: Trained numbers; None for full fine-tuning.
        arm: The eta of a subspace training, the learning rate of full fine-tuning.
        seeds: Its projection, head and data seed; trainings that share one of them move together.
        score: What it scored, times the sign of its metric, so that higher is better; None if it ended without a score.
        num_examples: Examples evaluated.
        influences: What each of them adds to the score (`distsub.estimate.shared`), or None.
    """

    d: float | None
    arm: float
    seeds: tuple[Hashable, ...]
    score: float | None
    num_examples: int
    influences: np.ndarray | None = None

    @property
    def value(self) -> tuple[float, float, float, bytes]:
        """What it says, whatever it is called."""
        with_influences = b"" if self.influences is None else self.influences.tobytes()
        return self.d or 0.0, self.arm, -math.inf if self.score is None else self.score, with_influences


@dataclass(frozen=True)
class Rows:
    """What `prepare` made of the rows.

    Attributes:
        subspace: Subspace trainings with a score, at the etas that are candidates.
        baseline: Full fine-tunings that set the threshold.
        lost: For every d and seeds at which every candidate ended without a score, one of those rows.
        etas: The candidates, increasing.
        rates: Learning rates of the baseline; the others are compared with the first.
        dropped: Etas that diverged too often to be candidates.
        chance: Chance level, 0 where nothing tells; as all scores here, times the sign of the metric.
        floor: The best score known that takes no training, a gain of 0.
        metric: What was scored.
        rule: What has to be reached.
        failed_full: How many full fine-tunings failed to train, of how many.
        dropped_rates: Learning rates under which most failed; the others of their trainings are left out too.
        diverged: Subspace trainings at the candidates that ended without a score.
        warnings: What a reader must know of where they came from; for the rest see `distsub.estimate.remarks`.
    """

    subspace: tuple[Row, ...]
    baseline: tuple[Row, ...]
    lost: tuple[Row, ...]
    etas: tuple[float, ...]
    rates: tuple[float, ...]
    dropped: tuple[float, ...]
    chance: float
    floor: float
    metric: str
    rule: Rule
    failed_full: tuple[int, int]
    dropped_rates: tuple[float, ...]
    diverged: int
    warnings: tuple[str, ...] = ()

    @property
    def num_seeds(self) -> int:
        """Distinct triples of seeds among the subspace trainings."""
        return len({row.seeds for row in self.subspace})

    def with_warnings(self, warnings: tuple[str, ...]) -> "Rows":
        """Return the same with more said of it."""
        return replace(self, warnings=self.warnings + warnings)

    @cached_property
    def full(self) -> float:
        """Mean over the baseline's seeds of the best score over its learning rates."""
        return mean(list(best_of_seeds(self.baseline).values()))

    @cached_property
    def good(self) -> float:
        """The score at a gain of 1: full fine-tuning's, or without any the best that was seen or is asked for.

        A unit to compute in, whose exact size is of no account: full fine-tuning is then a parameter without rows.
        """
        if self.baseline:
            return self.full
        seen = [row.score for row in self.subspace if row.score is not None]
        best = max([float(np.quantile(seen, 0.9))] if seen else [], default=self.floor)
        best = max(best, self.value)
        return best if best > self.floor else max(sign(self.metric) * end for end in RANGES[self.metric])

    @cached_property
    def bar(self) -> float:
        """About the score to reach."""
        if self.rule.fraction is None:
            return self.value
        zero = self.chance if sign(self.metric) < 0 else 0.0  # from where a share is counted
        return zero + self.rule.fraction * (self.full - zero)

    @property
    def value(self) -> float:
        """The rule's value; without one the least of all scores."""
        return -math.inf if self.rule.value is None else sign(self.metric) * self.rule.value

    def scores(self, dims: tuple[float, float], shared: Shared) -> Scores:
        """Return the rows as arrays in units of gain.

        The sampling errors are those where they matter, at the score to reach, and a lost d stays below it.

        Args:
            dims: Smallest and largest d that could be tried.
            shared: What is not a row's own sampling error.
        """
        subspace, unit, bar = (*self.subspace, *self.lost), self.good - self.floor, self.bar
        below = np.array([row.score is None for row in subspace])
        y = np.array([bar if row.score is None else row.score for row in (*subspace, *self.baseline)], dtype=float)
        # One size of sampling error for all subspace rows, that at the threshold, and one for all baselines. Were it
        # each row's own, lucky rows would have the smaller errors and the fit would follow them (Peelle's puzzle).
        at_bar = self._variance(self.subspace, bar) / unit**2
        at_full = self._variance(self.baseline or self.subspace, self.good) / unit**2
        own = (shared.own((bar - self.floor) / unit, at_bar), shared.own(None, at_full))
        place, relation = _places(subspace)
        seeds = {seeds: i for i, seeds in enumerate(dict.fromkeys(row.seeds for row in self.baseline))}
        return Scores(
            x=np.array([math.log(row.d or 1) for row in subspace]),
            y=(y - self.floor) / unit,
            own=np.repeat(own, (len(subspace), len(self.baseline))),
            below=below,
            eta=np.array([-1 if row.score is None else self.etas.index(row.arm) for row in subspace]),
            etas=np.log(np.array(self.etas) / self._favourite),
            place=np.array(place),
            relation=relation,
            rate=np.array([self.rates.index(row.arm) for row in self.baseline], dtype=int),
            rates=np.log(self.rates or (1.0,)),
            group=np.array([seeds[row.seeds] for row in self.baseline], dtype=int),
            bar=(bar - self.floor) / unit,
            range=(math.log(dims[0]), math.log(dims[1])),
        )

    def shared(self, noise: Noise) -> Shared:
        """Return what another evaluation set would do to all rows alike."""
        rows, unit = (*self.subspace, *self.baseline), self.good - self.floor
        return shared(
            [((row.score or 0.0) - self.floor) / unit for row in rows],
            [row.influences for row in rows],
            [row.d is None for row in rows],
            [self._variance(rows, score) / unit**2 for score in knot_scores(self.floor, self.good)],
            noise.paired,
        )

    @property
    def _favourite(self) -> float:
        """The eta that was best most often, over d and seeds."""
        best: dict[Hashable, Row] = {}
        for row in self.subspace:
            known = best.get((row.d, row.seeds), row)
            best[row.d, row.seeds] = max(known, row, key=lambda each: each.score or 0.0)
        wins = Counter(row.arm for row in best.values())
        return max(sorted(wins), key=wins.__getitem__)

    def _variance(self, rows: Sequence[Row], score: float) -> float:
        """Return the sampling variance at a score: the plain formula, corrected by what the rows' answers say."""
        plain = mean([variance(score, self.metric, row.num_examples) for row in rows])
        with_influences = [row for row in rows if row.influences is not None]
        if self.metric == "accuracy" or not with_influences:
            return plain
        if self.metric == "nll":  # no formula: the error of the rows that there are
            return mean([sampling_variance(row, self.metric) for row in with_influences])
        formula = mean([variance(row.score or 0.0, self.metric, row.num_examples) for row in with_influences])
        return plain * mean([sampling_variance(row, self.metric) for row in with_influences]) / formula


def sampling_variance(row: Row, metric: str) -> float:
    """Return the sampling variance of a row's score, by its answers where there are any."""
    plain = variance(row.score or 0.0, metric, row.num_examples)
    if row.influences is None or metric == "accuracy":
        return plain
    return max(float((row.influences**2).mean()) / len(row.influences), 0.1 * plain)


def prepare(
    rows: Iterable[Row],
    majority: float | None,
    metric: str,
    rule: Rule = D90_RULE,
    theta_0: float | None = None,
) -> Rows:
    """Sort the rows of one model, task and method, and set aside what did not train.

    Args:
        rows: Each training once.
        majority: Score of the majority class, None where nothing tells.
        metric: What was scored.
        rule: What has to be reached.
        theta_0: Mean score of the untouched model, where that is chance and has been seen.
    """
    ordered, warnings = _by_value(rows), []
    chance = rule.chance_of(majority, theta_0)
    if chance is None and sign(metric) < 0:
        warnings.append("no row scores theta_0, from which the improvement counts: nothing is told without")
        chance = math.inf
    elif chance is None and majority is not None:
        warnings.append("no row scores theta_0: the majority class is taken as chance")
        chance = majority
    elif chance is None:
        warnings.append("no row gives a chance level: 0 is taken")
    if sign(metric) < 0 and ordered and all(row.influences is None for row in ordered):
        warnings.append("the rows have no answers, which alone tell the sampling error of nll: none is counted")
    floor = floor_of(majority, chance)
    full = [row for row in ordered if row.d is None]
    verdict = judge([Trained(row.arm, row.score, row.num_examples) for row in full], floor, metric)
    if verdict.in_doubt:
        best = max(row.score for row in full if row.score is not None)
        warnings.append(
            f"{verdict.in_doubt} of {len(full)} full fine-tunings score near chance, the best {best:.3f}: if most"
            " failed to train, the threshold is too low; train more seeds, or look at the learning rates"
        )
    baseline = tuple(row for row, is_kept in zip(full, verdict.kept, strict=True) if is_kept)
    subspace = [_at_least(row, floor, metric) for row in ordered if row.d is not None]
    etas = _candidates(subspace)
    tried = [row for row in subspace if row.arm in etas]
    scored = tuple(row for row in tried if row.score is not None)
    gone = [row for row in tried if row.score is None]
    return Rows(
        subspace=scored,
        baseline=baseline,
        lost=_lost(gone, etas),
        etas=etas,
        rates=_reference_first(baseline),
        dropped=tuple(sorted({row.arm for row in subspace} - set(etas))),
        chance=chance or 0.0,
        floor=floor,
        metric=metric,
        rule=rule,
        failed_full=(sum(verdict.failed), len(full)),
        dropped_rates=verdict.rates,
        diverged=len(gone),
        warnings=tuple(warnings),
    )


def _at_least(row: Row, floor: float, metric: str) -> Row:
    """Take what ended worse than the untouched model for it: a loss has no bound, and would pull the curve with it."""
    if sign(metric) > 0 or row.score is None or row.score >= floor:
        return row
    return replace(row, score=floor, influences=None)


def _by_value(rows: Iterable[Row]) -> list[Row]:
    """Order rows by what they say, those that say the same by what the other rows of their seeds say."""
    members: dict[Hashable, list[Row]] = {}
    for row in rows:
        members.setdefault(row.seeds, []).append(row)
    values = {seeds: sorted(row.value for row in own) for seeds, own in members.items()}
    rank = {seeds: i for i, seeds in enumerate(sorted(values, key=values.__getitem__))}
    return sorted((row for own in members.values() for row in own), key=lambda row: (row.value, rank[row.seeds]))


def _candidates(subspace: Sequence[Row]) -> tuple[float, ...]:
    """Return the etas that scored at least as often as they diverged, where any eta scored."""
    trains = {(row.d, row.seeds) for row in subspace if row.score is not None}
    balance: Counter[float] = Counter()
    for row in subspace:
        if (row.d, row.seeds) in trains:
            balance[row.arm] += 1 if row.score is not None else -1
    scored = {row.arm for row in subspace if row.score is not None}
    return tuple(sorted(eta for eta in scored if balance[eta] >= 0))


def _lost(gone: Sequence[Row], etas: Sequence[float]) -> tuple[Row, ...]:
    """Return a row for every d and seeds at which every candidate ended without a score."""
    tried: dict[tuple[float | None, Hashable], dict[float, Row]] = {}
    for row in gone:
        tried.setdefault((row.d, row.seeds), {})[row.arm] = row
    return tuple(next(iter(rows.values())) for rows in tried.values() if len(rows) == len(etas))


def _places(subspace: Sequence[Row]) -> tuple[list[int], np.ndarray]:
    """Give the seeds with enough rows a place of their own; -1 is none.

    Returns:
        The place of each row, and how the places correlate: as far as they share projection, head and data seed.
    """
    count = Counter(row.seeds for row in subspace)
    own = [seeds for seeds, times in count.items() if times >= SETTINGS.own_group]
    own = sorted(own, key=lambda seeds: -count[seeds])[: SETTINGS.most_groups]
    shares = Noise().shares

    def alike(a: tuple[Hashable, ...], b: tuple[Hashable, ...]) -> float:
        return math.fsum(share for share, i, j in zip(shares, a, b, strict=True) if i == j)

    # A little of every combination's own: crossed seeds (2 projections x 2 heads) would else determine each other.
    relation = np.array([[1.0 if a == b else 0.95 * alike(a, b) for b in own] for a in own])
    relation = relation.reshape(len(own), len(own))
    return [own.index(row.seeds) if row.seeds in own else -1 for row in subspace], relation


def best_of_seeds(baseline: Sequence[Row]) -> dict[Hashable, float]:
    """Return the best score over learning rates of every seed."""
    best: dict[Hashable, float] = {}
    for row in baseline:
        best[row.seeds] = max(best.get(row.seeds, -math.inf), row.score or 0.0)
    return best


def mean(values: Sequence[float]) -> float:
    """Return the mean, the same to the bit in any order; nan of nothing."""
    return math.fsum(values) / len(values) if values else math.nan


def _reference_first(baseline: Sequence[Row]) -> tuple[float, ...]:
    """Return the learning rates, the one with the most rows first: the others are compared with it."""
    count = Counter(row.arm for row in baseline)
    rates = sorted(count)
    if not rates:
        return ()
    middle = rates[len(rates) // 2]
    first = max(rates, key=lambda rate: (count[rate], -abs(math.log(rate / middle))))
    return (first, *(rate for rate in rates if rate != first))
