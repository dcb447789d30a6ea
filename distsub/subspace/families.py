"""The projection families by name; those that a seed is enough for."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from distsub.errors import ConfigError
from distsub.subspace.dense import Dense
from distsub.subspace.fastfood import Fastfood, FastfoodPerTensor
from distsub.subspace.layers import PerLayer
from distsub.subspace.layout import Entry, layers
from distsub.subspace.partition import Partition
from distsub.subspace.projection import Blockwise, Projection
from distsub.subspace.sparse import Sparse
from distsub.subspace.trajectory import Snapshots, Trajectory

FAMILIES = {cls.family: cls for cls in (Dense, Sparse, Fastfood, FastfoodPerTensor, Partition)}


def build(
    family: str, sizes: Sequence[int], d: int, seed: int, normalization: str, block_length: int | None = None
) -> Projection:
    """Make the projection of a family.

    Raises:
        ConfigError: The family is unknown.
        DimensionError: d does not fit.
    """
    if family == "trajectory":
        raise ConfigError("projection 'trajectory' is made of checkpoints, not of a seed; give snapshots")
    if family not in FAMILIES:
        raise ConfigError(f"projection {family!r} is unknown; use one of {', '.join((*FAMILIES, 'trajectory'))}")
    return FAMILIES[family](sizes, d, seed, normalization, block_length=block_length)


SCOPES = ("model", "layer")


@dataclass(frozen=True)
class Kind:
    """How the projection of a model is made.

    Attributes:
        family: A key of FAMILIES, or "trajectory".
        normalization: "global" or "per_tensor".
        seed: Projection seed; layers get seeds of their own from it.
        block_length: Fastfood block length.
        scope: "model", or "layer" for one subspace per transformer block.
        match_norms: Whether a random P takes each tensor's share from the last snapshot.
    """

    family: str
    normalization: str = "global"
    seed: int = 0
    block_length: int | None = None
    scope: str = "model"
    match_norms: bool = False


def assemble(entries: list[Entry], d: int, kind: Kind, snapshots: Snapshots | None = None) -> Projection:
    """Make the projection of a laid-out model.

    Args:
        entries: The parameters that it spans.
        d: Its dimension, of each layer where the scope is "layer".
        kind: What to make.
        snapshots: What a learned subspace, or `match_norms`, is made of.

    Raises:
        ConfigError: The kind is inconsistent, or lacks snapshots.
        DimensionError: d does not fit.
        TrajectoryError: The snapshots are of another layout.
    """
    if kind.scope not in SCOPES:
        raise ConfigError(f"scope = {kind.scope!r} is unknown; use one of {', '.join(SCOPES)}")
    learned = kind.family == "trajectory"
    if learned and kind.match_norms:
        raise ConfigError('match_norms is for random projections; "trajectory" has the norms of its checkpoints')
    if learned and kind.normalization != "global":
        raise ConfigError('normalization is for random projections; "trajectory" has orthonormal columns')
    if (learned or kind.match_norms) and snapshots is None:
        raise ConfigError("projection 'trajectory' and match_norms are made of checkpoints; give snapshots")
    if kind.scope == "model":
        return _one(entries, d, kind, kind.seed, snapshots)
    parts = layers(entries)
    return PerLayer([_one(part, d, kind, _seed(kind.seed, k), snapshots) for k, part in enumerate(parts)])


def _one(entries: list[Entry], d: int, kind: Kind, seed: int, snapshots: Snapshots | None) -> Projection:
    names, theta_0 = [entry.name for entry in entries], [entry.frozen for entry in entries]
    if kind.family == "trajectory":
        assert snapshots is not None, "checked above"
        return Trajectory(snapshots.rows(names, theta_0), d, snapshots.mode)
    sizes = [tensor.numel() for tensor in theta_0]
    made = build(kind.family, sizes, d, seed, kind.normalization, kind.block_length)
    if kind.match_norms:
        assert snapshots is not None, "checked above"
        if not isinstance(made, Blockwise):
            raise ConfigError(f"match_norms does not go with projection {kind.family!r}; take fastfood")
        last = snapshots.rows(names, theta_0)[len(snapshots.updates) - 1]
        made.match([tensor.float().norm().item() for tensor in last])
    return made


def _seed(seed: int, layer: int) -> int:
    """Give each layer bits of its own."""
    return int.from_bytes(hashlib.sha256(f"{seed}/layer/{layer}".encode()).digest()[:7], "little")
