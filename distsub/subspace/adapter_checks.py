"""Whether a base model, its head, its checkpoints and the projection are those that an adapter was made for."""

import hashlib
import math
from collections.abc import Iterable, Set
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distsub.errors import AdapterError, DistsubError
from distsub.subspace import layout
from distsub.subspace.model import SubspaceModel
from distsub.subspace.trajectory import Snapshots

_TOLERANCE = 1e-5
"""Relative: matrix products of another machine are summed in another order, another P is off by more than 1."""


def check_base(path: Path, config: dict[str, Any], base: nn.Module, saved: Set[str] = frozenset()) -> None:
    """Check that the model is the adapter's theta_0, apart from parameters that were saved with the adapter.

    Raises:
        AdapterError: It is not.
    """
    theta_0, heads = dict(base.named_parameters()), layout.head_names(base)
    try:
        policies = layout.outside(base, config["settings"]["head"], config["settings"].get("embeddings", "in_subspace"))
    except (DistsubError, KeyError) as error:
        raise AdapterError(f"the settings in {path} do not fit this model: {error}") from error
    apart = heads | saved | {name for name, policy in policies.items() if policy == "trained"}
    if (found := dtype(theta_0)) != config["base_dtype"]:
        raise AdapterError(
            f"the adapter in {path} was made for weights in {config['base_dtype']}, this model's are in {found}; "
            f"load the base model in {config['base_dtype']}"
        )
    name = config["base_model"] or "no named base model"
    at = f" at revision {config['revision']}" if config["revision"] else ""
    if (found := hash_of(theta_0, theta_0.keys() - apart)) != config["base_sha256"]:
        raise AdapterError(
            f"the adapter in {path} was made for other weights: sha256 {short(config['base_sha256'])} ({name}{at}), "
            f"this model has {short(found)}; give the base model that it was trained on, untouched"
        )


def check_head(path: Path, config: dict[str, Any], base: nn.Module, saved: dict[str, Tensor]) -> None:
    """Check that the model's head is the adapter's at theta_0, after giving it the one that was saved, if one was.

    Args:
        path: Where the adapter lies.
        config: Its JSON.
        base: The model.
        saved: Its parameters by name, with those of a pooler that was drawn beside it; none where a seed gives them.

    Raises:
        AdapterError: It is another.
    """
    theta_0, heads = dict(base.named_parameters()), layout.head_names(base)
    expected = config["head_sha256"]
    if expected is None:
        return
    fresh = saved.keys() | (heads if config["settings"]["head"] != "trained" else set())
    if all(n in theta_0 and t.shape == theta_0[n].shape for n, t in saved.items()):
        with torch.no_grad():
            for name, tensor in saved.items():
                theta_0[name].copy_(tensor)
    if (found := hash_of(theta_0, fresh & theta_0.keys())) != expected:
        seed, labels = config["head_seed"], config["num_labels"]
        known = "that was saved with it," if saved else "of unknown seed" if seed is None else f"of head_seed = {seed}"
        raise AdapterError(
            f"the adapter in {path} was made for another head: sha256 {short(expected)}, this model has "
            f"{short(found)}, probably from another head_seed; it needs the head {known} with num_labels = {labels}"
        )


def check_snapshots(path: Path, saved: dict[str, Any] | None, given: Snapshots | None) -> None:
    """Check that the checkpoints are those that the subspace was made of.

    Raises:
        AdapterError: They are not there, or others.
    """
    if saved is None:
        return
    what = f"{', '.join(saved['recordings']) or 'no named trajectory'} (sha256 {short(saved['fingerprint'])})"
    if given is None:
        raise AdapterError(
            f"the adapter in {path} lives in a learned subspace, made of {what}: give it as snapshots "
            "(distsub.finetune.trajectory reads it where `distsub trajectory` recorded it)"
        )
    if given.fingerprint != saved["fingerprint"]:
        raise AdapterError(
            f"the adapter in {path} lives in a learned subspace, made of {what}; the checkpoints given are others "
            f"(sha256 {short(given.fingerprint)})"
        )


def check_projection(path: Path, config: dict[str, Any], model: SubspaceModel) -> None:
    """Check that the projection rebuilt from the settings is the one that the numbers were trained in.

    Raises:
        AdapterError: It is not.
    """
    counts = {"num_params": model.num_params, "num_scales": model.scales.numel()}
    if wrong := [f"{key} = {config[key]}, here {found}" for key, found in counts.items() if config[key] != found]:
        raise AdapterError(f"the adapter in {path} spans another set of parameters: {', '.join(wrong)}")
    saved, found = config["fingerprint"], model.projection.fingerprint()
    scale = max(abs(value) for value in found)
    if len(saved) != len(found) or not all(
        math.isclose(a, b, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE * scale) for a, b in zip(saved, found, strict=True)
    ):
        written = config.get("versions", {}).get("distsub", "unknown")
        raise AdapterError(
            f"the projection of the adapter in {path} cannot be rebuilt: its fingerprint begins {saved[:2]}, here "
            f"{list(found[:2])}; it was written by distsub {written}, this is {version('distsub')}: use that version"
        )


def hash_of(tensors: dict[str, nn.Parameter], names: Iterable[str]) -> str:
    """Hash tensors in name order: names, shapes, precisions and bytes."""
    digest = hashlib.sha256()
    for name in sorted(names):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} ".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def dtype(tensors: dict[str, nn.Parameter]) -> str:
    """Name the precisions of the weights: "float32", or several joined by "+"."""
    return "+".join(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()}))


def short(digest: str) -> str:
    """Give as much of a hash as a person compares."""
    return str(digest)[:12]


def version(name: str) -> str:
    """Give an installed distribution's version; distsub may run from a source tree that is not installed."""
    try:
        return installed(name)
    except PackageNotFoundError:
        return "unknown"
