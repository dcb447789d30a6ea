"""One local file as a table of text columns, told by its content: Parquet, Arrow, JSON, or lines with separators."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any

import pyarrow as pa

from distsub.data import cells, delimited, json_rows, opening
from distsub.data.opening import Writing
from distsub.errors import DataError, UnavailableError, first_line

# Reading, pyarrow would take an interrupt for itself and raise an error that looks like a bad file.
pa.enable_signal_handlers(False)

_SUFFIXES = {"csv": (".csv", ".tsv", ".tab"), "json": (".json", ".jsonl", ".ndjson")}


@dataclass(frozen=True)
class FileTable:
    """What is read of one file.

    Attributes:
        path: The file.
        table: The columns asked for, each as `cells.TEXT`.
        holds: For each column "text", "number", "truth", "time", "mixed", or "" where the file does not say.
        columns: The names of all that the file has.
        format: "csv" (whatever the separator), "json", "parquet", "arrow" (a file or Feather) or "stream" (Arrow too).
        compression: "gzip", "bzip2", "xz", "zstd", "zip" or None.
        writing: Of CSV its separator and quotation, of CSV and JSON its encoding.
        notes: What a person should know about it, a sentence each.
    """

    path: Path
    table: pa.Table
    holds: dict[str, str]
    columns: tuple[str, ...]
    format: str
    compression: str | None
    writing: Writing
    notes: tuple[str, ...] = ()


def read_file(path: Path, columns: Sequence[str] | None, texts: Sequence[str], given: Writing) -> FileTable:
    """Read some columns of one file, or all of them; those of `texts` have to hold text.

    Raises:
        DataError: It cannot be read, or in several ways; a column is missing, or does not hold what it must.
        UnavailableError: It cannot be read from the disk.
    """
    try:
        return _read(path, columns, texts, given)
    except (DataError, UnavailableError) as error:
        cls = UnavailableError if isinstance(error, UnavailableError) else DataError
        raise cls(f"{path} {error}") from error


def sniff(path: str | Path, columns: Sequence[str] | None = None, given: Writing | None = None) -> FileTable:
    """Look at one file for a person: how it is written, and what it holds.

    Beyond `read_file`, bytes that are not UTF-8 are taken for cp1252 of Windows, with a note that quotes them.
    A task with what `writing` says reads the same rows. Without `columns` the separator is harder to find.

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
    return replace(found, notes=(note,))


def agree(shards: Sequence[FileTable], column: str) -> None:
    """Refuse shards that hold different things in a column; types that can hold the same values are one thing.

    Raises:
        DataError: One holds numbers, say, where another holds words.
    """
    typed_shards = [shard for shard in shards if shard.holds.get(column)]
    typed = next((shard for shard in typed_shards if shard.holds[column] not in ("text", "mixed")), None)
    if typed is None:
        return
    for shard in typed_shards:
        held, wanted = shard.holds[column], typed.holds[column]
        if held != wanted and not (held == "text" and cells.all_hold(shard.table[column], wanted)):
            raise DataError(
                f'{shard.path} holds {cells.WORDS[held]} in "{column}" where {typed.path.name} holds '
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
        if name in texts and cells.holds(column.type) not in ("text", ""):
            raise DataError(f'{origin} column "{name}" holds {column.type}, not text'.strip())
        try:
            columns[name] = cells.as_json(column) if name == nested else cells.as_text(column)
        except DataError as error:
            raise DataError(f'{origin} column "{name}" {error}'.strip()) from error
    return pa.table(columns)


def _read(path: Path, columns: Sequence[str] | None, texts: Sequence[str], given: Writing) -> FileTable:
    start, packed = opening.first_bytes(path), opening.compression(path)
    if name := _columnar(start):
        table, names = _read_columnar(path, name, packed, columns)
        kinds = {column: cells.holds(table[column].type) for column in table.column_names}
        return FileTable(path, as_text(table, texts, nested=given.nested), kinds, names, name, packed, Writing())
    if _is_json(path, start):
        table, kinds, names, encoding = json_rows.read(path, columns, texts, given)
        return FileTable(path, table, kinds, names, "json", packed, Writing(encoding=encoding))
    table, names, writing = delimited.read(path, columns, given)
    return FileTable(path, table, dict.fromkeys(names, ""), names, "csv", packed, writing)


def _columnar(start: bytes) -> str | None:
    """Tell by its first bytes whether a file is Parquet or Arrow, which know the types of their columns."""
    for magic, name in ((b"PAR1", "parquet"), (b"ARROW1", "arrow"), (b"\xff\xff\xff\xff", "stream")):
        if start.startswith(magic):
            return name
    if start.startswith(b"PARE"):
        raise DataError("is encrypted Parquet; write it again without encryption")
    return None


def _read_columnar(
    path: Path, name: str, packed: str | None, columns: Sequence[str] | None
) -> tuple[pa.Table, tuple[str, ...]]:
    """Read columns of whatever type, and the names of all that the file has."""
    import pyarrow.parquet

    with opening.opened(path) as stream:
        source: Any = path if packed is None else pa.BufferReader(stream.read())
        try:
            if name == "parquet":
                with pyarrow.parquet.ParquetFile(source) as file:
                    present = file.schema_arrow.names
                    wanted = _needed(present, columns)
                    # Not read_table: it takes a folder called label=1 above the file for a column.
                    return file.read(columns=wanted).select(wanted), tuple(present)
            with pa.OSFile(str(path)) if packed is None else source as file:
                table = pa.ipc.open_stream(file).read_all() if name == "stream" else pa.ipc.open_file(file).read_all()
                return table.select(_needed(table.column_names, columns)), tuple(table.column_names)
        except pa.ArrowException as error:
            raise DataError(f"is damaged: {first_line(error)}; fetch it again") from error


def _needed(present: list[str], columns: Sequence[str] | None) -> list[str]:
    needed = present if columns is None else list(columns)
    cells.need(present, needed)
    return needed


def _is_json(path: Path, start: bytes) -> bool:
    suffix = PurePath(opening.content_name(path).lower()).suffix
    if suffix in _SUFFIXES["csv"]:
        return False
    if suffix in _SUFFIXES["json"]:
        return True
    if suffix in (".parquet", ".arrow", ".feather"):
        raise DataError(f"is no {suffix} file, whatever its name says")
    return start.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"{", b"[")
