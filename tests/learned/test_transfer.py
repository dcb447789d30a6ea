"""Angles against scipy on the dense bases, and scores arranged by source and target."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from scipy.linalg import subspace_angles

from distsub.learned.schema import ANGLES, MODES, SPECTRA, TRANSFER
from distsub.learned.transfer import basis, geometry_tables, layer_geometry, principal_angles, transfer_table


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


def test_angles_are_scipys():
    ours = checkpoints(5, 0)
    theirs = checkpoints(4, 1, shared=ours)
    expected = np.sort(subspace_angles(dense(ours).T, dense(theirs).T))
    (m, _), (n, _) = (basis(dense(each) @ dense(each).T) for each in (ours, theirs))
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


def test_scores_by_source_and_target():
    rows = [
        {"model": "m", "task": "a", "method": "intrinsic", "source": "a", "training": "default", "score": 0.87},
        {"model": "m", "task": "a", "method": "inductive:b", "source": "b", "training": "default", "score": 0.7},
        {"model": "m", "task": "a", "method": "unified", "score": 0.88},
        {"model": "m", "task": "a", "method": "full", "score": 0.9},
    ]
    rows[1] |= {"random": 0.6, "full": 0.9, "recovered": 1 / 3}
    rows[0] |= {"reason": "no random subspace of this d"}
    table = transfer_table(pa.Table.from_pylist(rows, schema=MODES))
    assert table.schema == TRANSFER
    own, other = table.to_pylist()
    assert (own["source"], own["target"], own["recovered"], own["reason"]) == ("a", "a", None, rows[0]["reason"])
    assert (other["source"], other["target"], other["recovered"], other["reason"]) == ("b", "a", 1 / 3, None)
