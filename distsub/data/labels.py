"""What people write in a label column, as class numbers 0..k-1 or as values: pure, from text to numbers.

Every reader gives labels as text ("3", "true", "billing"), so the same rows mean the same classes whatever file they
lay in. Classes are sorted by name, numbers by value; nothing is guessed that a person could have meant otherwise.
"""

import difflib
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from distsub.errors import DataError
from distsub.records import Task

FEW = 10
"""Classes that any number of rows may have; more than this and than a fifth of the rows look like values or ids."""

_NUMBER = re.compile(r"[+-]?([0-9]{1,300}(\.[0-9]{0,300})?|\.[0-9]{1,300})([eE][+-]?[0-9]{1,3})?")
_CODE = re.compile(r"[+-]?0[0-9]")  # "007" is a name
_MISSING = frozenset({"na", "n/a", "#n/a", "nan", "null", "none", "nil", "inf", "-inf", "infinity", "-infinity"})

_TRUTHS = {spell(truth): truth for truth in ("true", "false") for spell in (str.lower, str.capitalize, str.upper)}
"""Truth values as programs write them, and as JSON and Arrow do."""

_AS_VALUES = "num_labels = 1 makes it a regression"


def number(text: str) -> int | float | None:
    """Read a number, exactly where it is whole; None where the text is none, or is not finite.

    Examples:
        >>> number("3"), number("3.0"), number("-1e2"), number("0.5"), number("100000000000000001")
        (3, 3, -100, 0.5, 100000000000000001)
        >>> number("3,5"), number("nan"), number("yes"), number("1_000")
        (None, None, None, None)
    """
    text = text.strip()
    if not _NUMBER.fullmatch(text):
        return None
    if text.lstrip("+-").isdecimal():
        return int(text)
    value = float(text)
    return None if math.isinf(value) else int(value) if value.is_integer() else value


def is_missing(text: str | None) -> bool:
    """Tell whether a cell holds nothing: null, or white space."""
    return text is None or not text.strip()


def settle(task: Task, train: Mapping[str, int], validation: Mapping[str, int]) -> Task:
    """Say how many classes a task has and what they are called, from the labels of all its rows.

    Args:
        task: As the sweep file describes it.
        train: How many rows to train on have each label; all rows, where those to evaluate on are held out of them.
        validation: The same of the rows to evaluate on; empty where they are held out.

    Returns:
        The task with `num_labels` set; with `labels` set too unless the labels are the class numbers themselves.

    Raises:
        DataError: The labels are not the classes, or values, that the task says.
    """
    if task.num_labels == 1:
        return task
    known, counts = Counter[str](), Counter[str]()
    for label, rows in train.items():
        known[plain(label)] += rows
    for label, rows in (*train.items(), *validation.items()):
        counts[plain(label)] += rows
    if counts.keys() <= _TRUTHS.keys() and len({_TRUTHS[name] for name in counts}) < len(counts):
        known, counts = _spelled_alike(known), _spelled_alike(counts)
    where = f'{task.name}: label column "{task.label}"'
    if task.labels:
        _check_listed(task, counts, where)
        return task
    for split, labels in (("train", train), ("validation", validation)):
        if labels and all(number(label) == -1 for label in labels):
            raise DataError(
                f"{where} is -1 in every {split} row: -1 marks a split without labels, as GLUE's test splits are; "
                "use a labelled one"
            )
    names = _sorted(counts, where)
    values = [number(name) for name in names] if _whole(names) else []
    k = task.num_labels
    if k is None:
        _check_count(names, known.total(), where)
    if values and 0 in values and set(values) <= set(range(k or len(values))):
        return replace(task, num_labels=k or len(values))
    if k is not None and len(names) != k:
        raise DataError(_miscounted(k, values, names, counts, where))
    _check_count(names, None, where)
    if unseen := [name for name in names if not known[name]]:
        raise DataError(
            f"{where}: {sum(counts[name] for name in unseen)} validation rows have labels that no training row has: "
            f"{_some(unseen)}{_meant(unseen[0], known)}; fix them, leave those rows out, or list the classes: "
            "labels = [...]"
        )
    return replace(task, num_labels=len(names), labels=names)


def encode(task: Task, labels: Sequence[str], split: str) -> list[int] | list[float]:
    """Turn labels that `settle` knows into class numbers, or into values for regression; `split` is for messages.

    Raises:
        DataError: A value is no number.
    """
    if task.num_labels != 1:
        numbers = _numbers(task)
        return [numbers[plain(label)] for label in labels]
    values, odd = as_values(labels)
    if odd is not None:
        raise DataError(
            f'{task.name} "{split}": label column "{task.label}" holds "{_cut(odd)}", which is no finite number '
            f"as num_labels = 1 (regression) asks for; {with_point(odd) or 'leave num_labels out for classes'}"
        )
    return values


def as_values(labels: Iterable[str]) -> tuple[list[float], str | None]:
    """Read labels as values, truths as 1 and 0, up to the first that is no finite number; give that too.

    >>> as_values(["0.5", "true", "3,5"])
    ([0.5, 1.0], '3,5')
    """
    values: list[float] = []
    for label in labels:
        value = {"true": 1, "false": 0}.get(label, number(label))
        if value is None:
            return values, label
        values.append(float(value))
    return values, None


def with_point(label: str) -> str:
    """Advise to write a number with a point where it has a comma; "" of anything else."""
    comma = re.fullmatch(r"[+-]?\d*,\d+", label.strip())
    return f"write {label.strip().replace(',', '.')}" if comma else ""


def plain(label: str) -> str:
    """Write one label one way: without space around it, whole numbers without a fraction."""
    label = label.strip()
    value = None if _CODE.match(label) else number(label)
    return str(value) if isinstance(value, int) else label


def _numbers(task: Task) -> Mapping[str, int]:
    names = task.labels or tuple(str(i) for i in range(task.num_labels or 0))
    numbers = {plain(name): i for i, name in enumerate(names)}
    truths = {_TRUTHS[name]: i for name, i in numbers.items() if name in _TRUTHS}
    return {spelled: truths[truth] for spelled, truth in _TRUTHS.items() if truth in truths} | numbers


def _spelled_alike(counts: Counter[str]) -> Counter[str]:
    """Make two classes of truth values in several spellings: booleans in one shard, "True" in another."""
    alike = Counter[str]()
    for name, rows in counts.items():
        alike[_TRUTHS[name]] += rows
    return alike


def _whole(names: Sequence[str]) -> bool:
    return all(isinstance(number(name), int) and not _CODE.match(name) for name in names)


def _sorted(counts: Counter[str], where: str) -> tuple[str, ...]:
    """Sort the classes: numbers by value, names as Python sorts strings."""
    values = {name: number(name) for name in counts}
    numeric = [name for name, value in values.items() if value is not None]
    odd = [name for name in counts if name.lower() in _MISSING]
    if numeric and odd and len(numeric) + len(odd) == len(counts):
        raise DataError(
            f'{where} holds numbers, and "{odd[0]}" in {sum(counts[name] for name in odd)} rows; empty those cells and '
            'set empty = "drop", or list the classes: labels = [...]'
        )
    truths = [name for name in counts if name in _TRUTHS]
    if numeric and truths and len(numeric) + len(truths) == len(counts):
        raise DataError(
            f'{where} holds numbers, first {numeric[0]}, and "{truths[0]}" in {sum(counts[name] for name in truths)} '
            "rows; write the same in all rows, or list the classes: labels = [...]"
        )
    if len(numeric) < len(counts):
        return tuple(sorted(counts))
    if broken := [name for name in numeric if isinstance(values[name], float)]:
        raise DataError(
            f"{where} holds numbers that are not whole, first {broken[0]}: no class numbers; {_AS_VALUES}, or list the "
            "classes: labels = [...]"
        )
    return tuple(sorted(counts, key=int)) if _whole(numeric) else tuple(sorted(counts))


def _check_listed(task: Task, counts: Counter[str], where: str) -> None:
    """Refuse labels that the sweep file does not list."""
    if wrong := sorted(counts.keys() - _numbers(task).keys()):
        rows = sum(counts[name] for name in wrong)
        raise DataError(
            f"{where} holds {_some(wrong)} in {rows} rows, which labels = {list(task.labels)} does not list"
            f"{_meant(wrong[0], task.labels)}; add to the list, or fix the rows"
        )


def _check_count(names: Sequence[str], rows: int | None, where: str) -> None:
    """Refuse one class, and so many for so many rows that they are values or ids."""
    if len(names) < 2:
        raise DataError(f"{where} is {_some(names)} in every row; classification needs two classes or more")
    if rows is not None and len(names) > max(FEW, rows / 5):
        raise DataError(
            f"{where} has {len(names)} different labels in {rows} rows ({_some(names)}): is this a regression or an "
            f"id column? {_AS_VALUES}; num_labels = {len(names)} says that they are classes"
        )


def _miscounted(k: int, values: Sequence[object], names: Sequence[str], counts: Counter[str], where: str) -> str:
    """Say why labels do not fit the number of classes that is given."""
    found = f"{where} has {len(names)} different labels ({_some(names)}), num_labels = {k}"
    if "-1" in counts and all(value == -1 or value in range(k) for value in values):
        return (
            f"{found}: {counts['-1']} labels are outside 0..{k - 1}, first -1; -1 marks rows without a label in hub "
            "datasets: leave them out"
        )
    if len(names) < k:
        first = next((i for i in range(k) if i not in values), 0) if values else len(names)
        return f"{found}: class {first} would be empty; leave num_labels out to count the classes"
    return f"{found}; leave num_labels out to count the classes, or set it to {len(names)}"


def _meant(name: str, known: Iterable[str]) -> str:
    if number(name) is not None:
        return ""
    close = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.55) or [
        each for each in known if each.lower() == name.lower()
    ]
    return f' (did you mean "{_cut(close[0])}"?)' if close else ""


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(_cut(name) for name in names[:5])
    return shown + (", ..." if len(names) > 5 else "")


def _cut(name: str) -> str:
    return name if len(name) <= 40 else name[:37] + "..."
