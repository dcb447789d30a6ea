"""Grid and bisection: the right answer, the bound, and what happens when trials fail."""

import math
import random

import pytest
from builders import examples
from hypothesis import given
from hypothesis import strategies as st

from distsub.errors import ConfigError
from distsub.records import Random, Seeds, Subspace
from distsub.search import (
    POLICIES,
    Bisection,
    Evidence,
    Finding,
    Grid,
    Outcome,
    Search,
    TrialQueue,
    log_grid,
    make_policy,
)
from distsub.search.synthetic import Curve


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


@pytest.mark.parametrize("sizes", [range(1, 34), pytest.param(range(34, 81), marks=pytest.mark.slow)])
def test_bisection_is_right_within_its_bound_for_every_grid_and_position(bench, sizes):
    """Every grid size from 1 to 80 and every position of the threshold, with one eta and one slot."""
    for size in sizes:
        search = bench.search(size, num_etas=1)
        policy, start = Bisection(), Evidence(search)
        start = start.add(bench.see(search.baseline[0], 0.8))
        halving = math.ceil(math.log2(size + 1))
        assert policy.max_trials(search) == 1 + min(3 * halving, size)
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
            assert count <= halving
            assert answer(policy.outcome(state)) == expected(search, position)


@pytest.mark.parametrize("policy", [Grid(), Bisection()])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 20])
@pytest.mark.parametrize("slots", [1, 3, 16])
def test_right_and_bounded_with_several_etas_and_slots(bench, policy, size, slots):
    """Only the last eta ever passes, and a batch finishes last trial first."""
    search = bench.search(size, num_etas=3, baseline=bench.baselines((1e-5, 3e-5), seeds=2))
    for position in range(size + 1):
        state, seen = bench.run(policy, Evidence(search), bench.truth(search, position), slots)
        finding = policy.outcome(state)
        assert answer(finding) == expected(search, position)
        assert len({row.trial.id for row in seen}) == len(seen) == finding.num_trials <= policy.max_trials(search)
        if policy == Grid():
            assert len(seen) == policy.max_trials(search)


@pytest.mark.parametrize("policy", [Grid(), Bisection()])
@examples(40)
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
    states = [Evidence(search), Evidence(search)]
    for state, order in enumerate((rows, shuffled)):
        for row in order:
            states[state] = states[state].add(row)
    assert policy.outcome(states[0]) == policy.outcome(states[1])
    assert policy.propose(states[0], 99) == policy.propose(states[1], 99)


@examples(60)
@given(data=st.data())
def test_any_first_rows_resume_to_the_very_trials_of_the_first_run(bench, data):
    """Killed anywhere, it asks for what it would have asked for; with rows lost, the answer is the same."""
    size, policy = data.draw(st.integers(1, 40)), Bisection()
    search = bench.search(size, num_etas=2)
    train = bench.truth(search, data.draw(st.integers(0, size)))
    whole, rows = bench.run(policy, Evidence(search), train)
    cut = data.draw(st.integers(0, len(rows)))
    state = Evidence(search)
    for row in data.draw(st.permutations(rows[:cut])):
        state = state.add(row)
    _, rest = bench.run(policy, state, train)
    assert [row.trial for row in rest] == [row.trial for row in rows[cut:]]
    state = Evidence(search)
    for row in data.draw(st.sets(st.sampled_from(rows), max_size=12)):
        state = state.add(row)
    assert answer(policy.outcome(bench.run(policy, state, train)[0])) == answer(policy.outcome(whole))


@pytest.mark.parametrize("policy", [Grid(), Bisection()])
@examples(200)
@given(
    seed=st.integers(0, 10**6),
    size=st.integers(1, 40),
    etas=st.integers(1, 4),
    slots=st.integers(1, 40),
    whole=st.booleans(),
)
def test_any_world_ends_within_the_bound_and_never_with_a_wrong_number(bench, policy, seed, size, etas, slots, whole):
    """Random scores, divergence, errors, one by one or whole batches: found only where a fail lies below a pass."""
    rng = random.Random(seed)
    search = bench.search(size, num_etas=etas)
    errors = rng.choice((0, 0, 1, 3))

    def train(trial):
        if trial.is_baseline:
            return bench.see(trial, 0.8)
        status = rng.choices(("finished", "diverged", "error"), (8, 1, errors))[0]
        return bench.see(trial, rng.choice((0.55, 0.7, 0.75, 0.79)) if status == "finished" else None, status)

    state, seen = Evidence(search), []
    while batch := policy.propose(state, slots):
        assert len({trial.id for trial in batch}) == len(batch) <= slots
        for trial in batch if whole else batch[-1:]:
            seen.append(train(trial))
            state = state.add(seen[-1])
    finding = policy.outcome(state)
    assert len({row.trial.id for row in seen}) == len(seen) <= policy.max_trials(search)
    assert finding.outcome.is_over
    assert (finding.d is not None) == (finding.outcome is Outcome.found)
    if finding.outcome is Outcome.found:
        position = search.positions[finding.d]
        assert state.passed(finding.d)
        assert state.passed(search.dims[position - 1]) is False
        cuts = [
            sum(passed for x, passed in state.verdicts.items() if x < cut)
            + sum(not passed for x, passed in state.verdicts.items() if x >= cut)
            for cut in range(size + 1)
        ]
        assert cuts[position] == min(cuts)
    if not errors:
        assert finding.outcome is not Outcome.trial_failed


def feed(bench, policy, search, pattern: str) -> Evidence:
    """Observe the baseline, then per d: P(ass), F(ail), D(iverged), E(rror), or - for nothing, at every eta."""
    state = Evidence(search).add(bench.see(search.baseline[0], 0.8))
    meaning = {"P": ("finished", 0.79), "F": ("finished", 0.55), "D": ("diverged", None), "E": ("error", None)}
    for d, mark in zip(search.dims, pattern, strict=True):
        for trial in search.trials_at(d) if mark != "-" else ():
            status, score = meaning[mark]
            state = state.add(bench.see(trial, score, status))
    return state


@pytest.mark.parametrize(
    ("pattern", "outcome", "d", "bracket"),
    [
        ("FFPPP", Outcome.found, 30, (20, 30)),
        ("FDPPP", Outcome.found, 30, (20, 30)),
        ("FFPFP", Outcome.not_monotone, None, (40, 30)),
        ("PFFFF", Outcome.not_monotone, None, (20, 10)),
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
        ("--E--", Outcome.open, None, (None, None)),
        ("F-E--", Outcome.open, None, (10, None)),
        ("EEE-E", Outcome.open, None, (None, None)),
        ("EEEEE", Outcome.trial_failed, None, (None, None)),
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


@pytest.mark.parametrize("policy", [Grid(), Bisection()])
def test_a_failed_baseline_ends_the_search_at_once(bench, policy):
    """No subspace trial is worth running without a threshold."""
    search = bench.search(baseline=bench.baselines((1e-5, 3e-5)))
    state = Evidence(search).add(bench.see(search.baseline[0], None, "error"))
    assert policy.propose(state, 9) == ()
    assert policy.outcome(state).outcome is Outcome.baseline_missing
    mended = state.add(bench.see(search.baseline[0], 0.8))
    assert policy.propose(mended, 1) == (search.baseline[1],)


def test_a_grid_compares_ways_of_training_in_layers_at_chance_too(bench):
    """Their scores are what the sweep is for; d90 of the whole model is not worth a trial without a threshold."""
    layers = Subspace(Random("fastfood"), scope="layer", head="trained", embeddings="frozen")
    for method, runs in ((layers, 8), (bench.search().method, 0)):
        search = bench.search(4, method=method)
        state = Evidence(search).add(bench.see(search.baseline[0], 0.5))
        proposed = Grid().propose(state, 99)
        assert len(proposed) == runs
        for trial in proposed:
            assert Grid().outcome(state).outcome is Outcome.open
            state = state.add(bench.see(trial, 0.52))
        assert Grid().propose(state, 1) == () and Grid().outcome(state).outcome is Outcome.baseline_at_chance
    search = bench.search(method=layers)
    broken = Evidence(search).add(bench.see(search.baseline[0], None, "diverged"))
    assert Grid().propose(broken, 9) == ()
    assert Bisection().propose(Evidence(search).add(bench.see(search.baseline[0], 0.5)), 9) == ()


def fed(bench, search: Search, scores: dict[tuple[int, int], float | None]) -> Evidence:
    """Observe the baseline, then scores by (position, index of the eta); None diverged."""
    state = Evidence(search).add(bench.see(search.baseline[0], 0.8))
    for (x, j), score in scores.items():
        row = bench.see(search.trials_at(search.dims[x])[j], score, "diverged" if score is None else "finished")
        state = state.add(row)
    return state


def wanted(state: Evidence, slots: int = 1) -> list[tuple[int, int]]:
    """Return what is proposed as (position, index of the eta)."""
    search = state.search
    return [(search.positions[t.d], search.etas.index(t.eta)) for t in Bisection().propose(state, slots) if t.d]


def test_bisection_starts_on_the_first_d_while_the_baseline_runs(bench):
    """Baseline first, then the middle of the grid at the eta in the middle of the list."""
    search = bench.search(63, num_etas=3, baseline=bench.baselines((1e-5, 3e-5)))
    assert Bisection().propose(Evidence(search), 3) == (*search.baseline, search.trials_at(320)[1])


def test_one_eta_is_bisected_and_the_d_below_the_last_pass_gets_all(bench):
    """Its fail counts for it alone; only the fail that the answer rests on takes every eta."""
    search = bench.search(63, num_etas=3)
    scores: dict[tuple[int, int], float | None] = {}
    path = []
    while (state := fed(bench, search, scores)) and (proposed := wanted(state)):
        path.append(proposed[0])
        scores[proposed[0]] = 0.79 if proposed[0][0] >= 40 else 0.55
    assert path == [(31, 1), (47, 1), (39, 1), (43, 1), (41, 1), (40, 1), (39, 0), (39, 2)]
    assert answer(Bisection().outcome(state)) == (Outcome.found, 410, (400, 410))


def test_another_eta_that_passes_below_becomes_the_favourite(bench):
    """It goes down from there in growing steps; then the d below its last pass gets all etas."""
    search = bench.search(63, num_etas=3)
    scores: dict[tuple[int, int], float | None] = {}
    path = []
    while (state := fed(bench, search, scores)) and (proposed := wanted(state)):
        path.append(proposed[0])
        x, j = proposed[0]
        scores[x, j] = 0.79 if x >= (36 if j == 2 else 40) else 0.55
    assert path[6:] == [(39, 0), (39, 2), (38, 2), (35, 2), (37, 2), (36, 2), (35, 1), (35, 0)]
    assert Bisection().outcome(state).d == search.dims[36]


def test_a_later_seed_goes_out_from_the_answers_of_the_earlier_ones(bench):
    """And with the eta that did best there, whatever the list's middle is; it passes or fails as ever."""
    search = bench.search(63, num_etas=3)
    known = {(20, 2): 0.79, (19, 2): 0.6, (19, 0): 0.55, (19, 1): 0.56}
    earlier = [fed(bench, search.vary(seeds=Seeds(s, s, s)), known) for s in (1, 2)]
    state = fed(bench, search.vary(seeds=Seeds(3, 3, 3)), {})
    for each in earlier:
        state = state.learn(each)
    assert wanted(state) == [(20, 2)]
    assert state.learn(earlier[0]) is state
    for found, steps in ((25, [20, 21, 24, 29]), (18, [20, 19, 16])):
        scores, path = {}, []
        while len(path) < len(steps):
            now = fed(bench, state.search, scores)
            for each in earlier:
                now = now.learn(each)
            [(x, j)] = wanted(now)
            path.append(x)
            scores[x, j] = 0.79 if x >= found else 0.55
        assert path == steps


@pytest.mark.parametrize("slots", [3, 7])
def test_idle_slots_cut_the_bracket_into_equal_parts(bench, slots):
    """Once etas have been compared: k trainings at once leave one part in k + 1."""
    search = bench.search(63, num_etas=3)
    earlier = fed(bench, search.vary(seeds=Seeds(1, 1, 1)), {(9, 0): 0.55, (9, 1): 0.6})
    start = fed(bench, search, {}).learn(earlier)
    first = wanted(start, slots)
    assert sorted(x for x, _ in first) == [64 // (slots + 1) * (k + 1) - 1 for k in range(slots)]


def test_while_etas_are_not_compared_idle_slots_compare_them(bench):
    """After the d themselves, so that few slots are for d alone; from then on the best one goes ahead."""
    search = bench.search(63, num_etas=3)
    proposed = wanted(fed(bench, search, {}), 6)
    assert proposed[:3] == [(31, 1), (15, 1), (47, 1)] and {(31, 0), (31, 2)} < set(proposed)
    assert len({j for _, j in wanted(fed(bench, search, {(31, 0): 0.6, (31, 1): 0.65, (31, 2): 0.6}), 6)}) == 1


def test_where_every_eta_diverges_a_d_has_failed(bench):
    """So the answer lies above, and is found."""
    search = bench.search(7, num_etas=2)

    def train(trial):
        if trial.is_baseline:
            return bench.see(trial, 0.8)
        return bench.see(trial, None, "diverged") if trial.d < 40 else bench.see(trial, 0.79)

    state, _ = bench.run(Bisection(), Evidence(search), train)
    assert answer(Bisection().outcome(state)) == (Outcome.found, 40, (30, 40))


def test_walks_around_errors(bench):
    """A d whose every eta is in error is left out; when only such are left the search says so."""
    search = bench.search(15, num_etas=2)

    def train(trial):
        if trial.is_baseline:
            return bench.see(trial, 0.8)
        if trial.d == 80:
            return bench.see(trial, None, "error")
        return bench.see(trial, 0.79 if trial.d >= 90 else 0.55)

    state, _ = bench.run(Bisection(), Evidence(search), train, 2)
    assert answer(Bisection().outcome(state)) == (Outcome.trial_failed, None, (70, 90))


def test_policies_by_name():
    """As a sweep file names them."""
    assert [make_policy(name) for name in POLICIES] == [Bisection(), Grid()]
    with pytest.raises(ConfigError, match="policy = 'bisect' is unknown: give one of bisection, grid"):
        make_policy("bisect")
    with pytest.raises(ConfigError, match="removed: bisection has taken its place"):
        make_policy("adaptive")


@pytest.mark.parametrize("policy", [Grid(), Bisection()])
@examples(30)
@given(seed=st.integers(0, 10**6), size=st.integers(1, 40), slots=st.integers(1, 30), tries=st.integers(1, 4))
def test_a_queue_never_exceeds_the_maximum_nor_the_tries(bench, policy, seed, size, slots, tries):
    """Of four etas, any scores, trials that end in any order, those no longer wanted cancelled."""
    rng = random.Random(seed)
    search = bench.search(size, 4, tries=tries, baseline=bench.baselines((1e-5, 3e-5)), seed=seed % 3)
    queue, running, count = TrialQueue([search], policy), {}, 0
    state = Evidence(search)
    while not queue.finished:
        while (trial := queue.next(running.keys(), slots)) is not None:
            running[trial.id] = trial
        trial = running.pop(rng.choice(sorted(running)))
        status = rng.choices(("finished", "diverged", "error"), (8, 1, 1))[0] if trial.d else "finished"
        score = rng.choice((0.55, 0.7, 0.75)) if trial.d else 0.8
        row = bench.see(trial, score if status == "finished" else None, status)
        queue.observe(row)
        state = state.add(row)
        count += 1
        running = {key: trial for key, trial in running.items() if key in queue.wanted()}
    assert not running
    assert count <= queue.max_trials() == policy.max_trials(search)
    assert max(map(len, state.results.values()), default=0) <= tries
    finding = queue.findings()[0]
    assert finding.outcome.is_over and finding == policy.outcome(state)
    if finding.outcome is Outcome.found:
        assert state.passed(finding.d) and state.passed(finding.bracket[0]) is False
        assert len(state.results[finding.bracket[0]]) == tries


def test_a_grid_of_fewer_tries_follows_the_list(bench):
    """The first etas of the list at every d."""
    search = bench.search(7, 5, tries=2)
    state, rows = bench.run(Grid(), Evidence(search), bench.truth(search, 0))
    assert {row.trial.eta for row in rows if row.trial.d} == set(search.etas[:2])
    assert Grid().outcome(state).outcome is Outcome.above_range


def test_what_a_queue_shares_depends_on_the_rows_alone(bench):
    """Rows read back in any order: the same findings, and the same trials next."""
    curve = Curve(middle=math.log(3000.0), eta_best=0.1)
    baseline = bench.baselines((1e-5, 2e-5), seeds=3)
    searches = [
        bench.search(dims=log_grid(100, 1_000_000), etas=(0.03, 0.1, 0.3, 1.0), seeds=Seeds(s, s, s), baseline=baseline)
        for s in range(3)
    ]
    queue, rows = TrialQueue(searches, Bisection()), []
    while (trial := queue.next(set(), 1)) is not None:
        rows.append(curve.observe(trial, arrays=False))
        queue.observe(rows[-1])
    probes = [row.trial.seeds.data for row in rows if row.trial.d]
    assert probes == sorted(probes) and probes.count(2) <= probes.count(0)
    for seed in range(5):
        rng = random.Random(seed)
        cut = rng.randrange(len(rows))
        twins = [TrialQueue(searches, Bisection()) for _ in range(2)]
        for twin, kept in zip(twins, (rows[:cut], rng.sample(rows[:cut], cut)), strict=True):
            for row in kept:
                twin.observe(row)
        running: set[str] = set()
        for _ in range(9):
            following = [twin.next(running, 9) for twin in twins]
            assert following[0] == following[1]
            if following[0] is None:
                break
            running.add(following[0].id)
        assert twins[0].findings() == twins[1].findings()
