"""Paired comparisons: against the library's metrics, and against cases with known answers."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from distsub import metrics
from distsub.learned.ablation import ablations_table, compare, mcnemar, score, t_interval
from distsub.learned.schema import ABLATIONS, MASKS
from distsub.records import Ablation, Budget, Full, Model, Observation, Seeds, Setup, Task, Trial

TASK = Task("t", "x", ("a",))


def observation(correct, seed=0, method=Full(), task=TASK):  # noqa: B008
    target = np.arange(len(correct)) % 2
    predicted = np.where(correct, target, 1 - target)
    trial = Trial(Setup(Model("m"), task, method, 0.0001, Budget(steps=10), Seeds(0, seed, seed)))
    value = float(np.mean(correct)) if task.metric == "accuracy" else 0.5
    return Observation(
        trial,
        "finished",
        score=value,
        chance=0.5,
        predicted=tuple(map(float, predicted)),
        target=tuple(map(float, target)),
    )


@pytest.mark.parametrize(
    ("metric", "labels"),
    [
        ("accuracy", 2),
        ("accuracy", 3),
        ("matthews", 2),
        ("matthews", 4),
        ("f1", 2),
        ("macro_f1", 2),
        ("macro_f1", 4),
        ("pearson", 1),
    ],
)
def test_scores_of_many_samples_are_the_librarys(metric, labels):
    draw = np.random.default_rng(0)
    task = Task("t", "x", ("a",), metric=metric, num_labels=labels)
    samples = draw.normal(size=(2, 20, 50)) if labels == 1 else draw.integers(labels, size=(2, 20, 50))
    predicted, target = samples
    if labels == 1:
        target = target + predicted
    predicted[0] = 1  # says always the same
    expected = [metrics.evaluate(task, p, t)[metric] for p, t in zip(predicted, target, strict=True)]
    assert score(metric, predicted, target) == pytest.approx(np.array(expected), abs=1e-12)


def test_t_interval_against_the_formula():
    low, high, p = t_interval(np.array([0.1, 0.2, 0.3]))
    half = 4.302652729911275 * 0.1 / 3**0.5  # t(0.975, 2) s / sqrt(n)
    assert (low, high) == pytest.approx((0.2 - half, 0.2 + half)) and p == pytest.approx(0.0741799)
    assert t_interval(np.array([0.3])) == (None, None, None)
    assert t_interval(np.array([0.3, 0.3])) == (0.3, 0.3, None)


def test_mcnemar_is_the_coin_of_the_discordant_examples():
    ours = np.array([True] * 6 + [False] * 4)
    assert mcnemar(ours, ours) == 1.0
    theirs = np.array([False] * 6 + [False] * 4)
    assert mcnemar(ours, theirs) == mcnemar(theirs, ours) == pytest.approx(2 / 2**6)


def test_a_clear_difference_is_seen_by_all_three():
    draw = np.random.default_rng(0)
    good = [observation(draw.random(300) < 0.85, seed) for seed in range(3)]
    bad = [observation(draw.random(300) < 0.5, seed) for seed in range(3)]
    found = compare(bad, good)
    assert (
        found.difference < -0.25
        and found.difference_high < 0
        and found.examples_high < -0.2
        and max(found.mcnemar_p) < 1e-6
    )
    assert found.examples_low < found.difference < found.examples_high and found.difference_low < found.difference
    same = compare(good, good)
    assert (
        same.difference == 0
        and (same.difference_low, same.difference_high, same.t_p) == (0, 0, None)
        and same.mcnemar_p == [1.0] * 3
    )
    assert (same.examples_low, same.examples_high) == (0, 0)


def test_the_bootstrap_covers_what_it_should():
    """A difference of 0.1 in accuracy, 60 examples: the 95% interval misses it in 5% of the draws, up to 4 sigma."""
    draw, missed = np.random.default_rng(1), 0
    for _ in range(60):
        a, b = (observation(draw.random(120) < p) for p in (0.8, 0.7))
        found = compare([a], [b], resamples=199)
        missed += not found.examples_low <= 0.1 <= found.examples_high
    assert missed <= 60 * 0.05 + 4 * (60 * 0.05 * 0.95) ** 0.5


def test_other_examples_are_not_compared_one_by_one():
    a = observation(np.ones(10, bool))
    b = replace(a, target=a.target[::-1], predicted=a.predicted[::-1])
    found = compare([a], [b])
    assert found.examples_low is None and found.mcnemar_p is None and found.difference == 0


def mask(name, kind, seed):
    row = {"mask": name, "kind": kind, "method": "intrinsic", "head_seed": seed, "data_seed": seed, "positions": 7}
    return row


def test_the_table_pairs_by_seed_and_compares_with_none_and_with_the_outliers():
    draw = np.random.default_rng(0)
    rows, masks = [], []
    for seed in range(3):
        rows.append(observation(draw.random(200) < 0.8, seed))
        for kind, p in (("outliers", 0.5), ("random", 0.79), ("magnitude", 0.6)):
            name = f"{kind}{seed}"
            masks.append(mask(name, kind, seed))
            if (kind, seed) != ("magnitude", 2):  # one that has not run yet
                rows.append(observation(draw.random(200) < p, seed, Full(Ablation("zero", name))))
    rows.append(observation(np.ones(200, bool), 0, Full(Ablation("zero", "unknown"))))
    table = ablations_table(rows, pa.Table.from_pylist(masks, schema=MASKS))
    assert table.schema == ABLATIONS
    found = {(row["mask"], row["versus"]): row for row in table.to_pylist()}
    assert set(found) == {(m, v) for m in ("outliers", "random", "magnitude") for v in ("none", "outliers") if m != v}
    assert found["outliers", "none"]["seeds"] == 3 and found["magnitude", "none"]["seeds"] == 2
    assert found["outliers", "none"]["difference_high"] < -0.1 and found["random", "outliers"]["difference_low"] > 0.1
    assert found["random", "none"]["difference_low"] < 0 < found["random", "none"]["difference_high"]
    assert found["random", "none"]["positions"] == [7, 7, 7] and found["random", "none"]["edit"] == "zero"


def test_a_training_that_diverged_counts_as_chance_and_one_in_error_not_at_all():
    """Else weights whose loss ruins the training would be missed where they matter most."""
    draw = np.random.default_rng(0)
    rows = [observation(draw.random(200) < 0.8, seed) for seed in range(3)]
    masks = [mask(f"outliers{seed}", "outliers", seed) for seed in range(3)]
    for seed, status in enumerate(("finished", "diverged", "error")):
        seen = observation(draw.random(200) < 0.8, seed, Full(Ablation("zero", f"outliers{seed}")))
        rows.append(seen if status == "finished" else replace(seen, status=status, score=None, predicted=()))
    [found] = ablations_table(rows, pa.Table.from_pylist(masks, schema=MASKS)).to_pylist()
    assert (found["seeds"], found["scores"][1]) == (2, 0.5)
    assert found["difference"] == pytest.approx(np.mean([rows[3].score - rows[0].score, 0.5 - rows[1].score]))
    assert found["examples_low"] is None and found["mcnemar_p"] is None


def test_masks_of_other_dimensions_are_not_mixed():
    draw, rows, masks = np.random.default_rng(0), [observation(np.ones(50, bool))], []
    for d in (2, 8):
        masks.append(mask(f"outliers{d}", "outliers", 0) | {"d": d})
        rows.append(observation(draw.random(50) < d / 10, 0, Full(Ablation("zero", f"outliers{d}"))))
    found = ablations_table(rows, pa.Table.from_pylist(masks, schema=MASKS)).to_pylist()
    assert {row["d"]: row["score"] for row in found} == {2: rows[1].score, 8: rows[2].score}


def test_nothing_run_is_an_empty_table():
    assert ablations_table([], MASKS.empty_table()).num_rows == 0
