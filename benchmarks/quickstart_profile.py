"""Where the wall time of the quickstart goes: imports and checks, trainings and their evaluations, end.

    python benchmarks/quickstart_profile.py                           # writes quickstart_profile.json beside this file
    python benchmarks/quickstart_profile.py --distsub OTHER/bin/distsub --sweep OTHER.toml --out other.json

It runs the command in a process of its own, with a cache of its own, on Ray, as `make quickstart` does, notes when each
line is printed, and reads the rows. Needs a quiet machine; the load is noted.
"""

import argparse
import datetime
import json
import os
import re
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from step_cost import cpu_name

ROWS = "select method, d, wall_s, eval_s from observations"
RUNS = re.compile(r"^\[ *\d")
"""Lines of a run, that is after the imports and the checks, begin with its seconds."""


def run(command: str, sweep: Path) -> dict[str, Any]:
    """Run the sweep in an empty directory; give seconds by what they went to."""
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"DISTSUB_CACHE": f"{folder}/cache"}
        begun = time.perf_counter()
        process = subprocess.Popen(
            [command, "run", str(sweep), "--out", f"{folder}/out", "--plain"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )
        assert process.stdout is not None, "a pipe"
        lines = [(time.perf_counter() - begun, line) for line in process.stdout]
        total = time.perf_counter() - begun
        if process.wait():
            raise SystemExit("".join(line for _, line in lines[-5:]))
        query = [command, "query", f"{folder}/out", ROWS, "--format", "json"]
        rows = json.loads(subprocess.run(query, check=True, stdout=subprocess.PIPE, env=environment).stdout)
    first = next(at for at, line in lines if RUNS.search(line))
    last = max(at for at, line in lines if "finished" in line)
    full, held = ([row for row in rows if (row["d"] is None) == is_full] for is_full in (True, False))
    trained = sum(row["wall_s"] for row in rows)
    return {
        "wall_s": round(total, 1),
        "before_run_s": round(first, 1),
        "after_last_s": round(total - last, 1),
        "trainings": len(rows),
        "training_s": round(trained, 1),
        "evaluation_s": round(sum(row["eval_s"] or 0.0 for row in rows), 1),
        "full_s_each": round(sum(row["wall_s"] for row in full) / len(full), 2),
        "subspace_s_each": round(sum(row["wall_s"] for row in held) / len(held), 2),
        "slots_busy": round(trained / (last - first) / (os.cpu_count() or 1), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    root = Path(__file__).parent.parent
    parser.add_argument("--distsub", default="distsub", help="the command to run")
    parser.add_argument("--sweep", type=Path, default=root / "sweeps" / "quickstart.toml")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    found = run(options.distsub, options.sweep)
    found |= {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "load_average": [round(each, 1) for each in os.getloadavg()],
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
    options.out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
