"""Training that knows of the rounding: a few steps in which the model runs on rounded numbers, as it will be coded.

In the forward pass numbers x are rounded to levels m + s k, with k whole and |k| <= K. In the backward pass rounding is
taken for the identity (the straight-through estimator of Bengio et al. 2013), which gives the distance s between
levels a gradient too (Esser et al. 2020). Lotfi et al. 2022 (arXiv:2211.13609) train their levels in the same way.

What is minimised is the bound itself, made smooth: the mean cross-entropy over ln 2, which is at least the share of
errors, and Hoeffding's sqrt((b ln 2 + ln(1 / delta)) / (2 n)), whose bits b move by the price of a level under its
present count.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from distsub.finetune import batches
from distsub.finetune.building import learning_rate_factor
from distsub.finetune.objective import Objective
from distsub.finetune.precision import Autocast
from distsub.subspace import code_length
from distsub.subspace.code_length import Rounded
from distsub.subspace.model import SubspaceModel

BATCH = 32
"""Rows of a step."""

REACH = 0.6
"""How far all steps can move a number, in distances between levels: more of them move it by less each."""

SHRINKS = (0.0, 0.1, 0.2, 0.3, 0.4)
"""By how much of that distance numbers are drawn to the middle before they are rounded at last; the best is taken."""

SPACING_RATE = 0.01
"""By what share the first step changes the distance itself."""


def on_levels(numbers: Tensor, step: Tensor, largest: int, middle: float) -> Tensor:
    """Round numbers to levels, with a gradient for them and for the distance between levels.

    >>> step = torch.tensor(0.5, requires_grad=True)
    >>> on_levels(torch.tensor([0.1, 0.4, 9.0]), step, 2, 0.0).tolist()
    [0.0, 0.5, 1.0]
    """
    away = ((numbers - middle) / step).clamp(-largest, largest)
    return middle + step * (away + (away.round() - away).detach())


def train(
    held: SubspaceModel,
    numbers: Mapping[str, Tensor],
    start: Mapping[str, Rounded],
    rows: Objective,
    price: float,
    steps: int,
    seed: int,
    autocast: Autocast,
    device: str,
) -> list[dict[str, Rounded]]:
    """Train numbers for being rounded; the model is left with the last that it ran on.

    Args:
        held: The model that they move.
        numbers: As they were trained, by name.
        start: The same numbers rounded: where the levels lie at first, and how many there are.
        rows: What is trained on.
        price: What a bit adds to the loss.
        steps: How many, each on `BATCH` rows; the rate falls linearly.
        seed: Of the order of the rows.
        autocast: The precision that the model runs in.
        device: Where it lies.

    Returns:
        The numbers after the last step, rounded with each of `SHRINKS`; or `start` where a loss was not finite.
    """
    held.eval()  # without dropout: the model is coded as it runs here
    parameters = {name: each for name, each in held.trained().items() if start[name].step}
    if not parameters:
        return [dict(start)]
    moved = {name: numbers[name].to(each.device, copy=True).requires_grad_() for name, each in parameters.items()}
    spacing = {name: torch.tensor(start[name].step, device=each.device) for name, each in parameters.items()}
    groups = [{"params": [each], "lr": 2 * REACH / steps * start[name].step} for name, each in moved.items()]
    groups += [
        {"params": [each.requires_grad_()], "lr": SPACING_RATE * start[name].step} for name, each in spacing.items()
    ]
    optimizer = torch.optim.Adam(groups)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(step, steps, 0.0))
    for indices in batches.draw(rows.lengths, BATCH, steps, seed):
        made = {
            name: on_levels(each, spacing[name], start[name].largest, start[name].middle)
            for name, each in moved.items()
        }
        for name, parameter in parameters.items():
            parameter.data.copy_(made[name].detach())
        with autocast():
            loss = rows.loss(held, batches.send(rows.batch(indices), device))
        if not math.isfinite(loss.item()):
            return [dict(start)]
        loss.backward()
        priced = [_bits(moved[name], made[name], spacing[name], start[name].middle) for name in made]
        gradients = [parameter.grad for parameter in parameters.values()]
        torch.autograd.backward([price * torch.stack(priced).sum(), *made.values()], [None, *gradients])
        for parameter in parameters.values():
            parameter.grad = None
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        for name, each in spacing.items():
            each.data.clamp_(min=start[name].step / 4)  # many steps might bring it to 0
    return [
        dict(start)
        | {
            name: code_length.rounded(each, start[name].largest, start[name].middle, spacing[name].item(), shrink)
            for name, each in moved.items()
        }
        for shrink in SHRINKS
    ]


def _bits(numbers: Tensor, made: Tensor, spacing: Tensor, middle: float) -> Tensor:
    """Price numbers by their distance from the middle, in levels: what the next level costs more, at this count."""
    away = ((made.detach() - middle).abs() > spacing.detach() / 2).sum().item()
    share = (away + 1) / (made.numel() + 2)
    each = max(math.log2((1 - share) / share) + 1, 0.0)  # its sign too
    return each * ((numbers - middle) / spacing).abs().sum()
