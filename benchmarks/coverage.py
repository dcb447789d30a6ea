"""Does the interval hold its promise, in worlds that are not the estimator's own too? Writes coverage.json.

    python benchmarks/coverage.py                       # 300 sweeps in every world, 20 minutes of one core
    python benchmarks/coverage.py --sweeps 30 --out -   # a look
    python benchmarks/coverage.py --world kink --world stairs   # these only; the other rows of the file stay
    python benchmarks/coverage.py --table               # the file as docs/intervals.md shows it
    python benchmarks/coverage.py --value --out -       # for a score to reach (0.9 x the true one), without baselines

A world says how sweeps come about: the shape of the curve, which trainings fail, how many rows are evaluated, what
was run. Every sweep of a world draws its own truth (full score, plateau, slope, place, best eta, all sources of noise),
its trials are run one by one, and the interval is compared with the true crossing: the d at which the mean score of
trainings that do not fail, over all seeds and all examples, reaches 0.9 x that of full fine-tuning.
"""

import argparse
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distsub.estimate.d90 import fit
from distsub.records import Budget, Full, Model, Random, Seeds, Setup, Subspace, Task, Trial
from distsub.search import Rule, Search, TrialQueue, log_grid, make_policy
from distsub.search.rule import D90_RULE
from distsub.search.synthetic import Curve

OUT = Path(__file__).with_name("coverage.json")
ETAS, RATES = (0.1, 0.3, 1.0), (1e-5, 2e-5, 5e-5)
DIMS = log_grid(10, 10_000)
COARSE = log_grid(10, 10_000, 1.5)
BLOCK = 100
EQUAL_ETAS, EQUAL_RATES = tuple(0.1 * 1.3**i for i in range(8)), tuple(2e-5 * 1.01**i for i in range(8))

Change = Callable[[np.random.Generator], dict[str, Any]]


@dataclass(frozen=True)
class World:
    """How sweeps come about.

    Attributes:
        change: Draws what differs from the control world's curve.
        seeds: Triples of seeds, of the subspace trials and of full fine-tuning.
        etas: The grid of eta.
        rates: Learning rates of full fine-tuning.
        policy: "bisection" on a fine grid of d, or "grid": everything, on a coarse one.
    """

    change: Change = lambda random: {}
    seeds: int = 3
    etas: tuple[float, ...] = ETAS
    rates: tuple[float, ...] = RATES
    policy: str = "bisection"


def constant(**fields: Any) -> Change:
    """Return a change that is the same in every sweep."""
    return lambda random: fields


def factor(random: np.random.Generator, size: float = 0.3) -> float:
    """Draw a factor around 1, its logarithm with this standard deviation."""
    return math.exp(size * random.standard_normal())


def mixture(random: np.random.Generator) -> dict[str, Any]:
    """Draw a bit of everything."""
    shapes = ("logistic", "gompertz", "early", "linear", "kink", "stairs", "double")
    failures = (0.0, 0.0, 0.05, 0.1)
    return {
        "shape": str(random.choice(shapes)),
        "full_failures": float(random.choice(failures)),
        "subspace_failures": float(random.choice(failures)),
        "eta_drift": random.uniform(-0.1, 0.3),
        "num_examples": int(random.choice((100, 277, 408, 872, 2000))),
        "residual_growth": random.uniform(0.0, 0.4),
        "floor": float(random.choice((0.5, 0.5, 0.53, 0.68))),
    }


MRPC = {"floor": 0.684, "full": 0.84, "slope": 1.0, "residual_sd": 0.006, "baseline_sd": 0.008}
SST2 = {"floor": 0.494, "full": 0.7765, "plateau": 0.7363, "slope": 1.38, "residual_sd": 0.0052, "num_examples": 872}
DRIFT: Change = lambda random: {"eta_drift": random.uniform(0.2, 0.4)}  # noqa: E731

WORLDS = {
    "control": World(),
    "control, 1 seed": World(seeds=1),
    "control, 5 seeds": World(seeds=5),
    "control, exhaustive grid": World(policy="grid"),
    "flat curve": World(constant(slope=0.9)),
    "steep curve": World(constant(slope=4.0)),
    "noise of SST-2, as measured": World(constant(**SST2, agreement=0.81)),
    "noise of MRPC, assumed": World(constant(**MRPC)),
    "fast start, slow end (Gompertz)": World(constant(shape="gompertz")),
    "slow start, fast end": World(constant(shape="early")),
    "logistic in d": World(constant(shape="linear", slope=1.0)),
    "kink": World(constant(shape="kink")),
    "stairs": World(constant(shape="stairs")),
    "two rises": World(constant(shape="double")),
    "plateau 2% over the threshold": World(constant(full=0.88, plateau=0.9 * 0.88 * 1.02)),
    "plateau 2% under the threshold": World(constant(full=0.88, plateau=0.9 * 0.88 * 0.98)),
    "noise grows with d": World(constant(residual_sd=0.015, residual_growth=0.5)),
    "100 evaluation rows": World(constant(num_examples=100)),
    "5% of full fine-tunings fail": World(constant(full_failures=0.05)),
    "10% of full fine-tunings fail": World(constant(full_failures=0.1)),
    "20% of full fine-tunings fail": World(constant(full_failures=0.2)),
    "10% of full fine-tunings fail, one learning rate": World(constant(full_failures=0.1), rates=(2e-5,)),
    "10% of the seeds fail in full fine-tuning": World(constant(seed_failures=0.1)),
    "5% of subspace trainings fail": World(constant(subspace_failures=0.05)),
    "10% of subspace trainings fail": World(constant(subspace_failures=0.1)),
    "20% of subspace trainings fail": World(constant(subspace_failures=0.2)),
    "10% of both fail": World(constant(full_failures=0.1, subspace_failures=0.1)),
    "best eta drifts with d": World(DRIFT),
    "best eta drifts with d, exhaustive grid, 8 seeds": World(DRIFT, seeds=8, policy="grid"),
    "large etas learn nothing": World(constant(eta_cliff=0.5)),
    "large etas diverge": World(constant(eta_limit=0.5)),
    "small d diverge at every eta": World(constant(eta_limit=0.6, limit_growth=1.0)),
    "8 equal etas, 8 equal learning rates": World(
        constant(eta_penalty=0.0, rate_penalty=0.0), etas=EQUAL_ETAS, rates=EQUAL_RATES
    ),
    "8 equal etas, one learning rate": World(
        constant(eta_penalty=0.0, rate_penalty=0.0), etas=EQUAL_ETAS, rates=(2e-5,)
    ),
    "mixture": World(mixture),
}


def truth(world: World, index: int) -> Curve:
    """Draw the truth of one sweep: the same for all worlds but for what the world changes."""
    random = np.random.default_rng([11, index])
    full, seeds = random.uniform(0.82, 0.92), factor(random)
    curve = {
        "floor": 0.5,
        "full": full,
        "middle": random.uniform(math.log(60), math.log(2500)),
        "slope": 1.8,
        "projection_sd": 0.2 * seeds,
        "head_sd": 0.15 * seeds,
        "data_sd": 0.15 * seeds,
        "residual_sd": 0.008,
        "baseline_sd": 0.012,
        "eta_best": math.exp(random.uniform(math.log(0.08), math.log(1.2))),
        "eta_penalty": 0.3 * factor(random),
        "rate_best": math.exp(random.uniform(math.log(1e-5), math.log(5e-5))),
        "num_examples": 408,
    }
    reach, *factors = random.uniform(0.96, 1.03), factor(random), factor(random), factor(random)
    curve |= world.change(np.random.default_rng([12, index]))
    for name, by in zip(("slope", "residual_sd", "baseline_sd"), factors, strict=True):
        curve[name] *= by
    curve.setdefault("plateau", curve["floor"] + (curve["full"] - curve["floor"]) * reach)
    return Curve(seed=index, **curve)


def searches(world: World, num_examples: int, rule: Rule = D90_RULE) -> list[Search]:
    """Return the searches of one model, task and method; without a baseline where the rule is a value."""
    task, budget = Task("synthetic", "synthetic", ("text",)), Budget(steps=100, eval_examples=num_examples)
    baseline = tuple(
        Trial(Setup(Model("model"), task, Full(), rate, budget, Seeds(0, seed, seed)))
        for seed in range(world.seeds)
        for rate in world.rates
        if rule.value is None
    )
    method = Subspace(Random("fastfood"))
    dims = COARSE if world.policy == "grid" else DIMS
    return [
        Search(
            Setup(Model("model"), task, method, world.rates[0], budget, Seeds(s, s, s)),
            dims,
            world.etas,
            baseline,
            rule,
        )
        for s in range(world.seeds)
    ]


def sweep(world: World, index: int, for_value: bool = False) -> dict[str, Any]:
    """Run one sweep and compare; every other one keeps the answers to single examples."""
    curve = truth(world, index)
    rule = Rule(None, 0.9 * curve.expected_full(world.rates)) if for_value else D90_RULE
    these = searches(world, curve.num_examples, rule)
    smallest, largest = these[0].dims[0], these[0].dims[-1]
    true = curve.crossing(world.etas, world.rates, rule=rule)
    queue, rows = TrialQueue(these, make_policy(world.policy)), []
    while (trial := queue.next(frozenset(), 1)) is not None:
        rows.append(curve.observe(trial, arrays=index % 2 == 0))
        queue.observe(rows[-1])
    began = time.process_time()
    fitted = fit(these, rows)
    found = fitted.d_at()
    took = time.process_time() - began
    low, high = found.low or 0.0, found.high or math.inf
    ends = {"below_range": smallest, "above_range": largest}
    firsts = [finding.d or ends.get(finding.outcome.name, math.nan) for finding in queue.findings()]
    inside = min(max(true, smallest), largest)
    error = lambda d: math.log(min(max(d, smallest), largest) / inside)  # noqa: E731
    return {
        "held": low <= true <= high,
        "below": true < low,
        "above": true > high,
        "width": found.width,
        "error": error(found.d or ends.get(found.outcome.name, math.nan)),
        "first": error(float(np.median(firsts))),
        "trials": len(rows),
        "full": (found.full[0] if found.full else math.nan) - curve.expected_full(world.rates),
        "effective": getattr(fitted, "effective_draws", math.nan),
        "seconds": took,
    }


def summary(members: list[dict[str, Any]]) -> dict[str, Any]:
    """Sum up sweeps. Errors are in log d, cut at the range; rms of both over the sweeps where both are numbers."""
    both = [m for m in members if math.isfinite(m["error"]) and math.isfinite(m["first"])]
    of = lambda name, rows: np.array([m[name] for m in rows], dtype=float)  # noqa: E731
    rms = lambda name, rows: round(float(np.sqrt((of(name, rows) ** 2).mean())), 3)  # noqa: E731
    told = [m for m in members if math.isfinite(m["error"])]
    return {
        "sweeps": len(members),
        "covered": round(float(of("held", members).mean()), 4),
        "true_below_interval": round(float(of("below", members).mean()), 4),
        "true_above_interval": round(float(of("above", members).mean()), 4),
        "median_width_factor": round(math.exp(min(float(np.median(of("width", members))), 99.0)), 2),
        "estimate_bias": round(float(of("error", told).mean()), 3),
        "estimate_rms": rms("error", told),
        "without_estimate": len(members) - len(told),
        "estimate_rms_where_both": rms("error", both),
        "first_passing_d_rms": rms("first", both),
        "without_first_passing_d": sum(not math.isfinite(m["first"]) for m in members),
        "full_bias": None if np.isnan(of("full", members)).all() else round(float(np.nanmean(of("full", members))), 4),
        "trials": round(float(of("trials", members).mean()), 1),
        "effective_draws_least": round(float(of("effective", members).min()), 0),
        "milliseconds_median": round(1e3 * float(np.median(of("seconds", members))), 1),
        "milliseconds_most": round(1e3 * float(of("seconds", members).max()), 1),
    }


def table(worlds: dict[str, dict[str, Any]]) -> str:
    """Return the worlds as a Markdown table."""
    lines = [
        "| world | sweeps | covers | truth below / above | width | bias | rms | rms of first passing d |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, line in worlds.items():
        sides = f"{line['true_below_interval']:.1%} / {line['true_above_interval']:.1%}"
        lines.append(
            f"| {name} | {line['sweeps']} | {line['covered']:.1%} | {sides} | {line['median_width_factor']:.1f} |"
            f" {line['estimate_bias']:+.2f} | {line['estimate_rms']:.2f} | {line['first_passing_d_rms']:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sweeps", type=int, default=300, help="in every world")
    parser.add_argument("--world", action="append", choices=[*WORLDS], help="only these")
    parser.add_argument("--out", default=str(OUT), help="where to write, - for the screen")
    parser.add_argument("--table", action="store_true", help="run nothing, print what was measured")
    parser.add_argument("--value", action="store_true", help="ask for a score and train no baseline; --out must be -")
    given = parser.parse_args()
    if given.value and given.out != "-":
        parser.error("--value: the file is of d90; give --out -")
    if given.table:
        print(table(json.loads(OUT.read_text())["worlds"]))
        return
    kept = json.loads(OUT.read_text()).get("worlds", {}) if OUT.exists() and given.world else {}
    records: dict[str, list[dict[str, Any]]] = {name: [] for name in given.world or WORLDS}
    # By blocks over all worlds: whoever stops it early has fewer sweeps in every world.
    for start in range(0, given.sweeps, BLOCK):
        for name, members in records.items():
            members += [
                sweep(WORLDS[name], index, given.value) for index in range(start, min(start + BLOCK, given.sweeps))
            ]
            kept[name] = summary(members)
            print(f"{name:50}", " ".join(f"{key} {value}" for key, value in kept[name].items()), flush=True)
            if given.out != "-":
                ordered = {each: kept[each] for each in WORLDS if each in kept}
                text = json.dumps({"command": "python benchmarks/coverage.py", "worlds": ordered}, indent=1)
                Path(given.out).write_text(text + "\n")


if __name__ == "__main__":
    main()
