"""Projections made of blocks of consecutive rows of P.

`Blockwise` gives slices and rows to any family that can make such blocks, so that a family writes only `_state`,
`_expand` and `_collapse`.
"""

from abc import abstractmethod
from bisect import bisect
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from distsub.subspace import kernels, projection
from distsub.subspace.projection import Encoded, Placed, Projection, Stretch, chunk, exact, full_precision

_WHOLE = 4
"""Chunks of numbers up to which a whole table is made at once on a device, rather than rows of it one by one."""


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
        self._proven: dict[torch.device, bool] = {}
        self._testing = False
        self._cache: dict[tuple[int, int, torch.device], Tensor] | None = {} if cache else None
        self._prepare()

    def forget(self) -> None:
        """Implement `Projection.forget`."""
        if self._cache is not None:
            self._cache.clear()

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

    def encode(self, theta: Tensor) -> Encoded:
        """Implement `Projection.encode`."""
        self._check(theta, 0, self.num_params)
        with full_precision(theta.device):
            return Encoded(self._encode(theta))

    @exact
    def apply(self, theta: Tensor | Encoded, start: int = 0, stop: int | None = None) -> Tensor:
        """Implement `Projection.apply`, block by block."""
        stop = self.num_params if stop is None else stop
        code = (theta if isinstance(theta, Encoded) else self.encode(theta)).code
        self._check(None, start, stop)
        if self._has_kernels(code):
            return self._normalize(self._kernel(code, start, stop), start)
        out = code.new_empty(stop - start)
        for low, high, state in self._chunks(start, stop, code.device):
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
        if self._has_kernels(grad) and grad.numel():
            return self._decode(self._kernel_transposed(start, stop, [(start, grad.contiguous(), 0)]))
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
    def apply_rows(self, theta: Tensor | Encoded, start: int, width: int, rows: Tensor | Placed) -> Tensor:
        """Implement `Projection.apply_rows`, block by block."""
        code = (theta if isinstance(theta, Encoded) else self.encode(theta)).code
        self._check(None, start, start + width)
        pieces = [
            self._kernel(code, 0, blocks.numel() * self.block_length, blocks=blocks)[index]
            if self._has_kernels(code)
            else self._expand(code, self._state(blocks)).view(-1)[index]
            for _, blocks, index in self._row_chunks(start, width, rows)
        ]
        out = torch.cat(pieces) if pieces else code.new_empty(0, width)
        return out.mul_(self._factor(start)) if self.factors is not None else out

    @exact
    def adjoint_rows(self, grad: Tensor, start: int, rows: Tensor | Placed) -> Tensor:
        """Implement `Projection.adjoint_rows`, block by block."""
        width = grad.shape[1]
        self._check(None, start, start + width)
        if self.factors is not None:
            grad = grad * self._factor(start)
        code = grad.new_zeros(self._code_length)
        for span, blocks, index in self._row_chunks(start, width, rows):
            values = grad.new_zeros(blocks.numel() * self.block_length)
            values.index_add_(0, index.reshape(-1), grad[span].reshape(-1))
            if self._has_kernels(values):
                code += self._kernel_transposed(0, values.numel(), [(0, values, 0)], blocks=blocks)
            else:
                self._collapse(values.view(-1, self.block_length), self._state(blocks), code)
        return self._decode(code)

    @exact
    def make(
        self,
        theta: Tensor | Encoded,
        start: int,
        stop: int,
        add: Sequence[Stretch],
        scales: Tensor | None,
        dtype: torch.dtype,
    ) -> Tensor | None:
        """Implement `Projection.make`."""
        code = (theta if isinstance(theta, Encoded) else self.encode(theta)).code
        if not self._has_kernels(code) or not kernels.module().readable([tensor for _, tensor, _ in add]):
            return None
        if self.factors is not None:
            groups = {group for *_, group in add}
            if scales is not None and len(groups) > 1:
                return None
            factors = self._table("_factors", code.device, torch.float32)
            scales = factors if scales is None else factors * scales[groups.pop()]
            add = self._numbered(add)
        return self._kernel(code, start, stop, add=add, scales=scales, dtype=dtype)

    def collapse(self, start: int, stop: int, grads: Sequence[Stretch]) -> Tensor | None:
        """Implement `Projection.collapse`."""
        grads = [each for each in grads if each[1].numel()]
        tensors = [tensor for _, tensor, _ in grads]
        if torch.is_grad_enabled() or not tensors or not self._ready(tensors[0].device):
            return None
        if not kernels.module().readable(tensors):
            return None
        if self.factors is None:
            return self._decode(self._kernel_transposed(start, stop, grads))
        factors = self._table("_factors", tensors[0].device, torch.float32)
        return self._decode(self._kernel_transposed(start, stop, self._numbered(grads), scales=factors))

    # Kernels, of families that have any.

    _kernels_fit: ClassVar[bool] = False

    def _kernel(self, code: Tensor, start: int, stop: int, **more: Any) -> Tensor:
        """Make rows by a kernel: see `triton_kernels`."""
        raise NotImplementedError

    def _kernel_transposed(self, start: int, stop: int, grads: Sequence[Stretch], **more: Any) -> Tensor:
        """Sum a gradient to the code's by a kernel: see `triton_kernels`."""
        raise NotImplementedError

    def _has_kernels(self, like: Tensor) -> bool:
        """Tell whether kernels run on what a tensor is like: in float32, and without a history."""
        history = torch.is_grad_enabled() and like.requires_grad
        return like.dtype == torch.float32 and not history and self._ready(like.device)

    def _ready(self, device: torch.device) -> bool:
        """Tell whether kernels run on a device, once they have given there what torch's operations give."""
        if not kernels.wanted(device) or not self._kernels_fit or self._testing:
            return False
        if device not in self._proven:
            self._proven[device] = kernels.module() is not None and self._prove(device)
        return self._proven[device]

    @torch.no_grad()
    def _prove(self, device: torch.device) -> bool:
        """Compare the kernels with torch's operations on a few blocks, and on rows of a table."""
        theta = torch.cos(torch.arange(self.num_coordinates, dtype=torch.float64)).float().to(device)
        stop = min(self.num_params, 3 * self.block_length + 5)
        grad = torch.sin(torch.arange(stop, dtype=torch.float64)).float().to(device)
        width = max(1, min(self.sizes[0] // 3, stop // 3))
        rows = torch.arange(min(3, self.sizes[0] // width), device=device).flip(0)

        def results() -> list[Tensor]:
            table = grad[: rows.numel() * width].view(-1, width)
            by_rows = [self.apply_rows(theta, 0, width, rows), self.adjoint_rows(table, 0, rows)] if len(rows) else []
            return [self.apply(theta, 1, stop), self.adjoint(grad), *by_rows]

        try:
            self._testing = True
            expected = results()
            self._testing, self._proven[device] = False, True
            pairs = list(zip(results(), expected, strict=True))
            wrong = [(a - b).norm().item() / b.norm().item() for a, b in pairs if not (a - b).norm() <= 1e-5 * b.norm()]
            if wrong:
                kernels.give_up(f"on {device} they are off by {max(wrong):.1e} of {self.family}'s update or gradient")
        except Exception as error:  # no compiler, too old a card: torch's operations need neither
            kernels.give_up(error)
            return False
        finally:
            self._testing = False
            self.forget()
        return not wrong

    def _chunks(self, start: int, stop: int, device: torch.device) -> Iterator[tuple[int, int, Tensor]]:
        """Cut a slice into runs of whole blocks that fit the cache, with the random state of each."""
        length = self.block_length
        per_chunk = max(1, chunk(device) // length)
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

    def find_rows(self, start: int, width: int, rows: Tensor) -> Placed:
        """Implement `Projection.find_rows`: each block is made once, or on a device without waiting for numbers."""
        length = self.block_length
        first, last = (start + rows * width) // length, (start + (rows + 1) * width - 1) // length
        begins = start + rows * width - first * length  # in its first block
        spans = torch.arange((width - 1) // length + 2, device=rows.device)
        if projection.launches(rows.device):
            return self._find_blindly(start, rows.numel(), first, last, begins, spans)
        # Blocks that a row needs beyond those of the row before it: where blocks are long, many rows share one.
        fresh = last - first + 1
        shared = torch.where(first[1:] >= first[:-1], last[:-1] - first[1:] + 1, 0).clamp(min=0)
        fresh[1:] = (fresh[1:] - shared).clamp(min=0)
        filled = (fresh.cumsum(0) - 1) // max(1, chunk(rows.device) // length)
        ends = torch.unique_consecutive(filled, return_counts=True)[1].cumsum(0).tolist()
        groups = []
        for begin, end in zip([0, *ends], ends, strict=False):
            touched = torch.minimum(first[begin:end].unsqueeze(1) + spans, last[begin:end].unsqueeze(1))
            blocks = torch.unique(touched)
            at = torch.searchsorted(blocks, first[begin:end]).mul_(length).add_(begins[begin:end])
            groups.append((slice(begin, end), blocks, at))
        return Placed(tuple(groups))

    def _find_blindly(
        self, start: int, count: int, first: Tensor, last: Tensor, begins: Tensor, spans: Tensor
    ) -> Placed:
        """Place rows whose numbers are not known here: in blocks of their own, or in all of a table that is smaller."""
        length, most = self.block_length, chunk(first.device)
        end = next(end for end in self.offsets[1:] if start < end)
        table = torch.arange(start // length, -(-end // length), device=first.device)
        if table.numel() <= count * spans.numel() and table.numel() * length <= _WHOLE * most:
            return Placed(((slice(0, count), table, (first - start // length) * length + begins),))
        step = max(1, most // (spans.numel() * length))
        groups = []
        for group in (slice(begin, min(begin + step, count)) for begin in range(0, count, step)):
            touched = torch.minimum(first[group].unsqueeze(1) + spans, last[group].unsqueeze(1))
            own = torch.arange(0, touched.numel() * length, spans.numel() * length, device=first.device)
            groups.append((group, touched.view(-1), own + begins[group]))
        return Placed(tuple(groups))

    def _row_chunks(self, start: int, width: int, rows: Tensor | Placed) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Give groups of rows: which rows, the blocks that hold them, and each entry's place in those blocks."""
        placed = rows if isinstance(rows, Placed) else self.find_rows(start, width, rows)
        for group, blocks, begins in placed.groups:
            yield group, blocks, begins.unsqueeze(1) + torch.arange(width, device=blocks.device)

    def match(self, norms: Sequence[float]) -> None:
        """Give every tensor's rows the size of another update's: in expectation |P_i z| / |P z| is norms_i / |norms|.

        Args:
            norms: |u_i| of that update in each tensor, not all 0.
        """
        whole = sum(norm * norm for norm in norms) / self.num_params
        self.factors = tuple(norm / (max(size, 1) * whole) ** 0.5 for norm, size in zip(norms, self.sizes, strict=True))
        self._sent.clear()

    @property
    def _factors(self) -> Tensor:
        """The factor of each tensor."""
        return torch.tensor(self.factors, dtype=torch.float64)

    def _numbered(self, stretches: Sequence[Stretch]) -> list[Stretch]:
        """Put each stretch in the group of its tensor, by which `_factors` are numbered."""
        return [(at, tensor, bisect(self.offsets, at) - 1) for at, tensor, _ in stretches]

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
