"""Labelled text of a task, checked and subset the same way on every machine.

Local files are read by pyarrow into memory, so that several processes can read a read-only directory without cache
or locks; hub datasets come through `datasets` and its cache. Which rows a trial trains and evaluates on depends on
the task and the budget only, never on a seed: trials of one sweep see the same rows, so that they can be compared
example by example. `batches` makes what a model reads of them.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from distsub.errors import DataError, UnavailableError, nearest
from distsub.finetune import packages
from distsub.finetune.tasks import FILE_SUFFIXES, is_file
from distsub.trial import Budget, Task

# Reading CSV, pyarrow would take an interrupt for itself and raise an error that looks like a bad file.
pa.enable_signal_handlers(False)


@dataclass(frozen=True)
class Split:
    """Rows to train or evaluate on.

    Attributes:
        texts: One list of strings, or two of the same length for pairs.
        labels: Class numbers, or values for regression.
    """

    texts: tuple[list[str], ...]
    labels: list[int] | list[float]

    def __len__(self) -> int:
        """Count the rows."""
        return len(self.labels)


@dataclass(frozen=True)
class Splits:
    """Everything one trial reads, and a sha256 of it that tells whether two trials read the same."""

    train: Split
    validation: Split
    dataset_hash: str


def load(task: Task, budget: Budget) -> Splits:
    """Read a task's rows, check them and take the budget's fixed subset.

    `train_examples` and `eval_examples` are upper bounds; smaller subsets are contained in larger ones.

    Args:
        task: Where the rows are and which columns count.
        budget: How many of them to use.

    Returns:
        The two splits, in the order of the source.

    Raises:
        DataError: A column is missing, a label or text is not usable, or a split is empty.
        UnavailableError: The data are not on this machine and cannot be fetched.
    """
    if task.validation is None:
        (rows,) = _read(task, (task.train,))
        rows = _checked(rows, task, task.train)
        train, validation = _hold_out(rows, task)
    else:
        train, validation = _read(task, (task.train, task.validation))
        train = _checked(train, task, task.train)
        validation = _checked(validation, task, task.validation)
    train = train.take(_subset(train.num_rows, budget.train_examples, "train"))
    validation = validation.take(_subset(validation.num_rows, budget.eval_examples, "validation"))
    splits = _to_split(train, task), _to_split(validation, task)
    return Splits(*splits, _hash(splits))


def _read(task: Task, splits: tuple[str, ...]) -> list[pa.Table]:
    """Read splits from wherever the source points."""
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

    strings = (*task.text, *(column for column, _ in task.where if column != task.label))
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
                    column_types=dict.fromkeys(strings, pa.string()), null_values=[""], strings_can_be_null=True
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
    return table.select(_columns(task))


def _read_hub(task: Task, splits: tuple[str, ...]) -> list[pa.Table]:
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
        tables.append(dataset.select_columns(_columns(task)).with_format("arrow")[:])
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


def _checked(table: pa.Table, task: Task, split: str) -> pa.Table:
    """Keep the rows asked for and refuse what cannot be trained on."""
    for column, value in task.where:
        table = table.filter(pc.field(column).cast(pa.string()) == value)
    where = f'{task.name} "{split}"'
    if not table.num_rows:
        kept = " with " + " and ".join(f"{column} = {value}" for column, value in task.where) if task.where else ""
        raise DataError(f"{where}: no rows{kept}; an empty split cannot be used, give labelled rows")
    for column in task.text:
        if not pa.types.is_string(kind := table[column].type) and not pa.types.is_large_string(kind):
            raise DataError(f'{where}: text column "{column}" holds {kind}, not text')
        if table[column].null_count:
            raise DataError(f'{where}: text column "{column}" is empty in {table[column].null_count} rows; remove them')
    labels = table[task.label]
    kind = labels.type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        wanted = "numbers" if task.num_labels == 1 else f"integers 0..{task.num_labels - 1}"
        raise DataError(f'{where}: label column "{task.label}" holds {kind}; allowed: {wanted}')
    values = labels.cast(pa.float64()).to_numpy()
    if missing := int((~np.isfinite(values)).sum()):
        raise DataError(f'{where}: label column "{task.label}" is empty or not finite in {missing} rows')
    if task.num_labels > 1:
        wrong = values[(values != np.floor(values)) | (values < 0) | (values >= task.num_labels)]
        if wrong.size:
            raise DataError(
                f'{where}: {wrong.size} labels in "{task.label}" are outside 0..{task.num_labels - 1}, first '
                f"{wrong[0]:g}" + ("; -1 marks a split without labels" if wrong[0] == -1 else "; set num_labels")
            )
    return table


def _hold_out(table: pa.Table, task: Task) -> tuple[pa.Table, pa.Table]:
    """Split one table into train and validation, each class in proportion."""
    rows, wanted = table.num_rows, task.holdout or 0
    if wanted >= rows:
        raise DataError(f"{task.name}: holdout = {wanted} of {rows} rows leaves none to train on")
    order = _order(rows, "holdout")
    if task.num_labels > 1:
        labels = table[task.label].cast(pa.float64()).to_numpy()
        # Rank each row within its class, as a share of the class: the first shares of all classes come first.
        share = np.empty(rows)
        for label in np.unique(labels):
            members = order[labels[order] == label]
            share[members] = (np.arange(len(members)) + 0.5) / len(members)
        order = order[np.argsort(share[order], kind="stable")]
    return table.take(np.sort(order[wanted:])), table.take(np.sort(order[:wanted]))


def _subset(rows: int, wanted: int | None, salt: str) -> np.ndarray:
    if wanted is None or wanted >= rows:
        return np.arange(rows)
    return np.sort(_order(rows, salt)[:wanted])


def _order(rows: int, salt: str) -> np.ndarray:
    """Shuffle row numbers by a hash, which unlike a generator's stream is the same in every version of everything."""
    keys = [hashlib.blake2b(f"{salt}:{row}".encode(), digest_size=8).digest() for row in range(rows)]
    return np.argsort(np.frombuffer(b"".join(keys), dtype=">u8"), kind="stable")


def _to_split(table: pa.Table, task: Task) -> Split:
    labels = table[task.label].cast(pa.float64() if task.num_labels == 1 else pa.int64()).to_pylist()
    return Split(tuple(table[column].to_pylist() for column in task.text), labels)


def _hash(splits: tuple[Split, Split]) -> str:
    digest = hashlib.sha256()
    for split in splits:
        for row in zip(*split.texts, split.labels, strict=True):
            digest.update(json.dumps(row).encode() + b"\n")
        digest.update(b"\n")
    return digest.hexdigest()


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
