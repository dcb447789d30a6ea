"""A Tune trial that trains one of ours. Its process is reused for the next."""

import socket
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from distsub.runtime import cluster  # isort: skip  # sets Ray's environment before Ray is imported

from ray import tune

from distsub.errors import DataError, OutOfMemoryError, UnavailableError
from distsub.finetune.train import Report, Stopped
from distsub.records import Observation, Trial
from distsub.results.schema import setup_from_json
from distsub.runtime.worker import REPORTED, WorkerConfig, perform

STEP_S = 2.0
"""Seconds between two results that Tune hears of a training: how long a cancelled trial may still run."""


class Background:
    """A training in a thread of its own; `progress` is (steps taken, steps in all) as last reported."""

    def __init__(self, train: Callable[[Report], Observation], steps: int) -> None:
        self.progress = 0, steps
        self._observation: Observation | None = None
        self._error: BaseException | None = None
        self._stops = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(train,), name="training", daemon=True)
        self._thread.start()

    def _run(self, train: Callable[[Report], Observation]) -> None:
        try:
            self._observation = train(self._report)
        except Stopped:
            pass
        except BaseException as error:
            self._error = error

    def _report(self, step: int, steps: int) -> bool:
        self.progress = step, steps
        return self._stops.is_set()

    def wait(self, seconds: float) -> Observation | None:
        """Wait for the end; None if the training still runs then.

        Raises:
            Exception: What the training raised.
        """
        self._thread.join(seconds)
        if self._error is not None:
            raise self._error
        return self._observation

    def stop(self) -> None:
        """Stop the training after its current step, and wait for that."""
        self._stops.set()
        self._thread.join()


class TrainTrial(tune.Trainable):
    """A Tune trial that trains one of ours."""

    def setup(self, config: dict[str, Any], worker: WorkerConfig) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Take a trial on. Tune writes `config` to files; `worker`, with credentials perhaps, comes by Ray's store."""
        self._worker = worker
        self._take(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take another trial on in the same process."""
        self.cleanup()
        self._take(new_config)
        return True

    def _take(self, config: dict[str, Any]) -> None:
        self.config = {}  # Tune would send it back with every result and keep it twice
        self._training: Background | None = None
        self._trial, needs = Trial(setup_from_json(config["setup"]), config["d"], config["eta"]), config["needs"]
        self._on_gpu = needs["GPU"] > 0
        share = needs["GPU"] if self._on_gpu else 1.0
        self._own = replace(self._worker.within(needs["CPU"]), resumes=config["resumes"], gpu_share=share)

    def _train(self, report: Report) -> Observation:
        return perform(self._trial, self._own, report)

    def step(self) -> dict[str, Any]:
        """Train for a moment; the last result carries the verdict and is flagged final."""
        if self._training is None:
            if cluster.drains():  # nothing is lost yet: hand the trial back, to be started elsewhere
                return {"done": True, "final": False, "moved": True}
            self._training = Background(self._train, self._trial.budget.steps)
        try:
            observation = self._training.wait(STEP_S)
        except OutOfMemoryError as error:
            if not self._on_gpu:
                raise  # of a host's memory others may have had too much: tried again as after any crash
            return {"done": True, "final": False, "short": str(error)}
        except (DataError, UnavailableError) as error:
            raise type(error)(f"node {socket.gethostname()}: {error}") from None
        if observation is not None:
            return {"done": True, "final": True, "reported": [getattr(observation, name) for name in REPORTED]}
        step, steps = self._training.progress
        return {"final": False, "at_step": step, "of_steps": steps}

    def cleanup(self) -> None:
        """Stop a training that was cancelled."""
        if self._training is not None:
            self._training.stop()

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Keep nothing: a trial that is lost runs again."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Restore nothing."""
