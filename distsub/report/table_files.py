"""A table as a file: CSV, JSON lines or Parquet, by its suffix."""

import io
import json
from pathlib import PurePosixPath

import pyarrow as pa

from distsub.addresses import without_credentials
from distsub.errors import ConfigError, OutputError, first_line
from distsub.files import Files
from distsub.report.listing import render

SUFFIXES = (".csv", ".jsonl", ".parquet")


def check_place(place: str) -> tuple[Files, str]:
    """Find where a file is to be written, at a path or an address such as s3://: the folder, and the name in it.

    Raises:
        ConfigError: The suffix is none of `SUFFIXES`.
        OutputError: The file is there already, or the address is none.
    """
    path, _, options = place.partition("?") if "://" in place else (place, "", "")
    shown = without_credentials(place) if "://" in place else place
    if PurePosixPath(path).suffix not in SUFFIXES:
        raise ConfigError(f"cannot write {shown}; give a name that ends in {', '.join(SUFFIXES)}")
    folder, _, name = path.rpartition("/")
    files = Files.at((folder or ("/" if path.startswith("/") else ".")) + (f"?{options}" if options else ""))
    try:
        is_there = files.exists(name)
    except (OSError, pa.ArrowException) as error:
        raise OutputError(f"cannot write {shown}: {first_line(error)}") from None
    if is_there:
        raise OutputError(f"{shown} exists already; give another name")
    return files, name


def write(table: pa.Table, files: Files, name: str) -> None:
    """Write a table into a folder, in the format that the name's suffix says; a missing value is an empty cell or null.

    Raises:
        OutputError: It cannot be written.
    """
    if name.endswith(".parquet"):
        import pyarrow.parquet as pq

        sink = io.BytesIO()
        pq.write_table(table, sink)
        content = sink.getvalue()
    elif name.endswith(".csv"):
        content = (render(table, "csv") + "\n").encode()
    else:
        content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in table.to_pylist()).encode()
    try:
        files.make("")
        files.put(name, content)
    except (OSError, pa.ArrowException) as error:
        raise OutputError(f"cannot write {files.uri}/{name}: {first_line(error)}") from None
