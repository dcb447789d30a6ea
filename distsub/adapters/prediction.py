"""Predictions for the rows of a file, as a table; and their score where the file has the labels."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from distsub import metrics
from distsub.adapters.predictor import Predictor
from distsub.data import cells, reading, tables
from distsub.errors import ConfigError, DataError, UnavailableError
from distsub.finetune import generation

PREDICTION, PROBABILITY = "prediction", "probability"
"""The columns that are added."""


@dataclass(frozen=True)
class Rows:
    """Rows of a file.

    Attributes:
        source: Where they lie.
        texts: The columns that the model reads, as text or null.
        others: Further columns.
        labels: The column that it predicts, None where the file has none.
        label: The name of that.
    """

    source: str
    texts: pa.Table
    others: pa.Table
    labels: list[str | None] | None
    label: str | None

    def __len__(self) -> int:
        return self.texts.num_rows


@dataclass(frozen=True)
class Predictions:
    """What a model says of the rows of a file.

    Attributes:
        table: The columns that it reads, those that were kept, the labels if any, `prediction` and, of a classifier,
            `probability`; both null where a row has no text.
        metrics: Scores by name, the task's own first; empty without labels.
        scored: Rows that they are of.
        notes: What should be known, a sentence each.
    """

    table: pa.Table
    metrics: dict[str, float]
    scored: int
    notes: tuple[str, ...]


def read(
    predictor: Predictor,
    source: str,
    text: Sequence[str] = (),
    label: str | None = None,
    keep: Sequence[str] = (),
    writing: tables.Writing | None = None,
) -> Rows:
    """Read the rows of a file: CSV, TSV, JSON, JSON lines, Parquet or Arrow, compressed or not.

    Args:
        predictor: Says which columns it was trained on.
        source: A path, "package:NAME/FILE", or an address such as s3://.
        text: The columns to read in their place.
        label: The column of labels in its place; it must be there, where that of the training may be missing.
        keep: Further columns.
        writing: How it is written, as far as the user says.

    Raises:
        DataError: A column is missing, or the file cannot be read.
        ConfigError: The columns to read are not known, or not as many as the model reads.
        UnavailableError: The file is not there.
    """
    task, path = predictor.task, _local(source)
    given = replace(writing or tables.Writing(), nested=task.label if task.is_chat else None)
    if not (text or predictor.knows_columns):
        found = tables.read_file(path, None, (), given).columns
        raise ConfigError(
            f"the adapter does not say which column it reads; name one by text (--text), or two for pairs, of those "
            f"in {source}: {', '.join(found)}"
        )
    wanted = tuple(text) or task.text
    if predictor.knows_columns and len(wanted) != len(task.text):
        raise ConfigError(
            f"text names {len(wanted)} columns ({', '.join(wanted)}), the adapter reads {len(task.text)}: "
            f"{', '.join(task.text)}"
        )
    if task.is_chat and label is None:
        given = replace(given, nested=wanted[0])
    try:
        read = tables.read_file(path, list(wanted), wanted, given)
    except DataError as error:
        hint = "" if text or "no column" not in str(error) else "; name the columns to read by text (--text)"
        raise DataError(f"{str(error).replace(str(path), source)}{hint}") from None
    given = replace(read.writing, nested=given.nested)
    name = label or (task.label if predictor.knows_columns and task.label in read.columns else None)
    further = [*keep, *([name] if name and not task.is_chat else [])]
    if clash := [each for each in (PREDICTION, PROBABILITY) if each in {*wanted, *further}]:
        raise ConfigError(f"column {clash[0]!r} is what the result calls its own; rename the one in {source}")
    try:
        others = tables.read_file(path, list(dict.fromkeys(further)), (), given).table if further else None
    except DataError as error:
        raise DataError(str(error).replace(str(path), source)) from None
    if others is not None and others.num_rows != read.table.num_rows:  # blank lines are no rows where one column is
        raise DataError(f"{source} has {read.table.num_rows} rows of text and {others.num_rows} of {further}")
    labels = others[name].to_pylist() if others is not None and name in others.column_names else None
    if task.is_chat:
        labels = _last(read.table.column(0).to_pylist())
    kept = (others or read.table).select(list(dict.fromkeys(keep)))
    return Rows(source, read.table, kept, labels, name)


def _local(source: str) -> Path:
    """Find a file of rows, or fetch it."""
    path = reading.local(source)
    if "://" not in source and not path.is_file():
        what = "is a folder" if path.is_dir() else "is no file"
        raise UnavailableError(f"{source} {what}; give a file of rows: CSV, TSV, JSON lines, Parquet or Arrow")
    return path


def _last(chats: Sequence[str | None]) -> list[str | None] | None:
    """Give the assistant's last messages, if every chat ends with one."""
    try:
        ends = [json.loads(chat)[-1] for chat in chats if chat]
        return [end["content"] for end in ends] if all(end["role"] == "assistant" for end in ends) else None
    except (ValueError, KeyError, IndexError, TypeError):
        return None  # no chats, which the predictor says


def predict(predictor: Predictor, rows: Rows, score: bool = True, max_new_tokens: int | None = None) -> Predictions:
    """Predict for rows, and score that where they have labels.

    Args:
        predictor: From `load`.
        rows: From `read`.
        score: Whether to score, where there are labels.
        max_new_tokens: As of `Predictor.predict`.

    Raises:
        DataError: There are no rows, or a label is none that the model knows.
        ConfigError: The task says not how long an answer may be.
        AdapterError: The model gives no finite numbers.
    """
    if not len(rows):
        raise DataError(f"{rows.source} has no rows")
    task, notes = predictor.task, []
    texts = list(zip(*(column.to_pylist() for column in rows.texts.columns), strict=True))
    full = [number for number, row in enumerate(texts) if all(text is not None for text in row)]
    if task.empty == "keep":
        texts, full = [tuple(text or "" for text in row) for row in texts], list(range(len(texts)))
    else:
        full = [number for number in full if all(text.strip() for text in texts[number])]
    if missing := len(texts) - len(full):
        first = next(number for number in range(len(texts)) if number not in full[: number + 1]) + 1
        notes.append(f"{missing} of {len(texts)} rows have an empty text and no prediction, first row {first}")
    chosen = [texts[number] if len(texts[number]) > 1 else texts[number][0] for number in full]
    labelled = [place for place, number in enumerate(full) if score and rows.labels and rows.labels[number] is not None]
    if score and rows.labels and len(labelled) < len(full):
        notes.append(f"{len(full) - len(labelled)} rows have no {rows.label} and are not in the score")
    truth = [str((rows.labels or [])[full[place]]) for place in labelled]
    where = f'{rows.source}: column "{rows.label}"'
    found: dict[str, float] = {}
    chance: list[float | None] = []
    if not task.is_completion:
        remedy = ", give another label column (--label), or do not score (--no-score)"
        targets = (
            predictor.encode(truth, where, remedy) if labelled else []
        )  # before the model runs, which takes longer
        logits = predictor.logits(chosen)
        said: Sequence[Any] = predictor.decide(logits)
        if predictor.labels and chosen:
            chance = logits.softmax(-1).amax(-1).tolist()
        if labelled:
            found = predictor.measure(logits[labelled], targets)
    else:
        said = predictor.complete(chosen, max_new_tokens)
        if labelled and task.metric == "nll":
            found = predictor.evaluate([chosen[place] for place in labelled], truth)
        elif labelled:
            right = generation.matches([said[place] for place in labelled], truth, task)
            found = metrics.evaluate(task, right, [1.0] * len(right))
    columns = {name: rows.texts[name] for name in rows.texts.column_names}
    columns |= {name: rows.others[name] for name in rows.others.column_names}
    if rows.labels is not None and not task.is_chat:
        columns[str(rows.label)] = pa.array(rows.labels, cells.TEXT)
    kind = pa.float64() if task.num_labels == 1 else cells.TEXT
    columns[PREDICTION] = _spread(said, full, len(texts), kind)
    if chance:
        columns[PROBABILITY] = _spread(chance, full, len(texts), pa.float32())
    scores = dict(sorted(found.items(), key=lambda each: each[0] != task.metric))
    return Predictions(pa.table(columns), scores, len(labelled), tuple(notes))


def score(predictor: Predictor, rows: Rows) -> tuple[dict[str, float], int]:
    """Score a model on the rows that have a text and a label.

    Returns:
        Every metric by name, the task's own first; and the number of rows.

    Raises:
        DataError: The file has no labels, or one that the model does not know.
    """
    texts: list[tuple[str | None, ...]] = list(zip(*(each.to_pylist() for each in rows.texts.columns), strict=True))
    labels = rows.labels or [None] * len(texts)
    kept = [
        (row if len(rows.texts.columns) > 1 else row[0], label)
        for row, label in zip(texts, labels, strict=True)
        if label is not None and all(text is not None and text.strip() for text in row)
    ]
    if not kept:
        raise DataError(f"{rows.source} has no row with a label to score; name their column by label (--label)")
    found = predictor.evaluate([row for row, _ in kept], [label for _, label in kept])
    return dict(sorted(found.items(), key=lambda each: each[0] != predictor.task.metric)), len(kept)


def _spread(values: Sequence[Any], places: Sequence[int], length: int, kind: pa.DataType) -> pa.Array:
    """Put values at their rows, null elsewhere."""
    every: list[Any] = [None] * length
    for place, value in zip(places, values, strict=True):
        every[place] = value
    return pa.array(every, kind)
