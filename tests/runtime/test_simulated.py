"""The virtual clock: nobody idles or runs twice, what goes wrong costs time only, and replay tells policies apart."""

import math
import random
from dataclasses import replace

import pytest

from distsub.errors import ConfigError
from distsub.records import Budget, Full, Model, Random, Seeds, Setup, Subspace, Task, Trial
from distsub.runtime.replay import REPLAY, play, replay
from distsub.runtime.simulated import Machines, Recorded, simulate
from distsub.search import Bisection, Grid, Outcome, Search, TrialQueue, log_grid
from distsub.search.synthetic import Curve

BUDGET = Budget(steps=100, eval_every=10, eval_examples=408)
CURVE = Curve(middle=math.log(3000.0), seconds_per_step=1.0)


def make(num_tasks=1, num_seeds=2, dims=None, budget=BUDGET):
    """Return searches over a coarse grid; every trial takes 100 s."""
    searches = []
    for k in range(num_tasks):
        task = Task(name=f"t{k}", source="x", text=("a",))
        seeds = [Seeds(s, s, s) for s in range(num_seeds)]
        baseline = tuple(
            Trial(Setup(Model("m"), task, Full(), rate, budget, replace(each, projection=0)))
            for each in seeds
            for rate in (1e-5, 2e-5)
        )
        method = Subspace(Random("fastfood"))
        grid = dims or log_grid(100, 100_000, 1.5)
        searches += [
            Search(Setup(Model("m"), task, method, 1e-05, budget, each), grid, (0.1, 0.3, 1.0), baseline)
            for each in seeds
        ]
    return searches


def source(trial):
    """Answer from the curve."""
    return CURVE.observe(trial, arrays=False)


@pytest.mark.parametrize("policy", ["bisection", "grid"])
def test_one_slot_takes_the_sum_of_its_trials(policy):
    """No time is lost and none is won; the baselines come first."""
    queue, ledger = play(make(), policy, source)
    assert ledger.wall_s == ledger.busy_s == 100.0 * len(ledger.rows)
    assert ledger.steps == 100 * len(ledger.rows) == 100 * ledger.started
    assert ledger.baseline_steps == 400
    assert queue.finished
    assert len({row.trial.id for row in ledger.rows}) == len(ledger.rows) <= queue.max_trials()


def test_slots_shorten_the_wall_and_startup_lengthens_it():
    """The same grid of trials on 1, 4 and 4 slow slots."""
    walls = []
    for machines in (Machines(1), Machines(4), Machines(4, startup_s=50.0)):
        ledger = simulate(TrialQueue(make(), Grid()), source, machines)
        walls.append(ledger.wall_s)
        assert ledger.busy_s <= machines.slots * ledger.wall_s + 1e-6
    assert walls[1] == pytest.approx(walls[0] / 4, rel=0.05)
    assert walls[2] == pytest.approx(1.5 * walls[1], rel=0.01)


@pytest.mark.parametrize("policy", [Grid(), Bisection()])
def test_what_goes_wrong_changes_the_time_and_not_the_answer(policy):
    """Crashes are retried, preempted trials offered again: the same findings, later."""
    calm = TrialQueue(make(2, 2), policy)
    ledger = simulate(calm, source, Machines(1))
    rough = TrialQueue(make(2, 2), policy)
    worse = simulate(rough, source, Machines(1, crash=0.1, retries=9, preempted_per_hour=6.0, seed=3))
    assert worse.crashed and worse.preempted
    assert worse.wall_s > ledger.wall_s
    assert worse.started == len(worse.rows) + worse.crashed + worse.preempted
    assert rough.findings() == calm.findings()
    again = TrialQueue(make(2, 2), policy)
    assert simulate(again, source, Machines(1, crash=0.1, retries=9, preempted_per_hour=6.0, seed=3)) == worse


def test_a_trial_that_always_crashes_is_an_error():
    """After its retries; the baseline first, so nothing else is tried."""
    queue = TrialQueue(make(1, 1), Bisection())
    ledger = simulate(queue, source, Machines(1, crash=1.0, retries=2))
    assert (ledger.crashed, len(ledger.rows)) == (3, 1)
    assert queue.findings()[0].outcome is Outcome.baseline_missing


def test_cancelled_trials_cost_their_steps():
    """Bisection runs all etas of a d at once and needs one to pass; `cancelled` counts the others."""

    def uneven(trial):
        row = source(trial)
        return replace(row, wall_s=row.wall_s * (1 + int(trial.id, 16) % 5))

    ledger = simulate(TrialQueue(make(), Bisection()), uneven, Machines(12))
    assert ledger.cancelled > 0
    assert 0 < ledger.cancelled_steps < ledger.cancelled * 100
    assert ledger.steps == pytest.approx(100 * len(ledger.rows) + ledger.cancelled_steps)


def test_replay_compares_policies_on_a_grids_rows():
    """One row per search and one for all; nothing missing, since a grid has every trial."""
    searches = make(2, 2)
    rows = simulate(TrialQueue(searches, Grid()), source).rows
    random.Random(0).shuffle(rows)
    table = replay(searches, rows, ("bisection", "grid"), Machines(4))
    assert table.schema == REPLAY
    totals = {row["policy"]: row for row in table.to_pylist() if row["search"] == "all"}
    assert totals["bisection"]["steps"] < totals["grid"]["steps"] / 2
    assert all(row["missing"] == 0 for row in table.to_pylist())
    assert totals["grid"]["trials"] == len(rows)
    assert len(table) == 2 * (len(searches) + 1)


def test_replay_says_what_was_not_recorded():
    """Bisection's rows do not hold what a grid asks for; rows of another sweep hold nothing."""
    searches = make(1, 1)
    rows = simulate(TrialQueue(searches, Bisection()), source).rows
    table = replay(searches, rows, ("bisection", "grid")).to_pylist()
    total = {row["policy"]: row["missing"] for row in table if row["search"] == "all"}
    assert total["bisection"] == 0 < total["grid"]
    with pytest.raises(ConfigError, match="no recorded trial"):
        replay(make(1, 1, budget=Budget(steps=7)), rows)
    with pytest.raises(ConfigError, match="policy"):
        replay(searches, rows, ("magic",))


def test_recorded_prefers_what_finished():
    """Two rows for one trial: the one that ran to its end."""
    trial = make(1, 1)[0].baseline[0]
    done = source(trial)
    short = replace(done, status="diverged", score=None, steps=10)
    assert Recorded([done, short])(trial) == Recorded([short, done])(trial) == done


def test_a_hundred_searches_on_sixty_four_slots_end_and_spend_little():
    searches = make(50, 2, dims=log_grid(100, 1_000_000))
    queue, ledger = play(searches, "bisection", source, Machines(64))
    assert queue.finished
    assert len(ledger.rows) / 100 < 24
