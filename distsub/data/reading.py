"""The rows of a task as they lie in files, the same whatever the format.

Local files are read into memory, so that several processes can read a read-only directory without cache or locks; hub
datasets come through `datasets` and its cache. Every value becomes text by one rule (see `cells`); what the texts mean,
which of them are classes and which are refused, is said in `data`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from distsub import cache, packages
from distsub.data import cells, layouts, tables, tasks
from distsub.errors import DataError, UnavailableError, first_line
from distsub.records import Task


def read(task: Task, splits: Sequence[str]) -> list[pa.Table]:
    """Read splits from wherever a task's source points: splits of a hub dataset, or file stems in a directory.

    Returns:
        One table per split: the rows that `where` keeps, in the order of the file; the columns `text`, `label` and
        those of `where`, each as text or null (see `cells`). It may have no rows.

    Raises:
        DataError: A file cannot be read as what it is, a column is missing, a text column holds no text.
        UnavailableError: The data are not on this machine and cannot be fetched.
    """
    return [_kept(table, task, split) for table, split in zip(_read(task, splits), splits, strict=True)]


def _read(task: Task, splits: Sequence[str]) -> list[pa.Table]:
    """Read splits from wherever the source points, and refuse what cannot be read in the task's name."""
    source, path = task.source, Path(task.source).expanduser()
    is_copy = "://" in source
    try:
        if is_copy or packages.is_package(source):
            path = local(source)
        elif not (path.is_absolute() or source.startswith(".") or path.exists()):
            return _read_hub(task, splits)
        if not path.exists():
            raise UnavailableError(f"no file or directory {path}; path is relative to the sweep file")
        return _read_path(path, task, splits)
    except (DataError, UnavailableError) as error:
        message = str(error).replace(str(path), source) if is_copy else str(error)
        raise type(error)(f"{task.name}: {message}") from error
    except OSError as error:
        raise UnavailableError(f"{task.name}: cannot read {path}: {error.strerror or error}") from error


def local(source: str) -> Path:
    """Give what a source names on this machine: a path, a file of a package, a copy of what is at s3:// or the like.

    Raises:
        DataError: A package has several files of that name.
        UnavailableError: It is not there or cannot be read.
    """

    def rows(_: Path, names: list[str]) -> list[str]:
        return [name for name in names if tasks.is_file(name) or name == "README.md"]

    if "://" in source:
        return cache.copied(source, rows, deep=True)
    if not packages.is_package(source):
        return Path(source).expanduser()
    files = packages.resolve(source)
    if len(files) != 1:
        raise DataError(f"{source} names {len(files)} files; name one, as in package:NAME/FILE.csv")
    return files[0]


def _read_path(path: Path, task: Task, splits: Sequence[str]) -> list[pa.Table]:
    if path.is_dir():
        try:
            whole = layouts.dataset_files(path)
            if whole is None:
                return [_files(files, task) for files in layouts.split_files(path, splits, task.config)]
        except DataError as error:
            raise error if str(path) in str(error) else DataError(f"{path} {error}") from error
    else:
        whole = [path]
    if len(set(splits)) > 1:
        raise DataError(f"{path} is one table without splits; set holdout to the rows to evaluate on")
    return [_files(whole, task)]


def _read_hub(task: Task, splits: Sequence[str]) -> list[pa.Table]:
    """Read splits of a hub dataset, from its cache when it is there."""
    import datasets
    from datasets.exceptions import DatasetsError

    what = task.source + (f" ({task.config})" if task.config else "")
    try:
        with _quiet():
            loaded: Any = datasets.load_dataset(
                task.source, name=task.config, revision=task.revision, split=list(splits)
            )
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        # A dataset that is a program is a RuntimeError, a damaged one a DatasetsError.
        # Not cached is an OSError for a dataset and a ValueError for a configuration of a cached one.
        if isinstance(error, OSError) or "cache" in str(error):
            raise UnavailableError(
                f"dataset {what} is not in the cache of this machine and cannot be fetched; give "
                "the task a path to local files, or fill the cache (HF_HOME) on a machine with network: "
                f"{first_line(error)}"
            ) from error
        raise DataError(f"dataset {what}, splits {', '.join(splits)}: {first_line(error)}") from error
    read = []
    for dataset, split in zip(loaded, splits, strict=True):
        origin = f"{what} {split}"
        try:
            cells.need(dataset.column_names, _columns(task))
        except DataError as error:
            raise DataError(f"{origin} {error}") from error
        table = dataset.select_columns(_columns(task)).with_format("arrow")[:]
        read.append(tables.as_text(table, task.text, origin, task.label if task.is_chat else None))
    return read


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence progress bars and retries of the hub libraries, then restore them."""
    import datasets
    from huggingface_hub.utils import logging as hub_logging

    bars, verbosity, hub = (
        datasets.are_progress_bars_disabled(),
        datasets.logging.get_verbosity(),
        hub_logging.get_verbosity(),
    )
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    hub_logging.set_verbosity_error()
    try:
        yield
    finally:
        if not bars:
            datasets.enable_progress_bars()
        datasets.logging.set_verbosity(verbosity)
        hub_logging.set_verbosity(hub)


def _columns(task: Task) -> list[str]:
    return list(dict.fromkeys((*task.text, task.label, *(column for column, _ in task.where))))


def _files(files: Sequence[Path], task: Task) -> pa.Table:
    """Read files of one split one after the other, whatever types their columns have."""
    given = tables.Writing(task.separator, task.quote, task.encoding, task.label if task.is_chat else None)
    found = [tables.read_file(file, _columns(task), task.text, given) for file in files]
    for name in set(_columns(task)) - set(task.text):
        tables.agree(found, name)
    return pa.concat_tables([each.table for each in found])


def _kept(table: pa.Table, task: Task, split: str) -> pa.Table:
    """Keep the rows that the task asks for."""
    for name, value in task.where:
        try:
            table = table.filter(cells.matching(table[name], value))
        except DataError as error:
            raise DataError(f'{task.name}: column "{name}" of "{split}" {error}') from error
    return table
