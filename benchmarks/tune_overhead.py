"""What Tune, the searcher, the queue, the store and the reporter add to a trial that itself takes no time.

    python benchmarks/tune_overhead.py --trials 1000 --slots 2 --out benchmarks/tune_overhead.json
    python benchmarks/tune_overhead.py --trials 5000 1000 --slots 2 --out benchmarks/driver_scale.json

Everything is the real thing, on a Ray cluster of its own, but for the training: in its place stands a function that
writes a row of made-up scores through the real store. Wall time on a busy machine says little; the processor time of
the driver stands beside it. Several numbers of trials run one after the other, each in a process of its own.
"""

import argparse
import contextlib
import cProfile
import json
import math
import os
import platform
import pstats
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from distsub.config.sweep import Resources
from distsub.records import Budget, Full, Model, Observation, Random, Seeds, Setup, Subspace, Task, Trial
from distsub.results import Store
from distsub.runtime import tune
from distsub.runtime.drain import Drain
from distsub.runtime.progress import Reporter
from distsub.runtime.trainable import TrainTrial
from distsub.runtime.worker import WorkerConfig
from distsub.search import Search, TrialQueue, log_grid, make_policy

BUDGET = Budget(steps=10, eval_every=5)
ETAS = (0.3, 1.0)
DIMS = log_grid(100, 100_000, 10 ** (3 / 24))


def searches(trials: int) -> tuple[Search, ...]:
    """Return searches whose grids come to about so many trials."""
    task = Task(name="nothing", source="nowhere", text=("a",))
    baseline = (Trial(Setup(Model("nobody"), task, Full(), 1e-05, BUDGET, Seeds())),)
    method = Subspace(Random("fastfood", block_length=1 << 17))
    seeds = range(max(1, round(trials / (len(DIMS) * len(ETAS)))))
    return tuple(
        Search(Setup(Model("nobody"), task, method, 1e-05, BUDGET, Seeds(s, s, s)), DIMS, ETAS, baseline) for s in seeds
    )


def made_up(trial: Trial, config: WorkerConfig) -> Observation:
    """Write a row at once, instead of `worker.perform`."""
    store = Store.open(config.out)
    score = 0.9 if trial.d is None else 0.5 + 0.4 / (1 + math.exp(-(math.log(trial.d) - 8)))
    answers = tuple(float(i % 2) for i in range(400))
    row = Observation(
        trial,
        "finished",
        score=score,
        chance=0.5,
        curve=((5, score), (10, score)),
        predicted=answers,
        target=answers,
        steps=10,
    )
    store.write(row)
    return row


class NoTraining(TrainTrial):
    """The real trainable, without the training."""

    def _train(self, report):
        return made_up(self._trial, self._own)


def resident_mb() -> float:
    """Return the driver's resident set."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def alone(trials: int, slots: int) -> dict:
    """Measure in a process of its own, so that memory starts anew."""
    command = [sys.executable, __file__, "--trials", str(trials), "--slots", str(slots)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    """Run it and write what it took."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--trials", type=int, nargs="+", default=[1000])
    parser.add_argument("--slots", type=int, default=2)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    if len(options.trials) > 1:
        reports = [alone(trials, options.slots) for trials in options.trials]
        print(json.dumps(reports, indent=1))
        if options.out:
            options.out.write_text(json.dumps(reports, indent=1) + "\n")
        return
    [trials] = options.trials
    tune.TrainTrial = NoTraining  # type: ignore[misc]
    with tempfile.TemporaryDirectory(prefix="ds-", dir="/tmp") as folder:
        store = Store.create(f"{folder}/out", "name = 'nothing'", "0" * 16)
        queue = TrialQueue(searches(trials), make_policy("grid"))
        resources = Resources(max_concurrent_trials=options.slots, cpus_per_trial=1.0)
        marks: list[tuple[float, float, float]] = []

        class Marking(Reporter):
            def ended(self, observation):
                super().ended(observation)
                marks.append((time.perf_counter(), time.process_time(), resident_mb()))

        config = WorkerConfig(store.uri)
        profile = cProfile.Profile()
        with open(os.devnull, "w") as sink, contextlib.redirect_stdout(sink), Drain() as drain, Marking(queue) as told:
            if options.profile:
                profile.enable()
            tune.run(queue, store, config, told, drain, resources)
            profile.disable()
        assert queue.finished and {row.status for row in store.read()} == {"finished"}, store.read()[0].error
    if options.profile:
        pstats.Stats(profile).sort_stats("cumulative").print_stats(60)
    skip = len(marks) // 10  # while processes start
    (began, cpu_began, mb_began), (ended, cpu_ended, mb_ended) = marks[skip], marks[-1]
    count = len(marks) - 1 - skip
    report = {
        "command": f"python benchmarks/tune_overhead.py --trials {trials} --slots {options.slots}",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
        "trials": len(marks),
        "slots": options.slots,
        "wall_ms_per_trial": round(1000 * (ended - began) / count, 1),
        "driver_cpu_ms_per_trial": round(1000 * (cpu_ended - cpu_began) / count, 1),
        "slot_ms_per_trial": round(1000 * options.slots * (ended - began) / count, 1),
        "driver_mb_begin": round(mb_began),
        "driver_mb_end": round(mb_ended),
        "driver_kb_per_trial": round(1024 * (mb_ended - mb_began) / count, 1),
    }
    print(json.dumps(report, indent=1))
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
