"""The projection families by name; those that a seed is enough for."""

from collections.abc import Sequence

from distsub.errors import ConfigError
from distsub.subspace.dense import Dense
from distsub.subspace.fastfood import Fastfood, FastfoodPerTensor
from distsub.subspace.partition import Partition
from distsub.subspace.projection import Projection
from distsub.subspace.sparse import Sparse

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
