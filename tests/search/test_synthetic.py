"""The made-up truth: deterministic, and as noisy as it says."""

import math
from dataclasses import replace

import numpy as np
import pytest

from distsub.records import Budget, Full, Model, Seeds, Setup, Subspace, Task, Trial
from distsub.search.synthetic import Curve


def trial(d: int | None = 300, eta: float | None = 0.3, seed: int = 0, every: int | None = None) -> Trial:
    task, method = Task("made-up", "made-up", ("text",)), Subspace() if d else Full()
    return Trial(
        Setup(Model("model"), task, method, 2e-05, Budget(100, eval_every=every), Seeds(seed, seed, seed)), d, eta
    )


def test_same_trial_same_observation():
    assert Curve(seed=1).observe(trial()) == Curve(seed=1).observe(trial())
    assert Curve(seed=1).observe(trial()) != Curve(seed=2).observe(trial())
    bare = Curve(seed=1).observe(trial(), arrays=False)
    assert bare.score == Curve(seed=1).observe(trial()).score and bare.predicted == ()


def test_answers_make_the_score():
    row = Curve(seed=1).observe(trial())
    assert row.score == np.mean(np.array(row.predicted) == np.array(row.target))
    assert row.chance == pytest.approx(max(np.mean(row.target), 1 - np.mean(row.target)))


@pytest.mark.parametrize("d", [20, 300, 5000])
def test_scores_have_the_expected_mean(d):
    """Over seeds and evaluation sets; 400 sets of 400 examples know it to 0.0012 at most, seeds to 0.002."""
    scores = [Curve(seed=i, num_examples=400).observe(trial(d, 0.1, i), arrays=False).score for i in range(400)]
    assert np.mean([score for score in scores if score is not None]) == pytest.approx(
        Curve().expected(d, 0.1), abs=0.006
    )


def test_towards_zero_the_majority_class_is_answered():
    row = replace(Curve(seed=3), residual_sd=0.0).observe(trial(1, 1e-3))
    assert row.score == pytest.approx(row.chance, abs=0.01)
    assert np.mean(row.predicted) > 0.97


def test_crossing_is_where_the_expected_score_reaches_the_threshold():
    curve = Curve(eta_drift=0.1)
    d = curve.crossing((0.1, 0.3), (1e-5, 2e-5))
    assert max(curve.expected(d, eta) for eta in (0.1, 0.3)) == pytest.approx(0.9 * curve.full, abs=1e-5)
    assert curve.crossing((0.3,), (2e-5,), 0.999) > d
    assert replace(curve, plateau=0.7).crossing((0.3,), (2e-5,)) == math.inf
    assert replace(curve, full=0.7).crossing((0.3,), (2e-5,)) == 0.0


def test_high_etas_diverge_and_a_history_ends_in_the_score():
    assert Curve(eta_limit=0.2).observe(trial()).status == "diverged"
    row = Curve().observe(trial(every=20))
    assert [step for step, _ in row.curve] == [20, 40, 60, 80, 100]
    assert row.curve[-1][1] == row.score
    with pytest.raises(ValueError, match="give one of logistic, "):
        Curve(shape="square").observe(trial())
