"""Read-only SQL over the result tables, with DuckDB in memory and nothing else in reach.

The tables are registered as views, then files, network, extensions and Python variables are switched off
and the configuration is locked, before the first character of the query is looked at.
"""

import difflib
import re
from collections.abc import Iterable, Mapping
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
_UNKNOWN = re.compile(
    r'[Tt]able (?:with name )?"?(?P<view>[\w.]+)"? (?:not found|does not exist)'
    r'|[Cc]olumn (?:named |with name )?"(?P<column>\w+)"'
)


def query(tables: "Mapping[str, pa.Table | pads.Dataset]", sql: str) -> pa.Table:
    """Run one read-only statement over tables and give its result.

    SELECT, WITH, FROM, VALUES, PIVOT, DESCRIBE, SHOW, SUMMARIZE and EXPLAIN are read-only.

    Args:
        tables: The views by name.
        sql: One statement of DuckDB's dialect.

    Raises:
        QueryError: The SQL is broken, not one statement, not read-only, or reaches beyond the views.
    """
    import duckdb

    connection = duckdb.connect(":memory:", config=dict(_CONFIG))
    try:
        for name, table in tables.items():
            connection.register(name, table)
        connection.execute("SET enable_external_access = false")
        connection.execute("SET lock_configuration = true")
        _refuse_writing(connection, sql, tables)
        return connection.sql(sql).to_arrow_table()
    except duckdb.Error as error:
        raise QueryError(_explain(error, sql, tables)) from error
    finally:
        connection.close()


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
    if "disabled" in message or message.startswith("Permission Error"):
        message = message.partition(" - file system operations")[0]
        return f"SQL may only read the views, no files, network or extensions ({message}). {_views(tables)}"
    unknown = _UNKNOWN.search(message)
    near: list[str] = []
    if unknown and unknown["view"]:
        near = _nearest(unknown["view"].rpartition(".")[2], tables)
    elif unknown:
        asked = [table for name, table in tables.items() if re.search(rf"\b{re.escape(name)}\b", sql, re.IGNORECASE)]
        near = _nearest(unknown["column"], {column for table in asked for column in table.schema.names})
    nearest = f"Nearest: {', '.join(near)}. " if near else ""
    return f"{message}. {nearest}{_views(tables)}"


def _nearest(name: str, known: Iterable[str]) -> list[str]:
    return difflib.get_close_matches(name.lower(), sorted(known), n=3, cutoff=0.5)


def _views(tables: Mapping[str, Any]) -> str:
    return f"Views: {', '.join(tables)}; their columns: DESCRIBE <view>."
