"""Labelled text of a task, checked and subset the same way on every machine.

Which rows a trial trains and evaluates on depends on the task and the budget only, never on a seed: trials of one
sweep see the same rows, so that they can be compared example by example. `reading` gives the rows as they lie in
files, `batches` makes what a model reads of them.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from distsub.data import answers, chats, labels, reading
from distsub.errors import DataError, UnavailableError, first_line
from distsub.files import parse_json
from distsub.records import Budget, Task

ROWS = "rows:"
"""Begins the source of a task whose rows are drawn and checked already, in a folder that `save` wrote."""


class Texts(Sequence[str]):
    """A column of strings in Arrow's memory, a third of what as many Python strings take."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        self._column = column

    def __len__(self) -> int:
        return len(self._column)

    def __getitem__(self, row: Any) -> Any:
        """Give a string, or a list of them."""
        if isinstance(row, slice):
            start, stop, step = row.indices(len(self))
            return self._column.slice(start, max(stop - start, 0)).to_pylist()[::step]
        return self._column[row].as_py()

    def __iter__(self) -> Iterator[str]:
        """Make some strings at a time."""
        for start in range(0, len(self), 10_000):
            yield from self[start : start + 10_000]

    def __eq__(self, other: object) -> bool:
        """Compare with any column of strings."""
        return [*self] == [*other] if isinstance(other, Sequence) else NotImplemented

    def __repr__(self) -> str:
        """Show the strings."""
        return repr([*self])


@dataclass(frozen=True)
class Split:
    """Rows to train or evaluate on.

    Attributes:
        texts: One column of strings, or two of the same length for pairs.
        labels: Class numbers, or values for regression; the completions of a completion task.
        scale: Mean and standard deviation of the values that are trained on, where the task standardises them; the
            labels are as they are.
    """

    texts: tuple[Sequence[str], ...]
    labels: list[int] | list[float] | list[str]
    scale: tuple[float, float] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def part(self, rows: slice) -> "Split":
        """Give some of the rows."""
        return Split(tuple(column[rows] for column in self.texts), self.labels[rows], self.scale)


@dataclass(frozen=True)
class Splits:
    """Everything one trial reads.

    Attributes:
        train: Rows to train on.
        validation: Rows to evaluate on.
        dataset_hash: A sha256 of both that tells whether two trials read the same.
        task: The task with its number of classes, and their names where they are not the class numbers.
    """

    train: Split
    validation: Split
    dataset_hash: str
    task: Task


def load(task: Task, budget: Budget) -> Splits:
    """Read a task's rows in the order of the source, check them and take the budget's fixed subset.

    `train_examples` and `eval_examples` are upper bounds; smaller subsets are contained in larger ones.

    Raises:
        DataError: A column is missing, a label or text is not usable, or a split is empty.
        UnavailableError: The data are not on this machine and cannot be fetched.
    """
    if task.source.startswith(ROWS):
        return _saved(task, Path(task.source.removeprefix(ROWS)), budget)
    names = (task.train,) if task.validation is None else (task.train, task.validation)
    tables = [_usable(table, task, name) for table, name in zip(reading.read(task, names), names, strict=True)]
    if task.is_completion:
        found = [_completions(table[task.label], task, name) for table, name in zip(tables, names, strict=True)]
    else:
        counts = [_counts(table[task.label]) for table in tables]
        task = labels.settle(task, counts[0], counts[1] if len(counts) > 1 else {})
        if task.metric == "f1" and task.num_labels != 2:
            raise DataError(
                f'{task.name}: metric "f1" is for two labels, the rows have {task.num_labels}; use "macro_f1"'
            )
        found = [_numbers(table[task.label], task, name) for table, name in zip(tables, names, strict=True)]
    if task.validation is None:
        chosen = _hold_out(found[0], task)
        tables, found = tables * 2, found * 2
    else:
        chosen = np.arange(len(found[0])), np.arange(len(found[1]))
    wanted = budget.train_examples, budget.eval_examples
    train, validation = (
        _split(table, task, numbers, rows[_subset(len(rows), most, salt)])
        for table, numbers, rows, most, salt in zip(tables, found, chosen, wanted, ("train", "validation"), strict=True)
    )
    return _splits(train, validation, task)


def save(splits: Splits, folder: Path) -> list[Path]:
    """Write splits as Parquet, one file each; a task whose source is `ROWS` and the folder has the same rows."""
    task, files = splits.task, []
    about = {"distsub": json.dumps({"num_labels": task.num_labels, "labels": task.labels})}
    for name, split in (("train", splits.train), ("validation", splits.validation)):
        texts = {
            f"text_{i}" if len(split.texts) > 1 else "text": [*each] for i, each in enumerate(split.texts, start=1)
        }
        named = [task.labels[int(label)] for label in split.labels] if task.labels else split.labels
        files.append(folder / f"{name}.parquet")
        columns = {**{key: pa.array(each, pa.large_string()) for key, each in texts.items()}, "label": pa.array(named)}
        pq.write_table(pa.table(columns).replace_schema_metadata(about), files[-1])
    return files


def _saved(task: Task, folder: Path, budget: Budget) -> Splits:
    """Read back what `save` has written."""
    found = []
    try:
        for name, most in (("train", budget.train_examples), ("validation", budget.eval_examples)):
            table = pq.read_table(folder / f"{name}.parquet")
            about = parse_json((table.schema.metadata or {})[b"distsub"])
            task = replace(task, num_labels=about["num_labels"], labels=tuple(about["labels"]))
            values, numbers = table["label"].to_pylist(), {label: i for i, label in enumerate(task.labels)}
            rows = _subset(len(values), most, name)
            chosen = table if len(rows) == len(values) else table.take(rows)
            texts = tuple(map(Texts, chosen.drop_columns("label").columns))
            found.append(Split(texts, [numbers[values[i]] if numbers else values[i] for i in rows]))
    except (OSError, pa.ArrowException, ValueError, KeyError, TypeError) as error:
        raise UnavailableError(f"{task.name}: the rows in {folder} cannot be read: {first_line(error)}") from None
    return _splits(found[0], found[1], task)


def _splits(train: Split, validation: Split, task: Task) -> Splits:
    """Put both splits together, with the scale of those that are trained on where the task standardises its values."""
    if task.standardise:
        values = np.asarray(train.labels, dtype=np.float64)
        if not (deviation := float(values.std())):
            raise DataError(
                f"{task.name}: all {len(values)} training rows have the value {values[0]:g}, so standardise = true has "
                "no scale to take; give rows of different values, or leave it out"
            )
        scale = float(values.mean()), deviation
        train, validation = (replace(each, scale=scale) for each in (train, validation))
    return Splits(train, validation, _hash((train, validation)), task)


def _usable(table: pa.Table, task: Task, split: str) -> pa.Table:
    """Refuse rows that cannot be used, or leave them out."""
    where, rows = f'{task.name} "{split}"', np.arange(table.num_rows)
    if not table.num_rows:
        kept = " with " + " and ".join(f"{column} = {value}" for column, value in task.where) if task.where else ""
        raise DataError(f"{where}: no rows{kept}; an empty split cannot be used, give labelled rows")
    blank = {column: _blank(table[column]) for column in (*task.text, task.label)}
    label = blank.pop(task.label)
    text = np.any([*blank.values()], axis=0)
    if task.empty == "refuse" and text.any():
        cells = ", ".join(f'"{column}" in {bad.sum()}' for column, bad in blank.items() if bad.any())
        raise DataError(
            f"{where}: the text is empty in {text.sum()} of {len(rows)} rows, first in row {rows[text][0] + 1} (column "
            f'{cells}); fill them, or set empty = "drop" (leave them out) or "keep" (use them as they are)'
        )
    if task.empty != "drop" and label.any():
        raise DataError(
            f'{where}: {"completion" if task.is_completion else "label"} column "{task.label}" is empty in '
            f'{label.sum()} of {len(rows)} rows, first in row {rows[label][0] + 1}; fill them, or set empty = "drop" '
            "(leave those rows out)"
        )
    if task.empty == "drop":
        table = table.filter(pa.array(~(text | label)))
        if not table.num_rows:
            raise DataError(f'{where}: text or label is empty in all {len(rows)} rows, empty = "drop" leaves none')
    return table


def _blank(column: pa.ChunkedArray) -> np.ndarray:
    """Find the cells without text: missing, or nothing but white space."""
    empty: Any = pc.equal(pc.utf8_trim_whitespace(column), "")  # pyright: ignore[reportAttributeAccessIssue]
    return empty.fill_null(True).to_numpy()


def _counts(column: pa.ChunkedArray) -> dict[str, int]:
    return {each["values"]: each["counts"] for each in column.value_counts().to_pylist()}


def _numbers(column: pa.ChunkedArray, task: Task, split: str) -> np.ndarray:
    """Turn a label column into class numbers or values."""
    encoded: Any = pa.chunked_array([column.combine_chunks()]).chunk(0).dictionary_encode()
    values = labels.encode(task, encoded.dictionary.to_pylist(), split)
    return np.asarray(values, dtype=np.float64 if task.num_labels == 1 else np.int64)[encoded.indices.to_numpy()]


def _completions(column: pa.ChunkedArray, task: Task, split: str) -> np.ndarray:
    """Take the completions, and refuse those in which no answer is found or that end no chat."""
    where = f'{task.name} "{split}"'
    texts = [text or "" for text in column.to_pylist()]
    if task.is_chat:
        texts = [
            chats.messages(text, f"{where} row {number}")[-1]["content"] for number, text in enumerate(texts, start=1)
        ]
    if task.metric == "exact_match":
        cut = [answers.cut(text, task.stop) for text in texts]
        blank = [row for row, text in enumerate(cut) if not text.strip()]
        if blank:
            raise DataError(
                f"{where}: nothing stands before stop = {task.stop!r} in {len(blank)} of {len(texts)} completions, "
                f"first in row {blank[0] + 1} ({texts[blank[0]][:40]!r}); give another stop, or fix those rows"
            )
        missing = [row for row, text in enumerate(cut) if answers.find(text, task) is None]
        if missing:
            raise DataError(
                f"{where}: answer = {task.answer!r} finds nothing in {len(missing)} of {len(texts)} completions, first "
                f"in row {missing[0] + 1} ({texts[missing[0]][-40:]!r}); fix the expression, or those rows"
            )
    return np.asarray(texts, dtype=object)


def _hold_out(numbers: np.ndarray, task: Task) -> tuple[np.ndarray, np.ndarray]:
    """Draw the rows to train and to evaluate on out of one table, each class in proportion."""
    rows, holdout = len(numbers), task.holdout or 0
    wanted = max(1, round(holdout * rows)) if isinstance(holdout, float) else holdout
    if wanted >= rows:
        raise DataError(f"{task.name}: holdout = {holdout} of {rows} rows leaves none to train on")
    order = _order(rows, "holdout")
    if task.num_labels not in (0, 1):
        # Rank each row within its class, as a share of the class: the first shares of all classes come first.
        share = np.empty(rows)
        for number in np.unique(numbers):
            members = order[numbers[order] == number]
            share[members] = (np.arange(len(members)) + 0.5) / len(members)
        order = order[np.argsort(share[order], kind="stable")]
    return np.sort(order[wanted:]), np.sort(order[:wanted])


def _subset(rows: int, wanted: int | None, salt: str) -> np.ndarray:
    if wanted is None or wanted >= rows:
        return np.arange(rows)
    return np.sort(_order(rows, salt)[:wanted])


def _order(rows: int, salt: str) -> np.ndarray:
    """Shuffle row numbers by a hash, which unlike a generator's stream is the same in every version of everything."""
    keys = [hashlib.blake2b(f"{salt}:{row}".encode(), digest_size=8).digest() for row in range(rows)]
    return np.argsort(np.frombuffer(b"".join(keys), dtype=">u8"), kind="stable")


def _split(table: pa.Table, task: Task, numbers: np.ndarray, rows: np.ndarray) -> Split:
    chosen = table.take(rows)
    texts = tuple([text or "" for text in chosen[column].to_pylist()] for column in task.text)
    return Split(texts, numbers[rows].tolist())


def _hash(splits: tuple[Split, Split]) -> str:
    digest = hashlib.sha256()
    for split in splits:
        for row in zip(*split.texts, split.labels, strict=True):
            digest.update(json.dumps(row).encode() + b"\n")
        digest.update(b"\n")
    return digest.hexdigest()
