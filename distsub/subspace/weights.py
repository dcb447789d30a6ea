"""The weights of some positions, theta_0 + lambda * P theta, and the transpose of that map."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from distsub.subspace.layout import Entry, Unit, offsets
from distsub.subspace.projection import Encoded, Placed, Projection


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
        self._encoded: tuple[Numbers, Tensor | Encoded] | None = None

    def _theta(self, numbers: Numbers) -> Tensor | Encoded:
        """Encode theta once for all that is made from the same numbers, which nobody writes to."""
        if torch.is_grad_enabled():  # a second derivative has a history of its own
            return numbers.theta
        if self._encoded is None or self._encoded[0] is not numbers:
            self._encoded = (numbers, self.projection.encode(numbers.theta))
        return self._encoded[1]

    def update(self, numbers: Numbers, start: int, stop: int) -> Tensor:
        """Compute what is added to theta_0 on a slice of the positions, (lambda * P theta)[start:stop]."""
        return self._scaled(numbers, self.projection.apply(self._theta(numbers), start, stop), start)

    def make(
        self,
        numbers: Numbers,
        runs: tuple[tuple[int, int], ...],
        used: list[Entry],
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Compute theta_0 + lambda * P theta over runs of positions, laid end to end.

        Where a kernel does, it rounds to `dtype` in its one write; else the result has theta's, to be rounded.
        """
        if (made := self._made(numbers, runs, used, dtype)) is not None:
            return made
        pieces = [self.update(numbers, start, stop) for start, stop in runs]
        flat = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        once = {entry.start: entry for entry in used}  # tied weights are several uses of one entry
        places = list(offsets(runs, list(once.values())))
        _add(flat, places, [entry.frozen.detach() for entry, _ in places])
        return flat

    def _made(
        self, numbers: Numbers, runs: tuple[tuple[int, int], ...], used: list[Entry], dtype: torch.dtype | None
    ) -> Tensor | None:
        """Make weights by a kernel, where the projection has one."""
        if torch.is_grad_enabled():
            return None
        scales, pieces = numbers.scales if numbers.scales.numel() else None, []
        for start, stop in runs:
            once = {entry.start: entry for entry in used if start <= entry.start < stop}
            add = [(at, e.frozen.detach(), self._group(e)) for at, e in once.items()]
            kind = numbers.theta.dtype if dtype is None else dtype
            made = self.projection.make(self._theta(numbers), start, stop, add, scales, kind)
            if made is None:
                return None
            pieces.append(made)
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def _group(self, entry: Entry) -> int:
        """Give the group of scales that an entry is in; 0 where there are none."""
        return next((group for _, _, group in self._group_runs(entry.start, entry.stop)), 0)

    def reduce(self, numbers: Numbers, unit: Unit, grads: list[tuple[Entry, Tensor]]) -> tuple[Tensor, Tensor | None]:
        """Reduce a unit's weight gradients to coordinates and scales: lambda P^T g and <g_i, (P theta)_i>."""
        once: dict[Entry, Tensor] = {}  # tied weights have several gradients, and an autocast one of its own
        for entry, grad in grads:
            once[entry] = once[entry] + grad if entry in once else grad
        if (found := self._collapsed(numbers, unit, once)) is not None:
            return found
        flat = numbers.theta.new_zeros(sum(stop - start for start, stop in unit.runs))
        places = list(offsets(unit.runs, list(once)))
        _add(flat, places, [once[entry] for entry, _ in places])
        scales = torch.zeros_like(numbers.scales) if numbers.scales.numel() else None
        theta, done = None, 0
        for start, stop in unit.runs:
            reduced = self._reduce_run(numbers, flat[done : done + stop - start], start, scales)
            theta = reduced if theta is None else theta + reduced
            done += stop - start
        assert theta is not None, "a unit has a run"
        return theta, scales

    def _collapsed(
        self, numbers: Numbers, unit: Unit, grads: dict[Entry, Tensor]
    ) -> tuple[Tensor, Tensor | None] | None:
        """Reduce gradients where they lie by a kernel, where the projection has one, and one scale covers a run."""
        scales = torch.zeros_like(numbers.scales) if numbers.scales.numel() else None
        theta = torch.zeros_like(numbers.theta)
        for start, stop in unit.runs:
            groups = {group for *_, group in self._group_runs(start, stop)} if scales is not None else {0}
            within = [(entry.start, grad, 0) for entry, grad in grads.items() if start <= entry.start < stop]
            found = self.projection.collapse(start, stop, within) if len(groups) == 1 else None
            if found is None:
                return None
            if scales is not None:
                [group] = groups
                scales[group] += torch.dot(found, numbers.theta)
                found *= numbers.scales[group]
            theta += found
        return theta, scales

    def place(self, entry: Entry, rows: Tensor) -> Tensor | Placed:
        """Find once what both directions need of some rows of a table."""
        return self.projection.find_rows(entry.start, entry.frozen.shape[1], rows)

    def rows(self, numbers: Numbers, entry: Entry, rows: Tensor | Placed) -> Tensor:
        """Compute the update of some rows of a table, shape [rows, width]."""
        update = self.projection.apply_rows(self._theta(numbers), entry.start, entry.frozen.shape[1], rows)
        return update * self._scale(numbers, entry) if numbers.scales.numel() else update

    def reduce_rows(
        self, numbers: Numbers, entry: Entry, rows: Tensor | Placed, grad: Tensor
    ) -> tuple[Tensor, Tensor | None]:
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

    def _reduce_run(self, numbers: Numbers, grad: Tensor, start: int, scales: Tensor | None) -> Tensor:
        """Reduce one contiguous slice to coordinates, and add its share to the scales' gradients."""
        if scales is None:
            return self.projection.adjoint(grad, start)
        runs = list(self._group_runs(start, start + grad.numel()))
        if len(runs) == 1:
            # <g, P theta> = <P^T g, theta>: the scale's gradient costs nothing more.
            reduced = self.projection.adjoint(grad, start)
            group = runs[0][2]
            scales[group] += torch.dot(reduced, numbers.theta)
            return reduced * numbers.scales[group]
        update = self.projection.apply(self._theta(numbers), start, start + grad.numel())
        for low, high, group in runs:
            scales[group] += torch.dot(grad[low - start : high - start], update[low - start : high - start])
        own = grad.clone() if torch.is_grad_enabled() else grad  # a second derivative needs what `dot` has read
        return self.projection.adjoint(self._scaled(numbers, own, start), start)


def _add(flat: Tensor, places: list[tuple[Entry, int]], tensors: list[Tensor]) -> None:
    """Add tensors to their places in a buffer: in one operation, where no history is kept."""
    views = (flat[at : at + entry.stop - entry.start].view(entry.frozen.shape) for entry, at in places)
    if torch.is_grad_enabled():
        for view, tensor in zip(views, tensors, strict=True):
            view.add_(tensor)
    else:
        torch._foreach_add_(list(views), tensors)  # pyright: ignore[reportPrivateImportUsage]
