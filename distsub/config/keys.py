"""Tasks, methods and trajectories written back under the keys of a sweep file, so that two sweeps can be compared."""

import dataclasses
from typing import Any

from distsub.records import Learned, Method, Peft, Random, Source, Span, Subspace, Task
from distsub.search import Range

StepSizes = tuple[float, ...] | Range
"""A list, rising, or a range in which some are tried."""


def plain(given: StepSizes | None) -> Any:
    """Write step sizes as a sweep file has them."""
    return dataclasses.asdict(given) if isinstance(given, Range) else given and list(given)


def task_keys(task: Task) -> dict[str, Any]:
    """Write a task under the keys of a sweep file."""
    made = dataclasses.asdict(task) | dict.fromkeys(("prompt", "completion", "messages"))
    made["kind"] = "completion" if task.is_completion else "regression" if task.num_labels == 1 else "classification"
    if task.is_completion:
        columns = {"messages": task.label} if task.is_chat else {"prompt": task.text[0], "completion": task.label}
        made |= {"text": None, "label": None, **columns}
    return made


def method_keys(method: Method) -> dict[str, Any]:
    """Write a method under the keys of a sweep file; what its span takes from [trajectory] is written there."""
    made: dict[str, Any] = {
        field.name: getattr(method, field.name)
        for field in dataclasses.fields(method)
        if field.name not in ("projection", "scales", "kind")
    }
    if not isinstance(method, Subspace):
        return {"name": method.peft if isinstance(method, Peft) else method.kind, **made}
    span, projection, name = method.span, method.projection, "said" if method.scales else "did"
    made["groups"] = method.scales
    if isinstance(projection, Random):
        made |= {"projection": projection.family, "normalization": projection.normalization}
        made["block_length"] = projection.block_length
        if method.scope == "layer" or span:
            name = "random_matched" if span else "random"
    if span is None:
        return {"name": name, **made}
    sources = [each.task.name for each in span.sources if isinstance(each, Source) and each.task]
    given = [f"sha256:{each.content}" if each.content else each.path for each in span.imported]
    if isinstance(projection, Learned) and len(span.sources) > 1:
        name = "zero_shot" if span.leave_out else "unified"
    elif isinstance(projection, Learned):
        name = "inductive" if sources else span.name.partition(" ")[0]
        name = "last" if given and span.last else name
        name = name if name in ("inductive", "other_seed", "last") else "intrinsic"
    shift = getattr(next(iter(span.sources)), "shift", None)
    made |= {"sources": sources or None, "first": span.first, "mode": span.mode, "shift": shift or None}
    return {"name": name, **made, "trajectory": next(iter(given), None)}


def trajectory_keys(span: Span, asked: Span | None) -> dict[str, Any]:
    """Write what [trajectory] says, and whether the file has it."""
    same = {key: getattr(span, key) for key in ("learning_rate", "every", "checkpoints", "dtype")}
    return {**same, "steps": span.budget.steps, "every": span.every or "epoch", "asked": asked is not None}
