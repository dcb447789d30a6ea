import math
import warnings

import numpy as np
import pytest

from distsub.data.tasks import TASKS, resolve
from distsub.errors import DataError
from distsub.metrics import chance, evaluate, influences
from distsub.records import Budget, Full, Model, Observation, Seeds, Setup, Trial, sign


@pytest.fixture(autouse=True)
def _warnings_are_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_two_labels():
    scores = evaluate(TASKS["mrpc"], [1, 1, 0, 0, 1], [1, 0, 0, 1, 1])
    assert scores["accuracy"] == pytest.approx(3 / 5)
    assert scores["f1"] == pytest.approx(2 / 3)  # precision 2/3, recall 2/3
    assert scores["matthews"] == pytest.approx((2 * 1 - 1 * 1) / math.sqrt(3 * 3 * 2 * 2))


def test_three_labels_have_no_f1():
    assert evaluate(TASKS["mnli"], [0, 1, 2], [0, 1, 1]).keys() == {"accuracy", "macro_f1", "matthews"}


def test_correlations():
    scores = evaluate(TASKS["stsb"], [1, 2, 3, 10], [0.1, 0.2, 0.3, 0.4])
    assert scores["spearman"] == pytest.approx(1.0)
    assert scores["pearson"] == pytest.approx(1.4 / math.sqrt(50 * 0.05))
    assert scores["mse"] == pytest.approx((0.9**2 + 1.8**2 + 2.7**2 + 9.6**2) / 4)


def test_a_constant_prediction_scores_zero_without_a_warning():
    assert evaluate(TASKS["stsb"], [2, 2, 2], [1, 2, 3]) == {"pearson": 0.0, "spearman": 0.0, "mse": 2 / 3}
    assert evaluate(TASKS["stsb"], [1, 1, 1 + 1e-15], [1, 2, 3])["pearson"] is not None
    assert evaluate(TASKS["cola"], [1, 1, 1], [1, 0, 1])["matthews"] == 0.0
    assert evaluate(TASKS["mrpc"], [0, 0], [0, 0]) == {
        "accuracy": 1.0,
        "macro_f1": 1.0,
        "matthews": 0.0,
        "f1": 0.0,
    }


def test_a_prediction_that_is_not_finite_scores_nan():
    assert math.isnan(evaluate(TASKS["stsb"], [1, math.inf, 3], [1, 2, 3])["pearson"])


def test_the_score_is_among_the_metrics():
    for task in TASKS.values():
        assert task.metric in evaluate(task, [0, 1, 1], [0, 1, 0])


def test_chance():
    assert chance(TASKS["mrpc"], [1, 1, 0]) == pytest.approx(2 / 3)
    assert chance(TASKS["mnli"], [0, 1, 2, 2]) == 0.5
    assert chance(TASKS["cola"], [1, 1, 0]) == 0.0
    assert chance(TASKS["stsb"], [1.0, 2.0]) == 0.0


def test_macro_f1_weighs_every_class_the_same():
    task = resolve("mine", path="/x", text=("text",), metric="macro_f1")
    truth, guess = [0, 0, 0, 0, 1, 2], [0, 0, 0, 1, 1, 0]
    # F1 of the classes: 2*3/(4+4), 2*1/(1+2), 0
    assert evaluate(task, guess, truth)["macro_f1"] == pytest.approx((6 / 8 + 2 / 3 + 0) / 3)
    best = max(evaluate(task, [answer] * 6, truth)["macro_f1"] for answer in (0, 1, 2))
    assert chance(task, truth) == pytest.approx(best) == pytest.approx(2 * 4 / (6 + 4) / 3)


def test_nothing_to_score():
    with pytest.raises(DataError, match="0 predictions against 0"):
        evaluate(TASKS["mrpc"], [], [])
    with pytest.raises(DataError, match="2 predictions against 1"):
        evaluate(TASKS["mrpc"], [1, 0], [1])
    with pytest.raises(DataError, match="no targets"):
        chance(TASKS["mrpc"], [])


@pytest.mark.parametrize("name", TASKS)
def test_one_class_that_is_not_finite_makes_the_score_nan(name):
    assert math.isnan(evaluate(TASKS[name], [0, math.nan, 1], [0, 1, 1])[TASKS[name].metric])


def test_every_metric_of_a_task_is_nan_where_one_prediction_is():
    for name in ("mrpc", "mnli"):
        good, bad = evaluate(TASKS[name], [0, 1], [0, 1]), evaluate(TASKS[name], [0, math.inf], [0, 1])
        assert good.keys() <= bad.keys() and all(math.isnan(value) for value in bad.values())


def of_completions(metric):
    more = {"max_new_tokens": 4} if metric == "exact_match" else {}
    return resolve("c", path="/x", kind="completion", prompt="p", completion="c", metric=metric, **more)


def test_nll_is_per_token_of_all_completions_and_has_no_chance_of_its_own():
    task = of_completions("nll")
    assert evaluate(task, [6.0, 1.0], [3.0, 1.0]) == {"nll": 7 / 4}
    assert math.isnan(evaluate(task, [6.0, math.nan], [3.0, 1.0])["nll"])
    assert chance(task, [3.0, 1.0]) is None and sign("nll") == -1 and sign("exact_match") == 1


def test_exact_match_is_the_share_of_right_answers():
    assert evaluate(of_completions("exact_match"), [1.0, 0.0, 1.0, 1.0], [1.0] * 4) == {"exact_match": 0.75}


def test_the_influences_of_nll_are_those_of_a_ratio_of_sums():
    draw = np.random.default_rng(0)
    tokens = draw.integers(1, 9, 400).astype(float)
    losses = tokens * draw.gamma(2.0, 1.0, 400)
    setup = Setup(Model("m"), of_completions("nll"), Full(), 1e-3, Budget(steps=1), Seeds())
    row = Observation(Trial(setup), "finished", losses.sum() / tokens.sum(), predicted=(*losses,), target=(*tokens,))
    found = influences(row)
    drawn = draw.integers(0, 400, (4000, 400))
    bootstrap = (losses[drawn].sum(1) / tokens[drawn].sum(1)).var()
    assert (found**2).mean() / 400 == pytest.approx(bootstrap, rel=0.1)
    assert abs(found.mean()) < 1e-12
