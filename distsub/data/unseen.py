"""Rows that no training and no search has looked at, if the data have any."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from distsub.data import dataset, tasks
from distsub.errors import DataError, UnavailableError
from distsub.records import Budget, Task


@dataclass(frozen=True)
class Unseen:
    """Rows to score a model on, with labels as the label column spells them, and which rows they are, in words."""

    texts: list[str] | list[tuple[str, ...]]
    labels: list[str]
    origin: str


def find(task: Task, budget: Budget, asked: Sequence[Task] = ()) -> Unseen | None:
    """Find rows that neither the trainings nor the searches of a sweep have looked at; `asked` are all its tasks.

    A split called "test" if it has labels and no task of the sweep is scored on it; else the rows to evaluate on that
    the budget leaves out (`eval_examples`); else the rows to train on that it leaves out. Which rows a budget takes
    is decided by a hash of their numbers before anything is trained. Rows whose texts were looked at are left out.

    Raises:
        DataError: The rows of the task cannot be used.
        UnavailableError: They are not here.
    """
    task = replace(task, content=None)
    seen = dataset.load(task, budget)
    texts = {row for split in (seen.train, seen.validation) for row in zip(*split.texts, strict=True)}
    every = replace(budget, train_examples=None, eval_examples=None)
    splits: list[tuple[str, dataset.Splits | None]] = [('the split "test"', _test(task, every, asked))]
    if budget.eval_examples is not None or budget.train_examples is not None:
        splits.append(("", dataset.load(task, every)))
    for origin, found in splits:
        if found is None:
            continue
        parts = [(origin, found.validation)]
        if not origin:
            parts = [("evaluation rows that the budget leaves out", found.validation)]
            parts += [("training rows that the budget leaves out", found.train)]
        for name, split in parts:
            if (rows := _new(split, texts, seen.task, name)) is not None:
                return rows
    return None


def _test(task: Task, every: Budget, asked: Sequence[Task]) -> dataset.Splits | None:
    """Read a split called "test"; None where there is none, it has no labels, or a task is scored on it."""
    of_same = [each for each in (task, *asked) if (each.source, each.config) == (task.source, task.config)]
    if any("test" in (each.train, each.validation) for each in of_same) or tasks.is_file(task.source):
        return None
    if task.source.startswith((dataset.ROWS, "package:")):
        return None
    try:
        return dataset.load(replace(task, validation="test", holdout=None), every)
    except (DataError, UnavailableError):
        return None


def _new(split: dataset.Split, seen: set[tuple[str, ...]], task: Task, origin: str) -> Unseen | None:
    """Keep the rows whose texts were not looked at."""
    rows = list(zip(*split.texts, strict=True))
    kept = [number for number, row in enumerate(rows) if row not in seen]
    if not kept:
        return None
    named = [task.labels[int(label)] if task.labels else str(label) for label in split.labels]
    texts = [rows[number] for number in kept]
    return Unseen(
        texts if len(split.texts) > 1 else [row[0] for row in texts], [named[number] for number in kept], origin
    )
