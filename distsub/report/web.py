"""Text and tables as HTML: whatever a name holds, and as the terminal lists them."""

import html
import math

import pyarrow as pa

from distsub.report.listing import columns_of
from distsub.report.terminal import Column, part_same, printable

_FOLDED = 12
"""Rows from which on a table is folded."""

_MANY = 11
"""Columns above which paper shows a row below the other."""

_LONG = 44
"""Letters of a cell from which on its column is wrapped."""


def escaped(text: str) -> str:
    """Write a text so that it is shown as it is, inside an attribute too."""
    return html.escape(printable(text))


def html_table(table: pa.Table) -> str:
    """Write a table that scrolls inside its own box; what is the same in every row is said once, a long one folded.

    Args:
        table: Any; columns without a value are left out.
    """
    columns = columns_of(table)
    numbers = {column.name: values for column, values in zip(columns, table.columns, strict=True) if column.right}
    same, shown = part_same(columns) if table.num_rows > 1 else ([], columns)
    shown = [column for column in shown if not column.empty]
    said = ", ".join(f"{html.escape(each.name)} <b>{html.escape(each.cells[0])}</b>" for each in same if not each.empty)
    caption = f'<p class="quiet"><small>In every row: {said}</small></p>' if said else ""
    cells = [_cells(column, numbers[column.name].to_pylist() if column.right else None) for column in shown]
    head = "".join(f"<th{_class(column.right and 'number')}>{html.escape(column.name)}</th>" for column in shown)
    lines = "\n".join(f"<tr>{''.join(line)}</tr>" for line in zip(*cells, strict=True))
    body = (
        f"<table{_class(len(shown) > _MANY and 'many')}><thead><tr>{head}</tr></thead><tbody>\n{lines}</tbody></table>"
    )
    box = f'{caption}<div class="wide" tabindex="0">{body}</div>'
    return box if table.num_rows < _FOLDED else folded(f"{table.num_rows} rows", box)


def folded(summary: str, content: str) -> str:
    """Write what is shown when its summary is clicked."""
    return f"<details><summary>{html.escape(summary)}</summary>{content}</details>"


def _cells(column: Column, values: list[float | None] | None) -> list[str]:
    long = not column.right and max(map(len, column.cells), default=0) > _LONG
    start = f"<td{_class('number' if column.right else long and 'long')}"
    keys = [
        f' data-n="{value}"' if value is not None and math.isfinite(value) else ""
        for value in values or [None] * len(column.cells)
    ]
    return [f"{start}{key}>{html.escape(text)}</td>" for key, text in zip(keys, column.cells, strict=True)]


def _class(name: str | bool) -> str:
    return f' class="{name}"' if name else ""
