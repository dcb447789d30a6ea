"""What users of transformers and PEFT expect of a model that wraps another: its signature, its methods, itself back."""

import copy
import hashlib
import inspect
import json
from collections.abc import Callable
from typing import Any, Never

import torch
from torch import Tensor, nn

from distsub.errors import ConfigError
from distsub.subspace import guard
from distsub.subspace.adapter import flat
from distsub.subspace.layout import Entry


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

    A subclass sets the attributes below.
    """

    model: Any
    original: Original
    hooks: Any
    projection: Any
    entries: list[Entry]
    coordinates: nn.Parameter
    scales: nn.Parameter
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
        self.hooks.remove()
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

    def describe(self) -> dict[str, Any]:
        """Say, as plain values for JSON, what it takes to make this subspace of the base model again."""
        raise NotImplementedError

    def get_nb_trainable_parameters(self) -> tuple[int, int]:
        """Count the trained numbers, and all: the base model's parameters and the subspace's numbers."""
        every = list(self.parameters())
        return sum(p.numel() for p in every if p.requires_grad), sum(p.numel() for p in every)

    def print_trainable_parameters(self) -> None:
        """Print both counts in the words of PEFT."""
        trained, every = self.get_nb_trainable_parameters()
        print(f"trainable params: {trained:,d} || all params: {every:,d} || trainable%: {100 * trained / every:.4f}")

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Give the trained numbers and the base model's buffers: theta_0 is left out, and named by a hash.

        Load it into a `SubspaceModel` with the same settings and the same base model; another is refused.
        """
        with self.hooks.states_of("trained"):
            return super().state_dict(*args, **kwargs)

    def get_extra_state(self) -> Tensor:
        """Say what the numbers belong to: the subspace, and a hash of entries of theta_0, as bytes of JSON."""
        text = json.dumps({"subspace": self.describe(), "theta_0": _sample_hash(self)}, sort_keys=True)
        return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Check that numbers which are about to be loaded belong here.

        Raises:
            ConfigError: They were trained in another subspace, or on another base model.
        """
        given, own = (json.loads(bytes(each.cpu().tolist())) for each in (state, self.get_extra_state()))
        theirs, mine = flat(given["subspace"]), flat(own["subspace"])
        differ = sorted(key for key in mine.keys() | theirs.keys() if mine.get(key) != theirs.get(key))
        if differ:
            each = ", ".join(f"{key} = {theirs.get(key)!r}, here {mine.get(key)!r}" for key in differ)
            raise ConfigError(f"this state was trained in another subspace: {each}; wrap the base model with those")
        if given["theta_0"] != own["theta_0"]:
            raise ConfigError(
                "this state was trained on another theta_0: wrap the base model of its training, with that head"
            )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Wrapper":
        """Move or cast: the base model as any other, the trained numbers so that they stay precise enough to train."""
        if recurse:
            self.model._apply(fn)
        dtype = precision(next(self.model.parameters()))
        for parameter in (self.coordinates, self.scales):
            with torch.no_grad():
                parameter.data = parameter.data.to(fn(parameter.data).device, dtype)
                if parameter.grad is not None:
                    parameter.grad = parameter.grad.to(parameter.device, dtype)
        return self

    def _replicate_for_data_parallel(self) -> Never:
        guard.refuse(
            "nn.DataParallel copies weights that a SubspaceModel makes as it runs: use DistributedDataParallel"
        )


def precision(base: Tensor) -> torch.dtype:
    """Give the precision of the trained numbers: never less than float32."""
    return torch.float64 if base.dtype == torch.float64 else torch.float32


def forgive(held: Wrapper, keys: Any) -> None:
    """Do not count what `state_dict` leaves out as missing where it is loaded."""
    left_out = tuple(
        f"model.{name}" for name, p in held.model.named_parameters(remove_duplicate=False) if not p.requires_grad
    )
    keys.missing_keys[:] = [key for key in keys.missing_keys if not key.endswith(left_out)]


def _sample_hash(held: Wrapper) -> str:
    """Hash up to 64 entries of every parameter that the subspace spans, rounded to bfloat16: a cast keeps the hash."""
    digest = hashlib.sha256()
    for entry in held.entries:
        flat = entry.frozen.detach().reshape(-1)
        some = flat[:: max(1, flat.numel() // 64)][:64].to("cpu", torch.bfloat16)
        digest.update(f"{entry.name} {entry.start} ".encode() + some.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
