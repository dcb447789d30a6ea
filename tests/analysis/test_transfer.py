"""Angles against scipy on the dense bases, and scores arranged by source and target."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from scipy.linalg import subspace_angles

from distsub.analysis.transfer import (
    basis,
    geometry_tables,
    layer_geometry,
    principal_angles,
    transfer_table,
)
from distsub.results.analyses import ANGLES, MODES, SPECTRA, TRANSFER


def checkpoints(count, seed, shared=None):
    draw = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(count):
        row = {
            "a": torch.randn(30, 20, generator=draw, dtype=torch.float64),
            "b": torch.randn(20, generator=draw, dtype=torch.float64),
        }
        rows.append(row)
    if shared is not None:
        rows[0] = shared[0]
    return rows


def dense(rows):
    return np.stack([np.concatenate([row["a"].numpy().ravel(), row["b"].numpy()]) for row in rows])


@pytest.mark.parametrize("centered", [False, True])
def test_angles_are_scipys(centered):
    ours = checkpoints(5, 0)
    theirs = checkpoints(4, 1, shared=ours)
    rows = [dense(each) - centered * dense(each).mean(axis=0) for each in (ours, theirs)]
    expected = np.sort(
        subspace_angles(*[np.linalg.svd(w, full_matrices=False)[2][: len(w) - centered].T for w in rows])
    )
    (m, _), (n, _) = (basis(dense(each) @ dense(each).T, centered) for each in (ours, theirs))
    found = principal_angles(m, n, dense(ours) @ dense(theirs).T)
    assert found == pytest.approx(expected, abs=1e-7)


def test_the_basis_is_orthonormal_and_spans_the_rows_in_order_of_their_singular_values():
    rows = checkpoints(5, 0)
    w = dense(rows)
    m, values = basis(w @ w.T)
    v = w.T @ m
    assert v.T @ v == pytest.approx(np.eye(5), abs=1e-10)
    _u, s, vt = np.linalg.svd(w, full_matrices=False)
    assert values == pytest.approx(s) and np.abs(np.sum(v.T * vt, axis=1)) == pytest.approx(np.ones(5))


def test_rows_that_depend_on_each_other_lower_the_rank():
    w = dense(checkpoints(3, 0))
    w = np.concatenate([w, w[:1] * 2])
    m, values = basis(w @ w.T)
    assert m.shape == (4, 3) and len(values) == 3
    assert basis(np.zeros((3, 3)))[0].shape == (3, 0)
    assert principal_angles(np.zeros((3, 0)), m, np.zeros((3, 4))).size == 0


def test_one_layers_rows():
    ours = checkpoints(5, 0)
    found = {"t0": ours, "t1": checkpoints(4, 1, shared=ours), "t2": checkpoints(4, 2)}
    about = {name: {"task": f"task{name}", "model": "m", "head_seed": 0, "data_seed": 0} for name in found}
    spectra, angles = geometry_tables(*layer_geometry(found, "l0", ["a", "b"]), about)
    assert spectra.schema == SPECTRA and angles.schema == ANGLES
    mine = [row for row in spectra.to_pylist() if row["trajectory"] == "t0"]
    assert [row["singular_value"] for row in mine] == pytest.approx(np.linalg.svd(dense(ours))[1].tolist())
    assert mine[-1]["cumulative"] == pytest.approx(1) and [row["rank"] for row in mine] == [1, 2, 3, 4, 5]
    pairs = {(row["source_trajectory"], row["target_trajectory"]): row for row in angles.to_pylist()}
    assert set(pairs) == {("t0", "t0"), ("t0", "t1"), ("t0", "t2"), ("t1", "t1"), ("t1", "t2"), ("t2", "t2")}
    assert pairs["t0", "t0"]["overlap"] == pytest.approx(1) and pairs["t0", "t1"]["angles"][0] == pytest.approx(
        0, abs=1e-7
    )
    assert pairs["t0", "t2"]["overlap"] == pytest.approx(pairs["t0", "t2"]["expected_overlap"], rel=0.8)
    assert pairs["t0", "t2"]["size"] == 620 and pairs["t0", "t2"]["source"] == "taskt0"
    leading = layer_geometry(found, "l0", ["a", "b"], d=2)[1]
    assert all(row["dims"] == 2 for row in leading)


def test_random_subspaces_overlap_as_expected():
    overlaps = []
    for seed in range(0, 40, 2):
        rows = layer_geometry({"x": checkpoints(5, seed), "y": checkpoints(5, seed + 1)}, "l", ["a"])[1]
        overlaps.append(rows[1]["overlap"])
    assert np.mean(overlaps) == pytest.approx(5 / 600, rel=0.25)


def mode(variant, task, score, full=0.9, d=8):
    row = {"model": "m", "task": task, "variant": variant, "d": d, "metric": "accuracy", "chance": 0.5, "seeds": 2}
    return row | {"score": score, "full": full, "scores": [score, score]}


def test_scores_by_source_and_target():
    rows = [
        mode("full", "a", 0.9, d=None),
        mode("random", "a", 0.6),
        mode("intrinsic", "a", 0.87),
        mode("inductive:b", "a", 0.75),
        mode("inductive:b", "a", 0.7, d=4),
        mode("unified", "a", 0.88),
        mode("inductive:b zhang2023", "a", 0.75),
        mode("random zhang2023", "a", 0.7),
        mode("random", "b", 0.95),
        mode("intrinsic", "b", 0.97),
    ]
    table = transfer_table(pa.Table.from_pylist(rows, schema=MODES))
    assert table.schema == TRANSFER
    found = {(row["source"], row["target"], row["d"]): row for row in table.to_pylist() if row["training"] == "default"}
    assert [r["recovered"] for r in table.to_pylist() if r["training"] == "zhang2023"] == pytest.approx([0.25])
    assert set(found) == {("a", "a", 8), ("b", "a", 8), ("b", "a", 4), ("b", "b", 8)}
    assert found["a", "a", 8]["recovered"] == pytest.approx(0.9) and found["b", "a", 8]["recovered"] == pytest.approx(
        0.5
    )
    assert found["b", "a", 4]["random"] is None and found["b", "a", 4]["recovered"] is None
    assert found["b", "b", 8]["recovered"] is None  # full fine-tuning does not beat random there
