"""Every listing of the command line as a table for people, JSON or CSV."""

import csv
import datetime
import decimal
import io
import json
import math
import sys
from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args

import pyarrow as pa

from distsub.errors import ConfigError, OutputError, QueryError
from distsub.report.streams import give_up_output
from distsub.report.terminal import Column, Terminal, layout, printable, records

Format = Literal["table", "json", "csv"]

_LONG = 12
"""Lists with more items than this are shown by their length in a table; JSON and CSV have them whole."""


def render(table: pa.Table, format: str = "table", terminal: Terminal | None = None) -> str:
    """Write a table as text, without a final newline.

    Args:
        table: What to list.
        format: "table" (for people: fits the terminal, numbers to five digits, sizes in KiB and MiB, control characters
            escaped), "json" (one array of objects; null for what JSON cannot say, such as NaN) or "csv" (with a
            header; lists and maps as JSON).
        terminal: What it is written to; None looks at standard output.

    Raises:
        ConfigError: The format is none of these.
    """
    terminal = terminal or Terminal.of(sys.stdout)
    if format == "json":
        names = _distinct(table.schema.names)
        rows = [_json(dict(zip(names, row, strict=True)), terminal) for row in _rows(table)]
        return "[" + ",\n ".join(rows) + "]"
    if format == "csv":
        return _csv([table.schema.names, *_rows(table)])
    if format == "table":
        return layout(columns_of(table, terminal), terminal)
    raise ConfigError(f"unknown format {format!r}, allowed are {', '.join(get_args(Format))}")


def render_facts(facts: Mapping[str, Any], format: str = "table", terminal: Terminal | None = None) -> str:
    """Write what is known of one thing: a name and a value a line, one JSON object, or CSV with a header.

    Args:
        facts: Values by name; what nests is JSON in a table and in CSV.
        format: As for `render`.
        terminal: What it is written to; None looks at standard output.
    """
    terminal = terminal or Terminal.of(sys.stdout)
    plain = {name: _plain(value, pa.null()) for name, value in facts.items()}
    if format == "json":
        return _json(plain, terminal)
    if format == "csv":
        return _csv([["key", "value"], *plain.items()])
    columns = [
        Column(printable(name, terminal), [printable(_named_cell(name, value), terminal)])
        for name, value in plain.items()
    ]
    return "\n".join(records(columns, 1, terminal))


def write_out(text: str) -> None:
    """Print to standard output at once, whatever it is: what its encoding lacks is escaped.

    On a terminal so is what would steer it, in a table as in JSON and CSV, which a file gets as they are. If the
    reader has left, as `head` does, the rest is dropped.

    Raises:
        OutputError: It cannot be written; the disk is full, for example.
    """
    if sys.stdout is None:  # closed by who started this
        return
    encoding = sys.stdout.encoding or "utf-8"
    try:
        if sys.stdout.isatty():
            text = "\n".join(map(printable, text.split("\n")))
        print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)
    except OSError as error:
        give_up_output()
        if not isinstance(error, BrokenPipeError):
            raise OutputError(f"cannot write to standard output ({error.strerror or error}); make room there") from None


def _rows(table: pa.Table) -> list[list[Any]]:
    """Give the values by row; by position, since a query may name two columns alike."""
    return [list(row) for row in zip(*map(_values, table.schema, table.columns), strict=True)]


def _values(field: pa.Field, column: pa.ChunkedArray) -> list[Any]:
    """Give a column as JSON's values.

    Raises:
        QueryError: One has none: a time beyond the years 1 to 9999, such as 'infinity'.
    """
    try:
        return [_plain(value, field.type) for value in column.to_pylist()]
    except (OverflowError, ValueError, pa.ArrowException):
        raise QueryError(
            f'column "{field.name}" ({field.type}) holds a time beyond the years 1 to 9999; cast it to text: '
            f"{field.name}::varchar"
        ) from None


def _json(value: dict[str, Any], terminal: Terminal) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if terminal.shows(text) and text == printable(text) else json.dumps(value)


def _csv(rows: Iterable[Iterable[Any]]) -> str:
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    for row in rows:
        texts = (json.dumps(each, ensure_ascii=False) if isinstance(each, dict | list) else each for each in row)
        writer.writerow(texts)
    return sink.getvalue().removesuffix("\n")


def columns_of(table: pa.Table, terminal: Terminal | None = None) -> list[Column]:
    """Give a table's columns as people read them: one printable text a cell, "-" where there is no value."""
    shown = []
    for field, column in zip(table.schema, table.columns, strict=True):
        is_float = pa.types.is_floating(field.type)  # people can read nan and inf, which JSON cannot say
        values = column.to_pylist() if is_float else _values(field, column)
        shown.append(
            Column(
                name=printable(field.name, terminal),
                cells=[printable(_named_cell(field.name, value), terminal) for value in values],
                right=is_float or pa.types.is_integer(field.type) or pa.types.is_decimal(field.type),
                same=all(value == values[0] for value in values),
                empty=all(value is None for value in values),
            )
        )
    return shown


def _named_cell(name: str, value: Any) -> str:
    """Show one value of a column; sizes have a name that says so."""
    is_size = isinstance(value, int) and (name == "bytes" or name.endswith("_bytes"))
    return size_text(value) if is_size else _cell(value)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.0f}" if 1e5 <= abs(value) < 1e15 else f"{value:.5g}"
    if isinstance(value, list):
        if len(value) > _LONG or not value:
            return f"[{len(value)} items]"
        return ", ".join(f"({_cell(item)})" if isinstance(item, dict | list) else _cell(item) for item in value)
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_cell(item)}" for key, item in value.items())
    return str(value) or '""'  # not to be taken for a value that is missing


def size_text(value: int) -> str:
    """Show a size for people: 83464 is 81.5 KiB."""
    if abs(value) < 1024:
        return f"{value} B"
    power = 1
    while abs(value) >= 1023.95 * 1024**power and power < 5:
        power += 1
    return f"{value / 1024**power:.1f} {'KMGTP'[power - 1]}iB"


def _plain(value: Any, kind: pa.DataType) -> Any:
    """Turn a value into what JSON knows: maps to objects, NaN to null, times to ISO text."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, decimal.Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, dict):
        return {str(key): _plain(item, kind) for key, item in value.items()}
    if isinstance(value, list):
        if pa.types.is_map(kind):
            return {str(_plain(key, kind)): _plain(item, kind) for key, item in value}
        return [_plain(item, getattr(kind, "value_type", kind)) for item in value]
    if isinstance(value, bytes):
        return value.hex()
    return str(value)


def _distinct(names: list[str]) -> list[str]:
    """Number repeated column names, since an object has each key once."""
    numbers = [names[:at].count(name) + 1 for at, name in enumerate(names)]
    return [name if number == 1 else f"{name}_{number}" for name, number in zip(names, numbers, strict=True)]
