"""d90 of a metric that is better when lower: 90% of the improvement on the untouched model."""

import numpy as np
import pytest

from distsub import d90
from distsub.errors import ConfigError
from distsub.estimate.d90 import fit
from distsub.records import Budget, Full, Model, Observation, Seeds, Setup, Subspace, Task, Trial, theta_0_of
from distsub.search import Evidence, Outcome, Rule, Search, make_policy
from distsub.search.plan import make_plan

TASK = Task("toy", "toy", ("prompt",), "completion", num_labels=0, metric="nll")
ZERO, FULL, MIDDLE = 4.0, 1.0, 100.0
DIMS = (10, 30, 100, 300, 1000, 3000)


def expected(d):
    """From ZERO towards FULL as d grows; 90% of the way at d = 9 * MIDDLE."""
    return ZERO + (FULL - ZERO) * d / (d + MIDDLE)


def search(seed, rule):
    setup = Setup(Model("m"), TASK, Subspace(), 1e-3, Budget(steps=1), Seeds(seed, seed, seed))
    full = tuple(Trial(Setup(Model("m"), TASK, Full(), 1e-3, Budget(steps=1), Seeds(0, s, s))) for s in range(3))
    baseline = full if rule.value is None else ()
    return Search(setup, DIMS, (1.0,), baseline, rule, theta_0=(theta_0_of(full[0]),))


def row(trial, score, draw=None):
    answers = {}
    if draw is not None:
        tokens = np.ones(200)
        losses = draw.gamma(4.0, 0.25, 200)
        answers = {"predicted": (*(losses * score / losses.mean()),), "target": (*tokens,), "num_examples": 200}
        score = float(np.mean(answers["predicted"]))
    return Observation(trial, "finished", score, **answers)


def observed(searches, noise=0.02, answers=True):
    draw = np.random.default_rng(0)
    rows = {}
    for each in searches:
        for trial in (*each.references, *(each.trials_at(d)[0] for d in DIMS)):
            level = ZERO if trial.is_theta_0 else FULL if trial.d is None else expected(trial.d)
            rows[trial.id] = row(trial, level * (1 + noise * draw.standard_normal()), draw if answers else None)
    return list(rows.values())


RULE = Rule(chance="theta_0")


def test_a_share_is_one_of_the_improvement_and_the_tables_have_the_scores_as_they_are():
    searches = [search(seed, RULE) for seed in range(3)]
    rows = observed(searches, noise=0.0)
    finding = Evidence.of(searches[0], rows).finding(True)
    assert finding.outcome is Outcome.found and finding.d == 1000, "900 is where 90% is reached"
    shown = finding.thresholds
    assert (shown.full, shown.chance, shown.score) == pytest.approx((FULL, ZERO, ZERO + 0.9 * (FULL - ZERO)))
    assert finding.best_score == pytest.approx(expected(3000))
    assert RULE.text("nll") == "theta_0 + 0.9 x (full - theta_0)"


@pytest.mark.parametrize("answers", [True, False])
def test_the_estimate_finds_the_d_and_reports_losses(answers):
    searches = [search(seed, RULE) for seed in range(3)]
    found = fit(searches, observed(searches, answers=answers)).d_at()
    assert found.outcome is Outcome.found and found.low < 900 < found.high and found.high / found.low < 10
    assert found.threshold == pytest.approx(1.3, abs=0.15) and found.full[0] == pytest.approx(FULL, abs=0.1)
    band = found.curves.band([30, 1000])
    assert all(low <= middle <= high for low, middle, high in band)
    assert band[0][1] == pytest.approx(expected(30), abs=0.3) and band[1][1] == pytest.approx(expected(1000), abs=0.2)
    assert found.d_at(chance_corrected=True).d == found.d, "the share is one of the gain already"
    assert any("none is counted" in each for each in found.warnings) is not answers


@pytest.mark.parametrize(
    "value, outcome",
    [(0.5, Outcome.above_range), (2.0, Outcome.found), (3.9, Outcome.below_range), (6.0, Outcome.below_range)],
)
def test_any_value_has_an_answer(value, outcome):
    searches = [search(seed, Rule(None, value, "theta_0")) for seed in range(3)]
    found = fit(searches, observed(searches)).d_at()
    assert found.outcome is outcome and found.threshold == pytest.approx(value)
    assert found.text.startswith(f"d(nll <= {value:g}) ")
    assert ("is not below chance" in " ".join(found.warnings)) == (value > ZERO)


def test_what_ends_far_worse_than_theta_0_counts_as_theta_0():
    searches = [search(seed, RULE) for seed in range(3)]
    rows = observed(searches)
    worse = [row(each.trial, 30.0) if each.trial.d in (10, 30) else each for each in rows]
    zero = [row(each.trial, ZERO) if each.trial.d in (10, 30) else each for each in rows]
    found, same = (fit(searches, each).d_at() for each in (worse, zero))
    assert (found.d, found.low, found.high) == pytest.approx((same.d, same.low, same.high), rel=0.05)
    assert found.low < 900 < found.high


def test_a_value_is_reached_from_above():
    searches = [search(seed, Rule(None, 2.0, "theta_0")) for seed in range(3)]
    found = fit(searches, observed(searches)).d_at()
    assert found.text.startswith("d(nll <= 2) = ") and found.low < 200 < found.high, "2.0 is reached at d = 200"


def test_without_theta_0_nothing_is_told():
    searches = [search(seed, RULE) for seed in range(3)]
    rows = [each for each in observed(searches) if not each.trial.is_theta_0]
    found = fit(searches, rows).d_at()
    assert found.outcome is Outcome.undecided and "no row scores theta_0" in " ".join(found.warnings)
    assert Evidence.of(searches[0], rows).thresholds is None


def test_a_baseline_that_improves_nothing_is_told():
    searches = [search(seed, RULE) for seed in range(3)]
    rows = [row(each.trial, 4.5) if each.trial.is_baseline else each for each in observed(searches)]
    found = fit(searches, rows).d_at()
    assert found.outcome is Outcome.baseline_at_chance
    assert "the baseline 4.500 is not below chance" in " ".join(found.warnings)


def test_anybodys_losses_are_estimated_from_arrays():
    d = [*DIMS] * 3
    draw = np.random.default_rng(1)
    losses = [expected(each) * (1 + 0.02 * draw.standard_normal()) for each in d]
    seeds = [seed for seed in range(3) for _ in DIMS]
    found = d90(d, losses, full=[1.0, 1.02, 0.98], chance=ZERO, metric="nll", seed=seeds)
    assert found.low < 900 < found.high and found.threshold == pytest.approx(1.3, abs=0.15)
    with pytest.raises(ConfigError, match="chance is missing"):
        d90(d, losses, full=[1.0], metric="nll", seed=seeds)
    with pytest.raises(ConfigError, match="outside the range of nll"):
        d90(d, [-1.0, *losses[1:]], full=[1.0], chance=ZERO, metric="nll", seed=seeds)


@pytest.mark.parametrize("rule", [RULE, Rule(None, 2.0, "theta_0")])
def test_a_plan_expects_trainings_of_a_loss_as_of_a_score(rule):
    found = make_plan([search(seed, rule) for seed in range(3)], make_policy("bisection"))
    assert 6 < found.expected.trials - found.baselines <= found.most.trials - found.baselines == 18


def test_completions_have_no_majority():
    with pytest.raises(ConfigError, match="no majority answers completions"):
        search(0, Rule())
