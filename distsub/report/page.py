"""The report of a results directory: one HTML page that needs nothing else, with curves and tables beside it."""

import base64
import html
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa

from distsub.errors import OutputError, first_line
from distsub.files import Files
from distsub.records import Observation
from distsub.report.curves import curve_figure
from distsub.report.listing import render, size_text
from distsub.report.schema import SEARCHES
from distsub.report.terminal import printable
from distsub.results.schema import METHOD_COLUMNS, method_columns

_CSS = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1b1b1b; max-width: 1100px; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2.2rem }
img { max-width: 100% } .wide { overflow-x: auto }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums }
th, td { padding: .25rem .6rem; border-bottom: 1px solid #e4e4e4; text-align: left; white-space: nowrap }
td.number { text-align: right } th { border-bottom: 2px solid #999 } summary { cursor: pointer }
"""

_SEARCH_COLUMNS = SEARCHES.names[1:]


def write_report(
    observations: Sequence[Observation],
    searches: pa.Table,
    directory: str,
    *,
    d90: pa.Table | None = None,
    adapters: pa.Table | None = None,
    title: str = "Intrinsic dimension",
) -> str:
    """Write report.html, one curve per task and model, and the searches as CSV and Parquet.

    Args:
        observations: All rows.
        searches: Rows in the schema SEARCHES.
        directory: A local path or a URI that pyarrow.fs understands; made if it is not there.
        d90: Rows in the schema D90, for intervals and fitted curves.
        adapters: The smallest saved adapters that pass.
        title: Heading of the page.

    Returns:
        The address of report.html.

    Raises:
        OutputError: The directory cannot be written.
    """
    from pyarrow import parquet as pq

    files = Files.at(directory)
    figures = _figures(observations, searches, d90)
    sink = io.BytesIO()
    pq.write_table(searches, sink)
    page = _page(observations, searches, d90, adapters, figures, title)
    try:
        files.make("")
        for name, image in figures.items():
            files.put(name, image)
        files.put("searches.csv", (render(searches, "csv") + "\n").encode())
        files.put("searches.parquet", sink.getvalue())
        files.put("report.html", page.encode())
    except (OSError, pa.ArrowException) as error:
        raise OutputError(
            f"cannot write the report to {files.uri} ({first_line(error)}); give a directory that you may write"
        ) from error
    return f"{files.uri.rstrip('/')}/report.html"


def _figures(observations: Sequence[Observation], searches: pa.Table, d90: pa.Table | None) -> dict[str, bytes]:
    """Draw one figure per task and model, its methods side by side; give the PNGs by file name."""
    trials = [seen for seen in observations if seen.trial.d]
    rows = searches.to_pylist()
    pairs = {(seen.trial.task.name, seen.trial.model.name) for seen in trials} | {
        (row["task"], row["model"]) for row in rows
    }
    figures: dict[str, bytes] = {}
    for task, model in sorted(pairs):
        mine = [seen for seen in trials if (seen.trial.task.name, seen.trial.model.name) == (task, model)]
        keep = [(row["task"], row["model"]) == (task, model) for row in rows]
        sink = io.BytesIO()
        curve_figure(mine, searches.filter(pa.array(keep, pa.bool_())), sink, d90=d90)
        slug = re.sub(r"[^a-z0-9]+", "-", f"{task} {model.removeprefix('package:')}".lower()).strip("-")
        name = f"curve-{slug}.png"
        figures[name if name not in figures else f"curve-{slug}-{len(figures)}.png"] = sink.getvalue()
    return figures


def _page(
    observations: Sequence[Observation],
    searches: pa.Table,
    d90: pa.Table | None,
    adapters: pa.Table | None,
    figures: dict[str, bytes],
    title: str,
) -> str:
    """Compose the page out of its sections."""
    statuses = Counter(seen.status for seen in observations)
    counts = ", ".join(f"{count} {status}" for status, count in sorted(statuses.items())) or "none"
    hours = sum(seen.wall_s for seen in observations) / 3600
    images = "\n".join(
        f'<p><img alt="{name}" src="data:image/png;base64,{base64.b64encode(image).decode()}"></p>'
        for name, image in figures.items()
    )
    references = [seen for seen in observations if seen.trial.is_reference]
    trials = [seen for seen in observations if not seen.trial.is_reference]
    full = f"<h2>Full fine-tuning and theta_0</h2>\n{_trial_table(references)}" if references else ""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{html.escape(printable(title))}</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_CSS}</style></head><body>
<h1>{html.escape(printable(title))}</h1>
<p>{searches.num_rows} searches, {len(observations)} trials ({counts}), {hours:.2f} hours of training.</p>
{_estimates(d90)}
{_smallest(adapters)}
<h2>Searches</h2>
{_html_table(_SEARCH_COLUMNS, ([row[name] for name in _SEARCH_COLUMNS] for row in searches.to_pylist()))}
<h2>Score against dimension</h2>
{images}
<h2>What d90 means here</h2>
{_definition(searches)}
{full}
<h2>Subspace trials</h2>
<details><summary>{len(trials)} trials</summary>{_trial_table(trials)}</details>
<h2>Provenance</h2>
{_provenance(observations)}
</body></html>
"""


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
    """Write a table, leaving out columns that are empty in every row."""
    body = [list(row) for row in rows]
    kept = [index for index in range(len(names)) if not body or any(row[index] is not None for row in body)]
    head = "".join(f"<th>{html.escape(names[index])}</th>" for index in kept)
    lines = "\n".join("<tr>" + "".join(_html_cell(row[index]) for index in kept) + "</tr>" for row in body)
    return f'<div class="wide"><table><tr>{head}</tr>\n{lines}</table></div>'


def _html_cell(value: Any) -> str:
    if value is None:
        return "<td></td>"
    if isinstance(value, float):
        return f'<td class="number">{value:.4g}</td>' if abs(value) < 1e4 else f'<td class="number">{value:,.0f}</td>'
    if isinstance(value, int):
        return f'<td class="number">{value:,}</td>'
    return f"<td>{html.escape(printable(value if isinstance(value, str) else json.dumps(value)))}</td>"
