"""Text for a terminal: names that can do no harm there, and tables that fit its width.

A table keeps its columns as long as they fit: what is the same in every row goes into a caption once, long headers and
texts are wrapped, and where that is not enough each row is written below the other, a column a line. Nothing is cut.
"""

import os
import shutil
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import IO

NARROWEST, WIDE = 40, 200
"""The width that is assumed at least, and the one above which a table in a file is written row below row."""

_TEXT_COLUMN, _HEIGHT = 16, 4
"""The cells that a wrapped text gets at least, and the lines that it may take beside more than two other columns."""

_BETWEEN = "  "


@dataclass(frozen=True)
class Terminal:
    """What text is written to.

    Attributes:
        width: Cells a line, None for a file or a pipe, where nothing needs to be wrapped.
        encoding: What it can show; other characters are escaped.
    """

    width: int | None = None
    encoding: str = "utf-8"

    @classmethod
    def of(cls, stream: IO[str] | None) -> "Terminal":
        """Look at a stream: COLUMNS decides where it is set, else the size of the terminal that the stream is."""
        given = os.environ.get("COLUMNS", "")
        if given.isdecimal() and int(given):
            width: int | None = int(given)
        else:
            width = shutil.get_terminal_size().columns if stream and stream.isatty() else None
        return cls(width and max(width, NARROWEST), getattr(stream, "encoding", None) or "utf-8")

    def shows(self, text: str) -> bool:
        """Tell whether the encoding has every character of a text."""
        try:
            text.encode(self.encoding)
        except (UnicodeEncodeError, LookupError):
            return False
        return True


@dataclass(frozen=True)
class Column:
    """One column as it is shown.

    Attributes:
        name: Its header.
        cells: One text a row.
        right: Whether it is aligned at the right, as numbers are.
        same: Whether every row has the same value.
        empty: Whether no row has a value.
    """

    name: str
    cells: Sequence[str]
    right: bool = False
    same: bool = False
    empty: bool = False


def printable(text: str, terminal: Terminal | None = None) -> str:
    r"""Escape what would steer a terminal, reorder a line or be invisible, and what the encoding lacks.

    Control characters (ESC, CR, newline), directions of writing, joiners and variation selectors become "\x1b",
    "\n", "\u202e"; a name can then be shown wherever it comes from.
    """
    if text.isascii() and text.isprintable():
        return text
    shown = terminal or Terminal()
    whole = shown.shows(text)
    return "".join(
        char if _harmless(char) and (whole or shown.shows(char)) else char.encode("unicode_escape").decode()
        for char in text
    )


def _harmless(char: str) -> bool:
    return (char.isprintable() or unicodedata.category(char) == "Zs") and not 0xFE00 <= ord(char) <= 0xFE0F


@lru_cache(maxsize=4096)
def _cells_of(char: str) -> int:
    from rich.cells import get_character_cell_size

    return get_character_cell_size(char)


def cells(text: str) -> int:
    """Count the terminal cells of a printable text: two for a wide character, none for a combining one."""
    return len(text) if text.isascii() else sum(map(_cells_of, text))


def wrap(text: str, width: int) -> list[str]:
    """Break a text into lines of at most so many cells: at a space or after a separator, else anywhere.

    Nothing is left out but the spaces at which a line is broken.
    """
    lines = []
    while cells(text) > width:
        end = used = 0
        for char in text:
            used += cells(char)
            if used > width:
                break
            end += 1
        end = max(end, 1)
        places = [i for i in range(end // 2, end) if text[i] in " /_-,"]
        if text[end] != " " and places:
            end = places[-1] + 1
        lines.append(text[:end].rstrip(" "))
        text = text[end:].lstrip(" ")
    return [*lines, text] if text or not lines else lines


def fold(text: str, terminal: Terminal, indent: str = "  ") -> str:
    """Break a sentence at spaces so that it fits; words, such as paths, stay whole, so that they can be copied.

    Args:
        text: One printable line.
        terminal: What it is written to.
        indent: Begins every line but the first.
    """
    if not terminal.width or cells(text) <= terminal.width:
        return text
    lines = [""]
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}" if lines[-1].strip() else lines[-1] + word
        if cells(longer) > terminal.width and lines[-1].strip():
            lines.append(indent + word)
        else:
            lines[-1] = longer
    return "\n".join(lines)


def layout(columns: Sequence[Column], terminal: Terminal) -> str:
    """Write a table so that it fits.

    Args:
        columns: All of the same number of printable cells.
        terminal: What it is written to.
    """
    if not columns:
        return "no columns"
    rows = len(columns[0].cells)
    caption, shown = _caption(columns, terminal) if rows > 1 else ([], list(columns))
    widths = _widths(shown, terminal)
    body = records(shown, rows, terminal) if widths is None else _grid(shown, widths, terminal)
    return "\n".join([*caption, *body])


def part_same(columns: Sequence[Column]) -> tuple[list[Column], list[Column]]:
    """Part the columns that say the same in every row from the others, unless that would leave none of these."""
    varying = [column for column in columns if not column.same]
    return ([column for column in columns if column.same], varying) if varying else ([], list(columns))


def _caption(columns: Sequence[Column], terminal: Terminal) -> tuple[list[str], list[Column]]:
    """Write into lines what is the same in every row; give them and the other columns."""
    same, varying = part_same(columns)
    if not same:
        return [], varying
    parts = [f"{column.name}: {column.cells[0]}" for column in same if not column.empty]
    empty = [column.name for column in same if column.empty]
    if empty:
        parts.append(f"empty: {', '.join(empty)}")
    width = terminal.width or WIDE
    lines = [""]
    for part in parts:
        if lines[-1] and cells(lines[-1]) + len(_BETWEEN) + cells(part) <= width:
            lines[-1] += _BETWEEN + part
        else:
            lines += wrap(part, width) if terminal.width else [part]
    return lines[1:], varying


def _pieces(name: str) -> list[str]:
    """Split a header where it may be broken: after an underscore or a space."""
    return [piece for piece in name.replace(" ", "_ ").replace("_", "_\n").split("\n") if piece.strip()] or [name]


def _widths(columns: Sequence[Column], terminal: Terminal) -> list[int] | None:
    """Give each column its width, None where they do not fit beside each other."""
    room = (terminal.width or WIDE) - len(_BETWEEN) * (len(columns) - 1)
    body = [max(map(cells, column.cells), default=0) for column in columns]
    whole = [max(width, cells(column.name)) for width, column in zip(body, columns, strict=True)]
    if sum(whole) <= room:
        return whole
    if not terminal.width:
        return None
    least = [max(map(cells, _pieces(column.name))) for column in columns]
    widths = [max(pair) for pair in zip(body, least, strict=True)]
    floors = [
        width if column.right else min(width, max(low, _TEXT_COLUMN))
        for width, column, low in zip(widths, columns, least, strict=True)
    ]
    if sum(floors) > room:
        return None
    while sum(widths) > room:  # the widest text gives way first
        widest = max(range(len(widths)), key=lambda i: widths[i] - floors[i] and widths[i])
        widths[widest] -= 1
    high = max(-(-width // max(given, 1)) for width, given in zip(body, widths, strict=True))
    return widths if high <= _HEIGHT or len(columns) <= 3 else None


def _grid(columns: Sequence[Column], widths: Sequence[int], terminal: Terminal) -> list[str]:
    """Write the rows below each other, a rule under the header; blank lines between them where one is wrapped."""
    rule = "\u2500" if terminal.shows("\u2500") else "-"
    heads = [wrap(column.name, width) for column, width in zip(columns, widths, strict=True)]
    depth = max(map(len, heads))
    lines = [*_lines([[""] * (depth - len(head)) + head for head in heads], columns, widths)]
    lines.append(_BETWEEN.join(rule * width for width in widths))
    rows = [
        [wrap(cell, width) for cell, width in zip(row, widths, strict=True)]
        for row in zip(*(column.cells for column in columns), strict=True)
    ]
    apart = any(len(cell) > 1 for row in rows for cell in row)
    for number, row in enumerate(rows):
        if apart and number:
            lines.append("")
        lines += _lines(row, columns, widths)
    return lines


def _lines(row: Sequence[Sequence[str]], columns: Sequence[Column], widths: Sequence[int]) -> Iterator[str]:
    """Set the lines of one row's cells beside each other."""
    for index in range(max(map(len, row))):
        parts = [cell[index] if index < len(cell) else "" for cell in row]
        yield _BETWEEN.join(
            " " * (width - cells(part)) + part if column.right else part + " " * (width - cells(part))
            for part, column, width in zip(parts, columns, widths, strict=True)
        ).rstrip()


def records(columns: Sequence[Column], rows: int, terminal: Terminal) -> list[str]:
    """Write every row as a block of its own, a column a line."""
    if not rows:
        text = f"no rows of {', '.join(column.name for column in columns)}"
        return wrap(text, terminal.width) if terminal.width else [text]
    width = terminal.width
    indent = max(cells(column.name) for column in columns)
    indent = min(indent, width // 2 if width else WIDE) + len(_BETWEEN)
    lines: list[str] = []
    for number in range(rows):
        if rows > 1:
            lines += [*([""] if number else []), f"row {number + 1} of {rows}"]
        for column in columns:
            value = column.cells[number]
            names = wrap(column.name, indent - len(_BETWEEN))
            values = wrap(value, width - indent) if width else [value]
            names[-1] += " " * (indent - cells(names[-1]))
            lines += [*names[:-1], (names[-1] + values[0]).rstrip()]
            lines += [" " * indent + value for value in values[1:]]
    return lines
