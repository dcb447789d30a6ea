"""A training that is cut in two ends with the very bits of one that is not."""

import dataclasses

import pytest
import torch

from distsub.config import load_sweep
from distsub.finetune import train
from distsub.finetune.resume import ResumeState
from distsub.finetune.train import Observer, Stopped
from distsub.records import Random, Subspace


@pytest.fixture
def search(tiny_sweep):
    torch.set_num_threads(1)
    [search, *_] = load_sweep(tiny_sweep).searches()
    return search.vary(budget=dataclasses.replace(search.budget, steps=16, eval_every=4))


class Cut(Observer):
    """Stops after a step and keeps the state there, as bytes."""

    def __init__(self, step):
        self._step = step

    def on_step(self, training):
        if training.step == self._step:
            self.data = ResumeState.of(training).to_bytes()
            return True


class Start(Observer):
    """Resumes from a state; notes the first step and the trained weights."""

    def __init__(self, state=None):
        self._state, self.first, self.weights = state, None, {}

    def on_start(self, training):
        if self._state is not None:
            self.is_used = self._state.restore(training)
        self.first = training.step + 1

    def on_end(self, training, observation):
        self.weights = {name: p.detach().clone() for name, p in training.model.named_parameters()}


def until(trial, step):
    """Train to a step and give the state there, as bytes."""
    cut = Cut(step)
    with pytest.raises(Stopped):
        train.train(trial, [cut])
    return cut.data


def finish(trial, state=None):
    start = Start(state)
    return dataclasses.replace(train.train(trial, [start]), wall_s=0.0, eval_s=0.0, peak_bytes=0), start.weights


@pytest.mark.parametrize("method", ["said", "head", "full"])
def test_going_on_gives_the_same_bits(search, method):
    trial = search.baseline[0] if method == "full" else search.trials_at(64)[1]
    trial = trial.vary(budget=search.budget)
    if method == "head":
        trial = trial.vary(method=Subspace(Random("partition"), head="trained"))
    whole, trained = finish(trial)
    state = ResumeState.from_bytes(until(trial, 7), trial)
    assert state.step == 7 and state.curve == whole.curve[:1]
    torch.manual_seed(999)  # another process has another random state
    again, retrained = finish(trial, state)
    assert again == whole
    assert trained.keys() == retrained.keys()
    assert all(torch.equal(trained[name], retrained[name]) for name in trained)


def test_it_is_small(search):
    trial = search.trials_at(64)[0].vary(budget=search.budget)
    assert len(until(trial, 2)) < 10_000


def test_one_of_other_weights_or_data_is_not_used(search):
    trial = search.trials_at(64)[0].vary(budget=search.budget)
    state = ResumeState.from_bytes(until(trial, 7), trial)
    for given, first in [(dataclasses.replace(state, inputs="other weights"), 1), (state, 8)]:
        start = Start(given)
        train.train(trial, [start])
        assert start.first == first and start.is_used == (first == 8)


def test_what_is_damaged_or_foreign_is_refused(search):
    trial = search.trials_at(64)[0].vary(budget=search.budget)
    data = until(trial, 3)
    ResumeState.from_bytes(data, trial)
    flipped = bytearray(data)
    flipped[-9] ^= 1
    other = trial.vary(eta=7.0)
    bad = [data[:-5], data[:40], b"", b"\xff" * 50, bytes(flipped), data.replace(b'format\\": 1', b'format\\": 9')]
    for wrong in bad:
        assert wrong != data
        with pytest.raises(ValueError, match="no resume state of trial"):
            ResumeState.from_bytes(wrong, trial)
    with pytest.raises(ValueError, match="of another trial"):
        ResumeState.from_bytes(data, other)
