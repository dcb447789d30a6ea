"""Sweep files: TOML in, frozen records out; the only place that validates what a person wrote.

docs/sweep-file.md describes the format. Every message is one line that names the table and the key, what was
given and what is allowed; all complaints about a file come at once.
"""

import dataclasses
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, overload

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    ValidationError,
    model_validator,
)

from distsub.config.messages import message_of
from distsub.config.methods import Context, MethodTable, NonNegativeInt, PositiveInt, StepSizes, Table, TrajectoryTable
from distsub.config.sweep import Policy, Resources, Sweep, distinct
from distsub.config.tasks import TaskTable, absolute
from distsub.errors import ConfigError
from distsub.records import Budget, HeadFrom, Model, Seeds
from distsub.search import PUBLISHED_RATIO, Limit, Range, Rule, log_grid
from distsub.search.rule import Chance, check_score

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


def load_sweep(path: str | Path) -> Sweep:
    """Read and check a sweep file.

    Args:
        path: A TOML file; relative paths in it start at its directory.

    Returns:
        The sweep.

    Raises:
        ConfigError: The file cannot be read, or something in it cannot be used; one line per mistake.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not a text file in UTF-8: {error.reason} at byte {error.start}") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the sweep file: {error.strerror}") from error
    return parse_sweep(text, directory=path.parent, origin=str(path))


def parse_sweep(text: str, directory: str | Path = ".", origin: str = "sweep") -> Sweep:
    """Check the text of a sweep file.

    Args:
        text: TOML.
        directory: Where relative paths in it start.
        origin: What complaints call the file.

    Returns:
        The sweep.

    Raises:
        ConfigError: Something cannot be used; one line per mistake.
    """
    try:
        raw = tomllib.loads(text)
    except ValueError as error:  # a number of more digits than Python reads is none of tomllib's own
        raise ConfigError(f"{origin}: not valid TOML: {error}") from None
    except RecursionError:
        raise _nested(origin) from None
    try:
        _refuse_huge(raw)
        return _File.model_validate(raw).sweep(Path(directory), text)
    except ValidationError as error:
        raise ConfigError("\n".join(f"{origin}: {message_of(each, _File)}" for each in error.errors())) from error
    except ConfigError as error:
        raise ConfigError(f"{origin}: {error}") from error
    except RecursionError:  # keys with many dots are read without recursion
        raise _nested(origin) from None


def _nested(origin: str) -> ConfigError:
    return ConfigError(f"{origin}: nested too deeply; a sweep file has tables in lists, and nothing below")


def _refuse_huge(value: Any, *keys: str) -> None:
    """Refuse whole numbers that no column of the results can hold, wherever they stand."""
    if isinstance(value, dict):
        for key, inner in value.items():
            _refuse_huge(inner, *keys, key)
    elif isinstance(value, list):
        for inner in value:
            _refuse_huge(inner, *keys)
    elif isinstance(value, int) and abs(value) >= 2**63:
        where = ": ".join(keys)
        raise ConfigError(f"{where} is a whole number of {value.bit_length()} bits; give one below 2^63")


# ---- the file's tables, one class each; what is optional takes its default from the record it becomes


def _shorthand(key: str) -> Callable[[Any], Any]:
    """Let a string stand for a table that has only this key."""
    return lambda value: {key: value} if isinstance(value, str) else value


def _seed_list(value: Any) -> Any:
    """Let n stand for the seeds 0..n-1, and a number for a triple of it."""
    if isinstance(value, int) and not isinstance(value, bool):
        if value > MOST_SEEDS:
            raise ValueError(f"{value} seeds are more than {MOST_SEEDS}; list the ones you mean")
        value = list(range(value))
    if isinstance(value, list):
        return [dict.fromkeys(("projection", "head", "data"), x) if isinstance(x, int) else x for x in value]
    return value


def _policy(value: Any) -> Any:
    """Tell what has become of a policy that there was."""
    if value == "adaptive":
        raise ValueError('"adaptive" was removed: give "bisection", the default, which finds the same for less')
    return value


class _Model(Table):
    name: str | None = None
    path: str | None = None
    revision: str | None = None
    head_from: HeadFrom = Model.head_from

    @model_validator(mode="after")
    def _one_place(self) -> "_Model":
        if (self.name is None) == (self.path is None):
            raise ValueError(
                "give either name (hub id or package:NAME) or path (local directory, s3://, gs://, hdfs://)"
            )
        if self.revision and (self.path or (self.name or "").startswith("package:") or "://" in (self.name or "")):
            raise ValueError("revision is for hub models; local files, buckets and packages have none")
        return self

    def record(self, directory: Path) -> Model:
        name = self.path or self.name or ""
        local = self.path is not None or name.startswith((".", "/", "~")) or "://" in name
        local = local or (self.revision is None and (directory / name / "config.json").is_file())
        return Model(absolute(name, directory) if local else name, self.revision, self.head_from)


class _Seeds(Table):
    projection: NonNegativeInt = 0
    head: NonNegativeInt = 0
    data: NonNegativeInt = 0


class _Dims(Table):
    values: list[PositiveInt] | None = None
    low: PositiveInt | None = None
    high: PositiveInt | None = None
    ratio: Annotated[float, Field(ge=1.001)] = PUBLISHED_RATIO

    @model_validator(mode="before")
    @classmethod
    def _plain_list(cls, value: Any) -> Any:
        return {"values": value} if isinstance(value, list) else value

    @model_validator(mode="after")
    def _one_form(self) -> "_Dims":
        if self.values is None and self.low is not None and self.high is not None:
            if self.low > self.high:
                raise ValueError(f"low = {self.low} is above high = {self.high}")
        elif not self.values or self.low or self.high:
            raise ValueError("give a list of d such as [100, 300, 1000], or low and high (and ratio)")
        return self

    def record(self) -> tuple[int, ...]:
        if self.values is not None:
            return _rising(self.values, "dims")
        return log_grid(self.low or 1, self.high or 1, self.ratio)


class _Search(Table):
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


class _Baseline(Table):
    learning_rates: StepSizes


class _Threshold(Table):
    fraction: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    value: float | None = None
    chance: Chance = Rule.chance

    @model_validator(mode="before")
    @classmethod
    def _plain_number(cls, value: Any) -> Any:
        return {"value": value} if isinstance(value, int | float) and not isinstance(value, bool) else value

    @model_validator(mode="after")
    def _one_goal(self) -> "_Threshold":
        if self.fraction is not None and self.value is not None:
            raise ValueError("give either fraction (a share of full fine-tuning's score) or value (the score to reach)")
        return self

    def record(self) -> Rule:
        if self.value is not None:
            return Rule(None, self.value, self.chance)
        return Rule(Rule.fraction if self.fraction is None else self.fraction, None, self.chance)


class _Budget(Table):
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


class _BaselineResources(Table):
    cpus_per_trial: PositiveFloat | None = None
    gpus_per_trial: _Gpus | None = None


class _Resources(Table):
    """[resources] of a sweep file."""

    cpus_per_trial: PositiveFloat = Resources.cpus_per_trial
    gpus_per_trial: _Gpus = Resources.gpus_per_trial
    max_concurrent_trials: PositiveInt | None = Resources.max_concurrent_trials
    retries: NonNegativeInt = Resources.retries
    baseline: _BaselineResources | None = None

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


class _Limit(Table):
    hours: PositiveFloat | None = None
    trials: PositiveInt | None = None

    @model_validator(mode="after")
    def _not_empty(self) -> "_Limit":
        if self.hours is None and self.trials is None:
            raise ValueError("give hours (of all slots together), trials or both; leave the table out for no limit")
        return self


class _File(Table):
    name: Annotated[str, Field(min_length=1)]
    models: Annotated[list[Annotated[_Model, BeforeValidator(_shorthand("name"))]], Field(min_length=1)]
    tasks: Annotated[list[Annotated[TaskTable, BeforeValidator(_shorthand("name"))]], Field(min_length=1)]
    methods: Annotated[list[Annotated[MethodTable, BeforeValidator(_shorthand("name"))]], Field(min_length=1)]
    seeds: Annotated[list[_Seeds], BeforeValidator(_seed_list), Field(min_length=1)]
    dims: _Dims
    search: _Search
    baseline: _Baseline | None = None
    budget: _Budget
    policy: Annotated[Policy, BeforeValidator(_policy)] = Sweep.policy
    threshold: _Threshold = _Threshold()
    resources: _Resources = _Resources()
    limit: _Limit | None = None
    trajectory: TrajectoryTable | None = None

    @model_validator(mode="before")
    @classmethod
    def _moved(cls, value: Any) -> Any:
        if isinstance(value, dict) and "fraction" in value:
            given = value["fraction"]
            raise ValueError(f"fraction has moved: write threshold = {{ fraction = {given} }} in its place")
        return value

    @model_validator(mode="after")
    def _baseline_fits(self) -> "_File":
        value = self.threshold.value
        if self.baseline is None and value is None:
            raise ValueError('key "baseline" is missing: it sets the threshold, unless [threshold] gives a value')
        if self.baseline is not None and value is not None:
            raise ValueError(
                f"[baseline] beside [threshold] value = {value:g}: no full fine-tuning is trained for a value; leave "
                "one of them out"
            )
        return self

    def sweep(self, directory: Path, text: str) -> Sweep:
        dims, rule = self.dims.record(), self.threshold.record()
        found = [each.record(directory) for each in self.tasks]
        distinct([task.name for task in found], "tasks")
        for task in found if rule.value is not None else ():
            check_score(rule.value or 0.0, task.metric, "[threshold] value")
        etas, tries = _rising(self.search.etas, "[search] etas"), self.search.tries
        if tries and isinstance(etas, Range):
            raise ConfigError("[search] tries is for a list of etas; leave it out, a range has tries of its own")
        if tries and not isinstance(etas, Range) and tries > len(etas):
            raise ConfigError(f"[search] tries = {tries}: give at most {len(etas)}, the number of etas")
        budget = Budget(**self.budget.model_dump())
        span = (self.trajectory or TrajectoryTable()).record(budget, self.search.learning_rate)
        grids, by_name = tuple(each.grid() for each in self.methods), {task.name: task for task in found}
        methods = [
            each.record(Context((own or dims)[-1], by_name, span))
            for each, (own, _) in zip(self.methods, grids, strict=True)
        ]
        return Sweep(
            name=self.name,
            models=distinct([each.record(directory) for each in self.models], "models"),
            tasks=tuple(found),
            methods=distinct(methods, "methods"),
            seeds=distinct([Seeds(**each.model_dump()) for each in self.seeds], "seeds"),
            dims=dims,
            etas=etas,
            learning_rate=self.search.learning_rate,
            baseline_learning_rates=_rising(
                self.baseline.learning_rates if self.baseline else [], "[baseline] learning_rates"
            ),
            budget=budget,
            policy=self.policy,
            rule=rule,
            resources=self.resources.record(),
            text=text,
            limit=Limit(**self.limit.model_dump()) if self.limit else None,
            tries=tries if tries and not isinstance(etas, Range) and tries < len(etas) else None,
            grids=grids if any(own != (None, None) for own in grids) else (),
            trajectory=None if self.trajectory is None else span,
        )


@overload
def _rising(values: list[N], key: str) -> tuple[N, ...]: ...
@overload
def _rising(values: list[N] | Range, key: str) -> tuple[N, ...] | Range: ...
def _rising(values: list[N] | Range, key: str) -> tuple[N, ...] | Range:
    """Order a list, in which nothing may stand twice; a range is left as it is."""
    return values if isinstance(values, Range) else tuple(sorted(distinct(values, key)))
