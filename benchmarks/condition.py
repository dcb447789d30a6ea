"""Condition numbers of P, materialised in float64, of every family beside a dense Gaussian of the same shape.

    python benchmarks/condition.py

D in three tensors (5/8, 1/4, 1/8 of it), median of three seeds. Fastfood takes the shortest block that holds d.
"""

import statistics

import torch

from distsub.errors import DimensionError
from distsub.subspace.assemble import FAMILIES, build


def condition(family: str, num_params: int, d: int) -> float | None:
    sizes = (num_params * 5 // 8, num_params // 4, num_params // 8)
    found = []
    for seed in range(3):
        try:
            values = torch.linalg.svdvals(build(family, sizes, d, seed, "global").dense())
        except DimensionError:
            return None
        found.append((values[0] / values[-1]).item())
    return statistics.median(found)


print("| D | d / D | " + " | ".join(FAMILIES) + " |")
print("|---" * (2 + len(FAMILIES)) + "|")
for num_params in (200, 1000):
    for ratio in (0.02, 0.1, 0.3, 0.5, 0.9):
        values = [condition(family, num_params, round(num_params * ratio)) for family in FAMILIES]
        print(f"| {num_params} | {ratio} | " + " | ".join(f"{x:.1f}" if x else "refused" for x in values) + " |")
