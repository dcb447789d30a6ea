"""The append-only table of observations: one immutable Parquet file per trial under a deterministic name.

Any number of processes may write at once, and writing everything twice changes nothing. A file that is
truncated, empty or foreign is never read as a row: it is named in `Store.damaged`, and since its trial is
then not among the rows, the trial runs again and its file is replaced.

Row files may be merged into parts, which hold many rows each. A row that is in several files counts once.

On an object store a driver's rows lie in a folder of their own below the others, observations/<run>/: no other
process writes there, so that what it has merged at its end goes a thousand files at once.
"""

import dataclasses
import os
from collections.abc import Container, Mapping, Sequence
from typing import Any

import pyarrow as pa
from pyarrow import compute as pc

from distsub import paths
from distsub.errors import OutputError, first_line
from distsub.files import Files
from distsub.paths import LOCK, PARTS, ROWS
from distsub.records import TRUST, Imported, Observation, is_final
from distsub.records.places import Places
from distsub.results import held
from distsub.results.row_files import RowFiles
from distsub.results.rows import SCORES, distinct, encode, odd_rows, parse_row, schema_of, scores
from distsub.results.schema import ANSWERS, IDENTITY, OBSERVATIONS, RECORD, from_row, setup_reader, to_table

_PROBE = ".probe"
_PIECE = 1000  # rows that are Python objects at once before they are observations
_NAMED = 8  # damaged files that are named one by one
_MANY = 5000  # row files from which reading them one by one is felt


class Store(RowFiles):
    """A results directory: the sweep that it belongs to, and one row per trial.

    Attributes:
        uri: The directory as it was given, without credentials.
        fingerprint: What identifies the sweep.
        sweep_text: The sweep file as it was when it ran last.
        remark: What `create` found out of an earlier sweep of the directory, "" for nothing.
        directory: Where relative paths in the sweep file start.
        places: Where its models and tasks lay when it ran last.
        damaged: After a reading method: one line per file among the rows that is none, and why.
        loose: After a reading method: how many rows lie in files of their own.
        num_rows: How many trials had a row when it was last read; None before.
        written: After a reading method: when the newest row file was, in seconds since the epoch; None without one.
        merged: The same of the newest part.
        folder: Where this process writes rows.
    """

    def __init__(
        self, files: Files, fingerprint: str, sweep_text: str, directory: str = ".", places: Places | None = None
    ) -> None:
        """Wrap an existing directory; use `create` or `open`."""
        self.files, self.uri = files, files.uri
        self.fingerprint, self.sweep_text, self.directory = fingerprint, sweep_text, directory
        self.places = places or Places()
        self.remark = ""
        self.damaged: list[str] = []
        self.loose = 0
        self.num_rows: int | None = None
        self.written: float | None = None
        self.merged: float | None = None
        self.folder = ROWS

    def __repr__(self) -> str:
        """Say which directory it is, and how many rows it had when it was last read; nothing is read for it."""
        return f"Store({self.uri!r}, {'rows not read yet' if self.num_rows is None else f'{self.num_rows} rows'})"

    @classmethod
    def create(
        cls,
        uri: str | os.PathLike[str],
        sweep_text: str,
        fingerprint: str,
        directory: str = ".",
        places: Places | None = None,
        record: Mapping[str, Any] | None = None,
    ) -> "Store":
        """Make a results directory for a sweep, or take up one that has it, or one that it contains.

        Args:
            uri: A local path, or a URI that pyarrow.fs understands (s3://, gs://, abfs://, hdfs://, file://).
            sweep_text: The sweep file, kept beside the rows so that they can be read without it; the latest counts.
            fingerprint: Identifies everything in the sweep that decides which trials belong to it.
            directory: Where relative paths in the sweep file start.
            places: Where its models and tasks lie, by content; those of the last run count.
            record: `Sweep.record`; without it the directory's sweep cannot grow.

        Raises:
            OutputError: The directory belongs to a sweep that this one does not contain, or cannot be written.
        """
        files = Files.at(uri)
        identity = held.entry(sweep_text, fingerprint, directory, places or Places(), record)
        try:
            if not files.exists(paths.IDENTITY):
                if files.names(ROWS, deep=True) or files.names(PARTS):
                    raise OutputError(
                        f"{files.uri} holds observations but no {paths.IDENTITY}, so it cannot be told which sweep "
                        "they are of; give another directory with --out, or put the file back"
                    )
                files.make(ROWS)
                # The identity comes first and only if absent: of two sweeps that start at once, one wins.
                files.put(paths.IDENTITY, held.encode(identity), replace=False)
            files.make(ROWS)
            with files.locked(LOCK):
                remark = held.take_up(files, identity)
            files.put(f"{ROWS}/{_PROBE}", b"")  # an unwritable directory is an error now, not after the first training
        except held.Refused as error:
            if error.of_content:
                cls.open(uri)._refuse_changed(places or Places())
            raise
        except OutputError:
            raise
        except (OSError, pa.ArrowException) as error:
            raise OutputError(
                f"cannot write to {files.uri} ({first_line(error)}); give a directory with --out that you may write"
            ) from error
        store = cls.open(uri)
        store.remark = remark
        return store

    @classmethod
    def open(cls, uri: str | os.PathLike[str]) -> "Store":
        """Open a results directory that a run has made.

        Raises:
            OutputError: There is none, it cannot be read, or a newer distsub wrote it.
        """
        files = Files.at(uri)
        try:
            found = held.read(files)
        except OutputError:
            raise
        except (FileNotFoundError, NotADirectoryError):
            raise OutputError(
                f"{files.uri} is no results directory (it has no {paths.IDENTITY}); give the directory that "
                "`distsub run` was given with --out"
            ) from None
        except (OSError, ValueError, pa.ArrowException) as error:
            raise OutputError(f"cannot read {files.uri} ({first_line(error)})") from error
        return cls(files, found["fingerprint"], found["text"], found.get("directory", "."), found["places"])

    def _refuse_changed(self, now: Places) -> None:
        """Say which model or task is no longer what the rows are of, if one is."""
        for what, column, old, new in self.places.changes_to(now):
            values = self.table([column])[column].to_pylist()
            if column == "trajectories":  # a list in each row, of ids
                old_id = Imported("", old).id
                known = sum(old_id in (each or ()) for each in values)
            else:
                known = values.count(old)
            raise OutputError(
                f"{self.uri}: {what} has changed (content {old[:12]}, now {new[:12]}; rows of the old: {known}), and a "
                "sweep is of one content: put back what it was, or give another directory with --out"
            )

    def write(self, observation: Observation) -> bool:
        """Write the row of one trial, whole or not at all.

        A row that is there stays, with two exceptions: a file that is no row is replaced, and so is a row by
        one that says more (an error by anything). Rows in parts and other folders are not looked up: a trial that is
        written again after it was merged has two rows until the next merge, of which readers take the one that says
        more, or else the one that was there first. On an object store a finished row is not preceded by a look at what
        is there: that would be a request, and replacing a finished row of the same trial changes nothing.

        Returns:
            Whether the row was written; False when its file already says as much.

        Raises:
            OutputError: It cannot be written.
        """
        # The worker may have read copies, whose addresses mean nothing elsewhere.
        data = encode(to_table(dataclasses.replace(observation, trial=self.places.locate_trial(observation.trial))))
        name = f"{observation.trial.id}.parquet"
        path = f"{self.folder}/{name}"
        try:
            if self.files.puts_whole and is_final(observation.status):
                return self.files.put(path, data)
            while not self.files.put(path, data, replace=False):
                with self.files.locked(LOCK):
                    try:
                        known = parse_row(self.files.read(path), name, OBSERVATIONS.names)
                    except FileNotFoundError:
                        continue  # merged into a part just now
                    if not isinstance(known, str) and TRUST[known["status"][0].as_py()] >= TRUST[observation.status]:
                        return False
                    return self.files.put(path, data)
            return True
        except (OSError, pa.ArrowException) as error:
            raise OutputError(
                f"cannot write trial {observation.trial.id} to {self.uri} ({first_line(error)}); "
                "fix that and run the same command again, finished trials are kept"
            ) from error

    def table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Read all rows in the canonical schema, ordered by trial id.

        Args:
            columns: The columns wanted, None for all.

        Raises:
            OutputError: The directory cannot be read.
        """
        wanted = OBSERVATIONS.names if columns is None else list(columns)
        table = self._read(wanted)
        return table.sort_by("trial_id").select(wanted)

    def located(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Read all rows as `table` does, but with each model named by the address at which it lay in the last run.

        So all rows of a condition name it alike, and as the estimates do.
        """
        wanted = OBSERVATIONS.names if columns is None else list(columns)
        if not {"model", "revision"} & set(wanted):
            return self.table(wanted)
        found = self.table(list(dict.fromkeys([*wanted, "model_content"])))
        known = self.places.models_by_content
        at = pc.index_in(found["model_content"], pa.array(list(known), pa.string()))  # pyright: ignore[reportAttributeAccessIssue]
        for column, values in (
            ("model", [place.name for place in known.values()]),
            ("revision", [place.revision for place in known.values()]),
        ):
            if column in wanted:
                here = pa.array(values, pa.string()).take(at)
                index = found.schema.get_field_index(column)
                new = pc.if_else(at.is_valid(), here, found[column])  # pyright: ignore[reportAttributeAccessIssue]
                found = found.set_column(index, found.schema.field(index), new)
        return found.select(wanted)

    def read(self, *, answers: bool = True) -> list[Observation]:
        """Read all rows as observations, ordered by trial id.

        Args:
            answers: Whether with what was predicted and expected for each evaluated example, all metrics and where the
                row comes from: they are nine tenths of it, and deciding what is to run needs none of them.
        """
        columns = [column for column in RECORD if answers or column not in ANSWERS]
        # Of all columns: a row that is damaged in one that is not read here must count as missing all the same.
        setup_of, best = setup_reader(self.places), dict[str, Observation]()
        for name, table in self._tables(columns, whole=True):
            for row in (row for piece in table.to_batches(_PIECE) for row in piece.to_pylist()):
                try:
                    found = from_row(row, setup_of)
                except ValueError as error:
                    self.damaged.append(f"{name}: trial {row['trial_id']}: {first_line(error)}")
                    continue
                known = best.get(found.trial.id)
                if known is None or TRUST[found.status] > TRUST[known.status]:
                    best[found.trial.id] = found
        self.num_rows = len(best)
        return [best[trial_id] for trial_id in sorted(best)]

    def scores(self) -> list[Observation]:
        """Read the status, score and cost of every row, in seconds where `read` takes a minute.

        A row that is damaged in another column is not noticed.
        """
        return scores(self._read(SCORES), self.places)

    def trial_ids(self, statuses: Container[str] | None = None) -> set[str]:
        """Name the trials that have a row, or those whose status is among the given."""
        # All columns: a row damaged in any of them must count as missing here too, or it is never made again.
        keys = self._read(["status", "score", *IDENTITY], whole=True).select(["trial_id", "status"]).to_pylist()
        return {row["trial_id"] for row in keys if statuses is None or row["status"] in statuses}

    def notices(self) -> list[str]:
        """Say of the last reading what it skipped, and what would make it faster."""
        lines = [f"skipped {line}" for line in self.damaged[:_NAMED]]
        if len(self.damaged) > _NAMED:
            lines.append(f"skipped {len(self.damaged) - _NAMED} more files")
        if self.loose > _MANY:
            lines.append(f"{self.loose} rows lie in files of their own; `distsub compact` makes this fast")
        return lines

    def _read(self, wanted: Sequence[str], whole: bool = False) -> pa.Table:
        """Read columns of all rows, and "trial_id" and "status" in any case, each trial once."""
        wanted = list(dict.fromkeys([*wanted, "trial_id", "status"]))
        sound = [schema_of(wanted).empty_table()]
        for name, table in self._tables(wanted, whole):
            odd = odd_rows(table) if name.startswith(PARTS) else {}  # a row file's was looked at when it was parsed
            self.damaged += [f"{name}: trial {table['trial_id'][at]}: {reason}" for at, reason in odd.items()]
            sound.append(table.take(pa.array(sorted(set(range(table.num_rows)) - odd.keys()))) if odd else table)
        found = distinct(pa.concat_tables(sound))
        self.num_rows = found.num_rows
        return found

    def _tables(self, wanted: Sequence[str], whole: bool) -> list[tuple[str, pa.Table]]:
        """Read columns of all parts and row files, by name; parts first: of equal rows the first one stays.

        Row files are read before parts are listed: a row that vanishes from one place is by then in the other.
        """
        columns = OBSERVATIONS.names if whole else wanted
        self.damaged = []
        try:
            loose = self.read_rows(self.row_files(), columns)
            self.loose = len(loose)
            parts = self.read_parts(wanted, whole=whole)
        except (OSError, pa.ArrowException) as error:
            raise OutputError(f"cannot read the observations in {self.uri} ({first_line(error)})") from error
        found = [(f"{PARTS}/{name}", table) for name, table in parts.items()]
        return found + [(f"{ROWS}/{name}", table.select(list(wanted))) for name, table in loose.items()]
