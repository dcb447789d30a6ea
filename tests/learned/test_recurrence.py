"""The permutation test: right under its null, and sharp against what it is for."""

import numpy as np
import pyarrow as pa
import pytest

from distsub.learned.outliers import find
from distsub.learned.recurrence import recurrence, recurrence_table
from distsub.learned.schema import OUTLIER_SUMMARIES, OUTLIERS, RECURRENCE


def test_an_index_that_every_unit_shares_is_found():
    draw = np.random.default_rng(0)
    hits = draw.poisson(0.3, size=(6, 64))
    hits[:, 17] += 6
    found = recurrence(hits, permutations=199)
    assert found.p == 1 / 200 and found.top[0][:2] == (17, 6) and found.top[0][3] == 1 / 200
    assert found.statistic > 2 * found.expected
    assert found.top[1][3] > 0.05  # the others are not carried along


def test_units_that_crowd_on_indices_of_their_own_do_not_count_as_agreement():
    hits = np.zeros((5, 64))
    hits[np.arange(5), [3, 9, 20, 41, 60]] = 50
    assert recurrence(hits, permutations=199).p > 0.3


def test_p_values_are_valid_under_the_null():
    draw = np.random.default_rng(1)
    p = [recurrence(draw.poisson(0.5, size=(4, 24)), permutations=99, seed=s).p for s in range(300)]
    for level in (0.05, 0.1, 0.3):  # valid: not below the level more often than it says, up to four sigma
        assert np.mean(np.array(p) <= level) <= level + 4 * (level * (1 - level) / 300) ** 0.5


def test_fewer_than_two_units_with_outliers_prove_nothing():
    assert recurrence(np.zeros((3, 8))).p == 1.0
    alone = np.zeros((3, 8))
    alone[1, 2] = 5
    assert recurrence(alone).p == 1.0


def test_same_seed_same_answer():
    hits = np.random.default_rng(2).poisson(1, size=(3, 16))
    assert recurrence(hits, 99, seed=5) == recurrence(hits, 99, seed=5)


@pytest.fixture
def tables():
    """Four tasks x two seeds x two layers; output index 5 of the first tensor recurs in all, nothing else does."""
    found, described = [], []
    for task in range(4):
        for seed in range(2):
            for layer in range(2):
                draw = np.random.default_rng([task, seed, layer])
                name = f"e.layer.{layer}"
                update = {
                    f"{name}.a.weight": draw.normal(size=(32, 24)),
                    f"{name}.b.weight": draw.normal(size=(32, 24)),
                }
                update[f"{name}.a.weight"][5, draw.integers(24, size=6)] += 12
                about = {
                    "update": f"{task}-{seed}",
                    "kind": "adapter",
                    "task": f"t{task}",
                    "model": "m",
                    "method": "did",
                }
                about |= {"projection": None, "d": 32, "projection_seed": seed, "head_seed": seed, "data_seed": seed}
                for into, table, schema in zip(
                    (found, described), find(name, update), (OUTLIERS, OUTLIER_SUMMARIES), strict=True
                ):
                    rows = [{**about, "k": 3.0, **row} for row in table.to_pylist()]
                    into.append(pa.Table.from_pylist(rows, schema=schema))
    return pa.concat_tables(found), pa.concat_tables(described)


def test_the_table_asks_across_tasks_seeds_and_layers(tables):
    table = recurrence_table(*tables, permutations=99)
    assert table.schema == RECURRENCE
    rows = table.to_pylist()
    assert {row["across"] for row in rows} == {"tasks", "seeds", "layers"}
    strong = [row for row in rows if row["tensor"].endswith("a.weight") and row["axis"] == "output"]
    assert len(strong) == 2 + 8 + 4
    tasks = [row for row in strong if row["across"] == "tasks"]
    assert all(row["units"] == 4 and row["p"] == 0.01 and row["p_adjusted"] <= 0.05 for row in tasks)
    assert all(row["top"][0]["index"] == 5 for row in strong)
    assert all(row["indices"] == 32 for row in strong)
    others = [row for row in rows if not (row["tensor"].endswith("a.weight") and row["axis"] == "output")]
    assert np.mean([row["p_adjusted"] <= 0.05 for row in others]) <= 0.1
    assert {row["indices"] for row in others} == {24, 32}
    layers = [row for row in rows if row["across"] == "layers"]
    assert "a.weight" in {row["tensor"] for row in layers} <= {"a.weight", "b.weight"}
    assert {row["layer"] for row in layers} == {None} and all(row["units"] == 2 for row in layers)


def test_no_updates_no_questions():
    assert recurrence_table(OUTLIERS.empty_table(), OUTLIER_SUMMARIES.empty_table()).num_rows == 0
