"""A learned projection: the leading directions in which full fine-tunings moved the weights.

With W [t, D] the checkpoints of a fine-tuning as rows and W = U S V^T, the columns of V are the subspace (Zhang et al.
2023, Eq. 2 and 3; over all layers at once: Li et al. 2022, arXiv:2103.11154). V has D rows and is never made:
G = W W^T [t, t] gives U and S, and

    V theta = W^T (U S^-1 theta),        V^T g = S^-1 U^T (W g)

stream over the checkpoints, which stay mapped on disk; on a device they are one matrix there, where it has room, and
each of both is a product with that. What is stored are differences D_j = theta_j - theta_0, so each
kind of row is W = B R with few more rows R than W has: B = I (difference), I - 11^T/t (centered), or [I 1] on
R = [D; theta_0] (raw); then G = B (R R^T) B^T.
"""

import base64
import functools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from distsub.errors import ConfigError, DimensionError, TrajectoryError
from distsub.subspace import projection
from distsub.subspace.projection import CHUNK, Projection, exact

MODES = ("difference", "centered", "raw")

RANK = 1e-6
"""Singular values below this share of the largest are no directions: squared, they drown in float64's rounding."""

WIDE = 1 << 26
"""Numbers of R that a device holds in theta's precision at once, where they are kept in a shorter one: 256 MiB."""

Rows = Sequence[Sequence[Tensor]]
"""Rows of R: for each, one flat tensor per parameter, laid end to end."""


@dataclass(frozen=True)
class MadeOf:
    """Which checkpoints a subspace is made of: all of `Snapshots` but the numbers.

    Attributes:
        recordings: Ids of the trajectories that they come from, in order.
        fingerprint: Identity of the content: a hash over the files' hashes and the mode.
    """

    recordings: tuple[str, ...] = ()
    fingerprint: str = ""


@dataclass(frozen=True)
class Snapshots:
    """The checkpoints that a learned subspace is made of.

    Attributes:
        updates: theta_j - theta_0 of each, by parameter name; usually views of mapped files.
        made_of: Which they are.
        remember: Keeps a text that is costly to compute, once per machine (`cache.remembered`): Gram matrices, each of
            which takes a pass over all checkpoints. None computes them every time.
    """

    updates: tuple[Mapping[str, Tensor], ...]
    made_of: MadeOf = MadeOf()
    remember: Callable[[str, Callable[[], str]], str] | None = field(default=None, compare=False)

    def rows(self, names: Sequence[str], theta_0: Sequence[Tensor], mode: str = "difference") -> list[list[Tensor]]:
        """Lay out R over some parameters.

        Args:
            names: The parameters.
            theta_0: Their pretrained values.
            mode: What the rows of W are: "difference", "centered" or "raw".

        Raises:
            TrajectoryError: A checkpoint lacks one of them, or has it in another shape.
        """
        out = []
        for update in self.updates:
            for name, tensor in zip(names, theta_0, strict=True):
                shape = list(update[name].shape) if name in update else None
                if shape != list(tensor.shape):
                    have = "lacks it" if shape is None else f"has {shape}"
                    raise TrajectoryError(
                        f"the trajectory is of another layout: this model has {name} {list(tensor.shape)}, a "
                        f"checkpoint {have}; record one of the same architecture and number of labels"
                    )
            out.append([update[name].reshape(-1) for name in names])
        return [*out, [tensor.reshape(-1) for tensor in theta_0]] if mode == "raw" else out

    def projection(
        self, names: Sequence[str], theta_0: Sequence[Tensor], num_coordinates: int, mode: str = "difference"
    ) -> "Trajectory":
        """Span the leading directions over some parameters; see `rows` and `Trajectory`."""
        rows = self.rows(names, theta_0, mode)
        if self.remember is None or not self.made_of.fingerprint or mode == "raw":  # theta_0 has no part in the name
            return Trajectory(rows, num_coordinates, mode)
        layout = [[name, list(tensor.shape)] for name, tensor in zip(names, theta_0, strict=True)]
        about = json.dumps(["gram", self.made_of.fingerprint, layout])
        text = self.remember(about, lambda: base64.b64encode(gram(rows).numpy().tobytes()).decode())
        products = torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.float64)
        return Trajectory(rows, num_coordinates, mode, products.view(len(rows), len(rows)))


class Trajectory(Projection):
    """P = the first d columns of V: an exact isometry. Nested: yes, by singular value. Cost: t D per apply.

    The sign of each column is fixed by the largest entry of its column of U.

    Args:
        rows: R, see `Snapshots.rows`.
        num_coordinates: Leading directions; the d of the formulas.
        mode: "difference", "centered" or "raw"; for "raw" the last of `rows` is theta_0.
        products: R R^T, where it is known (`gram`).

    Raises:
        DimensionError: There are not so many independent directions.
        ConfigError: The mode is unknown.
        TrajectoryError: A checkpoint is not finite.
    """

    family = "trajectory"

    def __init__(
        self, rows: Rows, num_coordinates: int, mode: str = "difference", products: Tensor | None = None
    ) -> None:
        """Compute the Gram matrix, unless it is given: one pass over all checkpoints."""
        if mode not in MODES:
            raise ConfigError(f"mode = {mode!r} is unknown; use one of {', '.join(MODES)}")
        self._rows = rows
        self._on: dict[torch.device, Tensor | None] = {}
        self._combine = _combination(len(rows), mode)
        count = len(self._combine)
        super().__init__([tensor.numel() for tensor in rows[0]], num_coordinates, seed=0)
        if num_coordinates > count:
            raise DimensionError(
                f"{num_coordinates} coordinates do not fit: the trajectory has {count} checkpoints; take 1 to {count}, "
                "or record more"
            )
        squares, vectors = torch.linalg.eigh(
            self._combine @ (gram(rows) if products is None else products) @ self._combine.T
        )
        vectors = vectors.flip(1)
        signs = vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()
        self.singular_values = squares.flip(0).clamp(min=0).sqrt()
        """Of W, falling, shape [t], float64."""
        rank = int((self.singular_values > RANK * self.singular_values[0]).sum())
        if num_coordinates > rank:
            why = " (centering takes one away)" if mode == "centered" else ""
            raise DimensionError(
                f"{num_coordinates} coordinates do not fit: the {count} checkpoints have {rank} independent "
                f"directions{why}; lower d"
            )
        # V = R^T B^T U S^-1: what theta is multiplied with before it meets the rows.
        self._basis = self._combine.T @ (vectors * signs)[:, :num_coordinates] / self.singular_values[:num_coordinates]

    @cached_property
    def explained(self) -> Tensor:
        """Share of the squared norm of W that the first 1, 2, ... t directions hold, shape [t]."""
        squares = self.singular_values.square()
        return squares.cumsum(0) / squares.sum()

    @exact
    def apply(self, theta: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        """Implement `Projection.apply`: a sum of the checkpoints' slices."""
        stop = self.num_params if stop is None else stop
        self._check(theta, start, stop)
        weights = self._weights(theta)
        if (matrix := self._matrix(theta.device)) is not None:
            return _mix(weights, matrix[:, start:stop])
        out = theta.new_zeros(stop - start)
        for at, pieces in self._pieces(start, stop):
            chunk = out[at : at + pieces[0].numel()]
            for weight, piece in zip(weights, pieces, strict=True):
                chunk.addcmul_(piece.to(theta), weight)
        return out

    @exact
    def adjoint(self, grad: Tensor, start: int = 0) -> Tensor:
        """Implement `Projection.adjoint`: one inner product with each checkpoint's slice."""
        self._check(None, start, start + grad.numel())
        if (matrix := self._matrix(grad.device)) is not None:
            return self._coordinates(_meet(matrix[:, start : start + grad.numel()], grad)).to(grad.dtype)
        inner = torch.zeros(len(self._rows), dtype=torch.float64, device=grad.device)
        for at, pieces in self._pieces(start, start + grad.numel()):
            chunk = grad[at : at + pieces[0].numel()]
            inner += torch.stack([torch.dot(piece.to(grad), chunk) for piece in pieces])
        return self._coordinates(inner).to(grad.dtype)

    @exact
    def apply_rows(self, theta: Tensor, start: int, width: int, rows: Tensor) -> Tensor:
        """Implement `Projection.apply_rows`: the rows of every checkpoint's table."""
        self._check(theta, start, start + width)
        if (matrix := self._matrix(theta.device)) is not None:
            pieces = [_mix(self._weights(theta), found) for _, found in self._some(matrix, start, width, rows)]
            return torch.cat(pieces).view(-1, width) if pieces else theta.new_zeros(0, width)
        out = theta.new_zeros(rows.numel(), width)
        for weight, table in zip(self._weights(theta), self._tables(start, width), strict=True):
            out.addcmul_(table[rows.to(table.device)].to(theta), weight)
        return out

    @exact
    def adjoint_rows(self, grad: Tensor, start: int, rows: Tensor) -> Tensor:
        """Implement `Projection.adjoint_rows`."""
        self._check(None, start, start + grad.shape[1])
        if (matrix := self._matrix(grad.device)) is not None:
            found = self._some(matrix, start, grad.shape[1], rows)
            inner = torch.zeros(len(matrix), dtype=torch.float64, device=grad.device)
            for part, picked in found:
                inner += _meet(picked, grad[part].reshape(-1))
            return self._coordinates(inner).to(grad.dtype)
        tables = self._tables(start, grad.shape[1])
        inner = torch.stack([(table[rows.to(table.device)].to(grad) * grad).sum() for table in tables])
        return self._coordinates(inner.double()).to(grad.dtype)

    def _weights(self, theta: Tensor) -> Tensor:
        """Compute how much of each row of R the update has."""
        return (self._table("_basis", theta.device) @ theta.double()).to(theta.dtype)

    def _coordinates(self, inner: Tensor) -> Tensor:
        """Turn inner products with the rows of R into coordinates, the transpose of `_weights`."""
        return self._table("_basis", inner.device).T @ inner

    def _matrix(self, device: torch.device) -> Tensor | None:
        """Give R as one matrix on a device, sent once; None on a CPU, and where half of a device would not hold it."""
        if not projection.launches(device):
            return None
        if device not in self._on:
            dtype = functools.reduce(torch.promote_types, (tensor.dtype for row in self._rows for tensor in row))
            size = len(self._rows) * self.num_params * dtype.itemsize
            self._on[device] = None
            if size <= _room(device):
                with torch.inference_mode(False), torch.no_grad():
                    matrix = torch.empty(len(self._rows), self.num_params, dtype=dtype, device=device)
                    for line, row in zip(matrix, self._rows, strict=True):
                        for place, tensor in zip(line.split(self.sizes), row, strict=True):
                            place.copy_(tensor)
                self._on[device] = matrix
        return self._on[device]

    def _some(self, matrix: Tensor, start: int, width: int, rows: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Pick rows of the table that begins at a position from every row of R: [len(R), picked * width]."""
        usable = (next(end for end in self.offsets[1:] if start < end) - start) // width * width
        tables = matrix[:, start : start + usable].unflatten(1, (-1, width))
        step = max(1, WIDE // (len(matrix) * width))
        for begin in range(0, len(rows), step):
            part = slice(begin, begin + step)
            yield part, tables.index_select(1, rows[part]).flatten(1)

    def _pieces(self, start: int, stop: int) -> Iterator[tuple[int, list[Tensor]]]:
        """Cut a slice at tensors and chunks; give each piece's offset in the slice and its stretch of every row."""
        for tensor, (low, high) in enumerate(zip(self.offsets, self.offsets[1:], strict=False)):
            first, last = max(low, start), min(high, stop)
            for begin in range(first, last, CHUNK):
                end = min(begin + CHUNK, last)
                yield begin - start, [row[tensor][begin - low : end - low] for row in self._rows]

    def _tables(self, start: int, width: int) -> list[Tensor]:
        """View the matrix that begins at a position in every row of R."""
        tensor = next(i for i, end in enumerate(self.offsets[1:]) if start < end)
        skipped = start - self.offsets[tensor]
        usable = (self.sizes[tensor] - skipped) // width * width
        return [row[tensor][skipped : skipped + usable].view(-1, width) for row in self._rows]


def _room(device: torch.device) -> float:
    """Say how many more bytes this process may put on a device before half of its share is full."""
    if device.type != "cuda":
        return math.inf
    share = torch.cuda.get_per_process_memory_fraction(device) * torch.cuda.get_device_properties(device).total_memory
    return share / 2 - torch.cuda.memory_allocated(device)


def _mix(weights: Tensor, columns: Tensor) -> Tensor:
    """Multiply weights [t] with columns [t, n] that may be kept in a shorter precision: [n]."""
    if columns.dtype == weights.dtype:
        return weights @ columns
    parts = columns.split(max(1, WIDE // len(columns)), dim=1)
    pieces = [weights @ part.to(weights.dtype) for part in parts]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def _meet(columns: Tensor, grad: Tensor) -> Tensor:
    """Multiply columns [t, n] with a gradient [n]: [t], summed in float64 over stretches as on a CPU."""
    total = torch.zeros(len(columns), dtype=torch.float64, device=grad.device)
    step = max(CHUNK, WIDE // len(columns) // CHUNK * CHUNK)
    for part, some in zip(columns.split(step, dim=1), grad.split(step), strict=True):
        whole = some.numel() // CHUNK * CHUNK
        if whole:
            stretches = part[:, :whole].to(grad.dtype).unflatten(1, (-1, CHUNK)).transpose(0, 1)
            total += (stretches @ some[:whole].view(-1, CHUNK, 1)).sum(0, dtype=torch.float64).squeeze(1)
        if whole < some.numel():
            total += part[:, whole:].to(grad.dtype) @ some[whole:]
    return total


def gram(rows: Rows) -> Tensor:
    """Compute R R^T in float64, chunk by chunk.

    Args:
        rows: See `Rows`.

    Returns:
        Shape [len(rows), len(rows)].

    Raises:
        TrajectoryError: A number is not finite.
    """
    total = torch.zeros(len(rows), len(rows), dtype=torch.float64)
    chunk = max(1, CHUNK // len(rows))
    for tensors in zip(*rows, strict=True):
        for start in range(0, tensors[0].numel(), chunk):
            block = torch.stack([tensor[start : start + chunk].to("cpu", torch.float64) for tensor in tensors])
            total += block @ block.T
    if not total.isfinite().all():
        row = int((~total.diagonal().isfinite()).nonzero()[0]) + 1
        raise TrajectoryError(
            f"checkpoint {row} of the trajectory holds numbers that are not finite: its fine-tuning blew up; lower "
            "[trajectory] learning_rate"
        )
    return total


def _combination(num_rows: int, mode: str) -> Tensor:
    """Give B, with which W = B R."""
    count = num_rows - 1 if mode == "raw" else num_rows
    eye = torch.eye(count, dtype=torch.float64)
    if mode == "raw":
        return torch.cat([eye, torch.ones(count, 1, dtype=torch.float64)], dim=1)
    return eye - 1 / count if mode == "centered" else eye
