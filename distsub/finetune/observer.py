"""Observers of a training: what happens beside it, and may change or stop it."""

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from distsub.finetune.train import Training
    from distsub.records import Observation

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

    def on_end(self, training: "Training", observation: "Observation | None") -> None:
        """Act at the end; without an observation the training was stopped. Not called where it crashed."""


class Progress(Observer):
    """Reports every step."""

    def __init__(self, report: Report) -> None:
        self._report = report

    def on_step(self, training: "Training") -> bool | None:
        """Report the step, and stop if asked to."""
        return self._report(training.step, training.trial.budget.steps)
