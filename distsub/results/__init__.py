"""What is known: one row per trial in Arrow, the store that keeps the rows, SQL over them, and the report."""

from distsub.files import Files, output_address
from distsub.results.compact import compact
from distsub.results.curves import curve_figure
from distsub.results.listing import render, render_facts, write_out
from distsub.results.published import published_tables
from distsub.results.report import write_report
from distsub.results.schema import (
    D90,
    METHOD_COLUMNS,
    OBSERVATIONS,
    RECORD,
    SCHEMA_VERSION,
    SEARCHES,
    SetupReader,
    from_row,
    method_columns,
    to_table,
)
from distsub.results.sql import View, query
from distsub.results.store import Store
from distsub.results.terminal import printable

__all__ = [
    "D90",
    "METHOD_COLUMNS",
    "OBSERVATIONS",
    "RECORD",
    "SCHEMA_VERSION",
    "SEARCHES",
    "Files",
    "SetupReader",
    "Store",
    "View",
    "compact",
    "curve_figure",
    "from_row",
    "method_columns",
    "output_address",
    "printable",
    "published_tables",
    "query",
    "render",
    "render_facts",
    "to_table",
    "write_out",
    "write_report",
]
