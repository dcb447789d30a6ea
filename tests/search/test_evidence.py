"""Thresholds, verdicts at one d, and the fold itself."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distsub.search import Evidence, Outcome, Result, reaches, thresholds


def finished(score: float, chance: float | None = 0.5) -> Result:
    """Give a finished result."""
    return Result("finished", score, chance)


def test_threshold_is_the_mean_over_seeds_of_the_best_rate(bench):
    """By hand: seeds at 0.8 and 0.9, so 0.85; 0.9 of it, and chance plus 0.9 of the gain."""
    search = bench.search(baseline=bench.baselines(rates=(1e-5, 3e-5), seeds=2))
    scores = dict(zip((trial.id for trial in search.baseline), map(finished, (0.7, 0.8, 0.9, 0.6)), strict=True))
    found = thresholds(search, scores)
    assert found is not None
    assert (found.full, found.chance) == (pytest.approx(0.85), 0.5)
    assert found.relative == pytest.approx(0.765)
    assert found.chance_corrected == pytest.approx(0.5 + 0.9 * 0.35)
    for missing in scores:
        assert thresholds(search, {key: value for key, value in scores.items() if key != missing}) is None


def test_unknown_chance_leaves_the_correction_out(bench):
    """A threshold that cannot be computed is None."""
    search = bench.search()
    found = thresholds(search, {search.baseline[0].id: finished(0.8, None)})
    assert found is not None
    assert (found.chance, found.chance_corrected) == (None, None)


@pytest.mark.parametrize(
    ("statuses", "outcome"),
    [
        (("finished", "finished", "finished", "finished"), None),
        (("diverged", "finished", "finished", "finished"), None),
        (("diverged", "diverged", "finished", "finished"), Outcome.baseline_missing),
        (("diverged", "diverged", "diverged", "diverged"), Outcome.baseline_missing),
        (("error", "finished", "finished", "finished"), Outcome.baseline_missing),
        (("error",), Outcome.baseline_missing),
        (("diverged", "diverged"), None),
        (("finished",), None),
    ],
)
def test_baseline_obstacles(bench, statuses, outcome):
    """A rate may diverge, a seed may not; an error anywhere would set the bar too low."""
    search = bench.search(baseline=bench.baselines(rates=(1e-5, 3e-5), seeds=2))
    evidence = Evidence(search)
    for trial, status in zip(search.baseline, statuses, strict=False):
        evidence = evidence.add(bench.see(trial, 0.8 if status == "finished" else None, status))
    assert evidence.obstacle is outcome


@pytest.mark.parametrize(
    ("score", "chance", "outcome"),
    [
        (0.51, 0.5, None),
        (0.5, 0.5, Outcome.baseline_at_chance),
        (0.4, 0.5, Outcome.baseline_at_chance),
        (-0.1, None, Outcome.baseline_at_chance),
        (math.nan, 0.0, Outcome.baseline_missing),
    ],
)
def test_baseline_must_beat_chance(bench, score, chance, outcome):
    """Otherwise 0.9 of it means nothing; a correlation that is not a number is no score."""
    search = bench.search()
    evidence = Evidence(search).add(bench.see(search.baseline[0], score, chance=chance))
    assert evidence.obstacle is outcome
    if outcome is not None:
        finding = evidence.finding(ended=True)
        assert (finding.outcome, finding.d, finding.chance_corrected.outcome) == (outcome, None, outcome)


@pytest.mark.parametrize(
    ("seen", "verdict"),
    [
        ([], None),
        ([("finished", 0.75)], True),
        ([("finished", 0.55)], None),
        ([("finished", 0.55), ("finished", 0.71)], False),
        ([("finished", 0.55), ("diverged", None)], False),
        ([("finished", 0.55), ("finished", math.nan)], False),
        ([("finished", 0.55), ("error", None)], None),
        ([("error", None), ("finished", 0.75)], True),
        ([("stopped", 0.73), ("error", None)], True),
        ([("stopped", 0.55), ("finished", 0.55)], False),
        ([("stopped", None), ("finished", 0.55)], None),
    ],
)
def test_verdict_at_one_d(bench, seen, verdict):
    """One pass is enough, a fail takes all etas, an error is no score."""
    search = bench.search(num_dims=1)
    evidence = Evidence(search).add(bench.see(search.baseline[0], 0.8))
    for trial, (status, score) in zip(search.trials_at(10), seen, strict=False):
        evidence = evidence.add(bench.see(trial, score, status))
    assert evidence.passed(10, 0.72) is verdict


def test_an_early_pass_says_nothing_about_a_stricter_threshold(bench):
    """Stopped at 0.73 for the relative 0.72, it may still have reached the corrected 0.77."""
    search = bench.search(num_dims=1, num_etas=1)
    evidence = Evidence(search).add(bench.see(search.baseline[0], 0.8))
    evidence = evidence.add(bench.see(search.trials_at(10)[0], 0.73, "stopped"))
    finding = evidence.finding(ended=True)
    assert finding.outcome is Outcome.below_range
    assert finding.chance_corrected.outcome is Outcome.undecided


def test_a_tie_passes():
    """Although 0.9 * 0.8 > 0.72 in floating point."""
    assert 0.9 * 0.8 > 0.72
    assert reaches(0.72, 0.9 * 0.8)
    assert not reaches(0.7199, 0.9 * 0.8)


results = st.builds(
    Result,
    st.sampled_from(["finished", "diverged", "stopped", "error"]),
    st.sampled_from([None, 0.1, 0.9]),
    st.sampled_from([None, 0.0, 0.5]),
)


@given(st.lists(results, min_size=1, max_size=4))
def test_merging_is_order_free_and_idempotent(seen: list[Result]):
    """Whatever rows a trial has, and however often, one result comes out."""
    outcomes = set()
    for order in itertools.permutations(seen):
        merged = order[0]
        for result in (*order, *order):
            merged = merged.merge(result)
        outcomes.add((merged.status, merged.score or 0.0, merged.chance))
    assert len(outcomes) == 1


def test_rows_that_say_nothing_new_return_the_same_evidence(bench):
    """So that a board need not ask again."""
    search = bench.search()
    row = bench.see(search.trials_at(10)[0], 0.6)
    evidence = Evidence(search).add(row)
    assert evidence.add(row) is evidence
    assert evidence.add(bench.see(row.trial, None, "error")) is evidence
    assert evidence.add(bench.see(bench.search(seed=5).trials_at(10)[0], 0.9)) is evidence
    assert evidence.finding(ended=False).num_trials == 1


def test_every_outcome_has_its_sentence():
    """And no two share one, which would make them one member."""
    assert len(Outcome) == 11
    assert all(len(outcome.sentence) > 20 for outcome in Outcome)
    assert [outcome for outcome in Outcome if not outcome.is_over] == [Outcome.open]
