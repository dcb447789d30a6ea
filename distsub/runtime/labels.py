"""Short, unique, printable names of searches and trials."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import TypeVar

from rich.cells import cell_len

from distsub.records import Full, Trial, label, method_labels, model_labels
from distsub.records.labels import apart
from distsub.report.terminal import printable
from distsub.search import Search

Named = TypeVar("Named", bound=Hashable)

PARTS = ("task", "model", "method", "seed")
"""The parts of a search's name, in order."""


def shorten(names: Iterable[str], width: int) -> dict[str, str]:
    """Cut names in the middle to a width in terminal cells; those that become alike are numbered.

    >>> shorten(["a-very-long-name-1", "a-very-long-name-2", "short"], 9)
    {'a-very-long-name-1': 'a-ve…me-1', 'a-very-long-name-2': 'a-ve…me-2', 'short': 'short'}
    """
    cut = dict.fromkeys(names, "")
    taken: set[str] = set()
    for name in sorted(cut, key=lambda name: cell_len(name) > width):  # what fits is not touched
        made, number = _cut(name, width), 1
        while made in taken:
            number += 1
            made = _cut(name, width - len(f"#{number}")) + f"#{number}"
        taken.add(made)
        cut[name] = made
    return cut


def _cut(name: str, width: int) -> str:
    if cell_len(name) <= width:
        return name
    tail = head = ""
    for first, last in zip(name, reversed(name), strict=True):  # from both ends, as long as it fits
        if cell_len(head + first + tail) >= width:
            break
        head += first
        if cell_len(head + last + tail) >= width:
            break
        tail = last + tail
    return f"{head}…{tail}" if width > 0 else ""


class Labels:
    """Names the searches of a sweep, and their trials, by the parts in which they differ.

    Attributes:
        varying: Those of `PARTS` in which the searches differ.
        common: The other parts in words: "task mrpc, model roberta-base, seed 0".
    """

    def __init__(self, searches: Sequence[Search]) -> None:
        self._tasks = apart({search.task: printable(search.task.name) for search in searches})
        self._models = _clean(model_labels({search.model: None for search in searches}))
        self._methods = _clean(method_labels({search.method: None for search in searches}))
        self._parts = [self._of(search) for search in searches]
        several = {part for part in PARTS if len({each[part] for each in self._parts}) > 1}
        self.varying = tuple(part for part in PARTS if part in several)
        alike = [part for part in PARTS if part not in several]
        self.common = ", ".join(f"{part} {each[part]}" for each in self._parts[:1] for part in alike)

    def parts(self, index: int) -> dict[str, str]:
        """Give each part of a search's name, by its position."""
        return self._parts[index]

    def name(self, index: int, seed: bool = True) -> str:
        """Name a search, with or without its seed: mrpc/roberta-base/said/s0."""
        *parts, last = self._parts[index].values()
        return "/".join([*parts, f"s{last}"] if seed else parts)

    def trial(self, trial: Trial) -> str:
        """Name a trial: task and model where they differ, then method, d, step and seeds."""
        task = self._tasks.get(trial.task, printable(trial.task.name))
        model = self._models.get(trial.model) or printable(model_labels([trial.model])[trial.model])
        which = [name for part, name in (("task", task), ("model", model)) if part in self.varying]
        return " ".join([*(which if self._parts else [task]), self._what(trial)])

    def _what(self, trial: Trial) -> str:
        if trial.is_theta_0:
            return f"theta_0 s{trial.seeds.head}"
        if isinstance(trial.method, Full):  # of all weights, or with some disabled
            disabled = f" {trial.ablation.edit} {trial.ablation.mask}" if trial.ablation else ""
            return f"full{disabled} lr={trial.learning_rate:g} s{trial.seeds.data}"
        method = self._methods.get(trial.method) or printable(label(trial.method))
        if trial.eta is None:
            return f"{method} s{trial.seeds.data}"
        return f"{method} d={trial.d} eta={trial.eta:g} s{trial.seeds.text}"

    def _of(self, search: Search) -> dict[str, str]:
        names = (
            self._tasks[search.task],
            self._models[search.model],
            self._methods[search.method],
            search.seeds.text,
        )
        return dict(zip(PARTS, names, strict=True))


def _clean(names: Mapping[Named, str]) -> dict[Named, str]:
    return apart({key: printable(name) for key, name in names.items()})
