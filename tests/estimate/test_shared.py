"""Sampling errors against what a bootstrap of the examples gives."""

import numpy as np
import pytest

from distsub.estimate.shared import knot_scores, shared
from distsub.metrics import influences, variance
from distsub.records import Budget, Model, Observation, Seeds, Setup, Subspace, Task, Trial


def observation(metric: str, guess, truth) -> Observation:
    task = Task("made-up", "made-up", ("text",), metric=metric)
    trial = Trial(Setup(Model("model"), task, Subspace(), 1e-05, Budget(steps=1), Seeds()), 10, 0.1)
    return Observation(trial, "finished", 0.5, predicted=tuple(guess), target=tuple(truth))


def value(metric: str, guess: np.ndarray, truth: np.ndarray) -> float:
    if metric == "accuracy":
        return float((guess == truth).mean())
    if metric == "f1":
        return float(2 * (guess * truth).sum() / (guess.sum() + truth.sum()))
    return float(np.corrcoef(guess, truth)[0, 1])


@pytest.mark.parametrize("metric", ["accuracy", "f1", "matthews", "pearson"])
def test_influences_give_the_bootstrap_error(metric):
    random = np.random.default_rng(0)
    truth = (random.random(600) < 0.6).astype(float)
    guess = np.where(random.random(600) < 0.8, truth, 1 - truth)
    if metric == "pearson":
        truth = random.standard_normal(600)
        guess = truth + random.standard_normal(600)
    found = influences(observation(metric, guess, truth))
    draws = random.integers(0, 600, (2000, 600))
    bootstrap = np.std([value(metric, guess[draw], truth[draw]) for draw in draws])
    assert found.mean() == pytest.approx(0, abs=1e-9)
    # 2,000 draws know a standard deviation to 1.6%.
    assert found.std() / np.sqrt(600) == pytest.approx(bootstrap, rel=0.06)
    plain = variance(value(metric, guess, truth), metric, 600) ** 0.5
    assert plain == pytest.approx(bootstrap, rel=0.25)


@pytest.mark.slow  # a thousand scores of scikit-learn
def test_multiclass_matthews_is_that_of_scikit_learn():
    from sklearn.metrics import matthews_corrcoef

    random = np.random.default_rng(1)
    truth = random.integers(0, 3, 400)
    guess = np.where(random.random(400) < 0.7, truth, random.integers(0, 3, 400))
    found = influences(observation("matthews", guess, truth))
    draws = random.integers(0, 400, (1000, 400))
    bootstrap = np.std([matthews_corrcoef(truth[draw], guess[draw]) for draw in draws])
    assert found.std() / 20 == pytest.approx(bootstrap, rel=0.08)


@pytest.mark.slow
def test_macro_f1_has_the_bootstrap_error_of_scikit_learn():
    from sklearn.metrics import f1_score

    random = np.random.default_rng(2)
    truth = random.choice(4, 500, p=[0.5, 0.3, 0.12, 0.08])
    guess = np.where(random.random(500) < 0.7, truth, random.integers(0, 4, 500))
    found = influences(observation("macro_f1", guess, truth))
    draws = random.integers(0, 500, (1000, 500))
    bootstrap = np.std([f1_score(truth[draw], guess[draw], average="macro") for draw in draws])
    assert found.std() / np.sqrt(500) == pytest.approx(bootstrap, rel=0.08)
    score = float(f1_score(truth, guess, average="macro"))
    assert variance(score, "macro_f1", 500) ** 0.5 == pytest.approx(bootstrap, rel=0.35)


def test_without_answers_there_are_no_influences():
    assert influences(observation("accuracy", (), ())) is None
    assert influences(observation("pearson", (1.0, 1.0), (0.0, 1.0))) is None
    assert influences(observation("matthews", (1.0, 1.0), (0.0, 1.0))) is None
    assert variance(1.0, "accuracy", 100) > 0


def test_what_is_shared_follows_the_answers():
    random = np.random.default_rng(2)
    n, variances = 500, [0.01] * 8
    common = random.standard_normal(n)
    rows = [common + 0.1 * random.standard_normal(n) for _ in range(30)]
    alone = [random.standard_normal(n) for _ in range(30)]
    gains, is_baseline = [0.66] * 20 + [1.0] * 10, [False] * 20 + [True] * 10
    together = shared(gains, [row - row.mean() for row in rows], is_baseline, variances, (0.5, 0.5, 0.4))
    apart = shared(gains, [row - row.mean() for row in alone], is_baseline, variances, (0.5, 0.5, 0.4))
    # A common error cancels between threshold and score; separate ones do not.
    assert together.error(2 / 3, 1.0, 0.0) < 0.3 * 0.1 < 0.9 * 0.1 < together.error(2 / 3, 0.0, 0.0)
    assert together.own(2 / 3, 0.01) < 0.1 * 0.01
    assert apart.own(2 / 3, 0.01) > 0.9 * 0.01
    usual = shared(gains, [None] * 30, is_baseline, variances, (0.5, 0.5, 0.4))
    assert usual.own(1.0, 0.01) == pytest.approx(0.005)
    assert usual.own(None, 0.01) == pytest.approx(0.005)
    assert usual.error(0.0, 0.0, 1.0) == pytest.approx(0.0)  # at chance the score is chance
    assert knot_scores(0.5, 0.8)[::3] == pytest.approx([0.5, 0.65, 0.8])
