"""Do outliers come back to the same output or input index, across tasks, seeds or layers? A permutation test.

A *unit* is one tensor of one update, described by how its outliers spread over the indices of one axis. Null
hypothesis: within every unit, independently of the others, each way of assigning the indices is equally likely. So how
many outliers a unit has, and how they crowd on few indices, is kept; only *which* indices they are is shuffled, and
only agreement between units counts as evidence. The test is exact for that null, for any number of permutations.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from distsub.learned.schema import RECURRENCE

TOP = 5
"""How many indices a row names."""

Group = tuple[str, tuple[str, ...], tuple[str, ...]]
"""A question: its name, the columns that its units share, and those that tell them apart."""

_UPDATE = ("kind", "model", "method", "projection", "d")

QUESTIONS: tuple[Group, ...] = (
    ("tasks", (*_UPDATE, "layer", "tensor"), ("task",)),
    ("seeds", (*_UPDATE, "task", "layer", "tensor"), ("projection_seed", "head_seed", "data_seed")),
    ("layers", (*_UPDATE, "task", "part"), ("layer",)),
)
"""Same tensor in different tasks (all seeds of a task are one unit); in different seeds of one task; and the tensor of
one name in different layers (all seeds are one unit again)."""


@dataclass(frozen=True)
class Recurrence:
    """What the test found.

    Attributes:
        statistic: The largest share of an index, averaged over the units: 1 when all outliers of all units share one.
        expected: The same under the null, averaged over the permutations.
        p: Probability of a statistic as large under the null, (b + 1) / (n + 1).
        top: (index, units that have an outlier there, mean share, p) of the indices with the largest shares. Their p
            compares each with the largest share of any index under the null, and so holds for all indices at once.
    """

    statistic: float
    expected: float
    p: float
    top: tuple[tuple[int, int, float, float], ...]


def recurrence(hits: np.ndarray, permutations: int = 999, seed: int = 0) -> Recurrence:
    """Test whether units agree on the indices at which their outliers lie.

    Every unit weighs the same: its outliers are taken as shares of their number. The statistic is the largest mean
    share of an index. Units without outliers are left out.

    Args:
        hits: Outliers per unit and index, shape [units, indices].
        permutations: Random relabelings of the indices, drawn for each unit by itself.
        seed: Of the relabelings.

    Returns:
        The statistic, its p-value and the leading indices; p is 1 with fewer than two units that have outliers.
    """
    hits = np.asarray(hits, dtype=np.float64)
    hits = hits[hits.sum(axis=1) > 0]
    if len(hits) == 0:
        return Recurrence(0.0, 0.0, 1.0, ())
    shares = hits / hits.sum(axis=1, keepdims=True)
    observed = shares.mean(axis=0)
    if len(hits) < 2:
        null = np.full(permutations, observed.max())
    else:
        draw = np.random.default_rng(seed)
        null = np.array([draw.permuted(shares, axis=1).mean(axis=0).max() for _ in range(permutations)])
    # Shares are sums of the same fractions in another order: what is equal must compare as equal.
    reached = null[None, :] >= observed[:, None] * (1 - 1e-9)
    p = (reached.sum(axis=1) + 1) / (permutations + 1)
    order = np.argsort(-observed, kind="stable")[:TOP]
    top = tuple(
        (int(i), int((hits[:, i] > 0).sum()), float(observed[i]), float(p[i])) for i in order if observed[i] > 0
    )
    return Recurrence(float(observed.max()), float(null.mean()), float(p[order[0]]), top)


def recurrence_table(
    outliers: pa.Table, summaries: pa.Table, *, scope: str = "layer", permutations: int = 999
) -> pa.Table:
    """Ask of every tensor, or tensor of one name over the layers, whether its outliers recur.

    Both axes of a matrix are asked (its rows are output indices, its columns input indices), the one of a vector.
    The p-values of one question are adjusted together by Benjamini and Hochberg (scipy's false_discovery_control).

    Args:
        outliers: Rows of OUTLIERS.
        summaries: Rows of OUTLIER_SUMMARIES of the same updates, for the tensors' shapes.
        scope: Whose sigma makes an outlier, "layer" or "tensor".
        permutations: See `recurrence`.

    Returns:
        Rows of RECURRENCE; only questions with at least two units that have outliers.
    """
    keys = list(dict.fromkeys(name for _, shared, apart in QUESTIONS for name in (*shared, *apart) if name != "part"))
    frame = outliers.select([*keys, "row", "column", f"{scope}_sigmas"]).to_pandas()
    shapes = summaries.select(["k", "model", "layer", "tensor", "rows", "columns"]).to_pandas()
    shapes = shapes[shapes["tensor"].notna()].drop_duplicates(["model", "tensor"])
    k = float(shapes["k"].iloc[0]) if len(shapes) else 0.0
    frame = frame[frame[f"{scope}_sigmas"].abs() >= k]
    # Names are categories, of which a table of millions of outliers has few: what is made of them is made once each.
    parts = {t: t.removeprefix(f"{layer}.") for t, layer in zip(shapes["tensor"], shapes["layer"], strict=True)}
    frame["part"] = frame["tensor"].map(parts)
    sizes = shapes.set_index(["model", "tensor"])[["rows", "columns"]].astype(float)
    rows: list[dict[str, Any]] = []
    for across, shared, apart in QUESTIONS:
        asked: list[dict[str, Any]] = []
        for key, members in frame.groupby(list(shared), dropna=False, sort=True, observed=True):
            about: dict[str, Any] = dict(zip(shared, key, strict=True))
            counts = sizes.loc[[(about["model"], members["tensor"].iloc[0])]].to_numpy()[0]
            for axis, index, count in zip(("output", "input"), ("row", "column"), counts, strict=True):
                if np.isnan(count):  # a vector has no inputs
                    continue
                units = members.groupby(list(apart), dropna=False, observed=True)[index]
                hits = np.stack([np.bincount(unit.astype(int), minlength=int(count)) for _, unit in units])
                if len(hits) >= 2:
                    asked.append(_row(across, about, axis, hits, permutations))
        _adjust(asked)
        rows += asked
    return pa.Table.from_pylist(rows, schema=RECURRENCE)


def _row(across: str, about: dict[str, Any], axis: str, hits: np.ndarray, permutations: int) -> dict[str, Any]:
    """Answer one question."""
    found = recurrence(hits, permutations)
    known = {name: None if value != value else value for name, value in about.items()}  # NaN stands for null
    return {
        "across": across,
        **{name: known.get(name) for name in (*_UPDATE, "task", "layer")},
        "tensor": known.get("tensor", known.get("part")),
        "axis": axis,
        "units": int((hits.sum(axis=1) > 0).sum()),
        "indices": hits.shape[1],
        "outliers": int(hits.sum()),
        "statistic": found.statistic,
        "statistic_expected": found.expected,
        "p": found.p,
        "permutations": permutations,
        "top": [dict(zip(("index", "units", "share", "p"), each, strict=True)) for each in found.top],
    }


def _adjust(rows: Sequence[dict[str, Any]]) -> None:
    """Add the adjusted p-values of one question."""
    from scipy.stats import false_discovery_control

    if rows:
        for row, p in zip(rows, false_discovery_control([row["p"] for row in rows]), strict=True):
            row["p_adjusted"] = float(p)
