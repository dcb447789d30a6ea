"""Grid and bisection: the right answer, the bound, and what happens when trials fail."""

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distsub.errors import ConfigError
from distsub.search import POLICIES, Adaptive, Bisection, Board, Evidence, Finding, Grid, Outcome, make_policy
from distsub.trial import Method


def expected(search, position: int) -> tuple[Outcome, int | None, tuple[int | None, int | None]]:
    """Return what a search must find when d passes from a position on."""
    dims = search.dims
    if position == 0:
        return Outcome.below_range, None, (None, dims[0])
    if position == len(dims):
        return Outcome.above_range, None, (dims[-1], None)
    return Outcome.found, dims[position], (dims[position - 1], dims[position])


def answer(finding: Finding) -> tuple[Outcome, int | None, tuple[int | None, int | None]]:
    """Return the part of a finding that the truth decides."""
    return finding.outcome, finding.d, finding.bracket


def test_bisection_is_right_within_its_bound_for_every_grid_and_position(bench):
    """Every grid size from 1 to 200 and every position of the threshold, 20,300 searches in all."""
    most = 0
    for size in range(1, 201):
        search = bench.search(size, num_etas=1)
        policy, start = Bisection(), Evidence(search)
        start = start.add(bench.see(search.baseline[0], 0.8))
        bound = math.ceil(math.log2(size + 1))
        assert policy.max_trials(search) == 1 + bound
        rows = {
            passes: {d: bench.see(search.trials_at(d)[0], 0.79 if passes else 0.55) for d in search.dims}
            for passes in (False, True)
        }
        for position in range(size + 1):
            state, count = start, 0
            while batch := policy.propose(state, 1):
                d = batch[0].d
                assert d is not None
                state = state.add(rows[search.positions[d] >= position][d])
                count += 1
            assert count <= bound
            assert answer(policy.outcome(state)) == expected(search, position)
            most = max(most, count)
    assert most == 8


@pytest.mark.parametrize("policy", [Grid(), Bisection()])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 20])
@pytest.mark.parametrize("slots", [1, 3, 16])
def test_right_and_bounded_with_several_etas_and_slots(bench, policy, size, slots):
    """Only the last eta ever passes, and a batch finishes last trial first."""
    search = bench.search(size, num_etas=3, baseline=bench.baselines((1e-5, 3e-5), seeds=2))
    for position in range(size + 1):
        state, seen = bench.run(policy, policy.init(search), bench.truth(search, position), slots)
        finding = policy.outcome(state)
        assert answer(finding) == expected(search, position)
        assert len({row.trial.id for row in seen}) == len(seen) == finding.num_trials <= policy.max_trials(search)
        if policy == Grid():
            assert len(seen) == policy.max_trials(search)


@pytest.mark.parametrize("policy", [Grid(), Bisection()])
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_order_and_duplicates_do_not_matter(bench, policy, data):
    """The same rows in any order, any of them twice, give the same state of knowledge."""
    search = bench.search(6, num_etas=2)
    trials = [*search.baseline, *(trial for d in search.dims for trial in search.trials_at(d))]
    rows = [
        bench.see(trial, score, status)
        for trial in trials
        for status, score in data.draw(
            st.lists(
                st.sampled_from([("finished", 0.55), ("finished", 0.8), ("diverged", None), ("error", None)]),
                max_size=2,
            )
        )
    ]
    shuffled = data.draw(st.permutations(rows)) + data.draw(
        st.lists(st.sampled_from(rows), max_size=9) if rows else st.just([])
    )
    states = [policy.init(search), policy.init(search)]
    for state, order in enumerate((rows, shuffled)):
        for row in order:
            states[state] = policy.observe(states[state], row)
    assert policy.outcome(states[0]) == policy.outcome(states[1])
    assert policy.propose(states[0], 99) == policy.propose(states[1], 99)


@pytest.mark.parametrize("policy", [Grid(), Bisection()])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_subset_of_the_rows_resumes_to_the_same_finding(bench, policy, data):
    """Killed anywhere and fed what was kept: the same trials in the end, none of the kept ones again."""
    size = data.draw(st.integers(1, 40))
    search = bench.search(size, num_etas=2)
    train = bench.truth(search, data.draw(st.integers(0, size)))
    whole, rows = bench.run(policy, policy.init(search), train)
    kept = data.draw(st.sets(st.sampled_from(rows), max_size=12))
    state = policy.init(search)
    for row in kept:
        state = policy.observe(state, row)
    resumed, again = bench.run(policy, state, train)
    assert {row.trial.id for row in again}.isdisjoint(row.trial.id for row in kept)
    assert {row.trial.id for row in again} | {row.trial.id for row in kept} <= {row.trial.id for row in rows}
    assert answer(policy.outcome(resumed)) == answer(policy.outcome(whole))


@pytest.mark.parametrize("policy", [Grid(), Bisection()])
@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.integers(1, 12), slots=st.integers(1, 9))
def test_any_world_ends_within_the_bound_and_never_with_a_wrong_number(bench, policy, seed, size, slots):
    """Random scores, divergence, errors: found only if that d passed, the next smaller failed, no later one failed."""
    rng = random.Random(seed)
    search = bench.search(size, num_etas=2)

    def train(trial):
        if trial.is_baseline:
            return bench.see(trial, 0.8)
        status = rng.choices(("finished", "diverged", "error"), (8, 1, 1))[0]
        return bench.see(trial, rng.choice((0.55, 0.75, 0.79)) if status == "finished" else None, status)

    state, seen = bench.run(policy, policy.init(search), train, slots)
    finding = policy.outcome(state)
    assert len(seen) <= policy.max_trials(search)
    assert finding.outcome.is_over
    assert (finding.d is not None) == (finding.outcome is Outcome.found)
    assert state.thresholds is not None
    for verdict, threshold in (
        (finding, state.thresholds.relative),
        (finding.chance_corrected, state.thresholds.chance_corrected),
    ):
        if verdict.outcome is Outcome.found:
            position = search.positions[verdict.d]
            assert state.passed(verdict.d, threshold)
            assert state.passed(search.dims[position - 1], threshold) is False
            assert all(state.passed(d, threshold) is not False for d in search.dims[position:])


def feed(bench, policy, search, pattern: str) -> Evidence:
    """Observe the baseline, then per d: P(ass), F(ail), D(iverged), E(rror), or - for nothing, at every eta."""
    state = policy.observe(policy.init(search), bench.see(search.baseline[0], 0.8))
    meaning = {"P": ("finished", 0.79), "F": ("finished", 0.55), "D": ("diverged", None), "E": ("error", None)}
    for d, mark in zip(search.dims, pattern, strict=True):
        for trial in search.trials_at(d) if mark != "-" else ():
            status, score = meaning[mark]
            state = policy.observe(state, bench.see(trial, score, status))
    return state


@pytest.mark.parametrize(
    ("pattern", "outcome", "d", "bracket"),
    [
        ("FFPPP", Outcome.found, 30, (20, 30)),
        ("FDPPP", Outcome.found, 30, (20, 30)),
        ("FFPFP", Outcome.not_monotone, None, (40, 30)),
        ("PFFFF", Outcome.not_monotone, None, (50, 10)),
        ("FEPPP", Outcome.trial_failed, None, (10, 30)),
        ("EEEEE", Outcome.trial_failed, None, (None, None)),
        ("EPPPP", Outcome.trial_failed, None, (None, 20)),
        ("FFFFE", Outcome.trial_failed, None, (40, None)),
        ("EFPPE", Outcome.found, 30, (20, 30)),
        ("PPPPP", Outcome.below_range, None, (None, 10)),
        ("DDDDD", Outcome.above_range, None, (50, None)),
        ("FFPP-", Outcome.open, None, (20, 30)),
    ],
)
def test_grid_outcomes(bench, pattern, outcome, d, bracket):
    """An error matters only between the last fail and the first pass; nothing is said before the end."""
    state = feed(bench, Grid(), bench.search(5), pattern)
    assert answer(Grid().outcome(state)) == (outcome, d, bracket)


@pytest.mark.parametrize(
    ("pattern", "outcome", "d", "bracket"),
    [
        ("-----", Outcome.open, None, (None, None)),
        ("--P--", Outcome.open, None, (None, 30)),
        ("-FP--", Outcome.found, 30, (20, 30)),
        ("--E--", Outcome.trial_failed, None, (None, None)),
        ("F-E--", Outcome.trial_failed, None, (10, None)),
        ("--EF-", Outcome.open, None, (40, None)),
        ("--EFE", Outcome.trial_failed, None, (40, None)),
        ("P---F", Outcome.not_monotone, None, (50, 10)),
        ("FFPFP", Outcome.not_monotone, None, (40, 30)),
        ("----F", Outcome.above_range, None, (50, None)),
        ("P----", Outcome.below_range, None, (None, 10)),
    ],
)
def test_bisection_outcomes(bench, pattern, outcome, d, bracket):
    """Rows from elsewhere decide what they imply; an error stops the search only where it bars the way."""
    state = feed(bench, Bisection(), bench.search(5), pattern)
    assert answer(Bisection().outcome(state)) == (outcome, d, bracket)


def test_chance_corrected_verdict_comes_from_the_same_rows(bench):
    """0.75 reaches 0.72 but not 0.77; the grid decides both, bisection the second only where it passed by."""
    search = bench.search(8, num_etas=1)
    scores = dict(zip(search.dims, (0.5, 0.6, 0.75, 0.75, 0.75, 0.78, 0.79, 0.8), strict=True))

    def train(trial):
        return bench.see(trial, 0.8 if trial.is_baseline else scores[trial.d])

    state, _ = bench.run(Grid(), Grid().init(search), train)
    finding = Grid().outcome(state)
    assert (finding.d, finding.chance_corrected.d) == (30, 60)
    assert finding.chance_corrected.bracket == (50, 60)
    assert finding.best_score == 0.8
    state, _ = bench.run(Bisection(), Bisection().init(search), train)
    finding = Bisection().outcome(state)
    assert (finding.d, finding.chance_corrected.outcome) == (30, Outcome.undecided)
    assert (finding.chance_corrected.d, finding.chance_corrected.bracket) == (None, (40, None))


@pytest.mark.parametrize("policy", [Grid(), Bisection()])
def test_a_failed_baseline_ends_the_search_at_once(bench, policy):
    """No subspace trial is worth running without a threshold."""
    search = bench.search(baseline=bench.baselines((1e-5, 3e-5)))
    state = policy.observe(policy.init(search), bench.see(search.baseline[0], None, "error"))
    assert policy.propose(state, 9) == ()
    assert policy.outcome(state).outcome is Outcome.baseline_missing
    mended = policy.observe(state, bench.see(search.baseline[0], 0.8))
    assert policy.propose(mended, 1) == (search.baseline[1],)


def test_a_grid_compares_ways_of_training_in_layers_at_chance_too(bench):
    """Their scores are what the sweep is for; d90 of the whole model is not worth a trial without a threshold."""
    layers = Method("did", "fastfood", "global", scope="layer", head="trained", embeddings="frozen")
    for method, runs in ((layers, 8), (bench.search().method, 0)):
        search = bench.search(4, method=method)
        state = Grid().observe(Grid().init(search), bench.see(search.baseline[0], 0.5))
        proposed = Grid().propose(state, 99)
        assert len(proposed) == runs
        for trial in proposed:
            assert Grid().outcome(state).outcome is Outcome.open
            state = Grid().observe(state, bench.see(trial, 0.52))
        assert Grid().propose(state, 1) == () and Grid().outcome(state).outcome is Outcome.baseline_at_chance
    search = bench.search(method=layers)
    broken = Grid().observe(Grid().init(search), bench.see(search.baseline[0], None, "diverged"))
    assert Grid().propose(broken, 9) == ()
    assert Bisection().propose(Evidence(search).add(bench.see(search.baseline[0], 0.5)), 9) == ()


def test_bisection_starts_on_the_first_d_while_the_baseline_runs(bench):
    """Baseline first, then the middle's etas, and nothing beyond them however many slots there are."""
    search = bench.search(7, num_etas=2, baseline=bench.baselines((1e-5, 3e-5)))
    assert Bisection().propose(Bisection().init(search), 3) == (*search.baseline, search.trials_at(40)[0])
    assert Bisection().propose(Bisection().init(search), 99) == (*search.baseline, *search.trials_at(40))


def test_a_pass_withdraws_the_other_etas(bench):
    """They are no longer proposed, so whoever runs them may cancel."""
    search = bench.search(7, num_etas=3)
    state = Evidence(search).add(bench.see(search.baseline[0], 0.8))
    state = state.add(bench.see(search.trials_at(40)[1], 0.79))
    assert {trial.d for trial in Bisection().propose(state, 9)} == {20}


def test_policies_by_name():
    """As a sweep file names them."""
    assert [make_policy(name) for name in POLICIES] == [Adaptive(), Bisection(), Grid()]
    with pytest.raises(ConfigError, match="policy = 'bisect' is unknown: give one of adaptive, bisection, grid"):
        make_policy("bisect")


TRIES = [
    pytest.param(make_policy(name), choice, id=f"{name}-{choice}")
    for name in POLICIES
    for choice in ("belief", "optuna")
]


@pytest.mark.parametrize(("policy", "choice"), TRIES)
@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.integers(1, 8), slots=st.integers(1, 9), confirm=st.booleans())
def test_a_d_is_never_given_more_than_its_tries(bench, policy, choice, seed, size, slots, confirm):
    """Two of four etas, any scores, trials that end in any order: within the bound, and a verdict rests on two."""
    rng = random.Random(seed)
    search = bench.search(
        size, 4, tries=2, eta_choice=choice, confirm=confirm, baseline=bench.baselines((1e-5, 3e-5)), seed=seed % 3
    )
    board, running, count = Board([search], policy), {}, 0
    state = policy.init(search)
    while not board.finished:
        while (trial := board.next(running.keys(), slots)) is not None:
            running[trial.id] = trial
        trial = running.pop(rng.choice(sorted(running)))
        status = rng.choices(("finished", "diverged", "error"), (8, 1, 1))[0] if trial.d else "finished"
        score = rng.choice((0.55, 0.7, 0.75)) if trial.d else 0.8
        row = bench.see(trial, score if status == "finished" else None, status)
        board.observe(row)
        state = policy.observe(state, row)
        count += 1
        running = {key: trial for key, trial in running.items() if key in board.wanted()}
    assert count <= board.max_trials() == policy.max_trials(search)
    assert max(map(len, state.probes.values()), default=0) <= 2
    finding = board.findings()[0]
    assert finding.outcome.is_over and finding == policy.outcome(state)
    if finding.outcome is Outcome.found:
        bar = state.thresholds.relative
        assert state.passed(finding.d, bar) and state.passed(finding.bracket[0], bar) is False
        assert len(state.probes[finding.bracket[0]]) == 2


@pytest.mark.parametrize(("policy", "choice"), TRIES)
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_with_fewer_tries_too_the_order_of_rows_does_not_matter(bench, policy, choice, data):
    """Rows of any etas in any order, some twice, also more at a d than it has tries: the same wishes and findings."""
    search = bench.search(6, 4, tries=2, eta_choice=choice)
    results = st.sampled_from([("finished", 0.55), ("finished", 0.8), ("diverged", None), ("error", None)])
    trials = data.draw(st.sets(st.sampled_from([t for d in search.dims for t in search.trials_at(d)]), max_size=9))
    rows = [bench.see(search.baseline[0], 0.8)]
    for trial in sorted(trials, key=lambda each: (each.d, each.eta)):
        status, score = data.draw(results)
        rows.append(bench.see(trial, score, status))
    states = []
    for order in (rows, data.draw(st.permutations(rows)) + rows[:3]):
        state = policy.init(search)
        for row in order:
            state = policy.observe(state, row)
        states.append(state)
    assert policy.propose(states[0], 9) == policy.propose(states[1], 9)
    assert policy.outcome(states[0]) == policy.outcome(states[1])


@pytest.mark.parametrize("policy", [Grid(), Bisection()])
def test_etas_asked_of_optuna_are_trained_side_by_side(bench, policy):
    """A d's etas are known before the first ends: whichever fails, the others are still wanted, and no further one."""
    search = bench.search(9, 8, tries=3, eta_choice="optuna")
    state = policy.observe(policy.init(search), bench.see(search.baseline[0], 0.8))
    seen = 0
    while batch := policy.propose(state, 99):
        assert len({trial.d for trial in batch}) == 1 and len(batch) == 3
        for k, trial in enumerate(reversed(batch), start=1):
            state = policy.observe(state, bench.see(trial, 0.5 + 0.01 * search.etas.index(trial.eta)))
            if k < 3:
                assert policy.propose(state, 99) == batch[:-k]
        seen += 3
    assert policy.outcome(state).outcome is Outcome.above_range
    assert seen == policy.max_trials(search) - 1 or policy == Bisection()


def test_without_a_choice_the_list_is_followed(bench):
    """Bisection and grid, "belief": the first etas of the list at every d."""
    search = bench.search(7, 5, tries=2)
    for policy in (Grid(), Bisection()):
        state, rows = bench.run(policy, policy.init(search), bench.truth(search, 0))
        assert {row.trial.eta for row in rows if row.trial.d} == set(search.etas[:2])
        assert policy.outcome(state).outcome is Outcome.above_range
