"""The tables of a sweep file that say how the update is parametrised: [[methods]] and [trajectory].

Besides the random subspaces of the whole model ("did", "said") there are the ways of training that Zhang et al. 2023
compare and the controls that their comparison lacks; docs/learned-subspaces.md says what each name means.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveFloat,
    ValidationError,
    WrapValidator,
    model_validator,
)

from distsub.addresses import absolute
from distsub.config.messages import message_of
from distsub.errors import ConfigError, nearest
from distsub.records import (
    DEFAULT_FAMILY,
    PEFT_STEPS,
    ZHANG2023,
    Budget,
    Freeze,
    Learned,
    Method,
    Peft,
    Random,
    Role,
    Source,
    Span,
    Subspace,
    Task,
    imported,
    modules_pattern,
)
from distsub.search import Range

# Whole numbers end up in 64-bit columns.
PositiveInt = Annotated[int, Field(gt=0, lt=2**63)]
NonNegativeInt = Annotated[int, Field(ge=0, lt=2**63)]

LEARNED = ("intrinsic", "inductive", "unified", "zero_shot", "last", "other_seed")
"""Subspaces made of trajectories."""

IMPORTED = ("intrinsic", "last", "random_matched")
"""Methods for which an imported trajectory may stand in the place of the trial's own."""

Name = Literal[
    "did", "said", "freeze", "random", "random_matched",
    "intrinsic", "inductive", "unified", "zero_shot", "last", "other_seed",
]  # fmt: skip


class Table(BaseModel):
    """A table of the file: unknown keys, other types and infinities are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


@dataclass(frozen=True)
class Context:
    """What a method takes from the rest of the file.

    Attributes:
        largest: The largest d of the method's grid.
        tasks: The sweep's tasks by name.
        span: The trial's own trajectory as [trajectory] describes it.
        directory: Where relative paths start.
    """

    largest: int
    tasks: Mapping[str, Task]
    span: Span
    directory: Path


def as_list(value: Any) -> Any:
    """Let a text stand for a list of it alone."""
    return [value] if isinstance(value, str) else value


def _steps_or_epoch(value: Any) -> Any:
    whole = isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**63
    if value != "epoch" and not whole:
        raise ValueError(f'give "epoch" or a number of steps from 1 on, not {value!r}')
    return value


class RangeTable(Table):
    """In the place of a list of etas or learning rates: a range in which some are tried."""

    low: PositiveFloat
    high: PositiveFloat
    tries: PositiveInt


def _list_or_range(value: Any, as_list: Callable[[Any], list[float]]) -> list[float] | Range:
    if not isinstance(value, dict):
        return as_list(value)
    try:
        return Range(**RangeTable.model_validate(value).model_dump())
    except ValidationError as error:
        raise ValueError("; ".join(message_of(each, RangeTable) for each in error.errors())) from None


StepSizes = Annotated[
    Annotated[list[PositiveFloat], Field(min_length=1)],
    WrapValidator(_list_or_range),
]
"""A list of step sizes, or a `Range`."""


def _modules(value: str) -> str:
    modules_pattern(value)
    return value


def _peft(value: str) -> str:
    if value.upper() not in PEFT_STEPS:
        raise ValueError(f'PEFT has no "{value}" that can be measured; {nearest(value, map(str.lower, PEFT_STEPS))}')
    return value.upper()


def _no_type_of_peft(value: Any) -> Any:
    if isinstance(value, str) and value.upper() in PEFT_STEPS:
        raise ValueError(f'"{value}" is a type of PEFT: write {{ peft = "{value.upper()}" }}')
    return value


_OF_PEFT = ("name", "peft", "options", "head", "step", "dims", "etas")
"""The keys of a method of PEFT."""


class MethodTable(Table):
    """One entry of [[methods]]."""

    name: Annotated[Name | None, BeforeValidator(_no_type_of_peft)] = None
    peft: Annotated[str, AfterValidator(_peft)] | None = None
    options: dict[str, Any] | None = None
    projection: Literal["fastfood", "fastfood_per_tensor", "partition", "sparse", "dense"] | None = None
    normalization: Literal["global", "per_tensor"] | None = None
    groups: Literal["layer", "tensor"] | None = None
    head: Role | None = None
    modules: Annotated[str, AfterValidator(_modules)] | None = None
    block_length: PositiveInt | None = None
    training: Literal["default", "zhang2023"] | None = None
    scope: Literal["model", "layer"] | None = None
    embeddings: Role | None = None
    ensemble: PositiveInt | None = None
    start: Literal["zero", "random"] | None = None
    step: PositiveFloat | None = None
    mode: Literal["difference", "centered", "raw"] | None = None
    sources: Annotated[list[str], BeforeValidator(as_list)] | None = None
    first: PositiveInt | None = None
    shift: PositiveInt | None = None
    trajectory: Annotated[str, Field(min_length=1)] | None = None
    dims: Annotated[list[PositiveInt], Field(min_length=1)] | None = None
    etas: StepSizes | None = None

    @model_validator(mode="after")
    def _consistent(self) -> "MethodTable":
        if (self.name is None) == (self.peft is None):
            raise ValueError('give either name (such as "did") or peft (a type of PEFT, such as "LORA")')
        if self.options is not None and self.peft is None:
            raise ValueError(f'options are for a method of PEFT, not "{self.name}"')
        if self.peft is not None:
            for key in type(self).model_fields:
                if key not in _OF_PEFT and getattr(self, key) is not None:
                    raise ValueError(f"{key} is for subspaces; a method of PEFT has {', '.join(_OF_PEFT[1:])}")
            return self
        if self.groups and self.name != "said":
            raise ValueError(f'groups is for method "said", not "{self.name}"')
        if self.block_length and not (self.projection or DEFAULT_FAMILY).startswith("fastfood"):
            raise ValueError(
                f'block_length is for the fastfood projections, not "{self.projection or DEFAULT_FAMILY}"; '
                'give projection = "fastfood"'
            )
        if self.block_length and (self.block_length < 4 or self.block_length & (self.block_length - 1)):
            raise ValueError(f"block_length = {self.block_length} is not a power of two of at least 4")
        whole = self.name in ("did", "said")
        for key in ("training", "scope", "embeddings", "ensemble", "start", "step"):
            if whole and getattr(self, key) is not None:
                raise ValueError(f'{key} is for the ways of training in layers, such as "random", not "{self.name}"')
        for key in ("mode", "sources", "first", "shift"):
            if self.name not in LEARNED and getattr(self, key) is not None:
                raise ValueError(f'{key} is for learned subspaces ({", ".join(LEARNED)}), not "{self.name}"')
        for key in ("projection", "normalization", "block_length"):
            if self.name in (*LEARNED, "freeze") and getattr(self, key) is not None:
                raise ValueError(f'{key} is for random subspaces, not "{self.name}"')
        for key in ("dims", "etas", "modules", "scope", "ensemble", "start", "step"):
            if self.name == "freeze" and getattr(self, key) is not None:
                raise ValueError(f'{key} is for subspaces; "freeze" has no coordinates')
        if self.name == "freeze" and "in_subspace" in (self.head, self.embeddings):
            raise ValueError('"freeze" has no subspace: give head and embeddings each "trained" or "frozen"')
        if self.name == "freeze" and self.head == "frozen" and self.embeddings in (None, "frozen"):
            raise ValueError('"freeze" with frozen head and embeddings trains nothing')
        if self.trajectory and self.name not in IMPORTED:
            raise ValueError(f'trajectory is for {", ".join(IMPORTED)}, not "{self.name}"')
        if self.name == "inductive" and not self.sources:
            raise ValueError('method "inductive" needs sources: the task whose subspace it trains in')
        if self.sources and self.name in ("intrinsic", "last", "other_seed"):
            raise ValueError(f'sources is for "inductive", "unified" and "zero_shot"; "{self.name}" is of its own task')
        if self.shift and self.name != "other_seed":
            raise ValueError(f'shift is for method "other_seed", not "{self.name}"')
        return self

    def grid(self, usual: tuple[float, ...] | Range) -> tuple[tuple[int, ...] | None, tuple[float, ...] | Range | None]:
        """Give the method's own dims and etas, None where those of the sweep count.

        Args:
            usual: Those of the sweep. A method of PEFT that gives none tries as many, around its usual learning rate.
        """
        given = self.dims or ([1] if self.name == "last" else None)  # one direction is all there is
        dims = tuple(sorted(set(given))) if given else None
        if self.peft is not None and self.etas is None:
            if isinstance(usual, Range):
                return dims, replace(usual, low=0.1, high=10.0)
            middle = (len(usual) - 1) / 2
            return dims, tuple(float(f"{10 ** ((number - middle) / 2):.3g}") for number in range(len(usual)))
        etas = self.etas or ([1.0] if self.training == "zhang2023" and self.step is None else None)
        if isinstance(etas, Range):
            return dims, etas
        return dims, tuple(sorted(set(etas))) if etas else None

    def record(self, context: Context) -> Method:
        """Make the record, with what the file leaves out.

        Raises:
            ConfigError: A source is unknown, or the block length too small.
        """
        if self.block_length and self.block_length < context.largest:
            raise ConfigError(
                f"[[methods]] block_length = {self.block_length} is below the largest of dims, {context.largest}"
            )
        if self.peft is not None:
            options = (f"{name}={json.dumps(value, sort_keys=True)}" for name, value in (self.options or {}).items())
            return Peft(self.peft, tuple(sorted(options)), self.head or "in_subspace", self.step)
        modules = self.modules or "all"
        if self.name in ("did", "said"):
            scales = (self.groups or "layer") if self.name == "said" else None
            return Subspace(self._random(context), scales, head=self.head or "in_subspace", modules=modules)
        usual: dict[str, Any] = {"head": "trained", "embeddings": "frozen"}
        if self.scope == "model":
            usual = dict.fromkeys(usual, "in_subspace")
        usual |= ZHANG2023 if self.training == "zhang2023" else {}
        usual |= {key: value for key in ZHANG2023 if (value := getattr(self, key)) is not None}
        if self.name == "freeze":
            return Freeze(usual["head"], usual["embeddings"])
        if self.name in LEARNED:
            projection = Learned(self._span(context))
        else:
            projection = self._random(context)
            if self.name == "random_matched":
                projection = replace(projection, match=replace(self._own(context), last=True))
        return Subspace(projection, modules=modules, scope=self.scope or "layer", **usual)

    def _random(self, context: Context) -> Random:
        family = self.projection or DEFAULT_FAMILY
        length = self.block_length or max(4, 1 << (context.largest - 1).bit_length())
        return Random(
            family=family,
            normalization=self.normalization or ("per_tensor" if family.endswith("per_tensor") else "global"),
            block_length=length if family.startswith("fastfood") else None,
        )

    def _own(self, context: Context) -> Span:
        """Give the trial's own trajectory, or the imported one that stands for it."""
        if self.trajectory is None:
            return context.span
        return imported(absolute(self.trajectory, context.directory))

    def _span(self, context: Context) -> Span:
        several = self.name in ("unified", "zero_shot")
        names = self.sources or (list(context.tasks) if several else [])
        if unknown := [name for name in names if name not in context.tasks]:
            raise ConfigError(
                f'[[methods]] sources: "{unknown[0]}" is not among the tasks; {nearest(unknown[0], context.tasks)}'
            )
        if several and len(names) < 2:
            raise ConfigError(f'[[methods]] "{self.name}" needs two tasks or more, in sources or in tasks')
        own, sources = self._own(context), tuple(Source(context.tasks[name]) for name in names)
        if self.name == "other_seed":
            sources = (Source(shift=self.shift or 1),)
        return replace(
            own,
            sources=sources or own.sources,
            first=self.first,
            last=several or self.name == "last",
            mode=self.mode or "difference",
            leave_out=self.name == "zero_shot",
        )


class TrajectoryTable(Table):
    """[trajectory]: the full fine-tunings that learned subspaces are made of."""

    learning_rate: PositiveFloat | None = None
    steps: PositiveInt | None = None
    every: Annotated[Literal["epoch"] | PositiveInt, BeforeValidator(_steps_or_epoch)] = "epoch"
    checkpoints: PositiveInt | None = None
    dtype: Literal["bfloat16", "float32"] = Span.dtype

    def record(self, budget: Budget, learning_rate: float) -> Span:
        """Describe a trial's own trajectory.

        Args:
            budget: Of the sweep, with which fine-tunings are trained, but for the steps.
            learning_rate: What counts where the table says none.
        """
        return Span(
            sources=(Source(),),
            learning_rate=self.learning_rate or learning_rate,
            budget=replace(budget, steps=self.steps or budget.steps),
            every=None if self.every == "epoch" else self.every,
            checkpoints=self.checkpoints,
            dtype=self.dtype,
        )
