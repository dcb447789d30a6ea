"""Trajectories in a results directory: recorded when a trial needs them, or all at once, and never twice.

Whoever needs a trajectory first records it under a lock; the others wait. It leaves the row of its fine-tuning too, so
that a baseline which is recorded is trained once. A recording that was cut short goes on from its last checkpoint on
this machine. A results directory on an object store is recorded in this machine's cache and copied from and to it,
since checkpoints are mapped from local files; there a claim among the results makes the other machines wait too.
"""

import contextlib
import fcntl
import hashlib
import math
import time
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import torch

from distsub.config.sweep import Sweep
from distsub.errors import ConfigError, OutputError, TrajectoryError, first_line
from distsub.files import Files
from distsub.finetune import data, pretrained, trajectory
from distsub.finetune.train import Progress, finish
from distsub.records import Observation, Recording, Trial
from distsub.results import Store
from distsub.runtime.checkpoints import EVERY_S, Kept, kept_by
from distsub.runtime.claims import Claim
from distsub.subspace.trajectory import Snapshots

WAIT_S = 1.0
"""Seconds between looks at a trajectory that somebody else is recording."""

LOOKS = 5
"""Times as many, where another machine does: a look is a few requests."""


def provide(
    trial: Trial, store: Store, device: str = "cpu", checkpoint_s: float | None = EVERY_S
) -> Generator[Progress, None, Snapshots | None]:
    """Map the checkpoints that a trial's subspace is made of, and record first what is not there.

    Args:
        trial: Any trial; None is returned for one that needs no checkpoints.
        store: Where trajectories lie, and where the rows of the fine-tunings go.
        device: Where fine-tunings run.
        checkpoint_s: Seconds between checkpoints of one.

    Yields:
        Progress of the fine-tunings; step 0 while somebody else records.

    Raises:
        TrajectoryError: A trajectory cannot be recorded or used.
        OutputError: It cannot be written.
    """
    if trial.span is None:
        return None
    for recording in trial.recordings:
        yield from ensure(recording, store, device, checkpoint_s)
    return trajectory.snapshots(trial, root_of(store))


def ensure(
    recording: Recording, store: Store, device: str = "cpu", checkpoint_s: float | None = EVERY_S
) -> Generator[Progress, None, bool]:
    """Record a trajectory unless it is there; returns whether it was recorded now.

    Raises:
        TrajectoryError: The fine-tuning diverged, or has too few steps; what is there is of other weights.
        OutputError: It cannot be written.
    """
    row = yield from _recorded(recording, store, device, checkpoint_s)
    path = trajectory.directory(root_of(store), recording)
    if trajectory.has_diverged(path):
        trajectory.load(path)  # says so
    return row is not None


def row_of(
    recording: Recording, store: Store, device: str = "cpu", checkpoint_s: float | None = EVERY_S
) -> Generator[Progress, None, Observation | None]:
    """Record a trajectory and return the row of its fine-tuning; None if the trajectory is there and the row is not.

    Raises:
        TrajectoryError: The fine-tuning has too few steps; what is there is of other weights.
        OutputError: It cannot be written.
    """
    row = yield from _recorded(recording, store, device, checkpoint_s)
    return row or next((row for row in store.read() if row.trial == recording.trial), None)


def _recorded(
    recording: Recording, store: Store, device: str, checkpoint_s: float | None
) -> Generator[Progress, None, Observation | None]:
    """Record a trajectory and write the row; None if it is there, to its end or to where it diverged."""
    path = trajectory.directory(root_of(store), recording)
    if _is_there(path, recording.trial):
        return None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.with_suffix(".lock").open("w")
    except OSError as error:
        raise OutputError(f"trajectory {path} cannot be written: {error.strerror or error}") from error
    with lock:
        while not _locked(lock):
            time.sleep(WAIT_S)
            yield Progress(0, recording.trial.budget.steps, math.nan)
        claim = yield from _claimed(store, recording, path)
        if claim is None:
            return None
        here = Files.at(root_of(store))
        kept = Kept(here, recording.trial, checkpoint_s, folder=trajectory.FOLDER, largest=math.inf)
        with claim:
            training = trajectory.record(recording, path, device, kept.read())
            row = yield from kept_by(kept, training)
            store.write(row)
            kept.remove()
            _publish(store, recording, path)  # to where it diverged too: it would again
    return row


def _claimed(
    store: Store, recording: Recording, path: Path
) -> Generator[Progress, None, contextlib.AbstractContextManager[Any] | None]:
    """Wait until no other machine records a trajectory; None if it is there then, else what to record it under."""
    if store.files.is_local:  # all machines have the lock
        return None if _is_there(path, recording.trial) else contextlib.nullcontext()
    store.files.make(trajectory.FOLDER)
    claim, taken = Claim(store.files, f"{trajectory.FOLDER}/{recording.id}.claim"), False
    while True:
        _fetch(store, recording, path)
        if _is_there(path, recording.trial):
            if taken:
                claim.give_up()
            return None
        if taken:
            return claim
        try:
            taken = claim.take()
        except (OSError, pa.ArrowException) as error:
            raise OutputError(f"cannot claim {recording.id} in {store.uri} ({first_line(error)})") from error
        for _ in range(0 if taken else LOOKS):
            time.sleep(WAIT_S)
            yield Progress(0, recording.trial.budget.steps, math.nan)


def _is_there(path: Path, full: Trial) -> bool:
    """Tell whether the trajectory of a full fine-tuning is there to the end, or diverged, as it would again.

    Raises:
        TrajectoryError: It is of other weights.
    """
    try:
        found = trajectory.load(path)
    except TrajectoryError:
        return trajectory.has_diverged(path)
    trajectory.check_weights(found, pretrained.prepare(full.model.name, full.model.revision).sha256)
    return True


def root_of(store: Store) -> Path:
    """Give the local directory whose trajectories/ holds a store's trajectories."""
    if store.files.is_local:
        return Path(store.files.root)
    return pretrained.cache_directory() / "results" / hashlib.sha256(store.uri.encode()).hexdigest()[:16]


def record_all(sweep: Sweep, store: Store) -> Iterator[tuple[Recording, bool]]:
    """Record every trajectory that a sweep needs or asks for, one after the other.

    Yields:
        Each with whether it was recorded now.

    Raises:
        ConfigError: The sweep needs none.
    """
    recordings = sweep.recordings()
    if not recordings:
        raise ConfigError(
            "nothing to record: the sweep has no learned subspaces; add a table [trajectory], or a method such as "
            '"intrinsic"'
        )
    device = "cuda" if sweep.resources.gpus_per_trial else "cpu"
    torch.set_num_threads(max(1, int(sweep.resources.cpus_per_trial)))
    for recording in recordings:
        yield recording, finish(ensure(recording, store, device))


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
            splits = data.load(*key)
            rows[key] = len(splits.train), splits.task.num_labels or 0
        if (about := (trial.model.name, trial.model.revision, rows[key][1])) not in sizes:
            model = pretrained.build(pretrained.prepare(*about[:2]), about[2], 0)
            sizes[about] = sum(parameter.numel() for parameter in model.parameters())
        found.append((recording, trajectory.num_bytes(recording, sizes[about], rows[key][0])))
    return found


def _locked(lock: IO[str]) -> bool:
    """Take a lock if nobody holds it; where there are no locks, two may record, which gives the same bytes."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _fetch(store: Store, recording: Recording, path: Path) -> None:
    """Copy a trajectory from an object store, if it has it."""
    if store.files.is_local:
        return
    folder = f"{trajectory.FOLDER}/{recording.id}"
    with contextlib.suppress(OSError, pa.ArrowException):
        if trajectory.META not in store.files.names(folder):
            return
        path.mkdir(parents=True, exist_ok=True)
        for name in store.files.names(folder):
            (path / name).write_bytes(store.files.read(f"{folder}/{name}"))


def _publish(store: Store, recording: Recording, path: Path) -> None:
    """Copy a trajectory to an object store, what completes it last."""
    if store.files.is_local:
        return
    folder = f"{trajectory.FOLDER}/{recording.id}"
    try:
        store.files.make(folder)
        for file in sorted(path.iterdir(), key=lambda file: file.name == trajectory.META):
            store.files.put(f"{folder}/{file.name}", file.read_bytes())
    except (OSError, pa.ArrowException) as error:
        raise OutputError(f"cannot write {folder} to {store.uri} ({first_line(error)})") from error


def num_rows(trial: Trial) -> int:
    """Count the rows of W that a trial's subspace is made of, before any is recorded.

    Raises:
        TrajectoryError: A task has too few steps for the checkpoints asked for.
    """
    span, total = trial.span, 0
    assert span is not None, "a trial in a learned subspace has a span"
    for recording in trial.recordings:
        full = recording.trial
        marks = trajectory.marks(recording, len(data.load(full.task, full.budget).train))
        if span.first is not None and span.first > len(marks):
            raise TrajectoryError(
                f"first = {span.first}, but the trajectory of task {full.task.name!r} has {len(marks)} checkpoints; "
                "lower it, or raise [trajectory] steps"
            )
        total += 1 if span.last else span.first or len(marks)
    return total
