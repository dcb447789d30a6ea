"""Answers that a language model writes, compared with those it should have written: pure, from text to yes or no."""

import re

from distsub.data.labels import number
from distsub.records import Task

_GROUPED = re.compile(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))")


def cut(text: str, stop: str | None) -> str:
    """End a generated text before the first `stop`."""
    return text if stop is None else text.partition(stop)[0]


def find(text: str, task: Task) -> str | None:
    """Find the answer in a completion: the first group of the task's expression, or all that it matches.

    Of several matches the last counts: a worked answer ends with its result. None where nothing matches.
    """
    if task.answer is None:
        return text.strip()
    matches = list(re.finditer(task.answer, text))
    if not matches:
        return None
    return (matches[-1][1 if matches[-1].re.groups else 0] or "").strip()


def same(answer: str | None, target: str | None) -> bool:
    """Tell whether two answers are the same: numbers as numbers (1,000 = 1000.0, $5 = 5), else text by text.

    >>> same("1,000", "1000.0"), same("$18", "18"), same("18.5", "18"), same("Positive", "positive"), same(None, "1")
    (True, True, False, False, False)
    """
    if answer is None or target is None:
        return False
    values = [_value(each) for each in (answer, target)]
    return answer == target if None in values else values[0] == values[1]


def _value(text: str) -> int | float | None:
    return number(_GROUPED.sub("", text.strip().removeprefix("$")))
