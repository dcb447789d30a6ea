"""Row files and parts: what a Parquet file in a results directory may hold, and how rows come out of it.

A row file holds the one row of a trial and is named after it; every reading checks that its trial is the one that
its name says. A part holds many rows that were checked when they were merged; page checksums tell later damage.
"""

import io
import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet as pq

from distsub.errors import first_line
from distsub.records import TRUST, Observation, Setup, Trial, id_of
from distsub.records.places import Places
from distsub.results.checks import check_d_and_eta
from distsub.results.schema import IDENTITY, OBSERVATIONS, SCHEMA_VERSION, setup_from_json

NAME = re.compile(r"[0-9a-f]{16}\.parquet")
"""Of a row file: the trial's id."""

PART = re.compile(rf"(p[0-9a-f]{{8}}-)?{NAME.pattern}")
"""Of a part: a number above those of the parts that it replaced, and a hash of its bytes."""

_KEYS = ("schema_version", "status", *IDENTITY)
_VALUES = ("d", "eta", "status", "score", "chance", "wall_s", "num_params", "num_params_model")
_VALUES += ("num_trained_head", "num_scales", "num_examples")

SCORES = (*IDENTITY, *_VALUES[2:])
"""The columns that verdicts and costs are made of."""

_VERSION = b"distsub_schema_version"
_UNREADABLE = (OSError, ValueError, TypeError, KeyError, pa.ArrowException)

MOST_VALUES = {"row": 2**24, "part": 2**28}
"""Values that a column of a row file, and of a part, may hold: a file of a few bytes may claim billions."""

_MOST_BYTES = {"row": 2**28, "part": 2**32}
"""What either may take when it is unpacked."""

_ROW: dict[str, Any] = {"compression": "snappy", "use_dictionary": False, "write_statistics": False}
# A quarter of the time of the defaults for one row of many columns.
_PART: dict[str, Any] = {"compression": "zstd", "data_page_size": 256 * 1024}


def encode(table: pa.Table, part: bool = False) -> bytes:
    """Write a row, or a part's rows, as the bytes of a Parquet file in which damage is seen."""
    sink = io.BytesIO()
    pq.write_table(table, sink, write_page_checksum=True, **(_PART if part else _ROW))
    return sink.getvalue()


def parse_row(data: bytes, name: str, columns: Sequence[str] | None) -> pa.Table | str:
    """Read one row file in the canonical schema, or say in a few words why it is none.

    Args:
        data: The file.
        name: Its name, which begins with the id of the trial.
        columns: Those wanted; None for all, those that the schema does not know among them, at the end.
    """
    if not data:
        return "empty file"
    try:
        source = pa.BufferReader(data)
        with pq.ParquetFile(source, page_checksum_verification=True) as file:
            present = file.schema_arrow.names
            if file.metadata.num_rows != 1 or not set(_KEYS).issubset(present):
                return "foreign, not the one row of a trial"
            if large := _too_large(source.size(), file.metadata, "row"):
                return large
            asked = _all(present) if columns is None else columns
            wanted = list(dict.fromkeys([*asked, *_KEYS]))
            table = _conform(file.read([column for column in wanted if column in present], use_threads=False), wanted)
        key = {column: table[column][0].as_py() for column in _KEYS}
        if key["schema_version"] > SCHEMA_VERSION:
            return _newer(key["schema_version"])
        if key["status"] not in TRUST:
            return f"foreign, status {key['status']!r}"
        odd = odd_rows(table)
    except _UNREADABLE as error:
        return f"not readable ({first_line(error)})"
    if odd:
        return odd[0]
    if key["trial_id"] != name.removesuffix(".parquet"):
        return f"holds trial {key['trial_id']}, which belongs in another file"
    return table.select(list(asked))


def parse_part(source: pa.NativeFile, columns: Sequence[str] | None) -> pa.Table | str:
    """Read columns of a part in the canonical schema, or say in a few words why it is none; None as for a row."""
    try:
        with pq.ParquetFile(source, page_checksum_verification=True, pre_buffer=True) as file:
            present = file.schema_arrow.names
            version = int((file.schema_arrow.metadata or {}).get(_VERSION, b"0"))
            if not set(_KEYS).issubset(present) or not version:
                return "foreign, no rows of trials"
            if version > SCHEMA_VERSION:
                return _newer(version)
            if large := _too_large(source.size(), file.metadata, "part"):
                return large
            columns = _all(present) if columns is None else columns
            table = _conform(file.read([column for column in columns if column in present]), columns)
        if "status" in columns and not set(table["status"].unique().to_pylist()) <= TRUST.keys():
            return "foreign, unknown status"
    except _UNREADABLE as error:
        return f"not readable ({first_line(error)})"
    return table


def odd_rows(table: pa.Table) -> dict[int, str]:
    """Say which rows of a part are none, by position, and why; as far as the columns that were read can tell."""
    odd: dict[int, str] = {}
    names = set(table.schema.names)
    if "setup" in names:
        texts, of_row = _distinct_texts(table["setup"])
        setups = list(map(_setup_or_reason, texts))
        odd = {row: reason for row, i in enumerate(of_row) if isinstance(reason := setups[i], str)}
        if set(IDENTITY) <= names:
            ids = (table[name].to_pylist() for name in ("trial_id", "setup_id", "d", "eta"))
            for row, (i, *identity) in enumerate(zip(of_row, *ids, strict=True)):
                if row not in odd and (reason := _odd_identity(setups[i], *identity)):
                    odd[row] = reason
    if {"status", "score"} <= names:
        for row, (status, score) in enumerate(
            zip(*(table[name].to_pylist() for name in ("status", "score")), strict=True)
        ):
            if status == "finished" and (score is None or not math.isfinite(score)):
                odd.setdefault(row, f"a trial with a result and no score, {score}")
    return odd


def _distinct_texts(column: pa.ChunkedArray) -> tuple[list[str], list[int]]:
    """Give the texts of a column, each once, and the position there of each row's."""
    texts = column.unify_dictionaries().combine_chunks()
    return texts.dictionary.to_pylist(), texts.indices.to_pylist()


def _setup_or_reason(text: str) -> Setup | str:
    try:
        return setup_from_json(text)
    except ValueError as error:
        return first_line(error)


def _odd_identity(setup: Any, trial_id: str, setup_id: str, d: int | None, eta: float | None) -> str | None:
    """Say why a row is not of the trial that it names."""
    try:
        check_d_and_eta(d, eta)
    except ValueError as error:
        return str(error)
    named = id_of(setup_id, d, eta)
    return None if (setup.id, named) == (setup_id, trial_id) else f"its trial is {named}"


def distinct(table: pa.Table) -> pa.Table:
    """Keep each trial once: of several rows the one of highest trust, of equal ones the first."""
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
    return [(trial_id, TRUST[status]) for trial_id, status in zip(table["trial_id"].to_pylist(), statuses, strict=True)]


def scores(table: pa.Table, places: Places) -> list[Observation]:
    """Rebuild rows as observations without their arrays: each setup once.

    Args:
        table: Rows with the columns of SCORES.
        places: Where the contents of setups lie.
    """
    if not table.num_rows:
        return []
    texts, of_row = _distinct_texts(table["setup"])
    setups = {i: places.locate(setup_from_json(texts[i])) for i in set(of_row)}  # of rows that were left out, none
    found = []
    for i, d, eta, *values in zip(of_row, *(table[name].to_pylist() for name in _VALUES), strict=True):
        status, score, chance, *numbers = values
        counts = dict(zip(_VALUES[5:], (number or 0 for number in numbers), strict=True))
        found.append(Observation(Trial(setups[i], d, eta), status, score, chance, **counts))
    return found


def schema_of(columns: Sequence[str]) -> pa.Schema:
    """Give the canonical schema of some columns."""
    return pa.schema([OBSERVATIONS.field(column) for column in columns], metadata=OBSERVATIONS.metadata)


def _conform(table: pa.Table, columns: Sequence[str]) -> pa.Table:
    """Bring a file's columns into the canonical schema; those that it lacks are null."""
    for column in columns:
        if column not in table.column_names:
            table = table.append_column(column, pa.nulls(table.num_rows, OBSERVATIONS.field(column).type))
    own = [table.schema.field(name) for name in columns if name not in OBSERVATIONS.names]
    schema = pa.schema([*schema_of([name for name in columns if name in OBSERVATIONS.names]), *own])
    schema = schema.with_metadata(OBSERVATIONS.metadata)
    table = table.select(schema.names)
    return table if table.schema.equals(schema) else table.cast(schema)


def _all(present: Sequence[str]) -> list[str]:
    return [*OBSERVATIONS.names, *(name for name in present if name not in OBSERVATIONS.names)]


def _too_large(size: int, metadata: pq.FileMetaData, kind: str) -> str | None:
    """Say of a file of so many bytes that it claims more than its kind may hold, before anything of it is unpacked.

    Raises:
        OSError: What the file says of its columns is damaged.
    """
    # Asked for damaged metadata of a column, pyarrow ends the process; a reader that is set up, for no rows, raises. It
    # would fetch all bytes of the file in advance: zeros, which are never touched, do as well.
    reader = pq.ParquetFile(pa.BufferReader(np.zeros(size, np.uint8)), metadata=metadata).reader
    for number in range(metadata.num_row_groups):
        next(reader.iter_batches(0, row_groups=[number], use_threads=False), None)
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    for index in range(metadata.num_columns):
        count = sum(group.column(index).num_values for group in groups)
        if count > MOST_VALUES[kind]:
            name = metadata.schema.column(index).path.partition(".")[0]
            return f"{count:,} values of {name}, at most {MOST_VALUES[kind]:,} are read"
    size = sum(group.column(index).total_uncompressed_size for group in groups for index in range(metadata.num_columns))
    return f"{size:,} bytes when unpacked, at most {_MOST_BYTES[kind]:,} are read" if size > _MOST_BYTES[kind] else None


def _newer(version: int) -> str:
    return f"schema version {version}, this distsub reads up to {SCHEMA_VERSION}"
