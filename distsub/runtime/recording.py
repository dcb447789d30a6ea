"""Trajectories in a results directory: recorded when a trial needs them, or all at once, and never twice.

The first process that needs a trajectory records it under a lock; the others wait. It leaves the row of its fine-tuning
too, so that a recorded baseline is trained once. A recording that was cut short resumes on this machine. Those of
results on an object store are recorded in this machine's cache and copied from and to it, since snapshots are mapped
from local files; there a claim among the results makes the other machines wait too.
"""

import contextlib
import fcntl
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from distsub import paths
from distsub.config.sweep import Sweep
from distsub.data import dataset
from distsub.errors import ConfigError, OutputError, TrajectoryError, first_line
from distsub.files import Files
from distsub.finetune import trajectory
from distsub.finetune.inputs import Inputs
from distsub.finetune.recorder import Recorder
from distsub.finetune.train import Progress, Report, Stopped, train
from distsub.models import pretrained
from distsub.records import Observation, Recording, Trial
from distsub.results import Store
from distsub.runtime.claims import Claim
from distsub.runtime.placing import fetch, place, publish, root_of
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

    def inputs_of(self, trial: Trial) -> Inputs:
        """Find what a trial reads."""
        return Inputs(trial, self.store.files if self.inputs else None, root_of(self.store))

    def provide(self, trial: Trial) -> None:
        """Record the trajectories that a trial's subspace is made of and that are missing, and copy imported ones.

        Raises:
            TrajectoryError: A trajectory cannot be recorded or used.
            OutputError: It cannot be written.
        """
        for imported in trial.imported:
            place(imported, self.store)
        for recording in trial.recordings:
            self.ensure(recording)

    def ensure(self, recording: Recording) -> bool:
        """Record a trajectory unless it is there; returns whether it was recorded now.

        Raises:
            TrajectoryError: The fine-tuning diverged, or has too few steps; what is there is of other weights.
            OutputError: It cannot be written.
        """
        row = self.record(recording)
        path = trajectory.directory(root_of(self.store), recording)
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
        path, inputs = trajectory.directory(root_of(store), recording), self.inputs_of(trial)
        if _is_there(path, inputs):
            return None
        with self._locked(path, trial):
            claim = self._claimed(path, inputs)
            if claim is None:
                return None
            files, recorder = Files.at(root_of(store)), Recorder(recording, path)
            resume = ResumeFile(files, trial, self.checkpoint_s, folder=paths.TRAJECTORIES, largest=math.inf)
            if (state := resume.read()) is not None and not recorder.holds(state.step):
                resume.discard()
            with claim:
                row = train(trial, [resume, recorder, Progress(self.report)], self.device, inputs)
                store.write(row)
                resume.remove()
                publish(store, path)  # to where it diverged too: it would again
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
            fetch(store, path)
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


def _is_there(path: Path, inputs: Inputs) -> bool:
    """Tell whether a trajectory is there to the end, or diverged, as it would again; refuse one of other weights."""
    try:
        found = trajectory.load(path)
    except TrajectoryError:
        return trajectory.has_diverged(path)
    trajectory.check_weights(found, inputs.model.sha256)
    return True


def record_all(sweep: Sweep, store: Store) -> Iterator[tuple[Recording, bool]]:
    """Record every trajectory that a sweep needs or asks for; yields each with whether it was recorded now.

    Raises:
        ConfigError: The sweep needs none.
    """
    recordings = sweep.recordings()
    for imported in sweep.imported:
        place(imported, store)
    if not recordings:
        raise ConfigError(
            "nothing to record: the sweep has no learned subspaces; add a table [trajectory], or a method such as "
            '"intrinsic"'
        )
    device = "cuda" if sweep.resources.gpus_per_trial else "cpu"
    torch.set_num_threads(max(1, int(sweep.resources.cpus_per_trial)))
    trajectories = Trajectories(store, device)
    for recording in recordings:
        yield recording, trajectories.ensure(recording)


def listing(recordings: Iterable[Recording], store: Store) -> pa.Table:
    """List trajectories that are there, one row each."""
    rows = []
    for recording in recordings:
        found = trajectory.load(trajectory.directory(root_of(store), recording))
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


def costs(sweep: Sweep) -> list[tuple[Recording, int]]:
    """List what a sweep records, each with the bytes that it takes.

    Raises:
        TrajectoryError: A task has too few steps for the checkpoints.
    """
    rows: dict[Any, tuple[int, int]] = {}
    sizes: dict[Any, int] = {}
    found = []
    for recording in sweep.recordings():
        trial = recording.trial
        if (key := (trial.task, trial.budget)) not in rows:
            splits = dataset.load(*key)
            rows[key] = len(splits.train), splits.task.num_labels or 0
        about = (trial.model.name, trial.model.revision, trial.model.dtype, rows[key][1])
        if about not in sizes:
            model = pretrained.build(pretrained.prepare(*about[:3]), about[3], 0)
            sizes[about] = sum(parameter.numel() for parameter in model.parameters())
        found.append((recording, trajectory.num_bytes(recording, sizes[about], rows[key][0])))
    return found


def num_rows(trial: Trial, imported: Mapping[str, int]) -> int:
    """Count the rows of W that a trial's subspace is made of; `imported` has the checkpoints of imported ones by path.

    Raises:
        TrajectoryError: A task has too few steps for the checkpoints asked for.
    """
    span, total = trial.span, 0
    assert span is not None, "a trial in a learned subspace has a span"
    for each in trial.imported:
        count = imported[each.path]
        if span.first is not None and span.first > count:
            raise TrajectoryError(f"first = {span.first}, but trajectory {each.path} has {count} checkpoints; lower it")
        total += 1 if span.last else span.first or count
    for recording in trial.recordings:
        full = recording.trial
        steps = trajectory.snapshot_steps(recording, len(dataset.load(full.task, full.budget).train))
        if span.first is not None and span.first > len(steps):
            raise TrajectoryError(
                f"first = {span.first}, but the trajectory of task {full.task.name!r} has {len(steps)} checkpoints; "
                "lower it, or raise [trajectory] steps"
            )
        total += 1 if span.last else span.first or len(steps)
    return total
