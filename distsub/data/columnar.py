"""Rows of Parquet and Arrow files, which know their types."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from distsub.data import cells, opening
from distsub.errors import DataError

# Reading, pyarrow would take an interrupt for itself and raise an error that looks like a bad file.
pa.enable_signal_handlers(False)


def kind_of(start: bytes) -> str | None:
    """Tell by its first bytes whether a file is "parquet", "arrow" (a file or Feather), "stream" (Arrow too) or not."""
    for magic, kind in ((b"PAR1", "parquet"), (b"ARROW1", "arrow"), (b"\xff\xff\xff\xff", "stream")):
        if start.startswith(magic):
            return kind
    if start.startswith(b"PARE"):
        raise DataError("is encrypted Parquet; write it again without encryption")
    return None


def read(path: Path, kind: str, columns: Sequence[str] | None) -> tuple[pa.Table, tuple[str, ...]]:
    """Read some columns.

    Args:
        path: A local file, compressed or not.
        kind: From `kind_of`.
        columns: Which; None reads all of them.

    Returns:
        The columns, of whatever type, and the names of all that the file has.

    Raises:
        DataError: A column is missing or the file is damaged; without its name.
        UnavailableError: It cannot be read from the disk.
    """
    import pyarrow.parquet

    with opening.opened(path) as stream:
        source: Any = path if opening.compression(path) is None else pa.BufferReader(stream.read())
        try:
            if kind == "parquet":
                with pyarrow.parquet.ParquetFile(source) as file:
                    present = file.schema_arrow.names
                    wanted = _chosen(present, columns)
                    # Not read_table: it takes a folder called label=1 above the file for a column.
                    return file.read(columns=wanted).select(wanted), tuple(present)
            with pa.OSFile(str(path)) if source is path else source as file:
                table = pa.ipc.open_stream(file).read_all() if kind == "stream" else pa.ipc.open_file(file).read_all()
                return table.select(_chosen(table.column_names, columns)), tuple(table.column_names)
        except pa.ArrowException as error:
            raise DataError(f"is damaged: {str(error).splitlines()[0]}; fetch it again") from error


def _chosen(present: list[str], columns: Sequence[str] | None) -> list[str]:
    chosen = present if columns is None else list(columns)
    cells.need(present, chosen)
    return chosen
