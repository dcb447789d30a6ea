"""Doors stand in for the `forward` of a held model's modules, so that whoever enters finds the weights at theta."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from distsub.subspace import guard
from distsub.subspace.weights import Numbers

if TYPE_CHECKING:
    from distsub.subspace.lending import Lending
    from distsub.subspace.session import Session


class Door:
    """Stands in for a module's `forward`; a plain object, so that copies and pickles of a model have their own.

    Args:
        lending: Whose door it is.
        module: The module behind it.
        number: The unit whose weights it lends, if it lends any.
        recompute: Whether the module keeps no activations, and runs again in the backward pass.
    """

    def __init__(self, lending: "Lending", module: nn.Module, number: int | None, recompute: bool) -> None:
        """Keep a `forward` that was put on the instance by others."""
        self.lending, self.module, self.number, self.recompute = lending, module, number, recompute
        self.given: Callable[..., Any] | None = module.__dict__.get("forward")
        _enter_eagerly()

    @property
    def __wrapped__(self) -> Callable[..., Any]:
        """The module's own forward: `inspect.signature` looks here."""
        return self.given or type(self.module).forward.__get__(self.module)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module on weights at theta."""
        function = self.module.__dict__.get("_gradient_checkpointing_func")
        if function is not None and type(function) is not Checkpointing:
            self.module._gradient_checkpointing_func = Checkpointing(self, function)  # type: ignore[assignment]
        session = self.lending.session
        if session is not None:
            return self._run(session, args, kwargs)
        if self.lending.bypassed:
            return self.__wrapped__(*args, **kwargs)
        return _enter_eagerly()(self, args, kwargs)

    def _run(self, session: "Session", args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.number is None or session.lends(self.number):
            return self.__wrapped__(*args, **kwargs)
        training = self.module.training and self.module.__dict__.get("gradient_checkpointing", False)
        # A cache of keys and values is written to by every run, so a block that is given one runs once.
        cached = any(hasattr(value, "get_seq_length") for value in (*args, *kwargs.values()))
        if self.recompute and not cached and not training and torch.is_grad_enabled() and not in_backward():
            return checkpoint(Again(self, self.__wrapped__, session.numbers), *args, use_reentrant=False, **kwargs)
        with session.lend(self.number):
            return self.__wrapped__(*args, **kwargs)


class Again:
    """A part of a module's forward that may run once more in the backward pass, after its doors have closed.

    Args:
        door: The module's door.
        function: What runs.
        numbers: What the weights were made from the first time; None takes them as they are.
    """

    def __init__(self, door: Door, function: Callable[..., Any], numbers: Numbers | None = None) -> None:
        """Keep all three."""
        self.door, self.function, self.numbers = door, function, numbers

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run it with the module's weights lent."""
        lending, number = self.door.lending, self.door.number
        session = lending.session
        if session is not None and session.grad and not torch.is_grad_enabled():
            guard.refuse_lost_inputs(self.door.module, args)
        with lending.open(self.numbers) if session is None else nullcontext(session) as session:
            if number is None or session.lends(number):
                return self.function(*args, **kwargs)
            with session.lend(number):
                return self.function(*args, **kwargs)


class Checkpointing:
    """Stands in for the checkpoint function that transformers puts on a module: what runs again finds weights lent."""

    def __init__(self, door: Door, function: Callable[..., Any]) -> None:
        """Keep both."""
        self.door, self.function = door, function

    def __call__(self, run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Checkpoint a part of the module's forward, to run again on the weights of this pass."""
        session = self.door.lending.session
        return self.function(Again(self.door, run, session and session.numbers), *args, **kwargs)


def in_backward() -> bool:
    """Tell whether this thread is inside a backward pass."""
    return torch._C._current_graph_task_id() != -1


def _enter(door: Door, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    with door.lending.open() as session:
        return door._run(session, args, kwargs)


_entrance: list[Callable[..., Any]] = []


def _enter_eagerly() -> Callable[..., Any]:
    """Give `_enter` as `torch.compile` leaves it alone; made late, for it imports the compiler."""
    if not _entrance:
        _entrance.append(torch.compiler.disable(_enter))
    return _entrance[0]
