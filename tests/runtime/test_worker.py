"""One trial where it runs: what it leaves behind."""

import dataclasses

from safetensors.torch import load

from distsub.runtime.worker import WorkerConfig, perform


def test_a_trial_runs_to_its_end_and_leaves_row_and_adapter(sweep, store):
    trial = sweep.searches()[0].trials_at(64)[0]
    row = perform(trial, WorkerConfig(store.uri))
    assert (row.status, row.steps) == ("finished", 40)
    [read] = store.read()
    assert read == dataclasses.replace(row, target=read.target, predicted=read.predicted)
    adapter = load(store.files.read(f"adapters/{trial.id}/adapter_model.safetensors"))
    assert adapter["coordinates"].shape == (60,)


def test_without_adapters_the_row_is_all(sweep, store):
    trial = sweep.searches()[0].trials_at(64)[0]
    perform(trial, WorkerConfig(store.uri, adapters=False))
    assert len(store.read()) == 1 and store.files.folders("adapters") == []
