"""Ways of training over seeds: one step size for all of them, differences paired by seed."""

import pytest

from distsub.analysis.modes import modes_table
from distsub.results.analyses import MODES
from distsub.trial import Budget, Method, Observation, Seeds, Task, Trial

TASK, BUDGET = Task("t", "x", ("a",)), Budget(steps=10)
FULL, DID = Method("full"), Method("did", "fastfood", "global")


def row(method, seed, score, rate=1e-4, d=None, status="finished"):
    eta = None if d is None else rate
    trial = Trial("m", TASK, method, d, 1e-4 if d else rate, eta, Seeds(seed if d else 0, seed, seed), BUDGET)
    return Observation(trial, status, score=score, chance=0.5)


def test_one_step_size_serves_all_seeds():
    rows = [
        row(FULL, s, x, rate)
        for rate, scores in ((1e-4, (0.8, 0.9)), (2e-4, (0.95, 0.7)))
        for s, x in enumerate(scores)
    ]
    [full] = modes_table(rows).to_pylist()
    assert (full["rate"], full["rates"], full["scores"]) == (1e-4, 2, [0.8, 0.9])  # not 0.95 and 0.9
    assert full["difference"] == 0 and full["score"] == pytest.approx(0.85) and full["d"] is None


def test_differences_are_paired_by_seed():
    rows = [row(FULL, s, 0.8 + 0.05 * s) for s in range(3)]
    rows += [row(DID, s, 0.7 + 0.05 * s, 0.3, d=8) for s in range(3)] + [row(DID, 5, 0.1, 0.3, d=8)]
    table = modes_table(rows)
    assert table.schema == MODES
    did, full = table.to_pylist()
    assert did["difference"] == pytest.approx(-0.1) and did["difference_low"] == pytest.approx(-0.1, abs=1e-6)
    assert did["seeds"] == 4 and did["full"] == pytest.approx(0.85) and did["variant"] == "did"
    assert full["score_low"] < 0.85 < full["score_high"]


def test_diverged_counts_as_chance_and_errors_as_nothing():
    rows = [row(DID, 0, None, 0.3, 8, "diverged"), row(DID, 1, 0.7, 0.3, 8), row(DID, 2, None, 0.3, 8, "error")]
    rows[2] = Observation(rows[2].trial, "error")
    [did] = modes_table(rows).to_pylist()
    assert did["scores"] == [0.5, 0.7] and did["full"] is None and did["difference"] is None


def test_ablated_trainings_are_not_full_ones():
    rows = [row(FULL, 0, 0.9), row(Method("full", ablation="zero", mask="m"), 0, 0.5)]
    [full] = modes_table(rows).to_pylist()
    assert full["score"] == 0.9
