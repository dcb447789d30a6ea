"""A series of checkpoints from elsewhere as a trajectory: what a learned subspace is made of, without a recording.

Checkpoints are loaded as any model is, on mapped weights, one after the other, and their differences from the base
model are written tensor by tensor: memory holds one tensor beside the mapped files. What the base model or some
checkpoint does not give, usually the base model's head, is left out, since theta_0 is not known there; a subspace of
the layers needs none of it.
"""

import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor, nn

from distsub.errors import DistsubError, OutputError, TrajectoryError, UnavailableError
from distsub.files import Files
from distsub.finetune.trajectory import FORMAT, FORMAT_VERSION, META, Trajectory, load
from distsub.models import pretrained, tensor_files, weight_files
from distsub.models.addresses import locate
from distsub.models.pretrained import Prepared
from distsub.models.tensor_files import DTYPES

_SAME = ("num_attention_heads", "num_key_value_heads", "hidden_act", "hidden_activation")
"""Settings that decide what a model computes, and of which the shapes of its parameters say nothing."""


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint of the series.

    Attributes:
        address: As it was given.
        step: Optimiser steps after which it was taken.
        name: The address without its revision.
        revision: Hub revision, or None.
    """

    address: str
    step: int
    name: str
    revision: str | None


def import_checkpoints(base: str, addresses: Sequence[str], out: str | Path, dtype: str = "bfloat16") -> Trajectory:
    """Make a trajectory of a base model and checkpoints of it.

    Args:
        base: The model that training began from, as `pretrained.prepare` takes it, or "org/name@revision".
        addresses: The checkpoints, in any order; each a local folder, a hub id, or "org/name@revision".
        out: The folder of the trajectory, which appears when it is complete.
        dtype: "bfloat16" or "float32", in which the differences are kept.

    Raises:
        TrajectoryError: The checkpoints have no order, are no checkpoints of this model, or hold numbers that are not
            finite.
        UnavailableError: One cannot be found or loaded.
        OutputError: The folder is there, or cannot be written.
    """
    if "://" in str(out):
        raise OutputError(f"{out} is no folder of this machine; import to one, and copy it there for a sweep to name")
    target, series = Path(out).expanduser().absolute(), in_order(addresses)
    work = target.with_name(f".{target.name}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with Files.at(target.parent).locked(f".{target.name}.lock"):
            try:
                if target.exists():
                    raise OutputError(f"{target} is there already; give --out a folder that is not")
                shutil.rmtree(work, ignore_errors=True)  # of an import that was killed
                work.mkdir()
                _fill(work, base, series, dtype)
                work.rename(target)
            finally:
                shutil.rmtree(work, ignore_errors=True)
                (target.parent / f".{target.name}.lock").unlink(missing_ok=True)
    except OSError as error:
        if isinstance(error, DistsubError):
            raise
        raise OutputError(f"trajectory {target} cannot be written: {error.strerror or error}") from error
    return load(target)


def in_order(addresses: Sequence[str]) -> list[Checkpoint]:
    """Order checkpoints by the step after which they were taken.

    The step is global_step of trainer_state.json where all have one, else the number at which all names end.

    Raises:
        TrajectoryError: Some have no step, or two the same.
        UnavailableError: One is not there.
    """
    for address in addresses:
        if any(letter in address for letter in "*?["):  # what a shell hands on where nothing matches
            raise UnavailableError(f"no folder matches {address}; give checkpoints that are there, as checkpoint-10")
    places = [_split(address) for address in addresses]
    states = [locate(*place) / "trainer_state.json" for place in places]
    if all(state.is_file() for state in states):
        steps = [weight_files.read_json(state).get("global_step") for state in states]
        wanted = "no global_step in its trainer_state.json"
    else:
        steps = [_number(name if revision is None else revision) for name, revision in places]
        wanted = "neither a trainer_state.json nor a name that ends in its step, such as checkpoint-500"
    found = []
    for address, (name, revision), step in zip(addresses, places, steps, strict=True):
        if not isinstance(step, int) or step < 0:
            raise TrajectoryError(f"checkpoint {address} has {wanted}: its place in the series is not known")
        found.append(Checkpoint(address, step, name, revision))
    found.sort(key=lambda each: each.step)
    for one, other in pairwise(found):
        if one.step == other.step:
            raise TrajectoryError(f"checkpoints {one.address} and {other.address} are both of step {one.step}")
    return found


def listing(found: Trajectory) -> pa.Table:
    """List the checkpoints of an imported trajectory, one row each, in their order."""
    rows = []
    for snapshot, update in zip(found.meta["checkpoints"], found.updates, strict=True):
        norm = sum(float(each.double().square().sum()) for each in update.values()) ** 0.5
        kept = {"step": snapshot["step"], "checkpoint": snapshot["checkpoint"], "update_norm": norm}
        rows.append(kept | {"bytes": snapshot["bytes"]})
    return pa.Table.from_pylist(rows)


def _split(address: str) -> tuple[str, str | None]:
    """Split "org/name@revision"; a folder may have such a name."""
    name, at, revision = address.rpartition("@")
    return (address, None) if not at or Path(address).is_dir() or "://" in address else (name, revision)


def _number(name: str) -> int | None:
    found = re.search(r"\d+$", name.rstrip("/"))
    return int(found[0]) if found else None


def _fill(work: Path, base: str, series: Sequence[Checkpoint], dtype: str) -> None:
    """Write all snapshots, and last what says which they are."""
    name, revision = _split(base)
    prepared = pretrained.prepare(name, revision)
    theta_0, entries = None, []
    for checkpoint in series:
        with tempfile.TemporaryDirectory(dir=work) as cache:  # a series converted to float32 is many models
            given = pretrained.prepare(checkpoint.name, checkpoint.revision, cache=Path(cache))
            language_model = pretrained.is_language_model(given.path)
            model, lacking = pretrained.load_given(given, language_model)
            if theta_0 is None:
                theta_0 = _Base(prepared, given, model, lacking, language_model)
            theta_0.check(checkpoint, given, model, lacking)
            entry = {"checkpoint": checkpoint.address, "weights_sha256": given.sha256}
            entries.append(entry | _save(work, theta_0, checkpoint, model, dtype))
        if same := [each for each in entries[:-1] if each["sha256"] == entries[-1]["sha256"]]:
            raise TrajectoryError(
                f"checkpoints {same[0]['checkpoint']} and {checkpoint.address} hold the same weights; leave one out"
            )
    assert theta_0 is not None, "a series has a checkpoint"
    about = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "complete": True,
        "content": "difference from theta_0",
        "imported": True,
        "model": name,
        "revision": revision,
        "weights_sha256": prepared.sha256,
        "architecture": theta_0.architecture,
        "num_labels": theta_0.num_labels,
        "dtype": dtype,
        "planned": len(entries),
        "checkpoints": entries,
        "parameters": [[name, list(tensor.shape)] for name, tensor in theta_0.kept.items()],
        "left_out": sorted(theta_0.left_out),
        "score": None,
        "curve": [],
    }
    (work / META).write_text(json.dumps(about, indent=1) + "\n")


class _Base:
    """theta_0, as the kind of model that the first checkpoint is, and what every checkpoint must have in common."""

    def __init__(
        self, prepared: Prepared, first: Prepared, model: Any, lacking: set[str], language_model: bool
    ) -> None:
        self.name, self._first = prepared.name, _kind(first)
        if (ours := _kind(prepared)[0]) != self._first[0]:
            raise TrajectoryError(
                f"checkpoint {first.name} is of model_type {self._first[0]}, the base {prepared.name} of {ours}; give "
                "the base that its training began from"
            )
        self.num_labels = 0 if language_model else int(model.config.num_labels)
        own, missing = pretrained.load_given(prepared, language_model, self.num_labels)
        self.architecture, self._config = type(own).__name__, own.config
        self._shapes = {name: list(each.shape) for name, each in own.named_parameters()}
        self.left_out = {name for name in missing | lacking if name in self._shapes}
        self.kept = {name: each.detach() for name, each in own.named_parameters() if name not in self.left_out}
        for name, tensor in self.kept.items():
            if not tensor.isfinite().all():
                raise TrajectoryError(f"the base {prepared.name} holds numbers that are not finite in {name}")

    def check(self, checkpoint: Checkpoint, given: Prepared, model: Any, lacking: set[str]) -> None:
        """Refuse a checkpoint of another architecture or layout than the base and the first.

        Raises:
            TrajectoryError: It is one.
        """
        what = f"checkpoint {checkpoint.address}"
        if (found := _kind(given)) != self._first:
            raise TrajectoryError(f"{what} is of {' '.join(found)}, the first of {' '.join(self._first)}")
        for key in _SAME:
            ours, theirs = (getattr(each, key, None) for each in (self._config, model.config))
            if ours != theirs:
                raise TrajectoryError(f"{what} has {key} = {theirs}, the base {self.name} {ours}")
        shapes = {name: list(each.shape) for name, each in model.named_parameters()}
        for name, ours in self._shapes.items():
            if (theirs := shapes.pop(name, None)) != ours:
                have = "does not have it" if theirs is None else f"has {theirs}"
                raise TrajectoryError(f"{what} is of another layout: {name} is {ours} in {self.name}, it {have}")
        if shapes:
            name, theirs = next(iter(shapes.items()))
            raise TrajectoryError(f"{what} is of another layout: {self.name} has no {name} {theirs}")
        if new := sorted(lacking & self._shapes.keys() - self.left_out):
            raise TrajectoryError(f"{what} lacks {new[0]} {self._shapes[new[0]]}, which those before it have")


def _kind(prepared: Prepared) -> tuple[str, ...]:
    """Give a checkpoint's model_type, and the class that it was saved as."""
    config = weight_files.read_json(prepared.path / "config.json")
    return config["model_type"], *(config.get("architectures") or ())


@torch.no_grad()
def _save(work: Path, base: _Base, checkpoint: Checkpoint, model: nn.Module, dtype: str) -> dict[str, Any]:
    """Write the differences of one checkpoint, and give its entry in trajectory.json."""
    shapes = {name: (DTYPES[dtype], tuple(tensor.shape)) for name, tensor in base.kept.items()}
    parameters, moved = dict(model.named_parameters()), False

    def differences() -> Iterator[Tensor]:
        nonlocal moved
        for name in tensor_files.order(shapes):
            update = parameters[name] - base.kept[name]
            if not update.isfinite().all():
                raise TrajectoryError(
                    f"checkpoint {checkpoint.address} holds numbers that are not finite in {name}: its training blew "
                    "up; leave it out"
                )
            moved = moved or bool(update.any())
            yield update

    file = f"step-{checkpoint.step:06d}.safetensors"
    size, sha256 = tensor_files.write(work / file, shapes, differences())
    if not moved:
        raise TrajectoryError(
            f"checkpoint {checkpoint.address} is the base {base.name} itself, which gives no direction; leave it out"
        )
    return {"file": file, "step": checkpoint.step, "bytes": size, "sha256": sha256}
