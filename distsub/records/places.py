"""Where the contents of a sweep lie: the way from a record that knows its content back to the files."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property
from typing import Any, NamedTuple

from distsub.records import Setup, Source, Subspace, Task, Trial


class ModelPlace(NamedTuple):
    """A model's address and the hash of what is there."""

    name: str
    revision: str | None
    content: str


class Change(NamedTuple):
    """What an address held before, and what it holds now."""

    what: str
    column: str
    old: str
    new: str


@dataclass(frozen=True)
class Places:
    """The models and tasks of a sweep whose content is known.

    Attributes:
        models: Address and content of each model.
        tasks: Each task, with its address and content.
    """

    models: tuple[ModelPlace, ...] = ()
    tasks: tuple[Task, ...] = ()

    @cached_property
    def _models(self) -> dict[str, ModelPlace]:
        return {place.content: place for place in reversed(self.models)}

    @cached_property
    def _tasks(self) -> dict[str | None, Task]:
        return {task.content: task for task in reversed(self.tasks)}

    def locate(self, setup: Setup) -> Setup:
        """Give a setup the addresses at which its contents lie here; it stays the same setup."""
        changes: dict[str, Any] = {"task": self._locate(setup.task)}
        if (place := self._models.get(setup.model.content or "")) is not None:
            changes["model"] = replace(setup.model, name=place.name, revision=place.revision)
        method = setup.method
        if isinstance(method, Subspace) and (span := method.span) is not None:
            sources = tuple(Source(each.task and self._locate(each.task), each.shift) for each in span.sources)
            changes["method"] = method.spanned_by(replace(span, sources=sources))
        return replace(setup, **changes)

    def locate_trial(self, trial: Trial) -> Trial:
        """Give a trial the addresses at which its contents lie here; it stays the same trial."""
        return replace(trial, setup=self.locate(trial.setup))

    def _locate(self, task: Task) -> Task:
        found = self._tasks.get(task.content) if task.content else None
        return task if found is None else replace(task, **{name: getattr(found, name) for name in Task.ADDRESS})

    def changes_to(self, now: "Places") -> list[Change]:
        """List what has the same address, or a task's name, in both and another content."""
        models = {(place.name, place.revision): place.content for place in now.models}
        tasks = {task.name: task.content or "" for task in now.tasks}
        found = [
            Change(f"model {place.name}", "model_content", place.content, new)
            for place in self.models
            if (new := models.get((place.name, place.revision), place.content)) != place.content
        ]
        found += [
            Change(f"task {task.name}", "task_content", task.content or "", new)
            for task in self.tasks
            if (new := tasks.get(task.name, task.content)) != task.content and new
        ]
        return found

    def to_json(self) -> dict[str, Any]:
        """Write them as plain values."""
        return {"models": [place._asdict() for place in self.models], "tasks": [asdict(task) for task in self.tasks]}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "Places":
        """Read what `to_json` wrote.

        Raises:
            ValueError: It is something else.
        """
        from pydantic import ValidationError

        try:
            return _adapter().validate_json(json.dumps(record), strict=True)
        except (ValidationError, TypeError) as error:
            raise ValueError(f"not the places of models and tasks: {error}") from None


@cache
def _adapter() -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(Places)
