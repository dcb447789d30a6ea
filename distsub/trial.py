"""The two records that every room speaks of: a trial (what to train) and its observation (what came out).

A trial is everything that decides an outcome and nothing else; its hash is its identity. Two sweeps that
ask for the same trial name the same row, which is what makes resuming and sharing baselines free. Weights and rows
count by what they are: where they lie is written beside a result and is no part of its identity.
"""

import hashlib
import json
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

from distsub.identity import IDENTITY_VERSION, ByContent, canonical, later

_ZHANG2023 = ("trained", "trained", 16, "random", 0.01)
"""Head, embeddings, ensemble, start and step as the paper trains."""

DEFAULT_PROJECTION = "partition"
"""The cheapest family of P, and exactly isometric; the families give the same d90 within its interval (docs/d90.md)."""

Ablation = Literal["zero", "hold", "reset"]
Empty = Literal["refuse", "drop", "keep"]
Head = Literal["in_subspace", "trained", "frozen"]
HeadFrom = Literal["seed", "checkpoint"]
Status = Literal["finished", "diverged", "error"]


@dataclass(frozen=True, eq=False)
class Task(ByContent):
    """A labelled dataset with its metric: where the rows are and which columns count.

    Attributes:
        name: The name that rows carry.
        source: A hub dataset id, a local directory or file, or "package:NAME/GLOB" for a file that an
            installed distribution carries.
        config: The hub configuration ("mrpc" of "nyu-mll/glue"), or None.
        revision: The hub revision, or None for the default branch.
        text: One column, or two for sentence pairs.
        label: The label column.
        num_labels: Number of classes; 1 means regression, None that they are counted in the rows.
        metric: accuracy, macro_f1, matthews, pearson or f1; the score that d90 is about.
        train: Split (hub) or file stem (directory) to train on.
        validation: Split or file stem to evaluate on.
        where: Rows to keep, as (column, value) pairs; empty keeps all.
        holdout: Rows to split off `train` for evaluation when there is no validation split, or their share of all
            rows where it is a float; else None.
        labels: The classes in their order, as the label column spells them; empty sorts them by name.
        empty: What becomes of rows whose text is empty: "refuse", "drop" (and those without a label) or "keep".
        separator: What stands between the cells of CSV or TSV, or None to find it.
        quote: "double" if cells may stand in quotation marks, "none" if those are part of the text, or None to find it.
        encoding: Of text files: a codec of Python; None for the byte order mark's, else UTF-8.
        content: Hash of the rows that the budget draws from it (`Splits.dataset_hash`); None before they are read.
    """

    ADDRESS = frozenset(
        {"source", "config", "revision", "text", "label", "train", "validation", "where", "holdout"}
        | {"labels", "empty", "separator", "quote", "encoding"}
    )

    name: str
    source: str
    text: tuple[str, ...]
    label: str = "label"
    num_labels: int | None = 2
    metric: str = "accuracy"
    config: str | None = None
    revision: str | None = None
    train: str = "train"
    validation: str | None = "validation"
    where: tuple[tuple[str, str], ...] = ()
    holdout: int | float | None = None
    labels: tuple[str, ...] = later(())
    empty: Empty = later("refuse")
    separator: str | None = later(None)
    quote: Literal["double", "none"] | None = later(None)
    encoding: str | None = later(None)
    content: str | None = later(None)


@dataclass(frozen=True)
class Method:
    """How the update of the weights is parametrised.

    Attributes:
        name: "full" (every parameter), "did" (Eq. 1 of Aghajanyan et al. 2020) or "said" (Eq. 3); "theta_0" trains
            nothing.
        projection: Family of P; None for "full", and for a subspace the default.
        normalization: "global" or "per_tensor"; None for "full".
        groups: What one SAID scale covers, "layer" or "tensor"; None unless "said".
        head: Whether the classification head moves in the subspace, is trained beside it, or is frozen.
        block_length: Fastfood block length, one for a whole search so that smaller d are nested.
        scope: "model": one theta for all parameters; "layer": one of length d for each transformer block, nothing else
            in the subspace (Zhang et al. 2023, Eq. 2).
        embeddings: Whether the base model's parameters outside its blocks (embeddings, pooler) move in the subspace,
            are trained in full beside it, or are frozen.
        ensemble: Number h of coordinate vectors whose mean is theta (Zhang et al. 2023, Eq. 4).
        start: "zero", or "random": every coordinate vector from N(0, 1/d), so of expected norm 1 per layer.
        step: Learning rate of the coordinates at eta = 1; None derives it (see finetune.step_size).
        span: What a learned subspace, or `match_norms`, is made of.
        match_norms: Scale a random P, tensor by tensor, to the norms of the span's last update.
        ablation: Of full fine-tuning with some weights disabled: "zero" (theta_0 is zero there, then fine-tuned in
            full), "hold" (zero there before and after every step) or "reset" (fine-tuned in full, then put back to
            theta_0 there).
        mask: Content hash of the positions that are disabled, masks/<mask>.safetensors in the results.
        head_from: Where the head of theta_0 comes from: its seed, or the checkpoint, which may solve the task already.
    """

    name: str
    projection: str | None = None
    normalization: str | None = None
    groups: str | None = None
    head: Head = "in_subspace"
    block_length: int | None = None
    scope: Literal["model", "layer"] = later("model")
    embeddings: Literal["in_subspace", "trained", "frozen"] = later("in_subspace")
    ensemble: int = later(1)
    start: Literal["zero", "random"] = later("zero")
    step: float | None = later(None)
    span: "Span | None" = later(None)
    match_norms: bool = later(False)
    ablation: Ablation | None = later(None)
    mask: str | None = later(None)
    head_from: HeadFrom = later("seed")

    @property
    def variant(self) -> str | None:
        """Name the way of training for people, and a head that is the checkpoint's own; None for plain methods."""
        if self.head_from == "checkpoint":
            return f"{replace(self, head_from='seed').variant or self.name}, checkpoint's head"
        return self._way

    @property
    def _way(self) -> str | None:
        """Name the way of training for people: "freeze", "random", "intrinsic zhang2023"; None for whole-model methods.

        What is usual for subspaces of the layers is not said: differences, one theta, frozen embeddings.
        """
        if self.ablation:
            return self.ablation
        if self.name == "freeze":
            name = self.name
        elif self.span is None:
            name = "random" if self.scope == "layer" else None
        else:
            name = "random_matched" if self.match_norms else self.span.name
        if name is None:
            return None
        paper = (self.head, self.embeddings, self.ensemble, self.start, self.step) == _ZHANG2023
        parts = [
            self.span.mode if self.span and self.span.mode != "difference" else "",
            "model" if self.scope == "model" and self.name != "freeze" else "",
            "zhang2023" if paper else f"h={self.ensemble}" if self.ensemble > 1 else "",
            f"embeddings {self.embeddings}" if self.embeddings == "trained" and not paper else "",
        ]
        return " ".join(filter(None, [name, *parts]))

    def on(self, task: "Task") -> "Method":
        """Return the method as it is on a task: in the subspace of that very task, "inductive" is "intrinsic"."""
        if self.span is None or self.span.sources != (Source(task),):
            return self
        return replace(self, span=replace(self.span, sources=(Source(),)))


@dataclass(frozen=True)
class Budget:
    """What one training may spend, the same for every trial of a sweep.

    Attributes:
        steps: Optimiser steps.
        batch_size: Examples per step.
        max_length: Tokens per example, longer ones are cut.
        train_examples: Training rows, a fixed draw that is the same for every seed; None takes all.
        eval_examples: Evaluation rows, a fixed draw; None takes all.
        warmup: Fraction of the steps over which the learning rate rises; it then falls linearly towards 0.
        eval_every: Steps between evaluations; None evaluates at the end only.
        weight_decay: AdamW weight decay of full fine-tuning and of a trained head, never of coordinates.
        max_grad_norm: Gradient clipping; None is off.
        precision: "fp32", "bf16" (autocast) or "auto" (bf16 where the hardware has it).
    """

    steps: int
    batch_size: int = 32
    max_length: int = 128
    train_examples: int | None = None
    eval_examples: int | None = None
    warmup: float = 0.06
    eval_every: int | None = None
    weight_decay: float = 0.0
    max_grad_norm: float | None = None
    precision: Literal["fp32", "bf16", "auto"] = "auto"


@dataclass(frozen=True)
class Seeds:
    """The three independent sources of noise, never one `seed`."""

    projection: int = 0
    head: int = 0
    data: int = 0


@dataclass(frozen=True)
class Source:
    """Whose full fine-tuning a learned subspace is made of, seen from the trial that trains in it.

    Attributes:
        task: What was fine-tuned on; None is the trial's own task.
        shift: Added to the trial's head and data seed: 0 is the same seeds, anything else another run.
    """

    task: Task | None = None
    shift: int = 0


@dataclass(frozen=True)
class Span:
    """What a learned subspace is spanned by: checkpoints of full fine-tunings (Zhang et al. 2023, Eq. 2).

    Attributes:
        sources: Which fine-tunings, in the order of their rows in W.
        learning_rate: Of the fine-tunings.
        budget: Of the fine-tunings.
        every: Steps between checkpoints; None is one at the end of every epoch.
        checkpoints: How many are recorded, from the first on; None records all.
        dtype: Precision in which their differences from theta_0 are kept.
        first: Use only the first so many of each source, in time; None uses all.
        last: Use only the last of each source (of the first, where both are given).
        mode: What the rows of W are: "difference" from theta_0, "centered" on their mean, or "raw" weights.
        leave_out: Leave the trial's own task out of the sources.
    """

    sources: tuple[Source, ...]
    learning_rate: float
    budget: Budget
    every: int | None = None
    checkpoints: int | None = None
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    first: int | None = None
    last: bool = False
    mode: Literal["difference", "centered", "raw"] = "difference"
    leave_out: bool = False

    @property
    def name(self) -> str:
        """What Zhang et al. 2023 call such a subspace, or which control it is."""
        if len(self.sources) > 1:
            return "zero_shot" if self.leave_out else "unified"
        source = next(iter(self.sources))
        part = ("last" if self.last else "") + (f"first{self.first}" if self.first else "")
        if source.task is not None:
            return f"inductive:{source.task.name}" + (f" {part}" if part else "")
        return " ".join(filter(None, ("other_seed" if source.shift else "", part))) or "intrinsic"


@dataclass(frozen=True, eq=False)
class Trial(ByContent):
    """One training, by everything that decides its outcome.

    Attributes:
        model: "package:NAME", a local directory, or a hub id.
        revision: Hub revision of the model, or None.
        weights: Hash of the model's weights, configuration and tokenizer (`Prepared.content`); None before it is read.
        task: What is trained on.
        method: How the update is parametrised.
        d: Subspace dimension; None for full fine-tuning, and for theta_0.
        learning_rate: Peak learning rate of full fine-tuning; for a subspace, the lr_full that eta scales.
        eta: Subspace step relative to full fine-tuning's first-order decrease; None for full fine-tuning.
        seeds: Projection, head and data seed.
        budget: What the training may spend.
    """

    ADDRESS = frozenset({"model", "revision"})
    CONTENT = "weights"

    model: str
    task: Task
    method: Method
    d: int | None
    learning_rate: float
    eta: float | None
    seeds: Seeds
    budget: Budget
    revision: str | None = None
    weights: str | None = later(None)

    @property
    def base(self) -> str | tuple[str, str | None]:
        """What tells the model from others: its content, or its address where that is not known."""
        return self.weights or (self.model, self.revision)

    @property
    def identity(self) -> str:
        """Canonical JSON of the record, which is what the id hashes; fields added later are left out at defaults."""
        return json.dumps({"version": IDENTITY_VERSION, **canonical(self)}, sort_keys=True)

    @cached_property
    def id(self) -> str:
        """Sixteen hex digits that name this trial everywhere."""
        return hashlib.sha256(self.identity.encode()).hexdigest()[:16]

    @property
    def recordings(self) -> tuple["Recording", ...]:
        """The trajectories that the method's subspace is made of, in the order of their rows; none for most methods."""
        span = self.method.span
        if span is None:
            return ()
        found = []
        for source in span.sources:
            task = self.task if source.task is None else source.task
            if span.leave_out and task == self.task:
                continue
            seeds = Seeds(0, self.seeds.head + source.shift, self.seeds.data + source.shift)
            whole = Method("full", head_from=self.method.head_from)
            full = replace(
                self,
                task=task,
                method=whole,
                d=None,
                learning_rate=span.learning_rate,
                eta=None,
                seeds=seeds,
                budget=span.budget,
            )
            found.append(Recording(full, span.every, span.checkpoints, span.dtype))
        return tuple(found)

    @property
    def is_baseline(self) -> bool:
        """Whether this is full fine-tuning, of all weights."""
        return self.is_reference and not self.is_theta_0

    @property
    def is_theta_0(self) -> bool:
        """Whether this scores the untouched model, in no step."""
        return self.method.name == "theta_0"

    @property
    def is_reference(self) -> bool:
        """Whether subspaces are held against this: full fine-tuning, or the untouched model."""
        return self.d is None and self.method.ablation is None


@dataclass(frozen=True)
class Recording:
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

    @cached_property
    def id(self) -> str:
        """Sixteen hex digits that name this trajectory everywhere."""
        record = {"version": IDENTITY_VERSION, **canonical(self)}
        return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Observation:
    """What one trial gave: its score, its per-example outcomes, its cost and its provenance.

    Attributes:
        trial: The trial.
        status: "finished"; "diverged" (loss or weights not finite: a result, it fails every threshold);
            "error" (crashed after its retries: no result).
        score: The task's metric after the last step, None unless finished.
        chance: The metric of always predicting the majority class, whatever a sweep takes as chance; 0 for
            correlations.
        metrics: Every metric of the task by name, the score's included.
        curve: (step, score) at each evaluation.
        predicted: Predicted class or value per evaluated example, in the evaluation set's order.
        target: True class or value per evaluated example.
        labels: What the classes are called, in their order; empty where they are called 0, 1, 2 or there are none.
        num_examples: Examples evaluated; 0 where nobody counted them.
        steps: Optimiser steps taken.
        num_tokens: Training tokens seen, padding excluded.
        wall_s: Seconds in training and evaluation together.
        eval_s: Seconds of those in evaluation.
        peak_bytes: Peak resident set size (CPU) or allocated memory (GPU) during the trial.
        num_params: D, the parameters that the subspace spans (all for full fine-tuning).
        num_trained: Numbers trained in the subspace, scales included; num_params for full fine-tuning.
        num_trained_head: Numbers trained beside it in the head.
        num_scales: SAID scales among num_trained.
        step_size: Peak learning rate applied to the coordinates (or weights).
        error: One line, for "error" and "diverged".
        provenance: Package versions, weights hash, dataset hash, device, precision, threads, start time.
    """

    trial: Trial
    status: Status
    score: float | None = None
    chance: float | None = None
    metrics: tuple[tuple[str, float], ...] = ()
    curve: tuple[tuple[int, float], ...] = ()
    predicted: tuple[float, ...] = ()
    target: tuple[float, ...] = ()
    labels: tuple[str, ...] = ()
    num_examples: int = 0
    steps: int = 0
    num_tokens: int = 0
    wall_s: float = 0.0
    eval_s: float = 0.0
    peak_bytes: int = 0
    num_params: int = 0
    num_trained: int = 0
    num_trained_head: int = 0
    num_scales: int = 0
    step_size: float = 0.0
    error: str | None = None
    provenance: tuple[tuple[str, str], ...] = ()


def theta_0_trial(trial: Trial) -> Trial:
    """Return the trial that scores the untouched model of another one, with the head of that one's head seed.

    What decides no score without a step is the same for all of them: so one serves every budget that differs in it. A
    head that is the checkpoint's own follows from no seed.
    """
    whole, budget = Method("theta_0", head_from=trial.method.head_from), trial.budget
    return replace(
        trial,
        method=whole,
        d=None,
        eta=None,
        learning_rate=1.0,
        seeds=Seeds(head=trial.seeds.head if trial.method.head_from == "seed" else 0),
        budget=Budget(
            steps=0,
            max_length=budget.max_length,
            train_examples=budget.train_examples,
            eval_examples=budget.eval_examples,
            precision=budget.precision,
        ),
    )
