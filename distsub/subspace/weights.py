"""The weights of some positions, theta_0 + lambda * P theta, and the transpose of that map."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from distsub.subspace.layout import Entry, Unit, offsets
from distsub.subspace.projection import Projection


class Numbers(NamedTuple):
    """The trained numbers that weights are made from: theta, shape [num_coordinates], and lambda, shape [scales]."""

    theta: Tensor
    scales: Tensor


class Weights:
    """Makes weights on any stretch of the D positions, and reduces their gradients to the trained numbers.

    Args:
        projection: P.
        groups: (start, stop, group number) runs that share a scale; see `layout.scale_groups`.
    """

    def __init__(self, projection: Projection, groups: list[tuple[int, int, int]]) -> None:
        """Keep both; nothing is computed yet."""
        self.projection = projection
        self.groups = groups

    def update(self, numbers: Numbers, start: int, stop: int) -> Tensor:
        """Compute what is added to theta_0 on a slice of the positions, (lambda * P theta)[start:stop]."""
        return self._scaled(numbers, self.projection.apply(numbers.theta, start, stop), start)

    def make(self, numbers: Numbers, runs: tuple[tuple[int, int], ...], used: list[Entry]) -> Tensor:
        """Compute theta_0 + lambda * P theta over runs of positions, laid end to end."""
        pieces = [self.update(numbers, start, stop) for start, stop in runs]
        flat = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        once = {entry.start: entry for entry in used}  # tied weights are several uses of one entry
        for entry, offset in offsets(runs, list(once.values())):
            flat[offset : offset + entry.stop - entry.start].view(entry.frozen.shape).add_(entry.frozen.detach())
        return flat

    def reduce(self, numbers: Numbers, unit: Unit, grads: list[tuple[Entry, Tensor]]) -> tuple[Tensor, Tensor | None]:
        """Reduce a unit's weight gradients to coordinates and scales: lambda P^T g and <g_i, (P theta)_i>."""
        flat = numbers.theta.new_zeros(sum(stop - start for start, stop in unit.runs))
        for (entry, offset), (_, grad) in zip(offsets(unit.runs, [e for e, _ in grads]), grads, strict=True):
            flat[offset : offset + entry.stop - entry.start].view(grad.shape).add_(grad)
        theta, done = numbers.theta.new_zeros(self.projection.num_coordinates), 0
        scales = torch.zeros_like(numbers.scales) if numbers.scales.numel() else None
        for start, stop in unit.runs:
            self._reduce_run(numbers, flat[done : done + stop - start], start, theta, scales)
            done += stop - start
        return theta, scales

    def rows(self, numbers: Numbers, entry: Entry, rows: Tensor) -> Tensor:
        """Compute the update of some rows of a table, shape [rows, width]."""
        update = self.projection.apply_rows(numbers.theta, entry.start, entry.frozen.shape[1], rows)
        return update * self._scale(numbers, entry) if numbers.scales.numel() else update

    def reduce_rows(self, numbers: Numbers, entry: Entry, rows: Tensor, grad: Tensor) -> tuple[Tensor, Tensor | None]:
        """Reduce the gradient of some rows of a table, shape [rows, width], to coordinates and scales."""
        reduced = self.projection.adjoint_rows(grad.contiguous(), entry.start, rows)
        if not numbers.scales.numel():
            return reduced, None
        [(_, _, group)] = self._group_runs(entry.start, entry.stop)
        scales = torch.zeros_like(numbers.scales)
        scales[group] = torch.dot(reduced, numbers.theta)
        return reduced * self._scale(numbers, entry), scales

    def _scale(self, numbers: Numbers, entry: Entry) -> Tensor:
        [(_, _, group)] = self._group_runs(entry.start, entry.stop)
        return numbers.scales[group]

    def _scaled(self, numbers: Numbers, flat: Tensor, start: int) -> Tensor:
        """Multiply a slice of positions by its groups' scales, in place."""
        if numbers.scales.numel():
            for low, high, group in self._group_runs(start, start + flat.numel()):
                flat[low - start : high - start].mul_(numbers.scales[group])
        return flat

    def _group_runs(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Cut a slice of positions where the SAID group changes."""
        for low, high, group in self.groups:
            if low < stop and high > start:
                yield max(low, start), min(high, stop), group

    def _reduce_run(self, numbers: Numbers, grad: Tensor, start: int, theta: Tensor, scales: Tensor | None) -> None:
        """Add one contiguous slice's share to the reduced gradients."""
        runs = list(self._group_runs(start, start + grad.numel()))
        if scales is None:
            theta.add_(self.projection.adjoint(grad, start))
        elif len(runs) == 1:
            # <g, P theta> = <P^T g, theta>: the scale's gradient costs nothing more.
            reduced = self.projection.adjoint(grad, start)
            group = runs[0][2]
            theta.add_(reduced * numbers.scales[group])
            scales[group] += torch.dot(reduced, numbers.theta)
        else:
            update = self.projection.apply(numbers.theta, start, start + grad.numel())
            for low, high, group in runs:
                scales[group] += torch.dot(grad[low - start : high - start], update[low - start : high - start])
            own = grad.clone() if torch.is_grad_enabled() else grad  # a second derivative needs what `dot` has read
            theta.add_(self.projection.adjoint(self._scaled(numbers, own, start), start))
