"""Subspace outliers: entries of a learned update that lie at least k sigma from the mean of their layer or tensor.

Zhang, Liu and Shao 2023 (arXiv:2305.17446) find, at 3 sigma, about 0.3% of an encoder's weights and call them outlier
dimensions. A Gaussian has 0.27% there, so a count alone shows nothing: every row here stands beside what a Gaussian of
the same size gives, with the kurtosis and the largest entry, and "there are none" is a possible answer. These are not
the outlier dimensions of hidden states of Kovaleva et al. 2021.

Everything works on one layer at a time, {tensor name: update}, so that an update never exists as a whole.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from distsub.learned.schema import OUTLIER_SUMMARIES, OUTLIERS, PROFILES

K = 3.0
"""How many sigma make an outlier, as in the paper."""

BINS = 1500
"""Stretches of a layer's profile: more than a figure has pixels."""

_GRID = np.linspace(0.0, 12.0, 4801)

BIASES, NORMS = "biases", "LayerNorm"

_COMPONENTS = (
    (re.compile(r"(layer_?norm|\bln_?\d*\b|_norm\b|\bnorm\d*\b)", re.IGNORECASE), NORMS),
    (re.compile(r"bias$"), BIASES),
    (re.compile(r"(\bquery|\bq_lin|\bq_proj)\b"), "attention query"),
    (re.compile(r"(\bkey|\bk_lin|\bk_proj)\b"), "attention key"),
    (re.compile(r"(\bvalue|\bv_lin|\bv_proj)\b"), "attention value"),
    (re.compile(r"(attention\.output\.dense|attention\.out_lin|\bo_proj|self_attn\.out_proj)\b"), "attention output"),
    (re.compile(r"(intermediate\.dense|ffn\.lin1|\bfc1)\b"), "intermediate"),
    (re.compile(r"(output\.dense|ffn\.lin2|\bfc2)\b"), "output dense"),
)


def component_of(tensor: str, layer: str = "") -> str:
    """Name the part of a transformer block that a parameter belongs to.

    The names of BERT, RoBERTa, ELECTRA and DistilBERT are known, and those of most decoders; every other tensor is a
    component of its own under its name within the layer. All biases but those of a LayerNorm are one component.

    Examples:
        >>> component_of("bert.encoder.layer.3.attention.self.query.weight", "bert.encoder.layer.3")
        'attention query'
        >>> component_of("encoder.block.0.mixer.weight", "encoder.block.0")
        'mixer.weight'
    """
    name = tensor.removeprefix(f"{layer}.") if layer else tensor
    return next((component for pattern, component in _COMPONENTS if pattern.search(name)), name)


def gaussian_count(size: int, k: float = K) -> float:
    """Give the expected number of entries beyond k sigma on either side among `size` Gaussian ones."""
    from scipy.stats import norm

    return float(size * 2 * norm.sf(k))


def gaussian_max(size: int) -> float:
    """Give the expected largest |z| among `size` independent standard Gaussian entries.

    E max|z| is the integral of 1 - P(|z| <= x)^size over x >= 0, by the trapezoidal rule to four digits.
    """
    return float(np.trapezoid(gaussian_max_p(_GRID, size), _GRID))


def gaussian_max_p(sigmas: float | np.ndarray, size: int) -> Any:
    """Give the probability that the largest |z| of `size` independent standard Gaussian entries reaches a value."""
    from scipy.stats import norm

    outside = np.minimum(2 * norm.sf(sigmas), 1 - 1e-15)  # at 0 it is 1, whose complement has no logarithm
    return -np.expm1(size * np.log1p(-outside))


def find(
    layer: str, update: Mapping[str, np.ndarray], theta_0: Mapping[str, np.ndarray] | None = None, k: float = K
) -> tuple[pa.Table, pa.Table]:
    """Find the outliers of one layer's update, and describe the layer and its tensors beside a Gaussian.

    An entry counts when it is at least k sigma from the mean of all the layer's entries (the paper's reading, by which
    a tensor that moves more than the others is full of them) or from the mean of its own tensor; how far it is in both
    stands in its row. Sigma is the standard deviation of the entries themselves, outliers included.

    Args:
        layer: Name of the layer, such as "bert.encoder.layer.3".
        update: Update of every tensor of the layer, by full name, in the tensor's shape.
        theta_0: The weights that the update moves, for the column `weight`; None leaves it empty.
        k: How many sigma.

    Returns:
        One row per outlier (columns of OUTLIERS that one layer can fill), and one row per tensor plus one for the
        layer, whose `tensor` is null (columns of OUTLIER_SUMMARIES likewise).
    """
    flat, whole, mean, sigma = _layer(update)
    found: list[pa.Table] = []
    summaries: list[dict[str, Any]] = []
    for name, values in flat.items():
        shape = update[name].shape
        own_mean, own_sigma = _moments(values)
        by_layer, by_tensor = _sigmas(values, mean, sigma), _sigmas(values, own_mean, own_sigma)
        in_layer, in_tensor = np.abs(by_layer) >= k, np.abs(by_tensor) >= k
        at = np.flatnonzero(in_layer | in_tensor)
        width = math.prod(shape[1:])
        component = component_of(name, layer)
        columns: dict[str, Any] = {
            "layer": [layer] * at.size,
            "tensor": [name] * at.size,
            "component": [component] * at.size,
            "row": at // width,
            "column": at % width if len(shape) > 1 else [None] * at.size,
            "position": at,
            "value": values[at],
            "weight": np.asarray(theta_0[name], dtype=np.float64).ravel()[at] if theta_0 else [None] * at.size,
            "layer_sigmas": by_layer[at],
            "tensor_sigmas": by_tensor[at],
        }
        found.append(_table(columns, OUTLIERS))
        summaries.append(
            {"layer": layer, "tensor": name, "component": component}
            | {"rows": shape[0] if shape else 1, "columns": width if len(shape) > 1 else None}
            | _describe(values, by_tensor, own_mean, own_sigma, k)
            | {"layer_outliers": int(in_layer.sum())}
        )
    summaries.append(
        dict.fromkeys(summaries[0])
        | {"layer": layer, "layer_outliers": sum(row["layer_outliers"] for row in summaries)}
        | _describe(whole, _sigmas(whole, mean, sigma), mean, sigma, k)
    )
    described = _table({name: [row[name] for row in summaries] for name in summaries[0]}, OUTLIER_SUMMARIES)
    return pa.concat_tables(found), described


def profile(layer: str, update: Mapping[str, np.ndarray], bins: int = BINS) -> pa.Table:
    """Reduce an update along its layer to the smallest and largest entry of each stretch, for the eye.

    Args:
        layer: Name of the layer.
        update: Update of every tensor of the layer, in the order in which they lie end to end.
        bins: About how many stretches the layer is cut into; every tensor has at least one.

    Returns:
        Rows of PROFILES, its columns that one layer can fill.
    """
    flat, whole, mean, sigma = _layer(update)
    stretches: list[pa.Table] = []
    position = 0
    for name, values in flat.items():
        count = max(1, round(bins * values.size / whole.size))
        edges = np.unique(np.linspace(0, values.size, count + 1).astype(int))
        sigmas = _sigmas(values, mean, sigma)
        columns: dict[str, Any] = {
            "layer": [layer] * (len(edges) - 1),
            "tensor": [name] * (len(edges) - 1),
            "start": position + edges[:-1],
            "stop": position + edges[1:],
            "low": np.minimum.reduceat(sigmas, edges[:-1]),
            "high": np.maximum.reduceat(sigmas, edges[:-1]),
        }
        stretches.append(_table(columns, PROFILES))
        position += values.size
    return pa.concat_tables(stretches)


def _layer(update: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], np.ndarray, float, float]:
    """Give a layer's tensors flat, all of them end to end, and the mean and standard deviation of that."""
    flat = {name: np.asarray(values, dtype=np.float64).ravel() for name, values in update.items()}
    whole = np.concatenate(list(flat.values()))
    return flat, whole, *_moments(whole)


def _moments(values: np.ndarray) -> tuple[float, float]:
    """Give mean and standard deviation; 0 and 0 of nothing."""
    return (float(values.mean()), float(values.std())) if values.size else (0.0, 0.0)


def _sigmas(values: np.ndarray, mean: float, sigma: float) -> np.ndarray:
    """Give how many sigma every entry lies from the mean; 0 everywhere in an update that is one constant."""
    # A constant leaves rounding in sigma, which must not make outliers of its own last bits.
    if sigma <= 1e-12 * abs(mean):
        return np.zeros_like(values)
    return (values - mean) / sigma


def _describe(values: np.ndarray, sigmas: np.ndarray, mean: float, sigma: float, k: float) -> dict[str, Any]:
    """Count, and measure the tails, of one layer or tensor, beside a Gaussian of its size."""
    flat = not np.any(sigmas)
    return {
        "size": values.size,
        "mean": mean,
        "sigma": sigma,
        "norm": float(np.linalg.norm(values)),
        "outliers": int((np.abs(sigmas) >= k).sum()),
        "expected_outliers": gaussian_count(values.size, k),
        "excess_kurtosis": None if flat else float(np.mean(sigmas**4) - 3.0),
        "max_sigmas": None if flat else float(np.abs(sigmas).max()),
        "expected_max_sigmas": gaussian_max(values.size),
        "max_p": None if flat else float(gaussian_max_p(float(np.abs(sigmas).max()), values.size)),
    }


def _table(columns: Mapping[str, Any], schema: pa.Schema) -> pa.Table:
    """Make a table of the columns that are there, in the order and types of a schema."""
    return pa.table(dict(columns), schema=pa.schema([field for field in schema if field.name in columns]))
