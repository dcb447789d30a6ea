"""The format of a recorded full fine-tuning, and reading it back: what a learned subspace is made of.

A trajectory is a directory:

    trajectory.json           what was trained, which parameters, which snapshots, the score curve
    step-000077.safetensors   theta_77 - theta_0 for every parameter of the model, by name

Differences are kept, not weights: they are a thousand times smaller, and bfloat16 with its 8 bits would round most of
an update away if it were added to a weight first. theta_0 itself is the pretrained model with the head of its
head_seed and is not stored. trajectory.json is replaced after every snapshot and says when it is complete; a
recording that was cut short resumes or starts over, and writes the same bytes (`recorder`). One that was imported
(`importing`) says of what in place of a task, and has no head where its base has none. Source: Zhang et al. 2023,
Sec. 3.1.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from torch import Tensor

from distsub import paths
from distsub.cache import copied, remembered
from distsub.errors import TrajectoryError
from distsub.files import parse_json
from distsub.models import weight_files
from distsub.models.tensor_files import DTYPES
from distsub.records import Imported, Recording, Span, Trial
from distsub.subspace.trajectory import MadeOf, Snapshots

FORMAT, FORMAT_VERSION = "distsub-trajectory", 1
"""The version is raised when older programs would read other numbers from the same files."""

META = "trajectory.json"
"""Says which snapshots a trajectory has, and that it is whole."""


@dataclass(frozen=True)
class Trajectory:
    """A recorded full fine-tuning.

    Attributes:
        path: Its directory.
        meta: What trajectory.json says.
        parameters: (name, shape) of every parameter, in the model's order.
        updates: theta_step - theta_0 of each snapshot in time, by parameter name: views of the mapped files.
    """

    path: Path
    meta: dict[str, Any]
    parameters: tuple[tuple[str, tuple[int, ...]], ...]
    updates: tuple[Mapping[str, Tensor], ...]

    @property
    def steps(self) -> tuple[int, ...]:
        """The step after which each snapshot was taken."""
        return tuple(snapshot["step"] for snapshot in self.meta["checkpoints"])

    @property
    def hashes(self) -> tuple[str, ...]:
        """The sha256 of each snapshot's file: the content's identity."""
        return tuple(snapshot["sha256"] for snapshot in self.meta["checkpoints"])

    @property
    def content(self) -> str:
        """Hash of the base model's weights and of all snapshots: what it is, wherever it lies."""
        return hashlib.sha256("\n".join([self.meta["weights_sha256"], *self.hashes]).encode()).hexdigest()


def directory(root: str | os.PathLike[str], recording: Recording | Imported) -> Path:
    """Give the place of a trajectory under a results directory."""
    return Path(root) / paths.trajectory(recording.id)


def snapshot_steps(recording: Recording, num_rows: int) -> list[int]:
    """List the steps after which snapshots are taken.

    Args:
        recording: What is asked for.
        num_rows: Training rows that the task has under the budget.

    Raises:
        TrajectoryError: The budget's steps hold fewer snapshots than asked for, or none.
    """
    budget = recording.trial.budget
    per_epoch = -(-num_rows // budget.batch_size)
    found = list(range(every := recording.every or per_epoch, budget.steps + 1, every))
    wanted = recording.checkpoints or 1
    if len(found) < wanted:
        unit = f"epochs of {per_epoch} steps" if recording.every is None else f"times {every} steps"
        raise TrajectoryError(
            f"task {recording.trial.task.name!r} gives {len(found)} checkpoints, {wanted} are asked for: "
            f"{budget.steps} steps are {len(found)} {unit}; raise [trajectory] steps to {wanted * every} or lower every"
        )
    return found[: recording.checkpoints]


def load(path: str | os.PathLike[str]) -> Trajectory:
    """Read a complete trajectory, its snapshots mapped into memory and not read.

    Raises:
        TrajectoryError: It is missing, incomplete, foreign, or a snapshot is missing, truncated or of another layout.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    meta = read_meta(path)
    if not meta["complete"]:
        kept = f"{len(meta['checkpoints'])} of {meta['planned']} checkpoints"
        if meta.get("status") == "diverged":
            raise TrajectoryError(
                f"trajectory {path} ({meta['task']}) has {kept}: its fine-tuning diverged at learning rate "
                f"{meta['learning_rate']:g}; lower [trajectory] learning_rate"
            )
        raise TrajectoryError(f"trajectory {path} is incomplete: {kept}; run `distsub trajectory record` again")
    again = "import it again" if meta.get("imported") else "run `distsub trajectory record` again"
    parameters = tuple((name, tuple(shape)) for name, shape in meta["parameters"])
    updates = []
    for snapshot in meta["checkpoints"]:
        file = path / snapshot["file"]
        size = file.stat().st_size if file.is_file() else None
        if size != snapshot["bytes"]:
            found = "is missing" if size is None else f"has {size} bytes, not {snapshot['bytes']}: truncated"
            raise TrajectoryError(f"checkpoint {file} {found}; {again}")
        try:
            with safe_open(file, framework="pt") as opened:
                update = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (no mapping)
        except (SafetensorError, OSError, ValueError) as error:
            raise TrajectoryError(
                f"checkpoint {file} is no safetensors file ({str(error).splitlines()[0]}); {again}"
            ) from None
        if {name: tuple(tensor.shape) for name, tensor in update.items()} != dict(parameters):
            raise TrajectoryError(f"checkpoint {file} has other parameters than {META} says; {again}")
        updates.append(update)
    return Trajectory(path, meta, parameters, tuple(updates))


def read_meta(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read and check a trajectory.json, of a complete trajectory or not.

    Raises:
        TrajectoryError: It is missing, damaged, foreign or of a newer format.
    """
    file = Path(path) / META
    try:
        meta = parse_json(file.read_bytes())
    except OSError as error:
        raise TrajectoryError(
            f"no trajectory in {path}: {META} cannot be read ({error.strerror}); make one with `distsub trajectory "
            "record` or `import`"
        ) from None
    except ValueError as error:
        raise TrajectoryError(f"{file} is not JSON ({error}); record or import it again") from None
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise TrajectoryError(f"{file} is not of a trajectory; give a folder that `distsub trajectory` wrote")
    if (found := meta.get("format_version")) != FORMAT_VERSION:
        raise TrajectoryError(f"{file} has format version {found}, this distsub reads {FORMAT_VERSION}")
    return meta


def has_diverged(path: str | os.PathLike[str]) -> bool:
    """Tell whether a trajectory was recorded to where its fine-tuning diverged."""
    try:
        return read_meta(path).get("status") == "diverged"
    except TrajectoryError:
        return False


def snapshots(trial: Trial, root: str | os.PathLike[str], weights_sha256: str) -> Snapshots:
    """Collect the rows of W that a trial's subspace is made of.

    Args:
        trial: One whose method has a span.
        root: Results directory with the trajectories.
        weights_sha256: Of the trial's pretrained model.

    Raises:
        TrajectoryError: One is missing, damaged, of another model, or shorter than asked for.
    """
    span = trial.span
    assert span is not None, "a trial in a learned subspace has a span"
    for recording in trial.recordings:
        if not (path := directory(root, recording)).is_dir():
            seeds = recording.trial.seeds
            raise TrajectoryError(
                f"the trajectory of task {recording.trial.task.name!r} (head and data seed {seeds.head}, {seeds.data}) "
                f"is not in {path}; record it first: distsub trajectory record SWEEP --out {root}"
            )
    return collect([Path(root) / paths.trajectory(name) for name in trial.trajectories], weights_sha256, span)


def collect(folders: Sequence[Path], weights_sha256: str, span: Span) -> Snapshots:
    """Map the snapshots of some trajectories as the rows of W.

    Args:
        folders: Directories, in the order of the rows.
        weights_sha256: Of the pretrained model that they must be of.
        span: Which of their checkpoints are taken, and as what.

    Raises:
        TrajectoryError: One is missing, damaged, of another model, or shorter than asked for.
    """
    first, last = span.first, span.last
    rows: list[Mapping[str, Tensor]] = []
    hashes: list[str] = []
    for path in folders:
        found = load(path)
        check_weights(found, weights_sha256)
        if first is not None and first > len(found.updates):
            raise TrajectoryError(
                f"the first {first} checkpoints are asked for, trajectory {path} has {len(found.updates)}"
            )
        rows += found.updates[:first][-1:] if last else found.updates[:first]
        hashes += found.hashes[:first][-1:] if last else found.hashes[:first]
    fingerprint = hashlib.sha256("\n".join([span.mode, *hashes]).encode()).hexdigest()

    @cache
    def content() -> list[str]:  # of the files as they are: what a recording says of them may have changed since
        return [weight_files.content_hash(file) for path in folders for file in sorted(path.glob("*.safetensors"))]

    def remember(about: str, compute: Callable[[], str]) -> str:
        return remembered(json.dumps([about, content()]), compute)

    return Snapshots(tuple(rows), MadeOf(tuple(path.name for path in folders), fingerprint), remember)


def check_weights(found: Trajectory, weights_sha256: str) -> None:
    """Refuse a trajectory of another model or revision.

    Raises:
        TrajectoryError: It was recorded on other weights.
    """
    if (given := found.meta["weights_sha256"]) != weights_sha256:
        raise TrajectoryError(
            f"trajectory {found.path} is of other weights: sha256 {given[:12]} ({found.meta['model']}, revision "
            f"{found.meta['revision']}), this model has {weights_sha256[:12]}; give the model that it is of, or delete "
            "it and record or import it again"
        )


def elsewhere(path: str, copy: Path | None = None) -> tuple[Trajectory, Imported]:
    """Read a trajectory that a sweep names by its folder, usually an imported one, and say by its content which it is.

    Args:
        path: The folder, or an address such as s3://, of which a local copy is made.
        copy: A folder that holds what lay there, to read in its place.

    Raises:
        TrajectoryError: It is none, or not whole.
        UnavailableError: The address cannot be read.
    """
    if copy is None:
        copy = copied(path, lambda _, names: names, deep=False) if "://" in path else Path(path)
    found = load(copy)
    return found, Imported(path, found.content)


def num_bytes(recording: Recording, num_params: int, num_rows: int) -> int:
    """Compute what a recording takes on disk, headers aside."""
    return len(snapshot_steps(recording, num_rows)) * num_params * DTYPES[recording.dtype].itemsize
