"""The horizontal lines of a curve's panel: full fine-tuning, the thresholds, chance; and their names beside them."""

import math
from collections.abc import Sequence
from typing import Any

from distsub.report.drawing import INK

_ALWAYS = ("baseline_score", "threshold")
"""The lines that every panel has."""
LINES = {
    "baseline_score": ("full fine-tuning", {"color": "#009e73", "linestyle": "-", "linewidth": 1.0}),
    "threshold": ("threshold", {"color": INK, "linestyle": "-", "linewidth": 1.4}),
    "threshold_chance_corrected": ("chance-corrected", {"color": INK, "linestyle": "--", "linewidth": 1.2}),
    "chance": ("chance", {"color": "#777777", "linestyle": ":", "linewidth": 1.2}),
}


_TWO_LINES = 0.3
"""Inches that a name takes, with its value below."""


def known_lines(rows: list[dict[str, Any]], scores: Sequence[float]) -> dict[str, float]:
    """Give the lines of a panel; its searches share a baseline, so the first known value stands.

    Full fine-tuning and the threshold always have one, chance and the chance-corrected threshold where scores reach it.
    """
    values = {name: next((row[name] for row in rows if row[name] is not None), None) for name in LINES}
    if values["threshold"] == values["threshold_chance_corrected"]:  # a share of the improvement is one already
        values["threshold_chance_corrected"] = None
    low, high = (min(scores), max(scores)) if scores else (-math.inf, math.inf)
    return {name: at for name, at in values.items() if at is not None and (name in _ALWAYS or low <= at <= high)}


def label_lines(axes: Any, levels: dict[str, float], rule: str) -> None:
    """Name the horizontal lines right of the axes, pushed apart where they would overlap."""
    low, high = axes.get_ylim()
    inches = axes.bbox.height / axes.get_figure().dpi
    gap = _TWO_LINES / inches * (high - low)
    names = sorted(levels, key=lambda name: levels[name])
    for name, y in zip(names, spread_apart([levels[name] for name in names], gap, low, high), strict=True):
        text = LINES[name][0]
        if name == "threshold" and rule.endswith(" x full"):
            text = f"{float(rule.removesuffix(' x full')):.0%} of it"
        elif name == "threshold" and rule.startswith("theta_0 + "):
            text = f"{float(rule.split()[2]):.0%} of the way"
        axes.annotate(
            f"{text}\n{levels[name]:.3f}",
            xy=(1, levels[name]),
            xytext=(1.035, y),
            xycoords=axes.get_yaxis_transform(),
            textcoords=axes.get_yaxis_transform(),
            fontsize=8,
            va="center",
            color=LINES[name][1]["color"],
            arrowprops={"arrowstyle": "-", "color": "#b0b0b0", "linewidth": 0.6, "shrinkA": 0, "shrinkB": 0},
            annotation_clip=False,
        )


def spread_apart(values: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move ascending positions by as little as is simple so that neighbours are at least a gap apart."""
    placed: list[float] = []
    for value in values:
        placed.append(max(value, placed[-1] + gap) if placed else max(value, low))
    ceiling = high
    for index in range(len(placed) - 1, -1, -1):
        placed[index] = min(placed[index], ceiling)
        ceiling = placed[index] - gap
    return placed
