"""A score to reach in the place of a share of full fine-tuning's, and theta_0 in the place of the majority class."""

import math
import random
from dataclasses import replace

import numpy as np
import pytest

from distsub.errors import ConfigError
from distsub.estimate.d90 import estimate, fit
from distsub.estimate.gather import gather
from distsub.records import Budget, Full, Model, Random, Seeds, Setup, Subspace, Task, Trial, theta_0_of
from distsub.search import Evidence, Outcome, Range, Rule, Search, TrialQueue, make_policy, share
from distsub.search.plan import make_plan
from distsub.search.rule import RANGES
from distsub.search.synthetic import Curve

ETAS, RATES = (0.1, 0.3, 1.0), (1e-5, 2e-5)
DIMS = (10, 30, 100, 300, 1000, 3000)


def searches(rule: Rule, seeds: int = 2, metric: str = "accuracy", dims: tuple[int, ...] = DIMS) -> list[Search]:
    """Return searches under seeds 0, 1, ... with what the rule needs."""
    task, budget = Task("made-up", "made-up", ("text",), metric=metric), Budget(steps=10, eval_examples=408)
    full = [
        Trial(Setup(Model("model"), task, Full(), rate, budget, Seeds(0, seed, seed)))
        for seed in range(seeds)
        for rate in RATES
    ]
    theta_0 = tuple(dict.fromkeys(map(theta_0_of, full))) if rule.chance == "theta_0" else ()
    baseline = tuple(full) if rule.value is None else ()
    method = Subspace(Random("fastfood"))
    return [
        Search(
            Setup(Model("model"), task, method, 2e-05, budget, Seeds(s, s, s)),
            dims,
            ETAS,
            baseline,
            rule=rule,
            theta_0=theta_0,
        )
        for s in range(seeds)
    ]


def run(curve: Curve, these: list[Search], policy: str = "bisection") -> tuple[TrialQueue, list]:
    """Run searches one trial after the other."""
    queue, rows = TrialQueue(these, make_policy(policy)), []
    while (trial := queue.next(frozenset(), 1)) is not None:
        rows.append(curve.observe(trial))
        queue.observe(rows[-1])
    return queue, rows


RULES = [Rule(), Rule(0.8), Rule(None, 0.8), Rule(chance="theta_0"), Rule(None, 0.8, "theta_0")]


@pytest.mark.parametrize("policy", ["bisection", "grid"])
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_every_rule_is_searched_planned_and_estimated_alike(rule, policy):
    """What comes first, how many trials at most, and the threshold of the queue, the tables and the estimate."""
    these, curve = searches(rule), Curve(seed=1, floor=0.5, theta_0=0.4, full=0.9, plateau=0.92)
    queue, rows = run(curve, these, policy)
    kinds = [row.trial.method.kind for row in rows]
    assert kinds.count("full") == (4 if rule.value is None else 0)
    assert kinds.count("theta_0") == (2 if rule.chance == "theta_0" else 0)
    assert "did" not in kinds[: len(these[0].references)]
    assert len(rows) <= queue.max_trials()
    plan = make_plan(these, make_policy(policy))
    assert (plan.baselines, plan.most.trials) == (len(these[0].references), queue.max_trials())
    assert plan.expected.trials <= plan.most.trials
    assert all(finding.outcome is Outcome.found for finding in queue.findings())
    for search, own in zip(these, share(these, rows), strict=True):
        folded = Evidence(search)
        for row in random.Random(0).sample(rows, len(rows)):
            folded = folded.add(row)
        assert folded.thresholds == Evidence.of(search, own).thresholds
        found = folded.thresholds
        theta_0 = [row.score for row in rows if row.trial.is_theta_0]
        assert found.chance == pytest.approx(np.mean(theta_0) if theta_0 else curve.chance)
        assert found.floor == pytest.approx(curve.chance)  # theta_0 is below the majority class here
        if rule.value is None:
            assert found.score == rule.fraction * found.full
            assert found.chance_corrected == pytest.approx(found.chance + rule.fraction * (found.full - found.chance))
        else:
            assert (found.full, found.score, found.chance_corrected) == (None, 0.8, None)
    told = estimate(these, rows)
    assert told.outcome is Outcome.found and (told.full is None) == (rule.value is not None)
    assert told.threshold == pytest.approx(found.score, abs=0.01)
    assert told.curves.chance == pytest.approx(found.chance)
    assert told.text.startswith(rule.name("accuracy"))


@pytest.mark.parametrize("rule", [Rule(None, 0.8), Rule(chance="theta_0"), Rule(None, 0.8, "theta_0")], ids=str)
def test_ranges_of_step_sizes_go_with_every_rule(rule):
    """Etas are looked for without any baseline, learning rates beside theta_0; never more than was promised."""
    these = [
        replace(
            search,
            etas=(0.3,),
            eta_range=Range(0.1, 1.0, 4),
            first_seeds=Seeds(),
            rate_range=None if rule.value else Range(1e-5, 1e-4, 4),
            baseline=tuple(trial for trial in search.baseline if trial.learning_rate == 1e-5),
        )
        for search in searches(rule)
    ]
    queue, rows = run(Curve(seed=1, floor=0.5, theta_0=0.4, full=0.9, plateau=0.92), these)
    kinds = [row.trial.method.kind for row in rows]
    assert (kinds.count("theta_0"), kinds.count("full")) == (len(these[0].theta_0), 0 if rule.value else 6)
    assert len(rows) <= queue.max_trials() == make_plan(these, make_policy("bisection")).most.trials
    assert all(finding.outcome is Outcome.found for finding in queue.findings())
    for search, own in zip(these, share(these, rows), strict=True):
        folded = Evidence(search)
        for row in rows:
            folded = folded.add(row)
        assert folded.thresholds == Evidence.of(search, own).thresholds is not None
    assert estimate(these, rows).text.startswith(rule.name("accuracy"))


def test_an_absolute_interval_covers_the_true_crossing_without_any_full_fine_tuning():
    """40 sweeps: fewer than 34 would hold in 1 of 300 cases, were the coverage 0.95."""
    held, errors = 0, []
    for seed in range(40):
        value = 0.7 + 0.15 * (seed % 5) / 5
        curve = Curve(seed=seed, middle=4.5 + 2.5 * (seed % 7) / 7, floor=0.5, full=0.9, plateau=0.9)
        these = searches(Rule(None, value), seeds=1 + seed % 3)
        _, rows = run(curve, these)
        found, true = estimate(these, rows), curve.crossing(ETAS, (), rule=these[0].rule)
        held += (found.low or 0.0) <= true <= (found.high or math.inf)
        errors.append(math.log((found.d or DIMS[-1]) / true))
    assert held >= 34
    assert abs(np.mean(errors)) < 0.2


@pytest.mark.parametrize("metric", [metric for metric in RANGES if metric != "nll"])  # see tests/estimate/test_nll.py
@pytest.mark.parametrize("value", [0.0, 0.3, 0.6, 0.75, 1.0])
def test_any_value_of_any_metric_has_an_answer_or_a_reason(metric, value):
    """Below chance, beyond the plateau, on every metric's scale, from no row at all to all of them."""
    these = searches(Rule(None, value), metric=metric)
    queue, rows = run(Curve(seed=2, floor=0.5, full=0.92, plateau=0.92), these)
    assert all(finding.outcome.is_over for finding in queue.findings())
    for number in (0, 1, len(rows)):
        found = estimate(these, rows[:number])
        if number:
            assert found.threshold == pytest.approx(value) and found.failed_full is None
            assert found.text.startswith(f"d({metric} >= {value:g}) ")
    assert found.outcome is (
        Outcome.below_range if value <= 0.3 else Outcome.above_range if value == 1.0 else Outcome.found
    )
    assert ("is not above chance" in " ".join(found.warnings)) == (value <= 0.3)


def test_a_share_and_a_value_come_from_the_same_curves_where_there_is_a_baseline():
    these = searches(Rule())
    _, rows = run(Curve(seed=3, floor=0.5, full=0.9, plateau=0.9), these)
    found = fit(these, rows).d_at()
    same = found.d_at(value=found.threshold)
    assert abs(math.log(same.d / found.d)) < 0.05 and same.full == found.full
    assert found.d_at(value=0.6).d < found.d_at(value=0.7).d < found.d_at(value=0.8).d
    with pytest.raises(ConfigError, match=r"value = 1.2 is outside the range of accuracy"):
        found.d_at(value=1.2)
    with pytest.raises(ConfigError, match="is no share"):
        found.d_at(value=0.8, chance_corrected=True)
    with pytest.raises(ConfigError, match="not both"):
        found.d_at(0.9, value=0.8)


def test_without_a_baseline_there_is_no_share():
    these = searches(Rule(None, 0.8))
    _, rows = run(Curve(seed=3, floor=0.5, full=0.9, plateau=0.9), these)
    with pytest.raises(ConfigError, match="no full fine-tuning was trained to take a share of; give value"):
        estimate(these, rows).d_at(0.9)


@pytest.mark.parametrize("theta_0", [0.2, 0.5, 0.7])
def test_theta_0_is_what_a_share_of_the_gain_is_counted_from(theta_0):
    """Below the majority class of 0.5, at it, and above it, where small d start from it."""
    curve = Curve(seed=4, floor=max(0.5, theta_0), theta_0=theta_0, full=0.9, plateau=0.9, num_examples=2000)
    these = searches(Rule(chance="theta_0"))
    _, rows = run(curve, these, "grid")
    rows = [replace(row, chance=0.5) for row in rows]  # the majority class, wherever the curve starts
    found = fit(these, rows)
    assert found.chance == pytest.approx(theta_0, abs=0.05)
    assert found.floor == max(0.5, found.chance)
    corrected = found.d_at(chance_corrected=True)
    assert corrected.threshold == pytest.approx(found.chance + 0.9 * (found.d_at().full[0] - found.chance), abs=1e-9)
    true = curve.crossing(ETAS, RATES, rule=Rule(None, theta_0 + 0.9 * (curve.expected_full(RATES) - theta_0)))
    assert (corrected.low or 0.0) <= true <= (corrected.high or math.inf)
    assert found.d_at().d < (corrected.d or math.inf)


@pytest.mark.parametrize("theta_0", [0.1, 0.6])
def test_a_full_fine_tuning_that_failed_is_told_by_the_better_of_theta_0_and_the_majority(bench, theta_0):
    """It tends to the majority class, whatever a random head scores; or stays at a head that knows the task."""
    rule = Rule(chance="theta_0")
    these, level = searches(rule, seeds=3), max(theta_0, 0.5)
    by_name = {trial.id: 0.8 for trial in these[0].baseline} | {these[0].baseline[0].id: level + 0.02}
    by_name |= {trial.id: theta_0 for trial in these[0].theta_0}
    rows = [bench.see(trial, by_name[trial.id]) for trial in these[0].references]
    used = gather(these, rows)
    assert used.failed_full == (1, 6) and used.chance == pytest.approx(theta_0) and used.floor == level
    folded = Evidence(these[0])
    for row in rows:
        assert folded.thresholds is None
        folded = folded.add(row)
    assert folded.thresholds.full == pytest.approx(0.8)


@pytest.mark.parametrize("status", ["error", "diverged", "missing"])
def test_theta_0_without_a_score_is_no_chance_of_zero(bench, status):
    """A search of a share waits for it, or ends; an estimate takes the majority class and says so."""
    these = searches(Rule(chance="theta_0"))
    rows = [bench.see(trial, 0.8) for trial in these[0].baseline]
    if status != "missing":
        rows += [bench.see(trial, None, status) for trial in these[0].theta_0]
    folded = Evidence(these[0])
    for row in rows:
        folded = folded.add(row)
    if status == "diverged":
        assert folded.thresholds.chance is None and folded.thresholds.chance_corrected is None
    else:
        assert folded.thresholds is None
    assert folded.obstacle is (Outcome.baseline_missing if status == "error" else None)
    assert gather(these, rows).chance == 0.5
    assert gather(these, rows).warnings[0] == "no row scores theta_0: the majority class is taken as chance"


def test_theta_0_is_one_trial_per_head_whatever_else_is_trained(bench):
    full = bench.baselines(rates=(1e-5, 3e-5), seeds=3)
    assert len({theta_0_of(trial).id for trial in full}) == 3
    one = full[0]
    for change in ({"steps": 99}, {"batch_size": 7}, {"warmup": 0.5}, {"eval_every": 3}, {"weight_decay": 0.1}):
        assert theta_0_of(one.vary(budget=replace(one.budget, **change))) == theta_0_of(one)
    for change in ({"max_length": 7}, {"eval_examples": 7}, {"train_examples": 7}, {"precision": "fp32"}):
        assert theta_0_of(one.vary(budget=replace(one.budget, **change))) != theta_0_of(one)
    kept = [trial.vary(model=replace(trial.model, head_from="checkpoint")) for trial in full]
    assert len(set(map(theta_0_of, kept))) == 1
    assert not theta_0_of(one).is_baseline and theta_0_of(one).is_reference
