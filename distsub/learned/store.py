"""Where the tables of the analyses lie, written and read.

Each is a folder of a results directory with one Parquet file per part (an update, a comparison), under a name that
follows from what is in it: the same analysis again replaces its own files and nothing else.
"""

import io
import re

import pyarrow as pa

from distsub.errors import OutputError, first_line
from distsub.files import Files
from distsub.learned.schema import TABLES


def write_part(files: Files, name: str, part: str, table: pa.Table) -> str:
    """Write one part of an analysis, one of TABLES, whole or not at all; the same part again replaces it.

    Returns:
        The file's path below the directory, whose name is the part's; letters, digits, ".", "_" and "-" stay.

    Raises:
        OutputError: It cannot be written.
    """
    from pyarrow import parquet as pq

    sink = io.BytesIO()
    pq.write_table(table.cast(TABLES[name]), sink, compression="zstd")
    path = f"{name}/{re.sub(r'[^A-Za-z0-9._-]+', '-', part).strip('-.')}.parquet"
    try:
        files.make(name)
        files.put(path, sink.getvalue())
    except (OSError, pa.ArrowException) as error:
        raise OutputError(f"cannot write {path} to {files.uri} ({first_line(error)})") from error
    return path


def read_analysis(files: Files, name: str) -> pa.Table:
    """Read one analysis, all its parts in the order of their names; no rows where it was never made.

    Raises:
        OutputError: A part cannot be read.
    """
    from pyarrow import parquet as pq

    tables = [TABLES[name].empty_table()]
    for file in files.names(name):
        if not file.endswith(".parquet") or file.startswith("."):
            continue
        try:
            table = pq.read_table(pa.BufferReader(files.read(f"{name}/{file}")))
            for field in TABLES[name]:
                if field.nullable and field.name not in table.column_names:  # added since the part was written
                    table = table.append_column(field.name, pa.nulls(table.num_rows, field.type))
            tables.append(table.select(TABLES[name].names).cast(TABLES[name]))
        except (OSError, KeyError, ValueError, pa.ArrowException) as error:
            raise OutputError(
                f"{files.uri}/{name}/{file} cannot be read ({first_line(error)}); delete it and make it again"
            ) from error
    return pa.concat_tables(tables).unify_dictionaries().combine_chunks()
