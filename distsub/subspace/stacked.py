"""Projections made of projections, each over a stretch of the positions."""

from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from typing import ClassVar

from torch import Tensor

from distsub.subspace.projection import Projection, exact


class Stacked(Projection):
    """Several projections over consecutive stretches of the positions; a subclass says what each reads of theta."""

    family: ClassVar[str]
    parts: Sequence[Projection]

    def place(self, number: int) -> slice:
        """Say which entries of theta a part reads."""
        return slice(None)

    def scale(self, number: int) -> float:
        """Say what a part is multiplied with."""
        return 1.0

    @exact
    def apply(self, theta: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        """Implement `Projection.apply`, part by part."""
        stop = self.num_params if stop is None else stop
        self._check(theta, start, stop)
        out = theta.new_empty(stop - start)
        for number, at, low, high in self._overlaps(start, stop):
            piece = self.parts[number].apply(theta[self.place(number)], low - at, high - at)
            out[low - start : high - start] = piece * self.scale(number)
        return out

    @exact
    def adjoint(self, grad: Tensor, start: int = 0) -> Tensor:
        """Implement `Projection.adjoint`, part by part."""
        stop = start + grad.numel()
        self._check(None, start, stop)
        out = grad.new_zeros(self.num_coordinates)
        for number, at, low, high in self._overlaps(start, stop):
            piece = self.parts[number].adjoint(grad[low - start : high - start], low - at)
            out[self.place(number)].add_(piece, alpha=self.scale(number))
        return out

    @exact
    def apply_rows(self, theta: Tensor, start: int, width: int, rows: Tensor) -> Tensor:
        """Implement `Projection.apply_rows`: a table lies in one part."""
        self._check(theta, start, start + width)
        number, at, _, _ = next(self._overlaps(start, start + 1))
        return self.parts[number].apply_rows(theta[self.place(number)], start - at, width, rows) * self.scale(number)

    @exact
    def adjoint_rows(self, grad: Tensor, start: int, rows: Tensor) -> Tensor:
        """Implement `Projection.adjoint_rows`: a table lies in one part."""
        self._check(None, start, start + grad.shape[1])
        number, at, _, _ = next(self._overlaps(start, start + 1))
        out = grad.new_zeros(self.num_coordinates)
        out[self.place(number)] = self.parts[number].adjoint_rows(grad, start - at, rows) * self.scale(number)
        return out

    def forget(self) -> None:
        """Implement `Projection.forget`, part by part."""
        for part in self.parts:
            part.forget()

    def _stretches(self) -> Sequence[int]:
        """Give the positions at which parts begin, and the last one's end."""
        return self.offsets

    def _overlaps(self, start: int, stop: int) -> Iterator[tuple[int, int, int, int]]:
        """Give (part, its first position, slice start, slice stop) for the parts that a slice touches."""
        edges = self._stretches()
        for number, (low, high) in enumerate(pairwise(edges)):
            if low < stop and high > start:
                yield number, low, max(low, start), min(high, stop)


class PerLayer(Stacked):
    """A block-diagonal P: one projection for each layer, with coordinates of its own.

    Isometric, and nested, where the parts are: theta holds the first coordinate of every part, then the second of every
    part, and so on. Source: Zhang et al. 2023, Eq. 2 and 3 (one V and one theta for each encoder layer).

    Args:
        parts: In the order of positions, all of the same number of coordinates.
    """

    family = "per_layer"

    def __init__(self, parts: Sequence[Projection]) -> None:
        """Lay the parts end to end."""
        sizes = [size for part in parts for size in part.sizes]
        super().__init__(sizes, sum(part.num_coordinates for part in parts), parts[0].seed, parts[0].normalization)
        self.parts = tuple(parts)

    def place(self, number: int) -> slice:
        """Interleave the parts' coordinates."""
        return slice(number, None, len(self.parts))

    def _stretches(self) -> Sequence[int]:
        return (0, *accumulate(part.num_params for part in self.parts))
