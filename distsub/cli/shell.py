"""What commands share: opening results, and printing for people or for programs."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distsub.api import store_of, summary_of, sweep_of
from distsub.cli.options import Format
from distsub.errors import ConfigError
from distsub.report import streams
from distsub.runtime.drain import INTERRUPTED, TERMINATED

if TYPE_CHECKING:
    import pyarrow as pa

    from distsub.config.sweep import Sweep
    from distsub.report.summary import Summary
    from distsub.results import Store


class Stopped(SystemExit):
    """The end of an interrupted run that has printed its last line."""


def open_sweep(sweep_file: Path, out: str) -> "tuple[Sweep, Store]":
    """Read and check a sweep, and make or open its results directory."""
    from distsub.addresses import output_address
    from distsub.config import load_sweep
    from distsub.preflight import checks
    from distsub.runtime import placing

    sweep = load_sweep(sweep_file)
    if not out.strip():
        raise ConfigError("--out is empty; give a results directory, such as --out results/mine")
    out = output_address(out)

    folder = sweep_file.resolve().parent
    # Before the directory exists: a sweep that cannot run leaves nothing behind.
    sweep = checks.check(sweep, say, placing.kept(sweep, out, folder))
    store = store_of(sweep, out, folder)
    if store.remark:
        say(f"note: {store.remark}")
    return sweep, store


def open_results(out: str) -> "Store":
    """Open a results directory."""
    from distsub.results import Store

    return Store.open(out)


def summarize(store: "Store") -> "tuple[Summary, Sweep]":
    """Summarize a results directory, and return its sweep too."""
    sweep = sweep_of(store)
    return summary_of(sweep, store), sweep


def unrelated_rows(summary: "Summary", sweep: "Sweep", store: "Store") -> list[str]:
    """Count the rows that neither the sweep nor a fit asks for, in a line if there are any."""
    from distsub.report import standing

    controls = [*(each.trial for each in sweep.recordings()), *sweep.controls()]
    beside = {trial.id for trial in controls}
    if summary.unrelated(beside):
        beside |= standing.fitted(store.files)
    return standing.unrelated_rows(summary, sweep.searches(), beside)


def with_notices(store: "Store", table: "pa.Table") -> "pa.Table":
    """Print what the store skipped to make a table, and return the table."""
    for line in store.notices():
        say(f"distsub: {line}")
    return table


def show_d90(d90: "pa.Table", columns: Sequence[str] = ()) -> None:
    """Print every d90 with its interval, and the warnings that belong to it."""
    from distsub.report.standing import notes
    from distsub.report.summary import D90_COLUMNS

    show(d90.select(columns or D90_COLUMNS), Format.table)
    write(*notes(d90))


def say(line: str) -> None:
    """Print a line for people to standard error."""
    from distsub.report.terminal import Terminal, printable

    streams.say(printable(line, Terminal.of(sys.stderr)))


def show_facts(facts: Mapping[str, Any], format: Format) -> None:
    """Print what is known of one thing to standard output."""
    from distsub.report.listing import render_facts

    write(render_facts(facts, format.value))


def stop_if_interrupted(code: int) -> None:
    """End the command where a run's exit code says that it was interrupted."""
    if code in (INTERRUPTED, TERMINATED):
        raise Stopped(code)


def list_figures(paths: list[str]) -> None:
    """Print where figures were written."""
    for path in paths:
        say(f"figure: {path}")


def write(*lines: str) -> None:
    """Print lines to standard output."""
    from distsub.report.listing import write_out

    if lines:
        write_out("\n".join(lines))


def show(table: "pa.Table", format: Format) -> None:
    """Print a table to standard output."""
    from distsub.report.listing import render, write_out

    write_out(render(table, format.value))
