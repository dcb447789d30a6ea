"""Outliers of a layer: counts, places, and what a Gaussian gives."""

import numpy as np
import pyarrow as pa
import pytest

from distsub.learned.outliers import component_of, find, gaussian_count, gaussian_max, gaussian_max_p
from distsub.learned.schema import OUTLIER_SUMMARIES, OUTLIERS

LAYER = "bert.encoder.layer.0"
QUERY, NORM = f"{LAYER}.attention.self.query.weight", f"{LAYER}.output.LayerNorm.weight"


def gaussian(shape, seed=0, scale=1.0):
    return np.random.default_rng(seed).normal(size=shape) * scale


def test_the_rows_are_the_entries_of_the_dense_definition():
    update = {QUERY: gaussian((40, 30)), NORM: gaussian(40, 1, 3.0)}
    theta_0 = {name: values + 10 for name, values in update.items()}
    found, summaries = find(LAYER, update, theta_0, k=2.0)
    everything = np.concatenate([update[QUERY].ravel(), update[NORM]])
    mean, sigma = everything.mean(), everything.std()
    by_layer = {name: set(np.flatnonzero(abs(x.ravel() - mean) >= 2 * sigma)) for name, x in update.items()}
    by_tensor = {name: set(np.flatnonzero(abs(x.ravel() - x.mean()) >= 2 * x.std())) for name, x in update.items()}
    rows = found.to_pylist()
    for name, x in update.items():
        mine = [row for row in rows if row["tensor"] == name]
        assert {row["position"] for row in mine} == by_layer[name] | by_tensor[name]
        assert {row["position"] for row in mine if abs(row["layer_sigmas"]) >= 2} == by_layer[name]
        assert {row["position"] for row in mine if abs(row["tensor_sigmas"]) >= 2} == by_tensor[name]
        for row in mine:
            at = (row["row"], row["column"]) if x.ndim == 2 else row["row"]
            assert x[at] == row["value"] and row["weight"] == x[at] + 10
    tensors = {row["tensor"]: row for row in summaries.to_pylist()}
    assert tensors[QUERY]["layer_outliers"] == len(by_layer[QUERY]) and tensors[QUERY]["outliers"] == len(
        by_tensor[QUERY]
    )
    assert tensors[None]["outliers"] == tensors[None]["layer_outliers"] == sum(map(len, by_layer.values()))
    assert (tensors[QUERY]["rows"], tensors[QUERY]["columns"], tensors[NORM]["columns"]) == (40, 30, None)
    assert tensors[None]["size"] == 1240 and tensors[None]["sigma"] == pytest.approx(sigma)


def test_a_gaussian_has_none_beyond_what_chance_gives():
    [_, row] = find(LAYER, {QUERY: gaussian((400, 300))})[1].to_pylist()
    assert row["outliers"] == pytest.approx(row["expected_outliers"], abs=4 * row["expected_outliers"] ** 0.5)
    assert abs(row["excess_kurtosis"]) < 0.1 and row["max_p"] > 0.01
    assert row["max_sigmas"] == pytest.approx(row["expected_max_sigmas"], abs=1.0)


def test_one_large_entry_shows_in_the_largest_and_the_kurtosis_where_the_count_says_nothing():
    update = gaussian((400, 300))
    update[7, 8] = 40
    found, summaries = find(LAYER, {QUERY: update})
    [_, row] = summaries.to_pylist()
    assert row["outliers"] < row["expected_outliers"] * 1.2
    assert row["max_sigmas"] > 30 and row["excess_kurtosis"] > 10 and row["max_p"] == 0.0
    largest = max(found.to_pylist(), key=lambda each: abs(each["layer_sigmas"]))
    assert (largest["row"], largest["column"]) == (7, 8)


def test_a_tensor_that_moves_more_is_full_of_layer_outliers_but_has_none_of_its_own():
    update = {QUERY: gaussian((200, 200)), NORM: gaussian(200, 1, 30.0)}
    rows = {row["tensor"]: row for row in find(LAYER, update)[1].to_pylist()}
    assert rows[NORM]["layer_outliers"] > 100 and rows[NORM]["outliers"] <= 3
    assert rows[None]["excess_kurtosis"] > 10 and abs(rows[NORM]["excess_kurtosis"]) < 1


@pytest.mark.parametrize("values", [np.zeros((4, 5)), np.full((4, 5), 0.1)])
def test_an_update_that_is_one_constant_has_no_outliers_and_no_tails(values):
    found, summaries = find(LAYER, {QUERY: values})
    assert found.num_rows == 0
    for row in summaries.to_pylist():
        assert row["outliers"] == 0 and row["excess_kurtosis"] is None and row["max_sigmas"] is None


def test_columns_are_those_of_the_tables():
    found, summaries = find(LAYER, {QUERY: gaussian((40, 30))})
    for table, schema in ((found, OUTLIERS), (summaries, OUTLIER_SUMMARIES)):
        assert all(schema.field(field.name).type == field.type for field in table.schema)
    assert pa.types.is_null(found["column"].type) is False


def test_gaussian_expectations_against_simulation():
    draw = np.random.default_rng(0)
    for size in (1, 10, 3000):
        largest = np.abs(draw.normal(size=(2000, size))).max(axis=1)
        assert gaussian_max(size) == pytest.approx(largest.mean(), abs=4 * largest.std() / 2000**0.5)
        reached = (largest >= 1.5).mean()
        assert gaussian_max_p(1.5, size) == pytest.approx(reached, abs=0.05)
    assert gaussian_max(0) == 0 and gaussian_count(1_000_000) == pytest.approx(2699.8, abs=0.1)
    assert 5.3 < gaussian_max(7_000_000) < 5.4  # where 7e6 x P(|z| > x) is 0.8 and 0.5


@pytest.mark.parametrize(
    ("name", "component"),
    [
        ("bert.encoder.layer.0.attention.self.key.weight", "attention key"),
        ("roberta.encoder.layer.11.attention.self.value.weight", "attention value"),
        ("electra.encoder.layer.1.attention.output.dense.weight", "attention output"),
        ("bert.encoder.layer.0.intermediate.dense.weight", "intermediate"),
        ("bert.encoder.layer.0.output.dense.weight", "output dense"),
        ("bert.encoder.layer.0.output.dense.bias", "biases"),
        ("bert.encoder.layer.0.attention.output.LayerNorm.weight", "LayerNorm"),
        ("bert.encoder.layer.0.attention.output.LayerNorm.bias", "LayerNorm"),
        ("distilbert.transformer.layer.0.attention.q_lin.weight", "attention query"),
        ("distilbert.transformer.layer.0.sa_layer_norm.weight", "LayerNorm"),
        ("distilbert.transformer.layer.0.ffn.lin2.weight", "output dense"),
        ("model.layers.0.input_layernorm.weight", "LayerNorm"),
        ("model.layers.0.self_attn.o_proj.weight", "attention output"),
        ("transformer.h.0.ln_1.weight", "LayerNorm"),
    ],
)
def test_components_of_known_architectures(name, component):
    assert component_of(name) == component


def test_an_unknown_tensor_is_a_component_of_its_own():
    assert component_of("encoder.block.3.mixer.weight", "encoder.block.3") == "mixer.weight"
