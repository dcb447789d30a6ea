"""Look at a person's data and model before a sweep is written: what lies in the file, in numbers."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from distsub.data import dataset, labels, layouts, notes, reading, tables
from distsub.data.delimited import SEPARATORS
from distsub.data.tasks import TASKS, resolve
from distsub.errors import ConfigError, DataError
from distsub.finetune import batches
from distsub.models import fit, pretrained
from distsub.records import Budget, Task

SAMPLE = 2000
"""Rows whose tokens are counted."""

_TEXTS = (
    *("text", "sentence", "body", "content", "message", "review", "description", "comment", "question", "utterance"),
    *("query", "document", "tweet", "title", "subject", "sentence1", "premise"),
)
_PAIRS = (("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2"), ("subject", "body"))
LABELS = ("label", "labels", "class", "category", "target", "sentiment", "intent", "topic", "y", "score", "rating")


@dataclass(frozen=True)
class Facts:
    """What was seen of rows and model.

    Attributes:
        task: The rows as a task, with its classes settled.
        origin: How the file is written, in words.
        guessed: What was chosen without being asked for, a sentence each.
        rows: Rows in the files, training and evaluation together.
        empty_cells: By column, rows in which it is empty.
        train, validation: Rows to train and to evaluate on.
        counts: Rows of each class, by name; of regression the smallest and largest value; nothing for completions.
        notes: Repeated and contradictory texts.
        lengths: Tokens a row: median, 98th percentile, longest; special tokens included.
        max_positions: Tokens that the model takes at most.
        num_params: D, head included.
        least: Tokens that the longest completion needs with one of its prompt.
    """

    task: Task
    origin: str
    guessed: tuple[str, ...]
    rows: int
    empty_cells: tuple[tuple[str, int], ...]
    train: int
    validation: int
    counts: tuple[tuple[str, float], ...]
    notes: tuple[str, ...]
    lengths: tuple[int, int, int]
    max_positions: int
    num_params: int
    least: int = 0


def survey(
    source: Path,
    model: str,
    text: str | None = None,
    label: str | None = None,
    validation: Path | None = None,
    holdout: int | float | None = None,
    keys: Mapping[str, Any] | None = None,
) -> Facts:
    """Look at data and model.

    Args:
        source: A file, or a folder with `train` and perhaps `validation`.
        model: Whose tokens are counted.
        text: One column, or two with a comma between that make a pair; None to choose.
        label: The label's column; None to choose.
        validation: A file of rows to evaluate on, in the folder of `source`; None takes the folder's or holds some out.
        holdout: Rows to hold out, or their share.
        keys: Fields of `Task` that a person sets: its number of classes, how files are written.

    Raises:
        DistsubError: The data cannot be read or used, or the model not loaded.
    """
    keys = keys or {}
    where, files = place(source.expanduser().absolute(), validation, holdout)
    found = tables.sniff(files[0], given=writing(keys))
    columns, guessed = _columns(found, text, label)
    task = resolve(task_name(source), text=columns[:-1], label=columns[-1], **where, **(written(found) | dict(keys)))
    splits = [task.train] + ([] if task.validation is None else [task.validation])
    read = reading.read(task, splits)
    empty = {column: sum(num_empty(table[column]) for table in read) for column in columns}
    splits = _settled(task if "empty" in keys else replace(task, empty=_policy(task, read, empty)))
    return Facts(
        task=splits.task,
        origin=origin(found, len(files)),
        guessed=guessed,
        rows=sum(table.num_rows for table in read),
        empty_cells=tuple((column, number) for column, number in empty.items() if number),
        train=len(splits.train),
        validation=len(splits.validation),
        counts=_counts(splits),
        notes=tuple(line for line in notes.notes(splits) if " classes, " not in line),
        **_model(model, splits.task.num_labels or 0, splits.train),
    )


def place(source: Path, validation: Path | None, holdout: int | float | None) -> tuple[dict[str, Any], list[Path]]:
    """Say where rows to train and to evaluate on are, and which files hold the former."""
    if validation is not None:
        other = validation.expanduser().absolute()
        if holdout is not None:
            raise ConfigError("give --validation (a file) or --holdout (rows to split off), not both")
        if not source.is_file() or other.parent != source.parent or other.stem == source.stem:
            raise ConfigError(
                f"--validation {validation} must be a file of another name beside --data {source}: a task's splits are "
                "files of one folder"
            )
        stems = [path.name.split(".")[0] for path in (source, other)]
        return {"path": str(source.parent), "train": stems[0], "validation": stems[1]}, [source]
    if not source.is_dir():
        return {"path": str(source), "holdout": holdout or 0.2}, [source]
    whole = layouts.dataset_files(source)
    if whole is not None:
        return {"path": str(source), "holdout": holdout or 0.2}, whole
    try:
        (files,) = layouts.split_files(source, ("train",))
    except DataError as error:
        raise DataError(f"{source} {error}; give --data a file") from error
    if holdout is None:
        for name in ("validation", "dev", "valid", "test"):
            try:
                layouts.split_files(source, (name,))
            except DataError:
                continue
            return {"path": str(source), "validation": name}, files
    return {"path": str(source), "holdout": holdout or 0.2}, files


def task_name(source: Path) -> str:
    """Name the task after its file; a name that means another task gets a prefix."""
    name = source.expanduser().absolute().name.split(".")[0] or "data"
    return f"my-{name}" if name in TASKS else name


def written(found: tables.FileTable) -> dict[str, str]:
    """Give the keys of a task that say how its files are written, where a reader would have to guess."""
    form, comma = found.writing, "\t" if found.path.suffix in (".tsv", ".tab") else ","
    keys = {"separator": form.separator, "quote": form.quote, "encoding": form.encoding and form.encoding.lower()}
    usual = (None, comma, "double", "utf-8", "utf-8-sig")
    return {key: value for key, value in keys.items() if value not in usual}


def writing(keys: Mapping[str, Any], nested: str | None = None) -> tables.Writing:
    """Say how files are written, as far as a person has."""
    return tables.Writing(*(keys.get(name) for name in ("separator", "quote", "encoding")), nested=nested)


def _columns(found: tables.FileTable, asked: str | None, label: str | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Take the columns that are named, and choose the others where that is clear."""
    present, guessed = found.columns, []
    text = (asked,) if asked in present else tuple(name.strip() for name in (asked or "").split(",") if name.strip())
    if len(text) > 2:
        raise ConfigError(f"--text names {len(text)} columns; allowed: one, or two for pairs")
    for column in (*text, *([label] if label else [])):
        if column not in present:
            close = difflib.get_close_matches(column, present, n=1)
            hint = f'did you mean "{close[0]}"? ' if close else ""
            raise DataError(f'no column "{column}" in {found.path}; {hint}columns: {_listed(found)}')
    if label in text:
        raise ConfigError(f"--label {label} is also in --text: the answer must not stand in the question")
    lower = {column.lower(): column for column in present if column not in text and column != label}
    if label is None:
        label, why = next((lower[name] for name in LABELS if name in lower), None), "its name"
        if label is None:
            label, why = _like_labels(found, [*lower.values()])
        del lower[label.lower()]
        guessed.append(f'label: column "{label}", by {why} (--label says otherwise)')
    if not text:
        pair = next((pair for pair in _PAIRS if all(name in lower for name in pair)), None)
        names = pair or [name for name in _TEXTS if name in lower][:1]
        text = tuple(lower[name] for name in names)
        if not text:
            raise DataError(f"which column of {found.path} is the text? give --text; columns: {_listed(found)}")
        words = " and ".join(f'"{name}"' for name in text)
        guessed.append(f"text: column {words}, by {'their names, as a pair' if pair else 'its name'} (--text)")
    return (*text, label), tuple(guessed)


def _like_labels(found: tables.FileTable, among: Sequence[str]) -> tuple[str, str]:
    """Choose the one column of few values that repeat; where several are alike, people choose.

    Returns:
        The column, and why.

    Raises:
        DataError: No column, or several.
    """
    counts: dict[str, int] = {}
    for column in among:
        cells = [labels.plain(cell) for cell in found.table[column].to_pylist() if not labels.is_missing(cell)]
        number = len(set(cells))
        is_text = column.lower() in {*_TEXTS, *(name for pair in _PAIRS for name in pair)}
        if not is_text and 2 <= number <= min(max(labels.FEW, len(cells) / 5), len(cells) / 2):
            counts[column] = number
    alike = [column for column, number in counts.items() if number <= labels.FEW] or [*counts]
    if len(alike) == 1:
        return alike[0], f"its {counts[alike[0]]} values that repeat"
    which = f": {', '.join(alike[:-1])} or {alike[-1]}" if alike else ""
    raise DataError(f"which column of {found.path} is the label{which}? give --label; columns: {_listed(found)}")


def _listed(found: tables.FileTable) -> str:
    """List columns with what the first row has in them."""
    shown = []
    for name in found.columns[:20]:
        first = next((cell for cell in found.table[name].slice(0, 20).to_pylist() if cell), None)
        cell = "empty" if first is None else " ".join(first.split())
        shown.append(f"{name} ({cell[:24]}{'...' if len(cell) > 24 else ''})")
    return ", ".join(shown) + (", ..." if len(found.columns) > 20 else "")


def num_empty(column: pa.ChunkedArray) -> int:
    """Count the cells in which nothing is."""
    return sum(labels.is_missing(cell) for cell in column.to_pylist())


def _policy(task: Task, read: Sequence[pa.Table], empty: dict[str, int]) -> Any:
    """Leave rows without text or label out; keep pairs of which every row has one text at least."""
    if not any(empty.values()):
        return "refuse"
    if len(task.text) == 2 and not empty[task.label]:
        pairs = [zip(*(table[column].to_pylist() for column in task.text), strict=True) for table in read]
        if not any(labels.is_missing(a) and labels.is_missing(b) for rows in pairs for a, b in rows):
            return "keep"
    return "drop"


def _settled(task: Task) -> dataset.Splits:
    """Read the rows as classes, or as values where the labels are numbers that cannot be classes and nobody said."""
    try:
        return dataset.load(task, Budget(steps=1))
    except DataError as error:
        if task.num_labels is not None:
            raise
        try:
            splits = dataset.load(replace(task, num_labels=1, metric="pearson"), Budget(steps=1))
        except DataError:
            raise error from None
        values = [*splits.train.labels, *splits.validation.labels]
        if len(set(values)) == len(values) and all(value == int(value) for value in values):
            raise error from None  # whole numbers, each once: rather an id than a value
        return splits


def _counts(splits: dataset.Splits) -> tuple[tuple[str, float], ...]:
    numbers = [float(label) for label in (*splits.train.labels, *splits.validation.labels)]
    if splits.task.num_labels == 1:
        return ("smallest", min(numbers)), ("largest", max(numbers))
    names = splits.task.labels or tuple(str(i) for i in range(splits.task.num_labels or 0))
    return tuple((name, numbers.count(i)) for i, name in enumerate(names))


def _model(model: str, num_labels: int, split: dataset.Split) -> dict[str, Any]:
    """Count a row's tokens by the model's own tokenizer, and the model's numbers."""
    prepared = pretrained.prepare(model)
    tokenizer = pretrained.tokenizer(prepared)
    built: Any = pretrained.build(prepared, num_labels, head_seed=0)
    return sizes(
        built, tokenizer, [len(each["input_ids"]) for each in batches.tokenize(tokenizer, sample(split), 10**6)]
    )


def sample(split: dataset.Split) -> dataset.Split:
    """Take rows from all over a split, `SAMPLE` at most."""
    rows = np.unique(np.linspace(0, len(split) - 1, min(SAMPLE, len(split))).astype(int))
    labels: Any = [split.labels[i] for i in rows]
    return dataset.Split(tuple([str(column[i]) for i in rows] for column in split.texts), labels)


def sizes(model: Any, tokenizer: Any, lengths: list[int]) -> dict[str, Any]:
    """Say how long rows are, how long they may be, and how many numbers the model has: fields of `Facts`."""
    lengths = sorted(lengths)
    return {
        "lengths": (lengths[len(lengths) // 2], lengths[int(0.98 * (len(lengths) - 1))], lengths[-1]),
        "max_positions": fit.longest(tokenizer, model.config),
        "num_params": sum(parameter.numel() for parameter in model.parameters()),
    }


def origin(found: tables.FileTable, files: int) -> str:
    """Say how the file is written, as a person would."""
    separator, encoding = found.writing.separator, found.writing.encoding
    parts = [{"csv": "separated text", "json": "JSON"}.get(found.format, found.format.capitalize())]
    if separator:
        parts.append(f"separator {SEPARATORS.get(separator, separator)}")
    parts += [part for part in (encoding, found.compression) if part]
    parts += [f"first of {files} files"] if files > 1 else []
    return ", ".join([*parts, *found.notes])
