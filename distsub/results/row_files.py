"""The row files and parts of a results directory, as they are listed and read."""

import hashlib
import re
from collections.abc import Container, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa

from distsub.files import Files
from distsub.paths import PARTS, ROWS
from distsub.results.rows import NAME, PART, parse_part, parse_row
from distsub.results.schema import OBSERVATIONS

CONNECTIONS = 16
_ROW_FILE = re.compile(rf"([0-9a-f]{{16}}/)?{NAME.pattern}")
_LISTINGS = 20  # of the parts, before giving up on a directory that changes all the time
_AT_ONCE = 1 << 24  # bytes that come sooner than the answers to the requests for some of them


class RowFiles:
    """What lies among the rows of a results directory.

    Attributes:
        files: The directory.
        damaged: After a reading: one line per file among the rows that is none, and why.
        written: When the newest row file that was listed was written, in seconds since the epoch; None without one.
        merged: The same of parts.
    """

    files: Files
    damaged: list[str]
    written: float | None
    merged: float | None

    def row_files(self) -> list[str]:
        """List the files that are named like rows; names others in `damaged`, unfinished writes nowhere."""
        names, self.written = _shown(self.files.times(ROWS, deep=True))
        self.damaged += [f"{ROWS}/{name}: not a trial's file" for name in names if not _ROW_FILE.fullmatch(name)]
        return [name for name in names if _ROW_FILE.fullmatch(name)]

    def read_rows(
        self, names: Sequence[str], columns: Sequence[str] | None, digests: dict[str, bytes] | None = None
    ) -> dict[str, pa.Table]:
        """Read row files one by one: what one lacks or adds never touches the others, nor the schema.

        Args:
            names: The files.
            columns: The columns wanted; None for all, those that the schema does not know among them.
            digests: Filled with what each file's bytes were.
        """
        tables = {}
        for name, data in zip(names, self._fetch(names), strict=True):
            if data is None:
                continue  # merged into a part since it was listed
            parsed = parse_row(data, name.rpartition("/")[2], columns)
            if digests is not None:
                digests[name] = digest(data)
            if isinstance(parsed, str):
                self.damaged.append(f"{ROWS}/{name}: {parsed}")
            else:
                tables[name] = parsed
        return tables

    def read_parts(
        self, columns: Sequence[str] | None, *, whole: bool = False, only: Container[str] | None = None
    ) -> dict[str, pa.Table]:
        """Read parts; again from the start when some are merged meanwhile.

        Args:
            columns: The columns wanted; None for all, those that the schema does not know among them.
            whole: Whether a part that is damaged in any other column counts as damaged too.
            only: The names of those wanted, None for all.
        """
        for _ in range(_LISTINGS):
            # A listing is no snapshot: a part may come and the ones that it replaces go while it is made. In the order
            # of names it has met one that comes, for `part_name` puts it behind those, or they were still there.
            names, self.merged = _shown(self.files.times(PARTS))
            if not self.files.lists_in_order and names != _shown(self.files.times(PARTS))[0]:
                continue
            tables, damaged = {}, []
            try:
                for name in names:
                    if only is not None and name not in only:
                        continue
                    parsed = "not a part's file"
                    if PART.fullmatch(name):
                        parsed = self._part(name, OBSERVATIONS.names if whole else columns)
                    if isinstance(parsed, str):
                        damaged.append(f"{PARTS}/{name}: {parsed}")
                    else:
                        tables[name] = parsed if columns is None else parsed.select(list(columns))
            except FileNotFoundError:
                continue
            self.damaged += damaged
            return tables
        raise OSError(f"its parts changed {_LISTINGS} times while they were read")

    def _part(self, name: str, columns: Sequence[str] | None) -> pa.Table | str:
        path = f"{PARTS}/{name}"
        with self.files.open(path) as source:
            short = self.files.puts_whole and source.size() <= _AT_ONCE
            parsed = parse_part(pa.BufferReader(source.read()) if short else source, columns)
        if isinstance(parsed, str) and not self.files.exists(path):
            raise FileNotFoundError(path)  # merged while it was read
        return parsed

    def _fetch(self, names: Sequence[str]) -> Iterator[bytes | None]:
        """Give the bytes of row files in order, None for those that are gone; over a network several at once."""
        if self.files.is_local:
            yield from map(self._bytes, names)
        else:
            with ThreadPoolExecutor(CONNECTIONS) as pool:
                yield from pool.map(self._bytes, names)

    def _bytes(self, name: str) -> bytes | None:
        try:
            return self.files.read(f"{ROWS}/{name}")
        except FileNotFoundError:
            return None


def part_name(data: bytes, known: Iterable[str]) -> str:
    """Name a part after its bytes, behind all parts that it may replace; one that is there keeps its name.

    Args:
        data: The part.
        known: The names of the parts that are there.
    """
    name = f"{hashlib.sha256(data).hexdigest()[:16]}.parquet"
    same = [each for each in known if each.endswith(name)]
    numbers = [int(each[1:9], 16) for each in known if each[9:10] == "-"]
    return max(same) if same else f"p{max(numbers, default=0) + 1:08x}-{name}"


def _shown(times: dict[str, float]) -> tuple[list[str], float | None]:
    """Leave out unfinished writes and what is hidden, and give when the newest of the others was written."""
    shown = {name: time for name, time in times.items() if not name.rpartition("/")[2].startswith((".", "_"))}
    return list(shown), max(shown.values(), default=0) or None


def digest(data: bytes) -> bytes:
    """Name the bytes of a file, to tell later whether it still is the same."""
    return hashlib.blake2b(data, digest_size=16).digest()
