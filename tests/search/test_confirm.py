"""Confirmations: what is trained again, that only that counts, and that the maximum holds."""

import math
import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distsub.errors import ConfigError
from distsub.search import Adaptive, Bisection, Board, Evidence, Grid, Outcome, log_grid
from distsub.search.confirm import CLIMB
from distsub.search.evidence import CHANCES
from distsub.search.spec import FRESH, confirmed_by, fresh
from distsub.search.synthetic import Curve
from distsub.trial import Seeds

DIMS = log_grid(10, 10_000)
POLICIES = [Grid(), Bisection(), Adaptive()]


def ready(bench, **changes) -> Evidence:
    """Return a search that confirms, with a baseline of one learning rate: the threshold is 0.72."""
    search = bench.search(5, 2, confirm=True, **changes)
    return Evidence(search).add(bench.see(search.baseline[0], 0.8))


def see_all(bench, state, scores):
    """Observe scores by d and eta index."""
    for (d, j), score in scores.items():
        state = state.add(bench.see(state.search.trials_at(d)[j], score))
    return state


def test_a_confirmation_has_other_head_and_data_seeds(bench):
    """The projection stays, and the way back is unique."""
    trial = bench.search(seed=3).trials_at(10)[0]
    assert fresh(trial).seeds == Seeds(3, FRESH + 3, FRESH + 3)
    assert confirmed_by(fresh(trial)) == trial
    assert confirmed_by(trial) is None
    assert replace(fresh(trial), seeds=trial.seeds) == trial


def test_a_search_owns_the_confirmations_that_it_may_ask_for(bench):
    """Those of its own trials, only if it confirms, and only where there was a choice."""
    rates = bench.baselines((1e-5, 3e-5))
    search = bench.search(confirm=True, baseline=rates)
    trial = search.trials_at(10)[0]
    assert search.owns(fresh(trial)) and search.owns(fresh(rates[0]))
    assert not search.owns(fresh(fresh(trial)))
    assert not replace(search, confirm=False).owns(fresh(trial))
    assert not bench.search(num_etas=1, confirm=True).owns(fresh(bench.search(num_etas=1).trials_at(10)[0]))
    assert not bench.search(confirm=True).owns(fresh(bench.baselines()[0]))


def test_seeds_of_confirmations_are_no_search_s_own(bench):
    """Or a trial could be both."""
    with pytest.raises(ConfigError, match="from 10000 on are those of confirmations"):
        bench.search(seed=FRESH, confirm=True)
    bench.search(seed=FRESH)


def test_an_id_without_confirmation_is_what_it_was(bench):
    """The field is no part of a search that leaves it alone."""
    assert bench.search().id == bench.search(confirm=False).id != bench.search(confirm=True).id


@pytest.mark.parametrize("policy", POLICIES)
def test_the_threshold_is_made_of_second_scores(bench, policy):
    """Per seed the best learning rate again; 0.8 and 0.9 were luck, 0.7 and 0.8 are what counts."""
    search = bench.search(baseline=bench.baselines((1e-5, 3e-5), seeds=2), confirm=True)
    state = policy.init(search)
    for trial, score in zip(search.baseline, (0.6, 0.8, 0.9, 0.5), strict=True):
        state = policy.observe(state, bench.see(trial, score))
    assert state.thresholds is None and state.obstacle is None
    again = policy.propose(state, 2)
    assert again == (fresh(search.baseline[1]), fresh(search.baseline[2]))
    state = policy.observe(state, bench.see(again[0], 0.7))
    assert state.thresholds is None
    done = policy.observe(state, bench.see(again[1], 0.8))
    assert done.thresholds.full == pytest.approx(0.75)
    assert policy.outcome(policy.observe(state, bench.see(again[1], None, "error"))).outcome is Outcome.baseline_missing
    assert policy.outcome(policy.observe(state, bench.see(again[1], None, "diverged"))).d is None


def test_a_single_learning_rate_is_not_confirmed(bench):
    """Nothing was chosen."""
    state = ready(bench)
    assert state.thresholds is not None
    assert Bisection().propose(state, 1) == (state.search.trials_at(30)[0],)


@pytest.mark.parametrize("policy", [Bisection(), Adaptive()])
def test_the_deciding_pass_is_confirmed_and_alone(bench, policy):
    """The best eta of the smallest d that passed; while it is open there is no d90."""
    state = see_all(bench, ready(bench), {(10, 0): 0.5, (10, 1): 0.6, (20, 0): 0.73, (20, 1): 0.75, (30, 0): 0.79})
    (trial,) = policy.propose(state, 9)
    assert trial == fresh(state.search.trials_at(20)[1])
    assert policy.outcome(state).outcome is Outcome.open
    found = policy.outcome(state.add(bench.see(trial, 0.73)))
    assert (found.outcome, found.d, found.num_trials) == (Outcome.found, 20, 7)


@pytest.mark.parametrize("policy", [Bisection(), Adaptive()])
def test_a_refuted_pass_reopens_upwards(bench, policy):
    """First the other etas there, then the next d, whose known pass is confirmed in its turn."""
    state = see_all(bench, ready(bench), {(10, 0): 0.5, (10, 1): 0.6, (20, 0): 0.73, (30, 0): 0.79})
    (trial,) = policy.propose(state, 9)
    state = state.add(bench.see(trial, 0.70))
    assert policy.propose(state, 9) == (state.search.trials_at(20)[1],)
    state = see_all(bench, state, {(20, 1): 0.71})
    (trial,) = policy.propose(state, 9)
    assert trial == fresh(state.search.trials_at(30)[0])
    found = policy.outcome(state.add(bench.see(trial, 0.73)))
    assert (found.outcome, found.d, found.bracket) == (Outcome.found, 30, (20, 30))


def test_a_second_eta_can_save_a_d(bench):
    """Its own pass is confirmed."""
    state = see_all(bench, ready(bench), {(10, 0): 0.5, (10, 1): 0.6, (20, 0): 0.73})
    state = state.add(bench.see(fresh(state.search.trials_at(20)[0]), 0.6))
    state = see_all(bench, state, {(20, 1): 0.74})
    (trial,) = Bisection().propose(state, 9)
    assert trial == fresh(state.search.trials_at(20)[1])
    assert Bisection().outcome(state.add(bench.see(trial, 0.75))).d == 20


@pytest.mark.parametrize("policy", POLICIES)
def test_after_too_many_refutations_there_is_no_number(bench, policy):
    """Every pass is luck: the search ends, with its bracket and without a d."""
    search = bench.search(20, 2, confirm=True)

    def train(trial):
        if trial.is_baseline:
            return bench.see(trial, 0.8)
        lucky = trial.d >= 60 and confirmed_by(trial) is None
        return bench.see(trial, 0.75 if lucky else 0.6)

    state, seen = bench.run(policy, policy.init(search), train)
    finding = policy.outcome(state)
    assert (finding.outcome, finding.d) == (Outcome.not_confirmed, None)
    checks = [row.trial.d for row in seen if confirmed_by(row.trial)]
    assert checks == [d for d in (60, 70, 80, 90, 100)[: CLIMB + 1] for _ in range(CHANCES)]
    assert finding.bracket == (100, 110 if policy == Grid() else finding.bracket[1])


def test_the_climb_is_bounded(bench):
    """A first pass that nothing bears out: a few steps up, not to the end of the grid."""
    search = bench.search(60, 2, confirm=True)

    def train(trial):
        if trial.is_baseline:
            return bench.see(trial, 0.8)
        lucky = trial.d in (50, 600) and confirmed_by(trial) is None
        return bench.see(trial, 0.75 if lucky else 0.6)

    state = Evidence(search)
    for trial in (search.baseline[0], *search.trials_at(40), *search.trials_at(50), *search.trials_at(600)):
        state = state.add(train(trial))
    state, seen = bench.run(Bisection(), state, train)
    tried = {row.trial.d for row in seen if confirmed_by(row.trial) is None}
    assert tried <= {50, 60, 70, 80, 90}
    assert len(tried) == CLIMB
    assert Bisection().outcome(state).outcome is Outcome.not_confirmed


def test_the_ends_of_the_range(bench):
    """A pass at the smallest d is confirmed too; where the last one falls the range is too short."""
    state = see_all(bench, ready(bench), {(10, 0): 0.75, (10, 1): 0.6})
    trial = fresh(state.search.trials_at(10)[0])
    assert Bisection().propose(state, 9) == (trial,)
    assert Bisection().outcome(state.add(bench.see(trial, 0.75))).outcome is Outcome.below_range
    state = see_all(bench, ready(bench), {(40, 0): 0.5, (40, 1): 0.6, (50, 0): 0.75, (50, 1): 0.6})
    state = state.add(bench.see(fresh(state.search.trials_at(50)[0]), 0.6))
    assert Bisection().outcome(state).outcome is Outcome.above_range


def test_an_error_in_a_confirmation_decides_nothing(bench):
    """Another eta that passed takes its place, else the search says why it ended."""
    state = see_all(bench, ready(bench), {(10, 0): 0.5, (10, 1): 0.6, (20, 0): 0.73, (20, 1): 0.75})
    first, second = (fresh(trial) for trial in state.search.trials_at(20))
    state = state.add(bench.see(second, None, "error"))
    assert Bisection().propose(state, 9) == (first,)
    finding = Bisection().outcome(state.add(bench.see(first, None, "error")))
    assert (finding.outcome, finding.d) == (Outcome.trial_failed, None)


def random_world(bench, rng, errors=0):
    """Return a world of random scores, the same for the same trial."""
    known = {}

    def train(trial):
        if trial.id not in known:
            status = rng.choices(("finished", "diverged", "error"), (8, 1, errors))[0]
            score = rng.choice((0.75, 0.8)) if trial.is_baseline else rng.choice((0.55, 0.7, 0.75, 0.79))
            status = "finished" if trial.is_baseline else status
            known[trial.id] = bench.see(trial, score if status == "finished" else None, status)
        return known[trial.id]

    return train


@pytest.mark.parametrize("policy", POLICIES)
@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.integers(1, 30), etas=st.integers(1, 4), slots=st.integers(1, 9))
def test_any_world_ends_within_the_bound_and_only_with_a_confirmed_number(bench, policy, seed, size, etas, slots):
    """Random scores, divergence, errors: found only if a second score passed at d and everything failed below."""
    rng = random.Random(seed)
    search = bench.search(size, etas, confirm=True, baseline=bench.baselines((1e-5, 3e-5), seeds=2))
    train, state, seen = random_world(bench, rng, rng.choice((0, 0, 1))), policy.init(search), []
    while batch := policy.propose(state, slots):
        assert len(set(batch)) == len(batch) <= slots
        for trial in batch:
            seen.append(train(trial))
            state = policy.observe(state, seen[-1])
    assert len({row.trial.id for row in seen}) == len(seen) <= policy.max_trials(search)
    finding = policy.outcome(state)
    assert finding.outcome.is_over
    assert finding.num_trials == len(seen)
    assert all(search.owns(row.trial) for row in seen)
    if finding.outcome in (Outcome.found, Outcome.below_range):
        bar, d = state.thresholds.relative, finding.bracket[1]
        checks = state.again.get(d, {}) if etas > 1 else state.probes[d]
        assert any((result.score or 0.0) >= bar for result in checks.values())
        below = finding.bracket[0]
        assert below is None or state.passed(below, bar) is False


@pytest.mark.parametrize("policy", POLICIES)
@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_order_duplicates_and_loss_do_not_matter(bench, policy, data):
    """Rows in any order, some twice: the same wishes. Some lost: only rows of the first run are asked for again."""
    rng = random.Random(data.draw(st.integers(0, 10**6)))
    size = data.draw(st.integers(1, 20))
    search = bench.search(size, 2, confirm=True, baseline=bench.baselines((1e-5, 3e-5)))
    position, refuted = rng.randint(0, size), rng.randint(0, 2)

    def train(trial):  # monotone, but for passes of which a second look makes fails
        if trial.is_baseline:
            return bench.see(trial, 0.8)
        bar = position if confirmed_by(trial) is None else position + refuted
        return bench.see(trial, 0.79 if search.positions[trial.d] >= bar and trial.eta == search.etas[-1] else 0.55)

    whole, rows = bench.run(policy, policy.init(search), train)
    cut = data.draw(st.integers(0, len(rows)))
    states = []
    for order in (rows[:cut], data.draw(st.permutations(rows[:cut])) + rows[: cut // 2]):
        state = policy.init(search)
        for row in order:
            state = policy.observe(state, row)
        states.append(state)
    assert policy.propose(states[0], 99) == policy.propose(states[1], 99)
    assert policy.outcome(states[0]) == policy.outcome(states[1])
    state = policy.init(search)
    kept = data.draw(st.sets(st.sampled_from(rows), max_size=12))
    for row in kept:
        state = policy.observe(state, row)
    state, again = bench.run(policy, state, train)
    assert {row.trial.id for row in again}.isdisjoint(row.trial.id for row in kept)
    finding, first = policy.outcome(state), policy.outcome(whole)
    assert (finding.outcome, finding.d, finding.bracket) == (first.outcome, first.d, first.bracket)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    policy=st.sampled_from(POLICIES),
    size=st.integers(1, 20),
    slots=st.integers(1, 20),
)
def test_a_board_never_exceeds_the_maximum(bench, seed, policy, size, slots):
    """Searches that share a baseline share its confirmations; trials end in any order, unwanted ones are cancelled."""
    rng = random.Random(seed)
    baseline = bench.baselines((1e-5, 3e-5), seeds=2)
    searches = [bench.search(size, 3, seed=s, confirm=True, baseline=baseline) for s in range(2)]
    board, train, running, seen = Board(searches, policy), random_world(bench, rng), {}, []
    while not board.finished:
        while (trial := board.next(running.keys(), slots)) is not None:
            running[trial.id] = trial
        seen.append(train(running.pop(rng.choice(sorted(running)))))
        board.observe(seen[-1])
        running = {key: trial for key, trial in running.items() if key in board.wanted()}
    assert not running
    assert len({row.trial.id for row in seen}) == len(seen) <= board.max_trials()
    assert sum(row.trial.is_baseline for row in seen) == 4 + 2
    assert all(finding.outcome.is_over for finding in board.findings())


def test_the_luck_of_the_best_of_many_is_gone(bench):
    """Eight etas and eight learning rates that only luck tells apart: the threshold, and the first crossing."""
    etas, rates = tuple(0.1 * 1.3**i for i in range(8)), tuple(2e-5 * 1.01**i for i in range(8))
    bars, places = {False: [], True: []}, {False: [], True: []}
    half_a_step = math.log(DIMS[-1] / DIMS[0]) / (len(DIMS) - 1) / 2  # what the grid adds to any crossing
    for seed in range(30):
        curve = Curve(seed=seed, floor=0.51, plateau=0.9, full=0.9, eta_penalty=0.0, rate_penalty=0.0)
        for confirm in (False, True):
            state = Evidence(bench.search(baseline=bench.baselines(rates, seeds=3), confirm=confirm))
            while trial := next(state.missing_baseline(), None):
                state = state.add(curve.observe(trial, arrays=False))
            bars[confirm].append(state.thresholds.full - 0.9)
            one_rate = bench.baselines((2e-5,), seeds=3)
            search = bench.search(dims=DIMS, etas=etas, baseline=one_rate, confirm=confirm)
            board = Board([search], Bisection())
            while (trial := board.next(frozenset(), 1)) is not None:
                board.observe(curve.observe(trial, arrays=False))
            if d := board.findings()[0].d:
                places[confirm].append(math.log(d / curve.crossing(etas, (2e-5,))) - half_a_step)
    assert np.mean(bars[False]) > 0.008
    assert abs(np.mean(bars[True])) < 0.004
    assert np.mean(places[False]) < -0.15
    assert abs(np.mean(places[True])) < 0.08
    assert len(places[True]) >= 27
