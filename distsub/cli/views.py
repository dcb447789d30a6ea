"""What `distsub query` reads: the views by name, their columns, and questions to begin with."""

import shlex
from collections.abc import Callable, Sequence

import pyarrow as pa

from distsub.data.tasks import TASKS
from distsub.learned.comparison import COMPARISON, comparison, why_empty
from distsub.learned.schema import TABLES
from distsub.learned.store import read_analysis
from distsub.records import Observation
from distsub.report.listing import render_facts
from distsub.report.schema import D90, SEARCHES
from distsub.report.summary import Summary
from distsub.results import OBSERVATIONS, Store, View, published_tables, query

QUESTIONS = (
    ("How large is d90?", "select task, model, label, d90_text from d90"),
    (
        "How does the score grow with d?",
        """select task, method, d,
    max_by(score, if(metric = 'nll', -score, score)) as best, count(*) as trials
    from observations where d > 0 group by all order by all""",
    ),
    (
        "What did it cost?",
        """select method, status, count(*) as trials, sum(wall_s) / 60 as minutes
    from observations group by all order by all""",
    ),
)
"""What a question is, and its SQL, which contains nothing that a shell reads inside double quotes."""


MADE_BY = {
    **dict.fromkeys(("modes", "transfer", "angles", "spectra"), "transfer"),
    **dict.fromkeys(("outliers", "outlier_summaries", "profiles", "recurrence"), "outliers"),
    **dict.fromkeys(("masks", "ablations"), "ablate"),
}
"""The command that makes an analysis."""


def views_of(
    store: Store, summary: Callable[[], Summary], note: Callable[[str], None] = lambda line: None
) -> dict[str, View | pa.Table]:
    """Name all that a query may read; nothing is computed before one does, and why it is empty is noted."""

    def analysis(name: str) -> pa.Table:
        if not (table := read_analysis(store.files, name)).num_rows:
            note(f"{name} is empty: distsub {MADE_BY[name]} {store.uri} makes it, where there is something to analyse")
        return table

    def beside() -> pa.Table:
        rows = store.read()
        if not (table := compared(store, summary(), rows)).num_rows:
            note(f"comparison is empty: {why_empty(rows)}")
        return table

    found: dict[str, View | pa.Table] = {
        "observations": View(OBSERVATIONS, store.located),
        "searches": View(SEARCHES, lambda _: summary().searches),
        "d90": View(D90, lambda _: summary().d90),
    }
    for name, schema in TABLES.items():
        found[name] = View(schema, lambda _, name=name: analysis(name))
    found["comparison"] = View(COMPARISON, lambda _: beside())
    return found | published_tables()


def compared(store: Store, summary: Summary, rows: Sequence[Observation]) -> pa.Table:
    """Set published numbers beside those of a results directory, all of whose rows are given."""
    return comparison(summary.d90, rows, TASKS, read_analysis(store.files, "ablations"))


def learned(store: Store) -> dict[str, pa.Table]:
    """Give the analyses of learned subspaces that people read as tables, by their headings, where there are any."""
    headings = {
        "modes": "Ways of training",
        "outlier_summaries": "Outlier dimensions",
        "transfer": "Transfer between tasks",
        "ablations": "Ablations",
    }
    found = {heading: read_analysis(store.files, name) for name, heading in headings.items()}
    return {heading: table for heading, table in found.items() if table.num_rows}


def columns_of(views: dict[str, View | pa.Table]) -> pa.Table:
    """List the columns of all views with the types that DuckDB gives them, in the order of the views."""
    empty = {name: each.schema.empty_table() for name, each in views.items()}
    sql = (
        "select table_name as view, column_name as column, data_type as type from information_schema.columns "
        "order by ordinal_position"
    )
    rows = query(empty, sql).to_pylist()
    place = {name: number for number, name in enumerate(views)}
    return pa.Table.from_pylist(sorted(rows, key=lambda row: place[row["view"]]))


def overview(views: dict[str, View | pa.Table]) -> str:
    """Write each view with its columns and their types, for people."""
    facts: dict[str, str] = {}
    for row in columns_of(views).to_pylist():
        before = f"{facts[row['view']]}, " if row["view"] in facts else ""
        facts[row["view"]] = f"{before}{row['column']} {row['type']}"
    return render_facts(facts)


def questions(address: str) -> list[str]:
    """Write each question, and below it the command that answers it, ready for a shell."""
    return [f'{what}\n  distsub query {shlex.quote(address)} \\\n    "{sql}"' for what, sql in QUESTIONS]
