"""Copies of imported trajectories among the results, which serve where the folder that a sweep file names is gone."""

import os
from pathlib import Path

from distsub.config.sweep import Sweep
from distsub.errors import OutputError, TrajectoryError, UnavailableError
from distsub.finetune import trajectory
from distsub.models import weight_files
from distsub.records import Imported
from distsub.results import Store
from distsub.runtime.recording import Trajectories


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
                copies = Trajectories(store)
                folder = trajectory.directory(copies.root, known)
                copies.fetch(folder)
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
