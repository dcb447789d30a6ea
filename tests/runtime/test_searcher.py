"""The searcher under Tune: what goes wrong in it is kept for after the run, since Tune would leave actors behind."""

import contextlib
import threading
from collections import Counter
from unittest.mock import MagicMock

import pytest
from builders import examples
from hypothesis import given
from hypothesis import strategies as st
from ray import cloudpickle

from distsub.config import parse_sweep
from distsub.config.sweep import Resources
from distsub.files import Files
from distsub.records import Observation, Trial
from distsub.results import Store
from distsub.results.schema import setup_from_json
from distsub.runtime import crashes, tune
from distsub.runtime.drain import Drain
from distsub.runtime.progress import Reporter
from distsub.runtime.searcher import QueueSearcher, Searcher
from distsub.runtime.worker import REPORTED, WorkerConfig
from distsub.search import TrialQueue, make_policy

SWEEP = """
name = "none"
models = ["package:nobody"]
tasks = ["sst2"]
methods = ["said", "did"]
seeds = 2
dims = [100, 200, 400, 800]
search = { etas = [0.3, 1.0], learning_rate = 1e-5 }
baseline = { learning_rates = [1e-5] }
budget = { steps = 10 }
"""


class Faulty:
    """Stands before something and raises at the n-th call of any of its methods."""

    def __init__(self, inner, fails_at):
        self.inner, self.left = inner, fails_at

    def __getattr__(self, name):
        value = getattr(self.inner, name)
        if not callable(value):
            return value

        def call(*args, **options):
            self.left -= 1
            if self.left == 0:
                raise ValueError(f"{name} is broken")
            return value(*args, **options)

        return call


def searcher_of(queue_fails, reporter_fails):
    queue = TrialQueue(parse_sweep(SWEEP).searches(), make_policy("bisection"))
    reporter = Faulty(Reporter(queue), reporter_fails)
    queue = Faulty(queue, queue_fails)
    return QueueSearcher(
        queue,
        Store(Files.at("nowhere"), "", ""),
        reporter,
        crashes.CrashLog(),
        Counter(),
        Resources(retries=1),
    )


def told(trial):
    row = Observation(trial, "finished", score=0.9 if trial.d is None or trial.d >= 400 else 0.5, chance=0.5)
    return {"final": True, "reported": [getattr(row, name) for name in REPORTED]}


@examples(30)
@given(st.integers(0, 120), st.integers(0, 60), st.integers(1, 4), st.data())
def test_it_never_raises_and_ends(queue_fails, reporter_fails, slots, data):
    """0 never fails. Driven as Tune does: suggestions while slots are free, then results and ends in any order."""
    searcher = searcher_of(queue_fails, reporter_fails)
    searcher.slots = slots
    running, number = {}, 0
    with contextlib.redirect_stdout(None):
        for _ in range(500):
            number += 1
            given_config = searcher.suggest(str(number)) if len(running) < slots else None
            if isinstance(given_config, dict):
                setup = setup_from_json(given_config["setup"])
                running[str(number)] = Trial(setup, given_config["d"], given_config["eta"])
                continue
            if not running:
                break
            name = data.draw(st.sampled_from(sorted(running)))
            searcher.on_trial_result(name, {"final": False, "at_step": 5, "of_steps": 10})
            wanted, trial = searcher.is_wanted(name), running.pop(name)
            searcher.on_trial_complete(name, told(trial) if wanted else {"final": False})
    assert not running and searcher.suggest("last") == Searcher.FINISHED
    if searcher.broken is None:
        assert searcher._queue.inner.finished
    else:
        assert "is broken" in str(searcher.broken)
        assert searcher.suggest("another") == Searcher.FINISHED and not searcher.is_wanted("another")


def test_what_tune_pickles_reaches_nothing_of_this_process(monkeypatch):
    """Tune pickles all that it is given before it starts; a live table, a lock or a queue must not be among it."""
    monkeypatch.setattr(tune, "connect", contextlib.nullcontext)
    monkeypatch.setattr(tune.cluster, "slots", lambda resources, demand: 2)
    monkeypatch.setattr("distsub.runtime.metrics.metrics", MagicMock())
    pickled = []

    def tuner(trainable, tune_config, run_config):
        given = [tune_config.search_alg, tune_config.scheduler, *run_config.callbacks]
        pickled.extend((type(each).__name__, cloudpickle.dumps(each)) for each in given)
        return MagicMock()

    monkeypatch.setattr(tune.tune, "Tuner", tuner)
    queue = TrialQueue(parse_sweep(SWEEP).searches(), make_policy("bisection"))
    reporter = Reporter(queue)
    reporter.lock, store = threading.RLock(), Store(Files.at("nowhere"), "", "")
    with pytest.raises(TypeError, match="pickle"):
        cloudpickle.dumps(reporter)
    with Drain() as drain:
        tune.run(queue, store, WorkerConfig("nowhere"), reporter, drain, Resources())
    assert len(pickled) == 5 and {name: len(data) for name, data in pickled if len(data) > 100} == {}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_what_broke_is_raised_after_the_run(tiny_text, tmp_path, monkeypatch):
    """On a real cluster: the trial that runs is stopped, then the very error comes out."""
    sweep = parse_sweep(tiny_text)
    store = Store.create(str(tmp_path / "out"), sweep.text, sweep.fingerprint, str(tmp_path))
    queue = TrialQueue(sweep.searches(), make_policy("bisection"))
    reporter = Reporter(queue)

    def ended(observation):
        raise ValueError("the reporter is broken")

    monkeypatch.setattr(reporter, "ended", ended)
    with Drain() as drain, pytest.raises(ValueError, match="the reporter is broken"):
        tune.run(queue, store, WorkerConfig(store.uri), reporter, drain, Resources(max_concurrent_trials=1))
    assert store.read()
