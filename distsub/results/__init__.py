"""What is known: one row per trial in Arrow, the store that keeps the rows, and SQL over them."""

from distsub.results.compact import compact
from distsub.results.published import published_tables
from distsub.results.schema import (
    METHOD_COLUMNS,
    OBSERVATIONS,
    RECORD,
    SCHEMA_VERSION,
    from_row,
    method_columns,
    setup_reader,
    to_table,
)
from distsub.results.sql import View, query
from distsub.results.store import Store
