"""What is checked when a model is wrapped: its loss and gradient on one tiny batch, against the model left as it is.

At theta = 0 the weights are those of theta_0, so that the reference needs no second model: the base runs once without
its hooks, and each parameter's gradient is reduced to the coordinates as soon as it is complete; that of an embedding
table has the rows alone that were looked up. It costs about one training step, once for each kind of model in a
process, and leaves random states, buffers and gradients as they were.
"""

import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from distsub.errors import ConfigError
from distsub.subspace.weights import Numbers

if TYPE_CHECKING:
    from distsub.subspace.model import SubspaceModel

TOLERANCE = {torch.float64: 1e-7, torch.float32: 1e-2}
"""Relative to the gradient's norm; 0.2 for shorter floats. Weights that are missed are seen from their share on."""

passed: set[tuple[Any, ...]] = set()
"""The kinds of model that have passed in this process."""


def verify(held: "SubspaceModel") -> None:
    """Check that a model can be held.

    Models that take no such batch, or give another answer each time, cannot be checked and are let pass.

    Args:
        held: The held model, just wrapped.

    Raises:
        ConfigError: The held model's loss or gradient is not that of the base.
    """
    kind = _kind(held)
    inputs = _inputs(held.model)
    if inputs is None or kind in passed or torch.is_inference_mode_enabled():
        return
    device = next(held.model.parameters()).device
    with _undisturbed(held.model, device), torch.enable_grad(), torch.autocast(device.type, enabled=False):
        try:
            expected = _reference(held, inputs)
            again = _reference(held, inputs) if held.model.training else expected
        except Exception:
            return  # it takes other inputs than these
        dtype = next(held.model.parameters()).dtype
        limit = TOLERANCE.get(dtype, 0.2)
        if not _finite(expected) or not _alike(expected, again, limit):
            return
        found = _held(held, inputs)
    if not _alike(found, expected, limit):
        off = (found[1] - expected[1]).norm() / expected[1].norm()
        raise ConfigError(
            f"{type(held.model).__name__} cannot be held in a subspace as it is: on a tiny batch the loss is "
            f"{found[0]:.6g} and should be {expected[0]:.6g}, the gradient is off by {off.item():.2%}. Some of its "
            "weights are read where a hook cannot see it; check = False wraps it all the same"
        )
    if kind is not None:
        passed.add(kind)


def _kind(held: "SubspaceModel") -> tuple[Any, ...] | None:
    """Say what a passed check speaks for; None for a model whose methods somebody has replaced."""
    model = held.model
    if any(getattr(m.__dict__.get("forward"), "given", None) is not None for m in model.modules()):
        return None
    some = next(model.parameters())
    config: Any = getattr(model, "config", None)
    settings = config.to_json_string(use_diff=False) if hasattr(config, "to_json_string") else None
    attention = getattr(config, "_attn_implementation", None)
    return (type(model), settings, attention, model.training, some.dtype, some.device.type, held.spec)


def _inputs(model: nn.Module) -> dict[str, Tensor] | None:
    """Make a tiny batch for a transformers model; without padding, which embeddings leave out of their gradient."""
    config: Any = getattr(model, "config", None)
    some = next(model.parameters())
    name = getattr(model, "main_input_name", None)
    if config is None or some.device.type == "meta":
        return None
    size, channels = getattr(config, "image_size", None), getattr(config, "num_channels", 3)
    if name == "pixel_values" and isinstance(size, int):
        values = torch.linspace(-1, 1, channels * size * size).view(1, channels, size, size)
        return {"pixel_values": values.to(some.device, some.dtype)}
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    vocabulary = getattr(text, "vocab_size", None)
    if name != "input_ids" or not isinstance(vocabulary, int) or vocabulary < 8:
        return None
    special = [getattr(text, key, None) for key in ("pad_token_id", "eos_token_id", "bos_token_id")]
    special += [each for ids in special if isinstance(ids, list) for each in ids]  # some end in one of several ways
    usual = [i for i in range(min(vocabulary, 64)) if i not in special]
    ids = torch.tensor([[usual[(5 * i + 3 * row) % len(usual)] for i in range(8)] for row in range(2)])
    if isinstance(end := getattr(text, "eos_token_id", None), int) and end != getattr(text, "pad_token_id", None):
        ids[:, -1] = end  # some classify there
    inputs = {"input_ids": ids.to(some.device), "attention_mask": torch.ones_like(ids).to(some.device)}
    if getattr(config, "is_encoder_decoder", False):
        inputs["decoder_input_ids"] = inputs["input_ids"]
    return inputs


def _loss(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """Run a model from one random state, and weigh every number that it gives."""
    torch.manual_seed(0)
    out = model(**inputs)
    values = out.values() if hasattr(out, "values") else out if isinstance(out, tuple) else (out,)
    floats = [value for value in values if isinstance(value, Tensor) and value.is_floating_point()]
    wide = [value.reshape(-1).to(torch.promote_types(value.dtype, torch.float32)) for value in floats]
    weights = [torch.cos(torch.arange(value.numel(), device=value.device)).to(value.dtype) for value in wide]
    return torch.stack(
        [(value * weight).sum() / value.numel() ** 0.5 for value, weight in zip(wide, weights, strict=True)]
    ).sum()


def _reference(held: "SubspaceModel", inputs: dict[str, Tensor]) -> tuple[float, Tensor]:
    """Give the base model's loss, and its gradient reduced to the coordinates, one parameter at a time."""
    total = torch.zeros(held.num_coordinates, dtype=held.coordinates.dtype, device=held.coordinates.device)
    handles = []
    for entry in held.entries:

        def take(parameter: Tensor, start: int = entry.start) -> None:
            assert parameter.grad is not None, "called when it has been accumulated"
            for at, grad in _pieces(parameter.grad):
                total.add_(held.projection.adjoint(grad.reshape(-1).to(total.dtype), start + at))
            parameter.grad = None

        entry.frozen.requires_grad_(True)
        handles.append(entry.frozen.register_post_accumulate_grad_hook(take))
    try:
        with held.hooks.bypass():
            loss = _loss(held.model, inputs)
            loss.backward()
    finally:
        for handle, entry in zip(handles, held.entries, strict=True):
            handle.remove()
            entry.frozen.requires_grad_(False)
            entry.frozen.grad = None
    return loss.item(), total


def _pieces(grad: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Cut a gradient into slices, each with its place: of a table that is only looked up, the rows that were."""
    if not grad.is_sparse:
        yield 0, grad
        return
    grad = grad.coalesce()
    for row, values in zip(grad.indices()[0].tolist(), grad.values(), strict=True):
        yield row * values.numel(), values


def _held(held: "SubspaceModel", inputs: dict[str, Tensor]) -> tuple[float, Tensor]:
    """Give the held model's loss and gradient at theta = 0."""
    zero = Numbers(torch.zeros_like(held.theta), torch.ones_like(held.scales))
    with held.hooks.begin(zero):
        loss = _loss(held.model, inputs)
    loss.backward()
    grad = held.coordinates.grad
    found = torch.zeros_like(held.coordinates) if grad is None else grad
    # Every member of an ensemble gets its share of the mean's gradient.
    return loss.item(), found if found.dim() == 1 else found.sum(0)


def _finite(result: tuple[float, Tensor]) -> bool:
    return math.isfinite(result[0]) and bool(result[1].isfinite().all()) and result[1].norm().item() > 0


def _alike(found: tuple[float, Tensor], expected: tuple[float, Tensor], limit: float) -> bool:
    near = abs(found[0] - expected[0]) <= limit * max(1.0, abs(expected[0]))
    return near and bool((found[1] - expected[1]).norm() <= limit * expected[1].norm())


@contextmanager
def _undisturbed(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Put random states, buffers, padding rows and gradients back as they were."""
    import numpy as np

    python, numpy = random.getstate(), np.random.get_state()
    buffers = [(m, k, b, None if b is None else b.clone()) for m in model.modules() for k, b in m._buffers.items()]
    tables = [(m, m.padding_idx, m.sparse) for m in model.modules() if isinstance(m, nn.Embedding)]
    trained = [(p, p.grad) for p in model.parameters() if p.requires_grad]
    for table, *_ in tables:
        table.padding_idx = None
        table.sparse = not table.scale_grad_by_freq
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        for module, key, buffer, before in buffers:
            module._buffers[key] = buffer
            if buffer is not None and before is not None and not torch.equal(buffer, before):
                buffer.copy_(before)
        for table, index, sparse in tables:
            table.padding_idx, table.sparse = index, sparse  # type: ignore[assignment]
        for parameter, grad in trained:
            parameter.grad = grad
