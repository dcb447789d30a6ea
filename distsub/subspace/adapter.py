"""The saved adapter: the trained numbers in safetensors, and beside them, in JSON, all it takes to use them again.

A projection is rebuilt from its seed, so d numbers are enough, but only on the weights that they were trained on and
with the projection that they were trained in. Loading checks both, the first by a hash of theta_0 and the second by
sixteen entries of P theta, and says what differs.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distsub.errors import AdapterError, DistsubError, OutputError
from distsub.records import HeadFrom, Task
from distsub.subspace import layout
from distsub.subspace.adapter_checks import (
    check_base,
    check_head,
    check_projection,
    check_snapshots,
    dtype,
    hash_of,
    short,
    version,
)
from distsub.subspace.model import SubspaceModel
from distsub.subspace.trajectory import Snapshots

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"

FORMAT, FORMAT_VERSION = "distsub", 1
"""The version is raised when older programs would rebuild another model from the same files."""

_REQUIRED = (
    *("base_model", "revision", "num_labels", "head_seed", "settings", "num_params", "num_scales"),
    *("base_sha256", "base_dtype", "head_sha256", "fingerprint", "weights_sha256"),
)
_TYPES: dict[str, tuple[type, ...]] = {
    "settings": (dict,),
    "fingerprint": (list,),
    "base_model": (str, type(None)),
    "revision": (str, type(None)),
    "base_content": (str, type(None)),
    "num_labels": (int, type(None)),
    "id2label": (dict, type(None)),
    "head_seed": (int, type(None)),
    "base_sha256": (str,),
    "weights_sha256": (str,),
}
FROM_CONFIG = "from the model's configuration"

_HEAD = "theta_0."
"""Begins the names of tensors at theta_0, of a head or pooler, saved where no seed is known to make them again."""


def save_pretrained(
    model: SubspaceModel,
    directory: str | os.PathLike[str],
    *,
    base_model: str | None = FROM_CONFIG,
    revision: str | None = None,
    num_labels: int | None = None,
    head_seed: int | None = None,
    head_from: HeadFrom = "seed",
    task: Task | str | None = None,
    base_content: str | None = None,
) -> None:
    """Write an adapter: `adapter_model.safetensors` and `adapter_config.json`.

    Args:
        model: The trained model.
        directory: Made if it is missing; an adapter in it is replaced.
        base_model: Address of the base model: hub id or directory, by default where transformers loaded it from; or
            None if only somebody with the model in hand shall load the adapter.
        revision: Hub revision of the base model.
        num_labels: Classes of the head; None takes them from the model's configuration.
        head_seed: Seed of the head's theta_0, where `finetune.pretrained.build` made it from one. Without a seed, and
            unless it is the checkpoint's own, the head's theta_0 is saved too.
        head_from: "seed", or "checkpoint" for the checkpoint's own.
        task: What it was trained on, for the reader.
        base_content: What tells the base model wherever it lies: `Prepared.content`.

    Raises:
        AdapterError: It is not said where the base model comes from.
        OutputError: The directory cannot be written.
    """
    from safetensors.torch import save

    base_model = _address(model, base_model)
    heads = layout.head_names(model.model)
    theta_0 = dict(model.model.named_parameters())
    tensors: dict[str, Tensor] = dict(model.trained())
    no_seed = head_seed is None and head_from == "seed"
    fresh = (heads | _drawn_poolers(theta_0) if no_seed else heads) - model.head.keys()
    if no_seed:
        tensors |= {f"{_HEAD}{name}": theta_0[name] for name in sorted(fresh)}
    weights = save({name: p.detach().cpu().contiguous() for name, p in tensors.items()}, {"format": "pt"})
    labels = getattr(model.config, "num_labels", None) if num_labels is None else num_labels
    config = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "base_model": base_model,
        "revision": revision,
        "base_content": base_content,
        "num_labels": labels,
        "id2label": getattr(model.config, "id2label", None),
        "head_seed": head_seed,
        "head_from": head_from,
        "architecture": type(model.model).__name__,
        "task": dataclasses.asdict(task) if isinstance(task, Task) else task,
        "settings": model.settings,
        "num_params": model.num_params,
        "num_scales": model.scales.numel(),
        "num_trained": model.num_trained,
        "num_trained_head": model.num_trained_head,
        "base_sha256": hash_of(theta_0, theta_0.keys() - fresh - model.head.keys()),
        "base_dtype": dtype(theta_0),
        "head_sha256": hash_of(theta_0, fresh) if fresh else None,
        "fingerprint": model.projection.fingerprint(),
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "versions": {name: version(name) for name in ("distsub", "torch", "transformers")},
    }
    target = Path(directory)
    try:
        target.mkdir(parents=True, exist_ok=True)
        _replace(target / WEIGHTS, weights)
        _replace(target / CONFIG, (json.dumps(config, indent=2) + "\n").encode())
    except OSError as error:
        raise OutputError(f"adapter directory {target} cannot be written: {error.strerror or error}") from error


def _address(model: SubspaceModel, given: str | None) -> str | None:
    """Say where the base model comes from; a directory by its absolute path.

    Raises:
        AdapterError: Nobody knows.
    """
    address = getattr(model.config, "_name_or_path", "") if given == FROM_CONFIG else given
    if address == "":
        raise AdapterError(
            "this base model does not say where it was loaded from, so that its adapter could not be loaded: pass "
            "base_model = its hub id or directory, or base_model = None if it will be loaded with the model in hand"
        )
    return os.path.abspath(os.path.expanduser(address)) if address and os.path.isdir(address) else address


def _drawn_poolers(theta_0: Mapping[str, Tensor]) -> set[str]:
    """Name the parameters of poolers that transformers drew, as the checkpoint had none: their bias is exactly 0."""
    drawn = {
        name.removesuffix(".bias")
        for name, tensor in theta_0.items()
        if "pooler" in name and name.endswith(".bias") and not tensor.any()
    }
    return {name for name in theta_0 if name.rpartition(".")[0] in drawn}


def load_config(directory: str | os.PathLike[str]) -> dict[str, Any]:
    """Read and check an adapter's JSON.

    Raises:
        AdapterError: It is missing, no JSON, not distsub's, of a newer format, or incomplete.
    """
    path = Path(directory) / CONFIG
    try:
        config = json.loads(path.read_bytes())
    except OSError as error:
        raise AdapterError(
            f"no adapter in {directory}: {CONFIG} cannot be read ({error.strerror}); "
            f"give the directory that save_pretrained wrote"
        ) from None
    except (ValueError, RecursionError) as error:
        raise AdapterError(f"{path} is not JSON ({error}); the adapter is corrupt, save it again") from None
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        peft = isinstance(config, dict) and config.get("peft_type")
        kind = f"a PEFT adapter of type {peft}" if peft else "not an adapter of distsub"
        raise AdapterError(f"{path} is {kind}; give a directory that distsub's save_pretrained wrote")
    found = config.get("format_version")
    if not isinstance(found, int) or found > FORMAT_VERSION:
        raise AdapterError(
            f"{path} has format version {found}, this distsub {version('distsub')} reads up to {FORMAT_VERSION}; "
            f"upgrade distsub"
        )
    wrong = [name for name, kinds in _TYPES.items() if name in config and not isinstance(config[name], kinds)]
    if not wrong and not all(isinstance(x, int | float) for x in config.get("fingerprint", [])):
        wrong = ["fingerprint"]
    if wrong:
        raise AdapterError(f"{path} has values of the wrong kind for {', '.join(wrong)}; the adapter is corrupt")
    if missing := [name for name in _REQUIRED if name not in config]:
        raise AdapterError(f"{path} lacks {', '.join(missing)}; the adapter is corrupt, save it again")
    return config


def from_pretrained(
    directory: str | os.PathLike[str], base: nn.Module, snapshots: Snapshots | None = None
) -> SubspaceModel:
    """Load an adapter onto its base model, after checking that it is the right one.

    Args:
        directory: What `save_pretrained` wrote.
        base: A transformers model with the adapter's theta_0; its head too, where the adapter does not hold it.
        snapshots: The checkpoints that a learned subspace is made of; see `finetune.trajectory`.

    Returns:
        The held model at the saved coordinates, in evaluation mode; on the machine that saved it, its logits are the
        same to the last bit.

    Raises:
        AdapterError: A file is missing or corrupt, or the adapter was made for other weights, another head or
            another projection, or from other checkpoints; the message says which.
    """
    path = Path(directory)
    config = load_config(path)
    tensors = _load(path / WEIGHTS, config["weights_sha256"])
    saved_head = {name.removeprefix(_HEAD): tensors.pop(name) for name in list(tensors) if name.startswith(_HEAD)}
    check_base(path, config, base, saved_head.keys())
    check_head(path, config, base, saved_head)
    settings = dict(config["settings"])
    check_snapshots(path, settings.pop("snapshots", None), snapshots)
    try:
        model = SubspaceModel(base, **settings, snapshots=snapshots)
    except (DistsubError, TypeError, AttributeError) as error:
        raise AdapterError(f"the settings in {path / CONFIG} do not fit this model: {error}") from error
    check_projection(path, config, model)
    if names := config.get("id2label"):
        name_labels(base, list(names.values()))
    for name, parameter in model.trained().items():
        saved = tensors.pop(name, None)
        if saved is None or saved.shape != parameter.shape:
            given = "no such tensor" if saved is None else f"{list(saved.shape)}"
            raise AdapterError(
                f"{path / WEIGHTS} has {given} for {name!r}, the settings ask for {list(parameter.shape)}; "
                f"the adapter is corrupt, save it again"
            )
        with torch.no_grad():
            parameter.copy_(saved)
    if tensors:
        raise AdapterError(f"{path / WEIGHTS} has tensors that the settings do not know: {', '.join(sorted(tensors))}")
    return model.eval()


def name_labels(model: nn.Module, labels: Sequence[str]) -> None:
    """Tell a classifier's configuration what its classes are called, where there are no names LABEL_0 and so on.

    Names that came with a checkpoint are those of its own head.
    """
    config: Any = model.config
    names = labels or [f"LABEL_{i}" for i in range(config.num_labels)]
    config.id2label = dict(enumerate(names))
    config.label2id = {name: number for number, name in enumerate(names)}


def _load(path: Path, expected: str) -> dict[str, Tensor]:
    """Read the trained numbers, whole or not at all."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise AdapterError(
            f"{path} cannot be read ({error.strerror}); the adapter is incomplete, copy or save it again"
        ) from None
    return trained_from(content, expected, path)


def trained_from(content: bytes, expected: str, path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read the trained numbers from an adapter's weights file.

    Args:
        content: The file's bytes.
        expected: Its sha256, as the adapter's JSON has it.
        path: Where it lies, for messages.

    Raises:
        AdapterError: It is damaged, or another file than the JSON was written for.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors = load(content)
    except (SafetensorError, ValueError, KeyError) as error:
        raise AdapterError(f"{path} is no safetensors file, or cut short ({error}); save the adapter again") from None
    if (found := hashlib.sha256(content).hexdigest()) != expected:
        raise AdapterError(
            f"{path} is not the file that {CONFIG} was written for (sha256 {short(found)}, expected "
            f"{short(expected)}): changed since, or a save was interrupted; save the adapter again"
        )
    return tensors


def _replace(path: Path, content: bytes) -> None:
    """Write a file beside its place, then rename it there, so that nobody reads half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
