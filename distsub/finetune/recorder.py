"""Record a full fine-tuning's snapshots while it is trained."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distsub.errors import OutputError, TrajectoryError
from distsub.files import Files
from distsub.finetune.train import Observer, Training
from distsub.finetune.trajectory import FORMAT, FORMAT_VERSION, META, read_meta, snapshot_steps
from distsub.models import pretrained
from distsub.models.tensor_files import DTYPES
from distsub.records import Observation, Recording, label


class Recorder(Observer):
    """Leaves a training's snapshots in a directory, as `trajectory` describes; the training itself is not changed."""

    def __init__(self, recording: Recording, path: str | os.PathLike[str]) -> None:
        self._recording, self._path = recording, Path(path)
        self._files = Files.at(path)
        self._steps: set[int] = set()
        self._theta_0: dict[str, Tensor] = {}
        self._meta: dict[str, Any] = {}

    def holds(self, step: int) -> bool:
        """Tell whether an earlier attempt left all snapshots up to a step, so that the training may resume there."""
        try:
            every = self._recording.every or read_meta(self._path)["steps_per_epoch"]
        except TrajectoryError:
            return False
        needed = list(range(every, step + 1, every))[: self._recording.checkpoints]
        return set(needed) <= {snapshot["step"] for snapshot in self._left_whole()}

    def on_start(self, training: Training) -> None:
        """Keep the snapshots before the training's step and delete all other files.

        Raises:
            TrajectoryError: The task has too few steps for the snapshots.
            OutputError: The directory cannot be written.
        """
        model, splits = training.inputs.model, training.inputs.splits
        self._steps = set(snapshot_steps(self._recording, len(splits.train)))
        seed, head_from = training.trial.seeds.head, training.trial.model.head_from
        with torch.random.fork_rng(devices=()):  # of the training, which must not change
            base = pretrained.build(model, splits.task.num_labels or 0, seed, head_from=head_from)
        self._theta_0 = {name: parameter.detach() for name, parameter in base.named_parameters()}
        self._meta = self._describe(training, type(base).__name__)
        with self._writing():
            self._path.mkdir(parents=True, exist_ok=True)
            kept = [snapshot for snapshot in self._left_whole() if snapshot["step"] <= training.step]
            self._meta["checkpoints"] = kept
            names = {snapshot["file"] for snapshot in kept}
            for file in (*self._path.glob("step-*.safetensors"), *self._path.glob(".*")):
                if file.name not in names:
                    file.unlink()

    def on_step(self, training: Training) -> None:
        """Take a snapshot, if one is due.

        Raises:
            OutputError: It cannot be written.
        """
        if training.step in self._steps:
            training.read_losses()
        if training.step in self._steps and training.status == "finished":
            with self._writing():
                self._meta["checkpoints"].append(self._save(training.step, training.model))
                self._write_meta()

    def on_end(self, training: Training, observation: Observation | None) -> None:
        """Mark the trajectory complete, or diverged; one that was stopped stays open.

        Raises:
            OutputError: It cannot be written.
        """
        if observation is None:
            return
        self._meta["curve"] = [list(point) for point in observation.curve]
        self._meta["score"], self._meta["status"] = observation.score, observation.status
        self._meta["complete"] = observation.status == "finished"
        with self._writing():
            self._write_meta()

    def _describe(self, training: Training, architecture: str) -> dict[str, Any]:
        """Give what trajectory.json says before there are snapshots."""
        recording, trial = self._recording, training.trial
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "id": recording.id,
            "complete": False,
            "content": "difference from theta_0",
            "model": trial.model.name,
            "revision": trial.model.revision,
            "weights_sha256": training.inputs.model.sha256,
            "architecture": architecture,
            "task": trial.task.name,
            "num_labels": training.inputs.splits.task.num_labels or 0,
            "method": label(trial.method),
            "trial_id": trial.id,
            "seeds": dataclasses.asdict(trial.seeds),
            "learning_rate": trial.learning_rate,
            "budget": dataclasses.asdict(trial.budget),
            "every": recording.every or "epoch",
            "steps_per_epoch": -(-len(training.inputs.splits.train) // trial.budget.batch_size),
            "dtype": recording.dtype,
            "planned": len(self._steps),
            "checkpoints": [],
            "parameters": [[name, list(tensor.shape)] for name, tensor in self._theta_0.items()],
            "curve": [],
        }

    def _left_whole(self) -> list[dict[str, Any]]:
        """List the snapshots that an earlier attempt left whole."""
        try:
            snapshots = read_meta(self._path)["checkpoints"]
        except TrajectoryError:
            return []
        files = [(self._path / snapshot["file"], snapshot) for snapshot in snapshots]
        return [each for file, each in files if file.is_file() and file.stat().st_size == each["bytes"]]

    @torch.no_grad()
    def _save(self, step: int, model: nn.Module) -> dict[str, Any]:
        """Write one snapshot, whole or not at all, and give its entry in trajectory.json."""
        from safetensors.torch import save

        dtype = DTYPES[self._recording.dtype]
        update = {
            name: (parameter.detach().cpu() - self._theta_0[name]).to(dtype).contiguous()
            for name, parameter in model.named_parameters()
        }
        content, file = save(update, {"format": "pt"}), f"step-{step:06d}.safetensors"
        self._files.put(file, content)
        return {
            "file": file,
            "step": step,
            "epoch": step / self._meta["steps_per_epoch"],
            "bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
        }

    def _write_meta(self) -> None:
        self._files.put(META, (json.dumps(self._meta, indent=1) + "\n").encode())

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = error.strerror or error
            raise OutputError(f"trajectory {self._path} cannot be written: {reason}") from error
