"""Which weights to disable: the outliers of an update, and three controls of the same size.

The paper's control is the same number of random weights. It leaves two things free that matter: a layer's LayerNorm is
0.04% of its weights, and outliers are full of it; and large weights hurt more than small ones when they are set to
zero. So two controls more: matched by tensor, and matched by tensor and |theta_0|.
"""

from collections.abc import Callable, Mapping

import numpy as np
import pyarrow as pa

from distsub.learned.outliers import K

Positions = dict[str, np.ndarray]
"""Positions in the flattened tensor, int64 and rising, by tensor; tensors without any are left out."""

Layers = Mapping[str, Mapping[str, np.ndarray]]
"""theta_0 of every tensor, by layer and tensor."""


def outlier_positions(outliers: pa.Table, scope: str = "layer", k: float = K) -> Positions:
    """Take one update's outliers as a mask.

    Args:
        outliers: Rows of OUTLIERS of one update.
        scope: Whose sigma counts, "layer" or "tensor".
        k: How many sigma, at least those that the rows were found with.
    """
    table = outliers.filter(pa.array(np.abs(outliers[f"{scope}_sigmas"].to_numpy()) >= k))
    tensors, positions = np.asarray(table["tensor"].to_pylist()), table["position"].to_numpy()
    return {str(name): np.sort(positions[tensors == name]) for name in dict.fromkeys(tensors.tolist())}


def random_positions(mask: Positions, layers: Layers, draw: np.random.Generator) -> Positions:
    """Draw as many positions in each layer as the mask has there, each entry of the layer equally likely.

    Positions of the mask itself are never drawn.
    """
    out: Positions = {}
    for tensors in layers.values():
        names = list(tensors)
        starts = np.cumsum([0, *(tensors[name].size for name in names)])
        taken = np.concatenate([start + mask.get(name, _NONE) for start, name in zip(starts, names, strict=False)])
        chosen = _choose(int(starts[-1]), taken, len(taken), draw)
        for name, start, stop in zip(names, starts, starts[1:], strict=False):
            if (own := chosen[(chosen >= start) & (chosen < stop)]).size:
                out[name] = own - start
    return out


def matched_by_tensor(mask: Positions, layers: Layers, draw: np.random.Generator) -> Positions:
    """Draw as many positions in each tensor as the mask has there, each entry outside the mask equally likely.

    A tensor of which the mask takes more than half has not enough others: then all of them are taken.
    """
    sizes = {name: theta_0.size for tensors in layers.values() for name, theta_0 in tensors.items()}
    chosen = {name: _choose(sizes[name], taken, len(taken), draw) for name, taken in mask.items()}
    return {name: positions for name, positions in chosen.items() if positions.size}


def matched_by_magnitude(mask: Positions, layers: Layers, draw: np.random.Generator) -> Positions:
    """Pair every position of the mask with the free one in its tensor that is nearest in the order of |theta_0|.

    Pairs are made in random order without putting back, so that controls differ where outliers compete for a partner.
    What finds no partner, in a tensor of which the mask takes more than half, is left out.
    """
    theta_0 = {name: values for tensors in layers.values() for name, values in tensors.items()}
    chosen = {name: _nearest(np.abs(theta_0[name].ravel()), taken, draw) for name, taken in mask.items()}
    return {name: positions for name, positions in chosen.items() if positions.size}


CONTROLS: dict[str, Callable[[Positions, Layers, np.random.Generator], Positions]] = {
    "random": random_positions,
    "tensor": matched_by_tensor,
    "magnitude": matched_by_magnitude,
}
"""The controls by the name that rows carry."""

_NONE = np.zeros(0, np.int64)


def _choose(size: int, taken: np.ndarray, count: int, draw: np.random.Generator) -> np.ndarray:
    """Draw distinct positions of [0, size) outside `taken`, all of them where they are too few."""
    free = np.delete(np.arange(size), taken)
    return np.sort(draw.choice(free, size=min(count, free.size), replace=False))


def _nearest(magnitude: np.ndarray, taken: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Pair positions with free ones next to them in rank; two linked lists skip what is gone."""
    size = magnitude.size
    order = np.argsort(magnitude, kind="stable")
    rank = np.empty(size, np.int64)
    rank[order] = np.arange(size)
    free = np.ones(size, bool)
    free[rank[taken]] = False
    # down[r + 1] leads towards the free rank at or below r, up[r] to the one at or above; 0 and size are the ends.
    ranks = np.arange(size + 1)
    down = np.concatenate([[0], np.where(free, ranks[1:], ranks[:-1])]).tolist()
    up = np.concatenate([np.where(free, ranks[:-1], ranks[1:]), [size]]).tolist()
    out = []
    for start in draw.permutation(rank[taken]).tolist():
        below, above = _end(down, start + 1) - 1, _end(up, start)
        if below < 0 and above >= size:
            break
        near = above < size and (
            below < 0
            or magnitude[order[above]] - magnitude[order[start]] < magnitude[order[start]] - magnitude[order[below]]
        )
        found = above if near else below
        out.append(order[found])
        down[found + 1], up[found] = found, found + 1
    return np.sort(np.array(out, np.int64))


def _end(links: list[int], at: int) -> int:
    """Follow links to the entry that leads to itself, and shorten the way there."""
    end = at
    while links[end] != end:
        end = links[end]
    while links[at] != end:
        links[at], at = end, links[at]
    return end
