"""What a sweep will take: counts from the search room, seconds from a probe of real steps."""

import os
import time
from typing import Any

import pyarrow as pa

from distsub.config import Sweep
from distsub.finetune import train
from distsub.runtime.launch import board_of, check, model_facts
from distsub.search import make_policy
from distsub.search.plan import Cost, make_plan, seconds_per_trial
from distsub.trial import Method, Trial

PROBE_STEPS = 6
"""Real steps timed per model, task and method; the first, which warms up, does not count."""


def plan(
    sweep: Sweep, slots: int | None = None, probe: bool = False, price_per_hour: float | None = None
) -> tuple[pa.Table, pa.Table]:
    """Check a sweep and say what it will take.

    Args:
        sweep: What to measure.
        slots: Trials at once; None takes [resources] max_concurrent_trials, or this machine's cores.
        probe: Time a few real steps of each model and method.
        price_per_hour: Of one slot.

    Returns:
        One row per search, and one row per total (at most and expected).

    Raises:
        DistsubError: The sweep cannot run.
    """
    check(sweep)
    board = board_of(sweep)
    cores = int((os.cpu_count() or 1) / max(sweep.resources.cpus_per_trial, 1e-9))
    slots = slots or sweep.resources.max_concurrent_trials or max(1, cores)
    times = _probe(sweep, board) if probe else {}
    seconds = seconds_per_trial(lambda trial: times.get(_kind(trial), (None, 0.0))[0]) if probe else None
    rows = []
    for search in board.searches:
        facts = model_facts(
            search.model, search.revision, search.task.num_labels, search.method.head, search.method.groups
        )
        step = times.get((search.task.name, search.model, search.method))
        rows.append(
            {
                "search": search.name,
                "projection": search.method.projection,
                "head": search.method.head,
                "D": facts["num_params"],
                "scales": facts["groups"] if search.method.name == "said" else 0,
                "dims": f"{search.dims[0]}..{search.dims[-1]} ({len(search.dims)})",
                "etas": len(search.etas),
                "max_trials": board.policy.max_trials(search) - len(search.baseline_runs),
                "baseline_trials": len(search.baseline_runs),
                "steps_per_trial": search.budget.steps,
                "s_per_step": None if step is None else round(step[0], 3),
                "model_bytes": facts["num_params"] * 4,
            }
        )
    made = make_plan(board.searches, make_policy(sweep.policy), slots, seconds, price_per_hour)
    totals = [
        _total("at most", made.most, slots, len(made.first_batch)),
        _total("expected", made.expected, slots, len(made.first_batch)),
    ]
    if sweep.limit:
        given = {"total": "limit", "trials": sweep.limit.trials, "slot_hours": sweep.limit.hours}
        totals.append(dict.fromkeys(totals[0]) | given)
    return pa.Table.from_pylist(rows), pa.Table.from_pylist(totals)


def _total(name: str, cost: Cost, slots: int, first: int) -> dict[str, Any]:
    def rounded(value: float | None) -> float | None:
        return None if value is None else round(value, 3)

    return {
        "total": name,
        "trials": round(cost.trials, 1),
        "steps": round(cost.steps),
        "slots": slots,
        "first_batch": first,
        "slot_hours": rounded(cost.hours),
        "wall_hours": rounded(cost.wall_hours),
        "price": rounded(cost.price),
    }


def _kind(trial: Trial) -> tuple[str, str, Method]:
    return trial.task.name, trial.model, trial.method


def _probe(sweep: Sweep, board: Any) -> dict[tuple[str, str, Method], tuple[float, float]]:
    """Time real steps of each model, task and method at the middle of the grid; give median seconds per step."""
    import statistics

    import torch

    torch.set_num_threads(max(1, int(sweep.resources.cpus_per_trial)))
    device = "cuda" if sweep.resources.gpus_per_trial else "cpu"
    found: dict[tuple[str, str, Method], tuple[float, float]] = {}
    for search in board.searches:
        for trial in (search.baseline[0], search.trials_at(search.dims[len(search.dims) // 2])[0]):
            if _kind(trial) in found:
                continue
            steps, times = train.train(trial, device), []
            last = time.perf_counter()
            for _ in range(min(PROBE_STEPS, trial.budget.steps - 1) or 1):
                next(steps)
                times.append(time.perf_counter() - last)
                last = time.perf_counter()
            steps.close()
            found[_kind(trial)] = (statistics.median(times[1:] or times), times[0])
    return found
