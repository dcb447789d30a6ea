"""Sweep files: TOML in, frozen records out; the only place that validates what a person wrote.

docs/sweep-file.md describes the format. Every message is one line that names the table and the key, what was
given and what is allowed; all messages about a file come at once.
"""

import tomllib
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from distsub.config.messages import distinct, message_of
from distsub.config.methods import Context, MethodTable, Table, TrajectoryTable
from distsub.config.sweep import Policy, Sweep
from distsub.config.tables import (
    BaselineTable,
    BudgetTable,
    DimsTable,
    LimitTable,
    ModelTable,
    ResourcesTable,
    SearchTable,
    SeedsTable,
    ThresholdTable,
    known_policy,
    rising,
    seed_list,
    shorthand,
)
from distsub.config.tasks import TaskTable
from distsub.errors import ConfigError
from distsub.records import Budget, Seeds
from distsub.search import Limit, Range
from distsub.search.rule import check_score


def load_sweep(path: str | Path) -> Sweep:
    """Read and check a sweep file, in TOML; relative paths in it start at its directory.

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
        origin: What messages call the file.

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


class _File(Table):
    name: Annotated[str, Field(min_length=1)]
    models: Annotated[list[Annotated[ModelTable, BeforeValidator(shorthand("name"))]], Field(min_length=1)]
    tasks: Annotated[list[Annotated[TaskTable, BeforeValidator(shorthand("name"))]], Field(min_length=1)]
    methods: Annotated[list[Annotated[MethodTable, BeforeValidator(shorthand("name"))]], Field(min_length=1)]
    seeds: Annotated[list[SeedsTable], BeforeValidator(seed_list), Field(min_length=1)]
    dims: DimsTable
    search: SearchTable
    baseline: BaselineTable | None = None
    budget: BudgetTable
    policy: Annotated[Policy, BeforeValidator(known_policy)] = Sweep.policy
    threshold: ThresholdTable = ThresholdTable()
    resources: ResourcesTable = ResourcesTable()
    limit: LimitTable | None = None
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
        tasks = [each.record(directory) for each in self.tasks]
        distinct([task.name for task in tasks], "tasks")
        asks_for_majority = "chance" in self.threshold.model_fields_set and self.threshold.chance == "majority"
        for task in tasks:
            if rule.value is not None:
                check_score(rule.value, task.metric, "[threshold] value")
            if task.is_completion and asks_for_majority:
                raise ConfigError(
                    f'[threshold] chance = "majority": no majority answers the completions of task "{task.name}", '
                    'whose chance is always the untouched model\'s score; give chance = "theta_0", or leave it out'
                )
        etas, tries = rising(self.search.etas, "[search] etas"), self.search.tries
        if tries:
            if isinstance(etas, Range):
                raise ConfigError("[search] tries is for a list of etas; leave it out, a range has tries of its own")
            if tries > len(etas):
                raise ConfigError(f"[search] tries = {tries}: give at most {len(etas)}, the number of etas")
            tries = tries if tries < len(etas) else None
        budget = Budget(**self.budget.model_dump())
        span = (self.trajectory or TrajectoryTable()).record(budget, self.search.learning_rate)
        grids, by_name = tuple(each.grid(etas) for each in self.methods), {task.name: task for task in tasks}
        methods = [
            each.record(Context((own or dims)[-1], by_name, span, directory))
            for each, (own, _) in zip(self.methods, grids, strict=True)
        ]
        rates = rising(self.baseline.learning_rates if self.baseline else [], "[baseline] learning_rates")
        return Sweep(
            name=self.name,
            models=distinct([each.record(directory) for each in self.models], "models"),
            tasks=tuple(tasks),
            methods=distinct(methods, "methods"),
            seeds=distinct([Seeds(**each.model_dump()) for each in self.seeds], "seeds"),
            dims=dims,
            etas=etas,
            learning_rate=self.search.learning_rate,
            baseline_learning_rates=rates,
            budget=budget,
            policy=self.policy,
            rule=rule,
            resources=self.resources.record(),
            text=text,
            limit=Limit(**self.limit.model_dump()) if self.limit else None,
            tries=tries,
            grids=grids if any(own != (None, None) for own in grids) else (),
            trajectory=None if self.trajectory is None else span,
        )
