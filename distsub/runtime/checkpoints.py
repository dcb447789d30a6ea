"""Checkpoints of running trials: checkpoints/<trial id>.safetensors of the results, gone once the row is written.

A trial that is begun again, by whatever process on whatever node, goes on from there and leaves the row that it would
have left uninterrupted. A checkpoint saves time and nothing else: one that is damaged or foreign is not used, and one
that cannot be written is not missed.
"""

import contextlib
import time
from collections.abc import Generator

import pyarrow as pa

from distsub.files import Files
from distsub.finetune.checkpoint import Checkpoint
from distsub.finetune.train import Progress
from distsub.records import Observation, Trial
from distsub.results import Store

FOLDER = "checkpoints"

LARGEST = 64 * 2**20
"""Bytes: larger ones, those of full fine-tuning, are not kept. They would be three times the model, over and over."""

EVERY_S = 10.0
"""Seconds between two, unless told otherwise."""

SHARE = 0.02
"""Of the time, that writing checkpoints may take: on a slow storage they become rarer."""


class Kept:
    """The checkpoint of one trial."""

    def __init__(
        self,
        files: Files,
        trial: Trial,
        every_s: float | None = EVERY_S,
        folder: str = FOLDER,
        largest: float | None = None,
    ) -> None:
        """Address it.

        Args:
            files: Where the folder is, such as the results.
            trial: What is trained.
            every_s: Seconds between two; None keeps none.
            folder: Where it lies among the files.
            largest: Bytes of the largest that is kept; None is `LARGEST`.
        """
        self._files, self._trial, self._every_s = files, trial, every_s
        self._folder, self._largest = folder, LARGEST if largest is None else largest
        self._name = f"{folder}/{trial.id}.safetensors"
        self._due = time.monotonic() + (every_s or 0.0)
        self._written = False

    def read(self) -> Checkpoint | None:
        """Read what an earlier attempt has left, None if that is nothing that this trial can go on from."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, pa.ArrowException):
            checkpoint = Checkpoint.from_bytes(self._files.read(self._name), self._trial)
            self._written = True
            return checkpoint
        return None

    def offer(self, progress: Progress, *, now: bool = False) -> None:
        """Write where the training stands, if that is due or asked for."""
        began = time.monotonic()
        if self._every_s is None or progress.checkpoint is None or (began < self._due and not now):
            return
        checkpoint = progress.checkpoint()
        if checkpoint.num_bytes > self._largest:
            self._every_s = None
            return
        with contextlib.suppress(OSError, pa.ArrowException):
            if not self._written:
                self._files.make(self._folder)
            self._files.put(self._name, checkpoint.to_bytes())
            self._written = True
        took = time.monotonic() - began
        self._due = began + took + max(self._every_s, took / SHARE)

    def remove(self) -> None:
        """Delete it, if there is one; on an object store, where that takes three requests, all go at the end."""
        if self._written and not self._files.puts_whole:
            with contextlib.suppress(OSError, pa.ArrowException):
                self._files.delete(self._name)


def kept_by(kept: Kept, training: Generator[Progress, None, Observation]) -> Generator[Progress, None, Observation]:
    """Train to the end, keeping checkpoints; closing the generator keeps one too."""
    try:
        while True:
            progress = next(training)
            goes_on = progress.step < progress.steps
            if goes_on:
                kept.offer(progress)
            try:
                yield progress
            except GeneratorExit:
                if goes_on:
                    kept.offer(progress, now=True)
                raise
    except StopIteration as end:
        return end.value
    finally:
        training.close()


class Begun:
    """Which trials may have left a checkpoint, known to their driver.

    An object store is asked once, at the start: a look before every trial would be a request each.
    """

    def __init__(self, store: Store) -> None:
        self._trials: set[str] | None = None
        if store.files.puts_whole:
            with contextlib.suppress(OSError, pa.ArrowException):
                self._trials = {name.partition(".")[0] for name in store.files.names(FOLDER)}

    def note(self, trial: Trial) -> bool:
        """Note that a trial begins, and tell whether it may have begun before."""
        if self._trials is None:
            return True
        known = trial.id in self._trials
        self._trials.add(trial.id)
        return known


def clear(store: Store) -> None:
    """Delete all checkpoints: those of cancelled trials, once nothing is left to run."""
    with contextlib.suppress(OSError, pa.ArrowException):
        if store.files.puts_whole:
            if store.files.names(FOLDER):
                store.files.delete_all(FOLDER)
            return
        for name in store.files.names(FOLDER):
            store.files.delete(f"{FOLDER}/{name}")
