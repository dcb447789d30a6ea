"""A training that is cut in two ends with the very bits of one that is not."""

import dataclasses

import pytest
import torch

from distsub.config import load_sweep
from distsub.finetune import train
from distsub.finetune.checkpoint import Checkpoint
from distsub.records import Random, Subspace


@pytest.fixture
def search(tiny_sweep):
    torch.set_num_threads(1)
    [search, *_] = load_sweep(tiny_sweep).searches()
    return search.vary(budget=dataclasses.replace(search.budget, steps=16, eval_every=4))


def until(trial, step, **options):
    """Train to a step and give the checkpoint there, as bytes."""
    steps = train.train(trial, **options)
    for progress in steps:
        if progress.step == step:
            data = progress.checkpoint().to_bytes()
            steps.close()
            return data
    raise AssertionError("never got there")


def finish(trial, **options):
    kept = {}
    steps = train.train(
        trial, on_trained=lambda m: kept.update({n: p.detach().clone() for n, p in m.named_parameters()}), **options
    )
    return dataclasses.replace(train.finish(steps), wall_s=0.0, eval_s=0.0, peak_bytes=0), kept


@pytest.mark.parametrize("method", ["said", "head", "full"])
def test_going_on_gives_the_same_bits(search, method):
    trial = search.baseline[0] if method == "full" else search.trials_at(64)[1]
    trial = trial.vary(budget=search.budget)
    if method == "head":
        trial = trial.vary(method=Subspace(Random("partition"), head="trained"))
    whole, trained = finish(trial)
    checkpoint = Checkpoint.from_bytes(until(trial, 7), trial)
    assert checkpoint.step == 7 and checkpoint.curve == whole.curve[:1]
    torch.manual_seed(999)  # another process has another random state
    again, retrained = finish(trial, resume=checkpoint)
    assert again == whole
    assert trained.keys() == retrained.keys()
    assert all(torch.equal(trained[name], retrained[name]) for name in trained)


def test_it_is_small(search):
    trial = search.trials_at(64)[0].vary(budget=search.budget)
    assert len(until(trial, 2)) < 10_000


def test_one_of_other_weights_or_data_is_not_used(search):
    trial = search.trials_at(64)[0].vary(budget=search.budget)
    checkpoint = Checkpoint.from_bytes(until(trial, 7), trial)
    foreign = dataclasses.replace(checkpoint, inputs="other weights")
    assert next(train.train(trial, resume=foreign)).step == 1
    assert next(train.train(trial, resume=checkpoint)).step == 8


def test_what_is_damaged_or_foreign_is_refused(search):
    trial = search.trials_at(64)[0].vary(budget=search.budget)
    data = until(trial, 3)
    Checkpoint.from_bytes(data, trial)
    flipped = bytearray(data)
    flipped[-9] ^= 1
    other = trial.vary(eta=7.0)
    bad = [data[:-5], data[:40], b"", b"\xff" * 50, bytes(flipped), data.replace(b'format\\": 1', b'format\\": 9')]
    for wrong in bad:
        assert wrong != data
        with pytest.raises(ValueError, match="no checkpoint of trial"):
            Checkpoint.from_bytes(wrong, trial)
    with pytest.raises(ValueError, match="of another trial"):
        Checkpoint.from_bytes(data, other)
