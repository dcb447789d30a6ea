"""Trajectories of results on this machine: imported ones put there, all copied from and to object stores."""

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from distsub import paths
from distsub.config.sweep import Sweep
from distsub.errors import DistsubError, OutputError, TrajectoryError, first_line
from distsub.files import Files
from distsub.finetune import pretrained, trajectory, weight_files
from distsub.records import Imported
from distsub.results import Store


def place(imported: Imported, store: Store) -> None:
    """Put an imported trajectory among the results, unless it is there: on every node, and when its folder has moved.

    Raises:
        TrajectoryError: It has changed since the sweep was checked, or a file is damaged.
        OutputError: The results cannot be written.
    """
    path = trajectory.directory(root_of(store), imported)
    if (path / trajectory.META).is_file():
        return
    with _writing(path):
        path.mkdir(parents=True, exist_ok=True)
        with Files.at(path.parent).locked(f"{path.name}.lock"):  # of several workers that need it at once, one copies
            fetch(store, path)
            if not (path / trajectory.META).is_file():
                _copy(imported, path)
                publish(store, path)


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


def place_all(sweep: Sweep, store: Store) -> None:
    """Put all that a sweep imports among the results: this process has the paths, which a worker may not."""
    for each in sweep.imported:
        place(each, store)


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        if isinstance(error, DistsubError):
            raise
        raise OutputError(f"trajectory {path} cannot be written: {first_line(error)}") from error


def root_of(store: Store) -> Path:
    """Give the local directory whose trajectories/ holds a store's trajectories."""
    if store.files.is_local:
        return Path(store.files.root)
    return pretrained.cache_directory() / "results" / hashlib.sha256(store.uri.encode()).hexdigest()[:16]


def fetch(store: Store, path: Path) -> None:
    """Copy a trajectory from an object store, if it has it."""
    if store.files.is_local:
        return
    folder = paths.trajectory(path.name)
    with contextlib.suppress(OSError, pa.ArrowException):
        if trajectory.META not in store.files.names(folder):
            return
        path.mkdir(parents=True, exist_ok=True)
        for name in store.files.names(folder):
            (path / name).write_bytes(store.files.read(f"{folder}/{name}"))


def publish(store: Store, path: Path) -> None:
    """Copy a trajectory to an object store, what completes it last."""
    if store.files.is_local:
        return
    folder = paths.trajectory(path.name)
    try:
        store.files.make(folder)
        for file in sorted(path.iterdir(), key=lambda file: file.name == trajectory.META):
            store.files.put(f"{folder}/{file.name}", file.read_bytes())
    except (OSError, pa.ArrowException) as error:
        raise OutputError(f"cannot write {folder} to {store.uri} ({first_line(error)})") from error
