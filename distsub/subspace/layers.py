"""One subspace per layer: a block-diagonal P.

theta holds the first coordinate of every layer, then the second of every layer, and so on: subspaces of smaller d are
then prefixes of larger ones, as they are for every other family.

Source: Zhang et al. 2023, Eq. 2 and 3 (one V and one theta for each encoder layer).
"""

from collections.abc import Iterator, Sequence

from torch import Tensor

from distsub.subspace.projection import Projection, exact


class PerLayer(Projection):
    """Several projections over consecutive stretches of the positions, each with coordinates of its own.

    Isometric, and nested, where the parts are.

    Args:
        parts: In the order of positions, all of the same d.
    """

    family = "per_layer"

    def __init__(self, parts: Sequence[Projection]) -> None:
        """Lay the parts end to end."""
        sizes = [size for part in parts for size in part.sizes]
        super().__init__(sizes, sum(part.d for part in parts), parts[0].seed, parts[0].normalization)
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
        out = grad.new_zeros(self.d)
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
        out = grad.new_zeros(self.d)
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
