"""Inputs that travel: local models and rows, kept under OUT/inputs/<content>/ beside what was measured of them.

The driver puts them there before anything is trained. Whoever does not find a model or rows at their address, or finds
something else there, takes them from that place: into the cache of its machine if the results are on an object store.
"""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from distsub import cache, packages
from distsub.data import dataset, reading
from distsub.errors import DataError, OutputError, UnavailableError, first_line
from distsub.files import Files, parse_json
from distsub.finetune import trajectory
from distsub.models import pretrained
from distsub.models.pretrained import Prepared
from distsub.paths import INPUTS
from distsub.records import Budget, Dtype, Task, Trial
from distsub.records.places import Places
from distsub.subspace.trajectory import Snapshots

MARK = "inputs.json"
"""The mark is written last: a folder without it is not whole."""


class Put(NamedTuple):
    """What was put into the results: a model or the rows of a task, and its size."""

    what: str
    num_bytes: int


def put(files: Files, places: Places, budget: Budget) -> Iterator[Put]:
    """Put the local models and rows of a sweep into its results, each once.

    What has gone from its address, or changed there, is left out: trials that want it say so.

    Args:
        files: The results directory.
        places: Where the models and tasks lie, by content.
        budget: Decides which rows are drawn.

    Yields:
        What was put there now.

    Raises:
        OutputError: It cannot be written.
    """
    for place in places.models:
        if os.path.isabs(place.name) and not files.exists(_mark(place.content)):
            with contextlib.suppress(UnavailableError):
                found = pretrained.prepare(place.name, place.revision, place.dtype)
                if found.content == place.content:
                    sources = pretrained.files_of(found.source)
                    named = {file.relative_to(found.source).as_posix(): file for file in sources}
                    yield Put(f"model {place.name}", _send(files, place.content, named))
    for task in places.tasks:
        if task.content and os.path.isabs(task.source) and not files.exists(_mark(task.content)):
            with contextlib.suppress(UnavailableError, DataError), tempfile.TemporaryDirectory() as folder:
                splits = dataset.load(task, budget)
                if splits.dataset_hash == task.content:
                    named = {file.name: file for file in dataset.save(splits, Path(folder))}
                    yield Put(f"rows of {task.name}", _send(files, task.content, named))


def _mark(content: str) -> str:
    return f"{INPUTS}/{content}/{MARK}"


def _send(files: Files, content: str, sources: dict[str, Path]) -> int:
    """Copy files to their place, then what says that they are whole; gives their bytes."""
    folder, sizes = f"{INPUTS}/{content}", {}
    try:
        for name, source in sources.items():
            files.make(f"{folder}/{name}".rpartition("/")[0])
            files.send(f"{folder}/{name}", source)
            sizes[name] = source.stat().st_size
        files.put(_mark(content), json.dumps({"files": sizes}, indent=1).encode())
    except (OSError, pa.ArrowException) as error:
        raise OutputError(
            f"cannot put the inputs into {files.uri}/{INPUTS} ({first_line(error)}); fix that and run the same "
            "command again, or give --no-inputs where every node finds them at their address"
        ) from error
    return sum(sizes.values())


def copy(files: Files, content: str) -> Path | None:
    """Give a folder of this machine that has the input of some content, None if the results have none.

    Raises:
        UnavailableError: They have, and it cannot be read.
    """
    if files.is_local:
        return Path(files.path(INPUTS), content) if files.exists(_mark(content)) else None
    target = _cached(content)
    if not target.is_dir():
        try:
            names = list(parse_json(files.read(_mark(content)))["files"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UnavailableError(f"{files.uri}/{_mark(content)} cannot be read ({first_line(error)})") from None
        below = Files(f"{files.uri}/{INPUTS}/{content}", files.filesystem, files.path(f"{INPUTS}/{content}"))
        cache.fetched(below, lambda _: names, target)
    return target


def _cached(content: str) -> Path:
    return cache.cache_directory() / INPUTS / content


def model(
    name: str, revision: str | None, content: str | None, files: Files | None, dtype: Dtype = "float32"
) -> Prepared:
    """Find a model by its content: at its address, at the one that the results have for it, or among their inputs.

    Args:
        name: Its address.
        revision: Hub revision.
        content: What it must be (`Prepared.content`); None takes what is at the address.
        files: The results directory, None without one.
        dtype: The precision to hold it in.

    Returns:
        The model; where none of that content is found, the one at its address, which is another.

    Raises:
        UnavailableError: There is none.
    """
    other, reason = None, ""
    for address in _addresses(name, revision, content, files):
        try:
            found = pretrained.prepare(*address, dtype)
        except UnavailableError as error:
            reason = reason or str(error)
            continue
        if content in (None, found.content):
            return found
        other = other or found
    if other is None:
        kept = f", and {files.uri}/{INPUTS} has no copy of it" if content and files else ""
        raise UnavailableError(f"{reason}{kept}")
    return other


def _addresses(
    name: str, revision: str | None, content: str | None, files: Files | None
) -> Iterator[tuple[str, str | None]]:
    yield name, revision
    if content is None or files is None:
        return
    if _cached(content).is_dir():
        yield str(_cached(content)), None
    yield from ((each.name, each.revision) for each in _places(files).models if each.content == content)
    if (found := copy(files, content)) is not None:
        yield str(found), None


def _places(files: Files) -> Places:
    """Read where the models and tasks of the results lay last."""
    try:
        return Places.from_json(parse_json(files.read("sweep.json")).get("places", {}))
    except (OSError, ValueError, AttributeError):
        return Places()


class Inputs:
    """What a trial reads, on this machine: each part is found and loaded when it is first asked for, and once.

    Asking raises UnavailableError where a model or rows are neither at their address nor among the inputs of the
    results, DataError where they have changed since the sweep was checked, and TrajectoryError for snapshots.
    """

    def __init__(self, trial: Trial, files: Files | None = None, root: Path | None = None) -> None:
        """Read nothing yet.

        Args:
            trial: What is to be trained.
            files: The results, among whose inputs is found what has left its address; None takes what is there.
            root: The local directory that has the trajectories; None where none is needed.
        """
        self.trial, self._files, self._root = trial, files, root

    @cached_property
    def model(self) -> Prepared:
        """The pretrained model."""
        asked = self.trial.model
        found = model(asked.name, asked.revision, asked.content, self._files, asked.dtype)
        _check(f"model {asked.name}", asked.content, found.content)
        return found

    @cached_property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        return pretrained.tokenizer(self.model)

    @cached_property
    def splits(self) -> dataset.Splits:
        """The rows; their task has its number of labels."""
        task = self.trial.task
        found = dataset.load(_rows(task, self._files), self.trial.budget)
        _check(f"task {task.name} ({task.source})", task.content, found.dataset_hash)
        return found

    @cached_property
    def snapshots(self) -> Snapshots | None:
        """What its learned subspace is made of; None where it has none."""
        if self.trial.span is None or self._root is None:
            return None
        return trajectory.snapshots(self.trial, self._root, self.model.sha256)


def _check(what: str, asked: str | None, found: str) -> None:
    """Refuse files that have changed since the sweep was checked: their row would be filed under what they were."""
    if asked not in (None, found):
        raise DataError(
            f"{what} is not what the sweep was checked with (content {asked[:12]}, now {found[:12]}): put back "
            "what it was, or run a new sweep with another --out"
        )


def _rows(task: Task, files: Files | None) -> Task:
    """Give a task the address at which its rows lie here: a copy wins over a path, which may have changed."""
    if files is None or task.content is None:
        return task
    source = task.source
    reason = ""
    try:
        if packages.is_package(source):
            packages.resolve(source)
            return task
        if "://" in source:
            return replace(task, source=str(reading.local(source)))
        if not os.path.isabs(source):
            return task  # of the hub, which every node asks by itself
    except UnavailableError as error:
        reason = str(error)
    if (found := copy(files, task.content)) is not None:
        return replace(task, source=f"{dataset.ROWS}{found}")
    if reason or not os.path.exists(source):
        reason = reason or f"no file or directory {source}"
        raise UnavailableError(f"{task.name}: {reason}, and {files.uri}/{INPUTS} has no copy of its rows")
    return task
