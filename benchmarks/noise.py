"""Measures the noise of real rows, in the words of the synthetic curve; writes noise.json.

    python benchmarks/noise.py RESULTS...

What it finds is the world "noise of SST-2" of benchmarks/coverage.py, and what the estimate's prior was set by.
"""

import argparse
import json
import math
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np

from distsub.estimate.curves import BASELINE, FLOOR, MIDDLE, PENALTY, RESIDUAL, SHIFT, SLOPE, TILT, TOP, Noise
from distsub.estimate.d90 import fit
from distsub.metrics import influences
from distsub.records import Observation, label
from distsub.search import Search
from distsub.search.synthetic import Curve

OUT = Path(__file__).with_name("noise.json")


def measure(directories: list[str]) -> dict:
    """Fit the synthetic curve to the rows of each task, pooled over directories."""
    from distsub.config import parse_sweep
    from distsub.results import Store

    groups = defaultdict(lambda: ([], []))
    for directory in directories:
        store = Store.open(directory)
        sweep = parse_sweep(store.sweep_text, store.directory)
        rows = store.read()
        for search in sweep.searches():
            key = (search.task, search.model, search.method)
            groups[key][0].append(search)
            groups[key][1].extend(rows)
    tasks = {}
    for (task, model, method), (these, rows) in sorted(groups.items(), key=str):
        own = [row for row in rows if (row.trial.task, row.trial.model) == (task, model)]
        own = [row for row in own if row.trial.is_baseline or row.trial.method == method]
        tasks[f"{task.name}/{model.short_name}/{label(method)}"] = fitted(these, own)
    return tasks


def fitted(these: list[Search], rows: list[Observation]) -> dict:
    """Return the fields of the synthetic curve that looks like these rows."""
    # Vague where the rows can speak, so that the numbers are theirs and not the prior's.
    vague = replace(Noise(), residual=(math.log(0.04), 1.0), shift=(math.log(0.3), 1.0), baseline=(math.log(0.05), 1.0))
    vague = replace(vague, slope=(0.0, 1.0), top=(-0.05, 0.4))
    found = fit(these, rows, vague)
    if found.draws is None:
        raise SystemExit(f"no fit for {these[0].name}: {found.d_at().text}; give other results")
    print(these[0].name, found.d_at().text, *found.d_at().warnings, sep="\n    ")
    draws, unit = found.draws, found.unit
    mean = draws.weight @ draws.theta
    away = mean[TILT] / (2 * math.exp(mean[PENALTY]))  # of the reference from the best eta, in log eta
    reference = found.etas[int(np.argmin(np.abs(draws.handicaps.etas)))]
    losses = draws.weight @ draws.shortfall * unit
    rate_best, rate_penalty = parabola(np.log(found.rates), losses, math.log(found.rates[draws.rate]), 0.01)
    floor = found.chance + unit * mean[FLOOR]
    full = found.chance + unit * float(draws.weight @ draws.full())
    sds = math.exp(mean[SHIFT]) * np.sqrt(vague.shares)
    good = [row for row in rows if row.status == "finished" and row.score > found.chance + 0.6 * unit]
    return {
        "floor": round(floor, 4),
        "full": round(full, 4),
        "plateau": round(floor + math.exp(mean[TOP]) * (full - floor), 4),
        "middle": round(float(mean[MIDDLE] - math.exp(mean[PENALTY]) * away**2), 3),
        "slope": round(math.exp(mean[SLOPE]), 3),
        "eta_best": round(reference * math.exp(-away), 4),
        "eta_penalty": round(math.exp(mean[PENALTY]), 3),
        "rate_best": float(f"{math.exp(rate_best):.3g}"),
        "rate_penalty": round(rate_penalty, 5),
        "projection_sd": round(sds[0], 3),
        "head_sd": round(sds[1], 3),
        "data_sd": round(sds[2], 3),
        "baseline_sd": round(unit * math.exp(mean[BASELINE]), 5),
        "residual_sd": round(unit * math.exp(mean[RESIDUAL]), 5),
        "num_examples": len(good[0].predicted) if good else 400,
        "agreement": round(agreement(good), 3),
    }


def parabola(x: np.ndarray, loss: np.ndarray, best: float, penalty: float) -> tuple[float, float]:
    """Return place and curvature of the smallest loss; the given ones where there are too few points."""
    if len(x) < 3:
        return best, penalty
    a, b, _ = np.polyfit(x, loss, 2)
    if a <= 0:
        return best, penalty
    return float(np.clip(-b / (2 * a), x.min() - 1, x.max() + 1)), float(a)


def agreement(rows: list[Observation]) -> float:
    """Return the correlation of latent answers that gives the mean correlation of the answers themselves."""
    from scipy.special import ndtr, ndtri

    told = [each for row in rows if (each := influences(row)) is not None and each.std() > 0]
    told = [each for each in told if len(each) == len(told[0])]
    if len(told) < 2:
        return Curve.agreement
    matrix = np.stack([each / each.std() for each in told])
    n = len(matrix)
    target = (float((matrix.sum(0) ** 2).mean()) - n) / (n * (n - 1))
    p = float(np.mean([row.score for row in rows]))
    nodes, weights = np.polynomial.hermite_e.hermegauss(41)
    weights = weights / weights.sum()

    def phi(share: float) -> float:
        right = ndtr((ndtri(p) - math.sqrt(share) * nodes) / math.sqrt(1 - share))
        return float((weights @ right**2 - p**2) / (p * (1 - p)))

    low, high = 0.0, 0.999
    for _ in range(40):
        share = (low + high) / 2
        low, high = (share, high) if phi(share) < target else (low, share)
    return share


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", nargs="+", help="directories of sweeps that were run")
    given = parser.parse_args()
    OUT.write_text(json.dumps({"source": "measured", "tasks": measure(given.results)}, indent=1) + "\n")
    print(OUT.read_text())


if __name__ == "__main__":
    main()
