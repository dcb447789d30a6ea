"""The report of a results directory: one HTML page that needs nothing else, with curves and tables beside it."""

import io
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from typing import Any

import pyarrow as pa

from distsub.errors import OutputError, first_line
from distsub.files import Files
from distsub.records import Observation
from distsub.report.answer import answer_figure, answer_rows, grouped, latex, markdown, sentences, short_model
from distsub.report.curve_data import curve_data
from distsub.report.curves import Curves, draw_curves, draw_panels
from distsub.report.drawing import literal
from distsub.report.listing import render
from distsub.report.standing import noted, status_table
from distsub.report.svg import THEME, inline, to_svg
from distsub.report.web import escaped, folded, html_table
from distsub.results.schema import METHOD_COLUMNS, method_columns

_SYMBOLS = dict(zip("os^DvPX*x-", "●■▲◆▼✚✖★✕━", strict=True))
"""The markers of a figure as letters."""


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
    content, curves = _figures(observations, searches, d90)
    answer = ""
    if rows:
        drawn = to_svg(answer_figure(rows), "d90")
        answer = inline(drawn, "d90", "d90 and its interval, by task, model and method")
        assert d90 is not None, "its rows are drawn"
        flat = d90.drop_columns([name for name in d90.schema.names if pa.types.is_nested(d90.schema.field(name).type)])
        content |= {"d90.svg": drawn, "d90.csv": (render(flat, "csv") + "\n").encode()}
        content |= {"d90.md": markdown(rows).encode(), "d90.tex": latex(rows).encode()}
    sink = io.BytesIO()
    pq.write_table(searches, sink)
    content |= {"searches.csv": (render(searches, "csv") + "\n").encode(), "searches.parquet": sink.getvalue()}
    page = _page(observations, searches, d90, adapters, others or {}, answer, rows, curves, title)
    try:
        store.make("")
        for name, data in content.items():
            store.put(name, data)
        store.put("report.html", page.encode())
    except (OSError, pa.ArrowException) as error:
        raise OutputError(
            f"cannot write the report to {store.uri} ({first_line(error)}); give a directory that you may write"
        ) from error
    return f"{store.uri.rstrip('/')}/report.html"


@literal
def _figures(
    observations: Sequence[Observation], searches: pa.Table, d90: pa.Table | None
) -> tuple[dict[str, bytes], str]:
    """Draw one figure per task and model, its methods side by side; give the files by name, and what the page shows."""
    trials = [seen for seen in observations if seen.trial.d]
    rows = searches.to_pylist()
    pairs = {(seen.trial.task.name, seen.trial.model.name) for seen in trials} | {
        (row["task"], row["model"]) for row in rows
    }
    content: dict[str, bytes] = {}
    sections = []
    for task, model in sorted(pairs):
        mine = [seen for seen in trials if (seen.trial.task.name, seen.trial.model.name) == (task, model)]
        keep = [(row["task"], row["model"]) == (task, model) for row in rows]
        own = searches.filter(pa.array(keep, pa.bool_()))
        figure = draw_curves(mine, own, d90=d90)
        slug = re.sub(r"[^a-z0-9]+", "-", f"{task} {model.removeprefix('package:')}".lower()).strip("-")
        name = f"curve-{slug}"
        name = name if f"{name}.png" not in content else f"{name}-{len(sections)}"
        png = io.BytesIO()
        figure.savefig(png, format="png")
        content |= {f"{name}.png": png.getvalue(), f"{name}.svg": to_svg(figure, name)}
        content[f"{name}.csv"] = (render(curve_data(mine, d90), "csv") + "\n").encode()
        sections.append(f"<h3>{escaped(f'{task} · {short_model(model)}')}</h3>\n{_panels(mine, own, d90, name)}")
    return content, "\n".join(sections)


def _panels(observations: Sequence[Observation], searches: pa.Table, d90: pa.Table | None, name: str) -> str:
    """Show every method of a task and model with its curve, and name those without a trial."""
    curves = Curves.of(observations, searches, d90)
    shown = []
    for number, (panel, figure) in enumerate(draw_panels(curves)):
        label, one = escaped(panel["label"]), f"{name}-{number}"
        method, finding, estimate = map(escaped, curves.words(panel))
        said = f"<em>{estimate}</em>" if estimate else ""
        svg = inline(to_svg(figure, one), one, f"score against d: {label}", curves.themes)
        shown.append(
            f"<figure><figcaption><b>{label}</b><span>{method}</span><span>{finding}</span>{said}</figcaption>{svg}</figure>"
        )
    themes = {**THEME, **curves.themes}
    key = "".join(
        f'<li><span style="color:{themes.get(colour, colour)}">{_SYMBOLS[marker]}</span> {words}</li>'
        for words, marker, colour in curves.key()
    )
    none = ", ".join(escaped(panel["label"]) for panel in curves.panels if panel not in curves.with_trials)
    waiting = f'<p class="quiet">No subspace trial has a result yet: {none}.</p>' if none else ""
    figures = f'<ul class="key">{key}</ul><div class="panels">{"".join(shown)}</div>' if shown else ""
    return figures + waiting


def _page(
    observations: Sequence[Observation],
    searches: pa.Table,
    d90: pa.Table | None,
    adapters: pa.Table | None,
    others: Mapping[str, pa.Table],
    answer: str,
    rows: Sequence[Mapping[str, Any]],
    curves: str,
    title: str,
) -> str:
    """Compose the page out of its sections: the answer first, then how it was measured, then everything."""
    statuses = Counter(seen.status for seen in observations)
    counts = ", ".join(f"{count} {status}" for status, count in sorted(statuses.items())) or "none"
    hours = sum(seen.wall_s for seen in observations) / 3600
    said = "".join(
        f"<h3>{escaped(name)}</h3><dl>"
        + "".join(f"<dt>{escaped(whose)}</dt><dd>{escaped(what)}</dd>" for whose, what in sentences(members))
        + "</dl>"
        for name, members in grouped(rows).items()
    )
    tables = {
        "Searches": status_table(searches),
        **others,
        "Full fine-tuning and theta_0": _trials(seen for seen in observations if seen.trial.is_reference),
        "Subspace trials": _trials(seen for seen in observations if not seen.trial.is_reference),
        "Provenance": _provenance(observations),
    }
    listed = "\n".join(
        f"<h2>{escaped(name)}</h2>\n{html_table(table)}" for name, table in tables.items() if table.num_rows
    )
    style, script = (files("distsub.report").joinpath(f"page.{kind}").read_text("utf-8") for kind in ("css", "js"))
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{escaped(title)}</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>
{style}</style></head><body>
<h1>{escaped(title)}</h1>
<p class="quiet">{searches.num_rows} searches, {len(observations)} trials ({counts}), {hours:.2f} hours of training</p>
<div class="beside">{answer}<div>{said}</div></div>
{_smallest(adapters)}
<h2>What d90 means here</h2>
{_definition(searches)}
<h2>Score against dimension</h2>
{curves}
{_estimates(d90)}
{listed}
{_to_paste(rows)}
<script>
{script}</script></body></html>
"""


def _to_paste(rows: Sequence[Mapping[str, Any]]) -> str:
    """Show the answer as tables for a text or a paper."""
    if not rows:
        return ""
    texts = {"Markdown": markdown(rows), "LaTeX (booktabs)": latex(rows)}
    parts = (folded(name, f"<pre>{_lines(text)}</pre>") for name, text in texts.items())
    return "<h2>To paste</h2>\n" + "\n".join(parts)


def _lines(text: str) -> str:
    return "\n".join(map(escaped, text.splitlines()))


def _estimates(d90: pa.Table | None) -> str:
    """List d90 per task, model and method with its interval, and what a reader must know about it."""
    if d90 is None:
        return ""
    names = ["task", "model", "label", *METHOD_COLUMNS[1:], "d90_text", "d90_chance_corrected_text", "first_passing_d"]
    names += ["failed_full", "failed_subspace", "searches", "trials"]
    notes = "".join(f"<li>{escaped(whose)}: {escaped(note)}</li>" for note, whose in noted(d90).items())
    return f"<h2>d90 with its interval</h2>\n{html_table(d90.select(names))}\n" + (notes and f"<ul>{notes}</ul>")


def _smallest(adapters: pa.Table | None) -> str:
    """List the smallest saved adapter that passes, for each task and model."""
    if adapters is None or not adapters.num_rows:
        return ""
    return f"<h2>The smallest adapter that passes</h2>\n{html_table(adapters.drop_columns('trial_id'))}"


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
        given = escaped(rule or "")
        return f"The <b>threshold</b> is a score: {given}. No full fine-tuning is trained for it."
    zero = "the score of always predicting the majority class, 0 for correlations"
    if chance == "theta_0":
        zero = "the mean score of the untouched model over its heads"
    return f"""The <b>threshold</b> is {fraction} times the score of full fine-tuning: the best, over learning rates,
of the mean over seeds, under the same budget (Aghajanyan et al. 2020, arXiv:2012.13255). It takes no account of chance;
the <b>chance-corrected</b> threshold is chance + {fraction} (full &minus; chance), with chance {zero}. The relative one
decides the search, the estimate is of both."""


def _trials(observations: Iterable[Observation]) -> pa.Table:
    """List trials by what identifies them for a reader, and what they gave."""
    ordered = sorted(observations, key=lambda seen: (seen.trial.task.name, seen.trial.model.name, seen.trial.d or 0))
    gave = ("step_size", "status", "score", "steps", "wall_s", "eval_s", "peak_bytes")
    return pa.Table.from_pylist(
        [
            {
                "task": seen.trial.task.name,
                "model": seen.trial.model.name,
                **{name: value for name, value in method_columns(seen.trial.method).items() if name in METHOD_COLUMNS},
                "d": seen.trial.d,
                "eta": seen.trial.eta,
                "learning_rate": seen.trial.learning_rate,
                "seeds": seen.trial.seeds.text,
                **{name: getattr(seen, name) for name in gave},
                "trial_id": seen.trial.id,
                "error": seen.error,
            }
            for seen in ordered
        ]
    )


def _provenance(observations: Iterable[Observation]) -> pa.Table:
    """List every provenance key with its values and how many trials have each."""
    seen: dict[str, Counter[str]] = {}
    for observation in observations:
        for key, value in observation.provenance:
            seen.setdefault(key, Counter())[value] += 1
    rows = []
    for key, values in sorted(seen.items()):
        shown = [value if len(values) == 1 else f"{value} ({count} trials)" for value, count in values.most_common(5)]
        more = f"; and {len(values) - 5} others" if len(values) > 5 else ""
        rows.append({"what": key, "value": "; ".join(shown) + more})
    return pa.Table.from_pylist(rows)
