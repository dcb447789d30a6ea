"""The one mathematical noun: a fixed linear map P from d coordinates to D parameters.

`Projection` says what a subspace is asked for: `apply` and `adjoint` on slices and on rows of a matrix.
`Blockwise` gives both to any family that can make blocks of consecutive rows of P, so that such a family writes
only `_state`, `_expand` and `_collapse`. Everything is addressed by position: no slice needs the rest of P.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from itertools import accumulate
from typing import Any, ClassVar

import torch
from torch import Tensor

from distsub.errors import ConfigError, DimensionError, ShapeError

CHUNK = 1 << 18
"""Numbers worked on at once; 1 MiB in float32, so that a chain of operations stays in a core's cache."""

NORMALIZATIONS = ("global", "per_tensor")


def exact(method: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Run a method of a projection in its tensors' own precision, also where the caller's autocast is on."""

    @wraps(method)
    def run(self: "Projection", tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        with torch.autocast(tensor.device.type, enabled=False):
            return method(self, tensor, *args, **kwargs)

    return run


class Projection(ABC):
    """A fixed linear map P: R^d -> R^D over tensors laid end to end.

    Normalisation "global" makes P an isometry in expectation over all D rows, E|P z|^2 = |z|^2 (Li et al. 2018).
    "per_tensor" gives every tensor an update of that norm, E|P_i z|^2 = |z|^2 (the released code of Aghajanyan
    et al. 2020): row i of a tensor with D_i entries is larger by sqrt(D / D_i). The two give d90 that cannot be
    compared.

    Args:
        sizes: Entries of each tensor, in the order of the D positions.
        num_coordinates: Length of theta; the d of the formulas, where there are no scales.
        seed: Projection seed.
        normalization: "global" or "per_tensor".

    Raises:
        DimensionError: The coordinates are not between 1 and D.
        ConfigError: The normalisation is unknown.
    """

    family: ClassVar[str]
    nested: ClassVar[bool] = True
    """Whether the span of P at d lies in the span of P at every d' > d."""

    def __init__(self, sizes: Sequence[int], num_coordinates: int, seed: int, normalization: str = "global") -> None:
        """Lay the tensors end to end; nothing random is drawn yet."""
        self.sizes = tuple(sizes)
        self.offsets = (0, *accumulate(self.sizes))
        self.num_params = self.offsets[-1]
        if not 1 <= num_coordinates <= self.num_params:
            raise DimensionError(
                f"{num_coordinates} coordinates do not fit: a projection onto D = {self.num_params} parameters takes "
                "1 to D; change d"
            )
        if normalization not in NORMALIZATIONS:
            raise ConfigError(f"normalization {normalization!r} is unknown; use one of {', '.join(NORMALIZATIONS)}")
        self.num_coordinates = num_coordinates
        self.seed = seed
        self.normalization = normalization
        self.factors: tuple[float, ...] | None = None
        """What each tensor's rows are multiplied with; None for 1 everywhere."""
        if normalization == "per_tensor":
            self.factors = tuple((self.num_params / max(size, 1)) ** 0.5 for size in self.sizes)

    @abstractmethod
    def apply(self, theta: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        """Map coordinates to the update of one slice of the parameters, (P theta)[start:stop].

        Args:
            theta: Coordinates, shape [d].
            start: First position.
            stop: Position after the last; None means D.

        Returns:
            Shape [stop - start], theta's dtype and device.

        Raises:
            ShapeError: theta is not [d], or the slice does not lie within D.
        """

    @abstractmethod
    def adjoint(self, grad: Tensor, start: int = 0) -> Tensor:
        """Map the gradient of a slice to coordinates, P[start:stop]^T grad, the exact transpose of `apply`.

        Args:
            grad: Shape [stop - start]; not modified.
            start: First position.

        Returns:
            Shape [d].

        Raises:
            ShapeError: The slice does not lie within D.
        """

    @abstractmethod
    def apply_rows(self, theta: Tensor, start: int, width: int, rows: Tensor) -> Tensor:
        """Map coordinates to the update of some rows of a matrix that begins at position `start`.

        Args:
            theta: Coordinates, shape [d].
            start: Position of the matrix's first entry.
            width: Entries of a row.
            rows: int64 row numbers, shape [n].

        Returns:
            Shape [n, width].
        """

    @abstractmethod
    def adjoint_rows(self, grad: Tensor, start: int, rows: Tensor) -> Tensor:
        """Map the gradient [n, width] of some rows to coordinates [d], the transpose of `apply_rows`."""

    def dense(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """Materialise P, shape [D, d]; for tests at small D."""
        return torch.stack([self.apply(column) for column in torch.eye(self.num_coordinates, dtype=dtype)], dim=1)

    def fingerprint(self) -> tuple[float, ...]:
        """Give sixteen entries of P theta for one fixed theta, spread over D: what a reloaded adapter compares."""
        theta = torch.cos(torch.arange(self.num_coordinates, dtype=torch.float64)).float()
        at = [i * (self.num_params - 1) // 15 for i in range(16)]
        return tuple(self.apply(theta, i, i + 1).item() for i in at)

    def _check(self, theta: Tensor | None, start: int, stop: int) -> None:
        if theta is not None and theta.shape != (self.num_coordinates,):
            raise ShapeError(
                f"theta has shape {list(theta.shape)}; this {self.family} projection takes [{self.num_coordinates}]"
            )
        if not 0 <= start <= stop <= self.num_params:
            raise ShapeError(f"slice {start}:{stop} does not lie within D = {self.num_params}")


class Blockwise(Projection):
    """A projection made of blocks of `block_length` consecutive rows, each from a random state of its own.

    Args:
        sizes: See `Projection`.
        num_coordinates: See `Projection`.
        seed: See `Projection`.
        normalization: See `Projection`.
        block_length: Rows made at once; part of P's definition for Fastfood only.
        cache: Keep the random state of contiguous slices between calls (2 to 4 bytes a row).
    """

    def __init__(
        self,
        sizes: Sequence[int],
        num_coordinates: int,
        seed: int,
        normalization: str = "global",
        block_length: int | None = None,
        cache: bool = True,
    ) -> None:
        """Note the block length; states are drawn as blocks are used."""
        super().__init__(sizes, num_coordinates, seed, normalization)
        self.block_length = self._length(block_length)
        self._cache: dict[tuple[int, int, torch.device], Tensor] | None = {} if cache else None
        self._prepare()

    # What a family writes. The code of theta is whatever is worth computing once per call.

    def _length(self, asked: int | None) -> int:
        """Choose the block length."""
        return asked or 1024

    def _prepare(self) -> None:
        """Compute what all calls share, and check that the family can be made."""

    def _encode(self, theta: Tensor) -> Tensor:
        """Turn coordinates [d] into what `_expand` reads."""
        return theta

    @abstractmethod
    def _expand(self, code: Tensor, state: Tensor) -> Tensor:
        """Compute the rows of P of some blocks times theta: [n, block_length]."""

    @abstractmethod
    def _collapse(self, grad: Tensor, state: Tensor, code: Tensor) -> None:
        """Add the blocks' transposed rows times grad [n, block_length] to `code`, in place."""

    def _decode(self, code: Tensor) -> Tensor:
        """Turn a sum of collapsed blocks into coordinates [d], the transpose of `_encode`."""
        return code

    @abstractmethod
    def _state(self, blocks: Tensor) -> Tensor:
        """Draw the random state of blocks [n], one row a block."""

    @property
    def _code_length(self) -> int:
        """Length of the code."""
        return self.num_coordinates

    @exact
    def apply(self, theta: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        """Implement `Projection.apply`, block by block."""
        stop = self.num_params if stop is None else stop
        self._check(theta, start, stop)
        out = theta.new_empty(stop - start)
        code = self._encode(theta)
        for low, high, state in self._chunks(start, stop, theta.device):
            values = self._expand(code, state).view(-1)
            first, last = max(low, start), min(high, stop)
            out[first - start : last - start] = values[first - low : last - low]
        return self._normalize(out, start)

    @exact
    def adjoint(self, grad: Tensor, start: int = 0) -> Tensor:
        """Implement `Projection.adjoint`, block by block."""
        stop = start + grad.numel()
        self._check(None, start, stop)
        if self.factors is not None:
            grad = self._normalize(grad.clone(), start)
        code = grad.new_zeros(self._code_length)
        for low, high, state in self._chunks(start, stop, grad.device):
            first, last = max(low, start), min(high, stop)
            values = grad[first - start : last - start]
            if last - first < high - low:
                padded = grad.new_zeros(high - low)
                padded[first - low : last - low] = values
                values = padded
            self._collapse(values.view(-1, self.block_length), state, code)
        return self._decode(code)

    @exact
    def apply_rows(self, theta: Tensor, start: int, width: int, rows: Tensor) -> Tensor:
        """Implement `Projection.apply_rows`, block by block."""
        self._check(theta, start, start + width)
        code = self._encode(theta)
        pieces = [
            self._expand(code, self._state(blocks)).view(-1)[index]
            for _, blocks, index in self._row_chunks(start, width, rows)
        ]
        out = torch.cat(pieces) if pieces else theta.new_empty(0, width)
        return out.mul_(self._factor(start)) if self.factors is not None else out

    @exact
    def adjoint_rows(self, grad: Tensor, start: int, rows: Tensor) -> Tensor:
        """Implement `Projection.adjoint_rows`, block by block."""
        width = grad.shape[1]
        self._check(None, start, start + width)
        if self.factors is not None:
            grad = grad * self._factor(start)
        code = grad.new_zeros(self._code_length)
        for span, blocks, index in self._row_chunks(start, width, rows):
            values = grad.new_zeros(blocks.numel() * self.block_length)
            values.index_add_(0, index.reshape(-1), grad[span].reshape(-1))
            self._collapse(values.view(-1, self.block_length), self._state(blocks), code)
        return self._decode(code)

    def _chunks(self, start: int, stop: int, device: torch.device) -> Iterator[tuple[int, int, Tensor]]:
        """Cut a slice into runs of whole blocks that fit the cache, with the random state of each."""
        length = self.block_length
        per_chunk = max(1, CHUNK // length)
        last = -(-stop // length)
        for block in range(start // length, last, per_chunk):
            end = min(block + per_chunk, last)
            key = (block, end, device)
            state = None if self._cache is None else self._cache.get(key)
            if state is None:
                state = self._state(torch.arange(block, end, device=device))
                if self._cache is not None and stop - start > 1:
                    self._cache[key] = state
            yield block * length, end * length, state

    def _row_chunks(self, start: int, width: int, rows: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Cut rows into groups: which rows, the blocks that hold them, and each entry's place in those blocks."""
        length = self.block_length
        first, last = (start + rows * width) // length, (start + (rows + 1) * width - 1) // length
        # Blocks that a row needs beyond those of the row before it: where blocks are long, many rows share one.
        fresh = last - first + 1
        shared = torch.where(first[1:] >= first[:-1], last[:-1] - first[1:] + 1, 0).clamp(min=0)
        fresh[1:] = (fresh[1:] - shared).clamp(min=0)
        filled = (fresh.cumsum(0) - 1) // max(1, CHUNK // length)
        ends = torch.unique_consecutive(filled, return_counts=True)[1].cumsum(0).tolist()
        spans = (width - 1) // length + 2
        for begin_row, end_row in zip([0, *ends], ends, strict=False):
            group = slice(begin_row, end_row)
            begin = start + rows[group].unsqueeze(1) * width
            position = begin + torch.arange(width, device=rows.device)
            touched = begin // length + torch.arange(spans, device=rows.device)
            blocks = torch.unique(torch.minimum(touched, position[:, -1:] // length))
            place = torch.searchsorted(blocks, position // length) * length + position % length
            yield group, blocks, place

    def match(self, norms: Sequence[float]) -> None:
        """Give every tensor's rows the size of another update's: in expectation |P_i z| / |P z| is norms_i / |norms|.

        Args:
            norms: |u_i| of that update in each tensor, not all 0.
        """
        whole = sum(norm * norm for norm in norms) / self.num_params
        self.factors = tuple(norm / (max(size, 1) * whole) ** 0.5 for norm, size in zip(norms, self.sizes, strict=True))

    def _factor(self, position: int) -> float:
        """Give the factor of the tensor at a position."""
        assert self.factors is not None, "asked for only where there are factors"
        return next(f for f, end in zip(self.factors, self.offsets[1:], strict=True) if position < end)

    def _normalize(self, values: Tensor, start: int) -> Tensor:
        """Scale a slice, in place, by its rows' factors."""
        if self.factors is not None:
            stop = start + values.numel()
            for low, high in zip(self.offsets, self.offsets[1:], strict=False):
                first, last = max(low, start), min(high, stop)
                if first < last:
                    values[first - start : last - start].mul_(self._factor(first))
        return values
