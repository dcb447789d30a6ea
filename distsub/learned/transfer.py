"""Does one task's subspace serve another? Scores of every source on every target, and the angles between subspaces.

Principal angles come from inner products of checkpoints alone: with W = U S V^T for each task, the cosines are the
singular values of V_a^T V_b = S_a^-1 U_a^T (W_a W_b^T) U_b S_b^-1, and W_a W_b^T is summed over chunks of the mapped
files. Source: Bjorck and Golub 1973; tasks' subspaces: Zhang et al. 2023, Sec. 4.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations_with_replacement
from typing import Any

import numpy as np
import pyarrow as pa
from torch import Tensor

from distsub.learned.schema import ANGLES, SPECTRA, TRANSFER
from distsub.subspace.trajectory import RANK, gram

MODE = "difference"
"""What the rows of W are: differences from theta_0."""

Checkpoints = Sequence[Mapping[str, Tensor]]
"""theta_j - theta_0 of a fine-tuning's checkpoints, by parameter name."""


def transfer_table(modes: pa.Table) -> pa.Table:
    """Arrange the scores of learned subspaces, rows of MODES, by source and target, as rows of TRANSFER.

    A task is its own source where its subspace is "intrinsic".
    """
    rows = [row | {"target": row["task"]} for row in modes.to_pylist() if row["source"] is not None]
    return pa.Table.from_pylist([{name: row[name] for name in TRANSFER.names} for row in rows], schema=TRANSFER)


def basis(gram: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find the orthonormal basis of the span of W's rows from its Gram matrix W W^T, [t, t].

    Returns:
        M [t, rank], with which V = W^T M, and the singular values of W that are not zero, falling.
    """
    squares, vectors = np.linalg.eigh(gram)
    values = np.sqrt(np.clip(squares[::-1], 0, None))
    rank = int((values > RANK * values[0]).sum()) if values[0] > 0 else 0
    return vectors[:, ::-1][:, :rank] / values[:rank], values[:rank]


def principal_angles(ours: np.ndarray, theirs: np.ndarray, cross: np.ndarray) -> np.ndarray:
    """Compute the principal angles between two subspaces that are given by inner products.

    The same as `scipy.linalg.subspace_angles` on the dense bases, but rising, and exact to about 1e-8, since a small
    angle is here the arc cosine of a number near 1.

    Args:
        ours: From `basis`, [t, rank].
        theirs: From `basis`, [t', rank'].
        cross: W_a W_b^T, [t, t'].

    Returns:
        min(rank, rank') angles in radians, rising.
    """
    if not ours.shape[1] or not theirs.shape[1]:
        return np.zeros(0)
    return np.arccos(np.clip(np.linalg.svd(ours.T @ cross @ theirs, compute_uv=False), -1, 1))


def layer_geometry(
    checkpoints: Mapping[str, Checkpoints], layer: str, names: Sequence[str], d: int | None = None
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Measure one layer's subspaces of several trajectories: spectra, and angles between every two.

    All inner products come from one pass over all checkpoints.

    Args:
        checkpoints: By trajectory.
        layer: Its name, for the rows.
        names: Its parameters.
        d: Compare the leading d directions; None takes all.

    Returns:
        Rows of SPECTRA and of ANGLES, each trajectory paired with itself and those after it.
    """
    rows = [[update[name].reshape(-1) for name in names] for updates in checkpoints.values() for update in updates]
    products = gram(rows).numpy()
    ends = np.cumsum([len(updates) for updates in checkpoints.values()])
    places = [slice(end - len(each), end) for end, each in zip(ends, checkpoints.values(), strict=True)]
    place = dict(zip(checkpoints, places, strict=True))
    size = sum(tensor.numel() for tensor in rows[0]) if rows else 0
    bases: dict[str, np.ndarray] = {}
    spectra, angles = [], []
    for name, own in place.items():
        made, values = basis(products[own, own])
        bases[name] = made[:, :d]
        shares = values**2 / max((values**2).sum(), np.finfo(float).tiny)
        spectra += [
            {"trajectory": name, "mode": MODE, "layer": layer, "checkpoints": len(checkpoints[name])}
            | {"rank": k, "singular_value": float(value), "explained": float(share), "cumulative": float(total)}
            for k, (value, share, total) in enumerate(zip(values, shares, shares.cumsum(), strict=True), 1)
        ]
    for source, target in combinations_with_replacement(checkpoints, 2):
        found = principal_angles(bases[source], bases[target], products[place[source], place[target]])
        largest = max(bases[source].shape[1], bases[target].shape[1])
        angles.append(
            {"layer": layer, "source_trajectory": source, "target_trajectory": target, "mode": MODE, "size": size}
            | {"dims": len(found), "angles": found.tolist(), "expected_overlap": largest / size}
            | {"overlap": float(np.mean(np.cos(found) ** 2)) if len(found) else None}
        )
    return spectra, angles


def geometry_tables(
    spectra: Sequence[dict[str, Any]], angles: Sequence[dict[str, Any]], about: Mapping[str, Mapping[str, Any]]
) -> tuple[pa.Table, pa.Table]:
    """Complete the rows of `layer_geometry` with the task, model, head_seed and data_seed of each trajectory."""
    full_spectra = [{**row, **about[row["trajectory"]]} for row in spectra]
    full_angles = []
    for row in angles:
        source, target = about[row["source_trajectory"]], about[row["target_trajectory"]]
        full_angles.append(row | {"model": source["model"], "source": source["task"], "target": target["task"]})
    return pa.Table.from_pylist(full_spectra, schema=SPECTRA), pa.Table.from_pylist(full_angles, schema=ANGLES)
