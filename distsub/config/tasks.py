"""The tables of tasks in a sweep file."""

from datetime import date, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

from distsub.addresses import absolute, refuse_credentials
from distsub.config.methods import PositiveInt, Table, as_list
from distsub.data import tasks
from distsub.records import Empty, Task


def _label_list(value: Any) -> Any:
    """Let true stand for the label that files spell so."""
    if not isinstance(value, list):
        return value
    return [str(each).lower() if isinstance(each, bool) else each for each in value]


def _rows_or_share(value: Any) -> Any:
    whole = isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**63
    share = isinstance(value, float) and 0.0 < value < 1.0
    if value is not None and not whole and not share:
        raise ValueError(f"give a number of rows from 1 on, or a share of them such as 0.2, not {value!r}")
    return value


def _texts(value: Any) -> Any:
    """Let 1, true and dates stand for what files hold, which is compared as text."""
    if not isinstance(value, dict):
        return value
    plain = (bool, int, float, date, datetime)
    return {
        key: str(each).lower() if isinstance(each, bool) else str(each) if isinstance(each, plain) else each
        for key, each in value.items()
    }


class TaskTable(Table):
    """A table in `[[tasks]]`: a known task, changed or not, or one of its own."""

    name: str
    path: str | None = None
    source: str | None = None
    config: str | None = None
    revision: str | None = None
    text: Annotated[list[str], BeforeValidator(as_list)] | None = None
    label: str | None = None
    kind: Literal["classification", "regression", "completion"] | None = None
    prompt: str | None = None
    completion: str | None = None
    messages: str | None = None
    max_new_tokens: PositiveInt | None = None
    stop: str | None = None
    answer: str | None = None
    num_labels: PositiveInt | None = None
    labels: Annotated[list[str | int], BeforeValidator(_label_list)] | None = None
    metric: Literal["accuracy", "macro_f1", "matthews", "pearson", "f1", "nll", "exact_match"] | None = None
    train: str | None = None
    validation: str | None = None
    where: Annotated[dict[str, str], BeforeValidator(_texts)] | None = None
    holdout: Annotated[int | float, BeforeValidator(_rows_or_share)] | None = None
    empty: Empty | None = None
    separator: str | None = None
    quote: Literal["double", "none"] | None = None
    encoding: str | None = None
    standardise: bool | None = None

    def record(self, directory: Path) -> Task:
        """Make the task that it describes; a relative path starts at `directory`."""
        given = self.model_dump(exclude_none=True)
        if self.text is not None:
            given["text"] = tuple(self.text)
        if self.labels is not None:
            given["labels"] = tuple(str(label) for label in self.labels)
        if self.where is not None:
            given["where"] = tuple(sorted(self.where.items()))
        if self.path is not None:
            given["path"] = absolute(self.path, directory)
        if self.source is not None and "://" in self.source:
            given["source"] = refuse_credentials(self.source)
        return tasks.resolve(**given)
