"""Train one trial, from its record to its observation: one flat loop, and observers for all that happens beside it."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Literal

import torch
from torch import nn

from distsub import metrics
from distsub.errors import ConfigError
from distsub.finetune import batches, memory
from distsub.finetune.building import build_model, build_optimizer, learning_rate_factor
from distsub.finetune.determinism import Determinism, decisive, deterministic, provenance
from distsub.finetune.evaluation import Evaluation
from distsub.finetune.inputs import Inputs
from distsub.finetune.objective import objective
from distsub.finetune.precision import autocast_for
from distsub.models import peft_model
from distsub.records import Observation, Peft, Trial
from distsub.subspace.projection import launches

LOSSES_EVERY = 16
"""Steps after which the losses are read on a device, which the program waits for."""

Report = Callable[[int, int], bool | None]
"""Told of (steps taken, steps in all); True asks the training to stop."""


class Stopped(Exception):
    """An observer stopped a training before its end; there is no observation."""


class Observer:
    """Watches a training. Observers are called in their order; each method does nothing unless overridden."""

    def on_start(self, training: "Training") -> None:
        """Act on the model before its first step; may move `training` to where an earlier attempt stood."""

    def on_evaluation(self, training: "Training") -> None:
        """Act before the model is scored; may change its weights."""

    def on_step(self, training: "Training") -> bool | None:
        """Act after a step and its evaluation, if it has one; True stops the training unless this was the last step."""

    def on_end(self, training: "Training", observation: Observation | None) -> None:
        """Act at the end; without an observation the training was stopped. Not called where it crashed."""


class Progress(Observer):
    """Reports every step."""

    def __init__(self, report: Report) -> None:
        self._report = report

    def on_step(self, training: "Training") -> bool | None:
        """Report the step, and stop if asked to."""
        return self._report(training.step, training.trial.budget.steps)


def train(
    trial: Trial, observers: Sequence[Observer] = (), device: str = "cpu", inputs: Inputs | None = None
) -> Observation:
    """Train one trial and return its observation.

    The same trial on the same machine with the same number of threads gives the same observation, times aside; on CUDA
    by torch's deterministic algorithms, see `determinism`.
    A loss or score that is not finite ends the training with status "diverged": on a CPU at once, on a device after at
    most `LOSSES_EVERY` steps, and before weights are scored or kept; the observation says after which step it was.

    Args:
        trial: What to train. One with an ablation needs its `ablate.WeightEdit` among the observers.
        observers: Called in this order, see `Observer`.
        device: "cpu" or "cuda".
        inputs: What the trial reads; None takes its model and rows from their addresses.

    Returns:
        The observation; its score is the metric after the last step.

    Raises:
        DistsubError: The model, the data or d cannot be used.
        Stopped: An observer stopped the training.
    """
    inputs = inputs or Inputs(trial)
    assert inputs.trial.id == trial.id, "inputs of another trial"
    with deterministic(device) as determinism:
        training = Training(inputs, device, determinism)
        return _run(training, observers)


def _run(training: "Training", observers: Sequence[Observer]) -> Observation:
    trial = training.trial
    for observer in observers:
        observer.on_start(training)
    if trial.ablation is not None and not training.is_edited:
        raise ConfigError(f"trial {trial.id} is an ablation: train it with its ablate.WeightEdit among the observers")
    for rows in training.batches_left():
        training.take_step(rows)
        if training.status == "finished" and training.is_evaluated:
            for observer in observers:
                observer.on_evaluation(training)
            training.evaluate()
        if training.status == "diverged":
            break
        stops = [observer.on_step(training) for observer in observers]  # every one is told
        if any(stops):
            training.read_losses()
        if training.status == "diverged":
            break
        if any(stops) and training.step < trial.budget.steps:
            for observer in observers:
                observer.on_end(training, None)
            raise Stopped
    if trial.is_theta_0:
        training.evaluate()
    if trial.is_baseline and training.status == "finished":
        training.score_training_rows()
    observation = training.observation()
    for observer in observers:
        observer.on_end(training, observation)
    return observation


class Training:
    """A training while it runs.

    Attributes:
        trial: What is trained.
        inputs: What it reads.
        device: "cpu" or "cuda".
        model: What is trained.
        optimizer: Over the trained numbers.
        schedule: Of its learning rates.
        evaluation: Scores the model.
        step: Steps taken.
        num_tokens: Training tokens seen.
        curve: (step, score) of the evaluations so far.
        status: "finished" until it diverges.
        train_score: The score of training rows, see `score_training_rows`.
        losses: Of the last steps, not looked at yet: on a device, to read one is to wait for it.
        is_edited: Whether the ablation's weights have been edited, as they must be where the trial has one.
        decisive: What the numbers depend on beside the trial: hashes of weights and data, precision, versions.
    """

    def __init__(self, inputs: Inputs, device: str = "cpu", determinism: Determinism | None = None) -> None:
        """Load rows, model and optimizer; nothing is trained yet.

        Raises:
            DistsubError: One of them cannot be used.
        """
        self._began, self._memory = time.perf_counter(), memory.Meter(device)
        self.inputs, self.trial, self.device = inputs, inputs.trial, device
        trial, budget, weights, splits = inputs.trial, inputs.trial.budget, inputs.model, inputs.splits
        counted = trial.vary(task=splits.task)
        self.model, self._counts = build_model(counted, weights, device, inputs.snapshots)
        task, length, tokenizer, config = splits.task, budget.max_length, inputs.tokenizer, self.model.config
        content = [weights.content, splits.dataset_hash]
        self._rows = objective(tokenizer, task, splits.train, length, config, [*content, "train"])
        self.evaluation = Evaluation(
            task, length, tokenizer, splits.validation, device, config, [*content, "validation"]
        )
        self.optimizer = build_optimizer(counted, self.model, self._counts["step_size"])
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: learning_rate_factor(step, budget.steps, budget.warmup)
        )
        precision, self._autocast = autocast_for(budget.precision, device, weights.dtype)
        self._provenance = provenance(device, precision, weights.sha256, splits.dataset_hash)
        if isinstance(trial.method, Peft):
            self._provenance |= peft_model.provenance(self.model, trial.method)
        self.decisive = decisive(self._provenance)
        torch.manual_seed(trial.seeds.data)  # dropout; batches have a generator of their own
        self.model.train()
        self.step, self.num_tokens, self.curve = 0, 0, list[tuple[int, float]]()
        self.status: Literal["finished", "diverged"] = "finished"
        self.error: str | None = None
        self.train_score: float | None = None
        self.losses: list[torch.Tensor] = []
        self.is_edited = False
        self._determinism = determinism or Determinism("")

    @property
    def trained(self) -> list[nn.Parameter]:
        """The parameters that the optimizer changes, in its order."""
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    @property
    def wall_s(self) -> float:
        """Seconds spent so far, those of earlier attempts included."""
        return time.perf_counter() - self._began

    @property
    def is_last(self) -> bool:
        """Whether all steps of the budget are taken."""
        return self.step == self.trial.budget.steps

    @property
    def is_evaluated(self) -> bool:
        """Whether the model is scored after this step."""
        every = self.trial.budget.eval_every
        return self.is_last or bool(every and self.step % every == 0)

    def move_to(
        self, step: int, num_tokens: int, curve: Sequence[tuple[int, float]], wall_s: float, eval_s: float
    ) -> None:
        """Continue from the counts of an earlier attempt, whose weights are restored already."""
        self.step, self.num_tokens, self.curve = step, num_tokens, list(curve)
        self._began -= wall_s
        self.evaluation.wall_s = eval_s

    def batches_left(self) -> Iterator[list[int]]:
        """Draw the batches of the steps that are left, as row numbers."""
        budget = self.trial.budget
        order = batches.draw(self._rows.lengths, budget.batch_size, budget.steps, self.trial.seeds.data)
        return islice(order, self.step, None)

    def take_step(self, rows: list[int]) -> None:
        """Train on one batch."""
        budget = self.trial.budget
        batch = batches.send(self._rows.batch(rows), self.device)
        with self._autocast():
            loss = self._rows.loss(self.model, batch)
        self.losses.append(loss.detach())
        loss.backward()
        if budget.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(self.trained, budget.max_grad_norm)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.num_tokens += sum(self._rows.lengths[row] for row in rows)
        if not launches(torch.device(self.device)) or self.is_evaluated or self.step % LOSSES_EVERY == 0:
            self.read_losses()

    def read_losses(self) -> None:
        """Look at the losses of the last steps: at the first that is not finite the training has diverged.

        Whoever keeps the weights of a step calls this first. On a CPU every loss has been looked at.
        """
        values = torch.stack(self.losses).tolist() if self.losses else []
        self.losses.clear()
        for step, value in enumerate(values, self.step - len(values) + 1):
            if not math.isfinite(value):
                found = "" if step == self.step else f", found after step {self.step}"
                return self._diverge(f"training loss was {value} after step {step}{found}")

    def evaluate(self) -> None:
        """Score the model as it is now."""
        self.curve.append((self.step, score := self.evaluation.run(self.model, self._autocast)))
        if math.isfinite(score):
            return
        predicted = self.evaluation.predicted
        wrong = sum(not math.isfinite(value) for value in predicted)
        where = f"after step {self.step}" if self.step else "before any step"
        self._diverge(f"logits of {wrong} of {len(predicted)} rows were not finite {where}")

    def score_training_rows(self) -> None:
        """Score training rows at equal distances, as many as are evaluated, for the generalisation gap.

        Answers that are generated are left out: writing them costs more than a training.
        """
        splits, length = self.inputs.splits, self.trial.budget.max_length
        if (task := splits.task).metric == "exact_match":
            return
        count = min(len(splits.train), len(splits.validation))
        step = len(splits.train) // count
        part = splits.train.part(slice(None, count * step, step))
        scored = Evaluation(task, length, self.inputs.tokenizer, part, self.device, self.model.config)
        score = scored.run(self.model, self._autocast)
        self.train_score = score if math.isfinite(score) else None
        self.evaluation.wall_s += scored.wall_s

    def _diverge(self, error: str) -> None:
        self.status, self.error = "diverged", error

    def observation(self) -> Observation:
        """Put down what the training gave."""
        scored, task = self.status == "finished", self.inputs.splits.task
        return Observation(
            trial=self.trial,
            status=self.status,
            score=self.curve[-1][1] if scored else None,
            chance=metrics.chance(task, self.evaluation.targets),
            metrics=tuple(sorted(self.evaluation.metrics.items())) if scored else (),
            train_score=self.train_score,
            curve=tuple(self.curve) if scored else (),
            predicted=tuple(self.evaluation.predicted) if scored else (),
            target=self.evaluation.targets,
            labels=task.labels,
            num_examples=len(self.evaluation.targets),
            steps=self.step,
            num_tokens=self.num_tokens,
            wall_s=self.wall_s,
            eval_s=self.evaluation.wall_s,
            peak_bytes=self._memory.peak_bytes(),
            error=self.error,
            provenance=tuple(sorted((self._provenance | self._determinism.provenance()).items())),
            **self._counts,
        )
