"""Lends a model's modules their weights while they run, whichever way they are entered.

A *door* stands in for the `forward` of every module that holds parameters. The first door that is entered opens a
session, and the last that is left closes it. Within a session a unit's own door puts the unit's weights in the place of
its frozen parameters, and every other read of a frozen parameter is answered with its weight at theta. What autograd
would save of lent weights is replaced by a note, from which the backward pass makes them again.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from distsub.subspace import guard
from distsub.subspace.doors import Checkpointing, Door, in_backward
from distsub.subspace.session import Lent, SavedTensor, SavedWeight, Session, castable, check, uses
from distsub.subspace.weights import Numbers

if TYPE_CHECKING:
    from distsub.subspace.model import SubspaceModel


class Lending:
    """Everything that a held model does to the modules of its base.

    Args:
        held: The held model, laid out.
        recompute: Numbers of the units whose activations are computed again in the backward pass.
    """

    def __init__(self, held: "SubspaceModel", recompute: set[int]) -> None:
        """Put a door before every module that holds parameters."""
        self.held = held
        self.bypassed = False
        self.given = "theta"
        self._reset()
        numbers = {id(unit.module): number for number, unit in enumerate(held.units) if not unit.rows}
        for module in held.model.modules():
            if isinstance(module, guard.CONTAINERS) or next(module.parameters(), None) is None:
                continue
            number = numbers.get(id(module))
            module.forward = Door(self, module, number, number in recompute)
        self.structure = guard.Structure(held.model, held.entries)
        guard.watch_states(self)

    def _reset(self) -> None:
        """Begin with no session; keys are by identity, so that they are made anew in every copy."""
        self._lock = threading.RLock()
        self._session: Session | None = None
        self._remade: tuple[Lent, dict[torch.dtype, Tensor]] | None = None
        self._frozen: dict[int, tuple[int, int]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what belongs to this process and these tensors."""
        passing = ("_lock", "_session", "_remade", "_frozen")
        return {key: value for key, value in self.__dict__.items() if key not in passing}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Begin again in a copy."""
        self.__dict__.update(state)
        self._reset()

    def remove(self) -> None:
        """Take every door away: the modules are as they were before."""
        for module in self.held.model.modules():
            door = module.__dict__.get("forward")
            if isinstance(door, Door):
                del module.forward
                if door.given is not None:
                    module.forward = door.given
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

    @contextmanager
    def giving(self, what: str) -> Iterator[None]:
        """Decide what state dictionaries hold: weights at "theta", at "theta_0", or what is "trained" alone."""
        before, self.given = self.given, what
        try:
            yield
        finally:
            self.given = before

    @contextmanager
    def bypass(self) -> Iterator[None]:
        """Run the base model at theta_0, as if it were not held."""
        before, self.bypassed = self.bypassed, True
        try:
            yield
        finally:
            self.bypassed = before

    # Sessions

    @property
    def session(self) -> Session | None:
        """The session that this thread is in."""
        session = self._session
        return session if session is not None and session.thread == threading.get_ident() else None

    @contextmanager
    def open(self, numbers: Numbers | None = None) -> Iterator[Session]:
        """Open a session, once no other thread has one.

        Args:
            numbers: What weights are made from; None takes the trained numbers as they are now.

        Raises:
            ConfigError: The model, or what is done with it, has become something that cannot be held.
        """
        with self._lock:
            self.structure.check(self.held)
            session = Session(self, numbers)
            # In a backward pass a block may run again to fill what another checkpoint keeps: those hooks must see it.
            hooks = torch.autograd.graph.saved_tensors_hooks(session.pack, self.unpack)
            before, self._session = self._session, session
            try:
                with nullcontext() if in_backward() else hooks, session:
                    yield session
            finally:
                self._session = before
                session.close()

    # Making weights

    def unit_weights(self, numbers: Numbers, number: int) -> Tensor:
        """Make a unit's weights in one buffer, its runs end to end."""
        unit = self.held.units[number]
        with torch.no_grad(), torch._C.DisableTorchFunction():
            return self.held.weights.make(numbers, unit.runs, [entry for _, _, entry in unit.uses])

    def views(self, lent: Lent, cast: torch.dtype | None) -> tuple[Tensor, ...]:
        """Make a unit's weights: one view per use, then, where autocast is on, its matrices in that precision."""
        flat = self.unit_weights(lent.numbers, lent.unit)
        places = uses(self.held.units[lent.unit])
        wanted = [(place, place[0].frozen.dtype) for place in places]
        if cast is not None:
            wanted += [(place, cast) for place in places if castable(place[0].frozen)]
        buffers = {dtype: flat.to(dtype) for dtype in {dtype for _, dtype in wanted}}
        return tuple(
            buffers[dtype][offset : offset + entry.stop - entry.start].view(entry.frozen.shape)
            for (entry, offset), dtype in wanted
        )

    def unpack(self, saved: SavedTensor | SavedWeight) -> Tensor:
        """Give autograd what it saved; a lent weight is made again, with all others of its unit."""
        if isinstance(saved, SavedTensor):
            if not saved.tensor.is_inference() and saved.tensor._version != saved.version:
                guard.modified(f"a tensor of shape {list(saved.tensor.shape)}", saved.tensor._version, saved.version)
            return saved.tensor
        lent, remade = saved.lent, self._remade
        check(lent)
        if remade is None or remade[0] is not lent:
            remade = self._remade = (lent, {})
        if saved.dtype not in remade[1]:
            flat = next(iter(remade[1].values()), None)
            if flat is None or flat.dtype.itemsize < saved.dtype.itemsize:
                flat = self.unit_weights(lent.numbers, lent.unit)
            remade[1][saved.dtype] = flat.to(saved.dtype)
        return remade[1][saved.dtype].as_strided(saved.size, saved.stride, saved.offset)

    def drop(self, lent: Lent) -> None:
        """Forget the remade weights of a unit whose backward pass is over."""
        if self._remade is not None and self._remade[0] is lent:
            self._remade = None
