import dataclasses
import math
import shutil
from itertools import pairwise

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from distsub.config import load_sweep
from distsub.errors import DimensionError
from distsub.finetune import train
from distsub.finetune.step_size import learned_step_size, step_size
from distsub.finetune.train import Observer, Stopped
from distsub.models import peft_model, pretrained
from distsub.records import Freeze, Model, Peft, Random, Subspace, label


@pytest.fixture
def trials(tiny_sweep):
    torch.set_num_threads(1)
    [search, *_] = load_sweep(tiny_sweep).searches()
    return search


def same(first, second):
    drop = {"wall_s": 0.0, "eval_s": 0.0, "peak_bytes": 0}
    return dataclasses.replace(first, **drop) == dataclasses.replace(second, **drop)


def test_the_same_trial_gives_the_same_observation(trials):
    trial = trials.trials_at(64)[1]
    first = train.train(trial)
    torch.manual_seed(999)  # whatever state another trial left behind
    assert same(first, train.train(trial))
    assert first.status == "finished" and first.steps == trial.budget.steps
    assert len(first.predicted) == len(first.target) == 128


METHODS = [
    Subspace(),
    Subspace(scales="layer", head="trained", embeddings="trained"),
    Subspace(Random("fastfood"), head="frozen", modules="mlp"),
    Freeze(),
    Peft("LORA", head="trained", step=0.01),
    Peft("LN_TUNING", head="frozen", step=0.01),
]


SLOW = [pytest.param(method, marks=pytest.mark.slow) for method in METHODS[::2]]


@pytest.mark.parametrize("method", [*METHODS[1::2], *SLOW], ids=label)
def test_trainings_of_one_process_share_their_base_model_and_leave_it_as_it_was(trials, method):
    trials = trials.vary(budget=dataclasses.replace(trials.budget, steps=4, eval_every=None))
    prepared = pretrained.prepare(trials.setup.model.name)
    pretrained._template.cache_clear()
    alone = train.train(trials.trials_at(64)[0])
    fresh = pretrained.build(prepared, 2, 0)
    base, again = (pretrained.build(prepared, 2, 0, again=True) for _ in range(2))
    assert base.bert.pooler.dense.weight.data_ptr() == again.bert.pooler.dense.weight.data_ptr()
    d, sized = None, None
    if isinstance(method, Peft):
        d, sized = peft_model.dims(fresh, method, (200,))[0][0], 1.0
    elif isinstance(method, Subspace):
        d, sized = 64, 1.0
    row = train.train(trials.trials_at(64)[0].vary(method=method, d=d, eta=sized))
    assert row.status == "finished" and pretrained._template.cache_info().misses == 1
    for name, parameter in base.named_parameters():
        assert torch.equal(parameter, fresh.get_parameter(name)), name
    train.train(trials.baseline[0])
    assert same(alone, train.train(trials.trials_at(64)[0]))


def test_counts_are_exact(trials):
    subspace = train.train(trials.trials_at(64)[0])
    assert (subspace.num_trained, subspace.num_scales, subspace.num_trained_head) == (64, 4, 0)
    full = train.train(trials.baseline[0])
    assert full.num_trained == full.num_params == subspace.num_params
    apart = trials.trials_at(64)[0].vary(method=Subspace(Random("partition"), head="trained"))
    beside = train.train(apart)
    assert (beside.num_trained, beside.num_scales, beside.num_trained_head) == (64, 0, 66)
    assert beside.num_params == full.num_params - 66
    part = train.train(apart.vary(method=Subspace(modules="attention")))
    assert 64 == part.num_trained < part.num_params < full.num_params
    models = {row.num_params_model for row in (subspace, full, beside, part)}
    assert models == {full.num_params}


def test_full_fine_tuning_learns_and_the_curve_is_recorded(trials):
    best = max((train.train(trial) for trial in trials.baseline), key=lambda row: row.score)
    assert best.score > 0.8 > best.chance == 0.5
    assert [step for step, _ in best.curve] == [10, 20, 30, 40] and best.curve[-1][1] == best.score
    assert dict(best.metrics)["accuracy"] == best.score and "f1" in dict(best.metrics)


def test_divergence_is_a_result(trials):
    wild = trials.trials_at(64)[0].vary(eta=1e38)
    row = train.train(wild)
    assert row.status == "diverged" and row.score is None and row.steps < wild.budget.steps
    assert "not finite" in row.error or "nan" in row.error or "inf" in row.error


@pytest.mark.parametrize("every", [None, 10])
def test_logits_that_are_not_finite_are_no_class(trials, tiny_model, tmp_path, every):
    """The embedding of a word that only evaluation has is infinite: the loss is finite, eleven rows' logits are not."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    state = load_file(folder / "model.safetensors")
    state["embeddings.word_embeddings.weight"][2 + 5] = math.inf  # w2
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    for split, rows in (("train", 64), ("validation", 40)):
        words = [
            f"{'good' if i % 2 else 'bad'} {'w2' if split == 'validation' and i < 11 else 'w3'}" for i in range(rows)
        ]
        lines = [f"{text},{i % 2}" for i, text in enumerate(words)]
        (tmp_path / f"{split}.csv").write_text("\n".join(["sentence,label", *lines]) + "\n")
    task = dataclasses.replace(trials.task, source=str(tmp_path))
    for trial in (trials.baseline[0], trials.trials_at(64)[0]):
        budget = dataclasses.replace(trial.budget, eval_every=every)
        row = train.train(trial.vary(model=Model(str(folder)), task=task, budget=budget))
        assert (row.status, row.score, row.predicted) == ("diverged", None, ())
        assert row.steps == (every or budget.steps)
        assert row.error == f"logits of 11 of 40 rows were not finite after step {row.steps}"


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 97])
@pytest.mark.parametrize("warmup", [0.0, 0.06, 0.3, 0.5, 0.99])
def test_no_step_is_lost_to_a_rate_of_zero(steps, warmup):
    rates = [train.learning_rate_factor(step, steps, warmup) for step in range(steps)]
    assert min(rates) > 0 and max(rates) == 1.0
    peak = rates.index(1.0)
    assert peak == min(round(warmup * steps), steps - 1)
    assert all(math.isclose(b - a, 1 / (peak + 1)) for a, b in pairwise(rates[: peak + 1]))
    assert all(math.isclose(a - b, 1 / (steps - peak)) for a, b in pairwise([*rates[peak:], 0.0]))
    assert train.learning_rate_factor(steps, steps, warmup) == 0


class Moved(Observer):
    """How far the number that moved most is from its start, by step."""

    def __init__(self):
        self.by_step = []

    def on_start(self, training):
        self._before = {name: p.detach().clone() for name, p in training.model.named_parameters()}

    def on_step(self, training):
        moved = ((p - self._before[name]).abs().max().item() for name, p in training.model.named_parameters())
        self.by_step.append(max(moved))


def test_the_first_step_of_a_training_without_warm_up_has_the_full_rate(trials):
    """Adam's first step moves every number that has a gradient by its rate."""
    trial = trials.baseline[0].vary(budget=dataclasses.replace(trials.budget, steps=1, warmup=0.0, eval_every=None))
    moved = Moved()
    assert train.train(trial, [moved]).status == "finished"
    assert moved.by_step[0] == pytest.approx(trial.learning_rate, rel=1e-3)


class Order(Observer):
    """Notes what it is told, and asks to stop after some step."""

    def __init__(self, name, heard, stop_at=None):
        self._name, self._heard, self._stop_at = name, heard, stop_at

    def _hear(self, training, what):
        self._heard.append((self._name, what, training.step, len(training.curve)))

    def on_start(self, training):
        self._hear(training, "start")

    def on_evaluation(self, training):
        self._hear(training, "evaluation")

    def on_step(self, training):
        self._hear(training, "step")
        return training.step == self._stop_at

    def on_end(self, training, observation):
        self._hear(training, observation and observation.status)


def test_observers_are_called_in_order(trials):
    trial, heard = trials.trials_at(64)[0], []
    trial = trial.vary(budget=dataclasses.replace(trial.budget, steps=3, eval_every=2))
    train.train(trial, [Order("a", heard), Order("b", heard, stop_at=3)])  # a stop at the last step changes nothing
    assert [told for name, *told in heard if name == "a"] == [
        ["start", 0, 0],
        ["step", 1, 0],
        ["evaluation", 2, 0],
        ["step", 2, 1],
        ["evaluation", 3, 1],
        ["step", 3, 2],
        ["finished", 3, 2],
    ]
    assert [name for name, *_ in heard] == ["a", "b"] * 7


def test_an_observer_may_stop_a_training_and_all_are_told(trials):
    heard = []
    with pytest.raises(Stopped):
        train.train(trials.trials_at(64)[0], [Order("a", heard, stop_at=3), Order("b", heard)])
    assert [told[:3] for told in heard[-4:]] == [("a", "step", 3), ("b", "step", 3), ("a", None, 3), ("b", None, 3)]


def test_evaluation_does_not_change_training(trials):
    trial = trials.trials_at(64)[0]
    rare = trial.vary(budget=dataclasses.replace(trial.budget, eval_every=None))
    assert train.train(trial).predicted == train.train(rare).predicted


def test_regression_trains_on_values(tiny_model, tmp_path, trials):
    lines = ["sentence,label"] + [f"{'good ' * (i % 5)}w{i % 30},{i % 5}.5" for i in range(200)]
    for name in ("train", "validation"):
        (tmp_path / f"{name}.csv").write_text("\n".join(lines) + "\n")
    task = dataclasses.replace(
        trials.task, name="value", source=str(tmp_path), num_labels=1, metric="pearson", validation="validation"
    )
    row = train.train(trials.baseline[1].vary(task=task))
    assert row.metrics and row.chance == 0.0 and row.score > 0.3
    assert row.train_score == pytest.approx(row.score)  # of the same rows


def test_standardised_values_are_learned_alike_in_any_unit(tiny_model, tmp_path, trials):
    """Targets a y + b give predictions a f + b: the same correlation, a squared times the error."""
    values, rows = [i % 5 / 4 for i in range(200)], {}
    for a, b in ((1, 0), (8, -64)):
        lines = ["sentence,label", *(f"{'good ' * (i % 5)}w{i % 30},{a * value + b}" for i, value in enumerate(values))]
        for name in ("train", "validation"):
            (tmp_path / f"{name}.csv").write_text("\n".join(lines) + "\n")
        fields = {"name": "value", "source": str(tmp_path), "num_labels": 1, "metric": "pearson"}
        task = dataclasses.replace(trials.task, **fields, validation="validation", standardise=True)
        for trial in (trials.baseline[1], trials.trials_at(64)[0]):
            rows.setdefault(trial.d, []).append(train.train(trial.vary(task=task)))
        plain = train.train(trials.trials_at(64)[0].vary(task=dataclasses.replace(task, standardise=False)))
    for one, other in rows.values():
        assert np.array(other.predicted) == pytest.approx(8 * np.array(one.predicted) - 64, abs=1e-3)
        assert other.score == pytest.approx(one.score, abs=1e-4)
        found, expected = dict(other.metrics)["mse"], 64 * dict(one.metrics)["mse"]
        assert found == pytest.approx(expected, rel=1e-3)
        truth = np.array(other.target)
        assert found == pytest.approx(float(np.mean((np.array(other.predicted) - truth) ** 2)))
        assert set(truth) == {-64.0, -62.0, -60.0, -58.0, -56.0}
    # As they are, most of such targets is their mean, which the first steps go to.
    assert dict(plain.metrics)["mse"] > 10 * dict(rows[64][1].metrics)["mse"]
    assert plain.trial.id != rows[64][1].trial.id


def test_the_gap_to_the_training_rows_is_known_of_full_fine_tuning_alone(trials, tmp_path):
    assert train.train(trials.trials_at(64)[0]).train_score is None
    for split, count in (("train", 301), ("validation", 100)):  # labels that only memory could know, and steps for none
        labels = "".join(f"w{i % 30},{i % 2}\n" for i in range(count))
        (tmp_path / f"{split}.csv").write_text(f"sentence,label\n{labels}")
    task = dataclasses.replace(trials.task, source=str(tmp_path), validation="validation")
    row = train.train(trials.baseline[0].vary(task=task))
    assert row.train_score == pytest.approx(row.score, abs=0.1)


def test_d_that_does_not_fit_is_refused(trials):
    with pytest.raises(DimensionError, match="4 scales"):
        train.train(trials.trials_at(8)[0].vary(d=4))


def test_step_size_matches_the_first_order_decrease():
    """|P^T g|_1 lr(d) equals |g|_1 lr_full for Gaussian gradients: to 5 % at these sizes, for both normalisations."""
    from distsub.subspace.assemble import build

    generator = torch.Generator().manual_seed(0)
    sizes = [4000, 4000, 4000, 4000]
    gradient = torch.randn(sum(sizes), generator=generator)
    for normalization in ("global", "per_tensor"):
        for d in (128, 512):
            projection = build("fastfood", sizes, d, 1, normalization, 1024)
            rate = step_size(1.0, 1e-4, sum(sizes), d, normalization, len(sizes))
            ratio = rate * projection.adjoint(gradient).abs().sum() / (1e-4 * gradient.abs().sum())
            assert math.isclose(ratio, 1.0, abs_tol=0.1), (normalization, d)


def test_a_learned_step_is_as_long_as_a_full_one():
    assert learned_step_size(1.0, 2e-5, 12 * 7_087_872, 12 * 32) == pytest.approx(0.0094, rel=0.01)
    # Adam moves every number by its rate; P keeps lengths.
    assert learned_step_size(0.5, 1e-4, 1000, 10) * 10**0.5 == pytest.approx(0.5 * 1e-4 * 1000**0.5)


def test_freezing_trains_what_lies_outside_the_layers(trials):
    trial = trials.trials_at(8)[0]
    head = train.train(trial.vary(d=1, method=Freeze(head="trained", embeddings="frozen")))
    more = train.train(trial.vary(d=1, method=Freeze(head="trained", embeddings="trained")))
    assert (head.num_trained, head.num_trained_head) == (0, 66)
    assert more.num_trained == 0 and more.num_trained_head > 66 and more.predicted != head.predicted
