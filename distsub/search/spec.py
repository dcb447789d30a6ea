"""The record of one search: the first passing d of one model on one task by one method under one triple of seeds."""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from distsub.errors import ConfigError
from distsub.identity import ByContent, canonical, later
from distsub.trial import Budget, Method, Seeds, Task, Trial

Lineage = tuple[str | tuple[str, str | None], Task, Method, float, Seeds, Budget]


def lineage(trial: Trial) -> Lineage:
    """Return everything of a trial but d and eta: what all subspace trials of one search have in common."""
    return (trial.base, trial.task, trial.method, trial.learning_rate, trial.seeds, trial.budget)


@dataclass(frozen=True, eq=False)
class Search(ByContent):
    """One first passing d to be found, by everything that decides it.

    Attributes:
        task: What is trained on.
        model: "package:NAME", a local directory, or a hub id.
        method: How the update is parametrised; never "full".
        seeds: Projection, head and data seed of every subspace trial.
        budget: What each training may spend.
        dims: The dimensions that may be tried, strictly increasing.
        etas: The learning-rate grid, relative to full fine-tuning's first-order decrease.
        learning_rate: lr_full, the rate of full fine-tuning that eta scales.
        baseline: The full fine-tunings that set the threshold, every learning rate times every seed.
        fraction: Share of the baseline's score to reach; 0.9 makes it d90.
        revision: Hub revision of the model, or None.
        weights: Hash of the model, as in `Trial`.
        tries: Etas that a d is given before it has failed, the same number at every d; None is all of them.

    Raises:
        ConfigError: The record describes no search.
    """

    ADDRESS = frozenset(("model", "revision"))
    CONTENT = "weights"

    task: Task
    model: str
    method: Method
    seeds: Seeds
    budget: Budget
    dims: tuple[int, ...]
    etas: tuple[float, ...]
    learning_rate: float
    baseline: tuple[Trial, ...]
    fraction: float = 0.9
    revision: str | None = None
    tries: int | None = later(None)
    weights: str | None = later(None)

    def __post_init__(self) -> None:
        """Refuse what would search in silence for nothing."""
        if not self.dims or self.dims[0] < 1 or any(a >= b for a, b in pairwise(self.dims)):
            raise ConfigError(f"dims = {_short(self.dims)}: give at least one d >= 1, in increasing order")
        if not self.etas or not min(self.etas) > 0 or len(set(self.etas)) < len(self.etas):
            raise ConfigError(f"etas = {_short(self.etas)}: give at least one, each above 0, none twice")
        if self.tries is not None and not 1 <= self.tries <= len(self.etas):
            raise ConfigError(f"tries = {self.tries}: give a number from 1 to {len(self.etas)}, the number of etas")
        if not 0 < self.fraction <= 1:
            raise ConfigError(f"fraction = {self.fraction!r}: give a share of the baseline's score in (0, 1], as 0.9")
        if self.method.name == "full":
            raise ConfigError("method = 'full' has no d to search for: it is the baseline; give a subspace method")
        if not self.baseline:
            raise ConfigError("a search without baseline has no threshold: give at least one full fine-tuning")
        if len(self.baseline_ids) < len(self.baseline):
            raise ConfigError("a baseline trial is given twice: give each full fine-tuning once")
        for trial in self.baseline:
            given = (trial.base, trial.task, trial.method.head_from)
            if not trial.is_baseline or given != (self.base, self.task, self.method.head_from):
                raise ConfigError(
                    f"baseline trial {trial.id} ({trial.method.name}, {trial.task.name}, {trial.model}) is no full"
                    f" fine-tuning of {self.model} on {self.task.name}: give d = None, the same model and task"
                )

    @cached_property
    def id(self) -> str:
        """Sixteen hex digits that name this search."""
        return hashlib.sha256(json.dumps(canonical(self), sort_keys=True).encode()).hexdigest()[:16]

    @property
    def name(self) -> str:
        """A key for people, such as mrpc/all-MiniLM-L6-v2/said/s0; searches that differ in more share it."""
        model = self.model.removeprefix("package:").rstrip("/").rsplit("/", 1)[-1]
        seeds = dict.fromkeys((self.seeds.projection, self.seeds.head, self.seeds.data))
        if len(seeds) > 1:
            label = f"s{self.seeds.projection}.{self.seeds.head}.{self.seeds.data}"
        else:
            label = f"s{self.seeds.projection}"
        return f"{self.task.name}/{model}/{self.method.variant or self.method.name}/{label}"

    @property
    def base(self) -> str | tuple[str, str | None]:
        """What tells the model from others, as in `Trial`."""
        return self.weights or (self.model, self.revision)

    @property
    def num_tries(self) -> int:
        """Etas that a d is given before it has failed."""
        return self.tries or len(self.etas)

    @cached_property
    def lineage(self) -> Lineage:
        """What a subspace trial must share to belong to this search."""
        return (self.base, self.task, self.method, self.learning_rate, self.seeds, self.budget)

    def trials_at(self, d: int) -> tuple[Trial, ...]:
        """Return the trials that may decide one d: one per eta, in the order of etas.

        Raises:
            ConfigError: d is not one of dims.
        """
        if d not in self.positions:
            raise ConfigError(f"d = {d} is not on this search's grid of {len(self.dims)}: {_short(self.dims)}")
        if d not in self._made:
            _, task, method, rate, seeds, budget = self.lineage
            self._made[d] = tuple(
                Trial(self.model, task, method, d, rate, eta, seeds, budget, self.revision, self.weights)
                for eta in self.etas
            )
        return self._made[d]

    def owns(self, trial: Trial) -> bool:
        """Return whether this search asks for the trial, as baseline or at one of its d."""
        if trial.is_baseline:
            return trial.id in self.baseline_ids
        return trial.d in self.positions and trial.eta in self.etas and lineage(trial) == self.lineage

    @cached_property
    def baseline_ids(self) -> frozenset[str]:
        """The ids of the baseline's trials."""
        return frozenset(trial.id for trial in self.baseline)

    @cached_property
    def positions(self) -> dict[int, int]:
        """Where each d stands in dims."""
        return {d: position for position, d in enumerate(self.dims)}

    # A trial's id costs tens of microseconds; one set of trial objects per d, made when first asked for, pays it once.
    @cached_property
    def _made(self) -> dict[int, tuple[Trial, ...]]:
        return {}


def _short(values: tuple[float, ...]) -> str:
    """Return a tuple as text, its middle left out when long."""
    if len(values) <= 6:
        return str(list(values))
    return f"[{', '.join(map(str, values[:3]))}, ..., {values[-1]}]"
