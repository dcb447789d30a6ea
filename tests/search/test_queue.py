"""The queue: sharing, order, cancelling, resuming, and a cost that does not grow with the searches."""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from builders import examples
from hypothesis import given
from hypothesis import strategies as st

from distsub.errors import ConfigError
from distsub.records import Observation, Seeds, Task, Trial
from distsub.search import Bisection, Evidence, Finding, Grid, Outcome, Policy, Search, TrialQueue


def drive(
    queue: TrialQueue,
    train: Callable[[Trial], Observation],
    slots: int,
    rng: random.Random,
    stop_after: int | None = None,
) -> tuple[list[Observation], list[str]]:
    """Run a queue as a backend would: fill the slots, finish a random one, cancel what is not wanted.

    Returns:
        The observations, and the ids of every trial that was started.
    """
    running: dict[str, Trial] = {}
    seen: list[Observation] = []
    started: list[str] = []
    while stop_after is None or len(seen) < stop_after:
        while trial := queue.next(running.keys(), slots):
            assert trial.id not in running
            running[trial.id] = trial
            started.append(trial.id)
        assert len(running) <= slots
        if not running:
            assert queue.finished
            break
        seen.append(train(running.pop(rng.choice(list(running)))))
        queue.observe(seen[-1])
        for lost in [key for key in running if key not in queue.wanted()]:
            del running[lost]
    return seen, started


def world(bench, searches: list[Search], seed: int) -> Callable[[Trial], Observation]:
    """Return a monotone world in which every search has a threshold position of its own."""
    rng = random.Random(seed)
    positions = {search.setup: rng.randint(0, len(search.dims)) for search in searches}
    by_setup = {search.setup: bench.truth(search, positions[search.setup]) for search in searches}

    def train(trial: Trial) -> Observation:
        if trial.is_baseline:
            return bench.see(trial, 0.8)
        return next(truth for search, truth in zip(searches, by_setup.values(), strict=True) if search.owns(trial))(
            trial
        )

    return train


@pytest.mark.parametrize("policy", [Grid(), Bisection()])
@examples(25)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 5), size=st.integers(1, 9), slots=st.integers(1, 12))
def test_every_search_ends_right_and_a_killed_run_resumes(bench, policy, seed, count, size, slots):
    """Any slots, any finishing order, killed once on the way: the same findings, no finished trial repeated."""
    searches = [bench.search(size, 2, seed=i, baseline=bench.baselines((1e-5, 3e-5))) for i in range(count)]
    train, rng = world(bench, searches, seed), random.Random(seed)
    queue = TrialQueue(searches, policy)
    rows, started = drive(queue, train, slots, rng)
    assert len({row.trial.id for row in rows}) == len(rows) <= queue.max_trials()
    assert {row.trial.id for row in rows} <= set(started)

    killed = TrialQueue(searches, policy)
    kept, _ = drive(killed, train, slots, rng, stop_after=rng.randint(0, len(rows)))
    resumed = TrialQueue(searches, policy)
    for row in rng.sample(kept, len(kept)):
        resumed.observe(row)
    more, again = drive(resumed, train, slots, rng)
    assert {row.trial.id for row in kept}.isdisjoint(again)
    assert len(kept) + len(more) <= queue.max_trials()
    assert [told(finding) for finding in resumed.findings()] == [told(finding) for finding in queue.findings()]
    assert all(finding.outcome.is_over for finding in queue.findings())


def told(finding: Finding) -> tuple[object, ...]:
    """Return what must not depend on the order in which trials finish."""
    return finding.outcome, finding.d, finding.bracket, finding.thresholds


def test_shared_baselines_run_once_and_tell_everybody(bench):
    """Ten searches, two baselines: two full fine-tunings."""
    searches = [bench.search(3, 1, seed=i, baseline=bench.baselines((1e-5, 3e-5))) for i in range(10)]
    queue = TrialQueue(searches, Bisection())
    rows, _ = drive(queue, world(bench, searches, 0), 4, random.Random(0))
    assert sum(row.trial.is_baseline for row in rows) == 2
    assert all(finding.thresholds is not None for finding in queue.findings())
    assert queue.max_trials() == 2 + 10 * 3


def test_order_of_trials(bench):
    """Baselines of all tasks, then by rank, where a later seed stands back, then the sweep's order."""
    other = Task(name="sst2", source="nyu-mll/glue", text=("sentence",))
    searches = [
        bench.search(3, 2, seed=0),
        bench.search(3, 2, seed=1),
        bench.search(3, 2, seed=0, task=other, baseline=bench.baselines((1e-5, 3e-5), task=other)),
    ]
    queue = TrialQueue(searches, Bisection())
    running: set[str] = set()
    order = []
    while trial := queue.next(running, 99):
        running.add(trial.id)
        order.append((trial.task.name, trial.seeds.projection, trial.eta))
    assert order == [
        ("mrpc", 0, None),
        ("sst2", 0, None),
        ("sst2", 0, None),
        ("mrpc", 0, 0.1),
        ("sst2", 0, 0.1),
        ("mrpc", 1, 0.1),
    ]


def test_next_is_steady_and_offers_a_lost_trial_again(bench):
    """Asking twice is harmless; a preempted trial comes back; full slots get nothing."""
    queue = TrialQueue([bench.search()], Bisection())
    first = queue.next(set(), 2)
    assert first is not None
    assert queue.next(set(), 2) is first
    second = queue.next({first.id}, 2)
    assert second is not None
    assert second is not first
    assert queue.next({first.id, second.id}, 2) is None
    assert queue.next({second.id}, 2) is first
    assert queue.next({"foreign", second.id}, 2) is None


def test_a_pass_makes_the_rest_unwanted(bench):
    """And a lost slot does not."""
    search = bench.search(15, num_etas=3)
    queue = TrialQueue([search], Bisection())
    queue.observe(bench.see(search.baseline[0], 0.8))
    assert queue.next(set(), 3) is not None
    before = set(queue.wanted())
    assert {search.trials_at(d)[1].id for d in (40, 80, 120)} <= before
    queue.next(set(), 1)
    assert queue.wanted() == before
    queue.observe(bench.see(search.trials_at(80)[1], 0.79))
    after = set(queue.wanted())
    assert search.trials_at(40)[1].id in after and search.trials_at(120)[1].id not in after


def test_idle_slots_are_filled_by_one_search(bench):
    """Every trial of a grid may run at once, in the grid's order, and stays wanted when slots go away."""
    search = bench.search(20, 2)
    queue = TrialQueue([search], Grid())
    running: dict[str, Trial] = {}
    while trial := queue.next(running.keys(), 64):
        running[trial.id] = trial
    assert list(running.values()) == [*search.baseline, *(trial for d in search.dims for trial in search.trials_at(d))]
    assert queue.next(running.keys(), 2) is None
    assert queue.wanted() == running.keys()


def test_a_baseline_stays_wanted_while_one_search_needs_it(bench):
    """Its other search may have ended on a baseline of its own."""
    shared, own = bench.baselines((1e-5, 3e-5))
    queue = TrialQueue([bench.search(seed=0, baseline=(shared, own)), bench.search(seed=1, baseline=(shared,))], Grid())
    queue.observe(bench.see(own, None, "error"))
    assert [finding.outcome for finding in queue.findings()] == [Outcome.baseline_missing, Outcome.open]
    assert shared.id in queue.wanted()
    assert not queue.finished


def test_foreign_and_repeated_rows_change_nothing(bench):
    """Another sweep's rows in the same results are nobody's."""
    search = bench.search()
    queue = TrialQueue([search], Bisection())
    row = bench.see(search.baseline[0], 0.8)
    queue.observe(row)
    before = queue.findings()
    queue.observe(row)
    queue.observe(bench.see(bench.search(seed=9).trials_at(10)[0], 0.9))
    queue.observe(bench.see(row.trial.vary(seeds=Seeds(7, 7, 7)), 0.9))
    assert queue.findings() == before


def test_a_spent_budget_is_told(bench):
    """For what still runs, with the bracket so far; what has ended keeps its outcome."""
    search = bench.search(3, 1)
    queue = TrialQueue([search], Bisection())
    queue.observe(bench.see(search.baseline[0], 0.8))
    queue.observe(bench.see(search.trials_at(20)[0], 0.79))
    (finding,) = queue.findings(spent=True)
    assert (finding.outcome, finding.d, finding.bracket) == (Outcome.budget_spent, None, (None, 20))
    queue.observe(bench.see(search.trials_at(10)[0], 0.6))
    assert queue.findings(spent=True) == queue.findings()
    assert queue.finished


def test_a_search_given_twice_is_refused(bench):
    """It would be a slip in the sweep."""
    with pytest.raises(ConfigError, match="given twice"):
        TrialQueue([bench.search(), bench.search()], Grid())


@dataclass(frozen=True)
class Counting(Policy):
    """Bisection that counts how often it is asked."""

    calls: Counter[str]
    inner: Bisection = field(default_factory=Bisection)

    def propose(self, state: Evidence, slots: int) -> tuple[Trial, ...]:
        """Count and propose."""
        self.calls["propose"] += 1
        return self.inner.propose(state, slots)

    def max_trials(self, search: Search) -> int:
        """Pass on."""
        return self.inner.max_trials(search)


def test_cost_does_not_grow_with_the_searches(bench, monkeypatch):
    """A thousand searches, 64 slots: the policy is asked once per search and once per search a row concerns."""
    searches = [bench.search(15, 1, seed=i) for i in range(1000)]
    calls, add = Counter(), Evidence.add
    monkeypatch.setattr(Evidence, "add", lambda state, row: (calls.update(["observe"]), add(state, row))[1])
    queue = TrialQueue(searches, Counting(calls))
    shared = queue.next(set(), 64)
    assert shared is not None
    assert calls == {"propose": 1000}
    queue.observe(bench.see(shared, 0.8))
    queue.wanted()
    assert calls == {"propose": 2000, "observe": 1000}
    queue.observe(bench.see(shared, 0.8))
    queue.wanted()
    assert calls == {"propose": 2000, "observe": 2000}
    rows, _ = drive(queue, lambda trial: bench.see(trial, 0.79 if trial.seeds.data % 2 else 0.55), 64, random.Random(0))
    assert 3900 < len(rows) <= 4000
    assert calls["observe"] == 2000 + len(rows)
    assert calls["propose"] <= 2100 + len(rows)  # a few more when slots are idle at the end
    assert {finding.outcome for finding in queue.findings()} == {Outcome.below_range, Outcome.above_range}
    assert queue.finished
