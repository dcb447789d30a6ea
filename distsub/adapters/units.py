"""The units of a regression that learned standardised values: what a saved model gives is in those of its targets."""

from typing import Any

import torch
from torch import nn

from distsub.errors import AdapterError
from distsub.finetune.objective import in_units
from distsub.models import peft_model


class Units:
    """A forward hook of a regression model: its values, and the loss where it is given targets, in their units."""

    def __init__(self, scale: tuple[float, float]) -> None:
        self.scale = scale

    def __call__(self, model: nn.Module, given: Any, named: dict[str, Any], output: Any) -> Any:
        """Change what the model gives.

        Raises:
            AdapterError: It gives a plain tuple.
        """
        if not hasattr(output, "logits"):
            raise AdapterError("this model learned standardised values: call it with return_dict=True")
        output.logits = in_units(output.logits, self.scale)
        if (targets := named.get("labels")) is not None:
            output.loss = nn.functional.mse_loss(output.logits.squeeze(-1), targets.float().view(-1))
        return output


def in_original_units(model: nn.Module, scale: tuple[float, float] | None) -> None:
    """Have a model that learned standardised values give them in the units of its targets; once is enough."""
    plain = peft_model.plain(model)
    if scale is not None and not _hooks(plain):
        plain.register_forward_hook(Units(scale), with_kwargs=True)


@torch.no_grad()
def fold(model: nn.Module, scale: tuple[float, float]) -> None:
    """Put the units into the last layer of a plain model, W y + b to s W y + (s b + m), so that any program has them.

    Raises:
        AdapterError: It has no such layer, or one without a bias for the mean.
    """
    last = [module for module in model.modules() if isinstance(module, nn.Linear) and module.out_features == 1]
    if len(last) != 1 or last[0].bias is None:
        raise AdapterError(
            f"{type(model).__name__} learned standardised values, and has no last layer with a bias that could hold "
            f"their mean {scale[0]:g}: use distsub.load, which gives the values in their units"
        )
    mean, deviation = scale
    [layer] = last
    # A tensor of its own: a held model's may be a view of what others share.
    layer.weight.data = (layer.weight.double() * deviation).to(layer.weight.dtype)
    layer.bias.data = (layer.bias.double() * deviation + mean).to(layer.bias.dtype)
    for key in _hooks(model):
        del model._forward_hooks[key]
        model._forward_hooks_with_kwargs.pop(key, None)


def _hooks(model: nn.Module) -> list[int]:
    return [key for key, hook in model._forward_hooks.items() if isinstance(hook, Units)]
