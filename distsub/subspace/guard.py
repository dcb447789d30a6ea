"""What may not be done with the base model inside a `SubspaceModel`, and what to do instead."""

from operator import is_
from typing import TYPE_CHECKING, Any, Never

import torch
from torch import Tensor, nn
from torch._C import _functorch  # type: ignore[attr-defined]
from torch.fx import _symbolic_trace

from distsub.errors import ConfigError
from distsub.subspace.layout import Entry

if TYPE_CHECKING:
    from distsub.subspace.hooks import Hooks
    from distsub.subspace.model import SubspaceModel

CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)
"""Modules without a forward of their own."""


class Structure:
    """The modules and parameters of a model as they were when it was wrapped.

    Args:
        model: The base model.
        entries: The parameters that the subspace spans.
    """

    def __init__(self, model: nn.Module, entries: list[Entry]) -> None:
        """Note who owns what."""
        self.parameters = [(m, tuple(m._parameters.items())) for m in model.modules() if m._parameters]
        self.children = [(m, tuple(m._modules.values())) for m in model.modules() if m._modules]
        self.entries = [(entry, entry.frozen.shape) for entry in entries]

    def check(self, held: "SubspaceModel") -> None:
        """Refuse to run a model that is no longer the one that was wrapped, or where it cannot be right.

        Raises:
            ConfigError: What was done, and what to do instead.
        """
        if torch._C._get_tracing_state() is not None or getattr(_symbolic_trace, "_is_fx_tracing_flag", False):
            refuse("a SubspaceModel cannot be traced: its weights are made as it runs", merged=True)
        if _functorch.peek_interpreter_stack() is not None:
            refuse("torch.func transforms (grad, vmap, jvp) do not see the weights of a SubspaceModel", merged=True)
        for entry, shape in self.entries:
            if entry.frozen.shape != shape:
                self._changed(held, held.model, f"shape of {entry.name}")
            if entry.frozen.requires_grad:
                refuse(
                    f"{entry.name} requires gradients, but a SubspaceModel trains what `trained()` names and nothing "
                    'else: call requires_grad_(False) on it, or wrap with head = "trained" or embeddings = "trained"'
                )
        if held.hooks.in_pass:
            return  # entered again within a pass: parameters are replaced
        for module, children in self.children:
            if not _same(module._modules.values(), children):
                self._changed(held, module, "list of modules")
        for module, parameters in self.parameters:
            found = module._parameters
            if len(found) != len(parameters) or not all(found.get(key) is p for key, p in parameters):
                self._changed(held, module, "list of parameters")

    def _changed(self, held: "SubspaceModel", module: nn.Module, what: str) -> Never:
        name = next((name for name, m in held.model.named_modules() if m is module), "") or type(module).__name__
        refuse(
            f"{name} is not what was wrapped: its {what} was replaced (by resize_token_embeddings, a parametrization, "
            "load_state_dict(assign=True), or by hand); change the base model first, then wrap it"
        )


def _same(found: Any, noted: tuple[Any, ...]) -> bool:
    found = tuple(found)
    return len(found) == len(noted) and all(map(is_, found, noted))


class States:
    """Keeps a module's frozen parameters and the state dictionaries apart.

    A state of the base model, or of a part of it, holds the weights at theta; one of the `SubspaceModel` leaves frozen
    weights out. Neither can be loaded over theta_0.
    """

    def __init__(self, hooks: "Hooks", names: dict[str, Entry | None]) -> None:
        """Take the names of a module's frozen parameters, with the entries of those that the subspace spans."""
        self.hooks, self.names = hooks, names

    def __call__(self, module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
        """Change a state that has been collected."""
        for name, entry in self.names.items():
            if self.hooks.states_hold == "trained":
                state.pop(prefix + name, None)
            elif self.hooks.states_hold == "theta" and entry is not None and prefix + name in state:
                state[prefix + name] = self.hooks.held.weight(entry)

    def refuse_load(self, module: nn.Module, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Refuse a state that has weights for frozen parameters.

        Raises:
            ConfigError: It has.
        """
        for name in self.names:
            if prefix + name in state:
                refuse(
                    f"{prefix + name} is frozen inside a SubspaceModel and cannot be loaded: load it into the base "
                    "model before wrapping, and into a SubspaceModel what its own state_dict() gave"
                )


def watch_states(hooks: "Hooks") -> None:
    """Hook every module with frozen parameters; see `States`."""
    entries = {id(entry.frozen): entry for entry in hooks.held.entries}
    for module in hooks.held.model.modules():
        frozen = {name: p for name, p in module._parameters.items() if p is not None and not p.requires_grad}
        if frozen:
            states = States(hooks, {name: entries.get(id(p)) for name, p in frozen.items()})
            module.register_state_dict_post_hook(states)
            module.register_load_state_dict_pre_hook(states.refuse_load)


def unwatch_states(hooks: "Hooks") -> None:
    """Take those hooks away."""
    for module in hooks.held.model.modules():
        for registered in (module._state_dict_hooks, module._load_state_dict_pre_hooks):
            for key, hook in list(registered.items()):
                owner = getattr(getattr(hook, "hook", hook), "__self__", hook)
                if isinstance(owner, States):
                    del registered[key]


def refuse_lost_inputs(module: nn.Module, inputs: tuple[Any, ...]) -> None:
    """Refuse a reentrant checkpoint none of whose inputs requires a gradient: it would give none to its weights.

    Raises:
        ConfigError: None does.
    """
    if not any(isinstance(value, Tensor) and value.requires_grad for value in inputs):
        refuse(
            f"reentrant gradient checkpointing loses the gradient of {type(module).__name__}, since none of its inputs "
            'requires one: pass {"use_reentrant": False}, or leave it off and wrap with a larger recompute'
        )


def refuse(what: str, merged: bool = False) -> Never:
    """Refuse something.

    Raises:
        ConfigError: Always.
    """
    raise ConfigError(f"{what}; do it with a plain model that has merged_state() loaded" if merged else what)


def modified(what: str, found: int, expected: int) -> Never:
    """Refuse a backward pass through something that was written since its forward pass.

    Raises:
        RuntimeError: Always; as autograd does.
    """
    raise RuntimeError(
        "one of the variables needed for gradient computation has been modified by an inplace operation: "
        f"{what} is at version {found}; expected version {expected}. Call backward() before optimizer.step(), or run "
        "the forward pass again"
    )
