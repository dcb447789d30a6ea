"""Ways of training over seeds: one step size for all of them, differences paired by seed."""

import pytest

from distsub.learned.modes import modes_table
from distsub.learned.schema import MODES
from distsub.records import (
    Ablation,
    Budget,
    Full,
    Learned,
    Model,
    Observation,
    Random,
    Seeds,
    Setup,
    Source,
    Span,
    Subspace,
    Task,
    Trial,
)

TASK, BUDGET = Task("t", "x", ("a",)), Budget(steps=10)
FULL, DID = Full(), Subspace(Random("fastfood"))


def row(method, seed, score, rate=1e-4, d=None, status="finished", task=TASK):
    eta = None if d is None else rate
    trial = Trial(
        Setup(Model("m"), task, method, 0.0001 if d else rate, BUDGET, Seeds(seed if d else 0, seed, seed)), d, eta
    )
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
    table = modes_table(rows[::-1])  # a store's rows come in the order of their ids
    assert table.schema == MODES
    did, full = table.to_pylist()
    assert did["difference"] == pytest.approx(-0.1) and did["difference_low"] == pytest.approx(-0.1, abs=1e-6)
    assert did["scores"] == pytest.approx([0.7, 0.75, 0.8, 0.1])
    assert did["seeds"] == 4 and did["full"] == pytest.approx(0.85) and did["method"] == "did"
    assert full["score_low"] < 0.85 < full["score_high"]


def test_diverged_counts_as_chance_and_errors_as_nothing():
    rows = [row(DID, 0, None, 0.3, 8, "diverged"), row(DID, 1, 0.7, 0.3, 8), row(DID, 2, None, 0.3, 8, "error")]
    rows[2] = Observation(rows[2].trial, "error")
    [did] = modes_table(rows).to_pylist()
    assert did["scores"] == [0.5, 0.7] and did["full"] is None and did["difference"] is None


def test_ablated_trainings_are_not_full_ones():
    rows = [row(FULL, 0, 0.9), row(Full(Ablation("zero", "m")), 0, 0.5)]
    [full] = modes_table(rows).to_pylist()
    assert full["score"] == 0.9


APART = {"scope": "layer", "head": "trained", "embeddings": "frozen"}
PAPER = APART | {"embeddings": "trained", "ensemble": 16, "start": "random", "step": 0.01}


def spanned(*sources, training=APART, **span):
    return Subspace(Learned(Span(sources, 0.0001, BUDGET, **span)), **training)


def test_the_share_of_the_way_from_random_to_full():
    random, paper = Subspace(Random("fastfood"), **APART), Subspace(Random("fastfood"), **PAPER)
    ways = {
        "full": row(FULL, 0, 0.9),
        "random": row(random, 0, 0.6, 0.1, 8),
        "random zhang2023": row(paper, 0, 0.7, 1.0, 8),
        "intrinsic": row(spanned(Source()), 0, 0.87, 1.0, 8),
        "intrinsic raw": row(spanned(Source(), mode="raw"), 0, 0.75, 1.0, 8),
        "intrinsic zhang2023": row(spanned(Source(), training=PAPER), 0, 0.75, 1.0, 8),
        "inductive:b c": row(spanned(Source(Task("b c", "x", ("a",)))), 0, 0.66, 1.0, 4),
        "last": row(spanned(Source(), last=True), 0, 0.9, 1.0, 8),
        "other_seed": row(spanned(Source(shift=1)), 0, 0.57, 1.0, 8),
    }
    found = {each["method"]: each for each in modes_table(list(ways.values())).to_pylist()}
    assert set(found) == set(ways)
    shares = {name: each["recovered"] for name, each in found.items()}
    assert shares.pop("full") is None and found["full"]["reason"] is None
    assert shares.pop("inductive:b c") is None
    assert found["inductive:b c"]["reason"] == "no random subspace of this d"
    wanted = [0, 0, 0.9, 0.5, 0.25, 1, -0.1]
    assert shares == {name: pytest.approx(x) for name, x in zip(list(ways)[1:6] + list(ways)[7:], wanted, strict=True)}
    sources = {name: (each["source"], each["training"]) for name, each in found.items() if each["source"]}
    assert sources == {
        "intrinsic": ("t", "default"),
        "intrinsic raw": ("t", "raw"),
        "intrinsic zhang2023": ("t", "zhang2023"),
        "inductive:b c": ("b c", "default"),
    }


def test_where_full_fine_tuning_learns_nothing_the_scores_stand_and_the_reason_too():
    random, own = Subspace(Random("fastfood"), **APART), spanned(Source())
    scores = {"chance": (0.5, 0.45), "below": (0.7, 0.8), "absent": (None, 0.6)}
    rows = []
    for name, (full, below) in scores.items():
        task = Task(name, "x", ("a",))
        rows += [row(FULL, 0, full, task=task)] if full is not None else []
        rows += [row(random, 0, below, 0.1, 8, task=task), row(own, 0, 0.65, 1.0, 8, task=task)]
    found = {each["task"]: each for each in modes_table(rows).to_pylist() if each["method"] == "intrinsic"}
    assert {name: (each["score"], each["recovered"], each["random"]) for name, each in found.items()} == {
        name: (0.65, None, below) for name, (_, below) in scores.items()
    }
    assert {name: each["reason"] for name, each in found.items()} == {
        "chance": "full is not above chance",
        "below": "full is not above random",
        "absent": "no full fine-tuning",
    }
