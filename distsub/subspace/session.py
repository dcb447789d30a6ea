"""One pass through a held model: what is lent, what autograd keeps of it, and what its backward pass makes again."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from distsub.subspace import guard
from distsub.subspace.layout import Entry, Unit, offsets
from distsub.subspace.weights import Numbers

if TYPE_CHECKING:
    from distsub.subspace.lending import Lending

_READ_ONLY = ("shape", "dtype", "device", "ndim", "layout", "requires_grad", "is_leaf", "grad_fn", "is_cuda", "is_cpu")
_SHAPE_ONLY = {getattr(torch.Tensor, name).__get__ for name in _READ_ONLY} | {
    *(torch.Tensor.size, torch.Tensor.dim, torch.Tensor.numel, torch.Tensor.stride),
    *(torch.Tensor.is_floating_point, torch.is_floating_point, torch.numel),
}
"""What needs none of a weight's numbers."""

_CAST = {
    *(functional.linear, torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__, torch.mm, torch.Tensor.mm),
    *(torch.addmm, torch.bmm, functional.conv1d, functional.conv2d, functional.conv3d),
}
"""Functions whose matrices autocast would copy in its own precision: they get one that was made so."""


class Lent(NamedTuple):
    """What one loan of a unit's weights was made from."""

    unit: int
    numbers: Numbers
    stamps: tuple[tuple[str, Tensor, int], ...]
    """(name, tensor, version) of everything that must not be written before the backward pass."""


class SavedWeight(NamedTuple):
    """What autograd keeps in place of a lent weight: where to find it when the unit's weights are made again."""

    lent: Lent
    dtype: torch.dtype
    size: torch.Size
    stride: tuple[int, ...]
    offset: int


class SavedTensor(NamedTuple):
    """Any other tensor that autograd keeps, with the version that it had: torch does not check what hooks have seen."""

    tensor: Tensor
    version: int


class Session(TorchFunctionMode):
    """One pass through a model, or through a part of it, on one thread.

    As a function mode it sees every operation on a frozen parameter that no door has lent, and gives it the weight at
    theta instead. That is each look-up in an embedding table, of which only the rows are made, and what models do
    outside a module's own forward: DeBERTa reads its table of relative positions as a matrix, attention modules read
    a child's weight. Such a unit is lent once, until the session ends.
    """

    def __init__(self, lending: "Lending", numbers: Numbers | None = None) -> None:
        """Note the trained numbers: what is written to them later does not reach this pass."""
        super().__init__()
        held = lending.held
        self.lending, self.thread = lending, threading.get_ident()
        self.grad = torch.is_grad_enabled()
        self.numbers = numbers or Numbers(held.theta.detach().clone(), held.scales.detach().clone())
        self._stamps = stamp({"coordinates": held.coordinates, "scales": held.scales})
        self._owners: dict[int, tuple[Lent, torch.dtype]] = {}
        self._casts: dict[int, Tensor] = {}
        self._own: dict[int, tuple[Tensor, ...]] = {}
        self._beside: dict[tuple[int, bool], tuple[Tensor, ...]] = {}

    def close(self) -> None:
        """Let go of everything that was lent."""
        self._beside, self._own, self._casts, self._owners = {}, {}, {}, {}

    def lends(self, number: int) -> bool:
        """Tell whether a unit's own door stands open."""
        return number in self._own

    @contextmanager
    def lend(self, number: int) -> Iterator[None]:
        """Put a unit's weights in the place of its frozen parameters."""
        unit = self.lending.held.units[number]
        weights = self._own[number] = self._make(number)
        for weight, (owner, key, _) in zip(weights, unit.uses, strict=False):
            owner._parameters[key] = weight  # type: ignore[assignment]
        try:
            yield
        finally:
            for owner, key, entry in unit.uses:
                owner._parameters[key] = entry.frozen  # type: ignore[assignment]
            self._take_back(self._own.pop(number, ()))

    def _make(self, number: int) -> tuple[Tensor, ...]:
        """Make a unit's weights and note whose they are, for as long as they are lent."""
        held, unit = self.lending.held, self.lending.held.units[number]
        bases = {entry.name: entry.frozen for _, _, entry in unit.uses}
        lent = Lent(number, self.numbers, self._stamps + stamp(bases))
        device = self.numbers.theta.device.type
        cast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        weights: tuple[Tensor, ...] = _Weights.apply(held.theta, held.scales, self.lending, lent, cast)  # type: ignore[assignment]
        self._owners |= {weight.untyped_storage().data_ptr(): (lent, weight.dtype) for weight in weights}
        matrices = [w for w, (_, _, e) in zip(weights, unit.uses, strict=False) if castable(e.frozen)]
        self._casts |= {id(w): small for w, small in zip(matrices, weights[len(unit.uses) :], strict=False)}
        return weights

    def _take_back(self, weights: tuple[Tensor, ...]) -> None:
        """Forget where a unit's weights were: their memory is about to be used again."""
        for weight in weights:
            self._owners.pop(weight.untyped_storage().data_ptr(), None)
            self._casts.pop(id(weight), None)

    def pack(self, tensor: Tensor) -> SavedTensor | SavedWeight:
        """Take a tensor that autograd wants to save."""
        owner = self._owners.get(tensor.untyped_storage().data_ptr())
        if owner is None:
            return SavedTensor(tensor, -1 if tensor.is_inference() else tensor._version)
        return SavedWeight(*owner, tensor.size(), tensor.stride(), int(tensor.storage_offset()))

    # Reads

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation on weights at theta."""
        kwargs = kwargs or {}
        if func in _SHAPE_ONLY:
            return func(*args, **kwargs)
        if func is functional.embedding and len(args) > 1 and kwargs.get("max_norm") is None:
            number, _ = self.lending.frozen.get(id(args[1]), (None, 0))
            if number is not None and self.lending.held.units[number].rows:
                return self._look_up(number, args[0], func(*args, **kwargs))
        cast = func in _CAST and torch.is_autocast_enabled(self.numbers.theta.device.type)
        return func(*self._updated(args, cast), **{key: self._updated(value, cast) for key, value in kwargs.items()})

    def _updated(self, value: Any, cast: bool) -> Any:
        """Replace frozen parameters by their weights, inside tuples and lists too."""
        if type(value) in (tuple, list):
            return type(value)([self._updated(item, cast) for item in value])
        number, use = self.lending.frozen.get(id(value), (None, 0))
        if number is not None:
            value = self._beside_its_door(number)[use]
        return self._casts.get(id(value), value) if cast else value

    def _beside_its_door(self, number: int) -> tuple[Tensor, ...]:
        """Give the weights of a unit that is read outside its own door, or past its modules' attributes."""
        if number in self._own:
            return self._own[number]
        key = (number, torch.is_grad_enabled())
        if key not in self._beside:
            self._beside[key] = self._make(number)
        return self._beside[key]

    def _look_up(self, number: int, index: Tensor, output: Tensor) -> Tensor:
        """Add the update to rows that were looked up in theta_0's table; of the table, only these rows are made."""
        held, entry = self.lending.held, self.lending.held.units[number].uses[0][2]
        rows, place = torch.unique(index, return_inverse=True)
        lent = Lent(number, self.numbers, self._stamps)
        update: Tensor = _Rows.apply(held.theta, held.scales, self.lending, lent, entry, rows)  # type: ignore[assignment]
        exact = torch.promote_types(output.dtype, update.dtype)
        return (output.to(exact) + update[place]).to(output.dtype)


class _Weights(torch.autograd.Function):
    """A unit's weights as a function of the trained numbers."""

    @staticmethod
    def forward(
        ctx: Any, coordinates: Tensor, scales: Tensor, lending: "Lending", lent: Lent, cast: torch.dtype | None
    ) -> tuple[Tensor, ...]:
        ctx.lending, ctx.lent, ctx.trained = lending, lent, Numbers(coordinates, scales)
        ctx.set_materialize_grads(False)
        return lending.views(lent, cast)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        lending, lent = ctx.lending, ctx.lent
        check(lent)
        lending.drop(lent)
        used = [entry for _, _, entry in lending.held.units[lent.unit].uses]
        used += [entry for entry in used if castable(entry.frozen)]
        found = [(entry, grad) for entry, grad in zip(used, grads, strict=False) if grad is not None]
        numbers = ctx.trained if torch.is_grad_enabled() else lent.numbers  # for second derivatives, with their history
        return (*lending.held.weights.reduce(numbers, lending.held.units[lent.unit], found), None, None, None)


class _Rows(torch.autograd.Function):
    """The update of some rows of an embedding table as a function of the trained numbers."""

    @staticmethod
    def forward(
        ctx: Any, coordinates: Tensor, scales: Tensor, lending: "Lending", lent: Lent, entry: Entry, rows: Tensor
    ) -> Tensor:
        ctx.lending, ctx.lent, ctx.entry, ctx.rows = lending, lent, entry, rows
        ctx.trained = Numbers(coordinates, scales)
        return lending.held.weights.rows(lent.numbers, entry, rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        check(ctx.lent)
        numbers = ctx.trained if torch.is_grad_enabled() else ctx.lent.numbers
        reduced = ctx.lending.held.weights.reduce_rows(numbers, ctx.entry, ctx.rows, grad)
        return (*reduced, None, None, None, None)


def stamp(tensors: dict[str, Tensor]) -> tuple[tuple[str, Tensor, int], ...]:
    """Note the versions of tensors by name."""
    with torch._C.DisableTorchFunction():
        return tuple((name, tensor, tensor._version) for name, tensor in tensors.items() if not tensor.is_inference())


def check(lent: Lent) -> None:
    """Refuse a backward pass through weights that are no longer what they were in the forward pass.

    Raises:
        RuntimeError: As autograd does for tensors that it saved.
    """
    for name, tensor, version in lent.stamps:
        if tensor._version != version:
            guard.modified(f"{name} of the SubspaceModel", tensor._version, version)


def uses(unit: Unit) -> list[tuple[Entry, int]]:
    """Give each use's entry with its place in the unit's buffer."""
    return list(offsets(unit.runs, [entry for _, _, entry in unit.uses]))


def castable(frozen: Tensor) -> bool:
    """Tell whether autocast may run a weight in another precision: matrices in float32."""
    return frozen.dim() > 1 and frozen.dtype == torch.float32
