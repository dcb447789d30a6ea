"""What a sweep will take: counts from the search room, seconds from a probe of real steps."""

import contextlib
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import pyarrow as pa

from distsub.config.sweep import Sweep
from distsub.data import dataset
from distsub.finetune import memory, trajectory
from distsub.finetune.train import Progress, Stopped, train
from distsub.models import pretrained
from distsub.preflight.checks import check
from distsub.preflight.rehearsal import without_checkpoints
from distsub.records import InSetup, Method, Model, Peft, Recording, Trial, label
from distsub.report.listing import size_text
from distsub.runtime.facts import model_facts, peft_facts
from distsub.runtime.launch import queue_of
from distsub.search import Search, TrialQueue, make_policy
from distsub.search.plan import Cost, make_plan, seconds_per_trial
from distsub.search.spec import all_references, eta_tries

PROBE_STEPS = 6
"""Real steps timed per model, task and method; the first, which loads and warms up, is the start-up."""

ROW_BYTES, EXAMPLE_BYTES = 8_200, 9.1
"""Size of a row file: its record, and prediction, target and correctness of each evaluated example; as seen on disk."""
ADAPTER_BYTES, NUMBER_BYTES = 2_000, 4
"""Size of an adapter: its configuration, and each trained number."""


@dataclass(frozen=True)
class Probe:
    """What a few real steps of one model, task and method took.

    Attributes:
        step_s: Median seconds of a step.
        startup_s: Seconds until the first step was done: weights, data, tokens.
        peak_bytes: Peak memory of the process, the shared weights included.
    """

    step_s: float
    startup_s: float
    peak_bytes: int


def plan(
    sweep: Sweep,
    slots: int | None = None,
    probe: bool = False,
    price_per_hour: float | None = None,
    say: Callable[[str], None] | None = None,
) -> tuple[pa.Table, pa.Table]:
    """Check a sweep and say what it will take.

    Args:
        sweep: What to measure.
        slots: Trials at once; None takes [resources] max_concurrent_trials, or this machine's cores.
        probe: Time a few real steps of each model and method.
        price_per_hour: Of one slot.
        say: Prints notes on the rows, as `check` does.

    Returns:
        One row per search, and one row per total (at most and expected).

    Raises:
        DistsubError: The sweep cannot run.
    """
    sweep = check(sweep, say)
    queue = queue_of(sweep)
    slots = slots or _slots(sweep, len(queue.wanted()))
    splits = {task.name: dataset.load(task, sweep.budget) for task in sweep.tasks}
    costs_of = Costs(_probe(sweep, queue) if probe else {}, splits)
    facts = lru_cache(maxsize=None)(model_facts)  # a model is built once, however many seeds and tasks it has
    rows = [_search_row(search, queue, costs_of, facts) for search in queue.searches]
    controls = sweep.controls()
    seconds = costs_of.seconds if probe else None
    made = make_plan(queue.searches, make_policy(sweep.policy), slots, seconds, price_per_hour, controls)
    shared = all_references(queue.searches) + eta_tries(queue.searches) + [(trial, 1) for trial in controls]
    num_bytes = sum(number * costs_of.row_bytes(trial.task.name) for trial, number in shared)
    for search, row in zip(queue.searches, rows, strict=True):
        one = costs_of.row_bytes(search.task.name) + ADAPTER_BYTES + NUMBER_BYTES * search.dims[-1]
        num_bytes += row["max_trials"] * one
    first = len(made.first_batch)
    totals = [
        _total(name, cost, slots, first) | {"result_bytes": round(num_bytes * cost.trials / made.most.trials)}
        for name, cost in (("at most", made.most), ("expected", made.expected))
    ]
    if sweep.limit:
        given = {"total": "limit", "trials": sweep.limit.trials, "slot_hours": sweep.limit.hours}
        totals.append(dict.fromkeys(totals[0]) | given)
    if recorded := _recording_costs(sweep):
        totals.append(dict.fromkeys(totals[0]) | _recorded(recorded, queue, seconds))
    return pa.Table.from_pylist(rows), pa.Table.from_pylist(totals)


class Costs:
    """What one trial costs, from a probe of each kind."""

    def __init__(self, probes: dict[tuple[str, Model, Method], Probe], splits: dict[str, dataset.Splits]) -> None:
        self.probes, self.splits = probes, splits

    def row_bytes(self, task: str) -> float:
        """Size of the row of a trial of a task."""
        return ROW_BYTES + EXAMPLE_BYTES * len(self.splits[task].validation)

    def seconds(self, trial: Trial) -> float:
        """Seconds of a trial."""
        if trial.is_theta_0:  # as any other training of the model begins and ends
            same = _cost_key(trial)[:2]
            found = next(probe for key, probe in self.probes.items() if key[:2] == same)
        else:
            found = self.probes[_cost_key(trial)]
        # Going forward only is about a third of a step's work.
        eval_s = len(self.splits[trial.task.name].validation) / trial.budget.batch_size * found.step_s / 3
        return seconds_per_trial(lambda _: found.step_s, found.startup_s, eval_s)(trial) or 0.0


def _search_row(
    search: Search, queue: TrialQueue, costs_of: Costs, facts: Callable[..., dict[str, Any]]
) -> dict[str, Any]:
    """Describe a search and the most that it takes."""
    method, found = search.method, costs_of.probes.get(_cost_key(search))
    num_labels = costs_of.splits[search.task.name].task.num_labels or 0
    model, times = (search.model.name, search.model.revision, num_labels), 1
    if isinstance(method, Peft):
        about = peft_facts(*model, method)
    else:
        about = facts(*model, method.head, method.scales, method.embeddings, method.modules, dtype=search.model.dtype)
        times = method.ensemble * (about["spanned_layers"] if method.scope == "layer" else 1)
    trained = " to ".join(dict.fromkeys(str(d * times) for d in (search.dims[0], search.dims[-1])))
    return {
        "task": search.task.name,
        "model": search.model.name,
        "method": label(method),
        "seed": search.seeds.text,
        "projection": None if isinstance(method, Peft) else method.family,
        "head": method.head,
        "trained": trained + (f" + {about['num_trained_head']} in full" if about["num_trained_head"] else ""),
        "D": about["num_params"],
        "num_params_model": about["num_params_model"],
        "scales": 0 if isinstance(method, Peft) or not method.scales else about["groups"],
        "dims": f"{search.dims[0]}..{search.dims[-1]} ({len(search.dims)})",
        "etas": search.eta_range.tries if search.eta_range else len(search.etas),
        "max_trials": queue.policy.max_trials(search) - search.num_references,
        "baseline_trials": search.num_baseline,
        "steps_per_trial": search.budget.steps,
        "s_per_step": found and round(found.step_s, 3),
        "startup_s": found and round(found.startup_s, 1),
        "shared_weights_bytes": about["num_params_model"] * (2 if search.model.dtype == "bfloat16" else 4),
        "actor_peak_bytes": found and found.peak_bytes,
    }


def _recorded(
    recorded: list[tuple[Recording, int]], queue: TrialQueue, seconds: Callable[[Trial], float] | None
) -> dict[str, Any]:
    """Add up the trajectories that are recorded beside the searches, whose own full fine-tunings count there."""
    anyway = {name for search in queue.searches for name in search.reference_ids}
    apart = [each.trial for each, _ in recorded if each.trial.id not in anyway]
    return {
        "total": "trajectories, beside these",
        "trials": len(apart),
        "steps": sum(trial.budget.steps for trial in apart),
        "slot_hours": _rounded(sum(map(seconds, apart)) / 3600) if seconds else None,
        "result_bytes": sum(size for _, size in recorded),
    }


def side_by_side(totals: pa.Table) -> pa.Table:
    """Set what is expected beside what is never exceeded, from the second table of `plan`, for people."""
    rows = sorted(totals.to_pylist(), key=lambda row: row["total"] != "expected")
    names = {"trials": "trainings", "steps": "training steps", "first_batch": "trainings that start at once"}
    shown = []
    for name in totals.schema.names[1:]:
        if any(row[name] is not None for row in rows):
            cells = {row["total"]: _amount(name, row[name]) for row in rows}
            shown.append({"what": names.get(name, name.replace("_", " "))} | cells)
    return pa.Table.from_pylist(shown)


def _amount(name: str, value: float | None) -> str | None:
    if value is None:
        return None
    if name.endswith("_hours"):
        return _duration(value)
    return size_text(round(value)) if name.endswith("_bytes") else f"{value:,.10g}"


def _duration(hours: float) -> str:
    """Write a time for people."""
    if hours >= 1:
        return f"{hours:.1f} hours"
    return f"{60 * hours:.0f} minutes" if hours * 60 >= 1 else f"{3600 * hours:.0f} seconds"


def _rounded(value: float | None) -> float | None:
    """Give three decimals, or three digits of what is small: seconds are hours too, and never none."""
    return None if value is None else round(value, 3) if value >= 1 else float(f"{value:.3g}")


def _total(name: str, cost: Cost, slots: int, first: int) -> dict[str, Any]:
    return {
        "total": name,
        "trials": round(cost.trials, 1),
        "steps": round(cost.steps),
        "slots": slots,
        "first_batch": first,
        "slot_hours": _rounded(cost.hours),
        "wall_hours": _rounded(cost.wall_hours),
        "price": _rounded(cost.price),
    }


def _slots(sweep: Sweep, demand: int) -> int:
    """Count the trials at once: as the sweep says, else on the cluster of RAY_ADDRESS, else on this machine."""
    if sweep.resources.max_concurrent_trials:
        return sweep.resources.max_concurrent_trials
    if os.environ.get("RAY_ADDRESS"):
        from distsub.runtime.connect import connect  # isort: skip  # sets Ray's environment before Ray is imported
        from distsub.runtime import cluster

        with connect():
            return cluster.slots(sweep.resources, demand)
    return max(1, int((os.cpu_count() or 1) / max(sweep.resources.cpus_per_trial, 1e-9)))


def _cost_key(trained: InSetup) -> tuple[str, Model, Method]:
    """Return what a step costs the same for, whatever its learning rate."""
    return trained.task.name, trained.model, trained.method


def _probe(sweep: Sweep, queue: Any) -> dict[tuple[str, Model, Method], Probe]:
    """Time real steps of each model, task and method at the middle of the grid."""
    import torch

    torch.set_num_threads(max(1, int(sweep.resources.cpus_per_trial)))
    device = "cuda" if sweep.resources.gpus_per_trial else "cpu"
    found: dict[tuple[str, Model, Method], Probe] = {}
    middles = [search.trials_at(search.dims[len(search.dims) // 2])[0] for search in queue.searches]
    references = [trial for search in queue.searches for trial in search.baseline[:1]]
    for trial in (*references, *middles, *sweep.controls()):
        if _cost_key(trial) in found:
            continue
        meter, stamps, wanted = memory.Meter(device), [time.perf_counter()], min(PROBE_STEPS, trial.budget.steps - 1)

        def stamp(step: int, steps: int, stamps: list[float] = stamps, wanted: int = wanted) -> bool:
            stamps.append(time.perf_counter())
            return step >= wanted

        with contextlib.suppress(Stopped):
            train(without_checkpoints(trial), [Progress(stamp)], device)
        times = [end - begin for begin, end in pairwise(stamps)]
        found[_cost_key(trial)] = Probe(statistics.median(times[1:] or times), times[0], meter.peak_bytes())
    return found


def _recording_costs(sweep: Sweep) -> list[tuple[Recording, int]]:
    """List what a sweep records, each with the bytes that it takes."""
    rows: dict[Any, tuple[int, int]] = {}
    sizes: dict[Any, int] = {}
    found = []
    for recording in sweep.recordings():
        trial = recording.trial
        if (key := (trial.task, trial.budget)) not in rows:
            splits = dataset.load(*key)
            rows[key] = len(splits.train), splits.task.num_labels or 0
        about = (trial.model.name, trial.model.revision, trial.model.dtype, rows[key][1])
        if about not in sizes:
            model = pretrained.build(pretrained.prepare(*about[:3]), about[3], 0)
            sizes[about] = sum(parameter.numel() for parameter in model.parameters())
        found.append((recording, trajectory.num_bytes(recording, sizes[about], rows[key][0])))
    return found
