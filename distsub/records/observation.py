"""The record of what came out of a trial."""

from dataclasses import dataclass
from typing import Literal

from distsub.records.setup import Trial

Status = Literal["finished", "diverged", "error"]

TRUST: dict[str, int] = {"error": 0, "diverged": 1, "finished": 2}
"""Of two rows of one trial the one of higher trust counts: an error says least, a finished training everything."""


def is_final(status: str) -> bool:
    """Return whether a trial of this status needs no further try; one in error does."""
    return TRUST[status] > TRUST["error"]


@dataclass(frozen=True)
class Observation:
    """What one trial gave: its score, its per-example outcomes, its cost and its provenance.

    Attributes:
        trial: The trial.
        status: "finished"; "diverged" (loss or weights not finite: a result, it fails every threshold);
            "error" (crashed after its retries: no result).
        score: The task's metric after the last step, None unless finished.
        chance: The metric of always predicting the majority class, whatever a sweep takes as chance; 0 for
            correlations.
        metrics: Every metric of the task by name, the score's included.
        train_score: The task's metric on training rows, as many as were evaluated where there are as many; of full
            fine-tunings whose training was finished, None else.
        curve: (step, score) at each evaluation.
        predicted: Predicted class or value per evaluated example, in the evaluation set's order.
        target: True class or value per evaluated example.
        labels: What the classes are called, in their order; empty where they are called 0, 1, 2 or there are none.
        num_examples: Examples evaluated; 0 where they were not counted.
        steps: Optimiser steps taken.
        num_tokens: Training tokens seen, padding excluded.
        wall_s: Seconds in training and evaluation together.
        eval_s: Seconds of those in evaluation.
        peak_bytes: Peak resident set size (CPU) or allocated memory (GPU) during the trial.
        num_params: D, the parameters that the subspace spans (all for full fine-tuning).
        num_params_model: Parameters in the model, spanned or not.
        num_trained: Numbers trained in the subspace, scales included; num_params for full fine-tuning.
        num_trained_head: Numbers trained beside it in the head.
        num_scales: SAID scales among num_trained.
        step_size: Peak learning rate applied to the coordinates (or weights).
        error: One line, for "error" and "diverged".
        provenance: Package versions, weights hash, dataset hash, device, precision, threads, start time.
    """

    trial: Trial
    status: Status
    score: float | None = None
    chance: float | None = None
    metrics: tuple[tuple[str, float], ...] = ()
    train_score: float | None = None
    curve: tuple[tuple[int, float], ...] = ()
    predicted: tuple[float, ...] = ()
    target: tuple[float, ...] = ()
    labels: tuple[str, ...] = ()
    num_examples: int = 0
    steps: int = 0
    num_tokens: int = 0
    wall_s: float = 0.0
    eval_s: float = 0.0
    peak_bytes: int = 0
    num_params: int = 0
    num_params_model: int = 0
    num_trained: int = 0
    num_trained_head: int = 0
    num_scales: int = 0
    step_size: float = 0.0
    error: str | None = None
    provenance: tuple[tuple[str, str], ...] = ()
