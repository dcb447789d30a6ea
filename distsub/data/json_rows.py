"""Rows of JSON: an object in each line, or one array of objects, whatever the file is called."""

import json
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from json.decoder import JSONDecodeError
from pathlib import Path
from typing import Any

import pyarrow as pa

from distsub.data import cells, opening
from distsub.data.opening import Writing
from distsub.errors import DataError

_CHUNK = 50_000
"""Rows that are held as Python values at a time."""

_WHITE = re.compile(r"[ \t\n\r]*")


def read(
    path: Path, columns: Sequence[str] | None, texts: Sequence[str], given: Writing
) -> tuple[pa.Table, dict[str, str], tuple[str, ...], str]:
    """Read some columns, or all; those of `texts` have to hold text. A key that an object lacks is a missing value.

    Returns:
        The columns, each as `cells.TEXT`; for each what it holds, a key of `cells.WORDS` or ""; all keys of the file;
        its encoding.

    Raises:
        DataError: A line is no JSON, or a value is not one text, number or truth value; without the file's name.
        UnavailableError: The file cannot be read.
    """
    with opening.opened_text(path, given.encoding, newline="\n") as (text, encoding):
        return *_table(_rows(text), columns, texts, given.nested), encoding


def _rows(text: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every object with the place where it stands."""
    begun = False
    for number, line in enumerate(text, start=1):
        if line.isspace():
            continue
        if not begun and line.lstrip().startswith("["):
            yield from _elements(line + text.read(), number)
            return
        begun = True
        try:
            row = _DECODER.decode(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"line {number}: {_why(error, line)}") from error
        yield f"line {number}", _object(row, f"line {number}")


def _elements(text: str, number: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the objects of an array, one by one: all of them at once would be many times the file."""

    def line() -> str:
        return f"line {number + text.count(chr(10), 0, at)}"

    at = _skip(text, text.index("[") + 1)
    if text[at : at + 1] == "]":
        at = _skip(text, at + 1)
    else:
        count = 0
        while True:
            try:
                row, end = _DECODER.raw_decode(text, at)
            except (ValueError, RecursionError) as error:
                at = error.pos if isinstance(error, JSONDecodeError) else at
                raise DataError(f"{line()}: {_why(error, text[at:])}") from error
            count += 1
            # The line is counted for an error alone: from the start, for every element, it would take hours.
            fault = type(row) is not dict or _TWICE in row
            yield f"element {count}", _object(row, f"{line()}, element {count}" if fault else "")
            at = _skip(text, end)
            mark, at = text[at : at + 1], _skip(text, at + 1)
            if mark == "]":
                break
            if mark != ",":
                raise DataError(f"{line()}: " + ("no comma between two elements" if mark else "the array does not end"))
            if text[at : at + 1] == "]":
                raise DataError(f"{line()}: a comma after the last element; remove it")
    if at < len(text):
        raise DataError(f"{line()}: something stands after the end of the array")


def _table(
    rows: Iterator[tuple[str, dict[str, Any]]],
    columns: Sequence[str] | None,
    texts: Sequence[str],
    nested: str | None,
) -> tuple[pa.Table, dict[str, str], tuple[str, ...]]:
    known: dict[str, None] = {}
    chunks: dict[str, list[pa.Array]] = {}
    kinds: dict[str, set[str]] = {}
    done = 0
    while held := list(islice(rows, _CHUNK)):
        for _, row in held:
            known.update(dict.fromkeys(row))
            if nested is not None and isinstance(row.get(nested), list | dict):
                row[nested] = json.dumps(row[nested], ensure_ascii=False)
        for name in known if columns is None else columns:
            array = _column(held, name, kinds.setdefault(name, set()), name in texts)
            chunks.setdefault(name, [pa.nulls(done, cells.TEXT)]).append(array)
        done += len(held)
    if not done:
        raise DataError("holds no rows")
    cells.need(list(known), columns or ())
    table = pa.table({name: pa.chunked_array(parts, cells.TEXT) for name, parts in chunks.items()})
    held_in = {name: found.pop() if len(found) == 1 else "mixed" if found else "" for name, found in kinds.items()}
    return table, held_in, tuple(known)


_KINDS = {str: "text", int: "number", float: "number", bool: "truth"}


def _column(held: list[tuple[str, dict[str, Any]]], name: str, kinds: set[str], is_text: bool) -> pa.Array:
    values: list[Any] = [row.get(name) for _, row in held]
    for kind in set(map(type, values)) - {type(None)}:
        if kind not in _KINDS:
            place = next(place for (place, _), value in zip(held, values, strict=True) if type(value) is kind)
            what = "a list" if kind is list else "an object"
            raise DataError(
                f'{place}: "{name}" is {what}; a column must hold one text, number or true/false in each row'
            )
        if is_text and kind is not str:
            place, value = next((p, v) for (p, _), v in zip(held, values, strict=True) if type(v) is kind)
            raise DataError(f'{place}: column "{name}" holds {json.dumps(value)}, not text; put it in quotation marks')
        kinds.add(_KINDS[kind])
        if kind is not str:
            values = [_text(value) if type(value) is kind else value for value in values]
    try:
        return pa.array([value or None for value in values], cells.TEXT)
    except UnicodeEncodeError as error:
        half = next(i for i, value in enumerate(values) if value and re.search("[\ud800-\udfff]", value))
        place = held[half][0]
        raise DataError(f'{place}: "{name}" holds half of a character (an escape \\ud800..\\udfff alone)') from error


def _text(value: float | bool) -> str | None:
    if isinstance(value, bool):
        return "true" if value else "false"
    if value != value:
        return None
    return cells.number_text(value) if isinstance(value, float) else str(value)


def _object(row: Any, place: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        text = json.dumps(row)
        shown = text if len(text) <= 40 else text[:37] + "..."
        raise DataError(f"{place} is {shown} and not an object like {{...}}")
    if twice := row.pop(_TWICE, None):
        raise DataError(f'{place} has the key "{twice}" twice; keep one')
    return row


_TWICE: Any = None
"""Stands for a key among those of an object, which are all text."""


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        row[_TWICE] = next(name for name in names if names.count(name) > 1)
    return row


_DECODER = json.JSONDecoder(object_pairs_hook=_pairs)


def _skip(text: str, at: int) -> int:
    found = _WHITE.match(text, at)
    return found.end() if found else at


def _why(error: BaseException, text: str) -> str:
    if isinstance(error, RecursionError):
        return "objects in objects too deep to read"
    if not isinstance(error, JSONDecodeError):
        return str(error).splitlines()[0]
    hint = ""
    if error.msg == "Extra data":
        hint = "; remove the comma at its end" if text.rstrip().endswith(",") else "; one object in a line"
    elif text.strip() == "{":
        hint = "; each object must stand in one line, or all in one array"
    return f"no JSON at column {error.colno}: {error.msg}{hint}"
