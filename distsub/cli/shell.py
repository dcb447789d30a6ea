"""What the commands share: opening results, and writing for people or for programs."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from distsub.api import store_of, summary_of, sweep_of
from distsub.cli.options import Format
from distsub.errors import ConfigError
from distsub.report import streams

if TYPE_CHECKING:
    import pyarrow as pa

    from distsub.config.sweep import Sweep
    from distsub.report.summary import Summary
    from distsub.results import Store


class Stopped(SystemExit):
    """The end of a run that was interrupted and has said so."""


def open_sweep(sweep_file: Path, out: str) -> "tuple[Sweep, Store]":
    """Read and check a sweep, and make or open its results directory."""
    from distsub.config import load_sweep
    from distsub.files import output_address
    from distsub.runtime import checks

    sweep = load_sweep(sweep_file)
    if not out.strip():
        raise ConfigError("--out is empty; give a results directory, such as --out results/mine")
    out = output_address(out)

    sweep = checks.check(sweep, say)  # before the directory is made: a sweep that cannot run leaves nothing behind
    store = store_of(sweep, out, sweep_file.resolve().parent)
    if store.remark:
        say(f"note: {store.remark}")
    return sweep, store


def open_results(out: str) -> "Store":
    """Open a results directory."""
    from distsub.results import Store

    return Store.open(out)


def summed_up(store: "Store") -> "tuple[Summary, Sweep]":
    """Sum up a results directory, and give the sweep that it is of."""
    sweep = sweep_of(store)
    return summary_of(sweep, store), sweep


def strangers(summary: "Summary", sweep: "Sweep") -> list[str]:
    """Say how many rows are of no search of a sweep."""
    from distsub.report import standing

    beside = [*(each.trial for each in sweep.recordings()), *sweep.controls()]
    return standing.strangers(summary, sweep.searches(), {trial.id for trial in beside})


def told(store: "Store", table: "pa.Table") -> "pa.Table":
    """Pass a table on, having said what the store skipped to make it."""
    for line in store.notices():
        say(f"distsub: {line}")
    return table


def answers(d90: "pa.Table", columns: Sequence[str] = ()) -> None:
    """List each d90, with the way of training where one has a name, and say what its reader must know."""
    from distsub.report.standing import notes
    from distsub.report.summary import D90_COLUMNS

    show(d90.select(columns or D90_COLUMNS), Format.table)
    write(*notes(d90))


def say(line: str) -> None:
    """Write a line for people to standard error."""
    from distsub.report.terminal import Terminal, printable

    streams.say(printable(line, Terminal.of(sys.stderr)))


def pictures(paths: list[str]) -> None:
    """Name figures that were drawn."""
    for path in paths:
        say(f"figure: {path}")


def write(*lines: str) -> None:
    """Write lines to standard output."""
    from distsub.report.listing import write_out

    if lines:
        write_out("\n".join(lines))


def show(table: "pa.Table", format: Format) -> None:
    """Write a table to standard output."""
    from distsub.report.listing import render, write_out

    write_out(render(table, format.value))
