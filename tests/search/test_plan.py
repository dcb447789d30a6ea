"""The plan: exact at most, simulated in expectation, and what follows in hours and money."""

import pytest

from distsub.records import Freeze
from distsub.search import Bisection, Grid, Rule, TrialQueue
from distsub.search.plan import make_plan, seconds_per_trial


@pytest.fixture(scope="module")
def searches(bench):
    """Two tasks' worth of seeds on one grid."""
    baseline = bench.baselines((1e-5, 2e-5), seeds=3)
    return tuple(bench.search(24, 3, seed=seed, baseline=baseline) for seed in range(3))


@pytest.mark.parametrize("policy", [Grid(), Bisection()])
def test_most_is_the_queues_bound_and_expected_is_less(searches, policy):
    """Shared baselines once; steps are trials times the budget."""
    plan = make_plan(searches, policy)
    assert (plan.searches, plan.baselines) == (3, 6)
    assert plan.most.trials == TrialQueue(searches, policy).max_trials()
    assert plan.most.steps == 10 * plan.most.trials
    assert plan.expected.trials <= plan.most.trials
    assert plan.most.hours is plan.most.price is plan.expected.wall_hours is None


@pytest.mark.parametrize("policy", [Grid(), Bisection()])
def test_controls_beside_the_searches_count(searches, policy):
    controls = [search.try_at(1.0).vary(method=Freeze(), d=0, eta=None) for search in searches]
    plan, without = make_plan(searches, policy, controls=controls), make_plan(searches, policy)
    assert plan.most.trials == TrialQueue(searches, policy, controls=controls).max_trials() == without.most.trials + 3
    assert plan.expected.trials == without.expected.trials + 3
    assert plan.most.steps == without.most.steps + 30


@pytest.mark.parametrize("fraction", [0.01, 0.4, 0.9, 1.0])
def test_a_fraction_that_guessing_reaches_has_an_expectation_too(bench, fraction):
    """The simulated curve then crosses nowhere: what is expected is the bound."""
    search = bench.search(24, 3, baseline=bench.baselines((1e-5, 2e-5), seeds=1), rule=Rule(fraction))
    plan = make_plan([search], Bisection())
    assert 0 < plan.expected.trials <= plan.most.trials


def test_bisection_is_expected_to_be_cheaper(searches):
    """A third of its own maximum, and less of a grid."""
    plan = make_plan(searches, Bisection())
    assert plan.expected.trials - plan.baselines < (plan.most.trials - plan.baselines) / 3
    assert make_plan(searches, Grid()).expected.trials == 6 + 3 * 24 * 3


@pytest.mark.parametrize("slots", [1, 4, 100])
def test_first_batch_is_what_a_run_starts_with(searches, slots):
    """Baselines first, then as many as there are slots and as are worth it."""
    batch = make_plan(searches, Bisection(), slots).first_batch
    assert len({trial.id for trial in batch}) == len(batch) <= slots
    assert all(trial.is_baseline for trial in batch[:6])
    assert batch[0] == TrialQueue(searches, Bisection()).next(set(), slots)


def test_hours_and_price(searches):
    """3 s of start, 10 steps of 0.5 s, one evaluation of 1 s: 9 s a trial."""
    seconds = seconds_per_trial(lambda trial: 0.5, startup_s=3.0, eval_s=1.0)
    plan = make_plan(searches, Grid(), 2, seconds, price_per_hour=4.0)
    assert plan.most.hours == pytest.approx(9 * (6 + 216) / 3600)
    assert plan.most.price == pytest.approx(4 * 9 * (6 + 216) / 3600)
    assert plan.most.wall_hours == pytest.approx(9 * (6 + 216) / 3600 / 2)
    assert make_plan(searches, Grid(), 2, lambda trial: None).most.hours is None


def test_slots_shorten_only_down_to_the_chain(searches):
    """A verdict waits for the one before it, however many slots there are."""
    seconds = seconds_per_trial(lambda trial: 1.0)
    one, many = (make_plan(searches, Bisection(), slots, seconds) for slots in (1, 1000))
    assert one.expected.wall_hours and many.expected.wall_hours and many.most.wall_hours
    assert many.expected.wall_hours < one.expected.wall_hours / 4
    assert many.expected.wall_hours >= 3 * 10 / 3600  # the baseline, a part of the bracket, all etas below
    assert many.most.wall_hours >= many.expected.wall_hours


def test_unknown_seconds_leave_the_trials(searches):
    """Half of a plan is better than none."""
    plan = make_plan(searches, Bisection(), seconds=seconds_per_trial(lambda trial: 1.0 if trial.d else None))
    assert plan.most.hours is None
    assert plan.most.trials > 0
