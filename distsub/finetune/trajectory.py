"""Record a full fine-tuning's checkpoints, and read them back: what a learned subspace is made of.

A trajectory is a directory:

    trajectory.json           what was trained, which parameters, which checkpoints, the score curve
    step-000077.safetensors   theta_77 - theta_0 for every parameter of the model, by name

Differences are kept, not weights: they are a thousand times smaller, and bfloat16 with its 8 bits would round most of
an update away if it were added to a weight first. theta_0 itself is the pretrained model with the head of its
head_seed and is not stored. trajectory.json is replaced after every checkpoint and says when it is complete; a
recording that was cut short goes on or starts over, and writes the same bytes. Source: Zhang et al. 2023, Sec. 3.1.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distsub.errors import OutputError, TrajectoryError
from distsub.files import parse_json
from distsub.finetune import data, pretrained
from distsub.finetune.checkpoint import Checkpoint
from distsub.finetune.train import Progress, train
from distsub.records import Observation, Recording, Span, Trial, label
from distsub.subspace.trajectory import MadeOf, Snapshots

FORMAT, FORMAT_VERSION = "distsub-trajectory", 1
"""The version is raised when older programs would read other numbers from the same files."""

META = "trajectory.json"
FOLDER = "trajectories"
"""Where a results directory keeps them, by id."""

_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True)
class Trajectory:
    """A recorded full fine-tuning.

    Attributes:
        path: Its directory.
        meta: What trajectory.json says.
        parameters: (name, shape) of every parameter, in the model's order.
        updates: theta_step - theta_0 of each checkpoint in time, by parameter name: views of the mapped files.
    """

    path: Path
    meta: dict[str, Any]
    parameters: tuple[tuple[str, tuple[int, ...]], ...]
    updates: tuple[Mapping[str, Tensor], ...]

    @property
    def steps(self) -> tuple[int, ...]:
        """The step after which each checkpoint was taken."""
        return tuple(checkpoint["step"] for checkpoint in self.meta["checkpoints"])

    @property
    def hashes(self) -> tuple[str, ...]:
        """The sha256 of each checkpoint's file: the content's identity."""
        return tuple(checkpoint["sha256"] for checkpoint in self.meta["checkpoints"])


def directory(root: str | os.PathLike[str], recording: Recording) -> Path:
    """Give the place of a recording under a results directory."""
    return Path(root) / FOLDER / recording.id


def marks(recording: Recording, num_rows: int) -> list[int]:
    """List the steps after which checkpoints are taken.

    Args:
        recording: What is asked for.
        num_rows: Training rows that the task has under the budget.

    Raises:
        TrajectoryError: The budget's steps hold fewer checkpoints than asked for, or none.
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


def record(
    recording: Recording, path: str | os.PathLike[str], device: str = "cpu", resume: Checkpoint | None = None
) -> Generator[Progress, None, Observation]:
    """Fine-tune in full and leave the checkpoints, yielding after every step.

    Args:
        recording: What to record.
        path: Directory of the trajectory; made if missing.
        device: "cpu" or "cuda".
        resume: Where an earlier attempt stood. Not used unless the checkpoints before it are all there.

    Yields:
        Progress after each step.

    Returns:
        The fine-tuning's observation. The trajectory is complete once it is returned, unless the training diverged.

    Raises:
        TrajectoryError: The task has too few steps for the checkpoints.
        OutputError: The directory cannot be written.
    """
    trial, target = recording.trial, Path(path)
    prepared = pretrained.prepare(trial.model.name, trial.model.revision)
    splits = data.load(trial.task, trial.budget)
    num_rows, num_labels = len(splits.train), splits.task.num_labels or 0
    at = set(marks(recording, num_rows))
    base = pretrained.build(prepared, num_labels, trial.seeds.head, head_from=trial.model.head_from)
    theta_0 = {name: parameter.detach() for name, parameter in base.named_parameters()}
    meta: dict[str, Any] = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "id": recording.id,
        "complete": False,
        "content": "difference from theta_0",
        "model": trial.model.name,
        "revision": trial.model.revision,
        "weights_sha256": prepared.sha256,
        "architecture": type(base).__name__,
        "task": trial.task.name,
        "num_labels": num_labels,
        "method": label(trial.method),
        "trial_id": trial.id,
        "seeds": dataclasses.asdict(trial.seeds),
        "learning_rate": trial.learning_rate,
        "budget": dataclasses.asdict(trial.budget),
        "every": recording.every or "epoch",
        "steps_per_epoch": -(-num_rows // trial.budget.batch_size),
        "dtype": recording.dtype,
        "planned": len(at),
        "checkpoints": [],
        "parameters": [[name, list(tensor.shape)] for name, tensor in theta_0.items()],
        "curve": [],
    }

    def keep(step: int, model: nn.Module) -> None:
        while meta["checkpoints"] and meta["checkpoints"][-1]["step"] >= step:  # `resume` was of other data
            meta["checkpoints"].pop()
        if step in at:
            meta["checkpoints"].append(_save(target, step, model, theta_0, recording.dtype, meta["steps_per_epoch"]))
            _write(target, meta)

    try:
        target.mkdir(parents=True, exist_ok=True)
        before = [step for step in sorted(at) if resume is not None and step <= resume.step]
        left = {checkpoint["step"]: checkpoint for checkpoint in _left(target)}
        if all(step in left for step in before):
            meta["checkpoints"] = [left[step] for step in before]
        else:
            resume = None
        names = {checkpoint["file"] for checkpoint in meta["checkpoints"]}
        for file in (*target.glob("step-*.safetensors"), *target.glob(".*")):
            if file.name not in names:
                file.unlink()
        observation = yield from train(trial, device, on_step=keep, resume=resume)
        meta["curve"] = [list(point) for point in observation.curve]
        meta["score"], meta["status"] = observation.score, observation.status
        meta["complete"] = observation.status == "finished"
        _write(target, meta)
    except OSError as error:
        raise OutputError(f"trajectory {target} cannot be written: {error.strerror or error}") from error
    return observation


def load(path: str | os.PathLike[str]) -> Trajectory:
    """Read a complete trajectory, its checkpoints mapped into memory and not read.

    Raises:
        TrajectoryError: It is missing, incomplete, foreign, or a checkpoint is missing, truncated or of another layout.
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
        raise TrajectoryError(f"trajectory {path} is incomplete: {kept}; run `distsub trajectory` again")
    parameters = tuple((name, tuple(shape)) for name, shape in meta["parameters"])
    updates = []
    for checkpoint in meta["checkpoints"]:
        file = path / checkpoint["file"]
        size = file.stat().st_size if file.is_file() else None
        if size != checkpoint["bytes"]:
            found = "is missing" if size is None else f"has {size} bytes, not {checkpoint['bytes']}: truncated"
            raise TrajectoryError(f"checkpoint {file} {found}; run `distsub trajectory` again")
        try:
            with safe_open(file, framework="pt") as opened:
                update = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (no mapping)
        except (SafetensorError, OSError, ValueError) as error:
            raise TrajectoryError(
                f"checkpoint {file} is no safetensors file ({str(error).splitlines()[0]}); "
                f"run `distsub trajectory` again"
            ) from None
        if {name: tuple(tensor.shape) for name, tensor in update.items()} != dict(parameters):
            raise TrajectoryError(
                f"checkpoint {file} has other parameters than {META} says; run `distsub trajectory` again"
            )
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
            f"no trajectory in {path}: {META} cannot be read ({error.strerror}); record it with `distsub trajectory`"
        ) from None
    except ValueError as error:
        raise TrajectoryError(f"{file} is not JSON ({error}); run `distsub trajectory` again") from None
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise TrajectoryError(f"{file} is not of a trajectory; give a directory that `distsub trajectory` wrote")
    if (found := meta.get("format_version")) != FORMAT_VERSION:
        raise TrajectoryError(f"{file} has format version {found}, this distsub reads {FORMAT_VERSION}")
    return meta


def has_diverged(path: str | os.PathLike[str]) -> bool:
    """Tell whether a trajectory was recorded to where its fine-tuning diverged."""
    try:
        return read_meta(path).get("status") == "diverged"
    except TrajectoryError:
        return False


def is_complete(path: str | os.PathLike[str]) -> bool:
    """Tell whether a trajectory is there to the end; one that is damaged is not."""
    try:
        load(path)
    except TrajectoryError:
        return False
    return True


def snapshots(trial: Trial, root: str | os.PathLike[str]) -> Snapshots:
    """Collect the rows of W that a trial's subspace is made of.

    Args:
        trial: One whose method has a span.
        root: Results directory with the trajectories.

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
                f"is not in {path}; record it first: distsub trajectory SWEEP --out {root}"
            )
    paths = [directory(root, recording) for recording in trial.recordings]
    weights = pretrained.prepare(trial.model.name, trial.model.revision).sha256
    return collect(paths, weights, span)


def collect(paths: Sequence[Path], weights_sha256: str, span: Span) -> Snapshots:
    """Map the checkpoints of some trajectories as the rows of W.

    Args:
        paths: Directories, in the order of the rows.
        weights_sha256: Of the pretrained model that they must be of.
        span: Which of their checkpoints are taken, and as what.

    Raises:
        TrajectoryError: One is missing, damaged, of another model, or shorter than asked for.
    """
    first, last = span.first, span.last
    rows: list[Mapping[str, Tensor]] = []
    hashes: list[str] = []
    for path in paths:
        found = load(path)
        check_weights(found, weights_sha256)
        if first is not None and first > len(found.updates):
            raise TrajectoryError(
                f"the first {first} checkpoints are asked for, trajectory {path} has {len(found.updates)}"
            )
        rows += found.updates[:first][-1:] if last else found.updates[:first]
        hashes += found.hashes[:first][-1:] if last else found.hashes[:first]
    fingerprint = hashlib.sha256("\n".join([span.mode, *hashes]).encode()).hexdigest()
    return Snapshots(tuple(rows), MadeOf(tuple(path.name for path in paths), fingerprint))


def check_weights(found: Trajectory, weights_sha256: str) -> None:
    """Refuse a trajectory of another model or revision.

    Raises:
        TrajectoryError: It was recorded on other weights.
    """
    if (given := found.meta["weights_sha256"]) != weights_sha256:
        raise TrajectoryError(
            f"trajectory {found.path} is of other weights: sha256 {given[:12]} ({found.meta['model']}, revision "
            f"{found.meta['revision']}), this model has {weights_sha256[:12]}; give the model that it is of, or delete "
            "it and run `distsub trajectory` again"
        )


def num_bytes(recording: Recording, num_params: int, num_rows: int) -> int:
    """Compute what a recording takes on disk, headers aside."""
    return len(marks(recording, num_rows)) * num_params * _DTYPES[recording.dtype].itemsize


def _left(target: Path) -> list[dict[str, Any]]:
    """List the checkpoints that an earlier attempt left whole."""
    try:
        meta = read_meta(target)
    except TrajectoryError:
        return []
    files = [(target / checkpoint["file"], checkpoint) for checkpoint in meta["checkpoints"]]
    return [each for file, each in files if file.is_file() and file.stat().st_size == each["bytes"]]


@torch.no_grad()
def _save(
    target: Path, step: int, model: nn.Module, theta_0: dict[str, Tensor], dtype: str, per_epoch: int
) -> dict[str, Any]:
    """Write one checkpoint, whole or not at all, and give its entry in trajectory.json."""
    from safetensors.torch import save

    update = {
        name: (parameter.detach().cpu() - theta_0[name]).to(_DTYPES[dtype]).contiguous()
        for name, parameter in model.named_parameters()
    }
    content = save(update, {"format": "pt"})
    file = f"step-{step:06d}.safetensors"
    _replace(target / file, content)
    return {
        "file": file,
        "step": step,
        "epoch": step / per_epoch,
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }


def _write(target: Path, meta: dict[str, Any]) -> None:
    _replace(target / META, (json.dumps(meta, indent=1) + "\n").encode())


def _replace(path: Path, content: bytes) -> None:
    """Write a file beside its place, then rename it there, so that nobody reads half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
