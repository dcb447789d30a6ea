"""The projection of a laid-out model, from the record that says what it is made of."""

import hashlib
from collections.abc import Sequence

from distsub.errors import ConfigError
from distsub.records import Learned, Subspace
from distsub.subspace import layout
from distsub.subspace.blockwise import Blockwise
from distsub.subspace.families import Dense, Partition, Sparse
from distsub.subspace.fastfood import Fastfood, FastfoodPerTensor, next_power_of_two
from distsub.subspace.layout import Entry
from distsub.subspace.projection import Projection
from distsub.subspace.stacked import PerLayer
from distsub.subspace.trajectory import Snapshots

FAMILIES = {cls.family: cls for cls in (Dense, Sparse, Fastfood, FastfoodPerTensor, Partition)}


def build(
    family: str,
    sizes: Sequence[int],
    num_coordinates: int,
    seed: int,
    normalization: str,
    block_length: int | None = None,
) -> Projection:
    """Make the projection of a family that a seed is enough for.

    Raises:
        ConfigError: The family is unknown.
        DimensionError: The coordinates do not fit.
    """
    if family not in FAMILIES:
        raise ConfigError(f"projection family {family!r} is unknown; use one of {', '.join(FAMILIES)}")
    return FAMILIES[family](sizes, num_coordinates, seed, normalization, block_length=block_length)


def assemble(
    entries: list[Entry], d: int, spec: Subspace, seed: int = 0, snapshots: Snapshots | None = None
) -> Projection:
    """Make the projection of a laid-out model.

    Args:
        entries: The parameters that it spans.
        d: Numbers to train, of each layer where the scope is "layer"; scales are paid for out of it.
        spec: What it is made of.
        seed: Projection seed; layers get seeds of their own from it.
        snapshots: The checkpoints that a learned subspace is made of, or a random one scaled to.

    Raises:
        ConfigError: The record is inconsistent, or lacks snapshots.
        DimensionError: d does not fit.
        TrajectoryError: The snapshots are of another layout.
    """
    num_coordinates = d - layout.check_dimension(d, entries, spec.scales)
    if spec.scope == "layer" and spec.scales:
        raise ConfigError('scope = "layer" has a theta for each layer and no scales; leave scales out')
    if spec.span is not None and snapshots is None:
        raise ConfigError("this subspace is made of checkpoints, or scaled to one; give snapshots")
    if spec.scope == "model":
        return _one(entries, num_coordinates, spec, seed, snapshots, d)
    parts = [
        _one(part, num_coordinates, spec, _seed_of_layer(seed, number), snapshots, d)
        for number, part in enumerate(layout.layers(entries))
    ]
    return PerLayer(parts)


def _one(
    entries: list[Entry], num_coordinates: int, spec: Subspace, seed: int, snapshots: Snapshots | None, d: int
) -> Projection:
    names, theta_0, made_of = [entry.name for entry in entries], [entry.frozen for entry in entries], spec.projection
    if isinstance(made_of, Learned):
        assert snapshots is not None, "checked above"
        return snapshots.projection(names, theta_0, num_coordinates, made_of.span.mode)
    sizes, block_length = [tensor.numel() for tensor in theta_0], made_of.block_length or next_power_of_two(max(d, 4))
    made = build(made_of.family, sizes, num_coordinates, seed, made_of.normalization, block_length)
    if made_of.match is not None:
        assert snapshots is not None, "checked above"
        if not isinstance(made, Blockwise):
            raise ConfigError(f"projection {made_of.family!r} cannot be scaled to a trajectory; take fastfood")
        made.match([tensor.float().norm().item() for tensor in snapshots.rows(names, theta_0)[-1]])
    return made


def _seed_of_layer(seed: int, layer: int) -> int:
    """Give each layer bits of its own."""
    return int.from_bytes(hashlib.sha256(f"{seed}/layer/{layer}".encode()).digest()[:7], "little")
