"""Masks and controls: sizes, places, and how well they match."""

import numpy as np
import pyarrow as pa
import pytest

from distsub.learned.masks import (
    CONTROLS,
    _nearest,
    matched_by_magnitude,
    matched_by_tensor,
    outlier_positions,
    random_positions,
)
from distsub.learned.outliers import find
from distsub.learned.schema import OUTLIERS


@pytest.fixture
def layers():
    draw = np.random.default_rng(0)
    return {
        f"l{i}": {f"l{i}.dense": draw.normal(size=(50, 40)), f"l{i}.norm": 1 + 0.1 * draw.normal(size=50)}
        for i in range(2)
    }


@pytest.fixture
def mask():
    draw = np.random.default_rng(1)
    many = {"l0.dense": 60, "l0.norm": 20, "l1.dense": 5}
    sizes = {"l0.dense": 2000, "l0.norm": 50, "l1.dense": 2000}
    return {name: np.sort(draw.choice(sizes[name], n, replace=False)) for name, n in many.items()}


def count(positions, layer):
    return sum(len(at) for name, at in positions.items() if name.startswith(f"{layer}."))


def test_the_mask_is_the_entries_beyond_k_sigma_of_the_scope(layers):
    found, _ = find("l0", {name: x * (30 if "norm" in name else 1) for name, x in layers["l0"].items()}, k=2.0)
    rows = pa.Table.from_pylist(
        [{"update": "u", "kind": "adapter", **row} for row in found.to_pylist()], schema=OUTLIERS
    )
    for scope in ("layer", "tensor"):
        positions = outlier_positions(rows, scope, 2.5)
        expected = {(r["tensor"], r["position"]) for r in rows.to_pylist() if abs(r[f"{scope}_sigmas"]) >= 2.5}
        assert {(name, at) for name, ats in positions.items() for at in ats} == expected and expected
        assert all(np.all(np.diff(at) > 0) for at in positions.values())
    assert len(outlier_positions(rows, "layer", 2.5)["l0.norm"]) == 50
    assert outlier_positions(rows.slice(0, 0)) == {}


@pytest.mark.parametrize("kind", CONTROLS)
def test_controls_avoid_the_mask_and_keep_its_size(kind, mask, layers):
    control = CONTROLS[kind](mask, layers, np.random.default_rng(3))
    for name, at in control.items():
        assert at.dtype == np.int64 and np.all(np.diff(at) > 0)
        assert not np.isin(at, mask.get(name, [])).any()
        assert at.min() >= 0 and at.max() < layers[name[:2]][name].size
    assert [count(control, layer) for layer in layers] == [count(mask, layer) for layer in layers] == [80, 5]
    again = CONTROLS[kind](mask, layers, np.random.default_rng(3))
    assert all(np.array_equal(control[name], again[name]) for name in control | again)


def test_random_follows_the_layer_and_so_misses_the_norms(mask, layers):
    norms = [len(random_positions(mask, layers, np.random.default_rng(s)).get("l0.norm", [])) for s in range(40)]
    assert np.mean(norms) == pytest.approx(80 * 30 / (2050 - 80), abs=0.8)


def test_the_matched_controls_keep_every_tensors_count(mask, layers):
    for match in (matched_by_tensor, matched_by_magnitude):
        control = match(mask, layers, np.random.default_rng(0))
        assert {name: len(at) for name, at in control.items()} == {name: len(at) for name, at in mask.items()}


def test_magnitude_matches_what_tensor_does_not(layers):
    theta_0 = layers["l0"]["l0.dense"].ravel()
    mask = {"l0.dense": np.sort(np.argsort(abs(theta_0))[-100:-40])}  # large weights, the largest left as partners
    draw = np.random.default_rng(0)
    mean = {
        name: abs(theta_0[CONTROLS[name](mask, layers, draw)["l0.dense"]]).mean() for name in ("tensor", "magnitude")
    }
    target = abs(theta_0[mask["l0.dense"]]).mean()
    assert mean["magnitude"] == pytest.approx(target, rel=0.1) and mean["tensor"] < 0.6 * target


def test_a_tensor_without_enough_others_gives_all_it_has(layers):
    mask = {"l0.norm": np.arange(40)}
    for match in (matched_by_tensor, matched_by_magnitude):
        assert match(mask, layers, np.random.default_rng(0))["l0.norm"].tolist() == list(range(40, 50))
        assert match({"l0.norm": np.arange(50)}, layers, np.random.default_rng(0)) == {}


def test_each_partner_is_the_nearest_that_was_free():
    """Against a plain search over all free entries, in the same order."""
    for seed in range(20):
        draw = np.random.default_rng(seed)
        magnitude = draw.exponential(size=60)
        taken = np.sort(draw.choice(60, 25, replace=False))
        found = _nearest(magnitude, taken, np.random.default_rng(seed + 100))
        free, expected = set(range(60)) - set(taken.tolist()), []
        rank = np.argsort(np.argsort(magnitude))
        by_rank = {int(rank[at]): int(at) for at in taken}
        for start in np.random.default_rng(seed + 100).permutation(rank[taken]):
            best = min(free, key=lambda other: abs(magnitude[other] - magnitude[by_rank[int(start)]]))
            free.remove(best)
            expected.append(best)
        assert found.tolist() == sorted(expected)
