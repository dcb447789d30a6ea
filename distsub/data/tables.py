"""One local file as a table of text columns, told by its content: Parquet, Arrow, JSON, or lines with separators."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath

import pyarrow as pa

from distsub.data import cells, columnar, delimited, json_rows, opening
from distsub.errors import DataError, UnavailableError

_SUFFIXES = {"csv": (".csv", ".tsv", ".tab"), "json": (".json", ".jsonl", ".ndjson")}


@dataclass(frozen=True)
class Writing:
    """How a file is written as its reader says; what is None is to be found.

    Attributes:
        separator: Of CSV.
        quote: Of CSV.
        encoding: Of CSV and JSON.
        nested: A column of lists or objects, which become JSON; None where there must be none.
    """

    separator: str | None = None
    quote: delimited.Quote | None = None
    encoding: str | None = None
    nested: str | None = None


@dataclass(frozen=True)
class FileFormat:
    """How a file is written.

    Attributes:
        kind: "csv" (whatever the separator), "json", "parquet", "arrow" (a file or Feather) or "stream" (Arrow too).
        compression: "gzip", "bzip2", "xz", "zstd", "zip" or None.
        columns: Their names.
        separator: Of CSV, else None.
        quote: Of CSV: "double" (quotation marks stand around cells) or "none" (they are part of texts); else None.
        encoding: Of CSV and JSON: a codec of Python; else None.
        notes: What a person should know about it, a sentence each.
    """

    kind: str
    compression: str | None
    columns: tuple[str, ...]
    separator: str | None = None
    quote: delimited.Quote | None = None
    encoding: str | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class FileTable:
    """What is read of one file.

    Attributes:
        path: The file.
        table: The columns asked for, each as `cells.TEXT`.
        kinds: For each column "text", "number", "truth", "time", "mixed", or "" where the file does not say.
        format: How it is written.
    """

    path: Path
    table: pa.Table
    kinds: dict[str, str]
    format: FileFormat


def read_file(path: Path, columns: Sequence[str] | None, texts: Sequence[str], given: Writing) -> FileTable:
    """Read some columns of one file.

    Args:
        path: A local file.
        columns: Which; None reads all of them.
        texts: Those that have to hold text.
        given: How it is written, as far as the user says.

    Returns:
        The rows in the order of the file.

    Raises:
        DataError: It cannot be read, or in several ways; a column is missing, or does not hold what it must.
        UnavailableError: It cannot be read from the disk.
    """
    try:
        return _read(path, columns, texts, given)
    except (DataError, UnavailableError) as error:
        kind = UnavailableError if isinstance(error, UnavailableError) else DataError
        raise kind(f"{path} {error}") from error


def sniff(path: str | Path, columns: Sequence[str] | None = None, given: Writing | None = None) -> FileTable:
    """Look at one file for a person: how it is written, and what it holds.

    Beyond `read_file`, bytes that are not UTF-8 are taken for cp1252 of Windows, with a note that quotes them.
    With `separator`, `quote` and `encoding` of the format in a task, its rows are read as here.

    Args:
        path: A local file.
        columns: The ones that are needed; None for all of them, by which the separator is harder to find.
        given: How it is written, as far as the user says.

    Returns:
        The columns, and in `format` how the file is written, with its notes.

    Raises:
        DataError: It cannot be read, or in several ways; a column is missing.
        UnavailableError: It is not there, or cannot be read from the disk.
    """
    path, given = Path(path).expanduser(), given or Writing()
    if not path.is_file():
        raise UnavailableError(f"no file {path}")
    try:
        return read_file(path, columns, (), given)
    except DataError as error:
        cause = error.__cause__
        if given.encoding or not isinstance(cause, opening.UndecodableError) or not cause.as_cp1252:
            raise
        found = read_file(path, columns, (), replace(given, encoding="cp1252"))
    note = f'not UTF-8, so read as cp1252 (Windows), for example "{cause.as_cp1252}"; set encoding if that is wrong'
    return replace(found, format=replace(found.format, notes=(note,)))


def agree(shards: Sequence[FileTable], column: str) -> None:
    """Refuse shards that hold different things in a column; types that can hold the same values are one thing.

    Raises:
        DataError: One holds numbers, say, where another holds words.
    """
    typed_shards = [shard for shard in shards if shard.kinds.get(column)]
    typed = next((shard for shard in typed_shards if shard.kinds[column] not in ("text", "mixed")), None)
    if typed is None:
        return
    for shard in typed_shards:
        kind, wanted = shard.kinds[column], typed.kinds[column]
        if kind != wanted and not (kind == "text" and cells.all_hold(shard.table[column], wanted)):
            raise DataError(
                f'{shard.path} holds {cells.WORDS[kind]} in "{column}" where {typed.path.name} holds '
                f"{cells.WORDS[wanted]}; write the same in all shards"
            )


def as_text(table: pa.Table, texts: Sequence[str], origin: str = "", nested: str | None = None) -> pa.Table:
    """Give every column its one form; the lists and objects of the column `nested` become JSON.

    Raises:
        DataError: A column of `texts` holds no text, or some column what is no single value; it begins with `origin`.
    """
    columns = {}
    for name in table.column_names:
        column = table[name]
        if name in texts and cells.kind(column.type) not in ("text", ""):
            raise DataError(f'{origin} column "{name}" holds {column.type}, not text'.strip())
        try:
            columns[name] = cells.as_json(column) if name == nested else cells.as_text(column)
        except DataError as error:
            raise DataError(f'{origin} column "{name}" {error}'.strip()) from error
    return pa.table(columns)


def _read(path: Path, columns: Sequence[str] | None, texts: Sequence[str], given: Writing) -> FileTable:
    start, packed = opening.first_bytes(path), opening.compression(path)
    if kind := columnar.kind_of(start):
        table, names = columnar.read(path, kind, columns)
        kinds = {name: cells.kind(table[name].type) for name in table.column_names}
        return FileTable(path, as_text(table, texts, nested=given.nested), kinds, FileFormat(kind, packed, names))
    if _is_json(path, start):
        table, kinds, names, encoding = json_rows.read(path, columns, texts, given.encoding, given.nested)
        return FileTable(path, table, kinds, FileFormat("json", packed, names, encoding=encoding))
    table, names, how = delimited.read(path, columns, given.separator, given.encoding, given.quote)
    form = FileFormat("csv", packed, names, how.separator, how.quote, how.encoding)
    return FileTable(path, table, dict.fromkeys(names, ""), form)


def _is_json(path: Path, start: bytes) -> bool:
    suffix = PurePath(opening.content_name(path).lower()).suffix
    if suffix in _SUFFIXES["csv"]:
        return False
    if suffix in _SUFFIXES["json"]:
        return True
    if suffix in (".parquet", ".arrow", ".feather"):
        raise DataError(f"is no {suffix} file, whatever its name says")
    return start.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"{", b"[")
