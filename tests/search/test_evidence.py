"""Thresholds, verdicts at one d, and the fold itself."""

import itertools
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distsub.search import Evidence, Outcome, Result, reaches, thresholds


def finished(score: float, chance: float | None = 0.5) -> Result:
    """Give a finished result."""
    return Result("finished", score, chance)


def test_threshold_is_of_the_rate_with_the_best_mean_over_seeds(bench):
    """By hand: rate 1e-5 scores 0.7 and 0.9, rate 3e-5 0.8 and 0.6, so 0.8; the best of every seed would be 0.85."""
    search = bench.search(baseline=bench.baselines(rates=(1e-5, 3e-5), seeds=2))
    scores = dict(zip((trial.id for trial in search.baseline), map(finished, (0.7, 0.8, 0.9, 0.6)), strict=True))
    found = thresholds(search, scores)
    assert found is not None
    assert (found.full, found.chance) == (pytest.approx(0.8), 0.5)
    assert found.score == pytest.approx(0.72)
    assert found.chance_corrected == pytest.approx(0.5 + 0.9 * 0.3)
    for missing in scores:
        assert thresholds(search, {key: value for key, value in scores.items() if key != missing}) is None


@pytest.mark.parametrize(
    ("first", "second", "full"),
    [
        ((0.8, 0.8, 0.8), (0.79, 0.52, 0.79), 0.8),
        ((0.8, 0.52, 0.8), (0.79, 0.79, 0.79), 0.8),  # one stayed at chance
        ((0.8, None, 0.8), (0.79, 0.79, 0.79), 0.8),  # one diverged
        ((0.8, 0.8, 0.8), (0.95, 0.51, None), 0.8),  # a rate that mostly failed sets nothing, however lucky once
        ((0.8, 0.8, 0.6), (0.72, 0.72, 0.72), 2.2 / 3),  # 0.6 is low, and did learn
        ((0.51, 0.5, 0.5), (0.52, 0.51, 0.5), 0.51),  # none learned: of 400 examples none is worse than another
    ],
)
def test_full_fine_tunings_that_failed_to_train_move_no_threshold(bench, first, second, full):
    """Two rates under three seeds; the rule itself is tested in test_baseline.py."""
    search = bench.search(baseline=bench.baselines(rates=(1e-5, 3e-5), seeds=3))
    by_rate = {1e-5: list(first), 3e-5: list(second)}
    scores = [by_rate[trial.learning_rate].pop(0) for trial in search.baseline]
    results = {
        trial.id: Result("diverged", None, 0.5) if score is None else finished(score)
        for trial, score in zip(search.baseline, scores, strict=True)
    }
    found = thresholds(search, results)
    assert found is not None and found.full == pytest.approx(full)


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
        (("diverged", "diverged", "finished", "finished"), None),
        (("diverged", "diverged", "diverged", "finished"), None),
        (("diverged", "diverged", "diverged", "diverged"), Outcome.baseline_missing),
        (("error", "finished", "finished", "finished"), Outcome.baseline_missing),
        (("error",), Outcome.baseline_missing),
        (("diverged", "diverged"), None),
        (("finished",), None),
    ],
)
def test_baseline_obstacles(bench, statuses, outcome):
    """What diverged is left out while a rate trained under half of the seeds; an error would set the bar too low."""
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
        assert (finding.outcome, finding.d) == (outcome, None)


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
        ([("diverged", None), ("diverged", None)], False),
    ],
)
def test_verdict_at_one_d(bench, seen, verdict):
    """One pass is enough, a fail takes all etas, an error is no score."""
    search = bench.search(num_dims=1)
    evidence = Evidence(search).add(bench.see(search.baseline[0], 0.8))
    for trial, (status, score) in zip(search.trials_at(10), seen, strict=False):
        evidence = evidence.add(bench.see(trial, score, status))
    assert evidence.passed(10) is verdict


PATTERNS = [
    # best score per d, P(ass) at 0.73 or F(ail) at 0.71 unless told: threshold 0.72
    ("FFPPP", Outcome.found, (20, 30)),
    ("FPFPP", Outcome.found, (30, 40)),  # either crossing misjudges one d: the larger
    ("FPFFP", Outcome.found, (40, 50)),
    ("FPPFP", Outcome.found, (10, 20)),
    ("PFPPP", Outcome.found, (20, 30)),
    ("PFFFF", Outcome.above_range, (50, None)),
    ("PPPPF", Outcome.below_range, (None, 10)),
    ("FpFPP", Outcome.found, (30, 40)),
    ("FPfPP", Outcome.found, (30, 40)),  # a far miss is worth more than a near one
    ("F-PPP", Outcome.trial_failed, (10, 30)),
]


@pytest.mark.parametrize(("pattern", "outcome", "bracket"), PATTERNS)
def test_an_inversion_inside_the_noise_is_no_contradiction(bench, pattern, outcome, bracket):
    """The crossing that misjudges the fewest verdicts; of 408 examples 0.02 more or less says nothing."""
    scores = {"P": 0.73, "p": 0.721, "F": 0.71, "f": 0.70}
    search = bench.search(5, num_etas=1, budget=replace(bench.search().budget, eval_examples=408))
    evidence = Evidence(search).add(bench.see(search.baseline[0], 0.8))
    for d, mark in zip(search.dims, pattern, strict=True):
        if mark != "-":
            evidence = evidence.add(bench.see(search.trials_at(d)[0], scores[mark]))
    finding = evidence.finding(ended=True)
    assert (finding.outcome, finding.bracket) == (outcome, bracket)
    assert finding.d == (bracket[1] if outcome is Outcome.found else None)


@pytest.mark.parametrize(("examples", "outcome"), [(100, Outcome.found), (40_000, Outcome.not_monotone)])
def test_a_fall_beyond_sampling_error_is_told(bench, examples, outcome):
    """0.75 at one d and 0.69 at the next: noise of a hundred examples, and none of forty thousand."""
    search = bench.search(4, num_etas=1, budget=replace(bench.search().budget, eval_examples=examples))
    evidence = Evidence(search).add(bench.see(search.baseline[0], 0.8))
    for d, score in zip(search.dims, (0.6, 0.75, 0.69, 0.75), strict=True):
        evidence = evidence.add(bench.see(search.trials_at(d)[0], score))
    finding = evidence.finding(ended=True)
    assert finding.outcome is outcome
    assert finding.d is None or outcome is Outcome.found
    assert finding.bracket == ((30, 20) if outcome is Outcome.not_monotone else (30, 40))


def test_a_tie_passes():
    """Although 0.9 * 0.8 > 0.72 in floating point."""
    assert 0.9 * 0.8 > 0.72
    assert reaches(0.72, 0.9 * 0.8)
    assert not reaches(0.7199, 0.9 * 0.8)


results = st.builds(
    Result,
    st.sampled_from(["finished", "diverged", "error"]),
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
    """So that a queue need not ask again."""
    search = bench.search()
    row = bench.see(search.trials_at(10)[0], 0.6)
    evidence = Evidence(search).add(row)
    assert evidence.add(row) is evidence
    assert evidence.add(bench.see(row.trial, None, "error")) is evidence
    assert evidence.add(bench.see(bench.search(seed=5).trials_at(10)[0], 0.9)) is evidence
    assert evidence.finding(ended=False).num_trials == 1


def test_every_outcome_has_its_sentence():
    """And no two share one, which would make them one member."""
    assert len(Outcome) == 10
    assert all(len(outcome.value) > 20 for outcome in Outcome)
    assert [outcome for outcome in Outcome if not outcome.is_over] == [Outcome.open]
