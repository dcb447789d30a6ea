"""What the policies cost and how right they are, on synthetic sweeps and on recorded ones; writes policies.json.

    python benchmarks/policies.py                         # all of it, some minutes on one core
    python benchmarks/policies.py --models 3 --out -      # a look
    python benchmarks/policies.py --recorded RESULTS      # adds a replay of a results directory

Every synthetic model has its own full score, chance level, curve shape, slope, best eta, evaluation size and d90, drawn
over the whole published grid of 64 d; each is measured under 3 seed triples with 4 etas and 4 baseline rates, and all
policies see the very same trials. A training takes one unit of time, so that `rounds` is what all searches together
take on so many slots, full fine-tuning included. `trainings` counts those of subspaces per search, cancelled ones too.
"""

import argparse
import json
import math
import platform
import random
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np

from distsub.records import Budget, Full, Model, Observation, Random, Seeds, Setup, Subspace, Task, Trial
from distsub.runtime.replay import play, replay
from distsub.runtime.simulated import Machines
from distsub.search import Finding, Outcome, Search, log_grid
from distsub.search.synthetic import Curve

DIMS = log_grid(100, 1_000_000)
ETAS = (0.03, 0.1, 0.3, 1.0)
RATES = (1e-5, 2e-5, 5e-5, 1e-4)
STEPS = 1000
SEEDS = 3
SLOTS = (1, 16, 64, 256)
DRAW = 2
"""The steps of a search were chosen on draw 1, so they are judged on another."""

CONTROL = Curve(
    floor=0.5, plateau=0.85, full=0.85, middle=math.log(3000), eta_best=0.2, num_examples=408, seconds_per_step=0.001
)
"""The control world: logistic in log d, every source of noise as measured on small tasks, nothing fails."""


def searches_of(curve: Curve, name: str) -> list[Search]:
    """Return the searches of one model, which differ in seeds."""
    task = Task(name=name, source="synthetic", text=("text",))
    budget = Budget(steps=STEPS, eval_every=STEPS // 10, eval_examples=curve.num_examples)
    triples = [Seeds(s, s, s) for s in range(SEEDS)]
    baseline = tuple(
        Trial(Setup(Model("model"), task, Full(), rate, budget, replace(each, projection=0)))
        for each in triples
        for rate in RATES
    )
    method = Subspace(Random("fastfood"))
    return [
        Search(Setup(Model("model"), task, method, RATES[0], budget, each), DIMS, ETAS, baseline) for each in triples
    ]


def models(count: int, draw: int = DRAW) -> list[tuple[Curve, list[Search]]]:
    """Draw synthetic models, each with its searches."""
    rng = random.Random(draw)
    found = []
    for k in range(count):
        full = rng.uniform(0.78, 0.93)
        curve = Curve(
            seed=1000 * draw + k,
            floor=rng.choice((0.5, 0.5, 0.68, 0.53)),
            plateau=full * rng.uniform(0.97, 1.01),
            full=full,
            middle=math.log(10) * rng.uniform(2.0, 5.3),
            slope=math.exp(rng.uniform(math.log(0.5), math.log(2))),
            shape=rng.choice(("logistic", "gompertz", "early")),
            eta_best=math.exp(rng.uniform(math.log(0.05), math.log(0.6))),
            eta_drift=rng.uniform(-0.1, 0.1),
            eta_penalty=rng.uniform(0.15, 0.5),
            num_examples=rng.choice((277, 408, 872, 1000)),
            seconds_per_step=1 / STEPS,
        )
        found.append((curve, searches_of(curve, f"t{k}")))
    return found


class Truth:
    """Answers trials from their curve, each worked out once."""

    def __init__(self, drawn: list[tuple[Curve, list[Search]]]) -> None:
        """Remember the curves."""
        self.curves = {searches[0].task.name: curve for curve, searches in drawn}
        self.rows: dict[str, Observation] = {}

    def __call__(self, trial: Trial) -> Observation:
        """Return what a trial gives."""
        if trial.id not in self.rows:
            self.rows[trial.id] = self.curves[trial.task.name].observe(trial, arrays=False)
        return self.rows[trial.id]


def true_position(curve: Curve, search: Search) -> int:
    """Return the position of the first d that reaches the true threshold under a search's own seeds, free of noise."""
    bar = (search.rule.fraction or 0.0) * curve.expected_full(RATES)
    for position, d in enumerate(search.dims):
        if max(curve.score(d, eta, search.seeds) for eta in search.etas) >= bar:
            return position
    return len(search.dims)


def errors(drawn: list[tuple[Curve, list[Search]]], findings: list[Finding], positions: list[int]) -> dict:
    """Compare what was found with the truth, in steps of the grid."""
    ends = {Outcome.below_range: 0, Outcome.above_range: len(DIMS)}
    searches = [search for _, each in drawn for search in each]
    off = []
    for search, finding, position in zip(searches, findings, positions, strict=True):
        at = ends.get(finding.outcome, search.positions[finding.d] if finding.d else None)
        off.append(None if at is None else at - position)
    known = np.array([each for each in off if each is not None])
    return {
        "no_answer": sum(each is None for each in off),
        "off_rms_steps": round(float(np.sqrt(np.mean(known**2))), 3),
        "off_mean_steps": round(float(np.mean(known)), 3),
        "outcomes": dict(sorted(Counter(finding.outcome.name for finding in findings).items())),
    }


def measure(drawn: list[tuple[Curve, list[Search]]], truth: Truth, policy: str, slots: int) -> tuple[dict, list]:
    """Run one policy over all searches; return what it took, and what it found."""
    searches = [search for _, each in drawn for search in each]
    began = time.process_time()
    queue, ledger = play(searches, policy, truth, Machines(slots))
    took = time.process_time() - began
    trainings = (ledger.steps - ledger.baseline_steps) / STEPS / len(searches)
    probes = Counter((row.trial.task.name, row.trial.seeds) for row in ledger.rows if not row.trial.is_baseline)
    most = max(probes.values())
    assert len(ledger.rows) <= queue.max_trials()
    result = {
        "searches": len(searches),
        "trainings": round(trainings, 2),
        "rounds": round(ledger.wall_s),
        "utilisation": round(ledger.busy_s / ledger.wall_s / slots, 3),
        "cancelled": round(ledger.cancelled_steps / STEPS / len(searches), 3),
        "most_of_a_search": most,
        "promised_of_a_search": queue.policy.max_trials(searches[0]) - len(searches[0].baseline),
        "cpu_seconds": round(took, 1),
    }
    return result, list(queue.findings())


def alone(drawn: list[tuple[Curve, list[Search]]], truth: Truth, slots: int) -> dict:
    """Run each model by itself, as most sweeps are: 3 searches that differ in seeds."""
    found = [measure([each], truth, "bisection", slots)[0] for each in drawn]
    rounds = [each["rounds"] for each in found]
    return {
        "models": len(drawn),
        "mean_rounds": round(float(np.mean(rounds)), 2),
        "median_rounds": float(np.median(rounds)),
        "rounds": dict(sorted(Counter(map(str, rounds)).items())),
        "trainings": round(float(np.mean([each["trainings"] for each in found])), 2),
    }


def control(count: int) -> dict:
    """Count the outcomes of the control world, by grid and by bisection."""
    drawn = [(replace(CONTROL, seed=k), searches_of(replace(CONTROL, seed=k), f"c{k}")) for k in range(count)]
    truth, result = Truth(drawn), {"worlds": count}
    positions = [true_position(curve, search) for curve, each in drawn for search in each]
    for policy in ("grid", "bisection"):
        result[policy] = errors(drawn, measure(drawn, truth, policy, 1)[1], positions)
    return result


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--models", type=int, default=20, help="synthetic models, 3 searches each")
    parser.add_argument("--draw", type=int, default=DRAW, help="which models")
    parser.add_argument("--control", type=int, default=20, help="control worlds, 3 searches each; 0 leaves them out")
    parser.add_argument("--large", type=int, default=334, help="models of the large sweep; 0 leaves it out")
    parser.add_argument("--recorded", help="a results directory to replay, with its sweep.toml")
    parser.add_argument("--out", default=str(Path(__file__).with_suffix(".json")), help='"-" prints only')
    options = parser.parse_args()
    drawn = models(options.models, options.draw)
    truth = Truth(drawn)
    positions = [true_position(curve, search) for curve, each in drawn for search in each]
    report: dict = {
        "command": f"python benchmarks/policies.py --models {options.models} --control {options.control}",
        "machine": f"{platform.machine()}, one core, Python {platform.python_version()}",
        "grid": {"dims": len(DIMS), "etas": len(ETAS), "rates": len(RATES), "seeds": SEEDS, "models": options.models},
    }

    def told(name: str, value: object) -> None:
        report[name] = value
        print(name, json.dumps(value), flush=True)

    for slots in SLOTS:
        result, findings = measure(drawn, truth, "bisection", slots)
        told(f"bisection, {slots} slots", result | errors(drawn, findings, positions))
    for slots in SLOTS[1:]:
        told(f"one model, {slots} slots", alone(drawn, truth, slots))
    if options.control:
        result, findings = measure(drawn, truth, "grid", 1)
        told("exhaustive grid", result | errors(drawn, findings, positions))
        told("control", control(options.control))
    if options.large:
        large = models(options.large, options.draw)
        big = Truth(large)
        measure(large, big, "bisection", 256)  # works out the scores, which is no part of a search
        told("large", measure(large, big, "bisection", 256)[0] | {"slots": 256})
    if options.recorded:
        told("recorded", recorded(options.recorded))
    if options.out != "-":
        Path(options.out).write_text(json.dumps(report, indent=2) + "\n")


def recorded(out: str) -> list[dict]:
    """Replay a results directory."""
    from distsub.config import load_sweep
    from distsub.results import Store

    sweep = load_sweep(f"{out}/sweep.toml")
    return replay(sweep.searches(), Store.open(out).read()).to_pylist()


if __name__ == "__main__":
    main()
