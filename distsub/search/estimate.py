"""d90 as a measurement: from all rows of a model, task and method to a number with an interval and an outcome.

What is estimated. d_at(fraction) is the d at which the *expected* score, over projection, head and data seeds and
over evaluation sets like this one, at the best eta of the grid, reaches fraction x the expected score of full
fine-tuning at the best learning rate of its grid (chance-corrected: chance + fraction x (full - chance)). It is a
real number, not a grid point. A single search reports something else, the first d that passed under its own seeds.

What counts as what. Every finished training enters the likelihood once, with its own d, eta and seeds, and nobody's
maximum is taken: the best eta is a parameter that all rows at all d share, drawn towards its neighbours. So "the
best of k" has no luck to be proud of, and what a policy chose to run on the strength of what it had seen (stopping
at the first passing eta, zooming in on the crossing) carries no bias, because it depends on rows that are in the fit.
What a policy reports by itself, the smallest d that passed, is a maximum over etas against a maximum over learning
rates. It takes a protocol to make it fair (what each step is worth: benchmarks/coverage.json, "best_of_k"):

 1. Selection: the trials of the search's own seeds. Equal tries: a d fails only after all etas, and the baseline has
    as many learning rates as there are etas, all of which run. The two kinds of luck then cancel, to first order.
 2. Measurement (`distsub.search.confirm`): the winner of several etas or learning rates is trained once more under
    fresh head and data seeds, and that score decides alone. Confirming only the one side would ask for too much, so
    both are. With a single eta nothing was chosen and nothing is confirmed.
 3. The estimate takes the rows of both kinds alike: any seed that is not the search's own is one more row.

A training stopped for its verdict ("stopped") enters as a bound: its final score is on the side of the threshold
where it stood. A diverged one says nothing about the other etas; an eta that diverged more often than not is no
candidate. Errors are not rows.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from distsub.errors import ConfigError
from distsub.search.outcome import Outcome
from distsub.search.spec import Search
from distsub.trial import Observation

if TYPE_CHECKING:
    import numpy as np

    from distsub.search.answers import Shared
    from distsub.search.posterior import Draws, Noise

METHOD = (
    "posterior of a monotone (Richards) curve of score against log d with shifts by projection, head and data seed,"
    " training residual and paired sampling error of the evaluation set; median and equal-tailed interval"
)
LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """What the rows say about d_at(fraction).

    Attributes:
        fraction: Share of the baseline's score to reach; 0.9 makes it d90.
        chance_corrected: Whether the share is of the gain over chance.
        outcome: found, below_range, above_range, or why there is no estimate.
        d: The posterior median; None unless found.
        low: Lower end of the interval; None if it lies below the smallest d of the range. At most the largest d.
        high: Upper end of the interval; None if it lies above the largest d of the range. At least the smallest d.
        range: Smallest and largest d that could be tried.
        threshold: The score to reach, posterior mean; None without a fit.
        full: Expected score of full fine-tuning and its standard error; None without a fit.
        level: Probability that the interval is meant to hold.
        num_seeds: Distinct triples of seeds among the subspace trials.
        num_trials: Rows in the fit, the baseline's included.
        warnings: What a reader must know, a sentence each.
        method: How it was computed.
    """

    fraction: float
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
    warnings: tuple[str, ...] = ()
    method: str = METHOD

    def __repr__(self) -> str:
        """The estimate in words, and what it rests on."""
        return f"Estimate({self.text}; {self.num_trials} trials, {self.num_seeds} seeds)"

    @property
    def low_censored(self) -> bool:
        """Whether the interval reaches below the smallest d."""
        return self._has_interval and self.low is None

    @property
    def high_censored(self) -> bool:
        """Whether the interval reaches beyond the largest d."""
        return self._has_interval and self.high is None

    @property
    def width(self) -> float:
        """Length of the interval in log d, censored ends cut at the range; infinite without a fit."""
        if not self._has_interval:
            return math.inf
        return math.log((self.high or self.range[1]) / (self.low or self.range[0]))

    @property
    def text(self) -> str:
        """The estimate in words: 'd90 = 320 (95%: 180 to 560)', 'd90 > 10000 (95%: 7200 to > 10000)'."""
        name = f"d{100 * self.fraction:g}" + (" (chance-corrected)" if self.chance_corrected else "")
        if not self._has_interval:
            return f"{name} unknown: {self.outcome.sentence}"
        smallest, largest = self.range
        low = f"<= {smallest}" if self.low is None else _short(self.low)
        high = f"> {largest}" if self.high is None else _short(self.high)
        value = {Outcome.below_range: f"<= {smallest}", Outcome.above_range: f"> {largest}"}.get(self.outcome)
        value = value or f"= {_short(self.d or math.nan)}"
        if self.low == largest or self.high == smallest:
            return f"{name} {value} ({100 * self.level:g}%: all of it)"
        return f"{name} {value} ({100 * self.level:g}%: {low} to {high})"

    @property
    def _has_interval(self) -> bool:
        return self.outcome in (Outcome.found, Outcome.below_range, Outcome.above_range)


@dataclass(frozen=True)
class Fit:
    """All curves that the rows allow, with weights: any d_at(fraction) comes from the same ones.

    Attributes:
        range: Smallest and largest d that could be tried.
        chance: Chance level of the task, 0 where no row gave one.
        unit: Score of one unit of gain.
        etas: The etas that the fit compares, in the order of its draws.
        rates: The learning rates of the baseline, likewise.
        num_seeds: Distinct triples of seeds among the subspace trials.
        num_trials: Rows in the fit.
        warnings: What holds for every fraction.
        obstacle: Why there are no curves, or None.
        draws: The curves on this evaluation set, None if there is an obstacle.
        shared: What another evaluation set would do to all trials alike, None if there is an obstacle.
        fraction: The searches' own.
    """

    range: tuple[int, int]
    chance: float = 0.0
    unit: float = 1.0
    etas: tuple[float, ...] = ()
    rates: tuple[float, ...] = ()
    num_seeds: int = 0
    num_trials: int = 0
    warnings: tuple[str, ...] = ()
    obstacle: Outcome | None = None
    draws: "Draws | None" = None
    shared: "Shared | None" = None
    fraction: float = 0.9

    @property
    def eta(self) -> float | None:
        """The eta with the best expected score."""
        return None if self.draws is None else self.etas[self.draws.eta]

    def d_at(self, fraction: float | None = None, chance_corrected: bool = False, level: float = LEVEL) -> Estimate:
        """Estimate the d at which a share of the baseline's score is reached.

        Args:
            fraction: The share; None takes the searches' own.
            chance_corrected: Whether it is a share of the gain over chance.
            level: Probability that the interval is to hold.

        Raises:
            ConfigError: fraction or level is no share.
        """
        fraction = self.fraction if fraction is None else fraction
        for name, value in (("fraction", fraction), ("level", level)):
            if not 0 < value <= 1 or (name == "level" and value == 1):
                raise ConfigError(
                    f"{name} = {value!r}: give a share in (0, 1), as {0.9 if name == 'fraction' else LEVEL}"
                )
        if self.draws is None:
            return Estimate(
                fraction, chance_corrected, self.obstacle or Outcome.undecided, None, None, None, self.range,
                level=level, num_seeds=self.num_seeds, num_trials=self.num_trials, warnings=self.warnings,
            )  # fmt: skip
        import numpy as np

        full, weight = self.draws.full(), self.draws.weight
        bar = self._bar(fraction, chance_corrected)
        tail = (1.0 - level) / 2
        crossing = self._crossing(fraction, chance_corrected)
        low, middle, high = (_quantile(crossing, weight, p) for p in (tail, 0.5, 1.0 - tail))
        first, last = (math.log(end) for end in self.range)
        outcome = Outcome.below_range if middle < first else Outcome.above_range if middle > last else Outcome.found
        mean = float(weight @ full)
        error = float(np.sqrt(weight @ (full - mean) ** 2))
        threshold = self.chance + self.unit * float(weight @ bar)
        return Estimate(
            fraction=fraction,
            chance_corrected=chance_corrected,
            outcome=outcome,
            d=math.exp(middle) if outcome is Outcome.found else None,
            low=None if low < first else math.exp(low) if low < last else float(self.range[1]),
            high=None if high > last else math.exp(high) if high > first else float(self.range[0]),
            range=self.range,
            threshold=threshold,
            full=(self.chance + self.unit * mean, self.unit * error),
            level=level,
            num_seeds=self.num_seeds,
            num_trials=self.num_trials,
            warnings=self.warnings + self._range_warnings(low > last, high < first, threshold),
        )

    def probability(self, d: Sequence[float], fraction: float | None = None) -> tuple[float, ...]:
        """Return, for each d, how probable it is that its expected score reaches the threshold; 0.5 without a fit."""
        if self.draws is None:
            return (0.5,) * len(d)
        fraction = self.fraction if fraction is None else fraction
        crossing, weight = self._crossing(fraction, False), self.draws.weight
        return tuple(float(weight[crossing <= math.log(each)].sum()) for each in d)

    def band(self, d: Sequence[float], level: float = LEVEL) -> tuple[tuple[float, float, float], ...]:
        """Return lower end, median and upper end of the expected score at the best eta, for each d."""
        if self.draws is None:
            return ()
        import numpy as np

        levels = self.draws.level(np.log(np.asarray(d, dtype=float)))
        tail = (1.0 - level) / 2
        return tuple(
            tuple(self.chance + self.unit * _quantile(column, self.draws.weight, p) for p in (tail, 0.5, 1 - tail))  # type: ignore[misc]
            for column in levels.T
        )

    def _bar(self, fraction: float, chance_corrected: bool) -> "np.ndarray":
        """Return the gain to reach on this evaluation set, per draw."""
        assert self.draws is not None
        bar = fraction * self.draws.full()
        return bar if chance_corrected else bar - (1.0 - fraction) * self.chance / self.unit

    def _crossing(self, fraction: float, chance_corrected: bool) -> "np.ndarray":
        """Return log d where the expected score on all examples reaches the threshold, per draw.

        The curves are those on this evaluation set; how far another one would move curve and threshold apart is drawn.
        """
        from distsub.search.posterior import standard_normal

        assert self.draws is not None
        assert self.shared is not None
        bar = self._bar(fraction, chance_corrected)
        error = self.shared.error(float(self.draws.weight @ bar), fraction, (1.0 - fraction) * chance_corrected)
        return self.draws.crossing(bar + error * standard_normal(len(bar)))

    def _range_warnings(self, is_above: bool, is_below: bool, threshold: float) -> tuple[str, ...]:
        smallest, largest = self.range
        found = []
        if threshold <= self.chance:
            found.append(
                f"the threshold {threshold:.3f} is not above chance {self.chance:.3f}, so any d reaches it: "
                "read the chance-corrected d, or raise fraction"
            )
        elif is_below:
            found.append(
                f"the range cannot contain the threshold: already d = {smallest} is above it; lower its low end"
            )
        if is_above:
            found.append(f"the range cannot contain the threshold: d = {largest} is below it; raise its high end")
        return tuple(found)


def estimate(
    searches: Sequence[Search],
    observations: Iterable[Observation],
    fraction: float | None = None,
    chance_corrected: bool = False,
) -> Estimate:
    """Estimate d_at(fraction) of one model, task and method from all its rows.

    Args:
        searches: The searches that differ in seeds only (or in dims and etas: their union counts).
        observations: Rows, any others' among them, in any order; further seeds of the same trainings count.
        fraction: Share of the baseline's score; None takes the searches' own.
        chance_corrected: Whether the share is of the gain over chance.

    Raises:
        ConfigError: The searches are of different models, tasks, methods or budgets, or there is none.
    """
    return fit(searches, observations).d_at(fraction, chance_corrected)


def fit(searches: Sequence[Search], observations: Iterable[Observation], noise: "Noise | None" = None) -> Fit:
    """Fit all curves that the rows of one model, task and method allow.

    Args:
        searches: As for `estimate`.
        observations: As for `estimate`. Rows without stored answers have the binomial error of `eval_examples`.
        noise: What is believed before any row; None takes what was measured on real tasks.

    Raises:
        ConfigError: As for `estimate`.
    """
    from distsub.search.posterior import Noise, draw
    from distsub.search.rows import gather, reference_first

    noise = noise or Noise()
    rows = gather(searches, observations)
    empty = Fit(
        range=(min(search.dims[0] for search in searches), max(search.dims[-1] for search in searches)),
        chance=rows.chance,
        etas=rows.etas,
        num_seeds=rows.num_seeds,
        num_trials=len(rows.baseline) + len(rows.subspace),
        warnings=rows.warnings,
        fraction=searches[0].fraction,
    )
    if not rows.baseline:
        return replace(empty, obstacle=Outcome.baseline_missing)
    if rows.full <= rows.chance:
        return replace(empty, obstacle=Outcome.baseline_at_chance)
    if not rows.subspace:
        return replace(empty, obstacle=Outcome.undecided)
    shared = rows.shared(noise)
    scores = rows.scores(empty.range, empty.fraction, shared, noise)
    return replace(
        empty,
        unit=rows.full - rows.chance,
        etas=reference_first(rows.subspace, rows.etas),
        rates=reference_first(rows.baseline, rows.rates),
        draws=draw(scores, noise),
        shared=shared,
    )


def _short(d: float) -> str:
    return f"{d:.3g}" if d < 1000 else f"{d:.0f}"


def _quantile(values: "np.ndarray", weight: "np.ndarray", p: float) -> float:
    """Return the weighted quantile, infinite values allowed."""
    import numpy as np

    order = np.argsort(values)
    at = int(np.searchsorted(np.cumsum(weight[order]), p))
    return float(values[order][min(at, len(values) - 1)])
