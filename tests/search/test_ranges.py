"""Step sizes looked for in a range: the same tries whatever happened on the way, and no more than was promised."""

import hashlib
import math
import random
from dataclasses import replace

import pytest
from builders import examples
from hypothesis import given
from hypothesis import strategies as st

from distsub.errors import ConfigError
from distsub.estimate.gather import gather
from distsub.records import Seeds, theta_0_of
from distsub.search import KEPT, Bisection, Evidence, Grid, Range, TrialQueue, share
from distsub.search.evidence import tuned
from distsub.search.plan import make_plan
from distsub.search.ranges import MOST_TRIES, course, propose
from distsub.search.rule import Rule

RATES = Range(1e-5, 1e-4, 6)
ETAS = Range(0.1, 3.0, 4)
SCORES = st.one_of(st.none(), st.floats(0.5, 1.0))


def searches(bench, rates: Range | None = RATES, etas: Range | None = ETAS, seeds=3, size=6):
    """Return the searches of one task and method, as a sweep with ranges makes them."""
    baseline = bench.baselines((rates.middle,) if rates else (1e-5, 3e-5), seeds)
    changes = {"eta_range": etas, "etas": (etas.middle,), "first_seeds": Seeds(0, 0, 0)} if etas else {}
    return [bench.search(size, seed=i, baseline=baseline, rate_range=rates, **changes) for i in range(seeds)]


def world(bench, seed):
    """Return a world in which a few trainings diverge and one step size is the best."""

    def train(trial):
        noise = random.Random(hashlib.sha256(f"{seed}/{trial.id}".encode()).hexdigest())
        if noise.random() < 0.1:
            return bench.see(trial, None, "diverged")
        if trial.d is None:
            return bench.see(trial, 0.8 - 0.02 * math.log(trial.learning_rate / 4e-5) ** 2 + noise.gauss(0, 0.005))
        lost = 0.05 * math.log(trial.eta / 0.6) ** 2 + 0.3 * math.exp(-trial.d / 15)
        return bench.see(trial, max(0.5, 0.8 - lost + noise.gauss(0, 0.01)))

    return train


def drive(queue, train, slots, rng, stop_after=None):
    """Run a queue with slots that end in any order, until nothing is wanted or so many rows are there."""
    running, rows = {}, []
    while stop_after is None or len(rows) < stop_after:
        while trial := queue.next(running.keys(), slots):
            running[trial.id] = trial
        wanted = queue.wanted()
        running = {name: trial for name, trial in running.items() if name in wanted}
        if not running:
            break
        name = rng.choice(sorted(running))
        rows.append(train(running.pop(name)))
        queue.observe(rows[-1])
    return rows


def tries(rows):
    """Return the step sizes that were tried under the first seed, of full fine-tuning and of subspaces."""
    first = [row.trial for row in rows if row.trial.seeds == Seeds(0, 0, 0)]
    return {t.learning_rate for t in first if t.is_baseline}, {t.eta for t in first if t.d == 40}


@examples(200)
@given(
    low=st.floats(1e-7, 10.0),
    ratio=st.floats(2.0, 1e4),
    tries=st.integers(KEPT, MOST_TRIES),
    told=st.lists(SCORES, min_size=MOST_TRIES, max_size=MOST_TRIES),
)
def test_tries_are_as_many_as_asked_for_apart_in_the_range_and_readable(low, ratio, tries, told):
    given_range, scores = Range(low, low * ratio, tries), dict[float, float | None]()
    found = course(given_range, lambda value: (True, scores.setdefault(value, told[len(scores)])))
    assert len(set(found.values)) == tries and all(low <= value <= low * ratio for value in found.values)
    assert all(float(f"{value:.2e}") == value or value in (low, low * ratio) for value in found.values)
    worth = {value: -1.0 if score is None else score for value, score in scores.items()}
    assert sorted(worth[value] for value in found.kept or ()) == sorted(worth.values())[-KEPT:]


@given(told=st.lists(SCORES, min_size=6, max_size=6), hidden=st.integers(0, 5))
def test_what_is_asked_follows_from_the_results_alone(told, hidden):
    """Fresh draws of the sampler give the same; the results of later tries change nothing of earlier ones."""
    scores = dict[float, float | None]()
    whole = course(RATES, lambda value: (True, scores.setdefault(value, told[len(scores)])))
    propose.cache_clear()
    assert course(RATES, lambda value: (True, scores[value])) == whole
    missing = whole.values[hidden]
    part = course(RATES, lambda value: None if value == missing else (True, scores[value]))
    assert part.kept is None and part.values == whole.values[: max(hidden + 1, len(RATES.first))]


def test_failed_and_diverged_tries_are_the_worst():
    first = RATES.first
    ends = {first[0]: (True, 0.6), first[1]: (True, None), first[2]: (False, None), first[3]: (True, 0.5)}
    found = course(RATES, lambda value: ends.get(value, (False, None)))
    assert found.kept == tuple(sorted((first[0], first[3])))
    nothing = course(RATES, lambda value: (True, None))
    assert nothing.kept == tuple(sorted(nothing.values)[:2])  # what diverged least surely


@pytest.mark.parametrize(
    ("low", "high", "tries", "said"),
    [
        (1e-4, 1e-5, 6, "is not below high"),
        (1e-4, 1e-4, 6, "is not below high"),
        (0.0, 1.0, 6, "both above 0"),
        (1e-4, 1.5e-4, 6, "less than twice"),
        (1e-5, 1e-4, 1, "from 2"),
        (1e-5, 1e-4, 21, "to 20"),
    ],
)
def test_a_range_without_room_is_refused_in_one_line(low, high, tries, said):
    with pytest.raises(ConfigError, match=said) as caught:
        Range(low, high, tries)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("policy", [Bisection(), Grid()])
@pytest.mark.parametrize(("rates", "etas"), [(RATES, ETAS), (RATES, None), (None, ETAS)])
@examples(12)
@given(seed=st.integers(0, 10**6), slots=st.integers(1, 20), seeds=st.integers(1, 3), size=st.integers(1, 9))
def test_a_killed_run_asks_the_same_and_keeps_its_promise(bench, policy, rates, etas, seed, slots, seeds, size):
    these = searches(bench, rates, etas, seeds, size)
    train, rng = world(bench, seed), random.Random(seed)
    queue = TrialQueue(these, policy)
    assert make_plan(these, policy).most.trials == queue.max_trials() == sum(queue.most_left())
    rows, left = [], queue.max_trials()
    while batch := drive(queue, train, slots, rng, stop_after=1):
        rows += batch
        assert sum(queue.most_left()) <= left
        left = sum(queue.most_left())
    assert len({row.trial.id for row in rows}) == len(rows) <= queue.max_trials()
    if isinstance(policy, Grid) and all(found.thresholds for found in queue.findings()):
        assert len(rows) == queue.max_trials()

    kept = drive(TrialQueue(these, policy), train, slots, rng, stop_after=rng.randint(0, len(rows)))
    resumed = TrialQueue(these, policy)
    for row in rng.sample(kept, len(kept)):
        resumed.observe(row)
    more = drive(resumed, train, slots, rng)
    assert {row.trial.id for row in kept}.isdisjoint(row.trial.id for row in more)
    assert len(kept) + len(more) <= queue.max_trials()
    assert [f.thresholds for f in resumed.findings()] == [f.thresholds for f in queue.findings()]
    one, other = tuned(these, kept + more), tuned(these, rows)
    assert [(search.etas, search.baseline) for search in one] == [(search.etas, search.baseline) for search in other]
    if isinstance(policy, Grid):  # where a bisection goes may depend on which of two trainings ended first
        assert [f.outcome for f in resumed.findings()] == [f.outcome for f in queue.findings()]
    if rates:
        full = [{row.trial.id for row in run if row.trial.is_baseline} for run in (rows, kept + more)]
        assert full[0] == full[1] and len(full[0]) == these[0].num_baseline


@examples(30)
@given(seed=st.integers(0, 10**6), data=st.data())
def test_rows_in_any_order_and_all_at_once_fold_to_the_same(bench, seed, data):
    these, rng = searches(bench), random.Random(seed)
    rows = drive(TrialQueue(these, Bisection()), world(bench, seed), 4, rng)
    part = rng.sample(rows, data.draw(st.integers(0, len(rows))))
    shared = share(these, part)
    for search, own in zip(these, shared, strict=True):
        state = Evidence(search)
        for row in part:
            state = state.add(row)
        assert Evidence.of(search, own) == state
        assert Bisection().propose(Evidence.of(search, own), 9) == Bisection().propose(state, 9)
        assert sorted(row.trial.id for row in own) == sorted(row.trial.id for row in part if search.owns(row.trial))


def test_the_two_best_go_to_all_seeds_and_are_what_the_estimate_is_of(bench):
    these = searches(bench)
    rows = drive(TrialQueue(these, Grid()), world(bench, 3), 5, random.Random(0))
    found = tuned(these, rows)
    rates = {trial.learning_rate for trial in found[0].baseline}
    assert len(rates) == len(found[0].etas) == KEPT and len(found[0].baseline) == 2 * 3
    assert len({search.etas for search in found}) == 1 and {search.seeds for search in found} == {
        search.seeds for search in these
    }
    full, etas = tries(rows)
    assert len(full) == 6 and len(etas) == 4
    assert rates < full and set(found[0].etas) < etas
    others = [row.trial for row in rows if row.trial.seeds.head != 0]
    assert {t.learning_rate for t in others if t.is_baseline} == rates
    assert {t.eta for t in others if not t.is_baseline} == set(found[0].etas)
    prepared = gather(these, rows)
    assert set(prepared.rates) <= rates and set(prepared.etas) <= set(found[0].etas)
    as_lists = gather(found, rows)
    assert prepared.subspace == as_lists.subspace and prepared.baseline == as_lists.baseline
    # From then on a search is what a list of those two would have made of it.
    for search, plain in zip(these, found, strict=True):
        one, other = Evidence(search), Evidence(plain)
        for row in rows:
            one, other = one.add(row), other.add(row)
        assert (one.baseline, one.results, one.thresholds) == (other.baseline, other.results, other.thresholds)


@pytest.mark.parametrize(
    ("rates", "etas", "said"),
    [
        (Range(1e-5, 1e-4, 4), ETAS, None),
        (RATES, ETAS, "etas at each d 4 (2 of them kept), of full fine-tuning's learning rates 6 (2 of them kept)"),
        (RATES, None, "etas at each d 2, of full fine-tuning's learning rates 6 (2 of them kept)"),
        (None, ETAS, "etas at each d 4 (2 of them kept), of full fine-tuning's learning rates 2;"),
        (None, None, None),
    ],
)
def test_unequal_tries_are_counted(bench, rates, etas, said):
    these = searches(bench, rates, etas)
    rows = drive(TrialQueue(these, Bisection()), world(bench, 3), 5, random.Random(0))
    warned = [line for line in gather(these, rows).warnings if "equal tries" in line]
    assert len(warned) == (said is not None) and all(said in line for line in warned if said)


def test_a_try_in_error_is_the_worst_and_is_made_again_where_it_can_be(bench):
    (search,) = searches(bench, etas=None, seeds=1)
    state = Evidence(search)
    state = state.add(bench.see(search.full_at(RATES.first[0]), None, "error"))
    for number, rate in enumerate(RATES.first[1:]):
        state = state.add(bench.see(search.full_at(rate), 0.71 + number / 100))
    assert state.obstacle is None and not state.search.reference_ids <= state.baseline.keys()
    better = state.add(bench.see(search.full_at(RATES.first[0]), 0.79))
    assert better.full[search.full_at(RATES.first[0]).id].score == 0.79
    while missing := list(state.missing_baseline()):
        state = state.add(bench.see(missing[0], 0.6))
    assert state.thresholds is not None and state.obstacle is None
    kept = {trial.learning_rate for trial in state.search.baseline}
    assert kept == set(RATES.first[2:])


def test_lists_are_as_they_were(bench):
    """No field of a range is part of an identity where there is none, and nothing is made anew."""
    search = bench.search(3, 2)
    state = Evidence(search)
    assert state.search is search and state.baseline is state.full and state.results is state.probes
    assert search.num_baseline == len(search.baseline) and replace(search, rate_range=RATES).id != search.id


@pytest.mark.parametrize("policy", [Bisection(), Grid()])
@pytest.mark.parametrize("kind", ["a value", "theta_0"])
def test_a_range_goes_with_every_kind_of_threshold(bench, policy, kind):
    """Etas are tried where no full fine-tuning is trained, and learning rates where theta_0 is evaluated too."""
    if kind == "a value":
        these = [
            replace(search, rule=Rule(fraction=None, value=0.7), baseline=(), rate_range=None)
            for search in searches(bench)
        ]
    else:
        zero = tuple(map(theta_0_of, searches(bench)[0].baseline))
        these = [replace(search, rule=Rule(chance="theta_0"), theta_0=zero) for search in searches(bench)]
    queue, train = TrialQueue(these, policy), world(bench, 4)
    promised = queue.max_trials()
    assert make_plan(these, policy).most.trials == promised == sum(queue.most_left())
    rows = drive(queue, train, 3, random.Random(0))
    assert len(rows) <= promised and all(found.outcome.is_over for found in queue.findings())
    owned = share(these, rows)
    # A search counts every training that it rests on, so also those that several share; together they are all rows.
    assert [found.num_trials for found in queue.findings()] == list(map(len, owned))
    assert {row.trial.id for own in owned for row in own} == {row.trial.id for row in rows}
    assert {len(search.etas) for search in tuned(these, rows)} == {KEPT}
    full, etas = tries([row for row in rows if row.trial.method.kind != "theta_0"])
    assert len(full) == (0 if kind == "a value" else 6) and len(etas) == 4
    warned = [line for line in gather(these, rows).warnings if "equal tries" in line]
    assert len(warned) == (kind == "theta_0")  # 4 etas beside 6 rates; without full fine-tuning there is one arm
