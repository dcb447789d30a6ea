"""Does the interval hold its promise, and is the best of k learning rates too good? Writes coverage.json.

    python benchmarks/coverage.py                        # 2,592 sweeps, about ten minutes on one quiet core
    python benchmarks/coverage.py --sweeps 120 --out -   # a look
    python benchmarks/coverage.py --sweeps 0 --repeats 60   # only the best of k, the rest of the file stays
    python benchmarks/coverage.py --fit RESULTS...       # measures the noise of real rows first: writes noise.json

Every synthetic sweep has its own truth: a task of noise.json, whose slope, seed variances, residual and evaluation set
were fitted to real rows, each moved by a random factor (its logarithm has standard deviation JITTER), a random d90, a
shape of the curve and a best eta. One design runs it, trial by trial, and the interval is compared with the true
crossing: the d at which the expected score over all seeds and all examples reaches 0.9 x the expected full score.
"""

import argparse
import json
import math
import time
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np

from distsub.runtime.replay import play
from distsub.search import Board, Search, log_grid, make_policy
from distsub.search.answers import influences
from distsub.search.estimate import fit
from distsub.search.posterior import Noise
from distsub.search.synthetic import Curve
from distsub.trial import Budget, Method, Observation, Seeds, Task, Trial

HERE = Path(__file__).parent
NOISE, OUT = HERE / "noise.json", HERE / "coverage.json"
ETAS, RATES = (0.1, 0.3, 1.0), (1e-5, 2e-5, 5e-5)
DIMS = log_grid(10, 10_000)
DESIGNS = ("bisection", "adaptive", "adaptive, early stops", "grid")
SEEDS = (1, 3, 5)
SHAPES = ("logistic", "gompertz", "early")
JITTER = 0.3


# Sweeps.


def searches(num_seeds: int, etas=ETAS, rates=RATES, dims=DIMS, fraction: float = 0.9) -> list[Search]:
    """Return the searches of one model, task and method."""
    task, budget = Task("synthetic", "synthetic", ("text",)), Budget(steps=100, eval_every=10)
    baseline = tuple(
        Trial("model", task, Method("full"), None, rate, None, Seeds(0, seed, seed), budget)
        for seed in range(num_seeds)
        for rate in rates
    )
    method = Method("did", "fastfood", "global")
    return [
        Search(task, "model", method, Seeds(s, s, s), budget, dims, etas, rates[0], baseline, fraction)
        for s in range(num_seeds)
    ]


def run(curve: Curve, these: list[Search], policy: str):
    """Run all searches, one trial at a time; return findings and rows."""
    if policy == "adaptive, early stops":
        board, ledger = play(these, "adaptive", curve.observe, stopping="futility")
        return board.findings(), ledger.rows
    board, rows = Board(these, make_policy(policy)), []
    while (trial := board.next(frozenset(), 1)) is not None:
        rows.append(curve.observe(trial))
        board.observe(rows[-1])
    return board.findings(), rows


def truth(tasks: dict[str, dict], index: int) -> tuple[str, Curve]:
    """Draw the truth of one sweep."""
    random = np.random.default_rng([7, index])
    name = list(tasks)[index % len(tasks)]
    curve = Curve(**tasks[name], seed=index)
    factor = lambda: math.exp(JITTER * random.standard_normal())  # noqa: E731
    seeds = factor()
    return name, replace(
        curve,
        shape=SHAPES[index // len(tasks) % len(SHAPES)],
        middle=random.uniform(math.log(60), math.log(2500)),
        plateau=curve.floor + (curve.full - curve.floor) * random.uniform(0.94, 1.04),
        slope=curve.slope * factor(),
        projection_sd=curve.projection_sd * seeds,
        head_sd=curve.head_sd * seeds,
        data_sd=curve.data_sd * seeds,
        residual_sd=curve.residual_sd * factor(),
        baseline_sd=curve.baseline_sd * factor(),
        eta_best=math.exp(random.uniform(math.log(0.08), math.log(1.2))),
        eta_drift=random.uniform(-0.1, 0.4),
        eta_penalty=curve.eta_penalty * factor(),
    )


def coverage(tasks: dict[str, dict], count: int) -> dict:
    """Run the sweeps and tell how often the interval holds, by design, seeds, task and shape."""
    records, took = [], []
    for index in range(count):
        name, curve = truth(tasks, index)
        # Every task and shape meets every design and number of seeds.
        block = index // (len(tasks) * len(SHAPES))
        design, num_seeds = DESIGNS[block % len(DESIGNS)], SEEDS[block // len(DESIGNS) % len(SEEDS)]
        dims = log_grid(10, 10_000, 1.5) if design == "grid" else DIMS
        these = searches(num_seeds, dims=dims)
        true = curve.crossing(ETAS, RATES)
        findings, rows = run(curve, these, design)
        began = time.process_time()
        found = fit(these, rows).d_at()
        took.append(time.process_time() - began)
        # As the table of results has it: the median, a search that found nothing at its end of the range.
        ends = {"below_range": dims[0], "above_range": dims[-1]}
        plain = [finding.d or ends.get(finding.outcome.name, math.nan) for finding in findings]
        low, high = found.low or 0.0, found.high or math.inf
        records.append(
            {
                "all": "",
                "design": design,
                "seeds": num_seeds,
                "task": name,
                "shape": curve.shape,
                "slope": "steep" if curve.slope > tasks[name]["slope"] else "flat",
                "held": low <= true <= high,
                "below": true < low,
                "above": true > high,
                "width": found.width,
                "error": math.log((found.d or math.nan) / true),
                "plain": math.log(float(np.median(plain)) / true),
                "trials": len(rows),
                "stopped": sum(row.status == "stopped" for row in rows),
            }
        )
    table = {}
    for key in ("all", "design", "seeds", "task", "shape", "slope"):
        groups = defaultdict(list)
        for record in records:
            groups[f"{key} {record[key]}".strip()].append(record)
        table |= {group: summary(members) for group, members in sorted(groups.items())}
    return {"table": table, "milliseconds_per_estimate": round(1e3 * float(np.median(took)), 1)}


def summary(members: list[dict]) -> dict:
    """Sum up sweeps; errors are in log d, over those with an estimate and a plain d90."""
    both = [m for m in members if math.isfinite(m["error"]) and math.isfinite(m["plain"])]
    of = lambda name: np.array([m[name] for m in both])  # noqa: E731
    return {
        "sweeps": len(members),
        "covered": round(float(np.mean([m["held"] for m in members])), 4),
        "true_below_interval": round(float(np.mean([m["below"] for m in members])), 4),
        "true_above_interval": round(float(np.mean([m["above"] for m in members])), 4),
        "median_width_factor": round(math.exp(float(np.median([m["width"] for m in members]))), 2),
        "estimate_bias": round(float(of("error").mean()), 3),
        "estimate_rms": round(float(np.sqrt((of("error") ** 2).mean())), 3),
        "first_crossing_bias": round(float(of("plain").mean()), 3),
        "first_crossing_rms": round(float(np.sqrt((of("plain") ** 2).mean())), 3),
        "trials": round(float(np.mean([m["trials"] for m in members])), 1),
        "stopped": round(float(np.mean([m["stopped"] for m in members])), 1),
    }


# The best of k.


def best_of_k(tasks: dict[str, dict], count: int) -> dict:
    """Tell the bias where k etas and learning rates are all as good and only luck tells them apart.

    Of the threshold's full score, of the d90 that searches report and of the estimate, without and with confirmation.
    A d90 on a grid lies half a step above the crossing in the mean: `half_a_step`, in log d.
    """
    name = next(iter(tasks))
    table: dict = {"half_a_step": round(math.log(DIMS[-1] / DIMS[0]) / (len(DIMS) - 1) / 2, 3)}
    for k, rates in ((1, 1), (4, 4), (4, 1), (8, 8), (8, 1)):
        etas = tuple(0.1 * 1.3**i for i in range(k))
        learning_rates = tuple(2e-5 * 1.01**i for i in range(rates))
        for confirm in (False, True):
            bars, places, pooled, held, trials = [], [], [], [], 0
            outcomes: Counter[str] = Counter()
            for index in range(count):
                curve = Curve(
                    **(tasks[name] | {"eta_penalty": 0.0, "rate_penalty": 0.0, "middle": math.log(300)}),
                    seed=10**6 + index,
                )
                these = [replace(each, confirm=confirm) for each in searches(3, etas, learning_rates)]
                true = curve.crossing(etas, learning_rates)
                findings, rows = run(curve, these, "bisection")
                trials += len(rows)
                bars.append(findings[0].thresholds.full - curve.expected_full(learning_rates))
                outcomes.update(finding.outcome.name for finding in findings)
                places += [math.log(finding.d / true) for finding in findings if finding.d]
                found = fit(these, rows).d_at()
                pooled.append(math.log(end(found) / true))
                held.append((found.low or 0) <= true <= (found.high or math.inf))
            table[f"{k} etas, {rates} learning rates, {'confirmed' if confirm else 'plain'}"] = {
                "sweeps": count,
                "full_score": round(float(np.mean(bars)), 4),
                "d90": center(places),
                "outcomes": dict(sorted(outcomes.items())),
                "estimate": center(pooled),
                "covered": round(float(np.mean(held)), 3),
                "trials": round(trials / count, 1),
            }
    return table


def end(found) -> float:
    """Return d, or the end of the range beyond which it lies."""
    return found.d or (DIMS[0] if found.outcome.name == "below_range" else DIMS[-1])


def center(errors: list[float]) -> dict:
    """Return the median and mean error in log d; infinite ends are left out of neither."""
    return {"median": round(float(np.median(errors)), 3), "mean": round(float(np.mean(errors)), 3)}


# Noise of real rows.


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
        tasks[f"{task.name}/{model.removeprefix('package:').rstrip('/').rsplit('/', 1)[-1]}/{method.name}"] = fitted(
            these, own
        )
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
    slope, _, low, top, _, residual, shift, baseline = draws.weight @ draws.theta
    handicaps, losses = draws.weight @ draws.handicap, draws.weight @ draws.shortfall * unit
    eta_best, eta_penalty = parabola(np.log(found.etas), handicaps, math.log(found.etas[draws.eta]), 0.3)
    rate_best, rate_penalty = parabola(np.log(found.rates), losses, math.log(found.rates[draws.rate]), 0.01)
    floor = found.chance + unit * low
    full = found.chance + unit * float(draws.weight @ draws.full())
    sds = math.exp(shift) * np.sqrt(vague.shares)
    good = [row for row in rows if row.status == "finished" and row.score > found.chance + 0.6 * unit]
    return {
        "floor": round(floor, 4),
        "full": round(full, 4),
        "plateau": round(floor + math.exp(top) * (full - floor), 4),
        "middle": round(float(draws.weight @ draws.middle + handicaps.min()), 3),
        "slope": round(math.exp(slope), 3),
        "eta_best": round(math.exp(eta_best), 4),
        "eta_penalty": round(eta_penalty, 3),
        "rate_best": float(f"{math.exp(rate_best):.3g}"),
        "rate_penalty": round(rate_penalty, 5),
        "projection_sd": round(sds[0], 3),
        "head_sd": round(sds[1], 3),
        "data_sd": round(sds[2], 3),
        "baseline_sd": round(unit * math.exp(baseline), 5),
        "residual_sd": round(unit * math.exp(residual), 5),
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
    parser.add_argument("--sweeps", type=int, default=2592)
    parser.add_argument("--repeats", type=int, default=150, help="sweeps per line of the table of the best of k")
    parser.add_argument("--fit", nargs="+", metavar="RESULTS", help="measure the noise of these rows first")
    parser.add_argument("--out", default=str(OUT), help="where to write, - for the screen")
    given = parser.parse_args()
    if given.fit:
        NOISE.write_text(json.dumps({"source": "measured", "tasks": measure(given.fit)}, indent=1) + "\n")
        print(NOISE.read_text())
    noise = json.loads(NOISE.read_text())
    began = time.perf_counter()
    result = {
        "command": "python benchmarks/coverage.py"
        + (f" --sweeps {given.sweeps}" if given.sweeps != 2592 else "")
        + (f" --repeats {given.repeats}" if given.repeats != 150 else ""),
        "noise": noise["source"],
        "coverage": coverage(noise["tasks"], given.sweeps) if given.sweeps else {"table": {}},
        "best_of_k": best_of_k(noise["tasks"], given.repeats) if given.repeats else {},
    }
    if not given.sweeps and OUT.exists():
        before = json.loads(OUT.read_text())
        result = before | {"best_of_k": {"command": result["command"], **result["best_of_k"]}}
    if given.sweeps:
        result["seconds"] = round(time.perf_counter() - began)
    text = json.dumps(result, indent=1)
    if given.out != "-":
        Path(given.out).write_text(text + "\n")
    for name, line in result["coverage"]["table"].items():
        print(f"{name:20}", " ".join(f"{key} {value}" for key, value in line.items()))
    print(json.dumps(result["best_of_k"], indent=1), result["seconds"], "s")


if __name__ == "__main__":
    main()
