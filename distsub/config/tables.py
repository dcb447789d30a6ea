"""The tables of a sweep file, one class each; what is optional takes its default from the record it becomes."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, overload

from pydantic import AfterValidator, Field, NonNegativeFloat, PositiveFloat, model_validator

from distsub.addresses import absolute
from distsub.config.messages import distinct
from distsub.config.methods import NonNegativeInt, PositiveInt, StepSizes, Table
from distsub.config.sweep import Resources
from distsub.errors import ConfigError
from distsub.records import Budget, Dtype, HeadFrom, Model
from distsub.search import PUBLISHED_RATIO, Range, Rule, log_grid
from distsub.search.rule import Chance

MOST_SEEDS = 10_000

REMOVED = {
    "confirm": "leave it out, and give more seeds instead, which narrow the interval for the same trainings",
    "stopping": "leave it out, every training runs to its last step; [budget] eval_every still draws curves",
    "warm_start": "leave it out, every training starts from the pretrained weights",
    "eta_choice": "leave it out, the etas that did best at other d and seeds come first",
}
"""Keys of [search] that there were, and what to do without them."""

T = TypeVar("T")
N = TypeVar("N", int, float)


def shorthand(key: str) -> Callable[[Any], Any]:
    """Let a string stand for a table that has only this key."""
    return lambda value: {key: value} if isinstance(value, str) else value


def seed_list(value: Any) -> Any:
    """Let n stand for the seeds 0..n-1, and a number for a triple of it."""
    if isinstance(value, int) and not isinstance(value, bool):
        if value > MOST_SEEDS:
            raise ValueError(f"{value} seeds are more than {MOST_SEEDS}; list the ones you mean")
        value = list(range(value))
    if isinstance(value, list):
        return [dict.fromkeys(("projection", "head", "data"), x) if isinstance(x, int) else x for x in value]
    return value


def known_policy(value: Any) -> Any:
    """Tell what has become of a policy that there was."""
    if value == "adaptive":
        raise ValueError('"adaptive" was removed: give "bisection", the default, which finds the same for less')
    return value


class ModelTable(Table):
    """An entry of models: a string, or a table."""

    name: str | None = None
    path: str | None = None
    revision: str | None = None
    head_from: HeadFrom = Model.head_from
    dtype: Dtype = Model.dtype

    @model_validator(mode="after")
    def _one_place(self) -> "ModelTable":
        if (self.name is None) == (self.path is None):
            raise ValueError(
                "give either name (hub id or package:NAME) or path (local directory, s3://, gs://, hdfs://)"
            )
        if self.revision and (self.path or (self.name or "").startswith("package:") or "://" in (self.name or "")):
            raise ValueError("revision is for hub models; local files, buckets and packages have none")
        return self

    def record(self, directory: Path) -> Model:
        """Return the record; paths start in the sweep file's directory."""
        name = self.path or self.name or ""
        local = self.path is not None or name.startswith((".", "/", "~")) or "://" in name
        local = local or (self.revision is None and (directory / name / "config.json").is_file())
        return Model(absolute(name, directory) if local else name, self.revision, self.head_from, self.dtype)


class SeedsTable(Table):
    """An entry of seeds: a number for all three, or a table."""

    projection: NonNegativeInt = 0
    head: NonNegativeInt = 0
    data: NonNegativeInt = 0


class DimsTable(Table):
    """The grid of d: a list, or low, high and ratio."""

    values: list[PositiveInt] | None = None
    low: PositiveInt | None = None
    high: PositiveInt | None = None
    ratio: Annotated[float, Field(ge=1.001)] = PUBLISHED_RATIO

    @model_validator(mode="before")
    @classmethod
    def _plain_list(cls, value: Any) -> Any:
        return {"values": value} if isinstance(value, list) else value

    @model_validator(mode="after")
    def _one_form(self) -> "DimsTable":
        if self.values is None and self.low is not None and self.high is not None:
            if self.low > self.high:
                raise ValueError(f"low = {self.low} is above high = {self.high}")
        elif not self.values or self.low or self.high:
            raise ValueError("give a list of d such as [100, 300, 1000], or low and high (and ratio)")
        return self

    def record(self) -> tuple[int, ...]:
        """Return the values of d."""
        if self.values is not None:
            return rising(self.values, "dims")
        return log_grid(self.low or 1, self.high or 1, self.ratio)


class SearchTable(Table):
    """[search]."""

    etas: StepSizes
    learning_rate: PositiveFloat
    tries: PositiveInt | None = None

    @model_validator(mode="before")
    @classmethod
    def _removed(cls, value: Any) -> Any:
        gone = [key for key in REMOVED if key in value] if isinstance(value, dict) else []
        if gone:
            raise ValueError("; ".join(f"{key} was removed: {REMOVED[key]}" for key in gone))
        return value


class BaselineTable(Table):
    """[baseline]."""

    learning_rates: StepSizes


class ThresholdTable(Table):
    """[threshold]."""

    fraction: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    value: float | None = None
    chance: Chance = Rule.chance

    @model_validator(mode="before")
    @classmethod
    def _plain_number(cls, value: Any) -> Any:
        return {"value": value} if isinstance(value, int | float) and not isinstance(value, bool) else value

    @model_validator(mode="after")
    def _one_goal(self) -> "ThresholdTable":
        if self.fraction is not None and self.value is not None:
            raise ValueError("give either fraction (a share of full fine-tuning's score) or value (the score to reach)")
        return self

    def record(self) -> Rule:
        """Return the rule."""
        if self.value is not None:
            return Rule(None, self.value, self.chance)
        return Rule(Rule.fraction if self.fraction is None else self.fraction, None, self.chance)


class BudgetTable(Table):
    """[budget]."""

    steps: PositiveInt
    batch_size: PositiveInt = Budget.batch_size
    max_length: PositiveInt = Budget.max_length
    train_examples: PositiveInt | None = Budget.train_examples
    eval_examples: PositiveInt | None = Budget.eval_examples
    warmup: Annotated[float, Field(ge=0.0, lt=1.0)] = Budget.warmup
    eval_every: PositiveInt | None = Budget.eval_every
    weight_decay: NonNegativeFloat = Budget.weight_decay
    max_grad_norm: PositiveFloat | None = Budget.max_grad_norm
    precision: Literal["fp32", "bf16", "auto"] = Budget.precision


def _one_gpu(value: float) -> float:
    """Refuse more than one GPU for a training."""
    if value > 1:
        raise ValueError(f"{value:g}: a training runs on one GPU; give 1, a fraction that several share, or 0 for CPUs")
    return value


_Gpus = Annotated[NonNegativeFloat, AfterValidator(_one_gpu)]


class BaselineResourcesTable(Table):
    """[resources.baseline]."""

    cpus_per_trial: PositiveFloat | None = None
    gpus_per_trial: _Gpus | None = None


class ResourcesTable(Table):
    """[resources] of a sweep file."""

    cpus_per_trial: PositiveFloat = Resources.cpus_per_trial
    gpus_per_trial: _Gpus = Resources.gpus_per_trial
    max_concurrent_trials: PositiveInt | None = Resources.max_concurrent_trials
    retries: NonNegativeInt = Resources.retries
    baseline: BaselineResourcesTable | None = None

    def record(self) -> Resources:
        """Give the record.

        Raises:
            ConfigError: Full fine-tuning would run on another kind of device.
        """
        record, own = Resources(**self.model_dump(exclude={"baseline"})), self.baseline
        if own is None:
            return record
        cpus = self.cpus_per_trial if own.cpus_per_trial is None else own.cpus_per_trial
        gpus = self.gpus_per_trial if own.gpus_per_trial is None else own.gpus_per_trial
        if (gpus > 0) != (self.gpus_per_trial > 0):
            raise ConfigError(
                f"[resources.baseline] gpus_per_trial = {gpus:g} beside [resources] gpus_per_trial = "
                f"{self.gpus_per_trial:g}: a threshold and what is held against it are measured on one kind of device; "
                "give both GPUs or none"
            )
        return dataclasses.replace(record, baseline=(cpus, gpus))


class LimitTable(Table):
    """[limit]."""

    hours: PositiveFloat | None = None
    trials: PositiveInt | None = None

    @model_validator(mode="after")
    def _not_empty(self) -> "LimitTable":
        if self.hours is None and self.trials is None:
            raise ValueError("give hours (of all slots together), trials or both; leave the table out for no limit")
        return self


@overload
def rising(values: list[N], key: str) -> tuple[N, ...]: ...
@overload
def rising(values: list[N] | Range, key: str) -> tuple[N, ...] | Range: ...
def rising(values: list[N] | Range, key: str) -> tuple[N, ...] | Range:
    """Order a list, in which nothing may stand twice; a range is left as it is."""
    return values if isinstance(values, Range) else tuple(sorted(distinct(values, key)))
