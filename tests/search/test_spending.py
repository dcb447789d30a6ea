"""The limit of a sweep: never exceeded, told when it is reached, and remembered by the rows alone."""

import random
from dataclasses import replace

import pytest
from builders import examples
from hypothesis import given
from hypothesis import strategies as st

from distsub.search import Bisection, Grid, Limit, Outcome, TrialQueue

HOUR = 3600.0


def run(bench, queue, slots, rng, seconds, lose=0.0):
    """Fill the slots, end a random trial, now and then lose one; return rows, and trials begun."""
    running, seen, begun = {}, [], set()
    while True:
        while (trial := queue.next(running.keys(), slots)) is not None:
            running[trial.id] = trial
            begun.add(trial.id)
        if not running:
            return seen, begun
        trial = running.pop(rng.choice(sorted(running)))
        if rng.random() < lose:
            continue
        score = 0.8 if trial.is_baseline else rng.choice((0.55, 0.79))
        seen.append(replace(bench.see(trial, score), wall_s=seconds(trial)))
        queue.observe(seen[-1])
        running = {key: each for key, each in running.items() if key in queue.wanted()}


def searches(bench, count=3):
    return [bench.search(12, 2, seed=seed, baseline=bench.baselines((1e-5, 3e-5))) for seed in range(count)]


@pytest.mark.parametrize("policy", [Grid(), Bisection()])
@examples(40)
@given(seed=st.integers(0, 10**6), trials=st.integers(1, 30), slots=st.integers(1, 12))
def test_never_more_trials_than_the_limit(bench, policy, seed, trials, slots):
    """Trials end in any order, some are lost and offered again; what is open then says why."""
    rng = random.Random(seed)
    queue = TrialQueue(searches(bench), policy, Limit(trials=trials))
    _, begun = run(bench, queue, slots, rng, lambda trial: HOUR, lose=0.2)
    assert len(begun) <= trials
    assert queue.finished
    over = {finding.outcome for finding in queue.findings()}
    assert Outcome.open not in over
    assert queue.is_spent == (Outcome.budget_spent in over)
    assert not queue.is_spent or len(begun) == trials


@examples(60)
@given(seed=st.integers(0, 10**6), hours=st.floats(0.0, 40.0), slots=st.integers(1, 12))
def test_never_more_hours_than_the_limit_once_a_trial_of_the_kind_has_ended(bench, seed, hours, slots):
    """Beyond the limit are at most those that began before anything was known: two baselines, an hour longer each."""
    rng = random.Random(seed)
    queue = TrialQueue(searches(bench), Bisection(), Limit(hours=hours + 0.001))
    seen, _ = run(bench, queue, slots, rng, lambda trial: 2 * HOUR if trial.is_baseline else HOUR)
    spent = sum(row.wall_s for row in seen) / 3600
    assert queue.finished
    assert spent <= max(hours + 2.0, 2.0 * slots) + 0.001


@examples(30)
@given(seed=st.integers(0, 10**6), trials=st.integers(1, 20))
def test_rows_count_as_spent_and_a_raised_limit_goes_on(bench, seed, trials):
    """Resumed, rows and what is new keep the limit; without one it ends as if there had never been any."""
    rng = random.Random(seed)
    these = searches(bench)
    seen, _ = run(bench, TrialQueue(these, Bisection(), Limit(trials=trials)), 4, rng, lambda trial: HOUR)
    for limit in (Limit(trials=trials), Limit(hours=float(len(seen))), None):
        queue = TrialQueue(these, Bisection(), limit)
        for row in (*seen, *seen[:3]):
            queue.observe(row)
        more, _ = run(bench, queue, 4, rng, lambda trial: HOUR)
        if limit is not None:  # what was cancelled left no row and is not remembered
            assert len(seen) + len(more) <= (limit.trials or len(seen))
    assert all(finding.outcome not in (Outcome.open, Outcome.budget_spent) for finding in queue.findings())


def test_what_was_lost_costs_a_whole_trial(bench):
    """A cancelled trial leaves no row, but the slot was gone for as long."""
    queue = TrialQueue(searches(bench, 1), Grid(), Limit(hours=4.0))
    first = queue.next(set(), 2)
    queue.observe(replace(bench.see(first, 0.8), wall_s=HOUR))
    second = queue.next(set(), 2)
    assert first is not None and second is not None
    third = queue.next({second.id}, 2)
    assert third is not None and third != second
    assert queue.next({third.id}, 2) == second  # one hour gone, one lost, one runs: one is left
    queue.next({third.id, second.id}, 2)
    assert queue.next({third.id}, 2) is None  # lost again
    assert queue.is_spent is False  # while one runs


def test_hours_that_are_gone_end_what_runs(bench):
    """Longer than expected: nothing is wanted any more."""
    queue = TrialQueue(searches(bench, 1), Grid(), Limit(hours=3.0))
    first = queue.next(set(), 2)
    assert first is not None
    second = queue.next({first.id}, 2)
    queue.observe(replace(bench.see(first, 0.8), wall_s=4 * HOUR))
    assert second is not None and second.id not in queue.wanted()
    assert queue.next({second.id}, 2) is None
    assert queue.finished and queue.is_spent
    assert queue.findings()[0].outcome is Outcome.budget_spent


def test_an_error_that_is_tried_again_costs_twice_and_counts_once(bench):
    """Its row is not told to the searches."""
    queue = TrialQueue(searches(bench, 1), Grid(), Limit(trials=1))
    trial = queue.next(set(), 1)
    queue.spend(replace(bench.see(trial, None, "error"), wall_s=HOUR))
    assert queue.next(set(), 1) is trial
    queue.observe(bench.see(trial, 0.8))
    assert queue.next(set(), 1) is None
    assert queue.is_spent
