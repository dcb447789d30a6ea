"""The Arrow schema of an observation row, and of the two tables that are computed from the rows.

A row is one trial and what came out of it. Everything one filters or groups by is a flat column; the
`trial` column holds the same record as canonical JSON, the very text that is hashed into the trial's
id, so that a trial read back is the trial that was run. Units stand in the names.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from distsub.identity import IDENTITY_VERSION
from distsub.places import Places, task_from
from distsub.results.checks import check_d_and_eta, check_observation, trial_record
from distsub.trial import Budget, Method, Observation, Seeds, Source, Span, Task, Trial

SCHEMA_VERSION = 1
"""Raised when a column changes its meaning; a new nullable column alone does not raise it."""

_TEXT, _INT, _FLOAT = pa.string(), pa.int64(), pa.float64()

OBSERVATIONS = pa.schema(
    [
        pa.field("schema_version", pa.int32(), nullable=False),
        pa.field("trial_id", _TEXT, nullable=False),
        pa.field("status", _TEXT, nullable=False),
        ("task", _TEXT),
        ("model", _TEXT),
        ("revision", _TEXT),
        ("model_content", _TEXT),
        ("method", _TEXT),
        ("projection", _TEXT),
        ("normalization", _TEXT),
        ("groups", _TEXT),
        ("head", _TEXT),
        ("head_from", _TEXT),
        ("block_length", _INT),
        ("variant", _TEXT),
        ("scope", _TEXT),
        ("embeddings", _TEXT),
        ("ensemble", _INT),
        ("start", _TEXT),
        ("step", _FLOAT),
        ("match_norms", pa.bool_()),
        ("trajectories", pa.list_(_TEXT)),
        ("ablation", _TEXT),
        ("mask", _TEXT),
        ("d", _INT),
        ("eta", _FLOAT),
        ("learning_rate", _FLOAT),
        ("step_size", _FLOAT),
        ("projection_seed", _INT),
        ("head_seed", _INT),
        ("data_seed", _INT),
        ("metric", _TEXT),
        ("score", _FLOAT),
        ("chance", _FLOAT),
        ("metrics", pa.map_(_TEXT, _FLOAT)),
        ("curve", pa.list_(pa.struct([("step", _INT), ("score", _FLOAT)]))),
        ("num_examples", _INT),
        ("steps", _INT),
        ("num_tokens", _INT),
        ("wall_s", _FLOAT),
        ("eval_s", _FLOAT),
        ("peak_bytes", _INT),
        ("num_params", _INT),
        ("num_trained", _INT),
        ("num_trained_head", _INT),
        ("num_scales", _INT),
        ("task_source", _TEXT),
        ("task_config", _TEXT),
        ("task_revision", _TEXT),
        ("task_text", pa.list_(_TEXT)),
        ("task_label", _TEXT),
        ("task_num_labels", _INT),
        ("task_labels", pa.list_(_TEXT)),
        ("task_empty", _TEXT),
        ("task_separator", _TEXT),
        ("task_quote", _TEXT),
        ("task_encoding", _TEXT),
        ("task_content", _TEXT),
        ("task_train", _TEXT),
        ("task_validation", _TEXT),
        ("task_where", pa.list_(pa.struct([("column", _TEXT), ("value", _TEXT)]))),
        ("task_holdout", _FLOAT),
        ("budget_steps", _INT),
        ("batch_size", _INT),
        ("max_length", _INT),
        ("train_examples", _INT),
        ("eval_examples", _INT),
        ("warmup", _FLOAT),
        ("eval_every", _INT),
        ("weight_decay", _FLOAT),
        ("max_grad_norm", _FLOAT),
        ("precision", _TEXT),
        ("error", _TEXT),
        ("correct", pa.list_(pa.bool_())),
        ("predicted", pa.list_(pa.float32())),
        ("target", pa.list_(pa.float32())),
        ("labels", pa.list_(_TEXT)),
        ("provenance", pa.map_(_TEXT, _TEXT)),
        ("trial", _TEXT),
    ],
    metadata={"distsub_schema_version": str(SCHEMA_VERSION)},
)
"""One row per trial. `correct` is null for regression and for trials that evaluated nothing."""

SEARCHES = pa.schema(
    [
        ("search", _TEXT),
        ("task", _TEXT),
        ("model", _TEXT),
        ("method", _TEXT),
        ("projection", _TEXT),
        ("normalization", _TEXT),
        ("groups", _TEXT),
        ("head", _TEXT),
        ("variant", _TEXT),
        ("projection_seed", _INT),
        ("head_seed", _INT),
        ("data_seed", _INT),
        ("outcome", _TEXT),
        ("first_passing_d", _INT),
        ("bracket_low", _INT),
        ("bracket_high", _INT),
        ("threshold_rule", _TEXT),
        ("chance_rule", _TEXT),
        ("baseline_score", _FLOAT),
        ("chance", _FLOAT),
        ("threshold", _FLOAT),
        ("threshold_chance_corrected", _FLOAT),
        ("best_score", _FLOAT),
        ("trials", _INT),
        ("num_params", _INT),
        ("num_scales", _INT),
        ("wall_s", _FLOAT),
    ]
)
"""One row per search: task x model x method x seeds. first_passing_d is null unless the outcome is "found".

The bracket is open at its lower end: bracket_low is the largest d known to fail, bracket_high the smallest
known to pass; null where nothing failed or nothing passed. threshold_rule says what the threshold is ("0.9 x full",
"accuracy >= 0.8"), chance_rule whether chance is the "majority" class or "theta_0", the untouched model.
"""

D90 = pa.schema(
    [
        ("task", _TEXT),
        ("model", _TEXT),
        ("method", _TEXT),
        ("projection", _TEXT),
        ("normalization", _TEXT),
        ("groups", _TEXT),
        ("head", _TEXT),
        ("variant", _TEXT),
        ("d90", _FLOAT),
        ("d90_low", _FLOAT),
        ("d90_high", _FLOAT),
        ("d90_outcome", _TEXT),
        ("d90_text", _TEXT),
        ("d90_chance_corrected_text", _TEXT),
        ("first_passing_d", pa.list_(_INT)),
        ("failed_full", _FLOAT),
        ("failed_subspace", _FLOAT),
        ("warnings", pa.list_(_TEXT)),
        ("fit", pa.list_(pa.struct([("d", _FLOAT), ("low", _FLOAT), ("middle", _FLOAT), ("high", _FLOAT)]))),
        ("searches", _INT),
        ("outcomes", pa.map_(_TEXT, _INT)),
        ("threshold_rule", _TEXT),
        ("chance_rule", _TEXT),
        ("baseline_score", _FLOAT),
        ("chance", _FLOAT),
        ("threshold", _FLOAT),
        ("threshold_chance_corrected", _FLOAT),
        ("trials", _INT),
        ("num_params", _INT),
        ("num_scales", _INT),
        ("wall_s", _FLOAT),
    ]
)
"""One row per task x model x method over all its seeds.

d90 is the median, d90_low and d90_high the 95% interval of the d at which the expected score of trainings that train
crosses the threshold, from all rows of all seeds. d90 is null unless d90_outcome is "found", an end of the interval
where it lies beyond the range; d90_text says it all in words. first_passing_d lists what each search found (null where
it found none), in the order of the searches' seeds. failed_full and failed_subspace are the shares of the trainings
that failed to train and are left out (a subspace training that diverged counts). Where threshold_rule is a score to
reach, d90 is the d at which it is reached, and what follows from full fine-tuning is null. fit is the expected score
with its 95% band.
"""

METHOD_COLUMNS = ("method", "projection", "normalization", "groups", "head", "variant")
"""The columns that name a method in all three tables."""


ANSWERS = ("metrics", "predicted", "target", "labels", "provenance")
"""Columns of `from_row` that nearly all of a row's memory goes to and no decision of a search rests on."""

RECORD = ("trial_id", "trial", *(each.name for each in dataclasses.fields(Observation) if each.name != "trial"))
"""The columns that `from_row` needs."""

_DEFAULTS = {
    each.name: each.default for each in dataclasses.fields(Observation) if each.name not in ("trial", "status")
}
_PLAIN = tuple(name for name in RECORD if name not in ("trial_id", "trial", "curve", *ANSWERS))
D_AND_ETA = r'"d": ([^,{}"]+), "eta": ([^,{}"]+), '
"""Where d and eta stand in a trial's canonical JSON: all that the trials of one search differ in."""

_ABLATION_COLUMNS = ("ablation", "mask")
_LEARNED_COLUMNS = ("head_from", "scope", "embeddings", "ensemble", "start", "step", "match_norms")


def trial_to_json(trial: Trial) -> str:
    """Write a trial as the canonical JSON that its id is the hash of."""
    return trial.identity


def trial_from_json(text: str) -> Trial:
    """Rebuild a trial from its canonical JSON; fields that the text does not name are at their defaults.

    A trial that is told by its content has no addresses there: `Places.locate` gives them back.

    Raises:
        ValueError: The text is no trial, or one of another identity version.
    """
    try:
        record = trial_record(text)
        version = record.pop("version")
        method: dict[str, Any] = record.pop("method")
        if method.get("span") is not None:
            method["span"] = _span(method["span"])
        trial = Trial(
            task=task_from(record.pop("task")),
            method=Method(**method),
            seeds=Seeds(**record.pop("seeds")),
            budget=Budget(**record.pop("budget")),
            **record,
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"not a trial: {error}") from None
    if version != IDENTITY_VERSION:
        raise ValueError(f"trial of identity version {version}, this distsub makes version {IDENTITY_VERSION}")
    return trial


class TrialReader:
    """Does what `trial_from_json` does for many trials, of which most differ in d and eta only."""

    def __init__(self, places: Places | None = None) -> None:
        """Start with nothing read.

        Args:
            places: Where the contents of trials lie.
        """
        self._kin: dict[str, Trial] = {}
        self._places = places or Places()

    def read(self, text: str) -> Trial:
        """Rebuild one trial.

        Raises:
            ValueError: As `trial_from_json`.
        """
        found = re.search(D_AND_ETA, text)
        if found is None:
            return self._places.locate(trial_from_json(text))
        rest = text[: found.start()] + text[found.end() :]
        if rest not in self._kin:
            self._kin[rest] = self._places.locate(trial_from_json(text))
        d, eta = json.loads(found[1]), json.loads(found[2])
        check_d_and_eta(d, eta)
        trial = dataclasses.replace(self._kin[rest], d=d, eta=eta)
        vars(trial)["id"] = hashlib.sha256(text.encode()).hexdigest()[:16]  # the text is what `Trial.id` hashes
        return trial


def _span(record: dict[str, Any]) -> Span:
    sources = tuple(
        Source(**{**source, "task": source["task"] and task_from(source["task"])}) for source in record["sources"]
    )
    return Span(**{**record, "sources": sources, "budget": Budget(**record["budget"])})


def to_table(observation: Observation) -> pa.Table:
    """Convert one observation to a table of one row in the canonical schema."""
    trial, task, method, budget = (
        observation.trial,
        observation.trial.task,
        observation.trial.method,
        observation.trial.budget,
    )
    same = ("status", "score", "chance", "num_examples", "steps", "num_tokens", "wall_s", "eval_s", "peak_bytes")
    same += ("num_params", "num_trained", "num_trained_head", "num_scales", "step_size", "error")
    row: dict[str, Any] = {name: getattr(observation, name) for name in same}
    row |= {
        "schema_version": SCHEMA_VERSION,
        "trial_id": trial.id,
        "trial": trial_to_json(trial),
        "metrics": observation.metrics,
        "curve": [{"step": step, "score": score} for step, score in observation.curve],
        "correct": _correct(observation),
        "predicted": observation.predicted,
        "target": observation.target,
        "labels": observation.labels,
        "provenance": observation.provenance,
    }
    row |= {name: getattr(trial, name) for name in ("model", "revision", "d", "eta", "learning_rate")}
    row |= {f"{name}_seed": seed for name, seed in dataclasses.asdict(trial.seeds).items()}
    row |= {"task": task.name, "metric": task.metric, "model_content": trial.weights}
    row |= {
        f"task_{field.name}": getattr(task, field.name)
        for field in dataclasses.fields(Task)
        if field.name not in ("name", "metric", "where")
    }
    row["task_where"] = [{"column": column, "value": value} for column, value in task.where]
    row |= {"method": method.name, "block_length": method.block_length}
    row |= {name: getattr(method, name) for name in (*METHOD_COLUMNS[1:], *_LEARNED_COLUMNS, *_ABLATION_COLUMNS)}
    if method.name == "freeze":
        row["d"] = 0  # a search needs a grid, but there are no coordinates
    if trial.is_theta_0:
        row["learning_rate"] = None  # no step is taken
    row["trajectories"] = [recording.id for recording in trial.recordings]
    row |= {name if name != "steps" else "budget_steps": value for name, value in dataclasses.asdict(budget).items()}
    columns = [_column(row[field.name], field.type) for field in OBSERVATIONS]
    return pa.Table.from_arrays(columns, schema=OBSERVATIONS)


def from_row(row: Mapping[str, Any], reader: TrialReader | None = None) -> Observation:
    """Rebuild an observation from a row as `pa.Table.to_pylist` gives it.

    The inverse of `to_table`; `predicted` and `target` come back as float32 holds them, and columns of `ANSWERS` that
    the row lacks as empty.

    Args:
        row: The columns of `RECORD`.
        reader: The same for all rows of a table.

    Raises:
        ValueError: The row's trial cannot be rebuilt, or is not the trial that its id names; or a value is none that an
            observation can have. The message is one line.
    """
    trial = (reader or TrialReader()).read(row["trial"])
    if trial.id != row["trial_id"]:
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
    if observation.trial.task.num_labels == 1 or not observation.predicted:
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
