"""Resume states in the results: a killed trial goes on in another process and leaves the row of one that was not."""

import dataclasses
import time

import pytest

from distsub.config import parse_sweep
from distsub.finetune.train import Stopped
from distsub.records import Peft
from distsub.results import Store
from distsub.runtime import resume
from distsub.runtime.worker import WorkerConfig, perform


@pytest.fixture
def sweep(tiny_text):
    return parse_sweep(tiny_text)


def store_at(sweep, path):
    return Store.create(str(path), sweep.text, sweep.fingerprint, str(path.parent))


def row_of(store):
    """The only row, without what depends on the clock."""
    [row] = store.read()
    return dataclasses.replace(row, wall_s=0.0, eval_s=0.0, peak_bytes=0)


def begin(trial, config, steps=1):
    """Train so many steps, as a run that is told to end; give their numbers."""
    seen = []

    def report(step, _):
        seen.append(step)
        return len(seen) == steps

    with pytest.raises(Stopped):
        perform(trial, config, report)
    return seen


@pytest.mark.slow
@pytest.mark.parametrize("peft", [None, "UNILORA"])
def test_a_killed_process_costs_nothing_but_time(sweep, tmp_path, trained_apart, peft):
    trial = sweep.searches()[0].trials_at(64)[1]
    if peft is not None:
        pytest.importorskip("peft")
        trial = trial.vary(method=Peft(peft, head="trained"))
    whole, broken = store_at(sweep, tmp_path / "whole"), store_at(sweep, tmp_path / "broken")
    assert trained_apart(whole, trial) == list(range(1, 41))
    trained_apart(broken, trial, kill_at=17)
    assert broken.read() == [] and broken.files.names("checkpoints") == [f"{trial.id}.safetensors"]
    steps = trained_apart(broken, trial)
    assert steps == list(range(steps[0], 41)) and steps[0] > 1
    assert row_of(broken) == row_of(whole)
    assert broken.files.names("checkpoints") == []
    name = f"adapters/{trial.id}/adapter_model.safetensors"
    assert broken.files.read(name) == whole.files.read(name)


@pytest.mark.parametrize("data", [b"", b"not a checkpoint", None])
def test_what_cannot_be_used_is_not_missed(sweep, tmp_path, data):
    store = store_at(sweep, tmp_path / "out")
    trial, other = sweep.searches()[0].trials_at(64)
    begin(other, WorkerConfig(store.uri))
    foreign = store.files.read(f"checkpoints/{other.id}.safetensors")
    store.files.put(f"checkpoints/{trial.id}.safetensors", foreign if data is None else data)
    assert begin(trial, WorkerConfig(store.uri)) == [1]
    assert begin(trial, WorkerConfig(store.uri)) == [2]
    assert begin(trial, WorkerConfig(store.uri, resumes=False)) == [1]


def test_no_larger_ones_and_none_when_not_wanted(sweep, tmp_path, monkeypatch):
    store = store_at(sweep, tmp_path / "out")
    trial = sweep.searches()[0].trials_at(64)[0]

    def begin_and_end(**options):
        begin(trial, WorkerConfig(store.uri, **options))
        return store.files.names("checkpoints")

    assert begin_and_end(checkpoint_s=None) == []
    monkeypatch.setattr(resume, "LARGEST", 100)
    assert begin_and_end() == []
    monkeypatch.undo()
    assert begin_and_end() == [f"{trial.id}.safetensors"]
    resume.clear(store)
    assert store.files.names("checkpoints") == []


def test_a_folder_that_cannot_be_written_does_not_end_a_trial(sweep, tmp_path):
    store = store_at(sweep, tmp_path / "out")
    (tmp_path / "out" / "checkpoints").write_text("a file where the folder should be")
    trial = sweep.searches()[0].trials_at(64)[0]
    assert begin(trial, WorkerConfig(store.uri, checkpoint_s=0.0), steps=3) == [1, 2, 3]


def test_they_become_rare_where_writing_is_slow(sweep, tmp_path, monkeypatch):
    """At most one in fifty seconds goes into writing them."""
    store = store_at(sweep, tmp_path / "out")
    real, written = type(store.files).put, []

    def slow(self, name, data, **options):
        if name.startswith("checkpoints"):
            written.append(name)
            time.sleep(0.2)
        return real(self, name, data, **options)

    monkeypatch.setattr(type(store.files), "put", slow)
    began = time.monotonic()
    begin(sweep.searches()[0].trials_at(64)[0], WorkerConfig(store.uri, checkpoint_s=0.0), steps=20)
    assert 1 <= len(written) <= 2 + (time.monotonic() - began) / 10  # the last when it was stopped
