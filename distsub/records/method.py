"""How the update of the weights is parametrised: all of them, none beyond the head, or a subspace."""

import re
from dataclasses import dataclass, replace
from typing import Literal

from distsub.records.identity import Record
from distsub.records.task import Budget, Task

DEFAULT_FAMILY = "partition"
"""The cheapest family of P, and exactly isometric; the families give the same d90 within its interval (docs/d90.md)."""

Role = Literal["in_subspace", "trained", "frozen"]
"""What becomes of parameters outside the blocks: they move in the subspace, are trained beside it, or stay."""

MODULES = ("all", "attention", "mlp")
"""What a subspace may span by name; anything else is a pattern."""

Beside = Literal["trained", "frozen"]
Mode = Literal["difference", "centered", "raw"]
Edit = Literal["zero", "hold", "reset"]


@dataclass(frozen=True)
class Source:
    """Whose full fine-tuning a learned subspace is made of, seen from the trial that trains in it.

    Attributes:
        task: What was fine-tuned on; None is the trial's own task.
        shift: Added to the trial's head and data seed: 0 is the same seeds, anything else another run.
    """

    task: Task | None = None
    shift: int = 0


@dataclass(frozen=True, eq=False)
class Imported(Record):
    """Checkpoints from elsewhere that a learned subspace is made of (`distsub trajectory import`).

    Attributes:
        path: The folder that they were imported to.
        content: Hash of the base model and of all checkpoints; None before it is read.
        kind: Tells it from a `Source` in JSON.
    """

    ADDRESS = frozenset({"path"})

    path: str
    content: str | None = None
    kind: Literal["imported"] = "imported"

    @property
    def name(self) -> str:
        """What listings call it: by its content, wherever it lies."""
        return f"imported:{self.content[:8] if self.content else self.path}"


@dataclass(frozen=True)
class Span:
    """What a learned subspace is spanned by: checkpoints of full fine-tunings (Zhang et al. 2023, Eq. 2).

    Attributes:
        sources: Which fine-tunings, in the order of their rows in W; or checkpoints from elsewhere, of which nothing
            is recorded, so that learning rate and budget are 0 and what follows them is as it is by default.
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

    sources: tuple[Source | Imported, ...]
    learning_rate: float
    budget: Budget
    every: int | None = None
    checkpoints: int | None = None
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    first: int | None = None
    last: bool = False
    mode: Mode = "difference"
    leave_out: bool = False

    @property
    def imported(self) -> tuple[Imported, ...]:
        """Those of the sources that are checkpoints from elsewhere."""
        return tuple(each for each in self.sources if isinstance(each, Imported))

    @property
    def name(self) -> str:
        """What Zhang et al. 2023 call such a subspace, or which control it is."""
        if len(self.sources) > 1:
            return "zero_shot" if self.leave_out else "unified"
        source = next(iter(self.sources))
        part = ("last" if self.last else "") + (f"first{self.first}" if self.first else "")
        if isinstance(source, Imported):
            return f"{source.name} {part}".strip()
        if source.task is not None:
            return f"inductive:{source.task.name}" + (f" {part}" if part else "")
        return " ".join(filter(None, ("other_seed" if source.shift else "", part))) or "intrinsic"


@dataclass(frozen=True)
class Ablation:
    """What is done to some weights of a full fine-tuning.

    Attributes:
        edit: "zero" (theta_0 is zero there, then fine-tuned in full), "hold" (zero there before and after every step)
            or "reset" (fine-tuned in full, then put back to theta_0 there).
        mask: Content hash of the positions, masks/<mask>.safetensors in the results.
    """

    edit: Edit
    mask: str


@dataclass(frozen=True)
class Full:
    """Full fine-tuning: every parameter is trained, or, in an ablation, all but some weights."""

    ablation: Ablation | None = None
    kind: Literal["full"] = "full"


@dataclass(frozen=True)
class Freeze:
    """A control without coordinates: what is outside the blocks is trained, the rest stays at theta_0.

    Attributes:
        head: Policy of the classification head.
        embeddings: Policy of the other parameters outside the blocks.
        kind: Tells it from the other methods in JSON.
    """

    head: Beside = "trained"
    embeddings: Beside = "frozen"
    kind: Literal["freeze"] = "freeze"


@dataclass(frozen=True)
class Random:
    """A random projection, made from its seed alone.

    Attributes:
        family: dense, sparse, fastfood, fastfood_per_tensor or partition.
        normalization: "global" or "per_tensor".
        block_length: Fastfood block length, one for a whole search so that smaller d are nested.
        match: Trajectory to whose last update the rows are scaled, tensor by tensor; None scales nothing.
    """

    family: str = DEFAULT_FAMILY
    normalization: Literal["global", "per_tensor"] = "global"
    block_length: int | None = None
    match: Span | None = None
    kind: Literal["random"] = "random"


@dataclass(frozen=True)
class Learned:
    """A projection onto what checkpoints of full fine-tunings span (Zhang et al. 2023, Eq. 2)."""

    span: Span
    kind: Literal["learned"] = "learned"


@dataclass(frozen=True)
class Subspace:
    """A subspace of the weights: d numbers move them.

    Attributes:
        projection: What P is made of.
        scales: What one of SAID's scales covers, paid for out of d (Aghajanyan et al. 2020, Eq. 3); None has no scales
            (DID, Eq. 1).
        head: Policy of the classification head.
        embeddings: Policy of the base model's parameters outside its blocks (embeddings, pooler).
        modules: Which of the base model's parameters that the policies leave to the subspace it spans: "all",
            "attention", "mlp", or "regex:" and a pattern searched for in their names; the others stay at theta_0.
        scope: "model": one theta for all parameters; "layer": one of length d for each transformer block, nothing else
            in the subspace (Zhang et al. 2023, Eq. 2).
        ensemble: Number h of coordinate vectors whose mean is theta (Zhang et al. 2023, Eq. 4).
        start: "zero", or "random": every coordinate vector from N(0, 1/d), so of expected norm 1 per layer.
        step: Learning rate of the coordinates at eta = 1; None derives it (see finetune.step_size).
        kind: Tells it from the other methods in JSON.
    """

    projection: Random | Learned = Random()
    scales: Literal["layer", "tensor"] | None = None
    head: Role = "in_subspace"
    embeddings: Role = "in_subspace"
    modules: str = "all"
    scope: Literal["model", "layer"] = "model"
    ensemble: int = 1
    start: Literal["zero", "random"] = "zero"
    step: float | None = None
    kind: Literal["subspace"] = "subspace"

    @property
    def span(self) -> Span | None:
        """The trajectory that it is made of, or scaled to; None for most random subspaces."""
        return self.projection.span if isinstance(self.projection, Learned) else self.projection.match

    @property
    def family(self) -> str:
        """What listings call the projection."""
        return "trajectory" if isinstance(self.projection, Learned) else self.projection.family

    def spanned_by(self, span: Span) -> "Subspace":
        """Return the same subspace of another trajectory."""
        name = "span" if isinstance(self.projection, Learned) else "match"
        return replace(self, projection=replace(self.projection, **{name: span}))


PEFT_STEPS = {
    "BEFT": 2e-2, "FOURIERFT": 1e-1, "IA3": 3e-2, "LN_TUNING": 1e-2, "LORA": 5e-3, "RANDLORA": 1e-3, "SHIRA": 2e-2,
    "TINYLORA": 1e-2, "UNILORA": 5e-2, "VBLORA": 3e-3, "VERA": 3e-2,
}  # fmt: skip
"""The types of PEFT that can be measured, each with the learning rate around which others are tried.

They were chosen on one small model and task (docs/leaderboard.md). A change of one takes a new `IDENTITY_VERSION`.
"""


@dataclass(frozen=True)
class Peft:
    """An adapter of the package PEFT; d is the exact number of its trained numbers, the head's own left out.

    Attributes:
        peft: Its type, as PEFT names it.
        options: Of PEFT's configuration, each as name=JSON, in the order of their names; what decides the size and is
            not given follows from d.
        head: Policy of the classification head, as in `Subspace`: "in_subspace" adapts it as any other layer.
        step: Learning rate at eta = 1; None takes the usual one of the type.
        kind: Tells it from the other methods in JSON.
    """

    peft: str
    options: tuple[str, ...] = ()
    head: Role = "in_subspace"
    step: float | None = None
    kind: Literal["peft"] = "peft"

    @property
    def learning_rate(self) -> float:
        """Learning rate at eta = 1."""
        return PEFT_STEPS[self.peft] if self.step is None else self.step


@dataclass(frozen=True)
class Theta0:
    """The untouched model, scored without a step."""

    kind: Literal["theta_0"] = "theta_0"


Method = Full | Freeze | Subspace | Peft | Theta0

Searched = Subspace | Peft
"""The methods that have a d to search for."""

ZHANG2023 = {"head": "trained", "embeddings": "trained", "ensemble": 16, "start": "random", "step": 0.01}
"""What Zhang et al. 2023 say of their training; the size of their random start is not known."""


def modules_pattern(modules: str) -> re.Pattern[str] | None:
    """Read what a subspace spans: the pattern of "regex:...", None for the other choices.

    Raises:
        ValueError: It is no choice, or no pattern.

    >>> modules_pattern("regex:query|value"), modules_pattern("attention")
    (re.compile('query|value'), None)
    """
    if modules in MODULES:
        return None
    if not modules.startswith("regex:"):
        raise ValueError(f'{modules!r} is unknown; use one of {", ".join(MODULES)}, or "regex:PATTERN"')
    try:
        pattern = re.compile(modules.removeprefix("regex:"))
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"{modules!r} holds no regular expression of Python: {error}") from None
    if not pattern.pattern:
        raise ValueError('"regex:" has no pattern; give one, as "regex:query|value", or "all"')
    return pattern


def imported(path: str, first: int | None = None, last: bool = False, mode: Mode = "difference") -> Span:
    """Return the span of imported checkpoints, of which nothing is recorded."""
    return Span((Imported(path),), 0.0, Budget(steps=0), first=first, last=last, mode=mode)


def on(method: Method, task: Task) -> Method:
    """Return the method as it is on a task: in the subspace of that very task, "inductive" is "intrinsic"."""
    if not isinstance(method, Subspace) or method.span is None or method.span.sources != (Source(task),):
        return method
    return method.spanned_by(replace(method.span, sources=(Source(),)))


def label(method: Method) -> str:
    """Name a method for people: "full", "did", "said", "random", "intrinsic zhang2023".

    What is usual for subspaces of the layers is not said: differences, one theta, frozen embeddings.
    """
    if isinstance(method, Full):
        return method.ablation.edit if method.ablation else "full"
    if isinstance(method, Theta0):
        return "theta_0"
    if isinstance(method, Peft):
        return method.peft.lower()
    if isinstance(method, Freeze):
        paper = (method.head, method.embeddings) == ("trained", "trained")
        return "freeze embeddings trained" if paper else "freeze"
    modules = [method.modules] if method.modules != "all" else []
    if method.span is None and method.scope == "model":
        return " ".join(["said" if method.scales else "did", *modules])
    projection = method.projection
    if isinstance(projection, Learned):
        name, mode = projection.span.name, projection.span.mode
    else:
        name, mode = "random_matched" if projection.match else "random", "difference"
    paper = all(getattr(method, key) == value for key, value in ZHANG2023.items())
    parts = [
        *modules,
        mode if mode != "difference" else "",
        "model" if method.scope == "model" else "",
        "zhang2023" if paper else f"h={method.ensemble}" if method.ensemble > 1 else "",
        "embeddings trained" if method.embeddings == "trained" and not paper else "",
    ]
    return " ".join(filter(None, [name, *parts]))
