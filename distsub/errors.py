"""Every error a person can cause: one root, one clear line each.

A message says what was wrong, what was given, what is allowed and how to fix it. The classes carry a
standard-library co-parent so that callers who do not know distsub still catch them, and take a plain
message so that they survive pickling between processes.
"""

import difflib
from collections.abc import Iterable


class DistsubError(Exception):
    """Root of every error that the command line turns into one line and exit code 2."""


class ConfigError(DistsubError, ValueError):
    """A sweep file, or a value that belongs in one, cannot be used."""


class ShapeError(DistsubError, ValueError):
    """A tensor has another shape than the projection or model asks for."""


class DimensionError(DistsubError, ValueError):
    """The subspace dimension d does not fit the model or the projection."""


class DataError(DistsubError, ValueError):
    """A dataset lacks a column, a split or a usable label."""


class UnavailableError(DistsubError, OSError):
    """A model or dataset is not on this machine and cannot be fetched."""


class OutOfMemoryError(DistsubError, MemoryError):
    """A training does not fit into the memory that it may use."""


class ClusterError(DistsubError, ConnectionError):
    """No Ray cluster answers where one should, or none can be started."""


class OutputError(DistsubError, OSError):
    """A results directory cannot be written, or belongs to another sweep."""


class AdapterError(DistsubError, ValueError):
    """A saved adapter is corrupt, foreign, or made for other weights."""


class TrajectoryError(DistsubError, ValueError):
    """A recorded trajectory is missing, damaged, or of another model or layout."""


class QueryError(DistsubError, ValueError):
    """A SQL query failed or tried something that reading a table does not need."""


def nearest(given: str, known: Iterable[str]) -> str:
    """Say which known name a wrong one was probably meant to be, for the end of a message.

    Args:
        given: The name that was not found.
        known: The names that exist.

    Returns:
        'did you mean "x"? known: x, y' or, when nothing is close, 'known: x, y'.
    """
    names = list(known)
    close = difflib.get_close_matches(given.lower(), names, n=1, cutoff=0.55)
    guess = f'did you mean "{close[0]}"? ' if close else ""
    return f"{guess}known: {', '.join(names) or 'none'}"


def first_line(error: BaseException) -> str:
    """Give the first line of an error's message, with the next where it only introduces that, or its class."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    introduces = len(lines) > 1 and lines[0].endswith(":")
    return " ".join(lines[: 1 + introduces]).rstrip(".") if lines else type(error).__name__
