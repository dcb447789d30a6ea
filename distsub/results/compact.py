"""Merge row files into parts: thousands of files of one row become a few that are read at once.

Nothing that a file holds is dropped: a column that this distsub does not know, which a later one or another tool has
written, comes through, and rows that cannot be merged (damaged, or such a column of two types) stay in their files.

Safe at any moment, whatever else runs. A part is written whole before anything that it replaces is removed, so that a
kill leaves rows twice at worst, and readers take each trial once. A row file is removed only if it still is what was
merged; where that cannot be made sure in one step, on an object store, rows that a better one could replace stay. A
driver at its end knows that no process writes to its own folder any more: it is merged whole and removed at once.
"""

import contextlib
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
from pyarrow import compute as pc

from distsub.errors import OutputError, first_line
from distsub.paths import LOCK, PARTS, ROWS
from distsub.records import is_final
from distsub.results.row_files import CONNECTIONS, digest, part_name
from distsub.results.rows import MOST_VALUES, distinct, encode, odd_rows, ranks
from distsub.results.schema import OBSERVATIONS, columns
from distsub.results.store import Store

ROWS_PER_PART = 20_000
_LONG = ("correct", "predicted", "target")
"""The columns that make a row long: a part has fewer rows where they would be more than is read of one."""

COMPACTED = pa.schema(columns(pa.int64(), "rows", "parts", "merged", "loose", "damaged"))
"""Of a directory: distinct trials; parts they lie in; row files merged now; those left; files that hold no row."""


def compact(store: Store, rows_per_part: int = ROWS_PER_PART) -> pa.Table:
    """Merge a directory's row files into parts, and parts that are not full into fuller ones.

    Doing it again changes nothing; several at once, and any writers and readers meanwhile, do no harm. Files that are
    damaged are left where they are and named in `store.damaged`.

    Args:
        store: The results directory.
        rows_per_part: How many rows a full part has.

    Returns:
        One row in the schema `COMPACTED`.

    Raises:
        OutputError: The directory cannot be read or written.
    """
    row = {"merged": merge(store, rows_per_part)}
    row |= {"rows": len(store.trial_ids()), "parts": len(store.read_parts(["trial_id"]))}
    row |= {"loose": store.loose, "damaged": len(store.damaged)}
    return pa.Table.from_pylist([row], schema=COMPACTED)


def merge(store: Store, rows_per_part: int = ROWS_PER_PART, own: str | None = None) -> int:
    """Merge row files into parts in one pass over them; give how many files were removed.

    Args:
        store: The results directory.
        rows_per_part: How many rows a full part has.
        own: A folder of rows to which no process writes any more.

    Raises:
        OutputError: The directory cannot be read or written.
    """
    try:
        names, merged = store.row_files(), {}
        mine = {name for name in names if f"{ROWS}/{name}".rpartition("/")[0] == own}
        for first in range(0, len(names), rows_per_part) or (0,):
            merged |= _merge(store, names[first : first + rows_per_part], rows_per_part, mine)
        if own is None or not mine or not mine <= merged.keys():
            return _remove(store, merged)
        store.files.delete_all(own)
        return len(mine) + _remove(store, {name: merged[name] for name in merged.keys() - mine})
    except (OSError, pa.ArrowException) as error:
        raise OutputError(
            f"cannot merge the rows in {store.uri} ({first_line(error)}); no row is lost, fix that and compact again"
        ) from error


def _merge(store: Store, names: list[str], rows_per_part: int, mine: set[str]) -> dict[str, bytes]:
    """Merge some row files with the parts that have room; give what the files were that can now be removed."""
    digests: dict[str, bytes] = {}
    loose = store.read_rows(names, None, digests)
    if not store.files.is_local:
        loose = {name: table for name, table in loose.items() if name in mine or is_final(table["status"][0].as_py())}
    keys = store.read_parts(["trial_id", "status"], whole=True)
    full = {name: table for name, table in keys.items() if table.num_rows >= rows_per_part}
    room = keys.keys() - full.keys()
    parts = store.read_parts(None, only=room) if loose or len(room) > 1 else {}
    parts = {name: table for name, table in parts.items() if not odd_rows(table)}
    schema = OBSERVATIONS
    for tables in (parts, loose):
        for name in list(tables):
            try:
                schema = pa.unify_schemas([schema, tables[name].schema])
            except pa.ArrowTypeError:
                del tables[name]
    if not loose and len(parts) < 2:
        return {}
    table = distinct(
        pa.concat_tables([schema.empty_table(), *parts.values(), *loose.values()], promote_options="default")
    )
    table = _without(table, full.values())
    kept = write_parts(store, table.sort_by("trial_id"), rows_per_part, keys)
    for name in parts.keys() - kept:
        store.files.delete(f"{PARTS}/{name}")
    return {name: digests[name] for name in loose}


def _without(table: pa.Table, full: Iterable[pa.Table]) -> pa.Table:
    """Leave out rows that full parts have, of the same rank or a higher one."""
    known: dict[str, int] = {}
    for part in full:
        for trial_id, rank in ranks(part):
            known[trial_id] = max(rank, known.get(trial_id, -1))
    return table.filter(pa.array([rank > known.get(trial_id, -1) for trial_id, rank in ranks(table)], pa.bool_()))


def write_parts(
    store: Store, table: pa.Table, rows_per_part: int = ROWS_PER_PART, known: Collection[str] = ()
) -> set[str]:
    """Write rows as parts, named by `part_name` beside those that are known; give the names."""
    store.files.make(PARTS)
    names = set()
    lengths = (pc.call_function("list_value_length", [table[name]]) for name in _LONG)
    most = max((pc.call_function("max", [each]).as_py() or 0 for each in lengths), default=0)
    rows_per_part = max(1, min(rows_per_part, MOST_VALUES["part"] // max(1, most)))
    for first in range(0, table.num_rows, rows_per_part):
        data = encode(table.slice(first, rows_per_part), part=True)
        name = part_name(data, known)
        store.files.put(f"{PARTS}/{name}", data)
        names.add(name)
    return names


def _remove(store: Store, digests: Mapping[str, bytes]) -> int:
    """Remove row files that are still what was merged; no writer replaces one meanwhile."""

    def removed(name: str) -> bool:
        with contextlib.suppress(FileNotFoundError):
            if digest(store.files.read(f"{ROWS}/{name}")) == digests[name]:
                store.files.delete(f"{ROWS}/{name}")
                return True
        return False

    with store.files.locked(LOCK), ThreadPoolExecutor(1 if store.files.is_local else CONNECTIONS) as pool:
        return sum(pool.map(removed, digests))
