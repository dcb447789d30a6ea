"""Masks: one name per set of positions, and edits that touch nothing else."""

import numpy as np
import pytest
import torch

from distsub.errors import ConfigError, DataError
from distsub.finetune import ablate
from distsub.finetune.train import Observer, train
from distsub.models import pretrained
from distsub.records import Ablation, Budget, Full, Model, Seeds, Setup, Task, Trial

NAME = "bert.encoder.layer.0.output.dense.weight"
POSITIONS = {NAME: np.array([0, 7, 100]), "bert.encoder.layer.1.output.LayerNorm.weight": np.arange(32)}


@pytest.fixture
def model(tiny_model):
    return pretrained.build(pretrained.prepare(tiny_model), 2, 0, private=True)


def test_a_masks_name_is_its_content():
    assert len(ablate.mask_id(POSITIONS)) == 16
    assert ablate.mask_id(dict(reversed(POSITIONS.items()))) == ablate.mask_id(POSITIONS)
    assert ablate.mask_id({**POSITIONS, NAME: np.array([0, 7, 101])}) != ablate.mask_id(POSITIONS)
    assert ablate.mask_id({"a": np.array([1])}) != ablate.mask_id({"b": np.array([1])})


def test_a_mask_is_read_back_and_checked():
    name, data = ablate.mask_id(POSITIONS), ablate.to_bytes(POSITIONS)
    found = ablate.from_bytes(data, name)
    assert set(found) == set(POSITIONS) and all(np.array_equal(found[key], POSITIONS[key]) for key in found)
    with pytest.raises(DataError, match="holds the positions of"):
        ablate.from_bytes(data, "0" * 16)
    with pytest.raises(DataError, match="cannot be read"):
        ablate.from_bytes(data[:-9], name)


def test_put_writes_the_positions_and_nothing_else(model):
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    kept = ablate.take(model, POSITIONS)
    ablate.put(model, POSITIONS)
    for name, p in model.named_parameters():
        changed = torch.nonzero((p != before[name]).reshape(-1)).squeeze(-1).tolist()
        assert changed == POSITIONS.get(name, np.zeros(0)).tolist()
    assert all(dict(model.named_parameters())[name].reshape(-1)[at].abs().sum() == 0 for name, at in POSITIONS.items())
    ablate.put(model, POSITIONS, kept)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


@pytest.mark.parametrize("mask", [{"no.such": np.array([0])}, {NAME: np.array([0, 32 * 64])}])
def test_a_mask_of_another_model_is_refused_before_anything_is_written(model, mask):
    before = model.state_dict()[NAME].clone()
    with pytest.raises(DataError, match="make it anew"):
        ablate.put(model, {NAME: np.array([1])} | mask if NAME not in mask else mask)
    assert torch.equal(model.state_dict()[NAME], before)


@pytest.fixture
def full(tiny_model, tiny_data):
    task = Task("tiny", tiny_data, ("sentence",))
    budget = Budget(steps=6, batch_size=8, max_length=16, precision="fp32", train_examples=64, eval_examples=64)
    return Trial(Setup(Model(tiny_model), task, Full(), 0.01, budget, Seeds()))


class Weights(Observer):
    """Copies the trained weights."""

    def on_end(self, training, observation):
        self.copied = {name: p.detach().clone() for name, p in training.model.named_parameters()}


def weights(trial, mask):
    caught, edits = Weights(), [] if mask is None else [ablate.WeightEdit(trial.ablation, mask)]
    seen = train(trial, [*edits, caught])
    return caught.copied, seen


def test_zero_starts_from_zero_and_trains_everything(full, model):
    mask = {NAME: np.arange(32 * 64)}
    ablated = full.vary(method=Full(Ablation("zero", ablate.mask_id(mask))))
    assert ablated.id != full.id and full.is_baseline and not ablated.is_baseline
    plain, _ = weights(full, None)
    trained, seen = weights(ablated, mask)
    assert seen.status == "finished" and seen.num_trained == sum(p.numel() for p in model.parameters())
    theta_0 = dict(model.named_parameters())[NAME]
    # AdamW moves an entry by about lr a step: from zero they cannot have come back to theta_0, and they did move.
    assert 0 < trained[NAME].abs().max() <= 6 * 1e-2 * 1.2 < (plain[NAME] - theta_0).abs().max() + theta_0.abs().max()


def test_hold_keeps_the_mask_at_zero_and_trains_the_rest(full, model):
    at, theta_0 = POSITIONS[NAME], dict(model.named_parameters())[NAME].detach().reshape(-1)
    ablated = full.vary(method=Full(Ablation("hold", ablate.mask_id({NAME: at}))))
    trained, seen = weights(ablated, {NAME: at})
    moved = (trained[NAME].view(-1) != theta_0).numpy()
    assert seen.status == "finished" and not trained[NAME].view(-1)[at].any()
    assert np.delete(moved, at).mean() > 0.9


def test_reset_is_the_fine_tuned_model_with_these_weights_put_back(full, model):
    ablated = full.vary(method=Full(Ablation("reset", ablate.mask_id(POSITIONS))))
    plain, _ = weights(full, None)
    reset, _ = weights(ablated, POSITIONS)
    theta_0 = dict(model.named_parameters())
    for name, p in plain.items():
        expected = p.clone()
        if name in POSITIONS:
            expected.view(-1)[POSITIONS[name]] = theta_0[name].detach().reshape(-1)[POSITIONS[name]]
        assert torch.equal(reset[name], expected), name


def test_reset_of_nothing_is_the_baseline(full):
    ablated = full.vary(method=Full(Ablation("reset", ablate.mask_id({}))))
    (plain, one), (reset, other) = weights(full, None), weights(ablated, {})
    assert one.score == other.score and all(torch.equal(plain[name], reset[name]) for name in plain)


@pytest.mark.parametrize("edit", ["zero", "hold", "reset"])
def test_an_ablation_is_not_trained_without_its_edit(full, edit):
    with pytest.raises(ConfigError, match=r"is an ablation: train it with its ablate\.WeightEdit"):
        train(full.vary(method=Full(Ablation(edit, ablate.mask_id(POSITIONS)))))
