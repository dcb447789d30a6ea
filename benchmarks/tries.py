"""What a range of step sizes finds beside fixed lists, on synthetic worlds whose best step is unknown; tries.json.

    python benchmarks/tries.py                       # some minutes on one core
    python benchmarks/tries.py --worlds 20 --out -   # a look

The best learning rate and the best eta lie anywhere in a decade, evenly on a log scale. Under 3 seeds a range of 6
tries takes 10 full fine-tunings, a pair of rates 6, a list of three 9. The best pair is the one of 21 (of 7 rates, even
over the decade) whose threshold is the highest on average over the very worlds it is judged on. `threshold` is the
measured score of full fine-tuning that the threshold is a share of, as the mean difference from what full fine-tuning
truly scores at its best rate; `chosen` the same of the true score of the rate that set it; `worst` its 5% quantile. `d`
is the true d90 at the etas that were kept, over that at the best of 61 etas: geometric mean and 95% quantile.
"""

import argparse
import itertools
import json
import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from distsub.records import Budget, Full, Model, Observation, Random, Seeds, Setup, Subspace, Task, Trial
from distsub.search import KEPT, Evidence, Grid, Range, Search, TrialQueue, log_grid
from distsub.search.synthetic import Curve
from distsub.search.thresholds import Trained, judge

RATES, ETAS = Range(1e-5, 1e-4, 6), Range(0.1, 1.0, 6)
DIMS = log_grid(30, 30_000)
SEEDS = tuple(Seeds(s, s, s) for s in range(3))
BUDGET = Budget(steps=100)
TASK, METHOD = Task("t", "synthetic", ("text",)), Subspace(Random("partition"))


@dataclass(frozen=True)
class World(Curve):
    """A curve whose full fine-tuning learns nothing at a rate that is so many times too large."""

    cliff: float = math.inf

    def _full(self, rate: float) -> float:
        return self.floor if rate > self.cliff * self.rate_best else super()._full(rate)


KINDS = {
    "flat": World(rate_penalty=0.01),
    "usual": World(rate_penalty=0.03),
    "steep": World(rate_penalty=0.1),
    "cliff": World(rate_penalty=0.03, cliff=1.6),
    "failures": World(rate_penalty=0.03, full_failures=0.1),
    "few examples": World(rate_penalty=0.03, num_examples=100),
    "drift": World(rate_penalty=0.03, eta_drift=0.3, eta_penalty=0.6),
}
"""Loss in score per squared distance in log learning rate, what fails, what is evaluated, an eta that drifts with d."""


def spread(values: Range, count: int) -> tuple[float, ...]:
    """Spread step sizes evenly over a range, its ends left out."""
    return tuple(values.at((part + 0.5) / count) for part in range(count))


def search_of(rates: Sequence[float] | Range, etas: Range | None = None, seed: int = 0) -> list[Search]:
    """Return the searches over lists, or over ranges."""
    given = (rates.middle,) if isinstance(rates, Range) else rates
    baseline = tuple(
        Trial(Setup(Model("m"), TASK, Full(), rate, BUDGET, replace(each, projection=0)))
        for each in SEEDS
        for rate in given
    )
    return [
        Search(
            Setup(Model("m"), TASK, METHOD, 1e-5, BUDGET, each),
            DIMS,
            (0.3,),
            baseline,
            eta_range=etas,
            rate_range=rates if isinstance(rates, Range) else None,
            first_seeds=SEEDS[0] if etas else None,
        )
        for each in SEEDS
    ]


@cache
def train(world: World, trial: Trial) -> Observation:
    """Train once, whoever asks."""
    return world.observe(trial, arrays=False)


@cache
def true_d(world: World, etas: tuple[float, ...]) -> float:
    """Return the true d90 at the best of some etas."""
    return world.crossing(etas, (world.rate_best,))


def measured(world: World, rates: Sequence[float] | Range) -> tuple[float, float, int]:
    """Return the score that the threshold is a share of, the true one of its rate, and the trainings it took."""
    state, taken = Evidence(search_of(rates)[0]), 0
    while missing := list(state.missing_baseline()):
        state, taken = state.add(train(world, missing[0])), taken + 1
    full_score = state.thresholds and state.thresholds.full
    if full_score is None:  # every full fine-tuning failed
        return world.floor, world.floor, taken
    own = [(trial, state.baseline[trial.id]) for trial in state.search.baseline]
    full = [Trained(trial.learning_rate, result.score, world.num_examples) for trial, result in own]
    left = zip(full, judge(full, world.chance, TASK.metric).kept, strict=True)
    scores: dict[float, list[float]] = {}
    for each, kept in left:
        if kept:
            scores.setdefault(each.rate, []).append(each.score or 0.0)
    chosen = max(scores, key=lambda rate: statistics.fmean(scores[rate]))
    assert math.isclose(statistics.fmean(scores[chosen]), full_score)
    return full_score, world._full(chosen), taken


def kept_etas(world: World) -> tuple[float, ...]:
    """Return the etas that a range keeps."""
    state = Evidence(search_of((1e-5,), ETAS)[0])
    while missing := list(state.missing_tries()):
        state = state.add(train(world, missing[0]))
    return state.search.etas


def worlds_of(kind: str, count: int) -> list[World]:
    """Draw worlds of a kind, each with a best rate, a best eta and a d90 of its own."""
    found = []
    for seed in range(count):
        own = random.Random(f"{kind}/{seed}")
        rate, eta, middle = (
            math.exp(own.uniform(math.log(a), math.log(b))) for a, b in ((1e-5, 1e-4), (0.1, 1), (100, 3000))
        )
        found.append(replace(KINDS[kind], seed=seed, rate_best=rate, eta_best=eta, middle=math.log(middle)))
    return found


def of_rates(worlds: Sequence[World], rates: Sequence[float] | Range) -> dict[str, float]:
    """Measure a list or range of learning rates on worlds."""
    found = [(world, *measured(world, rates)) for world in worlds]
    chosen = sorted(true - world.full for world, _, true, _ in found)
    return {
        "threshold": statistics.fmean(full - world.full for world, full, _, _ in found),
        "chosen": statistics.fmean(chosen),
        "worst": chosen[len(chosen) // 20],
        "trainings": max(taken for *_, taken in found),
    }


def of_etas(worlds: Sequence[World], kept: Sequence[tuple[float, ...]]) -> dict[str, float]:
    """Compare the true d90 at some etas with that at the best of many."""
    fine = tuple(0.05 * 40 ** (k / 60) for k in range(61))
    ratios = []
    for world, etas in zip(worlds, kept, strict=True):
        ratios.append(math.log(true_d(world, etas) / true_d(world, fine)))
    return {"d": math.exp(statistics.fmean(ratios)), "d_worst": math.exp(sorted(ratios)[-1 - len(ratios) // 20])}


def measure(kind: str, count: int) -> dict[str, dict[str, float]]:
    """Measure everything on worlds of one kind."""
    worlds = worlds_of(kind, count)
    pairs = list(itertools.combinations([RATES.at(k / 6) for k in range(7)], KEPT))
    eta_pairs = list(itertools.combinations([ETAS.at(k / 6) for k in range(7)], KEPT))
    by_rates = {pair: of_rates(worlds, pair) for pair in pairs}
    best = max(pairs, key=lambda pair: by_rates[pair]["threshold"])
    by_etas = {pair: of_etas(worlds, [pair] * count) for pair in eta_pairs}
    best_etas = min(eta_pairs, key=lambda pair: by_etas[pair]["d"])
    own = [measured(world, RATES)[0] - measured(world, best)[0] for world in worlds]
    found = {
        "range, 6 tries": of_rates(worlds, RATES) | of_etas(worlds, [kept_etas(world) for world in worlds]),
        "best fixed pair": by_rates[best] | by_etas[best_etas],
        "list of 3": of_rates(worlds, spread(RATES, 3)) | of_etas(worlds, [spread(ETAS, 3)] * count),
        "list of 6": of_rates(worlds, spread(RATES, 6)) | of_etas(worlds, [spread(ETAS, 6)] * count),
        "range above pair": {
            "threshold": statistics.fmean(own), "standard_error": statistics.stdev(own) / math.sqrt(count),
            "not_below_by_half_a_point": sum(each >= -0.005 for each in own) / count,
        },
    }  # fmt: skip
    return {name: {key: round(value, 4) for key, value in each.items()} for name, each in found.items()}


def whole_queue(count: int) -> dict[str, float]:
    """Run sweeps with both ranges to their end: trainings beside what was promised."""
    shares = []
    for world in worlds_of("usual", count):
        queue, taken = TrialQueue(search_of(RATES, ETAS), Grid()), 0
        while (trial := queue.next(set(), 1)) is not None:
            queue.observe(world.observe(trial, arrays=False))
            taken += 1
        assert taken <= queue.max_trials()
        shares.append(taken / queue.max_trials())
    return {"sweeps": count, "least": min(shares), "most": max(shares)}


def main() -> None:
    parser = argparse.ArgumentParser(description="Step sizes of a range beside fixed lists.")
    parser.add_argument("--worlds", type=int, default=300)
    parser.add_argument("--out", default=str(Path(__file__).with_suffix(".json")))
    options = parser.parse_args()
    report: dict[str, object] = {"command": f"python benchmarks/tries.py --worlds {options.worlds}"}
    for kind in KINDS:
        report[kind] = measure(kind, options.worlds)
        print(kind, json.dumps(report[kind]), flush=True)
    report["promised trainings that were taken"] = whole_queue(3)
    if options.out != "-":
        Path(options.out).write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
