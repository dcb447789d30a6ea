"""What tells one record from another: a hash of its canonical JSON, with contents in the place of addresses."""

import dataclasses
import hashlib
import json
from functools import cache, cached_property
from typing import Any, ClassVar

IDENTITY_VERSION = 4
"""Raised when the same record would train to another result; old rows are then not mistaken for new ones."""


class Record:
    """A frozen dataclass that is equal to another where its canonical JSON is.

    Where its content is known (a hash of what its files hold), the fields that only say where the content is found and
    how it is read are no part of that: it is the same record wherever the files lie.
    """

    ADDRESS: ClassVar[frozenset[str]] = frozenset()
    """Fields that only say where the content is found and how it is read."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"strict": True, "extra": "forbid", "allow_inf_nan": False}
    """How a record that is read back from JSON is checked."""

    @property
    def left_out(self) -> frozenset[str]:
        """The fields that are no part of the identity."""
        return self.ADDRESS if self.ADDRESS and getattr(self, "content", None) else frozenset()

    @property
    def identity(self) -> str:
        """Canonical JSON of the record, which is what the id hashes."""
        return json.dumps({"version": IDENTITY_VERSION, **canonical(self)}, sort_keys=True)

    @cached_property
    def _canonical(self) -> Any:
        """As part of other records, of which many share it."""
        return canonical(self)

    @cached_property
    def id(self) -> str:
        """Sixteen hex digits that name the record everywhere."""
        return digest(self.identity)

    def __eq__(self, other: object) -> bool:
        """Compare by identity."""
        return self.id == other.id if isinstance(other, type(self)) else NotImplemented

    def __hash__(self) -> int:
        """Hash the identity."""
        return hash(self.id)


def digest(text: str) -> str:
    """Return the sixteen hex digits that name what a text describes."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def canonical(record: Any) -> Any:
    """Return what a record's identity is made of, as plain values for JSON; a new dict, whose parts are shared."""
    if isinstance(record, tuple | list):
        return [canonical(each) for each in record]
    if not dataclasses.is_dataclass(record):
        return record
    left_out = record.left_out if isinstance(record, Record) else ()
    values = {}
    for name, is_float in _fields(type(record)):
        if name not in left_out:
            value = getattr(record, name)
            if isinstance(value, Record):
                values[name] = value._canonical
            else:
                values[name] = float(value) if is_float and isinstance(value, int) else canonical(value)
    return values


@cache
def _fields(kind: type) -> tuple[tuple[str, bool], ...]:
    """Give the fields of a record, and whether each is a float: 1 and 1.0 are the same. Asked for at every hash."""
    return tuple((each.name, each.type in (float, float | None)) for each in dataclasses.fields(kind))
