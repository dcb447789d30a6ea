"""Where the contents of a sweep lie: the way from a record that knows its content back to the files."""

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property
from operator import attrgetter
from typing import Any, NamedTuple

from distsub.records import Dtype, Imported, Model, Peft, Setup, Source, Subspace, Task, Trial


class ModelPlace(NamedTuple):
    """A model's address, the hash of what is there, and in which precision it is held."""

    name: str
    revision: str | None
    content: str
    dtype: Dtype = "float32"


class Counts(NamedTuple):
    """The d that a method of PEFT offers on a model, those nearest to the grid.

    Attributes:
        model: The model's content.
        num_labels: Of the head.
        method: The method.
        asked: The grid.
        dims: Exact numbers of trained numbers, rising; none where the method does not fit the model.
    """

    model: str
    num_labels: int
    method: Peft
    asked: tuple[int, ...]
    dims: tuple[int, ...]


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
        imported: Imported trajectories, each with its path and content.
        counts: What the methods of PEFT offer on the models.
    """

    models: tuple[ModelPlace, ...] = ()
    tasks: tuple[Task, ...] = ()
    imported: tuple[Imported, ...] = ()
    counts: tuple[Counts, ...] = ()

    @cached_property
    def models_by_content(self) -> dict[str, ModelPlace]:
        """Where each content lies; of several places the first."""
        return {place.content: place for place in reversed(self.models)}

    @cached_property
    def _tasks(self) -> dict[str | None, Task]:
        return {task.content: task for task in reversed(self.tasks)}

    def identify(self, model: Model, asked: Collection[Model]) -> Model:
        """Give a model the content of what is at its address, and the precision that "auto" has become.

        Args:
            model: As it was asked for.
            asked: All models that were, of which another may name the same address in a given precision.
        """
        here = {each.dtype: each for each in self.models if (each.name, each.revision) == (model.name, model.revision)}
        if model.dtype == "auto":
            given = {each.dtype for each in asked if (each.name, each.revision) == (model.name, model.revision)}
            found = next((each for dtype, each in here.items() if dtype not in given), next(iter(here.values()), None))
        else:
            found = here.get(model.dtype)
        return model if found is None else replace(model, content=found.content, dtype=found.dtype)

    def locate(self, setup: Setup) -> Setup:
        """Give a setup the addresses at which its contents lie here; it stays the same setup."""
        changes: dict[str, Any] = {"task": self._locate(setup.task)}
        if (place := self.models_by_content.get(setup.model.content or "")) is not None:
            changes["model"] = replace(setup.model, name=place.name, revision=place.revision)
        method = setup.method
        if isinstance(method, Subspace) and (span := method.span) is not None:
            sources = tuple(map(self._locate_source, span.sources))
            changes["method"] = method.spanned_by(replace(span, sources=sources))
        return replace(setup, **changes)

    def locate_trial(self, trial: Trial) -> Trial:
        """Give a trial the addresses at which its contents lie here; it stays the same trial."""
        return replace(trial, setup=self.locate(trial.setup))

    def _locate_source(self, source: Source | Imported) -> Source | Imported:
        if isinstance(source, Imported):
            return next((each for each in self.imported if each == source), source)
        return Source(source.task and self._locate(source.task), source.shift)

    def _locate(self, task: Task) -> Task:
        found = self._tasks.get(task.content) if task.content else None
        return task if found is None else replace(task, **{name: getattr(found, name) for name in Task.ADDRESS})

    def changes_to(self, now: "Places") -> list[Change]:
        """List what has the same address, or a task's name, in both and another content."""
        found = []
        for what, column, before, after, address in (
            ("model", "model_content", self.models, now.models, attrgetter("name", "revision", "dtype")),
            ("task", "task_content", self.tasks, now.tasks, lambda task: (task.name,)),
            ("trajectory", "trajectories", self.imported, now.imported, lambda imported: (imported.path,)),
        ):
            contents = {address(each): each.content for each in after}
            for each in before:
                new = contents.get(address(each))
                if new and new != each.content:
                    found.append(Change(f"{what} {address(each)[0]}", column, each.content or "", new))
        return found

    def to_json(self) -> dict[str, Any]:
        """Write them as plain values."""
        found = {name: [asdict(each) for each in getattr(self, name)] for name in ("tasks", "imported")}
        counts = [each._asdict() | {"method": asdict(each.method)} for each in self.counts]
        found |= {"counts": counts} if counts else {}
        return {"models": [place._asdict() for place in self.models], **found}

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
