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
from distsub.records import Task

PREDICTION, PROBABILITY = "prediction", "probability"
"""The columns that are added."""

ANOTHER = ", or give another label column (--label)"
"""What every command that reads labels can advise."""


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

    Raises:
        DataError: There are no rows, or a label is none that the model knows.
        ConfigError: The task says not how long an answer may be.
        AdapterError: The model gives no finite numbers.
    """
    if not len(rows):
        raise DataError(f"{rows.source} has no rows")
    task, notes = predictor.task, []
    texts, readable = _texts(predictor, rows)
    if missing := len(texts) - len(readable):
        first = next(number for number in range(len(texts)) if number not in readable[: number + 1]) + 1
        notes.append(f"{missing} of {len(texts)} rows have an empty text and no prediction, first row {first}")
    chosen = [texts[number] for number in readable]
    labels = [rows.labels[number] if score and rows.labels else None for number in readable]
    labelled = [place for place, label in enumerate(labels) if label is not None]
    if score and rows.labels and len(labelled) < len(readable):
        notes.append(f"{len(readable) - len(labelled)} rows have no {rows.label} and are not in the score")
    truth = [str(labels[place]) for place in labelled]
    scores: dict[str, float] = {}
    likely: list[float] = []
    if not task.is_completion:
        where = f'{rows.source}: column "{rows.label}"'
        remedy = f"{ANOTHER}, or do not score (--no-score)"
        # Before the model runs, which takes longer.
        targets = predictor.encode(truth, where, remedy) if labelled else []
        logits = predictor.logits(chosen)
        predicted: Sequence[Any] = predictor.decide(logits)
        if predictor.labels and chosen:
            likely = logits.softmax(-1).amax(-1).tolist()
        if labelled:
            scores = predictor.measure(logits[labelled], targets)
    else:
        predicted = predictor.complete(chosen, max_new_tokens)
        if labelled and task.metric == "nll":
            scores = predictor.evaluate([chosen[place] for place in labelled], truth)
        elif labelled:
            right = generation.matches([predicted[place] for place in labelled], truth, task)
            scores = metrics.evaluate(task, right, [1.0] * len(right))
    columns = {name: table[name] for table in (rows.texts, rows.others) for name in table.column_names}
    if rows.labels is not None and not task.is_chat:
        columns[str(rows.label)] = pa.array(rows.labels, cells.TEXT)
    place_of = {number: place for place, number in enumerate(readable)}
    places = pa.array([place_of.get(number) for number in range(len(texts))], pa.int64())
    columns[PREDICTION] = pa.array(predicted, pa.float64() if task.num_labels == 1 else cells.TEXT).take(places)
    if likely:
        columns[PROBABILITY] = pa.array(likely, pa.float32()).take(places)
    return Predictions(pa.table(columns), _own_first(scores, task), len(labelled), tuple(notes))


def score(predictor: Predictor, rows: Rows) -> tuple[dict[str, float], int]:
    """Score a model on the rows with a text and a label: every metric, the task's own first, and the number of rows.

    Raises:
        DataError: The file has no labels, or one that the model does not know.
    """
    texts, readable = _texts(predictor, rows)
    labels = rows.labels or [None] * len(texts)
    labelled = [number for number in readable if labels[number] is not None]
    if not labelled:
        raise DataError(f"{rows.source} has no row with a label to score; name their column by label (--label)")
    chosen, truth = [texts[number] for number in labelled], [str(labels[number]) for number in labelled]
    if predictor.task.is_completion:
        scores = predictor.evaluate(chosen, truth)
    else:
        targets = predictor.encode(truth, f'{rows.source}: column "{rows.label}"', ANOTHER)
        scores = predictor.measure(predictor.logits(chosen), targets)
    return _own_first(scores, predictor.task), len(labelled)


def _texts(predictor: Predictor, rows: Rows) -> tuple[list[Any], list[int]]:
    """Give each row's text, or texts, and the numbers of the rows that the model reads."""
    keeps = predictor.task.empty == "keep"
    columns = [[text or ("" if keeps else None) for text in column.to_pylist()] for column in rows.texts.columns]
    cells_of = list(zip(*columns, strict=True))
    readable = [number for number, row in enumerate(cells_of) if keeps or all(text and text.strip() for text in row)]
    return cells_of if len(columns) > 1 else columns[0], readable


def _own_first(scores: dict[str, float], task: Task) -> dict[str, float]:
    return dict(sorted(scores.items(), key=lambda each: each[0] != task.metric))
