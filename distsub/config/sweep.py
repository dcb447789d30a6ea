"""The record of a checked sweep: what a person asks for, and the searches, baselines and recordings that follow."""

import dataclasses
import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from distsub.config.keys import StepSizes, method_keys, plain, task_keys, trajectory_keys
from distsub.config.messages import distinct
from distsub.records import (
    IDENTITY_VERSION,
    Budget,
    Freeze,
    Full,
    Imported,
    Learned,
    Method,
    Model,
    Recording,
    Searched,
    Seeds,
    Setup,
    Source,
    Span,
    Subspace,
    Task,
    Trial,
    canonical,
    digest,
    on,
    theta_0_of,
)
from distsub.records.places import Counts, ModelPlace, Places
from distsub.search import Limit, Range, Rule, Search
from distsub.search.rule import D90_RULE

Policy = Literal["bisection", "grid"]


@dataclass(frozen=True)
class Resources:
    """What a trial may occupy. Decides how long a sweep takes, never what comes out.

    Attributes:
        cpus_per_trial: CPU cores of one trial, a fraction to share one.
        gpus_per_trial: GPUs of one trial, a fraction to share one.
        max_concurrent_trials: Trials in flight; None fills the machine or cluster.
        retries: Further attempts after a crash before a trial is recorded as an error.
        baseline: (CPU cores, GPUs) of a full fine-tuning, which holds four times the weights; None gives it those of
            any other trial.
    """

    cpus_per_trial: float = 1.0
    gpus_per_trial: float = 0.0
    max_concurrent_trials: int | None = None
    retries: int = 2
    baseline: tuple[float, float] | None = None

    def of(self, trial: Trial) -> "Resources":
        """Give what one trial may occupy."""
        return self.each()[isinstance(trial.method, Full)]

    def each(self) -> tuple["Resources", "Resources"]:
        """Give what a trial in a subspace may occupy, and what a full fine-tuning."""
        if self.baseline is None:
            return self, self
        cpus, gpus = self.baseline
        return self, dataclasses.replace(self, cpus_per_trial=cpus, gpus_per_trial=gpus)


@dataclass(frozen=True)
class Sweep:
    """A checked sweep file: every model x task x subspace x seeds is one search, every control one trial.

    Attributes:
        name: A label for people.
        models: Pretrained models.
        tasks: Datasets.
        methods: Parametrisations of the update, never full fine-tuning.
        seeds: Seed triples, one search each.
        dims: The grid of d, rising.
        etas: Subspace step sizes tried at each d.
        learning_rate: The full fine-tuning learning rate that eta scales.
        baseline_learning_rates: Learning rates of full fine-tuning; none where the rule is a value.
        budget: What each training may spend.
        policy: How the grid is searched.
        rule: What has to be reached.
        resources: What a trial may occupy.
        text: The file as it was read.
        limit: What the whole sweep may spend; None is no limit.
        tries: How many etas a d is given, as in `Search`.
        grids: The methods' own (dims, etas), None where the sweep's count; empty for none at all.
        trajectory: The full fine-tunings whose checkpoints are recorded for every task, model and seeds, where the
            file asks for them; those that methods need are recorded anyway.
        counts: The d that methods of PEFT offer on the models, once they are counted.
    """

    name: str
    models: tuple[Model, ...]
    tasks: tuple[Task, ...]
    methods: tuple[Method, ...]
    seeds: tuple[Seeds, ...]
    dims: tuple[int, ...]
    etas: StepSizes
    learning_rate: float
    baseline_learning_rates: StepSizes
    budget: Budget
    policy: Policy = "bisection"
    rule: Rule = D90_RULE
    resources: Resources = Resources()
    text: str = ""
    limit: Limit | None = None
    tries: int | None = None
    grids: tuple[tuple[tuple[int, ...] | None, StepSizes | None], ...] = ()
    trajectory: Span | None = None
    counts: tuple[Counts, ...] = ()

    @cached_property
    def fingerprint(self) -> str:
        """Sixteen hex digits over everything that decides the results: not the name, limit, resources or comments."""
        record = canonical(self)
        for key in ("name", "text", "resources", "limit", *(() if self.counts else ("counts",))):
            del record[key]
        return digest(json.dumps({"version": IDENTITY_VERSION, **record}, sort_keys=True))

    @cached_property
    def places(self) -> Places:
        """Where the models and tasks lie whose content is known."""
        models = (
            ModelPlace(each.name, each.revision, each.content, each.dtype) for each in self.models if each.content
        )
        imported = tuple(each for each in self.imported if each.content)
        return Places(tuple(models), tuple(task for task in self.tasks if task.content), imported, self.counts)

    @property
    def imported(self) -> tuple[Imported, ...]:
        """The imported trajectories that the methods name, each once."""
        spans = [each.span for each in self.methods if isinstance(each, Subspace)]
        return tuple(dict.fromkeys(each for span in spans if span for each in span.imported))

    @property
    def record(self) -> dict[str, Any]:
        """Everything that decides the results, as plain values under the sweep file's own keys, defaults included."""
        spans = [self.trajectory, *(each.span for each in self.methods if isinstance(each, Subspace))]
        arms = zip(self.methods, self._grids, strict=True)
        found = {
            "models": [dataclasses.asdict(model) for model in self.models],
            "tasks": [task_keys(task) for task in self.tasks],
            "methods": [method_keys(method) | {"dims": dims, "etas": plain(etas)} for method, (dims, etas) in arms],
            "seeds": [dataclasses.asdict(seeds) for seeds in self.seeds],
            "dims": self.dims,
            "policy": self.policy,
            "threshold": dataclasses.asdict(self.rule),
            "search": {"etas": plain(self.etas), "learning_rate": self.learning_rate, "tries": self.tries},
            "baseline": {"learning_rates": plain(self.baseline_learning_rates)},
            "budget": dataclasses.asdict(self.budget),
            "trajectory": next(
                (trajectory_keys(span, self.trajectory) for span in spans if span and not span.imported), None
            ),
        }
        return json.loads(json.dumps(found))

    def known(self, places: Places) -> "Sweep":
        """Return the sweep with the contents of its models and tasks, which then identify them.

        Args:
            places: What lies at the addresses of its models and imported trajectories, and under the names of its
                tasks.

        Raises:
            ConfigError: Two models are the same.
        """
        named = {task.name: task for task in places.tasks}
        imported = {each.path: each for each in places.imported}

        def task_of(task: Task) -> Task:
            found = named.get(task.name, task)
            return dataclasses.replace(task, content=found.content, num_labels=found.num_labels)

        def source_of(each: Source | Imported) -> Source | Imported:
            if isinstance(each, Imported):
                return imported.get(each.path, each)
            return dataclasses.replace(each, task=each.task and task_of(each.task))

        def span_of(span: Span) -> Span:
            return dataclasses.replace(span, sources=tuple(map(source_of, span.sources)))

        def method_of(method: Method) -> Method:
            span = method.span if isinstance(method, Subspace) else None
            return method.spanned_by(span_of(span)) if isinstance(method, Subspace) and span else method

        return dataclasses.replace(
            self,
            models=distinct((places.identify(each, self.models) for each in self.models), "models"),
            tasks=tuple(map(task_of, self.tasks)),
            methods=tuple(map(method_of, self.methods)),
            trajectory=self.trajectory and span_of(self.trajectory),
            counts=places.counts,
        )

    def searches(self) -> tuple[Search, ...]:
        """List the searches: every task x model x method that fits it x seeds, in that order, each once."""
        return self._searches

    @cached_property
    def _searches(self) -> tuple[Search, ...]:
        found = (
            Search(
                setup=Setup(model, task, on(method, task), self.learning_rate, self.budget, seeds),
                dims=counted,
                etas=(etas.middle,) if isinstance(etas, Range) else etas,
                baseline=baseline,
                rule=self.rule.of(task),
                theta_0=theta_0,
                tries=self.tries if self.tries and not isinstance(etas, Range) and self.tries < len(etas) else None,
                rate_range=rates if isinstance(rates, Range) else None,
                eta_range=etas if isinstance(etas, Range) else None,
                first_seeds=self.seeds[0] if isinstance(etas, Range) else None,
            )
            for task in self.tasks
            for model in self.models
            for rates, baseline in [(self.baseline_learning_rates, self.baseline_trials(model, task))]
            for theta_0 in [self.theta_0_trials(model, task)]
            for method, (dims, etas) in self.arms()
            if isinstance(method, Searched)
            for counted in [self.dims_of(model, task, method, dims)]
            if counted
            for seeds in self.seeds
        )
        return tuple(dict.fromkeys(found))

    def controls(self) -> tuple[Trial, ...]:
        """List the trials beside the searches: every task x model x control x seeds, without a projection."""
        found = (
            Trial(Setup(model, task, method, self.learning_rate, self.budget, seeds), 0)
            for task in self.tasks
            for model in self.models
            for method in self.methods
            if isinstance(method, Freeze)
            for seeds in self._without_projection
        )
        return tuple(dict.fromkeys(found))

    @property
    def _without_projection(self) -> list[Seeds]:
        return list(dict.fromkeys(dataclasses.replace(seeds, projection=0) for seeds in self.seeds))

    def arms(self) -> list[tuple[Method, tuple[tuple[int, ...], StepSizes]]]:
        """List the methods, each with the dims and etas that count for it."""
        return [
            (method, (dims or self.dims, etas or self.etas))
            for method, (dims, etas) in zip(self.methods, self._grids, strict=True)
        ]

    @property
    def _grids(self) -> tuple[tuple[tuple[int, ...] | None, StepSizes | None], ...]:
        return self.grids or ((None, None),) * len(self.methods)

    def dims_of(self, model: Model, task: Task, method: Method, dims: tuple[int, ...]) -> tuple[int, ...]:
        """Give the grid of a method on a model and task: of a method of PEFT what is nearest to it, once counted.

        It is empty where the method does not fit the model.
        """
        wanted = (model.content, task.num_labels or 0, method, dims)
        return next((each.dims for each in self.counts if each[:4] == wanted), dims)

    def recordings(self) -> tuple[Recording, ...]:
        """List the trajectories that the methods need and those that [trajectory] asks for, each once."""
        found: dict[Recording, None] = {}
        for search in self.searches():
            trial = search.trials_at(search.dims[0])[0]
            if self.trajectory is not None:
                own = trial.vary(method=Subspace(Learned(self.trajectory)))
                found.update(dict.fromkeys(own.recordings))
            found.update(dict.fromkeys(trial.recordings))
        return tuple(found)

    def baseline_trials(self, model: Model, task: Task) -> tuple[Trial, ...]:
        """List the full fine-tunings that set the threshold of every search on a model and task.

        Every learning rate under every head and data seed; of a range its middle, which stands for those to come. There
        is no projection: its seed is 0.
        """
        rates = self.baseline_learning_rates
        return tuple(
            Trial(Setup(model, task, Full(), rate, self.budget, seeds))
            for seeds in self._without_projection
            for rate in ((rates.middle,) if isinstance(rates, Range) else rates)
        )

    def theta_0_trials(self, model: Model, task: Task) -> tuple[Trial, ...]:
        """List the trials that score the untouched model, one per head; none where chance is the majority class."""
        if self.rule.of(task).chance != "theta_0":
            return ()
        found = (Trial(Setup(model, task, Full(), 1.0, self.budget, each)) for each in self.seeds)
        return tuple(dict.fromkeys(map(theta_0_of, found)))
