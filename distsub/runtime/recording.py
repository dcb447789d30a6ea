"""Trajectories in a results directory: recorded when a trial needs them, or all at once, and never twice.

The first process that needs a trajectory records it under a lock; the others wait. It leaves the row of its fine-tuning
too, so that a recorded baseline is trained once. A recording that was cut short resumes on this machine. Those of
results on an object store are recorded in this machine's cache and copied from and to it, since snapshots are mapped
from local files; there a claim among the results makes the other machines wait too.
"""

import contextlib
import fcntl
import hashlib
import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from distsub import paths
from distsub.cache import cache_directory
from distsub.config.sweep import Sweep
from distsub.errors import ConfigError, DistsubError, OutputError, TrajectoryError, first_line
from distsub.files import Files
from distsub.finetune import trajectory
from distsub.finetune.inputs import Inputs
from distsub.finetune.recorder import Recorder
from distsub.finetune.train import Progress, Report, Stopped, train
from distsub.models import weight_files
from distsub.records import Imported, Observation, Recording, Trial
from distsub.results import Store
from distsub.runtime.claims import Claim
from distsub.runtime.resume import EVERY_S, ResumeFile

WAIT_S = 1.0
"""Seconds between looks at a trajectory that another process is recording."""

LOOKS = 5
"""Times as many, where it is another machine: a look is a few requests."""


@dataclass(frozen=True)
class Trajectories:
    """The trajectories of a results directory.

    Attributes:
        store: The results, where the rows of the fine-tunings go too.
        device: Where fine-tunings run.
        checkpoint_s: Seconds between resume states of one.
        report: Called at every step, with step 0 while another process records; where it asks for an end, `Stopped` is
            raised.
        inputs: Whether models and rows that have left their address are taken from the inputs among the results.
    """

    store: Store
    device: str = "cpu"
    checkpoint_s: float | None = EVERY_S
    report: Report = lambda step, steps: None
    inputs: bool = True

    @cached_property
    def root(self) -> Path:
        """The local directory whose trajectories/ holds the results' trajectories."""
        files = self.store.files
        if files.is_local:
            return Path(files.root)
        return cache_directory() / "results" / hashlib.sha256(self.store.uri.encode()).hexdigest()[:16]

    def provide(self, trial: Trial) -> Inputs:
        """Give what a trial reads. The trajectories of its subspace that are missing are recorded first, or copied.

        Raises:
            TrajectoryError: A trajectory cannot be recorded or used.
            OutputError: It cannot be written.
        """
        for imported in trial.imported:
            self.place(imported)
        for recording in trial.recordings:
            self.ensure(recording)
        return Inputs(trial, self.store.files if self.inputs else None, self.root)

    def place(self, imported: Imported) -> None:
        """Put an imported trajectory among the results, unless it is there, for every node and for when it has moved.

        Raises:
            TrajectoryError: It has changed since the sweep was checked, or a file is damaged.
            OutputError: The results cannot be written.
        """
        path = trajectory.directory(self.root, imported)
        if (path / trajectory.META).is_file():
            return
        try:
            path.mkdir(parents=True, exist_ok=True)
            with Files.at(path.parent).locked(
                f"{path.name}.lock"
            ):  # of several workers that need it at once, one copies
                self.fetch(path)
                if not (path / trajectory.META).is_file():
                    _copy(imported, path)
                    self._publish(path)
        except DistsubError:
            raise
        except (OSError, pa.ArrowException) as error:
            raise OutputError(f"trajectory {path} cannot be written: {first_line(error)}") from error

    def ensure(self, recording: Recording) -> bool:
        """Record a trajectory unless it is there; returns whether it was recorded now.

        Raises:
            TrajectoryError: The fine-tuning diverged, or has too few steps; what is there is of other weights.
            OutputError: It cannot be written.
        """
        row = self.record(recording)
        path = trajectory.directory(self.root, recording)
        if trajectory.has_diverged(path):
            trajectory.load(path)  # says so
        return row is not None

    def record(self, recording: Recording) -> Observation | None:
        """Record a trajectory and write the row of its fine-tuning, which is returned.

        Returns None if the trajectory is there already, to its end or to where it diverged.

        Raises:
            TrajectoryError: The fine-tuning has too few steps; what is there is of other weights.
            OutputError: It cannot be written.
        """
        store, trial = self.store, recording.trial
        path, inputs = trajectory.directory(self.root, recording), self.provide(trial)
        if _is_there(path, inputs):
            return None
        with self._locked(path, trial):
            if (claim := self._claimed(path, inputs)) is None:
                return None
            files, recorder = Files.at(self.root), Recorder(recording, path)
            resume = ResumeFile(files, trial, self.checkpoint_s, folder=paths.TRAJECTORIES, largest=math.inf)
            if (state := resume.read()) is not None and not recorder.holds(state.step):
                resume.discard()
            with claim:
                row = train(trial, [resume, recorder, Progress(self.report)], self.device, inputs)
                store.write(row)
                resume.remove()
                self._publish(path)  # to where it diverged too: it would again
        return row

    @contextlib.contextmanager
    def _locked(self, path: Path, trial: Trial) -> Iterator[None]:
        """Wait until no other process here records a trajectory; without locks two may, which gives the same bytes."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = path.with_suffix(".lock").open("w")
        except OSError as error:
            raise OutputError(f"trajectory {path} cannot be written: {error.strerror or error}") from error
        with lock:
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    self._wait(trial)
                    continue
                except OSError:
                    pass
                break
            yield

    def _wait(self, trial: Trial) -> None:
        time.sleep(WAIT_S)
        if self.report(0, trial.budget.steps):
            raise Stopped

    def _claimed(self, path: Path, inputs: Inputs) -> contextlib.AbstractContextManager[Any] | None:
        """Wait until no other machine records a trajectory; None if it is there then, else what to record it under."""
        store = self.store
        if store.files.is_local:  # all machines have the lock
            return None if _is_there(path, inputs) else contextlib.nullcontext()
        store.files.make(paths.TRAJECTORIES)
        claim, taken = Claim(store.files, f"{paths.trajectory(path.name)}.claim"), False
        while True:
            self.fetch(path)
            if _is_there(path, inputs):
                if taken:
                    claim.give_up()
                return None
            if taken:
                return claim
            try:
                taken = claim.take()
            except (OSError, pa.ArrowException) as error:
                raise OutputError(f"cannot claim {path.name} in {store.uri} ({first_line(error)})") from error
            for _ in range(0 if taken else LOOKS):
                self._wait(inputs.trial)

    def fetch(self, path: Path) -> None:
        """Copy a trajectory from an object store, if it has it."""
        files, folder = self.store.files, paths.trajectory(path.name)
        if files.is_local:
            return
        with contextlib.suppress(OSError, pa.ArrowException):
            if trajectory.META not in files.names(folder):
                return
            path.mkdir(parents=True, exist_ok=True)
            for name in files.names(folder):
                (path / name).write_bytes(files.read(f"{folder}/{name}"))

    def _publish(self, path: Path) -> None:
        """Copy a trajectory to an object store, what completes it last."""
        files, folder = self.store.files, paths.trajectory(path.name)
        if files.is_local:
            return
        try:
            files.make(folder)
            for file in sorted(path.iterdir(), key=lambda file: file.name == trajectory.META):
                files.put(f"{folder}/{file.name}", file.read_bytes())
        except (OSError, pa.ArrowException) as error:
            raise OutputError(f"cannot write {folder} to {self.store.uri} ({first_line(error)})") from error


def _is_there(path: Path, inputs: Inputs) -> bool:
    """Tell whether a trajectory is there to the end, or diverged, as it would again; refuse one of other weights."""
    try:
        found = trajectory.load(path)
    except TrajectoryError:
        return trajectory.has_diverged(path)
    trajectory.check_weights(found, inputs.model.sha256)
    return True


def _copy(imported: Imported, path: Path) -> None:
    """Copy a trajectory, and last what says that all of it is there."""
    found, now = trajectory.elsewhere(imported.path)
    if now != imported:
        raise TrajectoryError(f"trajectory {imported.path} has changed since the sweep began; give the one that it had")
    files = Files.at(path)
    for snapshot in found.meta["checkpoints"]:
        file = found.path / snapshot["file"]
        if weight_files.content_hash(file) != snapshot["sha256"]:
            raise TrajectoryError(f"checkpoint {file} has changed since it was written; import it again")
        files.send(snapshot["file"], file)
    files.put(trajectory.META, (found.path / trajectory.META).read_bytes())


def record_all(sweep: Sweep, store: Store) -> Iterator[tuple[Recording, bool]]:
    """Record every trajectory that a sweep needs or asks for; yields each with whether it was recorded now.

    Raises:
        ConfigError: The sweep needs none.
    """
    recordings, device = sweep.recordings(), "cuda" if sweep.resources.gpus_per_trial else "cpu"
    trajectories = Trajectories(store, device)
    for imported in sweep.imported:
        trajectories.place(imported)
    if not recordings:
        raise ConfigError(
            "nothing to record: the sweep has no learned subspaces; add a table [trajectory], or a method such as "
            '"intrinsic"'
        )
    torch.set_num_threads(max(1, int(sweep.resources.cpus_per_trial)))
    for recording in recordings:
        yield recording, trajectories.ensure(recording)


def listing(recordings: Iterable[Recording], store: Store) -> pa.Table:
    """List trajectories that are there, one row each."""
    rows, root = [], Trajectories(store).root
    for recording in recordings:
        found = trajectory.load(trajectory.directory(root, recording))
        rows.append(
            {
                "trajectory": recording.id,
                "task": recording.trial.task.name,
                "model": recording.trial.model.name,
                "head_seed": recording.trial.seeds.head,
                "data_seed": recording.trial.seeds.data,
                "learning_rate": recording.trial.learning_rate,
                "checkpoints": len(found.updates),
                "steps": found.steps[-1],
                "score": found.meta["score"],
                "bytes": sum(each["bytes"] for each in found.meta["checkpoints"]),
            }
        )
    return pa.Table.from_pylist(rows)
