"""One form for every value that a file can hold, so that no format gives other rows than another.

Every column becomes text (`TEXT`) or null. A number that is a whole number has no point ("3", also for 3.0), any
other the fewest digits that give it back in its own precision ("0.1", also for float32); booleans are "true" and
"false"; dates are "2024-01-31", points in time "2024-01-31 08:00:00"; text stays as it is, whatever it looks like.
What is missing (null, NaN, an empty cell, an empty text, which CSV cannot tell apart) is null.
"""

import json
import re
from collections.abc import Callable, Hashable, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from distsub.errors import DataError, nearest

# Its functions are made when it is imported: a type checker sees none of them.
pc: Any = pyarrow.compute

TEXT = pa.large_string()
"""The type of every column that is read. Large: 32-bit offsets overflow when rows of 2 GB are taken at once."""

_TYPES = pa.types
_TESTS = {
    "text": (
        *(_TYPES.is_string, _TYPES.is_large_string, _TYPES.is_string_view),
        *(_TYPES.is_binary, _TYPES.is_large_binary, _TYPES.is_binary_view, _TYPES.is_fixed_size_binary),
    ),
    "number": (_TYPES.is_integer, _TYPES.is_floating, _TYPES.is_decimal),
    "truth": (_TYPES.is_boolean,),
    "time": (_TYPES.is_date, _TYPES.is_timestamp, _TYPES.is_time),
}
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]{1,3})?")
_TIME = re.compile(r"(\d{4}-\d\d-\d\d)(?:[T ](\d\d:\d\d(?::\d\d(?:\.\d{1,6})?)?)(?:0*)(Z|[+-]\d\d:?\d\d)?)?")


WORDS = {"text": "text", "number": "numbers", "truth": "true or false", "time": "dates or times", "mixed": "a mixture"}
"""What `holds` tells apart, for messages."""


def need(present: Sequence[str], columns: Sequence[str]) -> None:
    """Refuse a table that lacks a column, or has it twice.

    Raises:
        DataError: Without the name of the table.
    """
    for name in columns:
        if name not in present:
            # One line, whatever stands in the first one of a file that has no header.
            shown = ["".join(letter if letter.isprintable() else "?" for letter in each[:60]) for each in present[:30]]
            raise DataError(f'has no column "{name}"; {nearest(name, shown)}')
        if list(present).count(name) > 1:
            raise DataError(f'has more than one column "{name}"; keep one')


def holds(of: pa.DataType) -> str:
    """Tell what a column of this type holds: a key of `WORDS`, or "" where nothing is said or nothing can be."""
    inside = _inside(of)
    for name, tests in _TESTS.items():
        if any(test(inside) for test in tests):
            return name
    return ""


def as_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Give a column that holds one value in each row its one form, `TEXT`.

    Raises:
        DataError: Lists, structs or another type without a text, or bytes that are not UTF-8.
    """
    column = _plain(column)
    stored = column.type
    if holds(stored) == "text":
        try:
            text = column.cast(TEXT)
            text.validate(full=True)
        except pa.ArrowInvalid as error:
            raise DataError("holds bytes that are not text in UTF-8; convert it") from error
    elif pa.types.is_floating(stored):
        width = np.dtype(stored.to_pandas_dtype()).type
        wide = column.cast(pa.float32()) if pa.types.is_float16(stored) else column
        text = _by_value(pc.if_else(pc.is_nan(wide), None, wide), lambda value: number_text(value, width))
    elif pa.types.is_decimal(stored):
        text = _by_value(column.cast(TEXT), lambda value: number_text(Decimal(value)))
    elif pa.types.is_timestamp(stored) or pa.types.is_time(stored):
        text = _by_value(column.cast(TEXT), _without_zeros)
    elif holds(stored) or pa.types.is_null(stored):
        text = column.cast(TEXT)
    else:
        raise DataError(f"holds {stored}; a column must hold one text, number, date or true/false in each row")
    return pc.if_else(pc.equal(text, ""), pa.scalar(None, TEXT), text)


def as_json(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Give a column of lists or objects as JSON; any other its one form."""
    if not pa.types.is_nested(column.type):
        return as_text(column)
    values = column.to_pylist()
    return pa.chunked_array([pa.array([value and json.dumps(value, ensure_ascii=False) for value in values], TEXT)])


def number_text(value: float | Decimal, width: type = np.float64) -> str:
    """Write a number in its one form; it is not NaN, and was stored in the precision `width`."""
    if value in (float("inf"), float("-inf")):
        return str(float(value))
    if value == int(value):
        return str(int(value))
    if isinstance(value, Decimal):
        return f"{value:f}".rstrip("0")
    return repr(float(str(width(value))))


def matching(column: pa.ChunkedArray, wanted: str) -> pa.ChunkedArray:
    """Mark the rows of a value as `where` means it; "" means the rows where it is missing.

    Cells are the same if they are the same text, or write the same number (1, 1.0, 1e0; never 01), the same truth
    value (true, True) or the same point in time (2024-01-31, 2024-01-31T00:00:00): as text formats write it.

    Raises:
        DataError: The column, which `as_text` gave, writes this value in more than one way.
    """
    if not wanted:
        return column.is_null()
    value = _value(wanted)
    found = [text for text in column.unique().to_pylist() if text is not None and _value(text) == value]
    if len(found) > 1:
        raise DataError(f'writes {wanted} both as "{found[0]}" and as "{found[1]}"; make them one in the data')
    return pc.fill_null(pc.equal(column, found[0] if found else wanted), False)


def all_hold(column: pa.ChunkedArray, wanted: str) -> bool:
    """Tell whether all texts of a column write values of one sort ("number", "truth" or "time")."""
    return all(text is None or _value(text)[0] == wanted for text in column.unique().to_pylist())


def _value(text: str) -> tuple[str, Hashable]:
    """Give what a text means where two are compared."""
    if _NUMBER.fullmatch(text):
        return "number", Decimal(text)
    if text.lower() in ("true", "false"):
        return "truth", text.lower()
    if found := _TIME.fullmatch(text):
        try:
            time = datetime.fromisoformat(f"{found[1]}T{found[2] or '00:00'}{found[3] or ''}")
        except ValueError:
            return "text", text
        return "time", time.astimezone(UTC) if time.tzinfo else time
    return "text", text


def _inside(stored: pa.DataType) -> pa.DataType:
    """See through the types that only say how values are stored."""
    if isinstance(stored, pa.BaseExtensionType):
        return pa.bool_() if stored.extension_name == "arrow.bool8" else _inside(stored.storage_type)
    if isinstance(stored, pa.DictionaryType | pa.RunEndEncodedType):
        return _inside(stored.value_type)
    return stored


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    stored, inside = column.type, _inside(column.type)
    if stored == inside:
        return column
    if isinstance(stored, pa.BaseExtensionType):
        plain = pa.chunked_array([chunk.storage for chunk in column.chunks], stored.storage_type)
        return plain.cast(inside) if pa.types.is_boolean(inside) else _plain(plain)
    if isinstance(stored, pa.RunEndEncodedType):
        return _plain(pa.chunked_array([pc.run_end_decode(chunk) for chunk in column.chunks], stored.value_type))
    return _plain(column.cast(stored.value_type))


def _by_value(column: pa.ChunkedArray, text_of: Callable[[Any], str]) -> pa.ChunkedArray:
    """Write each distinct value once: labels and dates repeat."""
    values = column.unique().drop_null()
    return pa.array([text_of(value) for value in values.to_pylist()], TEXT).take(pc.index_in(column, values))


def _without_zeros(time: str) -> str:
    return re.sub(r"(\.\d*?)0+(?!\d)", r"\1", time).replace(".+", "+").replace(".-", "-").replace(".Z", "Z").rstrip(".")
