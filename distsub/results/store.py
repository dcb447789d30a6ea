"""The append-only table of observations: one immutable Parquet file per trial under a deterministic name.

Any number of processes may write at once, and writing everything twice changes nothing. A file that is
truncated, empty or foreign is never read as a row: it is named in `Store.damaged`, and since its trial is
then not among the rows, the trial runs again and its file is replaced.
"""

import io
import json
import os
import re
import tomllib
from collections.abc import Container, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from typing import Any

import pyarrow as pa
from pyarrow import parquet as pq

from distsub.errors import OutputError
from distsub.results.files import Files, first_line
from distsub.results.schema import OBSERVATIONS, SCHEMA_VERSION, from_row, to_table, trial_from_json
from distsub.trial import Observation

_ROWS = "observations"
_SWEEP, _IDENTITY, _LOCK, _PROBE = "sweep.toml", "sweep.json", ".lock", ".probe"
_NAME = re.compile(r"[0-9a-f]{16}\.parquet")
_KEYS = ("schema_version", "trial_id", "status", "trial")
_CONNECTIONS = 16
_RANK = {"error": 0, "stopped": 1, "diverged": 2, "finished": 2}
"""A row is replaced only by one of higher rank: an error says least, a finished training everything."""

_PARQUET: dict[str, Any] = {
    "compression": "snappy",
    "use_dictionary": False,
    "write_statistics": False,
    "write_page_checksum": True,
}
"""For files of one row and many columns: a quarter of the time of the defaults, and damage is seen."""


class Store:
    """A results directory: the sweep that it belongs to, and one row per trial.

    Attributes:
        uri: The directory as it was given, without credentials.
        fingerprint: What identifies the sweep.
        sweep_text: The sweep file as it was when the directory was made.
        directory: Where relative paths in the sweep file start.
        damaged: After a reading method: one line per file in observations/ that is no row, and why.
    """

    def __init__(self, files: Files, fingerprint: str, sweep_text: str, directory: str = ".") -> None:
        """Wrap an existing directory; use `create` or `open`."""
        self.files = files
        self.uri = files.uri
        self.fingerprint = fingerprint
        self.sweep_text = sweep_text
        self.directory = directory
        self.damaged: list[str] = []

    @classmethod
    def create(cls, uri: str | os.PathLike[str], sweep_text: str, fingerprint: str, directory: str = ".") -> "Store":
        """Make a results directory for a sweep, or take up the one that it already has.

        Args:
            uri: A local path, or a URI that pyarrow.fs understands (s3://, gs://, abfs://, hdfs://, file://).
            sweep_text: The sweep file, kept beside the rows so that they can be read without it.
            fingerprint: Identifies everything in the sweep that decides which trials belong to it.
            directory: Where relative paths in the sweep file start.

        Raises:
            OutputError: The directory belongs to another sweep, or cannot be written.
        """
        files = Files.at(uri)
        identity = {
            "fingerprint": fingerprint,
            "schema_version": SCHEMA_VERSION,
            "distsub_version": _version(),
            "directory": directory,
        }
        try:
            if not files.exists(_IDENTITY):
                if files.names(_ROWS):
                    raise OutputError(
                        f"{files.uri} holds observations but no {_IDENTITY}, so it cannot be told which sweep they "
                        "are of; give another directory with --out, or put the file back"
                    )
                files.make(_ROWS)
                # The identity comes first and only if absent: of two sweeps that start at once, one wins.
                files.put(_IDENTITY, json.dumps(identity, indent=1).encode(), replace=False)
            found = _identity(files)
            if found["fingerprint"] != fingerprint:
                raise OutputError(
                    f"{files.uri} belongs to another sweep (fingerprint {found['fingerprint']}, this sweep has "
                    f"{fingerprint}); give another directory with --out, or run the sweep kept in "
                    f"{files.uri}/{_SWEEP}"
                )
            files.make(_ROWS)
            if not files.exists(_SWEEP) or not _is_toml(files.read(_SWEEP)):
                files.put(_SWEEP, sweep_text.encode())  # the same sweep by fingerprint: a lost or damaged copy heals
            files.put(f"{_ROWS}/{_PROBE}", b"")  # an unwritable directory is told now, not after the first training
        except OutputError:
            raise
        except (OSError, pa.ArrowException) as error:
            raise OutputError(
                f"cannot write to {files.uri} ({first_line(error)}); give a directory with --out that you may write"
            ) from error
        return cls.open(uri)

    @classmethod
    def open(cls, uri: str | os.PathLike[str]) -> "Store":
        """Open a results directory that a run has made.

        Raises:
            OutputError: There is none, it cannot be read, or a newer distsub wrote it.
        """
        files = Files.at(uri)
        try:
            if not files.exists(_IDENTITY):
                raise OutputError(
                    f"{files.uri} is no results directory (it has no {_IDENTITY}); give the directory that "
                    "`distsub run` was given with --out"
                )
            found = _identity(files)
            sweep_text = files.read(_SWEEP).decode() if files.exists(_SWEEP) else ""
        except OutputError:
            raise
        except (OSError, ValueError, pa.ArrowException) as error:
            raise OutputError(f"cannot read {files.uri} ({first_line(error)})") from error
        if found["schema_version"] > SCHEMA_VERSION:
            raise OutputError(
                f"{files.uri} has rows of schema version {found['schema_version']}, this distsub reads up to "
                f"{SCHEMA_VERSION}; upgrade distsub to {found.get('distsub_version', 'a newer version')} or later"
            )
        return cls(files, found["fingerprint"], sweep_text, found.get("directory", "."))

    def write(self, observation: Observation) -> bool:
        """Write the row of one trial, whole or not at all.

        A row that is there stays, with two exceptions: a file that is no row is replaced, and so is a row by
        one that says more (an error by anything, a training that was stopped early by a finished one).

        Returns:
            Whether the row was written; False when the table already has one that says as much.

        Raises:
            OutputError: It cannot be written.
        """
        sink = io.BytesIO()
        pq.write_table(to_table(observation), sink, **_PARQUET)
        name = f"{observation.trial.id}.parquet"
        path = f"{_ROWS}/{name}"
        try:
            if self.files.put(path, sink.getvalue(), replace=False):
                return True
            with self.files.locked(f"{_ROWS}/{_LOCK}"):
                known = _parse(self.files.read(path), name, OBSERVATIONS.names)
                if not isinstance(known, str) and _RANK[known["status"][0].as_py()] >= _RANK[observation.status]:
                    return False
                return self.files.put(path, sink.getvalue())
        except (OSError, pa.ArrowException) as error:
            raise OutputError(
                f"cannot write trial {observation.trial.id} to {self.uri} ({first_line(error)}); "
                "mend that and run the same command again, finished trials are kept"
            ) from error

    def table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Read all rows in the canonical schema, ordered by trial id.

        Args:
            columns: The columns wanted, None for all.

        Raises:
            OutputError: The directory cannot be read.
        """
        try:
            return self._read(self._row_files(), OBSERVATIONS.names if columns is None else columns)
        except (OSError, pa.ArrowException) as error:
            raise OutputError(f"cannot read the observations in {self.uri} ({first_line(error)})") from error

    def read(self) -> list[Observation]:
        """Read all rows as observations, ordered by trial id."""
        return [from_row(row) for row in self.table().to_pylist()]

    def trial_ids(self, statuses: Container[str] | None = None) -> set[str]:
        """Name the trials that have a row, or those whose status is among the given."""
        # All columns: a row damaged in any of them must count as missing here too, or it is never made again.
        keys = self.table().select(["trial_id", "status"]).to_pylist()
        return {row["trial_id"] for row in keys if statuses is None or row["status"] in statuses}

    def _row_files(self) -> list[str]:
        """List the files that are named like rows; names others in `damaged`, unfinished writes nowhere."""
        names = [name for name in self.files.names(_ROWS) if not name.startswith((".", "_"))]
        self.damaged = [f"{_ROWS}/{name}: not a trial's file" for name in names if not _NAME.fullmatch(name)]
        return [name for name in names if _NAME.fullmatch(name)]

    def _read(self, names: Sequence[str], wanted: Sequence[str]) -> pa.Table:
        """Read files one by one: what one of them lacks or adds never touches the others, nor the schema."""
        columns = list(dict.fromkeys([*wanted, *_KEYS]))
        tables = [OBSERVATIONS.empty_table().select(columns)]
        for name, data in zip(names, self._fetch(names), strict=True):
            parsed = _parse(data, name, columns)
            if isinstance(parsed, str):
                self.damaged.append(f"{_ROWS}/{name}: {parsed}")
            else:
                tables.append(parsed)
        return pa.concat_tables(tables).select(list(wanted)).combine_chunks()

    def _fetch(self, names: Sequence[str]) -> Iterator[bytes]:
        """Give the bytes of files in order, over a network several at once."""
        paths = [f"{_ROWS}/{name}" for name in names]
        if self.files.is_local:
            yield from map(self.files.read, paths)
        else:
            with ThreadPoolExecutor(_CONNECTIONS) as pool:
                yield from pool.map(self.files.read, paths)


def _parse(data: bytes, name: str, columns: Sequence[str]) -> pa.Table | str:
    """Read one row file in the canonical schema, or say in a few words why it is none."""
    if not data:
        return "empty file"
    try:
        with pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True) as file:
            present = file.schema_arrow.names
            if file.metadata.num_rows != 1 or not set(_KEYS).issubset(present):
                return "foreign, not the one row of a trial"
            table = file.read([column for column in columns if column in present], use_threads=False)
        for column in set(columns).difference(present):
            table = table.append_column(column, pa.nulls(1, OBSERVATIONS.field(column).type))
        schema = pa.schema([OBSERVATIONS.field(column) for column in columns], metadata=OBSERVATIONS.metadata)
        if not table.schema.equals(schema):
            table = table.select(list(columns)).cast(schema)
        key = {column: table[column][0].as_py() for column in _KEYS}
        if key["schema_version"] > SCHEMA_VERSION:
            return f"schema version {key['schema_version']}, this distsub reads up to {SCHEMA_VERSION}"
        if key["status"] not in _RANK:
            return f"foreign, status {key['status']!r}"
        trial_id = trial_from_json(key["trial"]).id
    except (OSError, ValueError, TypeError, pa.ArrowException) as error:
        return f"not readable ({first_line(error)})"
    if not trial_id == key["trial_id"] == name.removesuffix(".parquet"):
        return f"holds trial {trial_id}, which belongs in another file"
    return table


def _is_toml(data: bytes) -> bool:
    """Tell whether a copy of a sweep file can be read at all."""
    try:
        return bool(tomllib.loads(data.decode()))
    except ValueError:
        return False


def _identity(files: Files) -> dict[str, Any]:
    """Read what says which sweep a directory belongs to."""
    try:
        found = json.loads(files.read(_IDENTITY))
        if isinstance(found["fingerprint"], str) and isinstance(found["schema_version"], int):
            return found
    except (ValueError, TypeError, KeyError):
        pass
    raise OutputError(
        f"{files.uri}/{_IDENTITY} is damaged or foreign; give another directory with --out, or restore that file"
    )


def _version() -> str:
    try:
        return metadata.version("distsub")
    except metadata.PackageNotFoundError:  # run from a source tree
        return "unknown"
