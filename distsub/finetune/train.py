"""Train one trial, from its record to its observation."""

import json
import math
import platform
import sys
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import islice
from typing import Any, TypeVar

import torch
from torch import nn

from distsub import metrics
from distsub.errors import DataError, DistsubError
from distsub.finetune import ablate, batches, data, memory, pretrained
from distsub.finetune.checkpoint import Checkpoint, restore, resume_schedule, tensors_of
from distsub.finetune.precision import Autocast, autocast_for
from distsub.finetune.step_size import SCALE_STEP, learned_step_size, step_size
from distsub.records import Freeze, Full, Learned, Observation, Theta0, Trial
from distsub.subspace import adapter, layout
from distsub.subspace.model import SubspaceModel
from distsub.subspace.trajectory import Snapshots

T = TypeVar("T")

EVAL_BATCH = 128
"""Rows per evaluation batch; large, because a unit's weights are made once a batch."""


@dataclass(frozen=True)
class Progress:
    """Where a training stands after a step.

    Attributes:
        step: Steps taken.
        steps: Steps in the budget.
        loss: Training loss of the step.
        score: The task's metric, if it was evaluated after this step.
        checkpoint: Gives what the rest of the training depends on, until the training goes on.
    """

    step: int
    steps: int
    loss: float
    score: float | None = None
    checkpoint: Callable[[], Checkpoint] | None = None


def train(
    trial: Trial,
    device: str = "cpu",
    on_trained: Callable[[nn.Module], None] | None = None,
    on_step: Callable[[int, nn.Module], None] | None = None,
    disabled: ablate.Positions | None = None,
    resume: Checkpoint | None = None,
    snapshots: Snapshots | None = None,
) -> Generator[Progress, None, Observation]:
    """Train one trial, yielding after every step, and return its observation.

    The same trial on the same machine with the same number of threads gives the same observation, times aside.
    A loss that is not finite ends the training with status "diverged"; closing the generator ends it with no row.

    Args:
        trial: What to train.
        device: "cpu" or "cuda".
        on_trained: Given the model when it is trained, before the observation is returned; not when it diverged.
        on_step: Given the number of steps taken and the model after each step.
        disabled: The mask that an ablated trial names.
        resume: Where an earlier attempt at this trial stood; one of other weights or data is not used.
        snapshots: What the trial's learned subspace is made of, where it has one (`trajectory.snapshots`).

    Yields:
        Progress after each step.

    Returns:
        The observation; its score is the metric after the last step.

    Raises:
        DistsubError: The model, the data or d cannot be used.
    """
    began, memory_meter = time.perf_counter(), memory.Meter(device)
    budget, task = trial.budget, trial.task
    prepared = pretrained.prepare(trial.model.name, trial.model.revision)
    tokenizer = pretrained.tokenizer(prepared)
    splits = data.load(task, budget)
    _check_content(trial, prepared.content, splits.dataset_hash)
    task = replace(splits.task, content=task.content)
    examples = batches.tokenize(tokenizer, splits.train, budget.max_length)
    evaluation = Evaluation(trial.vary(task=task), tokenizer, splits.validation, device)
    model, record = build_model(trial.vary(task=task), prepared, device, snapshots)
    edit = trial.ablation.edit if trial.ablation else None
    theta_0 = ablate.take(model, disabled or {})
    if edit in ("zero", "hold"):
        ablate.put(model, disabled or {})
    optimizer = build_optimizer(trial, model, record["step_size"])
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_factor(step, budget.steps, budget.warmup)
    )
    precision, autocast = autocast_for(budget.precision, device)
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    torch.manual_seed(trial.seeds.data)  # dropout; batches have a generator of their own
    model.train()
    lengths = [len(example["input_ids"]) for example in examples]
    curve: list[tuple[int, float]] = []
    num_eval, chance = len(splits.validation.labels), metrics.chance(task, splits.validation.labels)
    num_tokens, status, error, step, done = 0, "finished", None, 0, 0
    provenance = _provenance(device, precision, prepared.sha256, splits.dataset_hash)
    inputs = json.dumps([(key, value) for key, value in provenance if key in _DECISIVE])
    if resume is not None and (resume.trial_id, resume.inputs) == (trial.id, inputs):
        restore(resume.tensors, trained, optimizer, device)
        resume_schedule(schedule, resume.step)
        done, num_tokens, curve = resume.step, resume.num_tokens, list(resume.curve)
        began, evaluation.wall_s = began - resume.wall_s, resume.eval_s

    def checkpoint() -> Checkpoint:
        spent, tensors = time.perf_counter() - began, tensors_of(trained, optimizer, device)
        return Checkpoint(trial.id, inputs, step, num_tokens, spent, evaluation.wall_s, tuple(curve), tensors)

    order = batches.draw(lengths, budget.batch_size, budget.steps, trial.seeds.data)
    for step, indices in enumerate(islice(order, done, None), done + 1):
        batch = batches.collate(tokenizer, examples, indices)
        labels = torch.tensor([splits.train.labels[i] for i in indices])
        labels = labels.float() if task.num_labels == 1 else labels.long()
        with autocast():
            loss = model(**{k: v.to(device) for k, v in batch.items()}, labels=labels.to(device)).loss
        loss.backward()
        if budget.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(trained, budget.max_grad_norm)
        optimizer.step()
        if edit == "hold":
            ablate.put(model, disabled or {})
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        num_tokens += sum(lengths[i] for i in indices)
        value = loss.item()
        if not math.isfinite(value):
            status, error = "diverged", f"training loss was {value} after step {step}"
            break
        if on_step is not None:
            on_step(step, model)
        score = None
        if step == budget.steps and edit == "reset":
            ablate.put(model, disabled or {}, theta_0)
        if step == budget.steps or (budget.eval_every and step % budget.eval_every == 0):
            score = evaluation.run(model, autocast)
            curve.append((step, score))
            if not math.isfinite(score):
                wrong = sum(not math.isfinite(value) for value in evaluation.predicted)
                status, error = "diverged", f"logits of {wrong} of {num_eval} rows were not finite after step {step}"
                break
        yield Progress(step, budget.steps, value, score, checkpoint)
    if trial.is_theta_0:
        curve.append((0, evaluation.run(model, autocast)))
        if not math.isfinite(curve[-1][1]):
            status, error = "diverged", "logits of the untouched model were not finite"
    scored = status != "diverged"
    if scored and on_trained is not None:
        on_trained(model)
    return Observation(
        trial=trial,
        status=status,  # type: ignore[arg-type]
        score=curve[-1][1] if scored else None,
        chance=chance,
        metrics=tuple(sorted(evaluation.metrics.items())) if scored else (),
        curve=tuple(curve) if scored else (),
        predicted=tuple(evaluation.predicted) if scored else (),
        target=tuple(float(label) for label in splits.validation.labels),
        labels=task.labels,
        num_examples=num_eval,
        steps=step,
        num_tokens=num_tokens,
        wall_s=time.perf_counter() - began,
        eval_s=evaluation.wall_s,
        peak_bytes=memory_meter.peak_bytes(),
        error=error,
        provenance=provenance,
        **record,
    )


_DECISIVE = ("weights_sha256", "dataset_sha256", "precision", "distsub", "torch", "transformers")
"""Of the provenance, what must be the same for a training to go on from a checkpoint."""


class Evaluation:
    """Scores a model on the fixed evaluation rows and keeps the last predictions."""

    def __init__(self, trial: Trial, tokenizer: Any, split: data.Split, device: str) -> None:
        """Tokenize the rows once, longest first so that padding is small."""
        self._task, self._tokenizer, self._device = trial.task, tokenizer, device
        self._targets = [float(label) for label in split.labels]
        self._examples = batches.tokenize(tokenizer, split, trial.budget.max_length)
        self._order = sorted(range(len(split)), key=lambda i: -len(self._examples[i]["input_ids"]))
        self.predicted: Sequence[float] = ()
        self.metrics: dict[str, float] = {}
        self.wall_s = 0.0

    @torch.no_grad()
    def run(self, model: nn.Module, autocast: Autocast) -> float:
        """Evaluate, without touching the random state of training."""
        began = time.perf_counter()
        model.eval()
        predicted = [0.0] * len(self._examples)
        for first in range(0, len(self._order), EVAL_BATCH):
            indices = self._order[first : first + EVAL_BATCH]
            batch = batches.collate(self._tokenizer, self._examples, indices)
            with autocast():
                logits = model(**{k: v.to(self._device) for k, v in batch.items()}).logits.float()
            values = logits.squeeze(-1) if self._task.num_labels == 1 else logits.argmax(-1).float()
            values = values.masked_fill(~logits.isfinite().all(-1), math.nan)  # the argmax of nan is a class
            for i, value in zip(indices, values.tolist(), strict=True):
                predicted[i] = float(value)
        model.train()
        self.predicted = predicted
        self.metrics = metrics.evaluate(self._task, predicted, self._targets)
        self.wall_s += time.perf_counter() - began
        return self.metrics[self._task.metric]


def build_model(
    trial: Trial, prepared: pretrained.Prepared, device: str = "cpu", snapshots: Snapshots | None = None
) -> tuple[nn.Module, dict[str, Any]]:
    """Build the model that a trial trains, and the counts that its row reports.

    Raises:
        DimensionError: d does not fit the model.
        ConfigError: The method is inconsistent, or needs snapshots.
        TrajectoryError: The snapshots are of another layout.
    """
    method = trial.method
    full = isinstance(method, Full)
    labels = trial.task.num_labels or data.num_labels(trial.task)
    base = pretrained.build(prepared, labels, trial.seeds.head, full, trial.model.head_from).to(device)
    adapter.name_labels(base, trial.task.labels)
    if full:
        size = sum(parameter.numel() for parameter in base.parameters())
        return base, {"num_params": size, "num_trained": size, "step_size": trial.learning_rate}
    if isinstance(method, Theta0):
        return base, {"num_params": sum(parameter.numel() for parameter in base.parameters()), "step_size": 0.0}
    if isinstance(method, Freeze):
        apart = layout.outside(base.requires_grad_(False), method.head, method.embeddings)
        beside = layout.free(base, {name for name, policy in apart.items() if policy == "trained"})
        return base, {"num_trained_head": sum(p.numel() for p in beside.values()), "step_size": 0.0}
    assert trial.d is not None and trial.eta is not None, "a subspace trial has d and eta"
    projection = method.projection
    model = SubspaceModel(base, trial.d, method, trial.seeds.projection, snapshots=snapshots)
    size, num_coordinates = model.num_params, model.num_coordinates
    if method.step is not None:
        step = trial.eta * method.step
    elif isinstance(projection, Learned):
        step = learned_step_size(trial.eta, trial.learning_rate, size, num_coordinates)
    else:
        norm = projection.normalization
        step = step_size(trial.eta, trial.learning_rate, size, num_coordinates, norm, len(model.entries))
    return model, {
        "num_params": model.num_params,
        "num_trained": model.num_trained,
        "num_trained_head": model.num_trained_head,
        "num_scales": model.scales.numel(),
        "step_size": step,
    }


def build_optimizer(trial: Trial, model: nn.Module, step: float) -> torch.optim.AdamW:
    """Build AdamW over the trained numbers, each kind with its own step."""
    decay = trial.budget.weight_decay
    if not isinstance(model, SubspaceModel):
        rate = trial.learning_rate if isinstance(trial.method, Freeze) else step
        return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate, weight_decay=decay)
    assert trial.eta is not None, "a subspace trial has an eta"
    groups: list[dict[str, Any]] = [{"params": [model.coordinates], "lr": step, "weight_decay": 0.0}]
    if model.scales.numel():
        groups.append({"params": [model.scales], "lr": trial.eta * SCALE_STEP, "weight_decay": 0.0})
    if model.head:
        groups.append({"params": list(model.head.values()), "lr": trial.learning_rate, "weight_decay": decay})
    return torch.optim.AdamW(groups)


def _check_content(trial: Trial, weights: str, rows: str) -> None:
    """Refuse files that have changed since the sweep was checked: their row would be filed under what they were."""
    for what, asked, found in (
        (f"model {trial.model.name}", trial.model.content, weights),
        (f"task {trial.task.name} ({trial.task.source})", trial.task.content, rows),
    ):
        if asked not in (None, found):
            raise DataError(
                f"{what} is not what the sweep was checked with (content {asked[:12]}, now {found[:12]}): put back "
                "what it was, or run a new sweep with another --out"
            )


def learning_rate_factor(step: int, steps: int, warmup: float) -> float:
    """Give the share of the peak learning rate at which a step is taken.

    Rises linearly over the first w = min(round(warmup * steps), steps - 1) steps, is 1 at the next and falls linearly
    from there. No step has a rate of 0, and without warm-up the first one has the full rate.

    Args:
        step: The step, from 0.
        steps: Steps in all.
        warmup: Share of them in which the rate rises.

    Returns:
        (step + 1) / (w + 1) before step w, (steps - step) / (steps - w) from it on.

    >>> [learning_rate_factor(step, 4, 0.25) for step in range(4)]
    [0.5, 1.0, 0.6666666666666666, 0.3333333333333333]
    """
    rising = min(round(warmup * steps), steps - 1)
    if step < rising:
        return (step + 1) / (rising + 1)
    return (steps - step) / (steps - rising)  # a scheduler asks once more after the last step: 0


def _provenance(device: str, precision: str, weights: str, dataset: str) -> tuple[tuple[str, str], ...]:
    name = torch.cuda.get_device_name() if device.startswith("cuda") else platform.machine()
    return tuple(
        sorted(
            {
                "dataset_sha256": dataset,
                "device": device,
                "device_name": name,
                "distsub": version("distsub"),
                "precision": precision,
                "python": sys.version.split()[0],
                "threads": str(torch.get_num_threads()),
                "torch": torch.__version__,
                "transformers": version("transformers"),
                "weights_sha256": weights,
            }.items()
        )
    )


def run(trial: Trial, device: str = "cpu") -> Observation:
    """Train a trial to its end in one call."""
    return finish(train(trial, device))


def finish(steps: Generator[Any, Any, T]) -> T:
    """Take all steps of a generator, and return what it returns."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def failed(trial: Trial, error: BaseException) -> Observation:
    """Record a trial that crashed: one line of why, and no score."""
    text = str(error).strip().splitlines()
    kind = "" if isinstance(error, DistsubError) else f"{type(error).__name__}: "
    return Observation(trial=trial, status="error", error=(kind + (text[0] if text else "no message"))[:500])
