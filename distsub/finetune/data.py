"""Labelled text of a task, checked and subset the same way on every machine.

Which rows a trial trains and evaluates on depends on the task and the budget only, never on a seed: trials of one
sweep see the same rows, so that they can be compared example by example. `reading` gives the rows as they lie in
files, `batches` makes what a model reads of them.
"""

import hashlib
import json
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from distsub.errors import DataError
from distsub.finetune import reading
from distsub.trial import Budget, Task


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
        (rows,) = reading.read(task, (task.train,))
        rows = _checked(rows, task, task.train)
        train, validation = _hold_out(rows, task)
    else:
        train, validation = reading.read(task, (task.train, task.validation))
        train = _checked(train, task, task.train)
        validation = _checked(validation, task, task.validation)
    train = train.take(_subset(train.num_rows, budget.train_examples, "train"))
    validation = validation.take(_subset(validation.num_rows, budget.eval_examples, "validation"))
    splits = _to_split(train, task), _to_split(validation, task)
    return Splits(*splits, _hash(splits))


def _checked(table: pa.Table, task: Task, split: str) -> pa.Table:
    """Refuse what cannot be trained on, and make numbers of the labels."""
    where = f'{task.name} "{split}"'
    if not table.num_rows:
        kept = " with " + " and ".join(f"{column} = {value}" for column, value in task.where) if task.where else ""
        raise DataError(f"{where}: no rows{kept}; an empty split cannot be used, give labelled rows")
    for column in task.text:
        if table[column].null_count:
            raise DataError(f'{where}: text column "{column}" is empty in {table[column].null_count} rows; remove them')
    labels = table[task.label]
    # Booleans are 0 and 1; what is missing becomes NaN.
    truth = {"true": "1", "false": "0"}
    labels = pa.chunked_array([pa.array([truth.get(x, x) for x in labels.to_pylist()], labels.type)])
    try:
        numbers = labels.cast(pa.float64())
    except pa.ArrowInvalid as error:
        wanted = "numbers" if task.num_labels == 1 else f"integers 0..{task.num_labels - 1}"
        raise DataError(
            f'{where}: label column "{task.label}" holds {_first_word(labels)}; allowed: {wanted}'
        ) from error
    values = numbers.to_numpy()
    if missing := int((~np.isfinite(values)).sum()):
        raise DataError(f'{where}: label column "{task.label}" is empty or not finite in {missing} rows')
    if task.num_labels > 1:
        wrong = values[(values != np.floor(values)) | (values < 0) | (values >= task.num_labels)]
        if wrong.size:
            raise DataError(
                f'{where}: {wrong.size} labels in "{task.label}" are outside 0..{task.num_labels - 1}, first '
                f"{wrong[0]:g}" + ("; -1 marks a split without labels" if wrong[0] == -1 else "; set num_labels")
            )
    return table.set_column(table.column_names.index(task.label), task.label, numbers)


def _first_word(labels: pa.ChunkedArray) -> str:
    """Quote the first label that is no number."""
    for label in labels.drop_null().to_pylist():
        try:
            float(label)
        except ValueError:
            return f'"{label[:40]}"'
    return "text"


def _hold_out(table: pa.Table, task: Task) -> tuple[pa.Table, pa.Table]:
    """Split one table into train and validation, each class in proportion."""
    rows, wanted = table.num_rows, task.holdout or 0
    if wanted >= rows:
        raise DataError(f"{task.name}: holdout = {wanted} of {rows} rows leaves none to train on")
    order = _order(rows, "holdout")
    if task.num_labels > 1:
        labels = table[task.label].to_numpy()
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
