"""Every listing of the command line in three forms: a table to read, JSON and CSV to process."""

import csv
import datetime
import decimal
import io
import json
import math
from typing import Any, Literal, get_args

import pyarrow as pa

from distsub.errors import ConfigError

Format = Literal["table", "json", "csv"]

_LONG = 12
"""Lists with more items than this are shown by their length in a table; JSON and CSV have them whole."""


def render(table: pa.Table, format: str = "table") -> str:
    """Write a table as text, without a final newline.

    Args:
        table: What to list.
        format: "table" (aligned, numbers to five digits), "json" (one array of objects; null for what JSON
            cannot say, such as NaN) or "csv" (with a header; lists and maps as JSON).

    Raises:
        ConfigError: The format is none of these.
    """
    if format == "json":
        return _json(table)
    if format == "csv":
        return _csv(table)
    if format == "table":
        return _table(table)
    raise ConfigError(f"unknown format {format!r}, allowed are {', '.join(get_args(Format))}")


def _rows(table: pa.Table) -> list[list[Any]]:
    """Give the values by row; by position, since a query may name two columns alike."""
    return [list(row) for row in zip(*_columns(table), strict=True)]


def _columns(table: pa.Table) -> list[list[Any]]:
    return [[_plain(value, column.type) for value in column.to_pylist()] for column in table.columns]


def _json(table: pa.Table) -> str:
    names = _distinct(table.schema.names)
    rows = [json.dumps(dict(zip(names, row, strict=True)), ensure_ascii=False) for row in _rows(table)]
    return "[" + ",\n ".join(rows) + "]"


def _csv(table: pa.Table) -> str:
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    writer.writerow(table.schema.names)
    for row in _rows(table):
        writer.writerow(
            [json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else value for value in row]
        )
    return sink.getvalue().removesuffix("\n")


def _table(table: pa.Table) -> str:
    from rich.cells import cell_len

    # Written by hand: a layout engine takes seconds for a thousand rows. As wide as the cells are: a listing that is
    # cut is a wrong listing, and terminals wrap or scroll.
    shown = []
    for field, values in zip(table.schema, _columns(table), strict=True):
        cells = [field.name, *map(_cell, values)]
        lengths = [len(cell) if cell.isascii() else cell_len(cell) for cell in cells]
        width = max(lengths)
        pads = [" " * (width - length) for length in lengths]
        right = pa.types.is_integer(field.type) or pa.types.is_floating(field.type) or pa.types.is_decimal(field.type)
        aligned = [pad + cell if right else cell + pad for cell, pad in zip(cells, pads, strict=True)]
        shown.append([aligned[0], "\u2500" * width, *aligned[1:]])
    # The rule under the header is one line; what is between the columns elsewhere is part of it.
    return "\n".join(
        ("\u2500\u2500" if index == 1 else "  ").join(row).rstrip()
        for index, row in enumerate(zip(*shown, strict=True))
    )


def _cell(value: Any) -> str:
    """Show one value in a table."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.5g}" if abs(value) < 1e5 else f"{value:.0f}"
    if isinstance(value, list):
        shown = f"[{len(value)} items]" if len(value) > _LONG else ", ".join(_cell(item) for item in value)
        return shown.replace("\n", " ")
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_cell(item)}" for key, item in value.items()).replace("\n", " ")
    return str(value).replace("\n", " ")


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
    seen: dict[str, int] = {}
    out = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        out.append(name if seen[name] == 1 else f"{name}_{seen[name]}")
    return out
