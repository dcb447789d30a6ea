"""The saved adapter: d numbers in safetensors, and a JSON that says which model and projection they belong to.

Loading checks everything that could silently give another model: the base weights and the head by hash, the
projection by sixteen of its values. Both files appear by renaming, the JSON last, so a half-written adapter is none.
"""

import hashlib
import json
import os
import secrets
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distsub.errors import AdapterError
from distsub.subspace import layout
from distsub.subspace.model import SubspaceModel

FORMAT = 1
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
_TOLERANCE = 1e-5
"""Relative difference between fingerprints that rounding on another device may make; another P differs by order 1."""


def theta0_hashes(model: nn.Module) -> tuple[str, str]:
    """Hash the parameters of a base model and, apart, those of its head, by name, shape and bytes."""
    digests = (hashlib.sha256(), hashlib.sha256())
    head = layout.head_names(model)
    for name, parameter in sorted(model.named_parameters()):
        digest = digests[name in head]
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype} ".encode())
        digest.update(parameter.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digests[0].hexdigest(), digests[1].hexdigest()


def save_pretrained(
    model: SubspaceModel,
    directory: str | os.PathLike[str],
    *,
    base_model: str | None = None,
    revision: str | None = None,
    num_labels: int | None = None,
    head_seed: int | None = None,
    task: str | None = None,
) -> None:
    """Save the trained numbers and what is needed to rebuild the model around them.

    Args:
        model: The trained model.
        directory: Made if it is not there.
        base_model: Address of theta_0: a hub id, a directory or package:NAME.
        revision: Its hub revision.
        num_labels: Size of the head.
        head_seed: Seed of the head's initial values.
        task: What it was trained on; for people.
    """
    from safetensors.torch import save

    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: parameter.detach().cpu().contiguous() for name, parameter in model.trained().items()}
    data = save(tensors)
    base, head = theta0_hashes(model.model)
    config = {
        "distsub_format": FORMAT,
        "base_model": base_model,
        "revision": revision,
        "num_labels": num_labels,
        "task": task,
        "base_sha256": base,
        "head_sha256": None if model.head else head,
        "head_seed": head_seed,
        **model.settings,
        "num_params": model.num_params,
        "num_scales": model.scales.numel(),
        "num_trained_head": model.num_trained_head,
        "fingerprint": list(model.projection.fingerprint()),
        "weights_sha256": hashlib.sha256(data).hexdigest(),
        "versions": {name: _version(name) for name in ("distsub", "torch", "transformers")},
    }
    _write(folder / WEIGHTS, data)
    _write(folder / CONFIG, json.dumps(config, indent=1).encode())


def load_config(directory: str | os.PathLike[str]) -> dict[str, Any]:
    """Read an adapter's JSON.

    Raises:
        AdapterError: There is none, or it is foreign, damaged or of a newer format.
    """
    path = Path(directory) / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise AdapterError(f"{directory} is no adapter: it has no readable {CONFIG}") from None
    except ValueError:
        raise AdapterError(f"{path} is damaged: it is not JSON; save the adapter again") from None
    if not isinstance(config, dict) or "distsub_format" not in config:
        raise AdapterError(f"{path} was not written by distsub; load it with the library that wrote it")
    if config["distsub_format"] > FORMAT:
        raise AdapterError(
            f"{path} has format {config['distsub_format']}, this distsub reads up to {FORMAT}; upgrade distsub"
        )
    return config


def from_pretrained(directory: str | os.PathLike[str], base: nn.Module) -> SubspaceModel:
    """Rebuild a trained model around its base.

    Args:
        directory: What `save_pretrained` wrote.
        base: theta_0, with the same head; frozen in place.

    Returns:
        The model, in evaluation mode; on the machine that saved it its logits are the same to the last bit.

    Raises:
        AdapterError: Something differs; the message says what.
    """
    config = load_config(directory)
    tensors = _tensors(Path(directory), config)
    found, head = theta0_hashes(base)
    if found != config["base_sha256"]:
        raise AdapterError(
            f"{directory} was made for other weights: it needs {config['base_model'] or 'a base'} with hash "
            f"{config['base_sha256'][:12]}, given {found[:12]}; load that model and revision"
        )
    if config["head_sha256"] not in (None, head):
        raise AdapterError(
            f"{directory} was made for another head: hash {config['head_sha256'][:12]}, given {head[:12]}; "
            f"build the base with head_seed = {config['head_seed']} and num_labels = {config['num_labels']}"
        )
    keys = ("d", "method", "projection", "normalization", "head", "projection_seed", "block_length")
    model = SubspaceModel(base, **{key: config[key] for key in keys}, groups=config["groups"] or "layer")
    theirs, ours = config["fingerprint"], model.projection.fingerprint()
    if not all(abs(a - b) <= _TOLERANCE * max(abs(a), abs(b)) for a, b in zip(ours, theirs, strict=True)):
        raise AdapterError(
            f"{directory} was made with another projection of the same name: its fingerprint starts "
            f"{theirs[0]:.6g}, this distsub makes {ours[0]:.6g}; use distsub {config['versions']['distsub']}"
        )
    trained = model.trained()
    if {name: tensor.shape for name, tensor in tensors.items()} != {name: p.shape for name, p in trained.items()}:
        raise AdapterError(
            f"{directory}/{WEIGHTS} holds {sum(t.numel() for t in tensors.values())} numbers in {sorted(tensors)}; "
            f"{CONFIG} asks for {sum(p.numel() for p in trained.values())} in {sorted(trained)}; save the adapter again"
        )
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(tensors[name])
    return model.eval()


def _tensors(folder: Path, config: dict[str, Any]) -> dict[str, Tensor]:
    """Read the numbers, checked against the hash in the JSON."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    path = folder / WEIGHTS
    try:
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != config["weights_sha256"]:
            raise AdapterError(f"{path} is damaged: its bytes are not those that were saved; copy or save it again")
        return load(data)
    except OSError as error:
        raise AdapterError(f"{path} cannot be read ({error.strerror}); copy or save the adapter again") from None
    except SafetensorError as error:
        raise AdapterError(f"{path} is damaged ({error}); copy or save the adapter again") from None


def _write(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    temporary.write_bytes(data)
    os.replace(temporary, path)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"
