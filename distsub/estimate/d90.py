"""d90 as a measurement: from all rows of a model, task and method to a number with an interval and an outcome.

What is estimated. d_at(fraction) is the d at which the *typical* score reaches fraction x the typical score of full
fine-tuning at the best learning rate of its grid (chance-corrected: chance + fraction x (full - chance)). Typical is
the mean over projection, head and data seeds and over evaluation sets like this one, at the best eta of the grid, of
the trainings that train. How many fail to train is reported apart: it is no property of d. The answer is a real number,
not a grid point. d_at(value=v) is where the typical score reaches v, for which no full fine-tuning is needed. A single
search reports something else, the first d that passed under its own seeds.

What counts as what. Every finished training enters the likelihood once, with its own d, eta and seeds, and no
maximum over trainings is taken: the best eta is a parameter that all rows at all d share. So there is no winner's curse
of "the best of k", and what a policy chose to run carries no bias, because its choice depends on rows in the fit.

 - A full fine-tuning that stayed near chance while others learned is set aside (`distsub.estimate.rows`), and counted.
 - A subspace training may have failed, too: the fit gives each a probability of that.
 - A training that ended without a score (diverged) says nothing of the other etas. A d at which every eta did is below
   the threshold. An eta that diverged more often than not where others trained is no candidate.
 - Errors (a machine's, not a training's) are not rows.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from distsub.errors import ConfigError
from distsub.estimate.interval import LEVEL, Estimate
from distsub.estimate.settings import SETTINGS
from distsub.records import Observation, sign
from distsub.search.outcome import Outcome
from distsub.search.rule import D90_RULE, Rule, check_score
from distsub.search.spec import Search

if TYPE_CHECKING:
    import numpy as np

    from distsub.estimate.curves import Draws, Noise
    from distsub.estimate.rows import Rows
    from distsub.estimate.shared import Shared


@dataclass(frozen=True)
class Fit:
    """All curves that the rows allow, with weights: any d_at(fraction) comes from the same ones.

    Attributes:
        range: Smallest and largest d that could be tried.
        chance: Chance level of the task, 0 where no row gave one.
        floor: Score at a gain of 0: the best known that takes no training.
        unit: Score of one unit of gain.
        etas: The etas that the fit compares, in the order of its draws.
        rates: The learning rates of the baseline, likewise.
        num_seeds: Distinct triples of seeds among the subspace trials.
        num_trials: Rows in the fit.
        failed_full: Share of the full fine-tunings that failed to train; None where none was trained.
        failed_subspace: Share of the subspace trainings that failed to train or diverged.
        warnings: What holds for every threshold.
        obstacle: Why there are no curves, or None.
        draws: The curves on this evaluation set, None if there is an obstacle.
        shared: What another evaluation set would do to all trials alike, None if there is an obstacle.
        rule: The searches' own.
        metric: What was scored.
    """

    range: tuple[int, int]
    chance: float = 0.0
    floor: float = 0.0
    unit: float = 1.0
    etas: tuple[float, ...] = ()
    rates: tuple[float, ...] = ()
    num_seeds: int = 0
    num_trials: int = 0
    failed_full: float | None = None
    failed_subspace: float = 0.0
    warnings: tuple[str, ...] = ()
    obstacle: Outcome | None = None
    draws: "Draws | None" = None
    shared: "Shared | None" = None
    rule: Rule = D90_RULE
    metric: str = "accuracy"

    @property
    def eta(self) -> float | None:
        """The eta with the best expected score at the estimate, or at the middle of the rows where there is none."""
        if self.draws is None:
            return None
        d = self.d_at().d
        return self.etas[self.draws.eta(math.log(d) if d else self.draws.handicaps.center)]

    @property
    def effective_draws(self) -> float:
        """How many independent draws the interval rests on; 0 without a fit."""
        return 0.0 if self.draws is None else self.draws.effective

    def d_at(
        self,
        fraction: float | None = None,
        chance_corrected: bool = False,
        level: float = LEVEL,
        value: float | None = None,
    ) -> Estimate:
        """Estimate the d at which a share of the baseline's score, or a value, is reached.

        Args:
            fraction: The share; None takes what the searches ask for, as long as there is no value.
            chance_corrected: Whether it is a share of the gain over chance.
            level: Probability that the interval is to hold.
            value: The score to reach, in the place of a share.

        Raises:
            ConfigError: fraction or level is no share, value is no score, or there is no baseline to take a share of.
        """
        rule = self._rule(fraction, value)
        if not 0 < level < 1:
            raise ConfigError(f"level = {level!r}: give a share in (0, 1), as {LEVEL}")
        if chance_corrected and rule.fraction is None:
            raise ConfigError(f"{rule.text(self.metric)} is no share, so there is none of the gain over chance")
        unknown = Estimate(
            rule, chance_corrected, self.obstacle or Outcome.undecided, None, None, None, self.range,
            level=level, num_seeds=self.num_seeds, num_trials=self.num_trials, failed_full=self.failed_full,
            failed_subspace=self.failed_subspace, warnings=self.warnings, curves=self, metric=self.metric,
        )  # fmt: skip
        if self.draws is None:
            return unknown
        import numpy as np

        full, weight = self.draws.full(), self.draws.weight
        bar = self._bar(rule, chance_corrected)
        tail = (1.0 - level) / 2
        crossing, repeated = self._crossing(rule, chance_corrected)
        low, middle, high = (_quantile(crossing, repeated, p) for p in (tail, 0.5, 1.0 - tail))
        first, last = (math.log(end) for end in self.range)
        outcome = Outcome.below_range if middle < first else Outcome.above_range if middle > last else Outcome.found
        mean = float(weight @ full)
        error = float(np.sqrt(weight @ (full - mean) ** 2))
        threshold, of_rows = self.floor + self.unit * float(weight @ bar), sign(self.metric)
        return replace(
            unknown,
            outcome=outcome,
            d=math.exp(middle) if outcome is Outcome.found else None,
            low=None if low < first else math.exp(low) if low < last else float(self.range[1]),
            high=None if high > last else math.exp(high) if high > first else float(self.range[0]),
            threshold=of_rows * threshold,
            full=(of_rows * (self.floor + self.unit * mean), self.unit * error) if self.rates else None,
            warnings=self.warnings + self._range_warnings(rule, low > last, high < first, threshold),
        )

    def _rule(self, fraction: float | None, value: float | None) -> Rule:
        """Return what is asked for, the searches' own by default."""
        if fraction is None and value is None:
            return self.rule
        rule = replace(self.rule, fraction=fraction, value=value)
        if value is not None:
            check_score(value, self.metric, "value")
        elif self.draws is not None and not self.rates:
            raise ConfigError(
                f"fraction = {fraction!r}: no full fine-tuning was trained to take a share of; give value, the score to"
                " reach"
            )
        return rule

    def probability(self, d: Sequence[float], fraction: float | None = None) -> tuple[float, ...]:
        """Return, for each d, how probable it is that its expected score reaches the threshold; 0.5 without a fit."""
        if self.draws is None:
            return (0.5,) * len(d)
        crossing, weight = self._crossing(self._rule(fraction, None), False)
        return tuple(float(weight[crossing <= math.log(each)].sum()) for each in d)

    def band(self, d: Sequence[float], level: float = LEVEL) -> tuple[tuple[float, float, float], ...]:
        """Return lower end, median and upper end of the expected score at the best eta, for each d."""
        if self.draws is None:
            return ()
        import numpy as np

        levels = self.draws.level(np.log(np.asarray(d, dtype=float))[None])
        tail, of_rows = (1.0 - level) / 2, sign(self.metric)
        ends = (tail, 0.5, 1 - tail)[:: int(of_rows)]
        return tuple(
            tuple(of_rows * (self.floor + self.unit * _quantile(column, self.draws.weight, p)) for p in ends)  # type: ignore[misc]
            for column in levels.T
        )

    def _bar(self, rule: Rule, chance_corrected: bool) -> "np.ndarray":
        """Return the gain to reach on this evaluation set, per draw."""
        assert self.draws is not None
        full = self.draws.full()
        if rule.fraction is None:
            return 0.0 * full + (sign(self.metric) * (rule.value or 0.0) - self.floor) / self.unit
        zero = self.chance if self._is_of_gain(chance_corrected) else 0.0  # from where a share is counted
        return rule.fraction * full - (1.0 - rule.fraction) * (self.floor - zero) / self.unit

    def _is_of_gain(self, chance_corrected: bool) -> bool:
        """Tell whether a share is one of the gain over chance: of a loss it says nothing else."""
        return chance_corrected or sign(self.metric) < 0

    def _crossing(self, rule: Rule, chance_corrected: bool) -> tuple["np.ndarray", "np.ndarray"]:
        """Return values of log d where the expected score on all examples reaches the threshold, and their weights.

        The curves are those on this evaluation set; how far another one would move curve and threshold apart is drawn,
        several times for each curve.
        """
        import numpy as np

        from distsub.estimate.posterior import standard_normal

        assert self.draws is not None
        assert self.shared is not None
        bar, share = self._bar(rule, chance_corrected), rule.fraction or 0.0
        of_gain = self._is_of_gain(chance_corrected) and rule.fraction is not None
        error = self.shared.error(float(self.draws.weight @ bar), share, (1.0 - share) * of_gain)
        moved = error * standard_normal(SETTINGS.sets_per_curve * len(bar)).reshape(len(bar), SETTINGS.sets_per_curve)
        return self.draws.crossing(bar[:, None] + moved).ravel(), np.repeat(
            self.draws.weight / SETTINGS.sets_per_curve, SETTINGS.sets_per_curve
        )

    def _range_warnings(self, rule: Rule, is_above: bool, is_below: bool, threshold: float) -> tuple[str, ...]:
        (smallest, largest), warnings = self.range, []
        outside = "the range cannot contain the threshold:"
        if threshold <= self.floor:
            remedy = "raise value" if rule.fraction is None else "read the chance-corrected d, or raise fraction"
            up = sign(self.metric)
            warnings.append(
                f"the threshold {up * threshold:.3f} is not {'above' if up > 0 else 'below'} chance"
                f" {up * self.floor:.3f}, so any d reaches it: {remedy}"
            )
        elif is_below:
            warnings.append(f"{outside} already d = {smallest} is above it; lower its low end")
        if is_above:
            warnings.append(f"{outside} d = {largest} is below it; raise its high end")
        return tuple(warnings)


def estimate(
    searches: Sequence[Search],
    observations: Iterable[Observation],
    fraction: float | None = None,
    chance_corrected: bool = False,
) -> Estimate:
    """Estimate d_at(fraction) of one model, task and method from all its rows; see `fit` and `Fit.d_at`."""
    return fit(searches, observations).d_at(fraction, chance_corrected)


def fit(searches: Sequence[Search], observations: Iterable[Observation], noise: "Noise | None" = None) -> Fit:
    """Fit all curves that the rows of one model, task and method allow.

    Args:
        searches: The searches that differ in seeds only (or in dims and etas: their union counts).
        observations: Rows, any others' among them, in any order; further seeds of the same trainings count. Those
            without stored predictions have the binomial error of `eval_examples`.
        noise: What is believed before any row; None takes what was measured on real tasks.

    Raises:
        ConfigError: The searches are of different models, tasks, methods or budgets, or there is none; or a score is
            outside its metric's range.
    """
    from distsub.estimate.gather import gather

    rows = gather(searches, observations)
    ends = (min(search.dims[0] for search in searches), max(search.dims[-1] for search in searches))
    return fit_rows(rows, ends, noise)


def fit_rows(rows: "Rows", ends: tuple[int, int], noise: "Noise | None" = None) -> Fit:
    """Fit all curves that some rows allow, wherever they came from.

    Args:
        rows: From `distsub.estimate.rows.prepare`.
        ends: Smallest and largest d that could be tried.
        noise: As for `fit`.
    """
    from distsub.estimate.curves import Noise
    from distsub.estimate.posterior import draw
    from distsub.estimate.remarks import falls, remarks

    noise = noise or Noise()
    failed, full = rows.failed_full
    empty = Fit(
        range=ends,
        chance=rows.chance,
        floor=rows.floor,
        etas=rows.etas,
        num_seeds=rows.num_seeds,
        num_trials=len(rows.baseline) + len(rows.subspace),
        failed_full=failed / full if full else None,
        warnings=remarks(rows),
        rule=rows.rule,
        metric=rows.metric,
    )
    if not rows.baseline and rows.rule.value is None:
        return replace(empty, obstacle=Outcome.baseline_missing)
    if math.isinf(rows.floor):
        return replace(empty, obstacle=Outcome.undecided)
    if rows.baseline and rows.full <= rows.floor:
        return replace(empty, obstacle=Outcome.baseline_at_chance)
    if not rows.subspace or rows.good <= rows.floor:
        return replace(empty, obstacle=Outcome.undecided)
    shared = rows.shared(noise)
    draws = draw(rows.scores(ends, shared), noise)
    has_failed = [bool(share > 0.5) for share in draws.failed[: len(rows.subspace)]]
    failed, tried = sum(has_failed), len(rows.subspace) + rows.diverged
    warnings = list(empty.warnings)
    if failed:
        warnings.append(f"{failed} of {tried} subspace trainings failed to train: d is that of those that train")
    warnings += falls(rows, has_failed)
    if draws.effective < SETTINGS.enough_draws:
        warnings.append(f"the interval rests on {draws.effective:.0f} effective draws: its ends are uncertain by 10%")
    return replace(
        empty,
        unit=rows.good - rows.floor,
        rates=rows.rates,
        failed_subspace=(failed + rows.diverged) / tried,
        warnings=tuple(warnings),
        draws=draws,
        shared=shared,
    )


def _quantile(values: "np.ndarray", weight: "np.ndarray", p: float) -> float:
    """Return the weighted quantile, infinite values allowed."""
    import numpy as np

    order = np.argsort(values)
    at = int(np.searchsorted(np.cumsum(weight[order]), p))
    return float(values[order][min(at, len(values) - 1)])
