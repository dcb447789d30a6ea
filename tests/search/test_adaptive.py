"""Adaptive: the right answer within the promised maximum, as a fold, at a fraction of the trials; the board's part."""

import math
import random
import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distsub.search import Adaptive, Bisection, Board, Evidence, Outcome, log_grid
from distsub.search.belief import Axis, best_etas, crossing
from distsub.search.synthetic import Curve
from distsub.trial import Seeds

POLICY = Adaptive()


def expected(search, position):
    """Return what a search must find when d passes from a position on."""
    dims = search.dims
    if position == 0:
        return Outcome.below_range, None, (None, dims[0])
    if position == len(dims):
        return Outcome.above_range, None, (dims[-1], None)
    return Outcome.found, dims[position], (dims[position - 1], dims[position])


def answer(finding):
    """Return the part of a finding that the truth decides."""
    return finding.outcome, finding.d, finding.bracket


def rounds(bench, state, train, slots):
    """Run whole batches to their end, those too that the first result of a batch makes needless."""
    seen = []
    while batch := POLICY.propose(state, slots):
        assert len(set(batch)) == len(batch) <= slots
        for trial in batch:
            seen.append(train(trial))
            state = POLICY.observe(state, seen[-1])
    return state, seen


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 20, 64])
@pytest.mark.parametrize("slots", [1, 4, 40])
def test_right_and_within_the_bound(bench, size, slots):
    """Only the last eta ever passes and scores tell nothing of the distance: the belief is wrong, the answer right."""
    search = bench.search(size, num_etas=3, baseline=bench.baselines((1e-5, 3e-5), seeds=2))
    for position in range(0, size + 1, 1 if size < 20 else 7):
        state, seen = rounds(bench, POLICY.init(search), bench.truth(search, position), slots)
        assert answer(POLICY.outcome(state)) == expected(search, position)
        assert len({row.trial.id for row in seen}) == len(seen) <= POLICY.max_trials(search)


@pytest.mark.parametrize(("size", "most"), [(1, 3), (8, 24), (16, 30), (64, 36)])
def test_the_bound(bench, size, most):
    """The baseline, and five values of d more than bisection at most, and never more than there are."""
    search = bench.search(size, num_etas=3)
    assert POLICY.max_trials(search) == 1 + most


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.integers(1, 30), etas=st.integers(1, 4), slots=st.integers(1, 12))
def test_any_world_ends_within_the_bound_and_never_with_a_wrong_number(bench, seed, size, etas, slots):
    """Random scores, divergence, errors, whole batches: found only if that d passed and the next smaller failed."""
    rng = random.Random(seed)
    search = bench.search(size, num_etas=etas)
    errors = rng.choice((0, 0, 1, 3))

    def train(trial):
        if trial.is_baseline:
            return bench.see(trial, 0.8)
        status = rng.choices(("finished", "diverged", "error"), (8, 1, errors))[0]
        return bench.see(trial, rng.choice((0.55, 0.7, 0.75, 0.79)) if status == "finished" else None, status)

    state, seen = rounds(bench, POLICY.init(search), train, slots)
    finding = POLICY.outcome(state)
    assert len(seen) <= POLICY.max_trials(search)
    assert finding.outcome.is_over
    assert state.thresholds is not None
    if finding.outcome is Outcome.found:
        assert finding.d is not None
        position = search.positions[finding.d]
        assert state.passed(finding.d, state.thresholds.relative)
        assert state.passed(search.dims[position - 1], state.thresholds.relative) is False
    if not errors:
        assert finding.outcome is not Outcome.trial_failed


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_order_and_duplicates_do_not_matter(bench, data):
    """The same rows in any order, any of them twice, ask for the same trials."""
    search = bench.search(9, num_etas=2)
    trials = [*search.baseline, *(trial for d in search.dims for trial in search.trials_at(d))]
    results = st.sampled_from([("finished", 0.55), ("finished", 0.8), ("diverged", None), ("error", None)])
    rows = [
        bench.see(trial, score, status)
        for trial in trials
        for status, score in data.draw(st.lists(results, max_size=1))
    ]
    again = data.draw(st.lists(st.sampled_from(rows), max_size=9)) if rows else []
    states = []
    for order in (rows, data.draw(st.permutations(rows)) + again):
        state = POLICY.init(search)
        for row in order:
            state = POLICY.observe(state, row)
        states.append(state)
    assert POLICY.propose(states[0], 99) == POLICY.propose(states[1], 99)
    assert POLICY.outcome(states[0]) == POLICY.outcome(states[1])


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_resumes_where_it_was(bench, data):
    """Killed anywhere, it asks for the very trials it would have asked for; with rows lost, the answer is the same."""
    size = data.draw(st.integers(1, 40))
    search = bench.search(size, num_etas=2)
    train = bench.truth(search, data.draw(st.integers(0, size)))
    whole, rows = bench.run(POLICY, POLICY.init(search), train)
    cut = data.draw(st.integers(0, len(rows)))
    state = POLICY.init(search)
    for row in data.draw(st.permutations(rows[:cut])):
        state = POLICY.observe(state, row)
    _, rest = bench.run(POLICY, state, train)
    assert [row.trial for row in rest] == [row.trial for row in rows[cut:]]
    state = POLICY.init(search)
    for row in data.draw(st.sets(st.sampled_from(rows), max_size=12)):
        state = POLICY.observe(state, row)
    assert answer(POLICY.outcome(bench.run(POLICY, state, train)[0])) == answer(POLICY.outcome(whole))


def curve_searches(bench, count=1, **changes):
    """Return a synthetic truth, and searches over the published grid that differ in seeds."""
    curve = Curve(middle=math.log(3000.0), eta_best=0.3, **changes)
    baseline = bench.baselines((1e-5, 2e-5), seeds=count)
    searches = [
        bench.search(dims=log_grid(100, 1_000_000), etas=(0.03, 0.1, 0.3, 1.0), seeds=Seeds(s, s, s), baseline=baseline)
        for s in range(count)
    ]
    return curve, searches


def play(policy, curve, searches, slots=1, order=None):
    """Run a board, `slots` trials at a time; return it with all rows."""
    board, rows = Board(searches, policy), []
    while not board.finished:
        running = {}
        while (trial := board.next(running.keys(), slots)) is not None:
            running[trial.id] = trial
        batch = [curve.observe(trial, arrays=False) for trial in running.values()]
        if order is not None:
            order.shuffle(batch)
        rows.extend(batch)
        for row in batch:
            board.observe(row)
    return board, rows


def test_takes_half_of_bisection(bench):
    """On noisy curves, over three seeds: at most 60% of the subspace trials, baselines left out."""
    spent = dict.fromkeys((Adaptive, Bisection), 0)
    for seed in range(6):
        curve, searches = curve_searches(bench, 3, seed=seed)
        for policy in spent:
            spent[policy] += sum(not row.trial.is_baseline for row in play(policy(), curve, searches)[1])
    assert spent[Adaptive] <= 0.6 * spent[Bisection]


def test_a_search_learns_from_the_seeds_before_it(bench):
    """The second seed begins where the first ended, and the first is done before the second begins."""
    spent = [0, 0]
    for world in range(3):
        curve, searches = curve_searches(bench, 2, seed=world)
        board, rows = play(Adaptive(), curve, searches)
        by_seed = [[row.trial.d for row in rows if row.trial.d and row.trial.seeds.data == seed] for seed in (0, 1)]
        d90 = board.findings()[0].d
        assert abs(math.log(by_seed[1][0] / d90)) < 0.5
        probes = [row.trial.seeds.data for row in rows if row.trial.d]
        assert probes == sorted(probes)
        spent = [before + len(dims) for before, dims in zip(spent, by_seed, strict=True)]
    assert spent[1] < spent[0]


def test_what_a_board_has_learned_depends_on_the_rows_alone(bench):
    """Rows read back in any order: the same findings, and the same trials next."""
    curve, searches = curve_searches(bench, 3)
    _, rows = play(Adaptive(), curve, searches, slots=5, order=random.Random(1))
    for seed in range(5):
        rng = random.Random(seed)
        cut = rng.randrange(len(rows))
        twins = [Board(searches, Adaptive()) for _ in range(2)]
        for twin, kept in zip(twins, (rows[:cut], rng.sample(rows[:cut], cut)), strict=True):
            for row in kept:
                twin.observe(row)
        running = [set(), set()]
        for _ in range(9):
            following = [twin.next(mine, 9) for twin, mine in zip(twins, running, strict=True)]
            assert following[0] == following[1]
            if following[0] is None:
                break
            for mine in running:
                mine.add(following[0].id)
        assert twins[0].findings() == twins[1].findings()


def test_speculates_on_what_comes_next_and_no_further(bench):
    """One d for one slot; with more, trials of other d and etas, each at least as probable as the limit."""
    search = bench.search(64, num_etas=4)
    state = Evidence(search).add(bench.see(search.baseline[0], 0.8))
    first = POLICY.propose(state, 1)
    many = POLICY.propose(state, 99)
    assert many[:1] == first
    assert len({trial.d for trial in many}) > 1
    assert len(Adaptive(speculation=0.5).propose(state, 99)) < len(many) < 16
    after = POLICY.observe(state, bench.see(first[0], 0.79))
    limit = first[0].d or 0
    assert all(trial.d is not None and trial.d < limit for trial in POLICY.propose(after, 99))


def test_verifies_the_fail_below_a_sure_pass(bench):
    """As soon as the last pass is probably the first: the other etas of the d below it, the better one ahead."""
    search = bench.search(16, num_etas=3)
    state = Evidence(search).add(bench.see(search.baseline[0], 0.8))
    for trial, score in zip(search.trials_at(30), (0.60, 0.65, 0.64), strict=True):
        state = state.add(bench.see(trial, score))
    state = state.add(bench.see(search.trials_at(90)[1], 0.725)).add(bench.see(search.trials_at(80)[1], 0.68))
    policy = Adaptive(sure=0.01)
    assert policy.propose(state, 2) == (search.trials_at(80)[2], search.trials_at(80)[0])
    for trial in policy.propose(state, 2):
        state = state.add(bench.see(trial, 0.66))
    assert policy.propose(state, 9) == ()
    assert answer(policy.outcome(state)) == (Outcome.found, 90, (80, 90))


def closed(bench, search, bar=5, far=None):
    """Return a search that has its bracket: all etas failed below position `bar`, the middle eta passed there."""
    state = Evidence(search).add(bench.see(search.baseline[0], 0.8))
    for trial in search.trials_at(search.dims[bar - 1]):
        state = state.add(bench.see(trial, 0.6))
    state = state.add(bench.see(search.trials_at(search.dims[bar])[1], 0.75))
    return state if far is None else state.add(far)


def test_looks_once_how_high_the_curve_rises(bench):
    """One training at four times the crossing, in vain or not; the answer stays."""
    search = bench.search(64, num_etas=3)
    state = closed(bench, search)
    assert POLICY.propose(state, 9) == (search.trials_at(240)[1],)
    assert POLICY.outcome(state).outcome is Outcome.open
    for status, score in (("finished", 0.8), ("finished", 0.55), ("diverged", None), ("error", None)):
        done = state.add(bench.see(search.trials_at(240)[1], score, status))
        assert POLICY.propose(done, 9) == ()
        assert answer(POLICY.outcome(done)) == (Outcome.found, 60, (50, 60))


def test_looks_only_where_nothing_is_known_of_the_height(bench):
    """Not where this search or two elders have a row about as far up, where one eta could fail a d or the grid ends."""
    search = bench.search(64, num_etas=3)
    state = closed(bench, search)
    assert POLICY.propose(closed(bench, search, far=bench.see(search.trials_at(220)[0], 0.8)), 9) == ()
    for seed, asked in ((1, 1), (2, 0)):
        other = replace(search, seeds=Seeds(seed, seed, seed))
        assert len(POLICY.propose(state.learn(closed(bench, other)), 9)) == 1
        state = state.learn(closed(bench, other, far=bench.see(other.trials_at(220)[1], 0.8)))
        assert len(POLICY.propose(state, 9)) == asked
    assert POLICY.propose(closed(bench, bench.search(23, num_etas=3)), 9) == ()
    alone = bench.search(64, num_etas=1)
    state = Evidence(alone).add(bench.see(alone.baseline[0], 0.8)).add(bench.see(alone.trials_at(50)[0], 0.6))
    assert POLICY.propose(state.add(bench.see(alone.trials_at(60)[0], 0.75)), 9) == ()


def test_walks_around_errors(bench):
    """A d whose every eta is in error is left out; when only such are left the search says so."""
    search = bench.search(5, num_etas=2)
    state = Evidence(search).add(bench.see(search.baseline[0], 0.8))

    def train(trial):
        if trial.d == 30:
            return bench.see(trial, None, "error")
        return bench.see(trial, 0.79 if trial.d >= 40 else 0.55)

    state, _ = rounds(bench, state, train, 2)
    assert answer(POLICY.outcome(state)) == (Outcome.trial_failed, None, (20, 40))


def test_etas_are_compared_at_equal_d(bench):
    """The eta that did better at one d is the favourite everywhere, also of the next seed; no scores, middle first."""
    search = bench.search(5, num_etas=3)
    state = Evidence(search).add(bench.see(search.baseline[0], 0.8))
    assert best_etas(state).argmax() == 1
    for trial, score in zip(search.trials_at(20), (0.52, 0.6, 0.69), strict=True):
        state = state.add(bench.see(trial, score))
    assert best_etas(state).argmax() == 2
    younger = Evidence(replace(search, seeds=Seeds(1, 1, 1))).learn(state)
    assert best_etas(younger).argmax() == 2


def test_the_crossing_follows_scores_and_elders(bench):
    """Verdicts are hard limits; a score far below moves the crossing further up than one just below; elders attract."""
    search = bench.search(64, num_etas=1, dims=log_grid(100, 1_000_000))
    start = Evidence(search).add(bench.see(search.baseline[0], 0.8))
    axis = Axis.of(search.dims)

    def mean(state):
        belief = crossing(state, best_etas(state))
        assert belief.sum() == pytest.approx(1.0)
        return float(belief @ axis.crossing)

    near = start.add(bench.see(search.trials_at(search.dims[20])[0], 0.71))
    far = start.add(bench.see(search.trials_at(search.dims[20])[0], 0.52))
    assert axis.at[20] < mean(near) < mean(far)
    assert crossing(near, best_etas(near))[:21].sum() == 0.0
    done = near.add(bench.see(search.trials_at(search.dims[21])[0], 0.73))
    younger = Evidence(replace(search, seeds=Seeds(1, 1, 1))).learn(done)
    assert younger.learn(done) is younger
    belief = crossing(younger, best_etas(younger))
    assert belief[16:27].sum() > 0.6
    assert belief.min() > 0.0


def test_a_decision_is_quick(bench):
    """One search, the published grid, 12 results, 16 slots: 0.3 ms on a quiet core."""
    curve, searches = curve_searches(bench)
    state = POLICY.init(searches[0])
    while len(state.probes) < 4:
        state = POLICY.observe(state, curve.observe(POLICY.propose(state, 1)[0], arrays=False))
    times = []
    for _ in range(30):
        began = time.perf_counter()
        POLICY.propose(state, 16)
        times.append(time.perf_counter() - began)
    assert sorted(times)[len(times) // 2] < 0.005


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.integers(1, 40), slots=st.integers(1, 30))
def test_a_board_never_exceeds_the_maximum(bench, seed, size, slots):
    """Trials end in any order, those no longer wanted are cancelled, the others that linger run on and count."""
    rng = random.Random(seed)
    search = bench.search(size, num_etas=3)
    board, running, count = Board([search], POLICY), {}, 0
    while not board.finished:
        while (trial := board.next(running.keys(), slots)) is not None:
            running[trial.id] = trial
        trial = running.pop(rng.choice(sorted(running)))
        score = 0.8 if trial.is_baseline else rng.choice((0.55, 0.7, 0.73, 0.79))
        board.observe(bench.see(trial, score))
        count += 1
        running = {key: trial for key, trial in running.items() if key in board.wanted()}
    assert count <= board.max_trials()
    assert not running
    assert board.findings()[0].outcome.is_over


def test_what_was_begun_goes_on_while_it_may_tell_something(bench):
    """A trial inside the bracket is not cancelled because another d has become more interesting; outside it is."""
    search = bench.search(64, num_etas=4)
    board = Board([search], POLICY)
    board.observe(bench.see(search.baseline[0], 0.8))
    running = {}
    while (trial := board.next(running.keys(), 6)) is not None:
        running[trial.id] = trial
    first = min(running.values(), key=lambda trial: trial.d)
    last = max(running.values(), key=lambda trial: trial.d)
    assert first.d < last.d
    board.observe(bench.see(first, 0.52))
    assert last.id in board.wanted()
    passed = next(trial for trial in running.values() if trial.d == first.d and trial != first)
    board.observe(bench.see(passed, 0.79))
    assert last.id not in board.wanted()
