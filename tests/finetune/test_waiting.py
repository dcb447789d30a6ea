"""A training on a device does not wait for it: no step reads a number back.

Held on a CPU, by the operations that would: the code is told that its tensors lie elsewhere.
"""

import dataclasses
import math
from contextlib import nullcontext

import decoders
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from distsub.config import load_sweep
from distsub.data.dataset import Split
from distsub.files import Files
from distsub.finetune import train
from distsub.finetune.inputs import Inputs
from distsub.finetune.objective import objective
from distsub.finetune.train import Observer, Stopped, Training
from distsub.models import pretrained
from distsub.records import Freeze, Random, Subspace, Task
from distsub.runtime.resume import ResumeFile
from distsub.subspace import projection
from distsub.subspace.model import SubspaceModel


class Waits(TorchDispatchMode):
    """Lists the operations whose result, or its size, the program must know before it goes on."""

    NAMES = ("_local_scalar_dense", "nonzero", "masked_select", "bincount", "equal", "repeat_interleave")

    def __init__(self, allowed=()):
        super().__init__()
        self.found, self.allowed = [], allowed

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        by_mask = name.startswith(("index", "_index_put")) and any(
            index is not None and index.dtype in (torch.bool, torch.uint8)
            for index in (args[1] if isinstance(args[1], (list, tuple)) else ())
        )
        if (name in self.NAMES or "unique" in name or by_mask) and not any(args[0] is each for each in self.allowed):
            self.found.append(name)
        return func(*args, **kwargs or {})


def waits(run, allowed=()):
    with Waits(allowed) as mode:
        run()
    return mode.found


@pytest.fixture
def device(monkeypatch):
    """Have the CPU taken for a device."""
    monkeypatch.setattr(projection, "launches", lambda device: True)
    monkeypatch.setattr(train, "launches", lambda device: True)


@pytest.fixture
def trials(tiny_sweep):
    torch.set_num_threads(1)
    [search, *_] = load_sweep(tiny_sweep).searches()
    return search


def test_what_waits_is_seen():
    x = torch.arange(5)
    for run in (
        lambda: x.sum().item(),
        lambda: bool(x.any()),
        lambda: x[x > 2],
        lambda: x.unique(),
        lambda: torch.unique_consecutive(x),
        lambda: x.clone().masked_fill_(x > 2, 0).index_put_((x > 2,), x[0]),
    ):
        assert len(waits(run)) == 1
    assert waits(lambda: x[torch.tensor([1, 2])] + x[1]) == []


METHODS = {
    "full": None,
    "partition": Subspace(),
    "fastfood": Subspace(Random("fastfood"), scales="layer"),
    "per tensor": Subspace(Random("fastfood_per_tensor", "per_tensor"), scales="tensor"),
    "sparse": Subspace(Random("sparse"), head="trained"),
    "dense": Subspace(Random("dense"), head="frozen"),
    "layers": Subspace(Random("fastfood"), scope="layer", head="trained", embeddings="frozen"),
    "freeze": Freeze(head="trained", embeddings="trained"),
}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_does_not_wait(name, precision, trials, device):
    """Beside what transformers reads itself; AdamW counts its steps on the CPU."""
    trial = trials.baseline[0] if name == "full" else trials.trials_at(64)[0].vary(method=METHODS[name])
    trial = trial.vary(d=1) if name == "freeze" else trial
    trial = trial.vary(budget=dataclasses.replace(trial.budget, precision=precision, max_grad_norm=1.0))
    training = Training(Inputs(trial))
    made = training._rows.batch

    def batch(rows):
        with _disable_current_modes():  # before it is sent
            return made(rows)

    training._rows.batch = batch
    [first, second, *_] = training.batches_left()
    training.take_step(first)  # tables are made and sent once
    counters = [state["step"] for state in training.optimizer.state.values()]
    found = waits(lambda: training.take_step(second), counters)
    assert len(training.losses) == 2
    with training.model.hooks.bypass() if isinstance(training.model, SubspaceModel) else nullcontext():
        assert found == waits(lambda: training.model(**batch(first))), "beyond the model's own"


@pytest.mark.parametrize("kind", decoders.KINDS)
def test_the_loss_of_a_completion_does_not_wait(kind, tmp_path, device):
    prepared = pretrained.prepare(decoders.make(kind, tmp_path))
    model = pretrained.build(prepared, 0, 0)
    task = Task("toy", "toy", ("prompt",), "completion", num_labels=0, metric="nll")
    split = Split((["w1 w2 good :", "w3 bad :"],), ["yes", "no w9 no"])
    rows = objective(pretrained.tokenizer(prepared), task, split, 32, model.config)
    batch = rows.batch([0, 1])
    plain = {key: value for key, value in batch.items() if key != "chosen"}
    own = waits(lambda: model(**plain, use_cache=False))
    held = SubspaceModel(model, 32, Subspace(Random("fastfood")))
    rows.loss(held, batch).backward()
    found = waits(lambda: rows.loss(held, batch).backward())
    assert sorted(found) == sorted(own)


SLOW = [pytest.param(*pair, marks=pytest.mark.slow) for pair in ((1, 6), (5, None), (16, None), (17, None), (20, 6))]


@pytest.mark.parametrize(("where", "eval_every"), [(1, None), (5, 6), (16, 6), (17, 6), (20, None), *SLOW])
def test_a_diverged_training_ends_as_that(where, eval_every, trials, device, tmp_path, monkeypatch):
    """A loss that is not finite is found at the next look: every 16 steps, before a score, at a stop, before a file."""
    seen = []

    class Spoil(Observer):
        def on_step(self, training):
            seen.append(training.step)
            if training.step == where - 1:
                training.trained[0].data.fill_(math.nan)

    budget = dataclasses.replace(trials.budget, steps=20, eval_every=eval_every)
    trial = trials.trials_at(64)[0].vary(budget=budget)
    if where == 1:
        monkeypatch.setattr(train, "build_optimizer", _spoiled(train.build_optimizer))
    row = train.train(trial, [Spoil()])
    looks = sorted({16, 20, *range(eval_every or 20, 21, eval_every or 20)})
    found = min(look for look in looks if look >= where)
    assert (row.status, row.score, row.predicted, row.steps) == ("diverged", None, (), found)
    after = "" if found == where else f", found after step {found}"
    assert row.error == f"training loss was nan after step {where}{after}"
    assert seen == list(range(1, found)), "observers are told of steps before it only, but for those not looked at"

    class Stop(Observer):
        def on_step(self, training):
            return training.step == where + 1

    if where + 1 < found:
        stopped = train.train(trial, [Spoil(), Stop()])
        assert (stopped.status, stopped.steps) == ("diverged", where + 1)
    files = Files.at(tmp_path)
    row = train.train(trial, [ResumeFile(files, trial, every_s=0.0), Spoil()])
    assert row.status == "diverged" and row.error.startswith(f"training loss was nan after step {where}")
    if (kept := ResumeFile(files, trial).read()) is not None:
        assert kept.step < where and all(t.isfinite().all() for t in kept.tensors.values() if t.is_floating_point())


def _spoiled(build):
    def built(trial, model, step):
        model.coordinates.data.fill_(math.nan)
        return build(trial, model, step)

    return built


def test_losses_are_looked_at_before_a_training_stops(trials, device):
    class Stop(Observer):
        def on_step(self, training):
            return True

        def on_end(self, training, observation):
            assert observation is None and not training.losses

    with pytest.raises(Stopped):
        train.train(trials.trials_at(64)[0], [Stop()])


def test_the_numbers_do_not_depend_on_when_losses_are_read(trials, monkeypatch):
    trial = trials.trials_at(64)[0].vary(method=Subspace(Random("fastfood")))
    expected = train.train(trial)
    monkeypatch.setattr(train, "launches", lambda device: True)
    assert train.train(trial).predicted == expected.predicted
