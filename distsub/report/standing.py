"""The state of a results directory: what runs it, each search, and the smallest adapter that passes."""

import contextlib
import sys
import time
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

import pyarrow as pa

from distsub.files import Files, parse_json
from distsub.paths import FITTED, RESUME, fit
from distsub.records import Seeds
from distsub.report.listing import size_text
from distsub.report.summary import Summary
from distsub.report.terminal import Terminal, fold, printable
from distsub.results import Store
from distsub.results.drivers import Driver, drivers
from distsub.search import Search

SHOWN = 4
"""Trainings that are named of a driver, kinds of rows of no search, and what a note is about."""


def standing(store: Store, summary: Summary, title: str) -> list[str]:
    """Write in a few lines whether a sweep is done, running, or waiting to be resumed."""
    outcomes = summary.searches["outcome"].to_pylist()
    still, number = outcomes.count("open"), len(outcomes)
    known = drivers(store.files)
    alive = [each for each in known if each.alive]
    if alive:
        lines = [f"{title}: running, {still} of {number} searches open"]
    elif not still:
        lines = [f"{title}: done, {number} of {number} searches ended"]
    else:
        lines = [f"{title}: not running, {still} of {number} searches open; the same command resumes"]
    lines += [_driver(each) for each in (alive or known)]
    resumed = [] if alive or not still else store.files.names(RESUME)
    halves = sum(not each.startswith(".") for each in resumed)
    written, merged = store.written, store.merged  # with the rows that the summary was made of
    parts = [f"last row {_ago(written)}" if written else f"rows merged {_ago(merged)}" if merged else "no row yet"]
    if halves:
        parts.append(f"trainings that resume from a checkpoint: {halves}")
    return list(map(_folded, [*lines, "; ".join(parts)]))


def _driver(driver: Driver) -> str:
    where = f"process {driver.pid} on {driver.host}"
    if not driver.alive:
        return f"killed: {where}, last seen {_ago(driver.beat)}"
    number = len(driver.training)
    in_flight = f"{number} in flight: {_listed(driver.training)}" if number else "none in flight"
    return f"{where}, begun {_ago(driver.since)}, {in_flight}"


def _ago(then: float) -> str:
    """Write how long ago something was, in one unit."""
    seconds = max(0.0, time.time() - then)
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def status_rows(searches: pa.Table, store: Store) -> pa.Table:
    """Add the state of the sweep to rows of SEARCHES, alike in every row, for programs.

    Columns: "driver" ("running" or "none"), "in_flight" (trainings that run now) and "last_row_s" (the age of the
    newest row in seconds; null without one).
    """
    alive = [each for each in drivers(store.files) if each.alive]
    newest = store.written or store.merged
    known = {
        "driver": pa.scalar("running" if alive else "none"),
        "in_flight": pa.scalar(sum(len(each.training) for each in alive), pa.int64()),
        "last_row_s": pa.scalar(max(0.0, time.time() - newest) if newest else None, pa.float64()),
    }
    for name, value in known.items():
        searches = searches.append_column(name, pa.repeat(value, searches.num_rows))
    return searches


def status_table(searches: pa.Table) -> pa.Table:
    """Tabulate the state of every search for people."""
    rows = []
    for row in searches.to_pylist():
        d = row["first_passing_d"]
        rows.append(
            {
                "task": row["task"],
                "model": row["model"],
                "method": row["label"],
                "seed": Seeds(*(row[f"{name}_seed"] for name in ("projection", "head", "data"))).text,
                "first_passing_d": row["outcome"].replace("_", " ") if d is None else str(d),
                "bracket": f"({_or_dash(row['bracket_low'])}, {_or_dash(row['bracket_high'])}]",
                "best": row["best_score"],
                "threshold": row["threshold"],
                "full": row["baseline_score"],
                "trials": row["trials"],
                "minutes": row["wall_s"] / 60,
            }
        )
    return pa.Table.from_pylist(rows)


def _or_dash(value: Any) -> str:
    return "-" if value is None else str(value)


def smallest_lines(smallest: pa.Table) -> list[str]:
    """Name the smallest adapter that passes, for each task and model (rows of ADAPTERS)."""
    lines, rows = [], smallest.to_pylist()
    for row in rows:
        less = " or less" if row["score"] < row["threshold"] else ""  # a loss
        lines += [
            _folded(
                f"smallest adapter that passes: {_subject(row, rows)}: d = {row['d']}, "
                f"score {row['score']:.4f} where {row['threshold']:.4f}{less} passes, {size_text(row['bytes'])}"
            ),
            f"  {printable(row['path'])}",
        ]
    return lines


def unrelated_rows(summary: Summary, searches: Sequence[Search], beside: Collection[str]) -> list[str]:
    """Count the rows that belong to no search, by reason, in one line; no line if there are none.

    Args:
        summary: The results.
        searches: The sweep's.
        beside: Ids of the trials that are asked for beside them: full fine-tunings that are recorded, controls, and
            what `distsub fit` trained.
    """
    tasks, bases = {each.task.name: each.task.content for each in searches}, {each.model for each in searches}
    counts: Counter[str] = Counter()
    for setup, number in summary.unrelated(beside):
        task, model = setup.task, setup.model
        if task.name in tasks and task.content != tasks[task.name]:
            theirs, ours = _short(task.content), _short(tasks[task.name])
            reason = f"of task {task.name} with other rows ({theirs}, the sweep's are {ours})"
        elif model not in bases:
            reason = f"of another model ({_short(model.content) if model.content else model.name})"
        else:
            reason = "of trainings that the sweep does not include"
        counts[reason] += number
    if not counts:
        return []
    what = "; ".join(f"{number} {each}" for each, number in counts.most_common(SHOWN))
    more = f"; {len(counts) - SHOWN} kinds more" if len(counts) > SHOWN else ""
    return [_folded(f"note: rows of no search of this sweep, which no d90 is made of: {what}{more}")]


def fitted(files: Files) -> set[str]:
    """Give the ids of the trials that `distsub fit` asked for, whether it ended or not."""
    found = set[str]()
    for trial_id in files.folders(FITTED):
        # Without one, or with half of one, where a fit was interrupted.
        with contextlib.suppress(OSError, pa.ArrowException, ValueError, AttributeError):
            found.update([trial_id, *parse_json(files.read(fit(trial_id))).get("trials", ())])
    return found


def _short(content: str | None) -> str:
    return (content or "not known")[:12]


def notes(d90: pa.Table) -> list[str]:
    """Write the warnings of all estimates (rows of D90), each once with what it is about."""
    return [_folded(f"note: {subjects}: {note}") for note, subjects in noted(d90).items()]


def noted(d90: pa.Table) -> dict[str, str]:
    """Give what each warning of the estimates (rows of D90) is about."""
    subjects, rows = dict[str, list[str]](), d90.select(["task", "model", "label", "warnings"]).to_pylist()
    for row in rows:
        for note in row["warnings"]:
            subjects.setdefault(note, []).append(_subject(row, rows))
    return {note: _listed(each) for note, each in subjects.items()}


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _subject(row: dict[str, Any], rows: Sequence[dict[str, Any]]) -> str:
    """Name what a row is about: task and method, and the model where rows have several."""
    many = len({each["model"] for each in rows}) > 1
    return " ".join([row["task"], *([row["model"]] if many else []), row["label"]])


def _folded(text: str) -> str:
    terminal = Terminal.of(sys.stdout)
    return fold(printable(text, terminal), terminal)
