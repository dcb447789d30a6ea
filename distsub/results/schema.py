"""The Arrow schema of an observation row.

A row is one trial and what came out of it. Everything one filters or groups by is a flat column; the `setup` column
holds the trial's setup as canonical JSON, the very text that is hashed into `setup_id`, and `trial_id` is a hash of
that with d and eta: a trial read back is the trial that was run. Units stand in the names.
"""

import dataclasses
from collections.abc import Callable, Mapping
from functools import cache, lru_cache
from typing import Any, get_args, get_type_hints

import pyarrow as pa

from distsub.records import Full, Method, Observation, Peft, Random, Setup, Subspace, Task, Trial, label
from distsub.records.places import Places
from distsub.results.checks import check_d_and_eta, check_observation, setup_record

SCHEMA_VERSION = 2
"""Raised when a column changes its meaning; a new nullable column alone does not raise it."""

_TEXT, _INT, _FLOAT = pa.string(), pa.int64(), pa.float64()
_SHARED = pa.dictionary(pa.int32(), _TEXT)  # the setups of a sweep are few, and long


def columns(kind: pa.DataType, *names: str) -> list[tuple[str, pa.DataType]]:
    """Give several columns of a schema one type."""
    return [(name, kind) for name in names]


def _plain(record: type) -> dict[str, pa.DataType]:
    """Give a column for each field of a record that holds a text or a number."""
    known = {str: _TEXT, int: _INT, float: _FLOAT}

    def types_of(hint: Any) -> set[Any]:
        if isinstance(hint, str):  # a member of a Literal
            return {str}
        return {hint} if hint in known else {each for inner in get_args(hint) for each in types_of(inner)}

    types = {name: types_of(hint) for name, hint in get_type_hints(record).items() if name != "kind"}
    return {name: known[each.pop()] for name, each in types.items() if len(each) == 1}


_RANDOM = {name: column for name, column in _plain(Random).items() if name != "family"}
_METHOD = {
    "projection": _TEXT,
    **_RANDOM,
    **_plain(Subspace),
    **_plain(Peft),
    "match_norms": pa.bool_(),
    "ablation": _TEXT,
    "mask": _TEXT,
}
"""The columns of a method: the plain fields of its record and of its projection."""

OBSERVATIONS = pa.schema(
    [
        pa.field("schema_version", pa.int32(), nullable=False),
        pa.field("trial_id", _TEXT, nullable=False),
        pa.field("status", _TEXT, nullable=False),
        pa.field("setup_id", _TEXT, nullable=False),
        pa.field("condition_id", _TEXT, nullable=False),
        *columns(_TEXT, "task", "model", "revision", "model_content", "method"),
        *_METHOD.items(),
        *columns(_TEXT, "head_from", "model_dtype"),
        ("trajectories", pa.list_(_TEXT)),
        ("d", _INT),
        *columns(_FLOAT, "eta", "learning_rate", "step_size"),
        *columns(_INT, "projection_seed", "head_seed", "data_seed"),
        ("metric", _TEXT),
        *columns(_FLOAT, "score", "train_score", "chance"),
        ("metrics", pa.map_(_TEXT, _FLOAT)),
        ("curve", pa.list_(pa.struct([("step", _INT), ("score", _FLOAT)]))),
        *columns(_INT, "num_examples", "steps", "num_tokens"),
        *columns(_FLOAT, "wall_s", "eval_s"),
        *columns(_INT, "peak_bytes", "num_params", "num_params_model", "num_trained", "num_trained_head", "num_scales"),
        *columns(_TEXT, "task_source", "task_config", "task_revision"),
        ("task_text", pa.list_(_TEXT)),
        ("task_label", _TEXT),
        ("task_num_labels", _INT),
        ("task_labels", pa.list_(_TEXT)),
        *columns(_TEXT, "task_empty", "task_separator", "task_quote", "task_encoding"),
        ("task_max_new_tokens", _INT),
        *columns(_TEXT, "task_stop", "task_answer", "task_content", "task_train", "task_validation"),
        ("task_where", pa.list_(pa.struct([("column", _TEXT), ("value", _TEXT)]))),
        ("task_holdout", _FLOAT),
        ("task_standardise", pa.bool_()),
        *columns(_INT, "budget_steps", "batch_size", "max_length", "train_examples", "eval_examples"),
        ("warmup", _FLOAT),
        ("eval_every", _INT),
        *columns(_FLOAT, "weight_decay", "max_grad_norm"),
        *columns(_TEXT, "precision", "error"),
        ("correct", pa.list_(pa.bool_())),
        ("predicted", pa.list_(pa.float32())),
        ("target", pa.list_(pa.float32())),
        ("labels", pa.list_(_TEXT)),
        ("provenance", pa.map_(_TEXT, _TEXT)),
        ("setup", _SHARED),
    ],
    metadata={"distsub_schema_version": str(SCHEMA_VERSION)},
)
"""One row per trial. `correct` is null for regression and for trials that evaluated nothing."""

METHOD_COLUMNS = ("method", "projection", "normalization", "scales", "head")
"""The columns that name a method in all three tables."""

ANSWERS = ("metrics", "predicted", "target", "labels", "provenance")
"""Columns of `from_row` that nearly all of a row's memory goes to and no decision of a search rests on."""

IDENTITY = ("trial_id", "setup_id", "setup", "d", "eta")
"""The columns that say which trial a row is of."""

RECORD = (*IDENTITY, *(each.name for each in dataclasses.fields(Observation) if each.name != "trial"))
"""The columns that `from_row` needs."""

_DEFAULTS = {
    each.name: each.default for each in dataclasses.fields(Observation) if each.name not in ("trial", "status")
}
_PLAIN = tuple(name for name in RECORD if name not in (*IDENTITY, "curve", *ANSWERS))


@lru_cache(maxsize=10_000)
def setup_from_json(text: str) -> Setup:
    """Rebuild a setup from its canonical JSON, once for all rows and readings that have it.

    A setup identified by its content has no addresses there: `Places.locate` gives them back.

    Raises:
        ValueError: The text is no setup, or one of another identity version.
    """
    try:
        return setup_record(text)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"not a setup: {error}") from None


def setup_reader(places: Places | None = None) -> Callable[[str], Setup]:
    """Make a `setup_from_json` for many rows that reads each setup once, with addresses at which its contents lie."""
    located = places or Places()
    return cache(lambda text: located.locate(setup_from_json(text)))


def method_columns(method: Method) -> dict[str, Any]:
    """Write a method as the columns of a row; those that it does not have are null."""
    row: dict[str, Any] = {field.name: getattr(method, field.name) for field in dataclasses.fields(method)}
    if isinstance(method, Subspace):
        projection = method.projection
        row |= {"projection": method.family, "normalization": "global", "match_norms": False}
        if isinstance(projection, Random):
            row |= {name: getattr(projection, name) for name in _RANDOM} | {"match_norms": projection.match is not None}
    elif isinstance(method, Peft):
        row["options"] = ", ".join(method.options) or None
    elif isinstance(method, Full) and method.ablation:
        row |= dataclasses.asdict(method.ablation) | {"ablation": method.ablation.edit}
    return {"method": label(method), **{name: row.get(name) for name in _METHOD}}


def to_table(observation: Observation) -> pa.Table:
    """Convert one observation to a table of one row in the canonical schema."""
    trial = observation.trial
    model, task, budget = trial.model, trial.task, trial.budget
    row: dict[str, Any] = {name: getattr(observation, name) for name in RECORD if name not in IDENTITY}
    row |= {
        "schema_version": SCHEMA_VERSION,
        "trial_id": trial.id,
        "setup_id": trial.setup.id,
        "condition_id": trial.condition.id,
        "setup": trial.setup.identity,
        "curve": [{"step": step, "score": score} for step, score in observation.curve],
        "correct": _correct(observation),
        "model": model.name,
        "revision": model.revision,
        "head_from": model.head_from,
        "model_dtype": model.dtype,
        "model_content": model.content,
        "task": task.name,
        "metric": task.metric,
        "trajectories": list(trial.trajectories),
    }
    row |= {name: getattr(trial, name) for name in ("d", "eta", "learning_rate")}
    row |= {f"{name}_seed": seed for name, seed in dataclasses.asdict(trial.seeds).items()}
    row |= {
        f"task_{field.name}": getattr(task, field.name)
        for field in dataclasses.fields(Task)
        if field.name not in ("name", "metric", "where")
    }
    row["task_where"] = [{"column": column, "value": value} for column, value in task.where]
    row |= method_columns(trial.method)
    if trial.is_theta_0:
        row["learning_rate"] = None  # no step is taken
    row |= {name if name != "steps" else "budget_steps": value for name, value in dataclasses.asdict(budget).items()}
    columns = [_column(row[field.name], field.type) for field in OBSERVATIONS]
    return pa.Table.from_arrays(columns, schema=OBSERVATIONS)


def from_row(row: Mapping[str, Any], setup_of: Callable[[str], Setup] | None = None) -> Observation:
    """Rebuild an observation from a row as `pa.Table.to_pylist` gives it.

    The inverse of `to_table`; `predicted` and `target` come back as float32 holds them, and columns of `ANSWERS` that
    the row lacks as empty.

    Args:
        row: The columns of `RECORD`.
        setup_of: From `setup_reader`, the same for all rows of a table.

    Raises:
        ValueError: The row's trial cannot be rebuilt, or is not the trial that its id names; or a value is none that an
            observation can have. The message is one line.
    """
    setup = (setup_of or setup_reader())(row["setup"])
    check_d_and_eta(row["d"], row["eta"])
    trial = Trial(setup, row["d"], row["eta"])
    if (setup.id, trial.id) != (row["setup_id"], row["trial_id"]):
        raise ValueError(f"the row is named {row['trial_id']}, its trial is {trial.id}")
    values = {
        "metrics": _pairs(row.get("metrics") or ()),
        "curve": tuple(point and (point["step"], point["score"]) for point in row["curve"] or ()),
        **{name: tuple(row.get(name) or ()) for name in ("predicted", "target", "labels")},
        "provenance": _pairs(row.get("provenance") or ()),
        # A column that came later is null in earlier rows.
        **{name: _DEFAULTS.get(name) if row[name] is None else row[name] for name in _PLAIN},
    }
    check_observation(values)
    return Observation(trial, **values)


def _correct(observation: Observation) -> list[bool] | None:
    """Compare predictions with targets, or give None where being right is not a yes or no."""
    task = observation.trial.task
    if task.num_labels == 1 or task.metric == "nll" or not observation.predicted:
        return None
    return [predicted == target for predicted, target in zip(observation.predicted, observation.target, strict=True)]


def _column(value: Any, kind: pa.DataType) -> pa.Array:
    """Make a column of one value; an int given where a float belongs is a float."""
    if value is not None and pa.types.is_floating(kind):
        value = float(value)
    return pa.array([value], type=kind)


def _pairs(value: Any) -> tuple[tuple[str, Any], ...]:
    """Accept a map column as pairs or as a dict."""
    return tuple((key, item) for key, item in (value.items() if isinstance(value, Mapping) else value))
