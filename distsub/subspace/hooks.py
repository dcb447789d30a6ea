"""What a held model does to the modules of its base, so that whichever way one is entered, it runs at theta.

A `PatchedForward` stands in for the `forward` of every module that holds parameters. The first one that is entered
begins a pass (see `passes`), and ends it when it returns. Within a pass a unit's own forward materialises the unit's
weights in the place of its frozen parameters, and every other read of a frozen parameter is answered with its weight at
theta. What autograd would save of such weights beyond `keep` is replaced by a note, from which the backward pass makes
them again.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from distsub.subspace import guard
from distsub.subspace.passes import Kept, MadeFrom, Pass, SavedTensor, SavedWeight, castable, check, uses
from distsub.subspace.weights import Numbers

if TYPE_CHECKING:
    from distsub.subspace.model import SubspaceModel


class Hooks:
    """Everything that a held model does to the modules of its base.

    Args:
        held: The held model, laid out.
        recompute: Numbers of the units whose activations are computed again in the backward pass.
        keep: Bytes of weights at most that autograd keeps from a pass to its backward pass; others are made again.
    """

    def __init__(self, held: "SubspaceModel", recompute: set[int], keep: int) -> None:
        """Patch the forward of every module that holds parameters."""
        self.held, self.recompute, self.keep = held, recompute, keep
        self.bypassed = False
        self.states_hold = "theta"
        self._reset()
        numbers = {id(unit.module): number for number, unit in enumerate(held.units) if not unit.rows}
        for module in held.model.modules():
            if isinstance(module, guard.CONTAINERS) or next(module.parameters(), None) is None:
                continue
            number = numbers.get(id(module))
            module.forward = PatchedForward(self, module, number, number in recompute)
        self.structure = guard.Structure(held.model, held.entries)
        guard.watch_states(self)

    def _reset(self) -> None:
        """Begin outside any pass; keys are by identity, so that they are made anew in every copy."""
        self._lock = threading.RLock()
        self._pass: Pass | None = None
        self._rebuilt: list[tuple[MadeFrom, dict[torch.dtype, Tensor]]] = []
        self._kept: Kept | None = None
        self._frozen: dict[int, tuple[int, int]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what belongs to this process and these tensors."""
        passing = ("_lock", "_pass", "_rebuilt", "_kept", "_frozen")
        return {key: value for key, value in self.__dict__.items() if key not in passing}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Begin again in a copy."""
        self.__dict__.update(state)
        self._reset()

    def remove(self) -> None:
        """Undo everything: the modules are as they were before."""
        for module in self.held.model.modules():
            patched = module.__dict__.get("forward")
            if isinstance(patched, PatchedForward):
                del module.forward
                if patched.given is not None:
                    module.forward = patched.given
            again = module.__dict__.get("_gradient_checkpointing_func")
            if isinstance(again, Checkpointing):
                module._gradient_checkpointing_func = again.function  # type: ignore[assignment]
        guard.unwatch_states(self)

    @property
    def frozen(self) -> dict[int, tuple[int, int]]:
        """Unit and use of every frozen parameter, by its identity; a table that is tied counts as a table."""
        if self._frozen is None:
            self._frozen = {
                id(entry.frozen): (number, use)
                for number, unit in sorted(enumerate(self.held.units), key=lambda item: item[1].rows)
                for use, (_, _, entry) in enumerate(unit.uses)
            }
        return self._frozen

    @property
    def in_pass(self) -> bool:
        """Whether some thread runs the model."""
        return self._pass is not None

    @property
    def idle(self) -> bool:
        """Whether no weights exist beside theta_0: no pass runs, and no backward pass is under way."""
        return not self.in_pass and not self._rebuilt

    @contextmanager
    def states_of(self, what: str) -> Iterator[None]:
        """Decide what state dictionaries hold: weights at "theta", at "theta_0", or what is "trained" alone."""
        before, self.states_hold = self.states_hold, what
        try:
            yield
        finally:
            self.states_hold = before

    @contextmanager
    def bypass(self) -> Iterator[None]:
        """Run the base model at theta_0, as if it were not held."""
        before, self.bypassed = self.bypassed, True
        try:
            yield
        finally:
            self.bypassed = before

    @contextmanager
    def keeping(self, most: int) -> Iterator[None]:
        """Keep weights from one pass without gradients to the next: what is scored in many batches does not train.

        Args:
            most: Bytes to keep; units beyond are made in every pass, as all are outside.
        """
        before, self._kept = self._kept, Kept(most)
        try:
            yield
        finally:
            self._kept = before

    @property
    def current(self) -> Pass | None:
        """The pass that this thread is in."""
        found = self._pass
        return found if found is not None and found.thread == threading.get_ident() else None

    @contextmanager
    def begin(self, numbers: Numbers | None = None) -> Iterator[Pass]:
        """Begin a pass, once no other thread is in one.

        Args:
            numbers: What weights are made from; None takes the trained numbers as they are now.

        Raises:
            ConfigError: The model, or what is done with it, has become something that cannot be held.
        """
        with self._lock:
            self.structure.check(self.held)
            begun = Pass(self, numbers)
            # In a backward pass a block may run again to fill what another checkpoint keeps: those hooks must see it.
            hooks = torch.autograd.graph.saved_tensors_hooks(begun.pack, self.unpack)
            before, self._pass = self._pass, begun
            try:
                with nullcontext() if in_backward() else hooks, begun:
                    yield begun
            finally:
                self._pass = before
                begun.end()

    # Making weights

    def unit_weights(self, numbers: Numbers, number: int, dtype: torch.dtype | None = None) -> Tensor:
        """Make a unit's weights in one buffer, its runs end to end; see `Weights.make` for their precision."""
        unit = self.held.units[number]
        with torch.no_grad(), torch._C.DisableTorchFunction():
            return self.held.weights.make(numbers, unit.runs, [entry for _, _, entry in unit.uses], dtype)

    def views(self, source: MadeFrom, cast: torch.dtype | None) -> tuple[Tensor, ...]:
        """Make a unit's weights: one view per use, then, where autocast is on, its matrices in that precision."""
        places = uses(self.held.units[source.unit])
        wanted = [(place, place[0].frozen.dtype) for place in places]
        if cast is not None:
            wanted += [(place, cast) for place in places if castable(place[0].frozen)]
        dtypes = {dtype for _, dtype in wanted}
        flat = self.unit_weights(source.numbers, source.unit, next(iter(dtypes)) if len(dtypes) == 1 else None)
        buffers = {dtype: flat.to(dtype) for dtype in dtypes}
        return tuple(
            buffers[dtype][offset : offset + entry.stop - entry.start].view(entry.frozen.shape)
            for (entry, offset), dtype in wanted
        )

    def views_without_gradient(self, source: MadeFrom, cast: torch.dtype | None) -> tuple[Tensor, ...]:
        """Make a unit's weights where autograd keeps nothing, or take what was kept of them."""
        found = self._kept and self._kept.find(source, cast)
        if found is None:
            found = self.views(source, cast)
            if self._kept is not None:
                self._kept.add(source, cast, found)
        return found

    def unpack(self, saved: SavedTensor | SavedWeight) -> Tensor:
        """Give autograd what it saved; a weight is made again, with all others of its unit."""
        if isinstance(saved, SavedTensor):
            if not saved.tensor.is_inference() and saved.tensor._version != saved.version:
                guard.modified(f"a tensor of shape {list(saved.tensor.shape)}", saved.tensor._version, saved.version)
            return saved.tensor
        source = saved.source
        check(source)
        rebuilt = next((weights for made_from, weights in self._rebuilt if made_from is source), None)
        if rebuilt is None:
            # Two units at most: DeBERTa's blocks read a table of relative positions beside their own weights.
            rebuilt = dict[torch.dtype, Tensor]()
            self._rebuilt = [*self._rebuilt[-1:], (source, rebuilt)]
        if saved.dtype not in rebuilt:
            flat = next(iter(rebuilt.values()), None)
            if flat is None or flat.dtype.itemsize < saved.dtype.itemsize:
                flat = self.unit_weights(source.numbers, source.unit, saved.dtype)
            rebuilt[saved.dtype] = flat.to(saved.dtype)
        return rebuilt[saved.dtype].as_strided(saved.size, saved.stride, saved.offset)

    def release(self, source: MadeFrom) -> None:
        """Release the rebuilt weights of a unit whose backward pass is over."""
        self._rebuilt = [(made_from, weights) for made_from, weights in self._rebuilt if made_from is not source]


class PatchedForward:
    """Stands in for a module's `forward`; a plain object, so that copies and pickles of a model have their own.

    Args:
        hooks: Whose it is.
        module: The module.
        number: The unit whose weights it materialises, if any.
        recompute: Whether the module keeps no activations, and runs again in the backward pass.
    """

    def __init__(self, hooks: Hooks, module: nn.Module, number: int | None, recompute: bool) -> None:
        """Keep a `forward` that somebody else put on the instance."""
        self.hooks, self.module, self.number, self.recompute = hooks, module, number, recompute
        self.given: Callable[..., Any] | None = module.__dict__.get("forward")
        _begin_eagerly()

    @property
    def __wrapped__(self) -> Callable[..., Any]:
        """The module's own forward: `inspect.signature` looks here."""
        return self.given or type(self.module).forward.__get__(self.module)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module on weights at theta."""
        function = self.module.__dict__.get("_gradient_checkpointing_func")
        if function is not None and type(function) is not Checkpointing:
            self.module._gradient_checkpointing_func = Checkpointing(self, function)  # type: ignore[assignment]
        current = self.hooks.current
        if current is not None:
            return self.run(current, args, kwargs)
        if self.hooks.bypassed:
            return self.__wrapped__(*args, **kwargs)
        return _begin_eagerly()(self, args, kwargs)

    def run(self, current: Pass, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the module within a pass."""
        if self.number is None or current.holds(self.number):
            return self.__wrapped__(*args, **kwargs)
        training = self.module.training and self.module.__dict__.get("gradient_checkpointing", False)
        # A cache of keys and values is written to by every run, so a block that is given one runs once.
        cached = any(hasattr(value, "get_seq_length") for value in (*args, *kwargs.values()))
        if self.recompute and not cached and not training and torch.is_grad_enabled() and not in_backward():
            return checkpoint(Again(self, self.__wrapped__, current.numbers), *args, use_reentrant=False, **kwargs)
        with current.materialised(self.number):
            return self.__wrapped__(*args, **kwargs)


class Again:
    """A part of a module's forward that may run once more in the backward pass, after its pass has ended.

    Args:
        patched: The module's forward.
        function: What runs.
        numbers: What the weights were made from the first time; None takes them as they are.
    """

    def __init__(self, patched: PatchedForward, function: Callable[..., Any], numbers: Numbers | None = None) -> None:
        """Keep all three."""
        self.patched, self.function, self.numbers = patched, function, numbers

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run it on materialised weights."""
        hooks, number = self.patched.hooks, self.patched.number
        current = hooks.current
        if current is not None and current.grad and not torch.is_grad_enabled():
            guard.refuse_lost_inputs(self.patched.module, args)
        with hooks.begin(self.numbers) if current is None else nullcontext(current) as current:
            if number is None or current.holds(number):
                return self.function(*args, **kwargs)
            with current.materialised(number):
                return self.function(*args, **kwargs)


class Checkpointing:
    """Stands in for the checkpoint function that transformers puts on a module: what runs again finds its weights."""

    def __init__(self, patched: PatchedForward, function: Callable[..., Any]) -> None:
        """Keep both."""
        self.patched, self.function = patched, function

    def __call__(self, run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Checkpoint a part of the module's forward, to run again on the weights of this pass."""
        current = self.patched.hooks.current
        return self.function(Again(self.patched, run, current and current.numbers), *args, **kwargs)


def in_backward() -> bool:
    """Tell whether this thread is inside a backward pass."""
    return torch._C._current_graph_task_id() != -1


def _begin(patched: PatchedForward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    with patched.hooks.begin() as begun:
        return patched.run(begun, args, kwargs)


_eager: list[Callable[..., Any]] = []


def _begin_eagerly() -> Callable[..., Any]:
    """Give `_begin` as `torch.compile` leaves it alone; made late, for it imports the compiler."""
    if not _eager:
        _eager.append(torch.compiler.disable(_begin))
    return _eager[0]
