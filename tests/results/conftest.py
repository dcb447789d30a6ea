"""Records to write and read back."""

from collections.abc import Callable
from typing import Any

import pytest

from distsub.records import Budget, Model, Observation, Random, Seeds, Setup, Subspace, Task, Trial


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


@pytest.fixture
def observation() -> Callable[..., Observation]:
    """Give the maker of observations."""
    return make_observation
