"""Builders of records: searches, trials and what came out of them."""

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from hypothesis import settings

from distsub.records import Budget, Full, Model, Observation, Random, Seeds, Setup, Status, Subspace, Task, Trial
from distsub.search import Evidence, Policy, Search

TASK = Task(name="mrpc", source="nyu-mll/glue", text=("sentence1", "sentence2"))
BUDGET = Budget(steps=10)
MODEL = "sentence-transformers/all-MiniLM-L6-v2"


def with_keys(text: str, **values: Any) -> str:
    """Set keys of a sweep file, each of which stands there once; None takes one away."""
    for key, value in values.items():
        line = "" if value is None else f"{key} = {json.dumps(value)}\n"
        text, count = re.subn(rf"^{key} = .*\n", lambda _, line=line: line, text, flags=re.MULTILINE)
        assert count == 1, (key, count)
    return text


def examples(number: int) -> settings:
    """Have hypothesis draw so many examples in the whole suite, and a fifth of them in the fast one (conftest.py)."""
    return settings(max_examples=number * settings.default.max_examples // 100)


class Bench:
    """Builds searches and observations, and runs a policy to its end."""

    def baselines(self, rates: Iterable[float] = (1e-5,), seeds: int = 1, task: Task = TASK) -> tuple[Trial, ...]:
        """Return full fine-tunings, every rate times every seed."""
        return tuple(
            Trial(Setup(Model(MODEL), task, Full(), rate, BUDGET, Seeds(0, seed, seed)))
            for seed in range(seeds)
            for rate in rates
        )

    def search(self, num_dims: int = 8, num_etas: int = 2, seed: int = 0, **changes: object) -> Search:
        """Return a search over d = 10, 20, ... under one triple of seeds."""
        search = Search(
            Setup(
                Model(MODEL), TASK, Subspace(Random("fastfood"), scales="layer"), 1e-05, BUDGET, Seeds(seed, seed, seed)
            ),
            tuple(10 * (i + 1) for i in range(num_dims)),
            tuple(0.1 * (i + 1) for i in range(num_etas)),
            self.baselines(),
        )
        return search.vary(**changes)

    def see(
        self, trial: Trial, score: float | None, status: Status = "finished", chance: float | None = 0.5
    ) -> Observation:
        """Return an observation, as if read back from disk: the trial is another object."""
        return Observation(trial=replace(trial), status=status, score=score, chance=chance)

    def truth(self, search: Search, position: int, full: float = 0.8) -> Callable[[Trial], Observation]:
        """Return a world where d passes from a position on, at the last eta only."""

        def train(trial: Trial) -> Observation:
            if trial.d is None:
                return self.see(trial, full)
            passes = search.positions[trial.d] >= position and trial.eta == search.etas[-1]
            return self.see(trial, 0.79 if passes else 0.55)

        return train

    def run(
        self, policy: Policy, state: Evidence, train: Callable[[Trial], Observation], slots: int = 1
    ) -> tuple[Evidence, list[Observation]]:
        """Run what is proposed, the last of each batch first, until nothing is."""
        seen: list[Observation] = []
        while batch := policy.propose(state, slots):
            assert len(batch) <= slots
            seen.append(train(batch[-1]))
            state = state.add(seen[-1])
        return state, seen


def make_observation(number: int = 0, status: Any = "finished", **changes: Any) -> Observation:
    """Make the observation of one small trial; the number tells trials apart."""
    trial = Trial(
        Setup(
            Model("package:tiny"),
            Task(name="toy", source="toy.csv", text=("a", "b"), where=(("source", "toy"),)),
            Subspace(Random("fastfood", block_length=4096), scales="layer"),
            2e-05,
            Budget(steps=10),
            Seeds(1, 2, 3),
        ),
        100 + number,
        0.3,
    )
    scored = {} if status in ("error", "diverged") else {"score": 0.75, "predicted": (0.0, 1.0), "target": (1.0, 1.0)}
    values: dict[str, Any] = {
        "chance": 0.5,
        "metrics": (("f1", 0.7), ("accuracy", 0.75)),
        "curve": ((5, 0.6), (10, 0.75)),
        "provenance": (("torch", "2.13.0"), ("python", "3.11.9")),
        "num_params": 1_000_000,
        **scored,
        **changes,
    }
    return Observation(trial, status, **values)
