"""Build what a trial trains: the model, its optimizer, and how the learning rate runs over the steps."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from distsub.errors import ConfigError
from distsub.finetune.step_size import SCALE_STEP, learned_step_size, step_size
from distsub.models import peft_model, pretrained
from distsub.records import Freeze, Full, Learned, Peft, Theta0, Trial
from distsub.subspace import adapter, layout
from distsub.subspace.model import SubspaceModel
from distsub.subspace.trajectory import Snapshots


def build_model(
    trial: Trial, prepared: pretrained.Prepared, device: str = "cpu", snapshots: Snapshots | None = None
) -> tuple[nn.Module, dict[str, Any]]:
    """Build the model that a trial trains, and the counts that its row reports.

    Raises:
        DimensionError: d does not fit the model.
        ConfigError: The method is inconsistent, or needs snapshots.
        TrajectoryError: The snapshots are of another layout.
    """
    method = trial.method
    full = isinstance(method, Full)
    assert trial.task.num_labels is not None, "the task's labels are counted"
    if prepared.dtype == "bfloat16" and isinstance(method, Peft):
        raise ConfigError(
            f'peft = "{method.peft}" is not trained on a base held in bfloat16 here; give the model dtype = "float32"'
        )
    if prepared.dtype == "bfloat16" and getattr(method, "embeddings", None) == "trained":
        raise ConfigError(
            'embeddings = "trained" needs them in float32, this model is held in bfloat16: give embeddings = "frozen" '
            '(training = "default"), or the model dtype = "float32"'
        )
    base = pretrained.build(prepared, trial.task.num_labels, trial.seeds.head, full, trial.model.head_from, again=True)
    if not trial.task.is_completion:
        adapter.name_labels(base, trial.task.labels)
    whole = sum(parameter.numel() for parameter in base.parameters())
    counts: dict[str, Any] = {"num_params_model": whole}
    if isinstance(method, Peft):
        model, own = _peft(trial, base, method)
        return model.to(device), counts | own
    base = base.to(device)
    if full:
        return base, counts | {"num_params": whole, "num_trained": whole, "step_size": trial.learning_rate}
    if isinstance(method, Theta0):
        return base, counts | {"num_params": whole, "step_size": 0.0}
    if isinstance(method, Freeze):
        apart = layout.outside(base.requires_grad_(False), method.head, method.embeddings)
        beside = layout.free(base, {name for name, policy in apart.items() if policy == "trained"})
        if not beside:
            raise ConfigError(f"freeze trains the head, and {type(base).__name__} has none; leave it out")
        _as_float32(beside)
        return base, counts | {"num_trained_head": sum(p.numel() for p in beside.values()), "step_size": 0.0}
    assert trial.d is not None and trial.eta is not None, "a subspace trial has d and eta"
    projection = method.projection
    model = SubspaceModel(base, trial.d, method, trial.seeds.projection, snapshots=snapshots)
    _as_float32(model.head)
    size, num_coordinates = model.num_params, model.num_coordinates
    if method.step is not None:
        step = trial.eta * method.step
    elif isinstance(projection, Learned):
        step = learned_step_size(trial.eta, trial.learning_rate, size, num_coordinates)
    else:
        norm = projection.normalization
        step = step_size(trial.eta, trial.learning_rate, size, num_coordinates, norm, len(model.entries))
    return model, counts | {
        "num_params": model.num_params,
        "num_trained": model.num_trained,
        "num_trained_head": model.num_trained_head,
        "num_scales": model.scales.numel(),
        "step_size": step,
    }


def _peft(trial: Trial, base: nn.Module, method: Peft) -> tuple[nn.Module, dict[str, Any]]:
    """Put the adapter of a trial on its model."""
    assert trial.d is not None and trial.eta is not None, "a trial with an adapter has d and eta"
    model, sizes = peft_model.build(base, method, trial.d, trial.seeds.projection)
    step = trial.eta * method.learning_rate
    counts = {"num_params": sizes.num_params, "num_trained": trial.d, "num_trained_head": sizes.num_trained_head}
    return model, counts | {"step_size": step}


def _as_float32(trained: Mapping[str, nn.Parameter]) -> None:
    """Train a head in float32 beside weights in bfloat16, which would round its steps away."""
    for parameter in trained.values():
        parameter.data = parameter.data.float()


def build_optimizer(trial: Trial, model: nn.Module, step: float) -> torch.optim.AdamW:
    """Build AdamW over the trained numbers, each kind with its own step."""
    decay = trial.budget.weight_decay
    if isinstance(trial.method, Peft):
        own, head = (peft_model.trained(model, head=head) for head in (False, True))
        groups: list[dict[str, Any]] = [{"params": own, "lr": step, "weight_decay": 0.0}]
        groups += [{"params": head, "lr": trial.learning_rate, "weight_decay": decay}] if head else []
        return torch.optim.AdamW(groups)
    if not isinstance(model, SubspaceModel):
        rate = trial.learning_rate if isinstance(trial.method, Freeze) else step
        return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate, weight_decay=decay)
    assert trial.eta is not None, "a subspace trial has an eta"
    groups = [{"params": [model.coordinates], "lr": step, "weight_decay": 0.0}]
    if model.scales.numel():
        groups.append({"params": [model.scales], "lr": trial.eta * SCALE_STEP, "weight_decay": 0.0})
    if model.head:
        groups.append({"params": list(model.head.values()), "lr": trial.learning_rate, "weight_decay": decay})
    return torch.optim.AdamW(groups)


def learning_rate_factor(step: int, steps: int, warmup: float) -> float:
    """Give the share of the peak learning rate at which a step is taken.

    Rises linearly over the first w = min(round(warmup * steps), steps - 1) steps, is 1 at the next and falls linearly
    from there. No step has a rate of 0, and without warm-up the first one has the full rate.

    Args:
        step: The step, from 0.
        steps: Steps in all.
        warmup: Share of them in which the rate rises.

    Returns:
        (step + 1) / (w + 1) before step w, (steps - step) / (steps - w) from it on.

    >>> [learning_rate_factor(step, 4, 0.25) for step in range(4)]
    [0.5, 1.0, 0.6666666666666666, 0.3333333333333333]
    """
    rising = min(round(warmup * steps), steps - 1)
    if step < rising:
        return (step + 1) / (rising + 1)
    return (steps - step) / (steps - rising)  # a scheduler asks once more after the last step: 0
