"""Etas asked of Optuna: the same answer whatever the order of the rows, and better ones than the list's."""

import math
import random
import subprocess
import sys

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distsub.search import Adaptive, Bisection, log_grid
from distsub.search.study import ask
from distsub.search.synthetic import Curve

ROW = st.tuples(st.floats(4.0, 12.0), st.integers(0, 5), st.floats(-0.5, 1.5))


@settings(max_examples=25, deadline=None)
@given(rows=st.lists(ROW, max_size=30), tries=st.integers(1, 6), data=st.data())
def test_the_same_rows_in_any_order_give_the_same_answer(rows, tries, data):
    """Every eta once; and Optuna is as loud as before."""
    loud = optuna.logging.get_verbosity()
    order = ask(rows, 8.0, 6, tries)
    assert sorted(order) == list(range(6))
    assert ask(data.draw(st.permutations(rows)), 8.0, 6, tries) == order
    assert optuna.logging.get_verbosity() == loud


def test_without_rows_the_middle_comes_first():
    """Also from a generator; one eta leaves no choice."""
    assert ask(iter(()), 8.0, 5, 2) == (2, 1, 3, 0, 4)
    assert ask([(7.0, 0, 0.3)], 8.0, 1, 1) == (0,)


def test_what_did_well_nearby_is_preferred():
    """Of 8 etas one is far ahead at the neighbours, and another was further away: four of five answers are near it."""
    for good in range(8):
        near = [(8.0 + step, j, 0.95 if j == good else 0.1) for step in (-0.2, 0.2) for j in range(8)]
        far = [(12.0, 7 - good, 1.0)]
        assert abs(ask(near + far, 8.0, 8, 1)[0] - good) <= 1


def test_optuna_is_loaded_when_it_is_asked_and_torch_never():
    """A third of a second that most sweeps do not need."""
    code = """
import sys
from distsub.search.study import ask
ask([], 8.0, 4, 2)
assert "optuna" not in sys.modules
ask([(7.0, 1, 0.5)], 8.0, 4, 2)
assert "optuna" in sys.modules and "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


ETAS = tuple(0.01 * 10 ** (3 * k / 7) for k in range(8))


def hits(bench, policy, choice, worlds):
    """Run searches with 2 tries of 8 etas; return of how many d that some eta passes one was found, and of how many."""
    found = possible = 0
    for seed in worlds:
        rng = random.Random(seed)
        curve = Curve(
            seed=seed,
            middle=rng.uniform(math.log(300.0), math.log(3000.0)),
            eta_best=math.exp(rng.uniform(math.log(0.02), math.log(5.0))),
            eta_drift=0.5,
        )
        search = bench.search(dims=log_grid(100, 100_000), etas=ETAS, tries=2, eta_choice=choice)
        state, _ = bench.run(policy, policy.init(search), lambda trial, curve=curve: curve.observe(trial, arrays=False))
        bar = state.thresholds.relative
        for d, at_d in state.probes.items():
            assert len(at_d) <= 2
            rest = (curve.observe(trial, arrays=False).score for trial in search.trials_at(d))
            if any(score >= bar for score in rest):
                possible += 1
                found += state.passed(d, bar) is True
    return found, possible


@pytest.mark.parametrize("policy", [Bisection(), Adaptive()], ids=["bisection", "adaptive"])
def test_finds_the_passing_eta_more_often_than_the_list(bench, policy):
    """The best eta is anywhere in the list and drifts with d; two of eight are tried. Bound: 1.5 times as often."""
    found, possible = hits(bench, policy, "optuna", range(8))
    listed, could = hits(bench, Bisection(), "belief", range(8))
    assert found / possible >= 1.5 * listed / could
