"""Row files and parts: what a Parquet file in a results directory may hold, and how rows come out of it.

A row file holds the one row of a trial and is named after it; every reading checks that its trial is the one that
its name says. A part holds many rows that were checked when they were merged; page checksums tell later damage.
"""

import io
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import compute as pc
from pyarrow import parquet as pq

from distsub.files import first_line
from distsub.results.schema import D_AND_ETA, OBSERVATIONS, SCHEMA_VERSION, trial_from_json
from distsub.trial import Trial

NAME = re.compile(r"[0-9a-f]{16}\.parquet")
"""Of a row file (the trial's id) and of a part (a hash of its bytes)."""

RANK = {"error": 0, "stopped": 1, "diverged": 2, "finished": 2}
"""A row is replaced only by one of higher rank: an error says least, a finished training everything."""

FINAL = max(RANK.values())
"""Nothing replaces a row of this rank."""

KIN = "kin"
"""Asked for as a column: the trial without its d and eta, as JSON. All trials of a search share it, so it is small
where "trial" takes nearly a kilobyte per row."""

_WITHOUT = pc.ReplaceSubstringOptions(D_AND_ETA, '"d": null, "eta": null, ', max_replacements=1)
_KEYS = ("schema_version", "trial_id", "status", "trial")
_KIN_TYPE = pa.dictionary(pa.int32(), pa.string())
_PIECE = 2048  # rows
_VERSION = b"distsub_schema_version"
_UNREADABLE = (OSError, ValueError, TypeError, pa.ArrowException)

_ROW: dict[str, Any] = {"compression": "snappy", "use_dictionary": False, "write_statistics": False}
# A quarter of the time of the defaults for one row of many columns.
_PART: dict[str, Any] = {"compression": "zstd", "data_page_size": 256 * 1024}


def encode(table: pa.Table, part: bool = False) -> bytes:
    """Write a row, or a part's rows, as the bytes of a Parquet file in which damage is seen."""
    sink = io.BytesIO()
    pq.write_table(table, sink, write_page_checksum=True, **(_PART if part else _ROW))
    return sink.getvalue()


def parse_row(data: bytes, name: str, columns: Sequence[str]) -> pa.Table | str:
    """Read one row file in the canonical schema, or say in a few words why it is none."""
    if not data:
        return "empty file"
    wanted = [column for column in dict.fromkeys([*columns, *_KEYS]) if column != KIN]
    try:
        with pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True) as file:
            present = file.schema_arrow.names
            if file.metadata.num_rows != 1 or not set(_KEYS).issubset(present):
                return "foreign, not the one row of a trial"
            table = _conform(file.read([column for column in wanted if column in present], use_threads=False), wanted)
        key = {column: table[column][0].as_py() for column in _KEYS}
        if key["schema_version"] > SCHEMA_VERSION:
            return _newer(key["schema_version"])
        if key["status"] not in RANK:
            return f"foreign, status {key['status']!r}"
        trial_id = trial_from_json(key["trial"]).id
    except _UNREADABLE as error:
        return f"not readable ({first_line(error)})"
    if not trial_id == key["trial_id"] == name.removesuffix(".parquet"):
        return f"holds trial {trial_id}, which belongs in another file"
    return (_with_kin(table) if KIN in columns else table).select(list(columns))


def parse_part(source: pa.NativeFile, columns: Sequence[str]) -> pa.Table | str:
    """Read columns of a part in the canonical schema, or say in a few words why it is none."""
    try:
        with pq.ParquetFile(source, page_checksum_verification=True, pre_buffer=True) as file:
            present = file.schema_arrow.names
            version = int((file.schema_arrow.metadata or {}).get(_VERSION, b"0"))
            if not set(_KEYS).issubset(present) or not version:
                return "foreign, no rows of trials"
            if version > SCHEMA_VERSION:
                return _newer(version)
            if KIN in columns:  # a piece at a time: all trials at once take ten times as long, for want of fresh memory
                asked = list(dict.fromkeys("trial" if column == KIN else column for column in columns))
                pieces = file.iter_batches(_PIECE, columns=[column for column in asked if column in present])
                tables = [_with_kin(_conform(pa.Table.from_batches([piece]), asked)) for piece in pieces]
                table = pa.concat_tables(tables).select(list(columns))
            else:
                table = _conform(file.read([column for column in columns if column in present]), columns)
        if "status" in columns and not set(table["status"].unique().to_pylist()) <= RANK.keys():
            return "foreign, unknown status"
    except _UNREADABLE as error:
        return f"not readable ({first_line(error)})"
    return table


def distinct(table: pa.Table) -> pa.Table:
    """Keep each trial once: of several rows the one of highest rank, of equal ones the first."""
    if len(table["trial_id"].unique()) == table.num_rows:
        return table
    best: dict[str, tuple[int, int]] = {}
    for position, (trial_id, rank) in enumerate(ranks(table)):
        if trial_id not in best or rank > best[trial_id][0]:
            best[trial_id] = (rank, position)
    return table.take(pa.array(sorted(position for _, position in best.values()), pa.int64()))


def ranks(table: pa.Table) -> list[tuple[str, int]]:
    """Give (trial id, rank) of each row."""
    statuses = table["status"].to_pylist()
    return [(trial_id, RANK[status]) for trial_id, status in zip(table["trial_id"].to_pylist(), statuses, strict=True)]


def series(table: pa.Table, columns: Sequence[str]) -> list[tuple[Trial, list[tuple[Any, ...]]]]:
    """Group rows by everything of their trial but d and eta, so that each such trial is rebuilt once.

    Args:
        table: Rows with the columns and `KIN`.
        columns: What to give of each row.

    Returns:
        The trial without d and eta, and the values of the columns for each row in the table's order, per group.
    """
    if not table.num_rows:
        return []
    kin = table[KIN].unify_dictionaries().combine_chunks()
    group = kin.indices.to_numpy()
    order = np.argsort(group, kind="stable")
    own = table.select(list(columns)).take(pa.array(order))
    rows = list(zip(*(column.to_pylist() for column in own.columns), strict=True))
    ends = np.cumsum(np.bincount(group, minlength=len(kin.dictionary))).tolist()
    starts = [0, *ends]
    texts = kin.dictionary.to_pylist()
    return [(trial_from_json(text), rows[a:b]) for text, a, b in zip(texts, starts, ends, strict=False) if b > a]


def schema_of(columns: Sequence[str]) -> pa.Schema:
    """Give the canonical schema of some columns, of which `KIN` may be one."""
    kin = pa.field(KIN, _KIN_TYPE)
    fields = [kin if column == KIN else OBSERVATIONS.field(column) for column in columns]
    return pa.schema(fields, metadata=OBSERVATIONS.metadata)


def _with_kin(table: pa.Table) -> pa.Table:
    """Put `KIN` in the place of "trial"."""
    kin = [pc.call_function("replace_substring_regex", [each], _WITHOUT) for each in table["trial"].chunks]
    encoded = pa.chunked_array([each.dictionary_encode() for each in kin], _KIN_TYPE)
    return table.drop_columns("trial").append_column(KIN, encoded)


def _conform(table: pa.Table, columns: Sequence[str]) -> pa.Table:
    """Bring a file's columns into the canonical schema; those that it lacks are null."""
    for column in columns:
        if column not in table.column_names:
            table = table.append_column(column, pa.nulls(table.num_rows, OBSERVATIONS.field(column).type))
    schema = schema_of(columns)
    return table if table.schema.equals(schema) else table.select(list(columns)).cast(schema)


def _newer(version: int) -> str:
    return f"schema version {version}, this distsub reads up to {SCHEMA_VERSION}"
