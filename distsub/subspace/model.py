"""A transformers model held in a subspace: theta = theta_0 + lambda * P theta_d, one layer at a time.

theta_0 is never written. When a unit (see `layout`) is about to run, its weights are made in one buffer and lent to
it; what autograd would save of them is replaced by a note, and the buffer is dropped when the unit is done. The
backward pass makes it again, unit by unit, and each unit's weight gradient is reduced to d numbers as soon as it is
complete. So at any moment the weights, and the weight gradients, of one unit exist beside theta_0.
"""

import math
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from distsub.errors import ConfigError
from distsub.subspace import bits
from distsub.subspace import layout as layouts
from distsub.subspace.families import Kind, assemble
from distsub.subspace.fastfood import next_power_of_two
from distsub.subspace.trajectory import Snapshots
from distsub.trial import DEFAULT_PROJECTION

METHODS = ("did", "said")


class SavedWeight(NamedTuple):
    """What autograd keeps in place of a lent weight: where to find it when the unit's weights are made again."""

    unit: int
    dtype: torch.dtype
    size: torch.Size
    stride: tuple[int, ...]
    offset: int


class SubspaceModel(nn.Module):
    """Train exactly d numbers of a frozen model.

    DID: theta = theta_0 + P theta_d (Aghajanyan et al. 2020, Eq. 1). SAID: theta_i = theta_0i + lambda_i (P theta)_i
    with one scale per group, paid for out of d (Eq. 3). theta starts at 0 and lambda at 1, so that the start is
    theta_0. `coordinates` and `scales` are the only parameters that require gradients, and those of the head where
    it is trained beside the subspace.

    Args:
        model: Any transformers model; its parameters are frozen in place and never written.
        d: Numbers to train, scales included.
        method: "did" or "said".
        projection: Family of P: dense, sparse, fastfood, fastfood_per_tensor, partition or trajectory.
        normalization: "global" or "per_tensor".
        groups: What one scale covers, "layer" or "tensor"; read by SAID only.
        head: "in_subspace", "trained" or "frozen".
        projection_seed: Seed of P.
        block_length: Fastfood block length; None takes the smallest that holds d.
        scope: "model", or "layer": one theta of d numbers for each transformer block, and nothing else in the subspace.
        embeddings: Policy of the base model's parameters outside its blocks; as `head`.
        ensemble: Coordinate vectors whose mean is theta; `coordinates` is then [ensemble, d].
        start: "zero", or "random" for coordinates from N(0, 1/d).
        snapshots: Checkpoints that projection "trajectory", or `match_norms`, is made of.
        match_norms: Give each tensor's rows of a random P the size of the last snapshot's update there.
        recompute: Share of the blocks, from the first on, whose activations are computed again in the backward pass
            instead of kept; the same gradient to the bit, for less memory and more time.

    Raises:
        DimensionError: d does not exceed the number of scales, or exceeds D.
        ConfigError: An option is unknown.
        TrajectoryError: The snapshots are of another layout.
    """

    def __init__(
        self,
        model: nn.Module,
        d: int,
        method: str = "did",
        projection: str = DEFAULT_PROJECTION,
        normalization: str = "global",
        groups: str = "layer",
        head: str = "in_subspace",
        projection_seed: int = 0,
        block_length: int | None = None,
        scope: str = "model",
        embeddings: str = "in_subspace",
        ensemble: int = 1,
        start: str = "zero",
        snapshots: Snapshots | None = None,
        match_norms: bool = False,
        recompute: float = 1 / 6,
    ) -> None:
        """Lay the model out, draw P and hook the units."""
        super().__init__()
        if method not in METHODS:
            raise ConfigError(f"method = {method!r} is unknown; use one of {', '.join(METHODS)}")
        if scope == "layer" and method == "said":
            raise ConfigError('scope = "layer" has a theta for each layer and no scales; take method "did"')
        if getattr(model, "_held", False):
            raise ConfigError("this model is held in a subspace already and would move twice; build a fresh one")
        model.requires_grad_(False)
        self.entries = layouts.entries(model, head, embeddings)
        self.groups = layouts.scale_groups(self.entries, groups if method == "said" else None)
        num_scales = layouts.check_dimension(d, self.entries, self.groups, method)
        block_length = block_length or next_power_of_two(max(d, 4))
        kind = Kind(projection, normalization, projection_seed, block_length, scope, match_norms)
        self.projection = assemble(self.entries, d - num_scales, kind, snapshots)
        self.settings: dict[str, Any] = {
            "d": d,
            "method": method,
            "projection": projection,
            "normalization": normalization,
            "groups": groups if method == "said" else None,
            "head": head,
            "projection_seed": projection_seed,
            "block_length": block_length,
        }
        later = {"scope": scope, "embeddings": embeddings, "ensemble": ensemble, "match_norms": match_norms}
        usual = {"scope": "model", "embeddings": "in_subspace", "ensemble": 1, "match_norms": False}
        self.settings |= {key: value for key, value in later.items() if value != usual[key]}
        if snapshots is not None:
            self.settings["snapshots"] = snapshots.describe()
        some = next(model.parameters())
        dtype = torch.float64 if some.dtype == torch.float64 else torch.float32
        shape = (self.projection.d,) if ensemble == 1 else (ensemble, self.projection.d)
        coordinates = torch.zeros(shape, dtype=dtype)
        if start == "random":
            coordinates = bits.normals(projection_seed, "start", 0, coordinates.numel()).view(shape) / d**0.5
        self.coordinates = nn.Parameter(coordinates.to(some.device, dtype))
        self.scales = nn.Parameter(torch.ones(num_scales, dtype=dtype, device=some.device))
        self.units = list(layouts.units(model, self.entries))
        apart = layouts.outside(model, head, embeddings)
        self.head = layouts.free(model, {name for name, policy in apart.items() if policy == "trained"})
        self.model = model
        self._live: dict[int, tuple[int, torch.dtype]] = {}
        self._frozen = {
            id(owner._parameters[key]): (number, use)
            for number, unit in sorted(enumerate(self.units), key=lambda item: item[1].rows)  # a tied table: by rows
            for use, (owner, key, _) in enumerate(unit.uses)
        }
        self._remade: tuple[int, dict[torch.dtype, Tensor]] | None = None
        for number, unit in enumerate(self.units):
            self._hook(number, unit)
        blocks = [number for number, unit in enumerate(self.units) if unit.block]
        for number in blocks[: math.ceil(recompute * len(blocks))]:
            self._recompute(number)
        model._held = True  # type: ignore[assignment]

    @property
    def config(self) -> Any:
        """The base model's configuration."""
        return self.model.config

    @property
    def theta(self) -> Tensor:
        """The coordinates that count, shape [projection.d]: the mean of the ensemble."""
        return self.coordinates if self.coordinates.dim() == 1 else self.coordinates.mean(0)

    @property
    def num_params(self) -> int:
        """D: the parameters that the subspace spans."""
        return self.projection.num_params

    @property
    def num_trained(self) -> int:
        """Numbers trained in the subspace, scales included: d, times layers and ensemble where there are such."""
        return self.coordinates.numel() + self.scales.numel()

    @property
    def num_trained_head(self) -> int:
        """Numbers trained in full beside the subspace, in the head and the embeddings."""
        return sum(parameter.numel() for parameter in self.head.values())

    def trained(self) -> dict[str, nn.Parameter]:
        """Name everything that an optimiser should move."""
        subspace = {"coordinates": self.coordinates} | ({"scales": self.scales} if self.scales.numel() else {})
        return subspace | {f"head.{name}": parameter for name, parameter in self.head.items()}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the base model at theta_0 + lambda * P theta."""
        with torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack), _Reads(self):
            return self.model(*args, **kwargs)

    @torch.no_grad()
    def merged_state(self) -> dict[str, Tensor]:
        """Give the full weights theta_0 + lambda * P theta by name (D numbers: the whole model at once)."""
        state = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        for entry in self.entries:
            state[entry.name] = self._weights(((entry.start, entry.stop),), [entry]).view(entry.frozen.shape)
            state[entry.name] = state[entry.name].to(entry.frozen.dtype)
        tied = {id(p): name for name, p in self.model.named_parameters()}
        for name, p in self.model.named_parameters(remove_duplicate=False):
            state[name] = state[tied[id(p)]]
        return state

    def update(self, start: int, stop: int) -> Tensor:
        """Compute what is added to theta_0 on a slice of the positions, (lambda * P theta)[start:stop]."""
        return self._scaled(self.projection.apply(self.theta.detach(), start, stop), start)

    def save_pretrained(self, directory: str | os.PathLike[str], **identity: Any) -> None:
        """Save the trained numbers; see `adapter.save_pretrained` for what else may be said of them."""
        from distsub.subspace import adapter

        adapter.save_pretrained(self, directory, **identity)

    @classmethod
    def from_pretrained(
        cls, directory: str | os.PathLike[str], base: nn.Module, snapshots: Snapshots | None = None
    ) -> "SubspaceModel":
        """Rebuild a saved model around its base; see `adapter.from_pretrained`."""
        from distsub.subspace import adapter

        return adapter.from_pretrained(directory, base, snapshots)

    # Making weights

    def _scaled(self, flat: Tensor, start: int) -> Tensor:
        """Multiply a slice of positions by its groups' scales, in place."""
        if self.scales.numel():
            for low, high, group in self._group_runs(start, start + flat.numel()):
                flat[low - start : high - start].mul_(self.scales.detach()[group])
        return flat

    def _group_runs(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Cut a slice of positions where the SAID group changes."""
        for low, high, group in self.groups:
            if low < stop and high > start:
                yield max(low, start), min(high, stop), group

    def _weights(self, runs: tuple[tuple[int, int], ...], used: list[layouts.Entry]) -> Tensor:
        """Compute theta_0 + lambda * P theta over runs of positions, laid end to end."""
        pieces = [self.update(start, stop) for start, stop in runs]
        flat = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        once = {entry.start: entry for entry in used}  # tied weights are several uses of one entry
        for entry, offset in layouts.offsets(runs, list(once.values())):
            flat[offset : offset + entry.stop - entry.start].view(entry.frozen.shape).add_(entry.frozen)
        return flat

    @torch.no_grad()
    def _unit_weights(self, number: int) -> Tensor:
        """Make a unit's weights in one buffer, its runs end to end."""
        unit = self.units[number]
        return self._weights(unit.runs, [entry for _, _, entry in unit.uses])

    def lent(self, number: int) -> tuple[Tensor, ...]:
        """Make a unit's weights, one view per use, in the precision that each runs in."""
        unit, flat = self.units[number], self._unit_weights(number)
        wanted = [self._run_dtype(entry.frozen) for _, _, entry in unit.uses]
        buffers = {dtype: flat.to(dtype) for dtype in {*wanted, flat.dtype}}
        return tuple(
            buffers[dtype][offset : offset + entry.stop - entry.start].view(entry.frozen.shape)
            for dtype, (entry, offset) in zip(
                wanted, layouts.offsets(unit.runs, [e for _, _, e in unit.uses]), strict=True
            )
        )

    def _run_dtype(self, frozen: Tensor) -> torch.dtype:
        """Tell the precision in which a weight is lent: a matrix in autocast's, which then makes no copy of its own."""
        device = frozen.device.type
        if torch.is_autocast_enabled(device) and frozen.dim() > 1 and frozen.dtype == torch.float32:
            return torch.get_autocast_dtype(device)
        return frozen.dtype

    def reduce(self, number: int, grads: tuple[Tensor | None, ...]) -> tuple[Tensor, Tensor | None]:
        """Reduce a unit's weight gradients to coordinates and scales: lambda P^T g and <g_i, (P theta)_i>."""
        unit = self.units[number]
        size = sum(stop - start for start, stop in unit.runs)
        flat = self.coordinates.new_zeros(size)
        for (entry, offset), grad in zip(layouts.offsets(unit.runs, [e for _, _, e in unit.uses]), grads, strict=True):
            if grad is not None:
                flat[offset : offset + entry.stop - entry.start].view(grad.shape).add_(grad)
        theta, done = self.coordinates.new_zeros(self.projection.d), 0
        scales = torch.zeros_like(self.scales) if self.scales.numel() else None
        for start, stop in unit.runs:
            grad = flat[done : done + stop - start]
            done += stop - start
            self._reduce_run(grad, start, theta, scales)
        return theta, scales

    def _reduce_run(self, grad: Tensor, start: int, theta: Tensor, scales: Tensor | None) -> None:
        """Add one contiguous slice's share to the reduced gradients."""
        runs = list(self._group_runs(start, start + grad.numel()))
        if scales is None:
            theta.add_(self.projection.adjoint(grad, start))
        elif len(runs) == 1:
            # <g, P theta> = <P^T g, theta>: the scale's gradient costs nothing more.
            reduced = self.projection.adjoint(grad, start)
            group = runs[0][2]
            theta.add_(reduced * self.scales.detach()[group])
            scales[group] += torch.dot(reduced, self.theta.detach())
        else:
            update = self.projection.apply(self.theta.detach(), start, start + grad.numel())
            for low, high, group in runs:
                scales[group] += torch.dot(grad[low - start : high - start], update[low - start : high - start])
            theta.add_(self.projection.adjoint(self._scaled(grad, start), start))

    def drop(self, number: int) -> None:
        """Forget the remade weights of a unit whose backward pass is over."""
        if self._remade is not None and self._remade[0] == number:
            self._remade = None

    # Lending weights

    def _hook(self, number: int, unit: layouts.Unit) -> None:
        """Lend a unit's weights to its modules while it runs; rows of tables are made where they are read."""
        if unit.rows:
            return

        def lend(module: nn.Module, args: tuple[Any, ...]) -> None:
            for weight, (owner, key, _) in zip(self._lend(number), unit.uses, strict=True):
                owner._parameters[key] = weight  # type: ignore[assignment]

        frozen = [owner._parameters[key] for owner, key, _ in unit.uses]

        def give_back(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            for parameter, (owner, key, _) in zip(frozen, unit.uses, strict=True):
                owner._parameters[key] = parameter
            self._take_back(number)

        unit.module.register_forward_pre_hook(lend)
        unit.module.register_forward_hook(give_back, always_call=True)

    def _recompute(self, number: int) -> None:
        """Keep none of a block's activations: it runs again, on weights made again, when backward asks for them."""
        unit = self.units[number]
        frozen = [owner._parameters[key] for owner, key, _ in unit.uses]
        forward = unit.module.forward

        def run(*args: Any, **kwargs: Any) -> Any:
            owner, key, _ = unit.uses[0]
            if owner._parameters[key] is not frozen[0]:
                return forward(*args, **kwargs)
            # The second time no hook has lent anything. These weights only stand for the first ones, whose gradients
            # flow to the trained numbers.
            for weight, (owner, key, _) in zip(self.lent(number), unit.uses, strict=True):
                owner._parameters[key] = weight.detach().requires_grad_()  # type: ignore[assignment]
            try:
                with _Reads(self):
                    return forward(*args, **kwargs)
            finally:
                for parameter, (owner, key, _) in zip(frozen, unit.uses, strict=True):
                    owner._parameters[key] = parameter

        def keep_nothing(*args: Any, **kwargs: Any) -> Any:
            # A cache of keys and values is written to by every run, so a block that is given one runs once.
            cached = any(hasattr(value, "get_seq_length") for value in (*args, *kwargs.values()))
            if cached or not torch.is_grad_enabled():
                return forward(*args, **kwargs)
            return checkpoint(run, *args, use_reentrant=False, **kwargs)

        unit.module.forward = keep_nothing

    def _lend(self, number: int) -> tuple[Tensor, ...]:
        """Make a unit's weights and note whose they are, for as long as the caller keeps them."""
        weights: tuple[Tensor, ...] = _Weights.apply(self.theta, self.scales, self, number)  # type: ignore[assignment]
        self._live |= {weight.untyped_storage().data_ptr(): (number, weight.dtype) for weight in weights}
        return weights

    def _take_back(self, number: int) -> None:
        """Forget where a unit's weights were: their memory is about to be used again."""
        self._live = {pointer: owner for pointer, owner in self._live.items() if owner[0] != number}

    def _look_up(self, number: int, index: Tensor, output: Tensor) -> Tensor:
        """Add the update to rows that were looked up in theta_0's table; of the table, only these rows are made."""
        rows, place = torch.unique(index, return_inverse=True)
        entry = self.units[number].uses[0][2]
        update: Tensor = _Rows.apply(self.theta, self.scales, self, entry, rows)  # type: ignore[assignment]
        return output + update[place].to(output.dtype)

    def _pack(self, tensor: Tensor) -> Tensor | SavedWeight:
        owner = self._live.get(tensor.untyped_storage().data_ptr())
        if owner is None:
            return tensor
        return SavedWeight(*owner, tensor.size(), tensor.stride(), int(tensor.storage_offset()))

    def _unpack(self, saved: Tensor | SavedWeight) -> Tensor:
        if isinstance(saved, Tensor):
            return saved
        if self._remade is None or self._remade[0] != saved.unit:
            flat = self._unit_weights(saved.unit)
            self._remade = (saved.unit, {flat.dtype: flat})
        buffers = self._remade[1]
        if saved.dtype not in buffers:
            buffers[saved.dtype] = buffers[self.coordinates.dtype].to(saved.dtype)
        return buffers[saved.dtype].as_strided(saved.size, saved.stride, saved.offset)


_SHAPE_ONLY = {"__get__", "size", "dim", "numel", "is_floating_point"}
"""Names of functions that need none of a weight's numbers."""


class _Reads(TorchFunctionMode):
    """Sees every operation on a frozen parameter that no hook has lent, and gives it the updated weight instead.

    That is each look-up in an embedding table, of which only the rows are made, and what models do outside a
    module's own forward: DeBERTa reads its table of relative positions as a matrix, attention modules read a
    child's weight. Such a unit is lent once, until the forward pass ends.
    """

    def __init__(self, model: SubspaceModel) -> None:
        super().__init__()
        self._model = model
        self._lent: dict[int, tuple[Tensor, ...]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.__name__ in _SHAPE_ONLY:
            return func(*args, **kwargs)
        frozen = self._model._frozen
        if func is functional.embedding and len(args) > 1 and id(args[1]) in frozen and kwargs.get("max_norm") is None:
            number, _ = frozen[id(args[1])]
            if self._model.units[number].rows:
                return self._model._look_up(number, args[0], func(*args, **kwargs))
        return func(*self._updated(args), **{key: self._updated(value) for key, value in kwargs.items()})

    def _updated(self, value: Any) -> Any:
        """Replace frozen parameters by their updated weights, inside tuples and lists too."""
        if type(value) in (tuple, list):
            return type(value)([self._updated(item) for item in value])
        number, use = self._model._frozen.get(id(value), (None, 0))
        if number is None:
            return value
        if number not in self._lent:
            self._lent[number] = self._model._lend(number)
        return self._lent[number][use]

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        for number in self._lent:
            self._model._take_back(number)
        self._lent = {}


class _Weights(torch.autograd.Function):
    """A unit's weights as a function of the trained numbers."""

    @staticmethod
    def forward(ctx: Any, coordinates: Tensor, scales: Tensor, model: SubspaceModel, number: int) -> tuple[Tensor, ...]:
        ctx.model, ctx.number = model, number
        return model.lent(number)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        ctx.model.drop(ctx.number)
        return (*ctx.model.reduce(ctx.number, grads), None, None)


class _Rows(torch.autograd.Function):
    """The update of some rows of an embedding table as a function of the trained numbers."""

    @staticmethod
    def forward(
        ctx: Any, coordinates: Tensor, scales: Tensor, model: SubspaceModel, entry: layouts.Entry, rows: Tensor
    ) -> Tensor:
        ctx.model, ctx.entry, ctx.rows = model, entry, rows
        update = model.projection.apply_rows(coordinates, entry.start, entry.frozen.shape[1], rows)
        [(_, _, group)] = model._group_runs(entry.start, entry.stop)
        return update * scales[group] if scales.numel() else update

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        model = ctx.model
        reduced = model.projection.adjoint_rows(grad.contiguous(), ctx.entry.start, ctx.rows)
        if not model.scales.numel():
            return reduced, None, None, None, None
        [(_, _, group)] = model._group_runs(ctx.entry.start, ctx.entry.stop)
        scales = torch.zeros_like(model.scales)
        scales[group] = torch.dot(reduced, model.theta.detach())
        return reduced * model.scales.detach()[group], scales, None, None, None
