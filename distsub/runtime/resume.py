"""Resume states of running trials: checkpoints/<trial id>.safetensors of the results, deleted once the row is written.

A trial that starts again, in whatever process on whatever node, resumes from there and leaves the row that it would
have left uninterrupted. A resume state saves time and nothing else: a damaged or foreign one is not used, and one that
cannot be written is not missed.
"""

import contextlib
import time

import pyarrow as pa

from distsub.files import Files
from distsub.finetune.resume import ResumeState
from distsub.finetune.train import Observer, Training
from distsub.paths import RESUME
from distsub.records import Observation, Trial
from distsub.results import Store

LARGEST = 64 * 2**20
"""Bytes: larger states, those of full fine-tuning, are not written: three times the model, over and over."""

EVERY_S = 10.0
"""Default seconds between two writes."""

SHARE = 0.02
"""Of the time, that writing may take: on a slow storage states are written less often."""


class ResumeFile(Observer):
    """Resumes a training from the file that an earlier attempt left, and keeps that file up to date.

    Without `every_s`, the seconds between two writes, none is written, nor a state of more than `largest` bytes.
    """

    def __init__(
        self,
        files: Files,
        trial: Trial,
        every_s: float | None = EVERY_S,
        folder: str = RESUME,
        largest: float | None = None,
    ) -> None:
        self._files, self._trial, self._every_s = files, trial, every_s
        self._folder, self._largest = folder, LARGEST if largest is None else largest
        self._name = f"{folder}/{trial.id}.safetensors"
        self._state: ResumeState | None = None
        self._due = 0.0
        self._written = False

    def read(self) -> ResumeState | None:
        """Read what an earlier attempt left, to resume from it at the start; None if that cannot be used."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, pa.ArrowException):
            self._state = ResumeState.from_bytes(self._files.read(self._name), self._trial)
            self._written = True
        return self._state

    def discard(self) -> None:
        """Start over, whatever was read."""
        self._state = None

    def on_start(self, training: Training) -> None:
        """Resume from the state that was read."""
        self._due = time.monotonic() + (self._every_s or 0.0)
        if self._state is not None:
            with contextlib.suppress(ValueError):  # nothing was changed
                self._state.restore(training)
            self._state = None

    def on_step(self, training: Training) -> None:
        """Write the state, if that is due."""
        if time.monotonic() >= self._due:
            self._write(training)

    def on_end(self, training: Training, observation: Observation | None) -> None:
        """Write the state of a training that was stopped."""
        if observation is None:
            self._write(training)

    def _write(self, training: Training) -> None:
        if self._every_s is None or training.is_last:
            return
        training.read_losses()
        if training.status == "diverged":
            return
        began, state = time.monotonic(), ResumeState.of(training)
        if state.num_bytes > self._largest:
            self._every_s = None
            return
        with contextlib.suppress(OSError, pa.ArrowException):
            if not self._written:
                self._files.make(self._folder)
            self._files.put(self._name, state.to_bytes())
            self._written = True
        took = time.monotonic() - began
        self._due = began + took + max(self._every_s, took / SHARE)

    def remove(self) -> None:
        """Delete it, if there is one; on an object store, where that takes three requests, all go at the end."""
        if self._written and not self._files.puts_whole:
            with contextlib.suppress(OSError, pa.ArrowException):
                self._files.delete(self._name)


class StartedTrials:
    """Which trials may have left a resume state: an object store is asked once, not before every trial."""

    def __init__(self, store: Store) -> None:
        self._trials: set[str] | None = None
        if store.files.puts_whole:
            with contextlib.suppress(OSError, pa.ArrowException):
                self._trials = {name.partition(".")[0] for name in store.files.names(RESUME)}

    def note(self, trial: Trial) -> bool:
        """Note that a trial begins, and tell whether it may have begun before."""
        if self._trials is None:
            return True
        known = trial.id in self._trials
        self._trials.add(trial.id)
        return known


def clear(store: Store) -> None:
    """Delete all resume states: those of cancelled trials, once nothing is left to run."""
    with contextlib.suppress(OSError, pa.ArrowException):
        if store.files.puts_whole:
            if store.files.names(RESUME):
                store.files.delete_all(RESUME)
            return
        for name in store.files.names(RESUME):
            store.files.delete(f"{RESUME}/{name}")
