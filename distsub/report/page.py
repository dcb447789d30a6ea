"""The report of a results directory: one HTML page that needs nothing else, with curves and tables beside it."""

import html
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from distsub.errors import OutputError, first_line
from distsub.files import Files
from distsub.records import Observation
from distsub.report.answer import answer_figure, answer_rows, latex, markdown, sentences, short_model
from distsub.report.curve_data import curve_data
from distsub.report.curves import draw_curves
from distsub.report.drawing import literal
from distsub.report.listing import render, size_text
from distsub.report.schema import SEARCHES
from distsub.report.svg import inline, to_svg
from distsub.report.terminal import printable
from distsub.results.schema import METHOD_COLUMNS, method_columns

_CSS = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1b1b1b; --line: #e1e1e1; --quiet: #666;
  --blue: #0072b2 }
@media (prefers-color-scheme: dark) { :root { --paper: #16181b; --ink: #e8e8e6; --line: #3a3d42; --quiet: #a0a4aa;
  --blue: #56b4e9 } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 1100px;
  margin: 2rem auto; padding: 0 1rem; overflow-wrap: anywhere }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2.2rem }
.wide { overflow-x: auto } svg { height: auto; display: block } .answer svg { max-width: 100% }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums }
th, td { padding: .25rem .6rem; border-bottom: 1px solid var(--line); text-align: left; white-space: nowrap }
td.number { text-align: right } th { border-bottom: 2px solid var(--quiet); cursor: pointer }
summary { cursor: pointer; margin: .4rem 0 } pre { overflow-x: auto; font-size: 12px } small { color: var(--quiet) }
th[aria-sort=ascending]::after { content: " \\2191" } th[aria-sort=descending]::after { content: " \\2193" }
@media print { :root { --paper: #fff; --ink: #000; --line: #ccc; --blue: #0072b2 } body { max-width: none; margin: 0 }
  .wide { overflow: visible } th, td { white-space: normal } }
"""

_SCRIPT = """
for (const head of document.querySelectorAll("th")) head.onclick = () => {
  const table = head.closest("table"), at = head.cellIndex, up = head.ariaSort !== "ascending";
  for (const other of table.querySelectorAll("th")) other.removeAttribute("aria-sort");
  head.ariaSort = up ? "ascending" : "descending";
  const value = row => { const text = row.cells[at].textContent, number = parseFloat(text.replaceAll(",", ""));
    return [text === "", isNaN(number) ? text : number] };
  const rows = [...table.rows].slice(1).sort((one, two) => {
    const [none, a] = value(one), [nothing, b] = value(two);
    const order = typeof a === typeof b ? (a > b) - (a < b) : typeof a === "number" ? -1 : 1;
    return none - nothing || (up ? order : -order);
  });
  for (const row of rows) row.parentNode.append(row);
};
"""
"""Sorts a table by the column whose head is clicked; without it the page lacks nothing else."""

_FOLDED = 12
"""Rows from which on a table is folded."""

_SEARCH_COLUMNS = SEARCHES.names[1:]


def write_report(
    observations: Sequence[Observation],
    searches: pa.Table,
    directory: str,
    *,
    d90: pa.Table | None = None,
    adapters: pa.Table | None = None,
    others: Mapping[str, pa.Table] | None = None,
    title: str = "Intrinsic dimension",
) -> str:
    """Write report.html, its figures as SVG and PNG with their data as CSV, and tables to paste and to read.

    Args:
        observations: All rows.
        searches: Rows in the schema SEARCHES.
        directory: A local path or a URI that pyarrow.fs understands; made if it is not there.
        d90: Rows in the schema D90, for the answer, intervals and fitted curves.
        adapters: The smallest saved adapters that pass.
        others: More tables by their headings; empty ones are left out.
        title: Heading of the page.

    Returns:
        The address of report.html.

    Raises:
        OutputError: The directory cannot be written.
    """
    from pyarrow import parquet as pq

    store = Files.at(directory)
    rows = answer_rows(d90) if d90 is not None else []
    files, pictures = _figures(observations, searches, d90)
    answer = ""
    if rows:
        drawn = to_svg(answer_figure(rows), "d90")
        answer = inline(drawn, "d90", "d90 and its interval, by task, model and method")
        assert d90 is not None, "its rows are drawn"
        flat = d90.drop_columns([name for name in d90.schema.names if pa.types.is_nested(d90.schema.field(name).type)])
        files |= {"d90.svg": drawn, "d90.csv": (render(flat, "csv") + "\n").encode()}
        files |= {"d90.md": markdown(rows).encode(), "d90.tex": latex(rows).encode()}
    sink = io.BytesIO()
    pq.write_table(searches, sink)
    files |= {"searches.csv": (render(searches, "csv") + "\n").encode(), "searches.parquet": sink.getvalue()}
    page = _page(observations, searches, d90, adapters, others or {}, answer, rows, pictures, title)
    try:
        store.make("")
        for name, content in files.items():
            store.put(name, content)
        store.put("report.html", page.encode())
    except (OSError, pa.ArrowException) as error:
        raise OutputError(
            f"cannot write the report to {store.uri} ({first_line(error)}); give a directory that you may write"
        ) from error
    return f"{store.uri.rstrip('/')}/report.html"


@literal
def _figures(
    observations: Sequence[Observation], searches: pa.Table, d90: pa.Table | None
) -> tuple[dict[str, bytes], list[str]]:
    """Draw one figure per task and model, its methods side by side; give the files by name, and what the page shows."""
    trials = [seen for seen in observations if seen.trial.d]
    rows = searches.to_pylist()
    pairs = {(seen.trial.task.name, seen.trial.model.name) for seen in trials} | {
        (row["task"], row["model"]) for row in rows
    }
    files: dict[str, bytes] = {}
    pictures = []
    for task, model in sorted(pairs):
        mine = [seen for seen in trials if (seen.trial.task.name, seen.trial.model.name) == (task, model)]
        keep = [(row["task"], row["model"]) == (task, model) for row in rows]
        figure = draw_curves(mine, searches.filter(pa.array(keep, pa.bool_())), d90=d90)
        slug = re.sub(r"[^a-z0-9]+", "-", f"{task} {model.removeprefix('package:')}".lower()).strip("-")
        name = f"curve-{slug}"
        name = name if f"{name}.png" not in files else f"{name}-{len(pictures)}"
        png, svg = io.BytesIO(), to_svg(figure, name)
        figure.savefig(png, format="png")
        files |= {f"{name}.png": png.getvalue(), f"{name}.svg": svg}
        files[f"{name}.csv"] = (render(curve_data(mine, d90), "csv") + "\n").encode()
        words = html.escape(printable(f"score against d of {task}, {short_model(model)}"), quote=True)
        pictures.append(inline(svg, name, words))
    return files, pictures


def _page(
    observations: Sequence[Observation],
    searches: pa.Table,
    d90: pa.Table | None,
    adapters: pa.Table | None,
    others: Mapping[str, pa.Table],
    answer: str,
    rows: Sequence[Mapping[str, Any]],
    pictures: Sequence[str],
    title: str,
) -> str:
    """Compose the page out of its sections: the answer first, then how it was measured, then everything."""
    statuses = Counter(seen.status for seen in observations)
    counts = ", ".join(f"{count} {status}" for status, count in sorted(statuses.items())) or "none"
    hours = sum(seen.wall_s for seen in observations) / 3600
    images = "\n".join(f'<div class="wide">{picture}</div>' for picture in pictures)
    said = "".join(
        f"<li>{html.escape(printable(whose))}: <b>{html.escape(printable(what))}</b></li>"
        for whose, what in sentences(rows)
    )
    references = [seen for seen in observations if seen.trial.is_reference]
    trials = [seen for seen in observations if not seen.trial.is_reference]
    full = f"<h2>Full fine-tuning and theta_0</h2>\n{_trial_table(references)}" if references else ""
    more = "".join(
        f"<h2>{html.escape(name)}</h2>\n{_html_table(table.schema.names, _values(table))}\n"
        for name, table in others.items()
        if table.num_rows
    )
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{html.escape(printable(title))}</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_CSS}</style></head><body>
<h1>{html.escape(printable(title))}</h1>
<div class="answer">{answer}</div>
<ul>{said}</ul>
<p><small>{searches.num_rows} searches, {len(observations)} trials ({counts}), {hours:.2f} hours of
training.</small></p>
{_smallest(adapters)}
<h2>What d90 means here</h2>
{_definition(searches)}
<h2>Score against dimension</h2>
{images}
{_estimates(d90)}
<h2>Searches</h2>
{_html_table(_SEARCH_COLUMNS, ([row[name] for name in _SEARCH_COLUMNS] for row in searches.to_pylist()))}
{more}{full}
<h2>Subspace trials</h2>
{_trial_table(trials)}
<h2>Provenance</h2>
{_provenance(observations)}
{_to_paste(rows)}
<script>{_SCRIPT}</script></body></html>
"""


def _values(table: pa.Table) -> Iterable[list[Any]]:
    return ([row[name] for name in table.schema.names] for row in table.to_pylist())


def _to_paste(rows: Sequence[Mapping[str, Any]]) -> str:
    """Show the answer as tables for a text or a paper."""
    if not rows:
        return ""
    texts = (("Markdown", markdown(rows)), ("LaTeX (booktabs)", latex(rows)))
    return "<h2>To paste</h2>\n" + "\n".join(
        f"<details><summary>{name}</summary><pre>{_lines(text)}</pre></details>" for name, text in texts
    )


def _lines(text: str) -> str:
    return "\n".join(html.escape(printable(line)) for line in text.splitlines())


def _estimates(d90: pa.Table | None) -> str:
    """List d90 per task, model and method with its interval, and what a reader must know about it."""
    if d90 is None:
        return ""
    names = ("task", "model", *METHOD_COLUMNS, "d90_text", "d90_chance_corrected_text", "first_passing_d")
    names += ("failed_full", "failed_subspace", "searches", "trials")
    rows = d90.to_pylist()
    about: dict[str, list[str]] = {}
    for row in rows:
        for note in row["warnings"]:
            about.setdefault(note, []).append(f"{row['task']} {row['model']} {row['label']}")
    notes = "".join(
        f"<li>{html.escape(printable(note))} ({html.escape(printable(', '.join(dict.fromkeys(whose))))})</li>"
        for note, whose in about.items()
    )
    table = _html_table(names, ([row[name] for name in names] for row in rows))
    return f"<h2>d90 with its interval</h2>\n{table}\n" + (f"<ul>{notes}</ul>" if notes else "")


def _smallest(adapters: pa.Table | None) -> str:
    """List the smallest saved adapter that passes, for each task and model."""
    if adapters is None or not adapters.num_rows:
        return ""
    rows = [row | {"bytes": size_text(row["bytes"])} for row in adapters.to_pylist()]
    names = [name for name in adapters.schema.names if name != "trial_id"]
    table = _html_table(names, ([row[name] for name in names] for row in rows))
    return f"<h2>The smallest adapter that passes</h2>\n{table}"


def _definition(searches: pa.Table) -> str:
    rules = dict.fromkeys(zip(*(searches[name].to_pylist() for name in ("threshold_rule", "chance_rule")), strict=True))
    thresholds = "".join(f"<p>{_threshold(*rule)}</p>\n" for rule in rules)
    return f"""<p>A trial trains exactly d numbers, theta = theta_0 + P theta_d, under a fixed budget; its score is the
task's metric after the last step. d passes when any step size (eta) of the sweep reaches the threshold, and fails
when all were tried and none does. <b>d90</b> is the d at which the expected score of trainings that train crosses the
threshold, estimated with its 95% interval from all trials of all seeds. The <b>first passing d</b> of a search is the d
of the grid that passed where the next smaller one failed, under its own seeds; where there is none, the outcome says
why. The bracket (low, high] holds the largest d that failed and the smallest that passed.</p>
{thresholds}<p>The projection, its normalisation, the groups of the SAID scales (which are paid for out of d) and
whether the head moves in the subspace change d90; compare only rows that agree in them.</p>"""


def _threshold(rule: str | None, chance: str | None) -> str:
    """Say what has to be reached."""
    if (rule or "").startswith("theta_0 + "):
        fraction = (rule or "").removeprefix("theta_0 + ").partition(" x ")[0]
        return f"""The <b>threshold</b> of nll, which is better when lower, is theta_0 + {fraction} (full &minus;
theta_0): {fraction} of the improvement of full fine-tuning (the best, over learning rates, of the mean over seeds,
under the same budget) on the untouched model."""
    fraction, _, full = (rule or "0.9 x full").partition(" x ")
    if full != "full":
        given = html.escape(printable(rule or ""))
        return f"The <b>threshold</b> is a score: {given}. No full fine-tuning is trained for it."
    zero = "the score of always predicting the majority class, 0 for correlations"
    if chance == "theta_0":
        zero = "the mean score of the untouched model over its heads"
    return f"""The <b>threshold</b> is {fraction} times the score of full fine-tuning: the best, over learning rates,
of the mean over seeds, under the same budget (Aghajanyan et al. 2020, arXiv:2012.13255). It takes no account of chance;
the <b>chance-corrected</b> threshold is chance + {fraction} (full &minus; chance), with chance {zero}. The relative one
decides the search, the estimate is of both."""


def _trial_table(observations: Iterable[Observation]) -> str:
    """List trials by what identifies them for a reader, and what they gave."""
    names = ["task", "model", *METHOD_COLUMNS, "d", "eta", "learning_rate", "step_size", "seeds", "status"]
    names += ["score", "steps", "wall_s", "eval_s", "peak_bytes", "trial_id", "error"]

    def values(seen: Observation) -> list[Any]:
        trial = seen.trial
        columns = method_columns(trial.method)
        seeds = f"{trial.seeds.projection}/{trial.seeds.head}/{trial.seeds.data}"
        what = [
            trial.task.name,
            trial.model.name,
            *(columns[name] for name in METHOD_COLUMNS),
            trial.d,
            trial.eta,
            trial.learning_rate,
            seen.step_size,
            seeds,
        ]
        gave = [seen.status, seen.score, seen.steps, seen.wall_s, seen.eval_s, seen.peak_bytes, trial.id, seen.error]
        return what + gave

    ordered = sorted(observations, key=lambda seen: (seen.trial.task.name, seen.trial.model.name, seen.trial.d or 0))
    return _html_table(names, map(values, ordered))


def _provenance(observations: Iterable[Observation]) -> str:
    """Show every provenance key with its values and how many trials have each."""
    seen: dict[str, Counter[str]] = {}
    for observation in observations:
        for key, value in observation.provenance:
            seen.setdefault(key, Counter())[value] += 1
    rows = []
    for key, values in sorted(seen.items()):
        shown = [value if len(values) == 1 else f"{value} ({count} trials)" for value, count in values.most_common(5)]
        rows.append([key, "; ".join(shown) + (f"; and {len(values) - 5} others" if len(values) > 5 else "")])
    return _html_table(["what", "value"], rows)


def _html_table(names: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Write a table, leaving out columns that are empty in every row; a long one is folded."""
    body = [list(row) for row in rows]
    kept = [index for index in range(len(names)) if not body or any(row[index] is not None for row in body)]
    head = "".join(f"<th>{html.escape(names[index])}</th>" for index in kept)
    lines = "\n".join("<tr>" + "".join(_html_cell(row[index]) for index in kept) + "</tr>" for row in body)
    table = f'<div class="wide"><table><tr>{head}</tr>\n{lines}</table></div>'
    return table if len(body) < _FOLDED else f"<details><summary>{len(body)} rows</summary>{table}</details>"


def _html_cell(value: Any) -> str:
    if value is None:
        return "<td></td>"
    if isinstance(value, float):
        return f'<td class="number">{value:.4g}</td>' if abs(value) < 1e4 else f'<td class="number">{value:,.0f}</td>'
    if isinstance(value, int):
        return f'<td class="number">{value:,}</td>'
    return f"<td>{html.escape(printable(value if isinstance(value, str) else json.dumps(value)))}</td>"
