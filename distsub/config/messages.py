"""What pydantic finds wrong in a sweep file, as one line each that names the table and the key."""

import json
from collections.abc import Iterable
from types import UnionType
from typing import Annotated, Any, TypeVar, get_args, get_origin

from pydantic import BaseModel

from distsub.errors import ConfigError, nearest

T = TypeVar("T")


def message_of(error: Any, file: type[BaseModel]) -> str:
    """Say where in the file, what was given and what is allowed.

    Args:
        error: One of `ValidationError.errors()`.
        file: The class that describes the whole file.
    """
    place = list(error["loc"])
    kind, message = error["type"], error["msg"]
    if kind == "extra_forbidden":
        *table, key = place
        return (
            f'{_where(table, table=True)}unknown key "{key}"; {nearest(str(key), _table_at(table, file).model_fields)}'
        )
    if kind == "missing":
        *table, key = place
        return f'{_where(table, table=True)}key "{key}" is missing'
    if kind == "value_error":
        return f"{_where(place)}{message.removeprefix('Value error, ')}"
    if kind == "too_short":
        return f"{_where(place)}needs at least {error['ctx']['min_length']} entry"
    message = message.replace("Input should", "should").replace("String should", "should")
    return f"{_where(place)}{message}, got {_shown(error['input'])}"


def _shown(value: Any) -> str:
    try:
        text = json.dumps(value)
    except TypeError:
        text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _where(place: list[str | int], table: bool = False) -> str:
    """Name a place in the file the way TOML writes it: "[budget] steps: ", "[[methods]] 2 head: "."""
    words = [str(part + 1) if isinstance(part, int) else part for part in place]
    if len(place) > 1 or (table and place):
        listed = len(place) > 1 and isinstance(place[1], int)
        words[0] = f"[[{place[0]}]]" if listed else f"[{place[0]}]"
    return " ".join(words) + ": " if words else ""


def _table_at(place: list[str | int], file: type[BaseModel]) -> type[BaseModel]:
    """Find the class that describes a table of the file."""
    table = file
    for part in place:
        if isinstance(part, str) and (inner := _inner(table.model_fields[part].annotation)):
            table = inner
    return table


def _inner(annotation: Any) -> type[BaseModel] | None:
    """Find the table class inside a type such as list[Annotated[_Model, ...]]."""
    if isinstance(annotation, type) and not get_args(annotation):
        return annotation if issubclass(annotation, BaseModel) else None
    if get_origin(annotation) in (list, Annotated, UnionType):
        return next((found for each in get_args(annotation) if (found := _inner(each))), None)
    return None


def distinct(records: Iterable[T], key: str) -> tuple[T, ...]:
    """Refuse a list of a sweep file in which an entry stands twice.

    Raises:
        ConfigError: One does.
    """
    found = list(records)
    for number, record in enumerate(found, start=1):
        if record in found[: number - 1]:
            raise ConfigError(f"{key}: entry {number} repeats entry {found.index(record) + 1}")
    return tuple(found)
