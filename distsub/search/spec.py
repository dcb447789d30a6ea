"""The record of one search: the first passing d of one model on one task by one method under one triple of seeds."""

import json
import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

from distsub.errors import ConfigError
from distsub.records import IDENTITY_VERSION, InSetup, Searched, Seeds, Setup, Trial, canonical, label
from distsub.search.ranges import KEPT, Course, Range
from distsub.search.rule import D90_RULE, Rule, check_score


def key(setup: Setup) -> str:
    """Return what tells who may ask for a trial: its setup's id, of full fine-tuning whatever the learning rate."""
    return setup.id_at_any_rate if setup.is_baseline else setup.id


def by_key(searches: "Sequence[Search]") -> dict[str, list[int]]:
    """Return the positions of the searches that may ask for a trial, by its key."""
    found: dict[str, list[int]] = {}
    for index, search in enumerate(searches):
        for each in search.keys:
            found.setdefault(each, []).append(index)
    return found


PUBLISHED_RATIO = 10 ** (4 / 63)
"""Step of Aghajanyan et al. 2020: 64 dimensions from 100 to 1,000,000; their d90 are resolved to this factor."""

MAX_POINTS = 10_000
"""More dimensions than anybody means; a ratio of 1.0000001 is a slip of the pen."""


def log_grid(low: int, high: int, ratio: float = PUBLISHED_RATIO) -> tuple[int, ...]:
    """Return the distinct whole numbers int(low * ratio**k), k = 0, 1, ..., up to high.

    `log_grid(100, 1_000_000)` is the published grid, int(logspace(2, 6, 64)). The last value is high itself
    only where high lies on the grid.

    Args:
        low: Smallest dimension, at least 1.
        high: Largest dimension allowed.
        ratio: Factor between neighbours before rounding down, above 1.

    Raises:
        ConfigError: low, high or ratio describe no grid.
    """
    for name, value in (("low", low), ("high", high)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigError(f"grid {name} = {value!r}: give a whole number of dimensions, at least 1")
    if high < low:
        raise ConfigError(f"grid from low = {low} to high = {high} is empty: make high at least low")
    if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 1 < ratio < math.inf:
        raise ConfigError(f"grid ratio = {ratio!r}: give a factor above 1, such as 1.157 (the published grid)")
    # Powers of a rounded ratio fall short of whole numbers by some 1e-15, and int() would then lose a whole step:
    # 100 * ratio**63 is 999999.9999999981. A relative 1e-12 mends that and moves no other value.
    span = math.log(high / low) / math.log(ratio)
    if span > MAX_POINTS:
        raise ConfigError(
            f"grid from {low} to {high} by ratio {ratio} has {span:.0f} points, at most {MAX_POINTS}: raise the ratio"
        )
    values = (int(low * ratio**k * (1 + 1e-12)) for k in range(math.floor(span + 1e-9) + 1))
    return tuple(dict.fromkeys(min(value, high) for value in values))


@dataclass(frozen=True, eq=False)
class Search(InSetup):
    """One first passing d to be found, by everything that decides it.

    Attributes:
        setup: What all its subspace trials share; its learning rate is lr_full, which eta scales.
        dims: The dimensions that may be tried, strictly increasing.
        etas: The learning-rate grid, relative to full fine-tuning's first-order decrease.
        baseline: The full fine-tunings that set the threshold, every learning rate times every seed; none where the
            rule is a value.
        rule: What has to be reached.
        theta_0: The trials that score the untouched model, one per head seed, where the rule takes it as chance.
        tries: Etas that a d is given before it has failed, the same number at every d; None is all of them.
        rate_range: Where the learning rates of the baseline are looked for; `baseline` then has one full fine-tuning
            for every seed, the seeds of the tries first, and its learning rate stands for those to come.
        eta_range: Where the etas are looked for; `etas` then stands for those to come.
        first_seeds: The seeds of the etas' tries.

    Raises:
        ConfigError: The record describes no search.
    """

    setup: Setup
    dims: tuple[int, ...]
    etas: tuple[float, ...]
    baseline: tuple[Trial, ...]
    rule: Rule = D90_RULE
    tries: int | None = None
    rate_range: Range | None = None
    eta_range: Range | None = None
    first_seeds: Seeds | None = None
    theta_0: tuple[Trial, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what would search in silence for nothing."""
        if not self.dims or self.dims[0] < 1 or any(a >= b for a, b in pairwise(self.dims)):
            raise ConfigError(f"dims = {_short(self.dims)}: give at least one d >= 1, in increasing order")
        if not self.etas or not min(self.etas) > 0 or len(set(self.etas)) < len(self.etas):
            raise ConfigError(f"etas = {_short(self.etas)}: give at least one, each above 0, none twice")
        if self.tries is not None and not 1 <= self.tries <= len(self.etas):
            raise ConfigError(f"tries = {self.tries}: give a number from 1 to {len(self.etas)}, the number of etas")
        if not isinstance(self.setup.method, Searched):
            raise ConfigError(f"method {label(self.setup.method)!r} has no d to search for: give a subspace")
        self._check_references()

    def _check_references(self) -> None:
        """Refuse references that are none of this search's, or too many or too few."""
        if self.rule.value is not None:
            check_score(self.rule.value, self.task.metric, "value")
        if not self.baseline and self.rule.value is None:
            raise ConfigError("a search without baseline has no threshold: give at least one full fine-tuning")
        if self.baseline and self.rule.value is not None:
            raise ConfigError(f"a search for {self.rule.text(self.task.metric)} needs no baseline: leave it out")
        if self.rule != self.rule.of(self.task):
            raise ConfigError(
                f'chance = "{self.rule.chance}" on {self.task.name}: no majority answers completions; give '
                'Rule(chance="theta_0") and the trials of the untouched model'
            )
        if bool(self.theta_0) != (self.rule.chance == "theta_0"):
            raise ConfigError("theta_0: give the trials of the untouched model where chance is that, and only there")
        if len(self.reference_ids) < len(self.references):
            raise ConfigError("a baseline trial is given twice: give each full fine-tuning once")
        for trial in self.references:
            fits = trial.is_theta_0 if trial in self.theta_0 else trial.is_baseline
            if not fits or (trial.model, trial.task) != (self.model, self.task):
                raise ConfigError(
                    f"baseline trial {trial.id} ({label(trial.method)}, {trial.task.name}, {trial.model.name}) is no "
                    f"full fine-tuning of {self.model.name} on {self.task.name}: give d = None, the same model and task"
                )

    @property
    def identity(self) -> str:
        """Canonical JSON of the search, in which its setup and baseline stand by their ids."""
        record = {"version": IDENTITY_VERSION, "setup": self.setup.id, "baseline": [each.id for each in self.baseline]}
        record |= {name: getattr(self, name) for name in ("dims", "etas", "tries")}
        record |= {name: canonical(getattr(self, name)) for name in ("rule", "rate_range", "eta_range", "first_seeds")}
        record["theta_0"] = [each.id for each in self.theta_0]
        return json.dumps(record, sort_keys=True)

    @property
    def name(self) -> str:
        """A key for people, such as mrpc/all-MiniLM-L6-v2/said/s0; searches that differ in more share it."""
        return f"{self.task.name}/{self.model.short_name}/{label(self.method)}/s{self.seeds.text}"

    @property
    def method(self) -> Searched:
        """How the update is parametrised."""
        return self.setup.method  # type: ignore[return-value]  # checked when the search is made

    @property
    def num_tries(self) -> int:
        """Etas that a d is given before it has failed."""
        return self.tries or (len(self.etas) if self.eta_range is None else KEPT)

    @property
    def num_baseline(self) -> int:
        """Full fine-tunings that set the threshold, those included that are tried and not kept."""
        if self.rate_range is None:
            return len(self.baseline)
        return self.rate_range.tries + KEPT * (len(self.baseline) - 1)

    @property
    def num_references(self) -> int:
        """What subspaces are held against: full fine-tunings, and theta_0 for every head."""
        return len(self.theta_0) + self.num_baseline

    def trials_at(self, d: int) -> tuple[Trial, ...]:
        """Return the trials that may decide one d: one per eta, in the order of etas.

        Raises:
            ConfigError: d is not one of dims.
        """
        if d not in self.positions:
            raise ConfigError(f"d = {d} is not on this search's grid of {len(self.dims)}: {_short(self.dims)}")
        if d not in self._made:
            self._made[d] = tuple(Trial(self.setup, d, eta) for eta in self.etas)
        return self._made[d]

    def owns(self, trial: Trial) -> bool:
        """Return whether this search asks for the trial, as baseline or at one of its d."""
        if trial.is_baseline:
            if self.rate_range is None:
                return trial.id in self.reference_ids
            return trial.learning_rate in self.rate_range and key(trial.setup) in self.keys
        if trial.is_theta_0:
            return trial.id in self.reference_ids
        is_ours = trial.setup.id == self.setup.id or key(trial.setup) in self.keys
        return is_ours and self.takes(trial.seeds, trial.d, trial.eta)

    def takes(self, seeds: Seeds, d: int | None, eta: float | None) -> bool:
        """Return whether this search may ask for d and eta, of a subspace trial that has one of its keys."""
        if self.eta_range is None or eta is None:
            return d in self.positions and eta in self.etas
        return eta in self.eta_range and (d in self.positions if seeds == self.seeds else d == self.try_d)

    @cached_property
    def keys(self) -> frozenset[str]:
        """The keys of the trials that it may ask for."""
        own = [key(self.setup), *(key(trial.setup) for trial in self.references)]
        return frozenset(own if self.eta_range is None else [*own, key(self.try_at(1.0).setup)])

    @property
    def try_d(self) -> int:
        """The d at which the etas of a range are tried: the middle of dims, where bisection begins."""
        return self.dims[len(self.dims) // 2]

    def try_at(self, eta: float) -> Trial:
        """Return the trial that tries an eta of the range."""
        if (None, eta) not in self._tried:
            seeds = self.first_seeds or self.seeds
            self._tried[None, eta] = Trial(replace(self.setup, seeds=seeds), self.try_d, eta)
        return self._tried[None, eta]

    def full_at(self, rate: float) -> Trial:
        """Return the full fine-tuning that tries a learning rate of the range."""
        if (rate, None) not in self._tried:
            self._tried[rate, None] = self.baseline[0].vary(learning_rate=rate)
        return self._tried[rate, None]

    def tuned(self, rates: Course | None, etas: Course | None) -> "Search":
        """Return the search as it is with lists: of what its ranges have kept, or have tried while nothing is kept."""
        if (rates, etas) not in self._tuned:
            baseline, steps = self.baseline, self.etas
            if rates is not None:
                baseline = tuple(self.full_at(rate) for rate in rates.kept or rates.values)
                others = self.baseline[1:] if rates.kept else ()
                baseline += tuple(each.vary(learning_rate=rate) for each in others for rate in rates.kept or ())
            if etas is not None:
                steps = etas.kept or tuple(sorted(etas.values))
            self._tuned[rates, etas] = replace(
                self, baseline=baseline, etas=steps, rate_range=None, eta_range=None, first_seeds=None
            )
        return self._tuned[rates, etas]

    @property
    def references(self) -> tuple[Trial, ...]:
        """What subspaces are held against, and what comes first: theta_0 and the baseline."""
        return (*self.theta_0, *self.baseline)

    @cached_property
    def reference_ids(self) -> frozenset[str]:
        """The ids of those trials."""
        return frozenset(trial.id for trial in self.references)

    @cached_property
    def positions(self) -> dict[int, int]:
        """Where each d stands in dims."""
        return {d: position for position, d in enumerate(self.dims)}

    # A trial's id costs tens of microseconds; one set of trial objects per d, made when first asked for, pays it once.
    @cached_property
    def _made(self) -> dict[int, tuple[Trial, ...]]:
        return {}

    @cached_property
    def _tried(self) -> dict[tuple[float | None, float | None], Trial]:
        return {}

    @cached_property
    def _tuned(self) -> "dict[tuple[Course | None, Course | None], Search]":
        return {}


def all_references(searches: Iterable[Search]) -> list[tuple[Trial, int]]:
    """List what searches are held against, each once: a trial that stands for others, and how many they are."""
    found: dict[Hashable, tuple[Trial, int]] = {}
    for search in searches:
        if search.rate_range is not None:
            found[search.reference_ids, search.rate_range] = search.baseline[0], search.num_baseline
        singly = search.references if search.rate_range is None else search.theta_0
        found.update({trial.id: (trial, 1) for trial in singly})
    return list(found.values())


def eta_tries(searches: Iterable[Search]) -> list[tuple[Trial, int]]:
    """List the tries of etas that are no trial of a search otherwise, as `all_references` does."""
    found: dict[str, tuple[Trial, int]] = {}
    own: set[str] = set()
    for search in searches:
        if search.eta_range is not None:
            one = search.try_at(1.0)  # any eta stands for all
            own.add(search.setup.id)
            found[one.id] = one, search.eta_range.tries
    return [(one, number - (KEPT if one.setup.id in own else 0)) for one, number in found.values()]


def _short(values: tuple[float, ...]) -> str:
    """Return a tuple as text, its middle left out when long."""
    if len(values) <= 6:
        return str(list(values))
    return f"[{', '.join(map(str, values[:3]))}, ..., {values[-1]}]"
