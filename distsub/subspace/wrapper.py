"""What users of transformers and PEFT expect of a model that wraps another: its signature, its methods, itself back."""

import copy
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class Original:
    """A model's own parameters, where they were and whether they required gradients, before it is wrapped."""

    def __init__(self, model: nn.Module) -> None:
        """Note them."""
        places = [(owner, key, p) for owner in model.modules() for key, p in owner._parameters.items()]
        self.places = [(owner, key, p, p.requires_grad) for owner, key, p in places if p is not None]

    def restore(self) -> None:
        """Put them back, on the device and in the precision that the model has by now."""
        for owner, key, parameter, wanted in self.places:
            found = owner._parameters[key]
            if found is not None and found is not parameter:
                parameter.data = parameter.data.to(found.device, found.dtype)
                owner._parameters[key] = parameter
            parameter.requires_grad_(wanted)


class Forward:
    """A held model's `forward`, with the signature of its base: `Trainer` keeps the columns that are named there."""

    def __init__(self, held: "Wrapper") -> None:
        """Bind it."""
        self.held = held

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the base model."""
        return self.held.model(*args, **kwargs)

    @property
    def __signature__(self) -> inspect.Signature:
        """Read the base's."""
        return inspect.signature(self.held.model.forward)


class _ForwardOfBase:
    """Binds `Forward` to a held model; the class itself names what it takes for labels, as `find_labels` asks it."""

    def __get__(self, held: "Wrapper | None", owner: type) -> Callable[..., Any]:
        if held is None:
            return _class_forward
        return Forward(held)


def _class_forward(self: "Wrapper", *args: Any, labels: Tensor | None = None, **kwargs: Any) -> Any:
    """Run the base model at theta_0 + lambda * P theta."""
    return self.model(*args, **kwargs if labels is None else {**kwargs, "labels": labels})


class Wrapper(nn.Module):
    """Answers for its base model wherever it has no answer of its own, as PEFT's models do.

    A subclass sets `model`, `original` and `lending`.
    """

    model: Any
    original: Original
    lending: Any
    projection: Any
    forward: Any = _ForwardOfBase()

    def __getattr__(self, name: str) -> Any:
        """Look a name up in the base model: `generate`, `device`, `activation_checkpointing_enable` and so on."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            base = self.__dict__.get("_modules", {}).get("model")
            if base is not None and not name.startswith("__"):
                return getattr(base, name)
            if name == "model" or (base is None and self.__dict__.get("unloaded")):
                raise AttributeError("this SubspaceModel gave its base model back by unload(): wrap it again") from None
            raise

    @property
    def config(self) -> Any:
        """The base model's configuration."""
        return self.model.config

    def unload(self) -> nn.Module:
        """Give the base model back as it was: theta_0 in all its parameters, which require gradients as before.

        The `SubspaceModel` is of no use afterwards. For the trained weights see `merge`.
        """
        self.lending.remove()
        self.original.restore()
        base = self.model
        del self.model
        self.unloaded = True
        return base

    @torch.no_grad()
    def merge(self) -> nn.Module:
        """Give a plain transformers model with the weights theta_0 + lambda * P theta, memory of its own.

        It needs nothing of distsub any more: `save_pretrained`, `pipeline` and quantisation work as for any other.
        """
        state = self.merged_state()
        plain = copy.deepcopy(self, {id(self.projection): self.projection}).unload()
        plain.load_state_dict(state)
        return plain

    def merged_state(self) -> dict[str, Tensor]:
        """Give the weights of the merged model."""
        raise NotImplementedError

    def get_nb_trainable_parameters(self) -> tuple[int, int]:
        """Count the trained numbers, and all: the base model's parameters and the subspace's numbers."""
        every = list(self.parameters())
        return sum(p.numel() for p in every if p.requires_grad), sum(p.numel() for p in every)

    def print_trainable_parameters(self) -> None:
        """Print both counts in the words of PEFT."""
        trained, every = self.get_nb_trainable_parameters()
        print(f"trainable params: {trained:,d} || all params: {every:,d} || trainable%: {100 * trained / every:.4f}")
