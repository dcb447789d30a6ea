"""The projection of a laid-out model, from the record that says what it is made of."""

import hashlib
from collections.abc import Iterator, Sequence

from torch import Tensor

from distsub.errors import ConfigError
from distsub.records import Learned, Subspace
from distsub.subspace import layout
from distsub.subspace.families import Dense, Partition, Sparse
from distsub.subspace.fastfood import Fastfood, FastfoodPerTensor, next_power_of_two
from distsub.subspace.layout import Entry
from distsub.subspace.projection import Blockwise, Projection, exact
from distsub.subspace.trajectory import Snapshots, Trajectory

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
        return Trajectory(snapshots.rows(names, theta_0, made_of.span.mode), num_coordinates, made_of.span.mode)
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


class PerLayer(Projection):
    """Several projections over consecutive stretches of the positions, each with coordinates of its own.

    Isometric, and nested, where the parts are: theta holds the first coordinate of every part, then the second of every
    part, and so on. Source: Zhang et al. 2023, Eq. 2 and 3 (one V and one theta for each encoder layer).

    Args:
        parts: In the order of positions, all of the same d.
    """

    family = "per_layer"

    def __init__(self, parts: Sequence[Projection]) -> None:
        """Lay the parts end to end."""
        sizes = [size for part in parts for size in part.sizes]
        super().__init__(sizes, sum(part.num_coordinates for part in parts), parts[0].seed, parts[0].normalization)
        self.parts = tuple(parts)

    @exact
    def apply(self, theta: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        """Implement `Projection.apply`, part by part."""
        stop = self.num_params if stop is None else stop
        self._check(theta, start, stop)
        out = theta.new_empty(stop - start)
        for part, at, place in self._walk():
            low, high = max(at, start), min(at + part.num_params, stop)
            if low < high:
                out[low - start : high - start] = part.apply(theta[place], low - at, high - at)
        return out

    @exact
    def adjoint(self, grad: Tensor, start: int = 0) -> Tensor:
        """Implement `Projection.adjoint`, part by part."""
        stop = start + grad.numel()
        self._check(None, start, stop)
        out = grad.new_zeros(self.num_coordinates)
        for part, at, place in self._walk():
            low, high = max(at, start), min(at + part.num_params, stop)
            if low < high:
                out[place] = part.adjoint(grad[low - start : high - start], low - at)
        return out

    @exact
    def apply_rows(self, theta: Tensor, start: int, width: int, rows: Tensor) -> Tensor:
        """Implement `Projection.apply_rows`: a table lies in one part."""
        self._check(theta, start, start + width)
        part, at, place = self._part(start)
        return part.apply_rows(theta[place], start - at, width, rows)

    @exact
    def adjoint_rows(self, grad: Tensor, start: int, rows: Tensor) -> Tensor:
        """Implement `Projection.adjoint_rows`: a table lies in one part."""
        self._check(None, start, start + grad.shape[1])
        part, at, place = self._part(start)
        out = grad.new_zeros(self.num_coordinates)
        out[place] = part.adjoint_rows(grad, start - at, rows)
        return out

    def _walk(self) -> Iterator[tuple[Projection, int, slice]]:
        """Give each part with its first position and its place in theta."""
        position = 0
        for number, part in enumerate(self.parts):
            yield part, position, slice(number, None, len(self.parts))
            position += part.num_params

    def _part(self, position: int) -> tuple[Projection, int, slice]:
        """Find the part that holds a position."""
        return next(each for each in self._walk() if position < each[1] + each[0].num_params)
