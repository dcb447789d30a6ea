"""How a results directory of 100,000 rows behaves: bytes, `status`, grouped queries, `compact`.

    python benchmarks/table_scale.py                # a table, and table_scale.json beside this file
    python benchmarks/table_scale.py --keep DIR     # leave the directory there

A grid of 25 d and 4 etas in 1,000 searches (10 tasks, 5 models, SAID and DID, 10 seeds) and their baselines, scores and
408 answers per row drawn from synthetic curves. Most rows are written as parts at once, as `distsub compact` writes
them; the last of them as the row files that trials leave, to be merged. Every command is a process of its own: wall
time is what a person waits, CPU time is what it takes when other work keeps the machine busy.
"""

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from distsub.config import parse_sweep
from distsub.config.sweep import Sweep
from distsub.paths import ROWS
from distsub.records import Observation, Trial
from distsub.results.compact import ROWS_PER_PART, write_parts
from distsub.results.rows import encode
from distsub.results.schema import OBSERVATIONS, to_table
from distsub.results.store import Store
from distsub.search.synthetic import Curve

SWEEP = """\
name = "scale"
models = ["org/model-a", "org/model-b", "org/model-c", "org/model-d", "org/model-e"]
tasks = ["mrpc", "cola", "rte", "sst2", "qnli", "mnli", "qqp", "stsb", "wnli", "rotten_tomatoes"]
methods = ["said", "did"]
seeds = 10
policy = "grid"
dims = { low = 100, high = 100000, ratio = 1.33 }

[search]
etas = [0.1, 0.3, 1.0, 3.0]
learning_rate = 2e-5

[baseline]
learning_rates = [1e-5, 2e-5, 4e-5]

[budget]
steps = 1000
"""
EXAMPLES = 408
GROUPED = "select task, method, d, max(score) best, count(*) n from observations group by all order by all"
SEARCHED = "select method, median(first_passing_d) from searches group by all"
ANSWERS = "select method, avg(len(list_filter(correct, lambda x: x))) from observations where d < 1000 group by all"


def rows(trials: list[Trial], curve: Curve, draw: np.random.Generator) -> pa.Table:
    """Make the rows of trials that differ in d, eta and seeds only, with every column filled as in a real one."""
    n, first = len(trials), trials[0]
    target = np.arange(EXAMPLES) % 3 == 0
    level = [curve.score(t.d, t.eta, t.seeds) if t.d and t.eta else curve.full for t in trials]
    correct = draw.random((n, EXAMPLES)) < np.array(level)[:, None]
    score = correct.mean(axis=1)
    answers = {"predicted": np.where(correct, target, ~target), "target": np.broadcast_to(target, correct.shape)}
    made = {
        "trial_id": [trial.id for trial in trials],
        "setup_id": [trial.setup.id for trial in trials],
        "setup": [trial.setup.identity for trial in trials],
        "d": [trial.d for trial in trials],
        "eta": [trial.eta for trial in trials],
        "learning_rate": [trial.learning_rate for trial in trials],
        "projection_seed": [trial.seeds.projection for trial in trials],
        "head_seed": [trial.seeds.head for trial in trials],
        "data_seed": [trial.seeds.data for trial in trials],
        "score": score,
        "wall_s": draw.uniform(60, 90, n),
        "metrics": [[("accuracy", value)] for value in score],
        "curve": [[{"step": step, "score": value} for step in range(100, 1001, 100)] for value in score],
        "correct": list(correct),
        **{name: list(values.astype(np.float32)) for name, values in answers.items()},
    }
    template = to_table(
        Observation(
            first,
            "finished",
            score=0.5,
            chance=curve.floor,
            steps=1000,
            num_tokens=1_600_000,
            eval_s=3.0,
            peak_bytes=3 << 30,
            num_params=22_713_216,
            num_trained=first.d or 22_713_216,
            provenance=(("torch", "2.13.0"), ("python", "3.11.9"), ("weights", "0" * 64), ("rows", "1" * 64)),
        )
    )
    columns = [
        pa.array(made[field.name], field.type) if field.name in made else pa.repeat(template[field.name][0], n)
        for field in OBSERVATIONS
    ]
    return pa.Table.from_arrays(columns, schema=OBSERVATIONS)


def batches(sweep: Sweep) -> Iterator[pa.Table]:
    """Yield the rows of each search, and of each baseline once."""
    draw, seen = np.random.default_rng(0), set()
    for index, search in enumerate(sweep.searches()):
        curve = Curve(seed=index % 10, middle=5.0 + 0.2 * (index % 7))
        if search.reference_ids not in seen:
            seen.add(search.reference_ids)
            yield rows(list(search.baseline), curve, draw)
        yield rows([trial for d in search.dims for trial in search.trials_at(d)], curve, draw)


def fill(store: Store, sweep: Sweep, loose: int) -> int:
    """Write everything, the last rows as row files; give the number of rows."""
    total, waiting = 0, []
    for batch in batches(sweep):
        waiting.append(batch)
        total += batch.num_rows
        if sum(table.num_rows for table in waiting) >= ROWS_PER_PART + loose:
            table = pa.concat_tables(waiting).combine_chunks()
            write_parts(store, table.slice(0, ROWS_PER_PART), ROWS_PER_PART)
            waiting = [table.slice(ROWS_PER_PART)]
    table = pa.concat_tables(waiting).combine_chunks()
    write_parts(store, table.slice(0, table.num_rows - loose), ROWS_PER_PART)
    folder = Path(store.files.root, ROWS)
    for position in range(table.num_rows - loose, table.num_rows):
        row = table.slice(position, 1)
        (folder / f"{row['trial_id'][0].as_py()}.parquet").write_bytes(encode(row))
    return total


def measure(*arguments: str) -> dict[str, float]:
    """Run one command; give seconds on the clock and of the processor."""
    began = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", "distsub.cli", *arguments], stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    wall = time.monotonic() - began
    if status:
        raise SystemExit(f"{arguments} ended with {os.waitstatus_to_exitcode(status)}")
    cpu = used.ru_utime + used.ru_stime
    return {"wall_s": round(wall, 2), "cpu_s": round(cpu, 2)}


def size(folder: str) -> dict[str, int]:
    """Count files and their bytes."""
    files = [path for path in Path(folder).rglob("*") if path.is_file() and path.suffix == ".parquet"]
    return {"files": len(files), "bytes": sum(path.stat().st_size for path in files)}


def main() -> None:
    """Make the directory, measure, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loose", type=int, default=2000, help="rows that lie in files of their own at first")
    parser.add_argument("--keep", help="where to leave the directory")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ds-") as scratch:
        out = options.keep or f"{scratch}/out"
        sweep = parse_sweep(SWEEP, Path("."), "the benchmark's sweep")
        store = Store.create(out, SWEEP, sweep.fingerprint)
        began = time.process_time()
        total = fill(store, sweep, options.loose)
        result: dict[str, Any] = {
            "date": datetime.date.today().isoformat(),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "load": [round(value, 1) for value in os.getloadavg()],
            "versions": {name: version(name) for name in ("pyarrow", "duckdb")},
            "rows": total,
            "searches": len(sweep.searches()),
            "fill_cpu_s": round(time.process_time() - began, 1),
            "before": size(out) | {"row_files": options.loose},
            "status, before": measure("status", out),
            "compact": measure("compact", out),
            "after": size(out),
            "compact again": measure("compact", out),
            "status": measure("status", out),
            "query, grouped": measure("query", out, GROUPED),
            "query, answers": measure("query", out, ANSWERS),
            "query, searches": measure("query", out, SEARCHED),
            "nothing (--help)": measure("--help"),
        }
    text = json.dumps(result, indent=1)
    options.out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
