"""Which full fine-tunings set the threshold: one rule for every reader of the rows."""

import importlib.util
import itertools
import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distsub.estimate.gather import gather
from distsub.estimate.rows import RANGES
from distsub.search import Evidence, share
from distsub.search.thresholds import Trained, judge

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("coverage_worlds", ROOT / "benchmarks" / "coverage.py")
assert SPEC is not None and SPEC.loader is not None
worlds = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(worlds)


def best_mean(rows):
    """Return the best, over learning rates, of the mean score."""
    by_rate = {}
    for row in rows:
        by_rate.setdefault(row.arm, []).append(row.score)
    return max((math.fsum(own) / len(own) for own in by_rate.values()), default=None)


def agree(these, rows):
    """Compare what the table's threshold and the estimate rest on, from rows one by one and from a table's columns."""
    used = gather(these, rows).baseline
    for search, own in zip(these, share(these, rows), strict=True):
        folded = Evidence(search)
        for row in rows:
            folded = folded.add(row)
        for found in (folded.thresholds, Evidence.of(search, own).thresholds):
            assert (found and found.full) == (best_mean(used) if used else None)
    return used


@pytest.mark.parametrize("indices", [range(6), pytest.param(range(6, 24), marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", worlds.WORLDS)
def test_table_and_estimate_set_aside_the_same_full_fine_tunings_in_every_world(name, indices):
    """24 sweeps a world, with answers to single examples and without."""
    world = worlds.WORLDS[name]
    for index in indices:
        curve = worlds.truth(world, index)
        these = worlds.searches(world, curve.num_examples)
        rows = [curve.observe(trial, arrays=index % 2 == 0) for trial in these[0].baseline]
        # Neither reader may know more of the size of the evaluation set than the other.
        budget = replace(rows[0].trial.budget, eval_examples=(None, 10_000, curve.num_examples)[index % 3])
        whole = tuple(trial.vary(budget=budget) for trial in these[0].baseline)
        these = [search.vary(baseline=whole, budget=budget) for search in these]
        agree(these, [replace(row, trial=trial) for row, trial in zip(rows, whole, strict=True)])


SCORES = st.lists(st.one_of(st.none(), st.floats(-1.0, 1.0), st.sampled_from([0.0, 0.5, 0.52, 0.9])), min_size=6)


@given(SCORES.map(lambda scores: scores[:6]), st.sampled_from(sorted(RANGES)), st.integers(0, 5000))
def test_they_agree_whatever_the_scores_and_the_metric(bench, scores, metric, examples):
    search = bench.search()
    task = replace(search.task, metric=metric)
    baseline = tuple(each for each in bench.baselines((1e-5, 3e-5), seeds=3, task=task))
    search = search.vary(task=task, baseline=baseline)
    low = RANGES[metric][0]
    rows = [
        replace(
            bench.see(trial, None if score is None else max(score, low), "diverged" if score is None else "finished"),
            num_examples=examples,
        )
        for trial, score in zip(baseline, scores, strict=True)
    ]
    agree([search], rows)


CASES = [
    # scores of two learning rates, examples, kept of each, rates left out
    ((0.8, 0.8, 0.8), (0.79, 0.52, 0.79), 400, (3, 2), ()),
    ((0.8, None, 0.8), (0.79, 0.79, 0.79), 400, (2, 3), ()),
    ((0.8, 0.8, 0.8), (0.95, 0.51, None), 400, (3, 0), (2.0,)),
    ((0.8, 0.8, 0.6), (0.72, 0.72, 0.72), 400, (3, 3), ()),
    ((0.8, 0.52, None), (0.79, 0.51, None), 400, (1, 1), ()),  # no rate is left without them
    ((0.51, 0.5, 0.5), (0.52, 0.51, 0.5), 400, (3, 3), ()),
    ((0.6, 0.6, 0.51), (0.6, 0.6, 0.6), 30, (3, 3), ()),  # of 30 examples that is an accident
    ((0.6, 0.6, 0.51), (0.6, 0.6, 0.6), 30_000, (2, 3), ()),
    ((None, None, None), (None, None, None), 400, (0, 0), ()),
]


@pytest.mark.parametrize(("first", "second", "examples", "kept", "rates"), CASES)
def test_what_is_set_aside_by_hand_in_any_order(first, second, examples, kept, rates):
    full = [Trained(1.0, score, examples) for score in first] + [Trained(2.0, score, examples) for score in second]
    for order in itertools.islice(itertools.permutations(full), 0, None, 97):
        found = judge(order, 0.5, "accuracy")
        left = [each.rate for each, is_kept in zip(order, found.kept, strict=True) if is_kept]
        assert ((left.count(1.0), left.count(2.0)), found.rates) == (kept, rates)
        assert not any(is_kept and lost for is_kept, lost in zip(found.kept, found.failed, strict=True))


@pytest.mark.parametrize(
    ("scores", "examples", "in_doubt"),
    [
        ((0.5, 0.51, 0.52, 0.5, 0.53, 0.51, 0.5, 0.84, 0.85), 400, 7),
        ((0.5, 0.51, 0.52, 0.5, 0.85, 0.51, 0.5, 0.84, 0.85), 400, 0),  # a third trained: the others are left out
        ((0.5, 0.51, 0.52, 0.5, 0.53, 0.51, 0.5, 0.6, 0.61), 40, 0),  # of 40 examples that is an accident
        ((0.8, 0.81, 0.82, 0.8, 0.83, 0.81, 0.8, 0.84, 0.95), 400, 0),
        ((0.5, 0.5), 400, 0),
        ((None, None, None), 400, 0),
    ],
)
def test_where_most_may_have_failed_it_is_said(bench, scores, examples, in_doubt):
    """Of a few good scores it cannot be told whether they are what trains or what was lucky."""
    assert judge([Trained(1.0, score, examples) for score in scores], 0.5, "accuracy").in_doubt == in_doubt
    baseline = bench.baselines((1e-5,), seeds=len(scores))
    status = ["diverged" if score is None else "finished" for score in scores]
    rows = [
        replace(bench.see(trial, score, how), num_examples=examples)
        for trial, score, how in zip(baseline, scores, status, strict=True)
    ]
    said = [each for each in gather([bench.search(baseline=baseline)], rows).warnings if "near chance" in each]
    assert [each[:1] for each in said] == ([str(in_doubt)] if in_doubt else [])
