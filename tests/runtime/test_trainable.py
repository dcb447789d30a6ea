"""A training in the background of a Tune trial: its verdict, its error, and the end of one that is cancelled."""

import os
import subprocess
import sys
import threading
import time

import pytest

from distsub.errors import OutOfMemoryError
from distsub.finetune.train import Stopped
from distsub.runtime.trainable import Background, TrainTrial
from distsub.runtime.worker import WorkerConfig


def test_it_ends_with_its_observation():
    seen, goes_on = [], threading.Event()

    def train(report):
        seen.append(report(3, 10))
        goes_on.wait(30)
        return "the observation"

    training = Background(train, 10)
    while not seen:
        time.sleep(0.01)
    assert training.wait(0.01) is None and training.progress == (3, 10)
    goes_on.set()
    assert training.wait(30) == "the observation" and not seen[0]


def test_it_raises_what_the_training_raised():
    def train(report):
        raise OutOfMemoryError("out of memory")

    with pytest.raises(OutOfMemoryError):
        Background(train, 1).wait(30)


def test_a_stop_waits_for_the_end_of_the_step():
    steps = []

    def train(report):
        while True:
            steps.append(len(steps) + 1)
            if report(len(steps), 10**9):
                raise Stopped

    training = Background(train, 10**9)
    training.stop()
    count = len(steps)
    assert training.wait(0) is None and len(steps) == count >= 1


def test_one_process_trains_one_trial_after_the_other(sweep, store, monkeypatch):
    """What Tune calls, without Tune: a trial that is cancelled leaves a resume state, the next one a row."""
    monkeypatch.setattr("distsub.runtime.cluster.drains", lambda: False)
    monkeypatch.setattr("distsub.runtime.trainable.STEP_S", 0.05)
    first, second = sweep.searches()[0].trials_at(64)

    def config(trial):
        needs = {"CPU": 1.0, "GPU": 0.0}
        return {"setup": trial.setup.identity, "d": trial.d, "eta": trial.eta, "resumes": True, "needs": needs}

    actor = TrainTrial.__new__(TrainTrial)
    actor.setup(config(first), WorkerConfig(store.uri, places=sweep.places))
    while not (result := actor.step()).get("at_step"):
        assert not result.get("done"), result
    actor.reset_config(config(second))
    assert store.files.names("checkpoints") == [f"{first.id}.safetensors"] and store.read() == []
    while not (result := actor.step()).get("done"):
        pass
    assert result["final"] and result["reported"][0] == "finished"
    assert [row.trial.id for row in store.read()] == [second.id]
    actor.reset_config(config(first))
    while not (result := actor.step()).get("done"):
        pass
    assert result["final"] and {row.trial.id for row in store.read()} == {first.id, second.id}
    assert store.files.names("checkpoints") == []
    actor.cleanup()


def test_where_rows_are_computed_a_worker_needs_no_torch(computed, starts, tmp_path):
    """What tests of clusters have workers do, in a process that is called like one of Ray's."""
    script = tmp_path / "default_worker.py"
    script.write_text(
        "import sys, distsub.runtime.trainable as it\nprint(it.perform.__module__, 'torch' in sys.modules)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(starts.site), *sys.path])}
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True)
    assert done.stdout.split() == ["distsub.runtime.worker", "False"], done.stderr
