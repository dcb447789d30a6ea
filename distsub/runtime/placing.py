"""Trajectories of results on this machine: imported ones put there, all copied from and to object stores."""

import contextlib
import hashlib
import os
from pathlib import Path

import pyarrow as pa

from distsub import paths
from distsub.config.sweep import Sweep
from distsub.errors import DistsubError, OutputError, TrajectoryError, UnavailableError, first_line
from distsub.files import Files
from distsub.finetune import trajectory
from distsub.models import pretrained, weight_files
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
    try:
        path.mkdir(parents=True, exist_ok=True)
        with Files.at(path.parent).locked(f"{path.name}.lock"):  # of several workers that need it at once, one copies
            fetch(store, path)
            if not (path / trajectory.META).is_file():
                _copy(imported, path)
                publish(store, path)
    except DistsubError:
        raise
    except (OSError, pa.ArrowException) as error:
        raise OutputError(f"trajectory {path} cannot be written: {first_line(error)}") from error


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


def kept(sweep: Sweep, out: str, directory: Path) -> dict[str, Path]:
    """Find the copies of imported trajectories that lie among the results and are no longer where the sweep file says.

    `out` is the address of the results, which need not be there; relative paths of the sweep file start at `directory`.

    Returns:
        For each path that nothing lies at the copy of what lay there, every byte of it as it was imported.

    Raises:
        TrajectoryError: A copy is damaged.
    """
    found: dict[str, Path] = {}
    gone = [each.path for each in sweep.imported if _is_gone(each.path)]
    if not gone:
        return found
    try:
        store = Store.open(out)
    except OutputError:
        return found  # there are no results yet
    for path in gone:
        relative = _relative(path, directory)
        for known in store.places.imported:
            if path == known.path or relative == _relative(known.path, Path(store.directory)):
                folder = trajectory.directory(root_of(store), known)
                fetch(store, folder)
                if (folder / trajectory.META).is_file():
                    found[path] = _checked(folder, path, known)
    return found


def _is_gone(path: str) -> bool:
    if "://" not in path:
        return not Path(path).exists()
    try:
        trajectory.elsewhere(path)
    except UnavailableError:
        return True
    return False


def _relative(path: str, directory: Path) -> str:
    return path if "://" in path else os.path.relpath(path, directory)


def _checked(folder: Path, path: str, known: Imported) -> Path:
    """Give a copy of which every byte is what the rows were made of."""
    found = trajectory.load(folder)
    files = {snapshot["file"]: snapshot["sha256"] for snapshot in found.meta["checkpoints"]}
    if found.content != known.content or any(
        weight_files.content_hash(folder / file) != sha256 for file, sha256 in files.items()
    ):
        raise TrajectoryError(
            f"trajectory {path} is not there, and its copy {folder} has changed since it was written; put back either"
        )
    return folder


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
