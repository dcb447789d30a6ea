"""Tokenised rows as arrays: made once per machine where there are many, and mapped by every process that reads them.

As lists of Python numbers the 393,000 pairs of MNLI take gigabytes and half a minute, in every process and every trial.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from distsub.cache import cache_directory, once

FEW = 4_000
"""Rows that are not worth files: they are tokenised in a fraction of a second."""

CHUNK = 20_000
"""Rows that are held as Python numbers while files are made."""

_FORMAT = 1  # of a directory in the cache


class Tokens(Sequence[dict[str, list[int]]]):
    """Tokenised rows: a sequence of dicts of lists, as a tokenizer gives them, held as flat arrays.

    Args:
        columns: For each key all numbers end to end, int32, and where each row begins, int64 of one more than the rows.
    """

    def __init__(self, columns: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> None:
        self._columns = dict(columns)

    @classmethod
    def of(cls, examples: Iterable[Mapping[str, Sequence[int]]]) -> "Tokens":
        """Hold rows in memory."""
        return cls({key: _joined(parts) for key, parts in _parts([list(examples)]).items()})

    @classmethod
    def joined(cls, several: Sequence["Tokens"]) -> "Tokens":
        """Put rows behind rows."""
        every = {key: [each._columns[key] for each in several] for key in several[0]._columns}
        return cls({key: _joined([(v, np.diff(starts)) for v, starts in parts]) for key, parts in every.items()})

    def __len__(self) -> int:
        """Count the rows."""
        return min((len(starts) for _, starts in self._columns.values()), default=1) - 1

    def __getitem__(self, row: Any) -> Any:
        """Give one row as a tokenizer does."""
        if isinstance(row, slice):
            return [self[each] for each in range(*row.indices(len(self)))]
        if not -len(self) <= row < len(self):
            raise IndexError(row)
        row %= len(self)
        return {key: values[starts[row] : starts[row + 1]].tolist() for key, (values, starts) in self._columns.items()}

    def lengths(self, *keys: str) -> list[int]:
        """Count the tokens of each row under some keys together."""
        return sum(np.diff(self._columns[key][1]) for key in keys).tolist()  # type: ignore[union-attr]

    def save(self, folder: Path) -> None:
        """Write the arrays."""
        for key, (values, starts) in self._columns.items():
            np.save(folder / f"{key}.npy", values)
            np.save(folder / f"{key}.starts.npy", starts)

    @classmethod
    def mapped(cls, folder: Path) -> "Tokens":
        """Map the arrays of a folder: processes that do so share the memory."""
        keys = sorted(file.name.removesuffix(".starts.npy") for file in folder.glob("*.starts.npy"))
        files = {key: (folder / f"{key}.npy", folder / f"{key}.starts.npy") for key in keys}
        return cls({key: (np.load(a, mmap_mode="r"), np.load(b, mmap_mode="r")) for key, (a, b) in files.items()})


def prepared(
    rows: int, key: Sequence[Any] | None, make: Callable[[slice], Sequence[Mapping[str, Sequence[int]]]]
) -> Tokens:
    """Give the tokens of some rows, out of the cache of this machine where there are many.

    Args:
        rows: How many there are.
        key: All that decides the tokens, as plain values; None keeps them in memory only.
        make: Tokenises a slice of the rows.

    Raises:
        UnavailableError: The cache cannot be written.
    """
    if key is None or rows <= FEW:
        return Tokens.of(make(slice(0, rows)))
    versions = [metadata.version(name) for name in ("transformers", "tokenizers")]
    digest = hashlib.sha256(json.dumps([_FORMAT, versions, *key]).encode()).hexdigest()[:24]

    def write(folder: Path) -> None:
        chunks = (make(slice(start, start + CHUNK)) for start in range(0, rows, CHUNK))
        Tokens({name: _joined(parts) for name, parts in _parts(chunks).items()}).save(folder)

    return Tokens.mapped(once(cache_directory() / f"tokens-{digest}", write))


def _parts(chunks: Iterable[Sequence[Mapping[str, Sequence[int]]]]) -> dict[str, list[tuple[np.ndarray, np.ndarray]]]:
    """Turn chunks of rows into arrays of values and of lengths, one pair per chunk."""
    found: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for chunk in chunks:
        for key in chunk[0] if chunk else ():
            lengths = np.fromiter((len(row[key]) for row in chunk), np.int64, len(chunk))
            values = np.fromiter(_flat(chunk, key), np.int32, int(lengths.sum()))
            found.setdefault(key, []).append((values, lengths))
    return found


def _flat(chunk: Sequence[Mapping[str, Sequence[int]]], key: str) -> Iterator[int]:
    for row in chunk:
        yield from row[key]


def _joined(parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    lengths = np.concatenate([each for _, each in parts])
    return np.concatenate([each for each, _ in parts]), np.concatenate([[0], np.cumsum(lengths)])
