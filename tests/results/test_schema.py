"""The observation schema: exact round trip, flat columns, and medians of censored values."""

import dataclasses
import json

import pyarrow as pa
import pytest
from builders import examples
from hypothesis import given
from hypothesis import strategies as st

from distsub.records import (
    Ablation,
    Budget,
    Freeze,
    Full,
    Model,
    Observation,
    Random,
    Seeds,
    Setup,
    Subspace,
    Task,
    Trial,
    digest,
)
from distsub.report.schema import D90, SEARCHES
from distsub.results.schema import (
    METHOD_COLUMNS,
    OBSERVATIONS,
    SCHEMA_VERSION,
    from_row,
    method_columns,
    setup_from_json,
    setup_reader,
    to_table,
)

finite = st.floats(allow_nan=False, allow_infinity=False)
single = st.floats(width=32, allow_nan=False)
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
count = st.integers(0, 2**62)
dimension = st.integers(1, 2**62)
positive = st.floats(0, exclude_min=True, allow_nan=False, allow_infinity=False)


def maybe(strategy):
    return st.none() | strategy


tasks = st.builds(
    Task,
    name=text,
    source=text,
    text=st.lists(text, min_size=1, max_size=2).map(tuple),
    num_labels=st.just(1) | st.integers(2, 4),
    config=maybe(text),
    revision=maybe(text),
    validation=maybe(text),
    where=st.lists(st.tuples(text, text), max_size=2).map(tuple),
    holdout=maybe(count),
)
scales = st.sampled_from([None, "layer", "tensor"])
methods = (
    st.builds(Subspace, st.builds(Random, family=text, block_length=maybe(count)), scales=scales, step=maybe(positive))
    | st.builds(Freeze, embeddings=st.sampled_from(["trained", "frozen"]))
    | st.builds(Full, maybe(st.builds(Ablation, st.sampled_from(["zero", "hold", "reset"]), text)))
)
budgets = st.builds(
    Budget,
    steps=count,
    train_examples=maybe(count),
    warmup=finite,
    eval_every=maybe(count),
    weight_decay=finite | st.integers(0, 3),
    max_grad_norm=maybe(finite),
)
setups = st.builds(
    Setup,
    model=st.builds(Model, text, maybe(text)),
    task=tasks,
    method=methods,
    learning_rate=positive,
    budget=budgets,
    seeds=st.builds(Seeds, count, count, count),
)
trials = st.builds(Trial, setups, d=maybe(dimension), eta=maybe(positive))
pairs = st.lists(st.tuples(single, single), max_size=5)
observations = st.builds(
    lambda pairs, score, status, **values: Observation(
        predicted=tuple(a for a, _ in pairs),
        target=tuple(b for _, b in pairs),
        status=status,
        score=score if status in ("diverged", "error") else score or 0.0,
        **values,
    ),
    pairs=pairs,
    trial=trials,
    status=st.sampled_from(["finished", "diverged", "error"]),
    score=maybe(finite),
    chance=maybe(finite),
    metrics=st.dictionaries(text, finite, max_size=3).map(lambda d: tuple(d.items())),
    curve=st.lists(st.tuples(count, finite), max_size=3).map(tuple),
    num_tokens=count,
    wall_s=finite,
    peak_bytes=count,
    step_size=finite,
    error=maybe(text),
    provenance=st.dictionaries(text, text, max_size=3).map(lambda d: tuple(d.items())),
)


@examples(60)
@given(observations)
def test_a_row_gives_back_the_very_observation(observation):
    table = to_table(observation)
    assert table.schema.equals(OBSERVATIONS, check_metadata=True)
    table.validate(full=True)
    again = from_row(table.to_pylist()[0])
    assert again == observation
    assert again.trial.id == observation.trial.id


def test_every_field_of_the_records_has_its_column(observation):
    seen = observation()
    row = to_table(seen).to_pylist()[0]
    built = {"metrics", "curve", "provenance", "predicted", "target", "labels"}
    for field in dataclasses.fields(Observation)[1:]:
        assert field.name in row
        if field.name not in built:
            assert row[field.name] == getattr(seen, field.name)
    renamed = {"name": "task", "metric": "metric"}
    for field in dataclasses.fields(Task):
        column = renamed.get(field.name, f"task_{field.name}")
        if field.name not in ("text", "where", "labels"):
            assert row[column] == getattr(seen.trial.task, field.name)
    for field in dataclasses.fields(Budget):
        assert row["budget_steps" if field.name == "steps" else field.name] == getattr(seen.trial.budget, field.name)
    for field in dataclasses.fields(Subspace):
        if field.name not in ("projection", "kind"):
            assert row[field.name] == getattr(seen.trial.method, field.name)
    assert (row["projection"], row["normalization"], row["block_length"]) == ("fastfood", "global", 4096)
    assert row["trajectories"] == [] and row["method"] == "said"
    assert (row["projection_seed"], row["head_seed"], row["data_seed"]) == (1, 2, 3)
    assert (row["model"], row["d"], row["eta"], row["learning_rate"]) == ("package:tiny", 100, 0.3, 2e-5)
    assert row["schema_version"] == SCHEMA_VERSION


def test_ids_are_hashes_of_what_the_row_says(observation):
    row = to_table(observation()).to_pylist()[0]
    assert digest(row["setup"]) == row["setup_id"]
    assert digest(f"{row['setup_id']} d={row['d']} eta={row['eta']}") == row["trial_id"]
    assert row["condition_id"] == observation().trial.condition.id


def test_correctness_bits_are_for_classification_only(observation):
    assert to_table(observation())["correct"].to_pylist() == [[False, True]]
    assert to_table(observation(status="error"))["correct"].to_pylist() == [None]
    regression = observation()
    task = dataclasses.replace(regression.trial.task, num_labels=1)
    regression = dataclasses.replace(regression, trial=regression.trial.vary(task=task))
    assert to_table(regression)["correct"].to_pylist() == [None]
    with pytest.raises(ValueError, match=r"shorter|longer"):
        to_table(observation(predicted=(1.0,)))


def test_values_that_are_not_finite_survive(observation):
    seen = observation(status="diverged", score=float("inf"), metrics=(("loss", float("nan")),))
    again = from_row(to_table(seen).to_pylist()[0])
    assert again.score == float("inf")
    assert again.metrics[0][1] != again.metrics[0][1]


@given(st.lists(trials, max_size=5), maybe(dimension), maybe(positive))
def test_many_trials_are_read_as_one_is(seen, d, eta):
    setup_of = setup_reader()
    for trial in [*seen, *(trial.vary(d=d, eta=eta) for trial in seen)]:
        text = trial.setup.identity
        assert setup_of(text) == setup_from_json(text) == trial.setup
        assert setup_of(text).id == trial.setup.id and setup_of(text).identity == text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: row | {"trial_id": "0" * 16}, "named 0000"),
        (lambda row: row | {"setup": "{}"}, "not a setup"),
        (lambda row: row | {"setup": "["}, "not a setup"),
        (lambda row: row | {"setup": json.dumps(json.loads(row["setup"]) | {"version": 0})}, "identity version 0"),
        (lambda row: row | {"setup": json.dumps(json.loads(row["setup"]) | {"extra": 0})}, "extra"),
    ],
)
def test_a_row_whose_trial_is_not_its_own_is_refused(observation, change, message):
    row = to_table(observation()).to_pylist()[0]
    with pytest.raises(ValueError, match=message):
        from_row(change(row))


def test_the_tables_name_methods_alike():
    for schema in (OBSERVATIONS, SEARCHES, D90):
        assert set(METHOD_COLUMNS) <= set(schema.names)
        assert len(set(schema.names)) == len(schema.names)
    assert pa.types.is_floating(D90.field("d90").type)


def test_every_field_of_a_subspace_that_is_a_text_or_a_number_is_a_column():
    named = {"kind", "projection", "family", "match"}  # told by the columns method, projection and match_norms
    fields = {field.name for record in (Subspace, Random) for field in dataclasses.fields(record)} - named
    assert fields <= set(OBSERVATIONS.names)
    row = method_columns(Subspace(Random("dense", "per_tensor", 8), "layer", step=0.5))
    assert (row["normalization"], row["block_length"], row["scales"], row["step"]) == ("per_tensor", 8, "layer", 0.5)
