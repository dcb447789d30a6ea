"""Rows of CSV and TSV: which separator, and whether quotation marks are around cells or part of them.

A file does not say how it was written. Spreadsheets and CSV writers put a cell in quotation marks and double those in
it (RFC 4180); others, such as the TSV files of GLUE, write texts as they are, and read by the first rule a text that
begins with a quotation mark swallows the rows up to the next one. So a file with quotation marks is read both ways. If
only one of them gives every row the number of cells of the header, that one holds; if both do and they differ, what a
writer would have done decides; and where that does not tell the file is refused, for the user to say.
"""

import csv
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from distsub.data import cells, opening
from distsub.data.opening import Quote, Writing
from distsub.errors import DataError

pc: Any = pyarrow.compute

SEPARATORS = {",": "comma", "\t": "tab", ";": "semicolon", "|": "bar"}
_CHUNK = 50_000
_SAY = 'set quote = "none" (they are part of the text) or "double" (they are around it)'

# A text longer than 128 KB is no error; the limit is one for the whole process.
csv.field_size_limit(2**31 - 1)


@dataclass(frozen=True)
class _Reading:
    """One way to read a file: the columns asked for, all names, the first line of each row, the ends of long rows."""

    table: pa.Table
    names: tuple[str, ...]
    lines: np.ndarray
    long: list[tuple[int, int]]


class _Malformed(DataError):
    """A line that one way of reading cannot make a row of."""

    line = 0

    @classmethod
    def at(cls, line: int, what: str) -> "_Malformed":
        error = cls(f"line {line}: {what}")
        error.line = line
        return error


def read(path: Path, columns: Sequence[str] | None, given: Writing) -> tuple[pa.Table, tuple[str, ...], Writing]:
    """Read some columns, or all of them, and find out how the file is written where that is not given.

    Returns:
        The columns, each as `cells.TEXT`, blank lines left out; the names of all of them; how the file is written.

    Raises:
        DataError: A row has more or fewer cells than the header, a column is missing, or the file can be read in two
            ways; without the file's name.
        UnavailableError: The file cannot be read.
    """
    separator, quote, encoding = given.separator, given.quote, given.encoding
    with opening.opened_text(path, encoding, newline="") as (text, found):
        line = next((line for line in text if line.strip("\r\n")), None)
        if line is None:
            raise DataError("is empty; its first line must name the columns")
        marks = '"' in line or any('"' in part for part in iter(lambda: text.read(1 << 20), ""))
        while text.read(1 << 20):  # to the end, for all line ends
            pass
        ends = getattr(text, "newlines", None)  # of every text file, though IO[str] does not say so
        if not marks and isinstance(ends, tuple) and "\r" in ends:
            raise DataError(
                "ends some lines with a carriage return alone and others not; give all of them one line end"
            )
    declared = re.fullmatch(r"sep=(.)\s*", line)  # Excel's way to name the separator

    def whole(separator: str, quote: Quote, names: Sequence[str] | None) -> _Reading:
        with opening.opened_text(path, encoding, newline="") as (text, _):
            if declared:
                next(text)
            return _parse(text, separator, quote, names, 1 if declared else 0)

    def decided(separator: str, names: Sequence[str] | None) -> tuple[_Reading, Quote]:
        if quote or not marks:
            return whole(separator, quote or "double", names), quote or "double"
        return _decided(whole, separator, names, line.startswith('"'))

    if separator is None and declared:
        separator = declared[1]
    if separator is None:
        usual = "\t" if opening.content_name(path).lower().endswith((".tsv", ".tab")) else ","
        headers = {}
        for mark in dict.fromkeys((usual, *SEPARATORS)):
            with opening.opened_text(path, encoding, newline="") as (text, _):
                headers[mark] = _header(text, mark)
        separator = _by_names(headers, columns) if columns else _by_rows(headers, lambda mark: decided(mark, None))
    reading, how = decided(separator, columns)
    return reading.table, reading.names, Writing(separator, how, found)


def _by_names(headers: dict[str, list[str]], columns: Sequence[str]) -> str:
    """Find the separator that gives the columns that are needed."""
    found = [mark for mark, header in headers.items() if set(columns) <= set(header)]
    if len(found) > 1:
        raise DataError(f"may be separated by {' or '.join(SEPARATORS[mark] for mark in found)}; set separator")
    if not found:
        most = max(headers.values(), key=len)
        try:
            cells.need(most, columns)
        except DataError as error:
            raise DataError(f"{error} (the first line must name the columns)") from error
    return found[0]


def _by_rows(headers: dict[str, list[str]], whole: Callable[[str], object]) -> str:
    """Find the separator with which all rows have as many cells as the header; of several the one with most."""
    fitting, errors = [], []
    for mark, header in headers.items():
        if len(header) > 1:
            try:
                whole(mark)
                fitting.append(mark)
            except DataError as error:
                errors.append(error)
    if errors and not fitting:
        raise errors[0]
    return max(fitting or headers, key=lambda mark: len(headers[mark]))


def _header(lines: Iterable[str], separator: str) -> list[str]:
    """Read the names of the columns, which a writer that leaves texts as they are may put in quotation marks too."""
    lines = iter(lines)
    first = next((line for line in lines if line.strip("\r\n")), "")
    try:
        return next(csv.reader(chain([first], lines), delimiter=separator, strict=True), [])
    except csv.Error:
        return next(csv.reader([first], delimiter=separator, quoting=csv.QUOTE_NONE), [])


def _parse(text: IO[str], separator: str, quote: Quote, columns: Sequence[str] | None, before: int) -> _Reading:
    """Read a file one way; `before` lines of it have been read."""
    how = csv.QUOTE_MINIMAL if quote == "double" else csv.QUOTE_NONE
    reader = csv.reader(text, delimiter=separator, quoting=how, strict=True)
    try:
        # Names are names: their quotation marks are around them even where those of texts are not.
        header = next(row for row in reader if row)
        if quote == "none":
            header = _header([separator.join(header)], separator)
        columns = header if columns is None else columns
        cells.need(header, columns)
        pick: Any = itemgetter(*map(header.index, columns)) if len(columns) > 1 else lambda row: (row[at],)
        at = header.index(columns[0])
        parts, held, lines, long = [], [], [], []
        width, last = len(header), reader.line_num
        for row in reader:
            first, last = last + 1, reader.line_num
            if len(row) != width:
                if not row:
                    continue
                found = "1 cell" if len(row) == 1 else f"{len(row)} cells"
                what = f"{found} where the header has {width}" + (
                    f" (the row ends in line {before + last})" if last > first else ""
                )
                raise _Malformed.at(before + first, what)
            if row[-1] == header[-1] and [row[0].lstrip("\ufeff"), *row[1:]] == header:  # files put one after the other
                raise _Malformed.at(before + first, "the header once more; remove it")
            if last > first:
                long.append((before + first, before + last))
            held.append(pick(row))
            lines.append(before + first)
            if len(held) == _CHUNK:
                parts.append(_table(held, columns))
                held = []
    except csv.Error as error:
        raise _Malformed.at(before + reader.line_num, _why(error)) from error
    parts.append(_table(held, columns))
    return _Reading(pa.concat_tables(parts), tuple(header), np.array(lines, dtype=np.int64), long)


def _table(rows: list[tuple[str, ...]], columns: Sequence[str]) -> pa.Table:
    made = zip(*rows, strict=True) if rows else [()] * len(columns)
    return pa.table([pa.array([cell or None for cell in column], cells.TEXT) for column in made], names=list(columns))


def _why(error: csv.Error) -> str:
    text = str(error)
    if "expected after" in text:
        return "a quotation mark in a cell that stands in quotation marks is not doubled"
    if "unexpected end" in text:
        return "a cell begins with a quotation mark and none ends it"
    return text


# ---- around the text, or part of it


def _decided(
    whole: Callable[[str, Quote, Sequence[str] | None], _Reading],
    separator: str,
    columns: Sequence[str] | None,
    quoted_names: bool,
) -> tuple[_Reading, Quote]:
    """Read a file the way in which it was written, or say that there are two."""
    readings: dict[Quote, _Reading | _Malformed] = {}
    for mode in ("double", "none"):
        try:
            readings[mode] = whole(separator, mode, columns)
        except _Malformed as error:
            readings[mode] = error
    double, none = readings["double"], readings["none"]
    tab = separator == "\t"
    if isinstance(double, _Malformed):
        if isinstance(none, _Malformed):
            raise none if tab else double
        line = 1 if quoted_names else _doubled(none)
        if line is not None:
            raise DataError(
                f"line {line} puts quotation marks around cells as CSV does, but {double}; fix that line, or set "
                'quote = "none" if all of them are text'
            )
        return none, "none"
    if quoted_names:
        # Who leaves texts as they are leaves the names of the columns as they are.
        return double, "double"
    if isinstance(none, _Malformed):
        if tab and (long := _with_tabs(double)):
            raise DataError(f"lines {long[0]} to {long[1]} are one row if quotation marks stand around cells; {_SAY}")
        return double, "double"
    if len(double.lines) != len(none.lines):
        if tab or _are_rows(none, double.long):
            first, last = double.long[0]
            raise DataError(
                f"lines {first} to {last} are one row if quotation marks stand around cells, else {last - first + 1} "
                f"rows; {_SAY}"
            )
        return double, "double"
    if tab and (line := _needless(double, none)) is not None:
        raise DataError(f"line {line} has a cell in quotation marks that needs none; {_SAY}")
    return double, "double"


def _doubled(none: _Reading) -> int | None:
    """Find the line of a cell as only a CSV writer makes it: in quotation marks, with doubled ones inside."""
    for column in none.table.columns:
        found = pc.match_substring_regex(column, r'^"(?:[^"]|"")*""(?:[^"]|"")*"$')
        if (row := pc.index(found, True).as_py()) >= 0:
            return int(none.lines[row])
    return None


def _needless(double: _Reading, none: _Reading) -> int | None:
    """Find a cell that a CSV writer would not have put in quotation marks: it holds none."""
    for read, plain in zip(double.table.columns, none.table.columns, strict=True):
        quoted = pc.fill_null(pc.starts_with(plain, '"'), False)
        asks = pc.fill_null(pc.match_substring(read, '"'), False)
        if (row := pc.index(pc.and_not(quoted, asks), True).as_py()) >= 0:
            return int(none.lines[row])
    return None


def _are_rows(none: _Reading, long: list[tuple[int, int]]) -> bool:
    """Tell whether the lines of the long rows look like rows of their own.

    They do if in one of the columns each of them is a number, or a value that other rows have: a label. Text that
    happens to hold a separator in every line does not.
    """
    first, last = np.array(long).T
    before = np.searchsorted(first, none.lines, side="right") - 1
    inside = (before >= 0) & (none.lines <= last[np.maximum(before, 0)])
    for column in none.table.columns:
        of_long, others = column.filter(pa.array(inside)), column.filter(pa.array(~inside))
        known = pc.is_in(of_long, value_set=others.unique())
        number = pc.fill_null(pc.match_substring_regex(of_long, r"^[+-]?[0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?$"), False)
        if pc.all(pc.or_(known, number)).as_py():
            return True
    return False


def _with_tabs(double: _Reading) -> tuple[int, int] | None:
    """Find a row of several lines with a tab in a cell: rather rows that a quotation mark has swallowed."""
    if not double.long:
        return None
    starts = dict(double.long)
    for column in double.table.columns:
        both = pc.and_(pc.match_substring(column, "\t"), pc.match_substring_regex(column, "[\r\n]"))
        if (row := pc.index(pc.fill_null(both, False), True).as_py()) >= 0:
            first = int(double.lines[row])
            return first, starts.get(first, first)
    return None
