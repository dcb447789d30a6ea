"""Early verdicts: what is certain, what is not, who is audited, and what a budget allows."""

import math
import random
from dataclasses import replace

import pytest

from distsub.search import make_policy
from distsub.search.stopping import (
    CALIBRATING,
    Audit,
    Calibration,
    Limit,
    Rule,
    Rules,
    audit,
    audit_of,
    audited,
    first_stop,
    standard_error,
    verdict_now,
)
from distsub.trial import Budget


def test_a_pass_needs_a_margin():
    """Two standard errors of 408 answers at 0.8 are 4 points."""
    assert standard_error(0.8, 408) == pytest.approx(0.0198, abs=1e-4)
    assert verdict_now(((100, 0.80),), 0.75, 408, 500) == "pass"
    assert verdict_now(((100, 0.78),), 0.75, 408, 500) is None
    assert verdict_now(((100, 0.78),), 0.75, 4080, 500) == "pass"
    assert verdict_now(((100, 0.90), (200, 0.74)), 0.75, 408, 500) is None
    assert verdict_now(((100, 0.30),), 0.75, 408, 500) is None


def test_nothing_is_stopped_without_grounds():
    """At the last step, without an evaluation, or at a score that is none."""
    assert verdict_now(((100, 0.99),), 0.75, 408, 0) is None
    assert verdict_now((), 0.75, 408, 500) is None
    assert verdict_now(((100, math.nan),), 0.75, 408, 500) is None


@pytest.mark.parametrize("score", [0.0, 1.0])
@pytest.mark.parametrize("metric", ["accuracy", "pearson"])
def test_a_perfect_score_has_an_error_too(score, metric):
    """One answer, at least."""
    assert standard_error(score, 50, metric) > 0.0
    assert standard_error(score, 0, metric) > 0.0


def curves(bench, count, behind=0.1):
    """Return trials that passed 0.75, having been about `behind` below it half way, each with its threshold."""
    search = bench.search(count, num_etas=1)
    rng = random.Random(0)
    return [
        (
            replace(
                bench.see(search.trials_at(d)[0], score),
                curve=((5, 0.75 - behind + rng.uniform(0, 0.01)), (10, score)),
            ),
            0.75,
        )
        for d in search.dims
        for score in [rng.uniform(0.75, 0.8)]
    ]


def test_hopeless_is_further_below_than_those_were_that_passed(bench):
    """With 19 of them and no fewer, in units of threshold minus chance, which is 0.5 here, and of what is left."""
    enough, few = Calibration.of(curves(bench, 19)), Calibration.of(curves(bench, 18))
    assert few.limit() is None
    assert enough.limit() == pytest.approx(0.1 / 0.25 / 0.7, abs=0.02)
    assert verdict_now(((5, 0.64),), 0.75, 408, 5, enough.limit(), chance=0.5) == "hopeless"
    assert verdict_now(((5, 0.66),), 0.75, 408, 5, enough.limit(), chance=0.5) is None
    assert verdict_now(((2, 0.64),), 0.75, 408, 8, enough.limit(), chance=0.5) is None
    assert verdict_now(((5, 0.64),), 0.75, 408, 5, chance=0.5) is None


def test_what_failed_does_not_calibrate(bench):
    """However many there are, and baselines as little."""
    failed = [(replace(row, score=0.6), bar) for row, bar in curves(bench, 40)]
    assert Calibration.of(failed) == Calibration()
    baseline = bench.see(bench.baselines()[0], 0.8)
    assert Calibration.of([(replace(baseline, curve=((5, 0.7), (10, 0.8))), 0.7)]) == Calibration()


def test_a_training_that_will_pass_is_rarely_called_hopeless():
    """At most in 5% of cases, over draws of the 29 that calibrate: 4000 of them, so 6.1% with all bad luck."""
    rng = random.Random(1)
    beyond = 0
    for _ in range(4000):
        limit = Calibration(tuple(sorted(rng.expovariate(1.0) for _ in range(29)))).limit()
        assert limit is not None
        beyond += rng.expovariate(1.0) > limit
    assert beyond / 4000 < 0.061


def test_one_in_twenty_is_audited(bench):
    """By the id alone."""
    search = bench.search(400, num_etas=5, baseline=bench.baselines())
    ids = [trial.id for d in search.dims for trial in search.trials_at(d)]
    assert 0.03 < sum(map(audited, ids)) / len(ids) < 0.07


def test_audit_counts_false_stops(bench):
    """A curve that falls below the threshold again makes a false pass; one that rises late a false futility."""
    calibration = Calibration.of(curves(bench, 40))
    row = curves(bench, 1)[0][0]
    false_pass = replace(row, score=0.7, curve=((5, 0.9), (10, 0.7)), target=(0.0,) * 400)
    true_pass = replace(row, score=0.9, curve=((5, 0.9), (10, 0.9)), target=(0.0,) * 400)
    late = replace(row, score=0.8, curve=((5, 0.5), (10, 0.8)))
    rows = [(each, 0.75) for each in (false_pass, true_pass, late, replace(late, status="stopped"))]
    found = audit(rows, calibration.limit(), only_audited=False)
    assert found == Audit(passes=2, false_passes=1, hopeless=1, false_hopeless=1)
    assert found.rate == pytest.approx(2 / 3)
    assert audit([]).rate is None
    assert first_stop(true_pass, 0.75) == ("pass", 1)
    assert first_stop(late, 0.75) is None


def test_num_eval_comes_from_the_budget_where_answers_are_not_stored(bench):
    """Without either nothing passes early."""
    row = replace(curves(bench, 1)[0][0], score=0.9, curve=((5, 0.9), (10, 0.9)))
    assert first_stop(row, 0.75) is None
    trial = replace(row.trial, budget=Budget(steps=10, eval_examples=400))
    assert first_stop(replace(row, trial=trial), 0.75) == ("pass", 1)


def test_a_rule_wants_the_same_verdict_for_all_goals():
    """The first along the curve counts, whatever came after it; the last step is no early stop."""
    curve = ((5, 0.9), (10, 0.7), (15, 0.9))
    assert Rule((0.75,)).first(curve, 20, 400) == "pass"
    assert Rule((0.75, 0.85)).first(curve[:1], 20, 400) == "pass"
    assert Rule((0.75, 0.95)).first(curve, 20, 400) is None
    assert Rule((0.75,)).first(((20, 0.9),), 20, 400) is None
    assert Rule((0.75, 0.85), 0.0).first(((5, 0.6),), 20, 400, 0.5) == "hopeless"
    assert Rule((0.75,)).first((), 20, 400) is None


def test_a_row_says_by_what_it_was_judged(bench):
    row = bench.see(bench.search(1).trials_at(10)[0], 0.9)
    passed = Rule((0.75, 0.8), 0.3).mark(row, "pass")
    assert (passed.stop, passed.goal, passed.stop_limit) == ("pass", 0.8, 0.3)
    assert Rule((0.75, 0.8)).mark(row, "hopeless").goal == 0.75
    open_ended = Rule((0.75,)).mark(row, None)
    assert (open_ended.stop, open_ended.goal, open_ended.stop_limit) == (None, 0.75, None)


def test_rules_are_for_subspace_trials_whose_threshold_is_known(bench):
    search = bench.search(2)
    trial, other = search.trials_at(10)[0], search.trials_at(20)[0]
    goals = {trial.id: (0.75,), search.baseline[0].id: (0.75,)}
    rules = Rules("pass", lambda trial_id: goals.get(trial_id, ()))
    assert rules.rule(trial) == Rule((0.75,))
    assert rules.rule(other) is None
    assert rules.rule(search.baseline[0]) is None
    assert Rules("none", lambda trial_id: (0.75,)).rule(trial) is None


def test_what_passed_without_a_limit_calibrates_once_there_are_enough(bench):
    """In any order, from rows read back too; rows that had a limit, and those of other methods, do not count."""
    rows = [replace(row, goal=goal) for row, goal in curves(bench, CALIBRATING)]
    rules = Rules("futility", lambda trial_id: (0.75,))
    for row in rows[1:]:
        rules.observe(row)
        rules.observe(replace(row, stop_limit=0.1))
        rules.observe(replace(row, goal=None))
        rules.observe(replace(row, status="stopped"))
    trial = rows[0].trial
    assert rules.rule(trial) == Rule((0.75,), None)
    rules.observe(rows[0])
    limit = Calibration.of([(row, 0.75) for row in rows]).limit()
    assert limit is not None
    assert rules.rule(trial) == Rule((0.75,), limit)
    rules.observe(replace(rows[0], curve=((5, 0.0), (10, 0.8))))  # too late to change anything
    assert rules.rule(trial) == Rule((0.75,), limit)
    assert rules.rule(replace(trial, method=replace(trial.method, name="did"))) == Rule((0.75,), None)
    calm = Rules("pass", lambda trial_id: (0.75,))
    for row in rows:
        calm.observe(row)
    assert calm.rule(trial) == Rule((0.75,), None)


def test_false_stops_are_counted_from_the_rows(bench):
    row = bench.see(bench.search(1).trials_at(10)[0], 0.8)
    rows = [
        replace(row, stop="pass", goal=0.75),
        replace(row, stop="pass", goal=0.85),
        replace(row, stop="hopeless", goal=0.85),
        replace(row, stop="hopeless", goal=0.75),
        replace(row, goal=0.75),
        replace(row, stop="pass", goal=0.9, status="stopped"),
        row,
    ]
    found = audit_of(rows)
    assert found == Audit(passes=2, false_passes=1, hopeless=2, false_hopeless=1)
    assert (found.stops, found.false, found.rate) == (4, 2, 0.5)


def test_a_limit():
    """Hours count with what runs and what would start; trials as they start."""
    assert Limit().allows(1e9, 10**9)
    assert Limit(trials=3).allows(0.0, 2)
    assert not Limit(trials=3).allows(0.0, 3)
    assert Limit(hours=2.0).allows(1.5, 9, 0.5)
    assert not Limit(hours=2.0).allows(1.5, 9, 0.6)
    assert Limit(hours=2.0).spent(2.0)
    assert not Limit(hours=2.0).spent(1.9)
    assert not Limit(trials=1).spent(9.0)


@pytest.mark.parametrize("policy", ["bisection", "grid", "adaptive"])
@pytest.mark.parametrize("confirm", [False, True])
@pytest.mark.parametrize(("before", "after"), [(0.8, 0.9), (0.9, 0.8)], ids=["higher", "lower"])
def test_what_was_stopped_by_another_threshold_is_trained_to_its_end(bench, policy, confirm, before, after):
    """A sweep that grows by a seed has another threshold: no stopped training may decide by the old one."""
    decide = make_policy(policy)
    old, new = (bench.search(num_dims=4, confirm=confirm, baseline=bench.baselines(seeds=seeds)) for seeds in (1, 2))
    full = {0: before, 1: 2 * after - before}

    def ends(trial):  # what a training scores at its end: 0.79 at d = 20, over 0.9 * 0.8; 0.83 from 30 on
        if trial.is_baseline:
            return full[trial.seeds.head]
        return {10: 0.6, 20: 0.79, 30: 0.83, 40: 0.85}[trial.d]

    goal = 0.9 * before

    def stopped(trial):  # over the goal before it is all the way up, or given up far below
        row = bench.see(trial, ends(trial))
        if trial.is_baseline:
            return row
        passes = ends(trial) >= goal
        return replace(row, status="stopped", score=max(goal, ends(trial) - 0.03) if passes else 0.55, goal=goal)

    rows = bench.run(decide, decide.init(old), stopped)[1]
    assert any(row.status == "stopped" for row in rows)
    state = decide.init(new)
    for row in rows:
        state = decide.observe(state, row)
    grown, more = bench.run(decide, state, lambda trial: bench.see(trial, ends(trial)))
    fresh, _ = bench.run(decide, decide.init(new), lambda trial: bench.see(trial, ends(trial)))
    found, wanted = decide.outcome(grown), decide.outcome(fresh)
    assert (found.outcome, found.d, found.bracket) == (wanted.outcome, wanted.d, wanted.bracket)
    again = {row.trial.id for row in rows if row.status == "stopped"} & {row.trial.id for row in more}
    rules = Rules("pass", lambda trial_id: (0.72,))
    for row in rows:
        rules.observe(row)
    assert all(rules.rule(row.trial) is None for row in more if row.trial.id in again)
