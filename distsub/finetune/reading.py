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

from distsub.errors import DataError, UnavailableError, nearest
from distsub.finetune import cells, packages
from distsub.finetune.tasks import FILE_SUFFIXES, is_file
from distsub.trial import Task

# Reading CSV, pyarrow would take an interrupt for itself and raise an error that looks like a bad file.
pa.enable_signal_handlers(False)


def read(task: Task, splits: Sequence[str]) -> list[pa.Table]:
    """Read splits from wherever a task's source points.

    Args:
        task: Where the rows are and which columns count.
        splits: Names of splits of a hub dataset, or file stems in a directory.

    Returns:
        One table per split: the rows that `where` keeps, in the order of the file; the columns `text`, `label` and
        those of `where`, each as text or null (see `cells`). It may have no rows.

    Raises:
        DataError: A file cannot be read as what it is, a column is missing, a text column holds no text.
        UnavailableError: The data are not on this machine and cannot be fetched.
    """
    return [_kept(table, task, split) for table, split in zip(_read(task, splits), splits, strict=True)]


def _read(task: Task, splits: Sequence[str]) -> list[pa.Table]:
    source = task.source
    if packages.is_package(source):
        files = packages.resolve(source)
        if len(files) != 1:
            raise DataError(f"{task.name}: {source} names {len(files)} files; name one, as in package:NAME/FILE.csv")
        return [_read_file(files[0], task)] * len(splits)
    path = Path(source).expanduser()
    if not (path.is_absolute() or source.startswith(".") or path.exists()):
        return _read_hub(task, splits)
    if not path.exists():
        raise UnavailableError(f"{task.name}: no file or directory {path}; path is relative to the sweep file")
    if path.is_file():
        if len(set(splits)) > 1:
            raise DataError(f"{task.name}: {path} is one file; set holdout to the rows to evaluate on")
        return [_read_file(path, task)]
    return [pa.concat_tables([_read_file(file, task) for file in _split_files(path, split, task)]) for split in splits]


def _split_files(directory: Path, split: str, task: Task) -> list[Path]:
    exact = [file for suffix in FILE_SUFFIXES if (file := directory / (split + suffix)).is_file()]
    found = exact or sorted(directory.glob(f"{split}-*-of-*.parquet"))
    if len(exact) > 1:
        raise DataError(f"{task.name}: {' and '.join(file.name for file in exact)} in {directory}; keep one")
    if not found:
        present = [file.name for file in sorted(directory.iterdir()) if is_file(file.name)]
        raise DataError(
            f"{task.name}: no {split}{{{','.join(FILE_SUFFIXES)}}} in {directory} (there: "
            f"{', '.join(present) or 'no data files'}); set train or validation to a file stem, or holdout to rows"
        )
    return found


def _read_file(path: Path, task: Task) -> pa.Table:
    """Read the columns that the task needs of one local file."""
    import pyarrow.csv
    import pyarrow.json
    import pyarrow.parquet

    try:
        if path.suffix == ".parquet":
            # Names first: a missing column is then our error and not the reader's.
            _need_columns(pyarrow.parquet.read_schema(path).names, task, path.name)
            # No partitioning: a folder called label=1 above the file is not a column.
            table = pyarrow.parquet.read_table(path, columns=_columns(task), partitioning=None)  # pyright: ignore[reportArgumentType]
        elif path.suffix in (".csv", ".tsv"):
            table = pyarrow.csv.read_csv(
                path,
                parse_options=pyarrow.csv.ParseOptions(
                    delimiter="\t" if path.suffix == ".tsv" else ",", newlines_in_values=True
                ),
                # Only an empty cell is missing: "NA" and "null" are words. Text that looks like a number stays text.
                convert_options=pyarrow.csv.ConvertOptions(
                    column_types=dict.fromkeys(_columns(task), pa.string()), null_values=[""], strings_can_be_null=True
                ),
            )
        elif path.suffix in (".jsonl", ".json"):
            table = pyarrow.json.read_json(path)
        else:
            raise DataError(f"{task.name}: cannot read {path}; allowed: {', '.join(FILE_SUFFIXES)}")
    except pa.ArrowInvalid as error:
        raise DataError(f"{task.name}: {path} is not a readable {path.suffix} file: {_line(error)}") from error
    except OSError as error:
        raise UnavailableError(f"{task.name}: cannot read {path}: {_line(error)}") from error
    _need_columns(table.column_names, task, path.name)
    return _as_text(table, task, path.name)


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
                f"{task.name}: dataset {what} is not in the cache of this machine and cannot be fetched; give the "
                f"task a path to local files, or fill the cache (HF_HOME) on a machine with network: {_line(error)}"
            ) from error
        raise DataError(f"{task.name}: dataset {what}, splits {', '.join(splits)}: {_line(error)}") from error
    tables = []
    for dataset, split in zip(loaded, splits, strict=True):
        _need_columns(dataset.column_names, task, f"{what} {split}")
        tables.append(_as_text(dataset.select_columns(_columns(task)).with_format("arrow")[:], task, f"{what} {split}"))
    return tables


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


def _need_columns(present: Sequence[str], task: Task, origin: str) -> None:
    for column in _columns(task):
        if column not in present:
            raise DataError(f'{task.name}: no column "{column}" in {origin}; {nearest(column, present)}')
        if list(present).count(column) > 1:
            raise DataError(f'{task.name}: {origin} has more than one column "{column}"; keep one')


def _as_text(table: pa.Table, task: Task, origin: str) -> pa.Table:
    """Give the columns that the task needs their one form."""
    columns = {}
    for name in _columns(task):
        column = table[name]
        if name in task.text and not (cells.is_text(column.type) or pa.types.is_null(column.type)):
            raise DataError(f'{task.name}: text column "{name}" holds {column.type}, not text, in {origin}')
        try:
            columns[name] = cells.as_text(column)
        except DataError as error:
            raise DataError(f'{task.name}: column "{name}" of {origin} {error}') from error
    return pa.table(columns)


def _kept(table: pa.Table, task: Task, split: str) -> pa.Table:
    """Keep the rows that the task asks for."""
    for name, value in task.where:
        try:
            table = table.filter(cells.matching(table[name], value))
        except DataError as error:
            raise DataError(f'{task.name}: column "{name}" of "{split}" {error}') from error
    return table


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
