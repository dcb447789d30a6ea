"""What tells one record from another: the JSON that its id hashes, and contents in the place of addresses."""

import dataclasses
from functools import cache, cached_property
from typing import Any, ClassVar

IDENTITY_VERSION = 3
"""Raised when the same record would train to another result; old rows are then not mistaken for new ones."""


def later(default: Any) -> Any:
    """Declare a field that a record did not have from the start: at its default it is no part of the identity.

    So a record that leaves it there keeps the id under which its row was written before there was such a field.
    """
    return dataclasses.field(default=default, metadata={"later": True})


def canonical(record: Any) -> Any:
    """Return what a record's identity is made of, for JSON: all of it but the later fields at their default."""
    if record is None or isinstance(record, str | int | float):
        return record
    if isinstance(record, tuple | list):
        return [canonical(each) for each in record]
    if not dataclasses.is_dataclass(record):
        return record
    values, left_out = {}, record.left_out if isinstance(record, ByContent) else ()
    for name, is_later, default in _fields(type(record)):
        value = getattr(record, name)
        if not (is_later and value == default) and name not in left_out:
            values[name] = canonical(value)
    return values


@cache
def _fields(kind: type) -> tuple[tuple[str, bool, Any], ...]:
    """Give the fields of a record: name, whether it came later, default. Asked for at every hash."""
    return tuple((each.name, "later" in each.metadata, each.default) for each in dataclasses.fields(kind))


class ByContent:
    """A record that is told from others by what its files hold, wherever they lie, once that is known.

    Until then, as in a sweep file that nobody has read the data of, it is told from others by all its fields.
    """

    ADDRESS: ClassVar[frozenset[str]]
    """Fields that only say where the content is found and how it is read."""

    CONTENT: ClassVar[str] = "content"
    """The field that holds the hash of it."""

    @property
    def left_out(self) -> frozenset[str]:
        """The fields that are no part of the identity."""
        return self.ADDRESS if getattr(self, self.CONTENT) else frozenset()

    @cached_property
    def _key(self) -> tuple[object, ...]:
        return tuple(getattr(self, name) for name, *_ in _fields(type(self)) if name not in self.left_out)

    def __eq__(self, other: object) -> bool:
        """Compare by content."""
        return self._key == other._key if isinstance(other, type(self)) else NotImplemented

    def __hash__(self) -> int:
        """Hash by content."""
        return hash(self._key)
