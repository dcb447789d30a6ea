"""One pass through a held model: which weights exist, what autograd keeps of them, what its backward pass remakes."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from distsub.subspace import guard, projection
from distsub.subspace.layout import Entry, Unit, offsets
from distsub.subspace.weights import Numbers

if TYPE_CHECKING:
    from distsub.subspace.hooks import Hooks

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


class MadeFrom(NamedTuple):
    """What a unit's weights were made from."""

    unit: int
    numbers: Numbers
    stamps: tuple[tuple[str, Tensor, int], ...]
    """(name, tensor, version) of everything that must not be written before the backward pass."""


class Kept:
    """Units' weights that outlive a pass without gradients.

    Args:
        most: Bytes of them at most.
    """

    def __init__(self, most: int) -> None:
        """Begin with none."""
        self._left = most
        self._found: dict[tuple[int, torch.dtype | None], tuple[MadeFrom, tuple[Tensor, ...]]] = {}

    def find(self, source: MadeFrom, cast: torch.dtype | None) -> tuple[Tensor, ...] | None:
        """Give a unit's weights, if they are kept and were made from what they would be made from now."""
        made, weights = self._found.get((source.unit, cast), (None, None))
        now = [(id(tensor), version) for _, tensor, version in source.stamps]
        return weights if made and [(id(tensor), version) for _, tensor, version in made.stamps] == now else None

    def add(self, source: MadeFrom, cast: torch.dtype | None, weights: tuple[Tensor, ...]) -> None:
        """Keep a unit's weights while there is room; tensors that do not count what is written to them are not kept."""
        buffers = {weight.untyped_storage().data_ptr(): weight.untyped_storage().nbytes() for weight in weights}
        key, size = (source.unit, cast), sum(buffers.values())
        if key in self._found or len(source.stamps) < 2 or size > self._left:
            return
        self._found[key] = (source, weights)
        self._left -= size


class Owner(NamedTuple):
    """Whose weights a buffer holds: what they were made from, their precision, and the one that autograd keeps."""

    source: MadeFrom
    dtype: torch.dtype
    kept: torch.dtype | None


class SavedWeight(NamedTuple):
    """What autograd keeps in place of a weight: where to find it when the unit's weights are made again."""

    source: MadeFrom
    dtype: torch.dtype
    size: torch.Size
    stride: tuple[int, ...]
    offset: int


class SavedTensor(NamedTuple):
    """Any other tensor that autograd keeps, with the version that it had: torch does not check what hooks have seen."""

    tensor: Tensor
    version: int


class Pass(TorchFunctionMode):
    """One pass through a model, or through a part of it, on one thread.

    As a function mode it sees every operation on a parameter that is still frozen, and gives it the weight at theta
    instead. That is each look-up in an embedding table, of which only the rows are made, and what models do outside a
    module's own forward: DeBERTa reads its table of relative positions as a matrix, attention modules read a child's
    weight. Such a unit is materialised once, until the pass ends.
    """

    def __init__(self, hooks: "Hooks", numbers: Numbers | None = None) -> None:
        """Note the trained numbers: what is written to them later does not reach this pass."""
        super().__init__()
        held = hooks.held
        self.hooks, self.thread = hooks, threading.get_ident()
        self.grad = torch.is_grad_enabled()
        self.numbers = numbers or Numbers(held.theta.detach().clone(), held.scales.detach().clone())
        self._stamps = stamp({"coordinates": held.coordinates, "scales": held.scales})
        self._owners: dict[int, Owner] = {}
        self._room = hooks.keep
        self._casts: dict[int, Tensor] = {}
        self._own: dict[int, tuple[Tensor, ...]] = {}
        self._outside: dict[tuple[int, bool], tuple[Tensor, ...]] = {}

    def end(self) -> None:
        """Release all weights."""
        self._outside, self._own, self._casts, self._owners = {}, {}, {}, {}

    def holds(self, number: int) -> bool:
        """Tell whether a unit's weights stand in the place of its frozen parameters."""
        return number in self._own

    @contextmanager
    def materialised(self, number: int) -> Iterator[None]:
        """Put a unit's weights in the place of its frozen parameters."""
        unit = self.hooks.held.units[number]
        weights = self._own[number] = self._make(number)
        for weight, (owner, key, _) in zip(weights, unit.uses, strict=False):
            owner._parameters[key] = weight  # type: ignore[assignment]
        try:
            yield
        finally:
            for owner, key, entry in unit.uses:
                owner._parameters[key] = entry.frozen  # type: ignore[assignment]
            self._release(self._own.pop(number, ()))

    def _make(self, number: int) -> tuple[Tensor, ...]:
        """Make a unit's weights and note whose they are, until they are released."""
        held, unit = self.hooks.held, self.hooks.held.units[number]
        bases = {entry.name: entry.frozen for _, _, entry in unit.uses}
        source = MadeFrom(number, self.numbers, self._stamps + stamp(bases))
        device = self.numbers.theta.device.type
        cast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        weights: tuple[Tensor, ...]
        if torch.is_grad_enabled():
            weights = _Weights.apply(held.theta, held.scales, self.hooks, source, cast)  # type: ignore[assignment]
        else:
            weights = self.hooks.views_without_gradient(source, cast)
        kept = self._kept(number, weights)
        self._owners |= {weight.untyped_storage().data_ptr(): Owner(source, weight.dtype, kept) for weight in weights}
        matrices = [w for w, (_, _, e) in zip(weights, unit.uses, strict=False) if castable(e.frozen)]
        self._casts |= {id(w): small for w, small in zip(matrices, weights[len(unit.uses) :], strict=False)}
        return weights

    def _kept(self, number: int, weights: tuple[Tensor, ...]) -> torch.dtype | None:
        """Give the precision in which autograd keeps a unit's weights, the smallest; None where there is no room."""
        smallest = min(weights, key=lambda weight: weight.dtype.itemsize)
        size = smallest.untyped_storage().nbytes()
        if not torch.is_grad_enabled() or number in self.hooks.recompute or size > self._room:
            return None
        self._room -= size
        return smallest.dtype

    def _release(self, weights: tuple[Tensor, ...]) -> None:
        """Forget where a unit's weights were: their memory is about to be used again."""
        for weight in weights:
            self._owners.pop(weight.untyped_storage().data_ptr(), None)
            self._casts.pop(id(weight), None)

    def pack(self, tensor: Tensor) -> SavedTensor | SavedWeight:
        """Take a tensor that autograd wants to save."""
        owner = self._owners.get(tensor.untyped_storage().data_ptr())
        if owner is None or owner.dtype == owner.kept:
            return SavedTensor(tensor, -1 if tensor.is_inference() else tensor._version)
        if owner.kept is not None and tensor.dim() < 2:  # a copy: a view would keep all of the unit in this precision
            return SavedTensor(copy := tensor.detach().clone(), copy._version)
        place = tensor.size(), tensor.stride(), int(tensor.storage_offset())
        return SavedWeight(owner.source, owner.dtype, *place)

    # Reads

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation on weights at theta."""
        kwargs = kwargs or {}
        if func in _SHAPE_ONLY:
            return func(*args, **kwargs)
        if func is functional.embedding and len(args) > 1 and kwargs.get("max_norm") is None:
            number, _ = self.hooks.frozen.get(id(args[1]), (None, 0))
            if number is not None and self.hooks.held.units[number].rows:
                return self._look_up(number, args[0], func(*args, **kwargs))
        cast = func in _CAST and torch.is_autocast_enabled(self.numbers.theta.device.type)
        return func(*self._updated(args, cast), **{key: self._updated(value, cast) for key, value in kwargs.items()})

    def _updated(self, value: Any, cast: bool) -> Any:
        """Replace frozen parameters by their weights, inside tuples and lists too."""
        if type(value) in (tuple, list):
            return type(value)([self._updated(item, cast) for item in value])
        number, use = self.hooks.frozen.get(id(value), (None, 0))
        if number is not None:
            value = self._outside_its_forward(number)[use]
        return self._casts.get(id(value), value) if cast else value

    def _outside_its_forward(self, number: int) -> tuple[Tensor, ...]:
        """Give the weights of a unit that is read outside its own forward, or past its modules' attributes."""
        if number in self._own:
            return self._own[number]
        key = (number, torch.is_grad_enabled())
        if key not in self._outside:
            self._outside[key] = self._make(number)
        return self._outside[key]

    def _look_up(self, number: int, index: Tensor, output: Tensor) -> Tensor:
        """Add the update to rows that were looked up in theta_0's table; of the table, only these rows are made."""
        held, entry = self.hooks.held, self.hooks.held.units[number].uses[0][2]
        if projection.launches(index.device):  # to find equal ones is to wait for their number
            rows, place = index.reshape(-1), None
        else:
            rows, place = torch.unique(index, return_inverse=True)
        source = MadeFrom(number, self.numbers, self._stamps)
        update: Tensor = _Rows.apply(held.theta, held.scales, self.hooks, source, entry, rows)  # type: ignore[assignment]
        exact = torch.promote_types(output.dtype, update.dtype)
        update = update.view(output.shape) if place is None else update[place]
        return (output.to(exact) + update).to(output.dtype)


class _Weights(torch.autograd.Function):
    """A unit's weights as a function of the trained numbers."""

    @staticmethod
    def forward(
        ctx: Any, coordinates: Tensor, scales: Tensor, hooks: "Hooks", source: MadeFrom, cast: torch.dtype | None
    ) -> tuple[Tensor, ...]:
        ctx.hooks, ctx.source, ctx.trained = hooks, source, Numbers(coordinates, scales)
        ctx.set_materialize_grads(False)
        return hooks.views(source, cast)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        hooks, source = ctx.hooks, ctx.source
        check(source)
        hooks.release(source)
        used = [entry for _, _, entry in hooks.held.units[source.unit].uses]
        used += [entry for entry in used if castable(entry.frozen)]
        found = [(entry, grad) for entry, grad in zip(used, grads, strict=False) if grad is not None]
        numbers = (
            ctx.trained if torch.is_grad_enabled() else source.numbers
        )  # for second derivatives, with their history
        return (*hooks.held.weights.reduce(numbers, hooks.held.units[source.unit], found), None, None, None)


class _Rows(torch.autograd.Function):
    """The update of some rows of an embedding table as a function of the trained numbers."""

    @staticmethod
    def forward(
        ctx: Any, coordinates: Tensor, scales: Tensor, hooks: "Hooks", source: MadeFrom, entry: Entry, rows: Tensor
    ) -> Tensor:
        placed = hooks.held.weights.place(entry, rows)
        ctx.hooks, ctx.source, ctx.entry, ctx.rows = hooks, source, entry, placed
        ctx.trained = Numbers(coordinates, scales)
        return hooks.held.weights.rows(source.numbers, entry, placed)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        check(ctx.source)
        numbers = ctx.trained if torch.is_grad_enabled() else ctx.source.numbers
        reduced = ctx.hooks.held.weights.reduce_rows(numbers, ctx.entry, ctx.rows, grad)
        return (*reduced, None, None, None, None)


def stamp(tensors: dict[str, Tensor]) -> tuple[tuple[str, Tensor, int], ...]:
    """Note the versions of tensors by name."""
    with torch._C.DisableTorchFunction():
        return tuple((name, tensor, tensor._version) for name, tensor in tensors.items() if not tensor.is_inference())


def check(source: MadeFrom) -> None:
    """Refuse a backward pass through weights that are no longer what they were in the forward pass.

    Raises:
        RuntimeError: As autograd does for tensors that it saved.
    """
    for name, tensor, version in source.stamps:
        if tensor._version != version:
            guard.modified(f"{name} of the SubspaceModel", tensor._version, version)


def uses(unit: Unit) -> list[tuple[Entry, int]]:
    """Give each use's entry with its place in the unit's buffer."""
    return list(offsets(unit.runs, [entry for _, _, entry in unit.uses]))


def castable(frozen: Tensor) -> bool:
    """Tell whether autocast may run a weight in another precision: matrices in float32."""
    return frozen.dim() > 1 and frozen.dtype == torch.float32
