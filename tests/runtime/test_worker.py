"""One trial where it runs: what it leaves behind."""

import dataclasses

from distsub.finetune.train import finish
from distsub.runtime import worker
from distsub.runtime.worker import Place, perform


def test_a_trial_runs_to_its_end_and_leaves_row_and_adapter(sweep, store):
    trial = sweep.searches()[0].trials_at(64)[0]
    row = finish(perform(trial, Place(store.uri)))
    assert (row.status, row.steps) == ("finished", 40)
    [read] = store.read()
    assert read == dataclasses.replace(row, target=read.target, predicted=read.predicted)
    assert worker.load_adapter(store, trial.id)["coordinates"].shape == (60,)


def test_without_adapters_the_row_is_all(sweep, store):
    trial = sweep.searches()[0].trials_at(64)[0]
    finish(perform(trial, Place(store.uri, adapters=False)))
    assert len(store.read()) == 1 and store.files.folders("adapters") == []
