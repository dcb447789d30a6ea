"""What 999 searches take on 256 slots: 333 models of the benchmark of policies, three seeds each, on a virtual clock.

    python benchmarks/at_scale.py            # at_scale.json beside this file; minutes on one core

A training takes one unit of time, so that `rounds` times the seconds of a measured training is what the sweep takes.
"""

import argparse
import datetime
import json
import os
import platform
from pathlib import Path

from policies import Truth, measure, models


def main() -> None:
    """Simulate and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--models", type=int, default=333)
    parser.add_argument("--slots", type=int, nargs="+", default=[64, 256, 1024])
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    drawn = models(options.models)
    found = []
    for slots in options.slots:
        measured, _ = measure(drawn, Truth(drawn), "bisection", slots)
        measured["driver_cpu_ms_per_trial"] = round(
            1000 * measured.pop("cpu_seconds") / (measured["trainings"] * measured["searches"]), 2
        )
        found.append({"slots": slots, **measured})
        print(found[-1], flush=True)
    result = {
        "command": "python benchmarks/at_scale.py",
        "policy": "bisection",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "found": found,
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
