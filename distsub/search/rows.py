"""The rows that an estimate rests on: which of all observations they are, what is wrong with them, and as arrays."""

import math
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from distsub.errors import ConfigError
from distsub.search.answers import Shared, influences, knot_scores, shared, variance
from distsub.search.evidence import Result, reaches
from distsub.search.posterior import Noise, Scores
from distsub.search.spec import Search, confirmed_by, lineage
from distsub.trial import Observation, Seeds, Trial

_OWN_GROUP = 4  # rows from which seeds have a place of their own
_MOST_GROUPS = 12

UNKNOWN_EXAMPLES = 400
"""Evaluation examples assumed where neither the row nor the budget tells."""


@dataclass(frozen=True)
class Row:
    """One training with a score.

    Attributes:
        trial: What was trained.
        status: "finished" or "stopped".
        score: Its score.
        observation: All of it.
    """

    trial: Trial
    status: str
    score: float
    observation: Observation

    @cached_property
    def influences(self) -> np.ndarray | None:
        """What each evaluated example adds to the score, or None."""
        return influences(self.observation)

    @property
    def num_examples(self) -> int:
        """How many examples were evaluated, as far as anything tells."""
        return len(self.observation.predicted) or self.trial.budget.eval_examples or UNKNOWN_EXAMPLES

    @property
    def plain_variance(self) -> float:
        """Sampling variance of a score of this size over evaluation examples."""
        return variance(self.score, self.trial.task.metric, self.num_examples)

    @cached_property
    def variance(self) -> float:
        """Sampling variance of the score, by its answers where there are any."""
        if self.influences is None or self.trial.task.metric == "accuracy":
            return self.plain_variance
        return max(float((self.influences**2).mean()) / len(self.influences), 0.1 * self.plain_variance)


@dataclass(frozen=True)
class Rows:
    """What `gather` found.

    Attributes:
        subspace: Subspace trainings at the etas that are candidates.
        baseline: Full fine-tunings.
        etas: The candidates.
        rates: Learning rates of the baseline, increasing.
        chance: Chance level, 0 where no row gave one.
        warnings: What a reader must know.
    """

    subspace: tuple[Row, ...]
    baseline: tuple[Row, ...]
    etas: tuple[float, ...]
    rates: tuple[float, ...]
    chance: float
    warnings: tuple[str, ...]

    @property
    def num_seeds(self) -> int:
        """Distinct triples of seeds among the subspace trainings, those of confirmations aside."""
        return len(_own_seeds(self.subspace))

    @cached_property
    def full(self) -> float:
        """Mean over the baseline's seeds of the best score over its learning rates."""
        return _mean(_best_of_seeds(self.baseline))

    def scores(self, dims: tuple[int, int], fraction: float, shared: Shared, noise: Noise) -> Scores:
        """Return the rows as arrays in units of gain.

        Args:
            dims: Smallest and largest d that could be tried.
            fraction: Where stopped trainings stopped, and where the sampling errors matter.
            shared: What is not a row's own sampling error.
            noise: For the shares of the seeds.
        """
        rows = (*self.subspace, *self.baseline)
        k, unit = len(self.subspace), self.full - self.chance
        bar = fraction * self.full
        side = np.array([0 if row.status == "finished" else 1 if reaches(row.score, bar) else -1 for row in rows])
        # Stopped at a score above the threshold: more steps would hardly have made it worse. Below: hopeless, but it
        # would have risen further, up to the threshold at most.
        y = np.array([bar if at < 0 else row.score for row, at in zip(rows, side, strict=True)])
        # One size of sampling error for all subspace rows, that at the threshold, and one for all baselines. Were it
        # each row's own, lucky rows would have the smaller errors and the fit would follow them (Peelle's puzzle).
        at_bar = self._variance(self.subspace, bar) / unit**2
        at_full = self._variance(self.baseline, self.full) / unit**2
        own = (shared.own((bar - self.chance) / unit, at_bar), shared.own(None, at_full))
        etas, rates = reference_first(self.subspace, self.etas), reference_first(self.baseline, self.rates)
        group, kinship, relation = _kin([row.trial.seeds for row in self.subspace], noise.shares)
        outside = {seeds: i for i, seeds in enumerate(dict.fromkeys(row.trial.seeds for row in self.baseline))}
        return Scores(
            x=np.array([math.log(row.trial.d or 1) for row in self.subspace]),
            y=(y - self.chance) / unit,
            own=np.repeat(own, (k, len(self.baseline))),
            side=side,
            arm=np.array(
                [etas.index(row.trial.eta or 0.0) for row in self.subspace]
                + [rates.index(row.trial.learning_rate) for row in self.baseline]
            ),
            etas=np.log(etas),
            rates=np.log(rates),
            group=np.array([*group, *(outside[row.trial.seeds] for row in self.baseline)]),
            kinship=np.array(kinship),
            relation=relation,
            range=(math.log(dims[0]), math.log(dims[1])),
        )

    def shared(self, noise: Noise) -> Shared:
        """Return what another evaluation set would do to all rows alike."""
        rows, unit = (*self.subspace, *self.baseline), self.full - self.chance
        variances = [self._variance(rows, score) / unit**2 for score in knot_scores(self.chance, self.full)]
        told = [row for row in rows if row.status == "finished"]
        return shared(
            [(row.score - self.chance) / unit for row in told],
            [row.influences for row in told],
            [row.trial.is_baseline for row in told],
            variances,
            noise.paired,
        )

    def _variance(self, rows: Sequence[Row], score: float) -> float:
        """Return the sampling variance at a score: the plain formula, corrected by what the rows' answers say."""
        metric = self.baseline[0].trial.task.metric
        plain = _mean([variance(score, metric, row.num_examples) for row in rows])
        told = [row for row in rows if row.influences is not None]
        if metric == "accuracy" or not told:
            return plain
        return plain * _mean([row.variance for row in told]) / _mean([row.plain_variance for row in told])


def gather(searches: Sequence[Search], observations: Iterable[Observation]) -> Rows:
    """Pick the rows of one model, task and method, each training once.

    Args:
        searches: The searches that differ in seeds only (or in dims and etas: their union counts).
        observations: Rows, any others' among them, in any order; further seeds of the same trainings count.

    Raises:
        ConfigError: The searches are of different models, tasks, methods or budgets, or there is none.
    """
    kind = _common_kind(searches)
    rates = {trial.learning_rate for search in searches for trial in search.baseline}
    budgets = {trial.budget for search in searches for trial in search.baseline}
    etas = {eta for search in searches for eta in search.etas}
    head_from = searches[0].method.head_from
    best: dict[str, tuple[Result, Observation]] = {}
    for observation in observations:
        trial = observation.trial
        if trial.is_baseline:
            same = (trial.model, trial.revision, trial.task, trial.method.head_from) == (*kind[:3], head_from)
            is_ours = same and trial.learning_rate in rates and trial.budget in budgets
        else:
            is_ours = trial.eta in etas and _kind(trial) == kind
        if is_ours:
            result = Result.of(observation)
            known = best.get(trial.id)
            # Of equal results the one with answers says more.
            if known is None or (known[0].merge(result), bool(known[1].predicted)) != (known[0], True):
                merged = known[0].merge(result) if known else result
                best[trial.id] = (merged, observation if merged == result else known[1])  # type: ignore[index]
    found = sorted(best.values(), key=lambda pair: _by_value(pair[1].trial))
    rows = [Row(o.trial, r.status, r.score, o) for r, o in found if r.score is not None]
    candidates = _candidates(found)
    subspace = tuple(row for row in rows if not row.trial.is_baseline and row.trial.eta in candidates)
    baseline = tuple(row for row in rows if row.trial.is_baseline and row.status == "finished")
    chances = [result.chance for result, _ in found if result.chance is not None]
    chance = _mean(chances) if chances else 0.0
    warnings = _warnings(subspace, baseline, chances) + _divergence(found, candidates) + _tries(searches, rates)
    rates_run = tuple(sorted({row.trial.learning_rate for row in baseline}))
    return Rows(subspace, baseline, candidates, rates_run, chance, warnings)


def _by_value(trial: Trial) -> tuple[float, float, float, tuple[int, int, int], str]:
    """Order the trials of one condition by what they are, so that a renamed path gives the same estimate to the bit."""
    seeds = (trial.seeds.projection, trial.seeds.head, trial.seeds.data)
    return trial.d or 0.0, trial.eta or 0.0, trial.learning_rate, seeds, trial.id


def _kind(trial: Trial) -> tuple[object, ...]:
    """Return what the rows of one estimate share: everything but d, eta and seeds."""
    model, revision, task, method, rate, _, budget = lineage(trial)
    return (model, revision, task, method, rate, budget)


def _common_kind(searches: Sequence[Search]) -> tuple[object, ...]:
    kinds = {(s.model, s.revision, s.task, s.method, s.learning_rate, s.budget): s.name for s in searches}
    if len(kinds) != 1:
        given = ", ".join(kinds.values()) or "none"
        raise ConfigError(
            f"an estimate is of one model, task, method, learning rate and budget, given searches of {len(kinds)} kinds"
            f" ({given}): give the searches that differ in seeds only"
        )
    return next(iter(kinds))


def _candidates(found: Sequence[tuple[Result, Observation]]) -> tuple[float, ...]:
    """Return the etas with at least as many scores as divergences."""
    balance: dict[float, int] = {}
    for result, observation in found:
        eta = observation.trial.eta
        if eta is not None and result.status != "error":
            balance[eta] = balance.get(eta, 0) + (1 if result.score is not None else -1)
    scored = {o.trial.eta for r, o in found if r.score is not None}
    return tuple(sorted(eta for eta, count in balance.items() if count >= 0 and eta in scored))


def _divergence(found: Sequence[tuple[Result, Observation]], candidates: Sequence[float]) -> tuple[str, ...]:
    tried = {o.trial.eta for r, o in found if o.trial.eta is not None and r.status != "error"}
    gone = sorted(eta for eta in tried if eta is not None and eta not in candidates)
    if not gone:
        return ()
    names = ", ".join(f"{eta:g}" for eta in gone)
    if not candidates:
        return (f"every subspace training diverged (eta {names}): lower the etas",)
    return (f"eta {names} diverged more often than not and is no candidate",)


def _tries(searches: Sequence[Search], rates: Collection[float]) -> tuple[str, ...]:
    """Tell where one arm has more tries than the other, and so more luck."""
    etas = {eta for search in searches for eta in search.etas}
    tries = len(etas) if any(search.tries is None for search in searches) else max(s.num_tries for s in searches)
    if tries == len(rates):
        return ()
    return (
        f"equal tries for every arm: number of etas at each d {tries}, of full fine-tuning's learning rates"
        f" {len(rates)}; the best of more is luckier, give as many of both",
    )


def _warnings(subspace: Sequence[Row], baseline: Sequence[Row], chances: Sequence[float]) -> tuple[str, ...]:
    said: list[str] = []
    if subspace and len(_own_seeds(subspace)) == 1:
        said.append(
            "one seed: how much d90 varies over seeds is not measured, the interval takes the spread seen on other"
            " tasks; run at least 3"
        )
    if baseline:
        best = _best_of_seeds(baseline)
        if len(_own_seeds(baseline)) == 1:
            said.append("one baseline seed: the spread of full fine-tuning is assumed, not measured; run at least 3")
        full, chance = _mean(best), _mean(chances) if chances else 0.0
        error = math.sqrt(_mean([row.variance for row in baseline]))
        if not chances:
            said.append("no row gives a chance level: 0 is taken")
        if full <= chance:
            said.append(f"the baseline {full:.3f} is not above chance {chance:.3f}: there is nothing to reach")
        elif full - chance < 2 * error:
            said.append(
                f"the baseline {full:.3f} is above chance {chance:.3f} by less than two standard errors ({error:.3f}):"
                " evaluate more examples or train longer"
            )
        elif stuck := [score for score in best if score - chance < 2 * error]:
            said.append(
                f"full fine-tuning stays at chance {chance:.3f} under {len(stuck)} of {len(best)} seeds and reaches"
                f" {max(best):.3f} under others, so the mean {full:.3f} that the threshold is made of is of neither:"
                " lower the learning rate, train longer or run more seeds"
            )
    rows = (*subspace, *baseline)
    if any(not row.observation.predicted and row.trial.budget.eval_examples is None for row in rows):
        said.append(f"rows do not tell how many examples were evaluated: {UNKNOWN_EXAMPLES} are assumed")
    return (*said, *_falls(subspace))


def _falls(subspace: Sequence[Row]) -> tuple[str, ...]:
    """Tell where scores fall with d by more than noise explains: best of the etas, seed by seed, paired."""
    worst, where = 0.0, None
    for seeds in dict.fromkeys(row.trial.seeds for row in subspace):
        best: dict[int, Row] = {}
        for row in subspace:
            if row.trial.seeds == seeds and row.status == "finished":
                d = row.trial.d or 0
                best[d] = max(best.get(d, row), row, key=lambda r: r.score)
        top: Row | None = None
        for d in sorted(best):
            row = best[d]
            if top is not None:
                # Cautious: training noise taken as large as that of the evaluation set, and no pairing.
                z = (top.score - row.score) / math.sqrt(2 * (top.variance + row.variance))
                if z > worst:
                    worst, where = z, (top.trial.d, d)
            if top is None or row.score > top.score:
                top = row
    if where is None or worst < 3.5:
        return ()
    return (f"not monotone: the score falls from d = {where[0]} to d = {where[1]} by more than noise explains",)


def _own_seeds(rows: Sequence[Row]) -> set[Seeds]:
    """Return the seeds of searches among those of rows; where there are only confirmations, theirs."""
    every = {row.trial.seeds for row in rows}
    return {row.trial.seeds for row in rows if confirmed_by(row.trial) is None} or every


def _best_of_seeds(baseline: Sequence[Row]) -> list[float]:
    best: dict[Seeds, float] = {}
    for row in baseline:
        best[row.trial.seeds] = max(best.get(row.trial.seeds, -math.inf), row.score)
    return list(best.values())


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def reference_first(rows: Sequence[Row], arms: Sequence[float]) -> tuple[float, ...]:
    """Return the etas or learning rates, the one with the most rows first: the others are compared with it."""
    count = Counter(row.trial.eta if row.trial.eta is not None else row.trial.learning_rate for row in rows)
    first = max(arms, key=lambda arm: (count[arm], -abs(math.log(arm / arms[len(arms) // 2]))))
    return (first, *(arm for arm in arms if arm != first))


def _kin(seeds: Sequence[Seeds], shares: tuple[float, float, float]) -> tuple[list[int], list[float], np.ndarray]:
    """Group trainings by their seeds; those with seeds of their own (confirmations) join their nearest relatives.

    Returns:
        The group of each training, its correlation with that group, and the correlations of groups.
    """
    count = Counter(seeds)
    groups = [triple for triple, times in count.items() if times >= _OWN_GROUP] or [count.most_common(1)[0][0]]
    groups = sorted(sorted(groups, key=lambda triple: -count[triple])[:_MOST_GROUPS], key=_order)

    def alike(a: Seeds, b: Seeds) -> float:
        same = (a.projection == b.projection, a.head == b.head, a.data == b.data)
        return math.fsum(share for share, is_same in zip(shares, same, strict=True) if is_same)

    nearest = {triple: max(range(len(groups)), key=lambda i: alike(triple, groups[i])) for triple in count}
    relation = np.array([[1.0 if a == b else alike(a, b) for b in groups] for a in groups])
    kinship = {triple: 1.0 if triple in groups else alike(triple, groups[i]) for triple, i in nearest.items()}
    return [nearest[triple] for triple in seeds], [kinship[triple] for triple in seeds], relation


def _order(seeds: Seeds) -> tuple[int, int, int]:
    return (seeds.projection, seeds.head, seeds.data)
