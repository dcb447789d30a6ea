"""What decides a training, from the widest to the narrowest: a condition, a setup, a trial.

A condition with seeds is a setup, a setup with d and eta a trial: everything that decides an outcome and nothing else.
Two sweeps that ask for the same trial name the same row, which is what makes resuming and sharing baselines free.
"""

import dataclasses
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, Self

from distsub.records.identity import Record, digest
from distsub.records.method import Ablation, Full, Imported, Method, Span, Subspace, Theta0
from distsub.records.task import Budget, Model, Seeds, Task


@dataclass(frozen=True, eq=False)
class Condition(Record):
    """A setup without its seeds: what one d90 is measured of.

    Attributes:
        model: The pretrained model.
        task: What it is trained on.
        method: How the update is parametrised.
        learning_rate: Peak learning rate of full fine-tuning; for a subspace, the lr_full that eta scales.
        budget: What a training may spend.
    """

    model: Model
    task: Task
    method: Method
    learning_rate: float
    budget: Budget


@dataclass(frozen=True, eq=False)
class Setup(Condition):
    """Everything that decides a training but d and eta: a condition with its seeds."""

    seeds: Seeds = Seeds()  # noqa: RUF009 (it is frozen)

    @cached_property
    def condition(self) -> Condition:
        """The setup without its seeds."""
        return Condition(self.model, self.task, self.method, self.learning_rate, self.budget)

    @property
    def is_baseline(self) -> bool:
        """Whether this is full fine-tuning, of all weights."""
        return isinstance(self.method, Full) and self.method.ablation is None

    @cached_property
    def id_at_any_rate(self) -> str:
        """What setups have in common that differ in their learning rate only."""
        return replace(self, learning_rate=1.0).id


class InSetup(Record):
    """A record with a setup, whose parts it has as its own."""

    setup: Setup

    @property
    def condition(self) -> Condition:
        """The setup without its seeds."""
        return self.setup.condition

    @property
    def model(self) -> Model:
        """The pretrained model."""
        return self.setup.model

    @property
    def task(self) -> Task:
        """What is trained on."""
        return self.setup.task

    @property
    def method(self) -> Method:
        """How the update is parametrised."""
        return self.setup.method

    @property
    def learning_rate(self) -> float:
        """Peak learning rate of full fine-tuning; for a subspace, the lr_full that eta scales."""
        return self.setup.learning_rate

    @property
    def budget(self) -> Budget:
        """What a training may spend."""
        return self.setup.budget

    @property
    def seeds(self) -> Seeds:
        """Projection, head and data seed."""
        return self.setup.seeds

    @property
    def span(self) -> Span | None:
        """The trajectory that the subspace is made of, or scaled to; None for most methods."""
        return self.method.span if isinstance(self.method, Subspace) else None

    @property
    def ablation(self) -> Ablation | None:
        """What is done to some weights of a full fine-tuning."""
        return self.method.ablation if isinstance(self.method, Full) else None

    def vary(self, **changes: Any) -> Self:
        """Return a copy with other values, of its own fields or of its setup's."""
        own = {field.name for field in dataclasses.fields(self)}  # type: ignore[arg-type]
        inner = {name: changes.pop(name) for name in list(changes) if name not in own}
        if inner:
            changes["setup"] = replace(changes.get("setup", self.setup), **inner)
        return replace(self, **changes)  # type: ignore[type-var]


@dataclass(frozen=True, eq=False)
class Trial(InSetup):
    """One training, by everything that decides its outcome.

    Attributes:
        setup: All but the two numbers that a search varies.
        d: Subspace dimension; None for full fine-tuning and for theta_0, 0 where nothing moves in a subspace.
        eta: Subspace step relative to full fine-tuning's first-order decrease; None without a subspace.
    """

    setup: Setup
    d: int | None = None
    eta: float | None = None

    @property
    def identity(self) -> str:
        """The setup's id with d and eta, which is what the trial's id hashes."""
        return identity_of(self.setup.id, self.d, self.eta)

    @property
    def is_baseline(self) -> bool:
        """Whether this is full fine-tuning, of all weights."""
        return self.setup.is_baseline

    @property
    def is_theta_0(self) -> bool:
        """Whether this scores the untouched model, in no step."""
        return isinstance(self.method, Theta0)

    @property
    def is_reference(self) -> bool:
        """Whether subspaces are held against this: full fine-tuning, or the untouched model."""
        return self.is_baseline or self.is_theta_0

    @cached_property
    def recordings(self) -> tuple["Recording", ...]:
        """The trajectories that the method's subspace is made of, in the order of their rows; none for most methods."""
        span = self.span
        if span is None:
            return ()
        found = []
        for source in span.sources:
            if isinstance(source, Imported):
                continue
            task = self.task if source.task is None else source.task
            if span.leave_out and task == self.task:
                continue
            seeds = Seeds(0, self.seeds.head + source.shift, self.seeds.data + source.shift)
            full = Trial(Setup(self.model, task, Full(), span.learning_rate, span.budget, seeds))
            found.append(Recording(full, span.every, span.checkpoints, span.dtype))
        return tuple(found)

    @property
    def imported(self) -> tuple[Imported, ...]:
        """The checkpoints from elsewhere that the method's subspace is made of; none for most methods."""
        return self.span.imported if self.span else ()

    @property
    def trajectories(self) -> tuple[str, ...]:
        """Ids of all trajectories that the method's subspace is made of, in the order of their rows."""
        return tuple(each.id for each in (*self.imported, *self.recordings))


def theta_0_of(trial: Trial) -> Trial:
    """Return the trial that scores the untouched model of another one, with the head of that one's head seed.

    What decides no score without a step is the same for all of them: so one serves every budget that differs in it. A
    head that is the checkpoint's own follows from no seed, and a language model has none.
    """
    given = trial.budget
    has_head = trial.model.head_from == "seed" and not trial.task.is_completion
    seeds = Seeds(head=trial.seeds.head if has_head else 0)
    budget = Budget(
        steps=0,
        max_length=given.max_length,
        train_examples=given.train_examples,
        eval_examples=given.eval_examples,
        precision=given.precision,
    )
    return Trial(Setup(trial.model, trial.task, Theta0(), 1.0, budget, seeds))


def identity_of(setup_id: str, d: int | None, eta: float | None) -> str:
    """Write what a trial's id hashes."""
    return f"{setup_id} d={d} eta={eta if eta is None else float(eta)}"


def id_of(setup_id: str, d: int | None, eta: float | None) -> str:
    """Return a trial's id."""
    return digest(identity_of(setup_id, d, eta))


@dataclass(frozen=True, eq=False)
class Recording(Record):
    """A full fine-tuning that leaves its checkpoints, by everything that decides them: a trajectory's identity.

    Attributes:
        trial: The full fine-tuning.
        every: Steps between checkpoints; None is one at the end of every epoch.
        checkpoints: How many are kept, from the first on; None keeps all.
        dtype: Precision in which their differences from theta_0 are kept.
    """

    trial: Trial
    every: int | None = None
    checkpoints: int | None = None
    dtype: Literal["bfloat16", "float32"] = "bfloat16"

    @property
    def how(self) -> dict[str, Any]:
        """All but the trial, as plain values."""
        return {"every": self.every, "checkpoints": self.checkpoints, "dtype": self.dtype}
