"""transformers' Trainer on a held model: what it keeps, saves, resumes and restores; it needs accelerate."""

import random
import runpy
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("accelerate")

import datasets
from transformers import AutoModelForSequenceClassification, Trainer, TrainingArguments

from distsub.records import Subspace
from distsub.subspace.model import SubspaceModel

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "trainer.py"


def rows(number: int, seed: int) -> datasets.Dataset:
    """Nine tokens of which the second decides, and a column that no model takes."""
    draw = random.Random(seed)
    return datasets.Dataset.from_list(
        [
            {"input_ids": [2, 45 + i % 2, *draw.choices(range(5, 45), k=6), 3], "labels": i % 2, "note": "x"}
            for i in range(number)
        ]
    )


def held(tiny_model: str, seed: int = 0, **fields) -> SubspaceModel:
    torch.manual_seed(0)
    base = AutoModelForSequenceClassification.from_pretrained(tiny_model)
    return SubspaceModel(base, 60, Subspace(scales="layer", **fields), seed)


def trainer(model, folder, steps: int = 6, **settings) -> Trainer:
    every = {"eval_strategy": "steps", "eval_steps": steps // 3, "save_steps": steps // 3}
    usual = {"report_to": [], "disable_tqdm": True, "use_cpu": True, "learning_rate": 1.0, "max_grad_norm": 0.0}
    usual |= {"per_device_train_batch_size": 16}
    return Trainer(
        model,
        TrainingArguments(str(folder), max_steps=steps, **every, **usual, **settings),
        train_dataset=rows(128, 0),
        eval_dataset=rows(64, 1),
        compute_metrics=lambda p: {"accuracy": float((p.predictions.argmax(-1) == p.label_ids).mean())},
    )


def numbers(model) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.trained().items()}


def loss_of(model, folder, **settings) -> float:
    return trainer(model, folder, **settings).evaluate()["eval_loss"]


def test_it_learns(tiny_model, tmp_path):
    model = held(tiny_model)
    before = loss_of(model, tmp_path)
    run = trainer(model, tmp_path, steps=30)
    run.train()
    assert run.evaluate()["eval_accuracy"] > 0.8 and run.evaluate()["eval_loss"] < 0.8 * before


@pytest.mark.parametrize("policies", [{}, {"head": "trained"}])
def test_it_trains_saves_little_and_resumes_to_the_bit(tiny_model, tmp_path, policies):
    first = held(tiny_model, **policies)
    run = trainer(first, tmp_path)
    assert run.label_names == ["labels"]
    run.train()
    found = run.evaluate()
    predicted = run.predict(rows(64, 1))
    assert predicted.predictions.shape == (64, 2) and predicted.metrics["test_loss"] == found["eval_loss"]
    assert found["eval_loss"] == pytest.approx(loss_of(first.merge(), tmp_path), abs=1e-5)
    kept = tmp_path / "checkpoint-4" / "model.safetensors"
    assert kept.stat().st_size < 4 * first.get_nb_trainable_parameters()[0] + 1500
    second = held(tiny_model, **policies)
    trainer(second, tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    for name, tensor in numbers(first).items():
        assert torch.equal(numbers(second)[name], tensor)


def test_the_best_model_is_loaded_at_the_end(tiny_model, tmp_path):
    model = held(tiny_model)
    run = trainer(model, tmp_path, load_best_model_at_end=True, metric_for_best_model="loss", greater_is_better=True)
    run.train()
    worst, step = max((log["eval_loss"], log["step"]) for log in run.state.log_history if "eval_loss" in log)
    assert run.state.best_metric == worst and step < 6
    assert run.evaluate()["eval_loss"] == pytest.approx(worst, abs=1e-6)
    assert run.state.best_model_checkpoint.endswith(f"-{step}")


@pytest.mark.parametrize(
    "settings", [{"activation_checkpointing": True}, {"gradient_accumulation_steps": 2}, {"bf16": True}], ids=str
)
def test_its_options(tiny_model, tmp_path, settings):
    model = held(tiny_model)
    run = trainer(model, tmp_path, **settings)
    run.train()
    assert numbers(model)["coordinates"].abs().min() > 0  # each was trained
    assert run.evaluate()["eval_loss"] == pytest.approx(loss_of(model.merge(), tmp_path, **settings), abs=1e-5)


def test_a_checkpoint_of_other_settings_is_refused(tiny_model, tmp_path):
    run = trainer(held(tiny_model), tmp_path)
    run.train()
    other = trainer(held(tiny_model, seed=1), tmp_path)
    with pytest.raises(ValueError, match="projection_seed = 0, here 1"):
        other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))


def test_the_example_runs(tiny_model, tiny_data, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), tiny_model, tiny_data, "sentence", "30"])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    printed = capsys.readouterr().out
    assert "logits after loading the adapter: identical" in printed
    assert "logits of the merged model: equal" in printed
