"""Read-only SQL over the result tables, with DuckDB in memory and nothing else in reach.

The tables are registered as views, then files, network, extensions and Python variables are switched off
and the configuration is locked, before the first character of the query is looked at.
"""

import contextlib
import difflib
import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from distsub.errors import QueryError

if TYPE_CHECKING:
    from pyarrow import dataset as pads

_READ_ONLY = ("SELECT", "EXPLAIN")
_CONFIG = {
    "python_enable_replacements": "false",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "allow_community_extensions": "false",
    "temp_directory": "",
}

LARGEST_RESULT = 2**30
"""Bytes of a result, which is printed or held as one table."""

_LEAST_MEMORY = 2**30
_UNKNOWN = re.compile(
    r'[Tt]able (?:with name )?"?(?P<view>[\w.]+)"? (?:not found|does not exist)'
    r'|[Cc]olumn (?:named |with name )?"(?P<column>\w+)"'
)
_WORD = re.compile(r"\s*([A-Za-z_]\w*)\s*;?\s*")

_MEANT = {
    **dict.fromkeys(("trial", "trials", "trainings", "runs", "rows", "results"), ("observations", "trial_id")),
    **dict.fromkeys(("estimate", "estimates"), ("d90",)),
    **{"label": ("method",), "seed": ("projection_seed",), "lr": ("learning_rate",), "memory": ("peak_bytes",)},
    **dict.fromkeys(("accuracy", "loss", "metric"), ("score",)),
    **dict.fromkeys(("dim", "dims", "dimension"), ("d",)),
    **dict.fromkeys(("time", "seconds", "duration"), ("wall_s",)),
}
"""What people call a view or a column, and its name."""


@dataclass(frozen=True)
class View:
    """A table that is made only when a query reads it, and of it no more than the query needs.

    Attributes:
        schema: Its columns.
        load: Gives it with these columns; it may give more of them.
    """

    schema: pa.Schema
    load: Callable[[Sequence[str]], pa.Table]


def query(tables: "Mapping[str, pa.Table | pads.Dataset | View]", sql: str) -> pa.Table:
    """Run one read-only statement over tables and give its result.

    SELECT, WITH, FROM, VALUES, PIVOT, DESCRIBE, SHOW, SUMMARIZE and EXPLAIN are read-only.

    Args:
        tables: The views by name.
        sql: One statement of DuckDB's dialect, or a view's name for all of it.

    Raises:
        QueryError: The SQL is broken, not one statement, not read-only, or reaches beyond the views; or it needs more
            memory than `memory_limit` or gives more than `LARGEST_RESULT`.
        KeyboardInterrupt: It was interrupted; nothing runs on.
    """
    import duckdb

    empty = {name: each.schema.empty_table() if isinstance(each, View) else each for name, each in tables.items()}
    lazy = {name: each for name, each in tables.items() if isinstance(each, View)}
    if (word := _WORD.fullmatch(sql)) and word[1].lower() in tables:
        sql = f"from {word[1]}"

    def plan(connection: Any) -> dict[str, list[str]]:
        _refuse_writing(connection, sql, empty)
        return _needs(connection, sql, {name: empty[name] for name in lazy})

    needed = _run(empty, sql, plan, empty)
    # What is not needed is not there at all, so that a mistake in this is an error and no empty answer.
    given = {name: table for name, table in empty.items() if name not in lazy}
    given |= {name: lazy[name].load(columns) if columns else empty[name] for name, columns in needed.items()}

    def fetch(connection: Any) -> pa.Table:
        batches, found, size = pa.RecordBatchReader.from_stream(connection.sql(sql)), [], 0
        try:
            for batch in batches:
                found.append(batch)
                size += batch.nbytes
                if size > LARGEST_RESULT:
                    message = f"the result is larger than {_gib(LARGEST_RESULT)}; aggregate, select less, or add LIMIT"
                    raise QueryError(message)
        except (OSError, pa.ArrowException) as error:  # of DuckDB, by way of Arrow
            raise QueryError(_explain(error, sql, empty)) from error
        return pa.Table.from_batches(found, batches.schema)

    try:
        return _execute(given, fetch)
    except (duckdb.BinderException, duckdb.CatalogException):  # something that was left out is missed
        given |= {name: lazy[name].load(lazy[name].schema.names) for name in needed}
        return _run(given, sql, fetch, empty)
    except duckdb.Error as error:
        raise QueryError(_explain(error, sql, empty)) from error


def _run(given: Mapping[str, Any], sql: str, action: Callable[[Any], Any], tables: Mapping[str, Any]) -> Any:
    """Do something with tables in a closed database; its errors become one line."""
    import duckdb

    try:
        return _execute(given, action)
    except duckdb.Error as error:
        raise QueryError(_explain(error, sql, tables)) from error


def _execute(given: Mapping[str, Any], action: Callable[[Any], Any]) -> Any:
    """Do something with tables in a closed database, in another thread so that Ctrl-C is heard while it computes."""
    import duckdb

    opened: list[Any] = []
    doing: Future[Any] = Future()

    def do() -> None:
        try:
            with duckdb.connect(":memory:", config={**_CONFIG, "memory_limit": f"{memory_limit()}B"}) as connection:
                for name, table in given.items():
                    connection.register(name, table)
                connection.execute("SET enable_external_access = false")
                connection.execute("SET lock_configuration = true")
                opened.append(connection)
                doing.set_result(action(connection))
        except BaseException as error:
            doing.set_exception(error)

    with _interrupt_noted() as heard:
        threading.Thread(target=do).start()
        while not doing.done():
            for connection in opened if heard else ():
                with contextlib.suppress(duckdb.Error):  # closed since
                    connection.interrupt()
            time.sleep(0.002)
    return doing.result()


@contextlib.contextmanager
def _interrupt_noted() -> Iterator[list[int]]:
    """Note a Ctrl-C, and pass it on at the end.

    As an exception it could be raised at any line, also between the start of a query and the wait for it; and DuckDB
    may swallow it.
    """
    heard: list[int] = []
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before in (signal.SIG_IGN, None):
        yield heard
        return
    signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
    try:
        yield heard
    finally:
        signal.signal(signal.SIGINT, before)
        if heard:
            signal.raise_signal(signal.SIGINT)


def memory_limit() -> int:
    """Give the bytes that a query may take: half of the machine's memory, or of the container's."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError, ValueError):  # no container, or one without a limit
        total = min(total, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return max(_LEAST_MEMORY, total // 2)


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"


def _needs(connection: Any, sql: str, views: Mapping[str, pa.Table]) -> dict[str, list[str]]:
    """Say which views a statement reads and which of their columns, by DuckDB's own plans over empty tables."""
    import duckdb

    words = {word.lower() for word in re.findall(r"\w+", sql)}
    mentioned = {name: table.schema.names for name, table in views.items() if name in words}
    if connection.extract_statements(sql)[0].type.name != "SELECT":
        return mentioned
    try:
        plan = _plan(connection, sql)
    except (duckdb.ParserException, ValueError):  # what cannot be explained, such as PIVOT, may read all
        return mentioned
    # A scan does not say which view it is of: what any of them reads is taken from each.
    read = set(re.findall(r"\w+", " ".join(_scans(plan))))
    needed = {}
    for name, table in views.items():
        connection.unregister(name)
        try:
            _plan(connection, sql)
        except duckdb.Error:
            needed[name] = [column for column in table.schema.names if column in read]
        connection.register(name, table)
    return needed


def _plan(connection: Any, sql: str) -> list[dict[str, Any]]:
    return json.loads(connection.execute(f"EXPLAIN (FORMAT JSON) {sql}").fetchall()[0][1])


def _scans(plan: Iterable[dict[str, Any]]) -> Iterator[str]:
    """Yield what a plan says of each table that it reads: columns and filters."""
    for node in plan:
        if "SCAN" in node["name"]:
            yield json.dumps(node["extra_info"])
        yield from _scans(node["children"])


def _refuse_writing(connection: Any, sql: str, tables: Mapping[str, Any]) -> None:
    """Raise unless a text is exactly one statement, and one that only reads."""
    statements = connection.extract_statements(sql)
    if len(statements) != 1:
        given = "no statement" if not statements else f"{len(statements)} statements"
        raise QueryError(f"{given} given, one SELECT is allowed. {_views(tables)}")
    kind = statements[0].type.name
    is_pivot = kind == "MULTI" and re.search(r"\bpivot\b", sql, re.IGNORECASE)
    if kind not in _READ_ONLY and not is_pivot:
        raise QueryError(
            f"{kind} is not allowed, a query only reads (SELECT, WITH, DESCRIBE, SHOW, SUMMARIZE, EXPLAIN). "
            f"{_views(tables)}"
        )


def _explain(error: Exception, sql: str, tables: Mapping[str, Any]) -> str:
    """Turn a DuckDB error into one line that names what could be meant."""
    lines = str(error).splitlines() or [type(error).__name__]
    message = lines[0].strip().rstrip(".!")
    if "Out of Memory" in message:
        return f"the query needs more than {_gib(memory_limit())}, half of the memory here; aggregate or select less"
    if "disabled" in message or message.startswith("Permission Error"):
        message = message.partition(" - file system operations")[0]
        return f"SQL may only read the views, no files, network or extensions ({message}). {_views(tables)}"
    unknown, word = _UNKNOWN.search(message), _WORD.fullmatch(sql)
    if word and message.startswith("Parser Error"):
        near = _nearest(word[1], {*tables, *_columns(tables)})
        return f'"{word[1]}" alone is no statement. {_places(word[1], tables, ())}{near}{_views(tables)}'
    if unknown and unknown["view"]:
        return f"{message}. {_nearest(unknown['view'].rpartition('.')[2], tables)}{_views(tables)}"
    if unknown is None:
        return f"{message}. {_views(tables)}"
    asked = {name: each for name, each in tables.items() if re.search(rf"\b{re.escape(name)}\b", sql, re.IGNORECASE)}
    columns = _columns(asked)
    there = f"Columns of {', '.join(asked)}: {', '.join(columns)}. " if asked else ""
    near = _nearest(unknown["column"], columns)
    return f"{message}. {near}{_places(unknown['column'], tables, asked)}{there}{_views(tables)}"


def _columns(tables: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys(column for table in tables.values() for column in table.schema.names))


def _places(column: str, tables: Mapping[str, Any], asked: Iterable[str]) -> str:
    """Say which views, beside those that were asked, have a column of a name."""
    views = [name for name, table in tables.items() if column.lower() in table.schema.names and name not in asked]
    return f'"{column}" is a column of {", ".join(views)}. ' if views else ""


def _nearest(name: str, known: Iterable[str]) -> str:
    """Name what could be meant, if anything: what people call so, then what is spelled like it."""
    names = sorted(known)
    close = difflib.get_close_matches(name.lower(), names, n=3, cutoff=0.5)
    near = list(dict.fromkeys([*(each for each in _MEANT.get(name.lower(), ()) if each in names), *close]))
    return f"Nearest: {', '.join(near)}. " if near else ""


def _views(tables: Mapping[str, Any]) -> str:
    return f"Views: {', '.join(tables)}; their columns: DESCRIBE <view>."
