"""The saved adapter: the trained numbers in safetensors, and beside them, in JSON, all it takes to use them again.

A projection is rebuilt from its seed, so d numbers are enough, but only on the weights that they were trained on and
with the projection that they were trained in. Loading checks both, the first by a hash of theta_0 and the second by
sixteen entries of P theta, and says what differs.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distsub.errors import AdapterError, OutputError, first_line
from distsub.files import Files
from distsub.records import HeadFrom, Subspace, TrainedOn, canonical
from distsub.records.reading import parse
from distsub.subspace import layout
from distsub.subspace.trajectory import MadeOf

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"

FORMAT, FORMAT_VERSION = "distsub", 2
"""The version is raised when other programs would rebuild another model from the same files."""

FROM_CONFIG = "from the model's configuration"

HEAD = "theta_0."
"""Begins the names of tensors at theta_0, of a head or pooler, saved where no seed is known to make them again."""


@dataclass(frozen=True, kw_only=True)
class About:
    """What an adapter of any method says of its base model and its training.

    Attributes:
        d: Numbers to train, scales included.
        projection_seed: Seed of P, or of what PEFT draws.
        base_model: Address of the base model: hub id or directory; None where only its owner shall load the adapter.
        revision: Its hub revision.
        base_content: What tells it wherever it lies: `Prepared.content`.
        base_sha256: Hash of its weights that come from its checkpoint.
        base_dtype: Their precision.
        num_labels: Classes of the head; 0 for a language model that generates, which has none.
        id2label: What they are called.
        head_seed: Seed of the head at theta_0.
        head_from: "seed", or "checkpoint" for the checkpoint's own.
        architecture: Class of the model.
        task: What it was trained on, for the reader.
        weights_sha256: Hash of the file of weights.
        versions: Of the packages that wrote it.
        trained_on: What it reads and writes; None where only its owner knows.
    """

    d: int
    projection_seed: int
    base_model: str | None
    revision: str | None
    base_content: str | None
    base_sha256: str
    base_dtype: str
    num_labels: int | None
    id2label: dict[str, str] | None
    head_seed: int | None
    head_from: HeadFrom
    architecture: str
    task: str | None
    weights_sha256: str
    versions: dict[str, str]
    trained_on: TrainedOn | None = None


@dataclass(frozen=True, kw_only=True)
class Config(About):
    """What the JSON of an adapter of a subspace says.

    Attributes:
        subspace: What the subspace is made of.
        snapshots: The checkpoints among that.
        num_params: D, the parameters that the subspace spans.
        num_params_model: Parameters in the model.
        num_scales: Scales among the trained numbers.
        num_trained: Numbers trained in the subspace.
        num_trained_head: Numbers trained in full beside it.
        fingerprint: Sixteen entries of P theta for one fixed theta.
        head_sha256: Hash of its head at theta_0; None where the head was trained.
    """

    subspace: Subspace
    snapshots: MadeOf | None
    num_params: int
    num_params_model: int
    num_scales: int
    num_trained: int
    num_trained_head: int
    fingerprint: tuple[float, ...]
    head_sha256: str | None


def save(
    directory: str | os.PathLike[str],
    base: nn.Module,
    trained: Mapping[str, nn.Parameter],
    held: Mapping[str, Any],
    *,
    base_model: str | None = FROM_CONFIG,
    revision: str | None = None,
    num_labels: int | None = None,
    head_seed: int | None = None,
    head_from: HeadFrom = "seed",
    task: str | None = None,
    trained_on: TrainedOn | None = None,
    base_content: str | None = None,
    remember: Callable[[str, Callable[[], str]], str] = lambda about, compute: compute(),
) -> None:
    """Write an adapter: `adapter_model.safetensors` and `adapter_config.json`.

    Args:
        directory: Made if it is missing; an adapter in it is replaced.
        base: The base model at theta_0, apart from parameters that are trained in full.
        trained: The trained parameters by name; those beside the subspace begin with "head.".
        held: The fields of `Config` that say which subspace it is, as plain values.
        base_model: As in `Config`; by default where transformers loaded it from.
        revision: As in `Config`.
        num_labels: As in `Config`; None takes them from the model's configuration.
        head_seed: As in `Config`, where `models.pretrained.build` made the head from one. Without a seed, and unless
            it is the checkpoint's own, the head's theta_0 is saved too.
        head_from: As in `Config`.
        task: As in `Config`.
        trained_on: As in `Config`.
        base_content: As in `Config`.
        remember: Gives the hash of the base's weights, which costs as much as reading all of them, from what it follows
            from, where it was computed before (`cache.remembered`).

    Raises:
        AdapterError: It is not said where the base model comes from.
        OutputError: The directory cannot be written.
    """
    from safetensors.torch import save as to_bytes

    settings: Any = base.config
    base_model = _address(settings, base_model)
    heads, apart = layout.head_names(base), {name.removeprefix("head.") for name in trained}
    theta_0 = dict(base.named_parameters())
    tensors: dict[str, Tensor] = dict(trained)
    no_seed = head_seed is None and head_from == "seed"
    fresh = (heads | _drawn_poolers(theta_0) if no_seed else heads) - apart
    if no_seed:
        tensors |= {f"{HEAD}{name}": theta_0[name] for name in sorted(fresh)}
    weights = to_bytes({name: p.detach().cpu().contiguous() for name, p in tensors.items()}, {"format": "pt"})
    generates = layout.generates(base)
    names = None if generates else getattr(settings, "id2label", None)
    if num_labels is None:
        num_labels = 0 if generates else getattr(settings, "num_labels", None)
    given = theta_0.keys() - fresh - apart
    about = f"base of adapters: {base_content} {type(base).__name__} {head_from} {head_seed} {sorted(given)}"
    config = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        **held,
        "base_model": base_model,
        "revision": revision,
        "base_content": base_content,
        "base_sha256": remember(about, lambda: hash_of(theta_0, given)),
        "base_dtype": dtype({name: tensor for name, tensor in theta_0.items() if name not in apart}),
        "head_sha256": hash_of(theta_0, fresh) if fresh else None,
        "num_labels": num_labels,
        "id2label": names and {str(number): name for number, name in names.items()},
        "head_seed": head_seed,
        "head_from": head_from,
        "architecture": type(base).__name__,
        "task": task,
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "versions": {name: version(name) for name in ("distsub", "torch", "transformers")},
        "trained_on": trained_on and canonical(trained_on),
    }
    files = Files.at(directory)
    try:
        files.make("")
        files.put(WEIGHTS, weights)
        files.put(CONFIG, (json.dumps(config, indent=2) + "\n").encode())
    except OSError as error:
        raise OutputError(f"adapter directory {files.uri} cannot be written: {first_line(error)}") from error


def load_config(directory: str | os.PathLike[str]) -> Config:
    """Read and check an adapter's JSON.

    Raises:
        AdapterError: It is missing, no JSON, not distsub's, of another format version, or not all of it.
    """
    path = Path(directory) / CONFIG
    try:
        config = json.loads(path.read_bytes())
    except OSError as error:
        raise AdapterError(
            f"no adapter in {directory}: {CONFIG} cannot be read ({error.strerror}); "
            f"give OUT/adapters/ID of results, or a directory that save_pretrained wrote"
        ) from None
    except (ValueError, RecursionError) as error:
        raise AdapterError(f"{path} is not JSON ({error}); the adapter is corrupt, save it again") from None
    if not isinstance(config, dict) or config.pop("format", None) != FORMAT:
        peft = isinstance(config, dict) and config.get("peft_type")
        kind = f"a PEFT adapter of type {peft}" if peft else "not an adapter of distsub"
        raise AdapterError(f"{path} is {kind}; give a directory that distsub's save_pretrained wrote")
    if (found := config.pop("format_version", None)) != FORMAT_VERSION:
        raise AdapterError(
            f"{path} has format version {found}, distsub {version('distsub')} reads version {FORMAT_VERSION}; "
            "use the distsub that wrote it, or train and save the adapter again"
        )
    try:
        return parse(Config, config)
    except ValueError as error:
        raise AdapterError(f"{path} is damaged: {error}; save the adapter again") from None


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
    from safetensors.torch import load as from_bytes

    try:
        tensors = from_bytes(content)
    except (SafetensorError, ValueError, KeyError) as error:
        raise AdapterError(f"{path} is no safetensors file, or cut short ({error}); save the adapter again") from None
    if (found := hashlib.sha256(content).hexdigest()) != expected:
        raise AdapterError(
            f"{path} is not the file that {CONFIG} was written for (sha256 {short(found)}, expected "
            f"{short(expected)}): changed since, or a save was interrupted; save the adapter again"
        )
    return tensors


def name_labels(model: nn.Module, labels: Sequence[str]) -> None:
    """Tell a classifier's configuration what its classes are called, where there are no names LABEL_0 and so on.

    Names that came with a checkpoint are those of its own head.
    """
    config: Any = model.config
    names = labels or [f"LABEL_{i}" for i in range(config.num_labels)]
    config.id2label = dict(enumerate(names))
    config.label2id = {name: number for number, name in enumerate(names)}


def flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Give nested values one key each: "subspace.projection.family"."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        inner = flat(value) if isinstance(value, dict) else {}
        found |= {f"{key}.{name}": each for name, each in inner.items()} or {key: value}
    return found


def _address(config: Any, given: str | None) -> str | None:
    """Say where the base model comes from; a directory by its absolute path.

    Raises:
        AdapterError: It is not known.
    """
    address = getattr(config, "_name_or_path", "") if given == FROM_CONFIG else given
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


def hash_of(tensors: Mapping[str, Tensor], names: Iterable[str]) -> str:
    """Hash tensors in name order: names, shapes, precisions and bytes."""
    digest = hashlib.sha256()
    for name in sorted(names):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} ".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def dtype(tensors: Mapping[str, Tensor]) -> str:
    """Name the precisions of the weights: "float32", or several joined by "+"."""
    return "+".join(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()}))


def short(digest: str) -> str:
    """Give as much of a hash as a person compares."""
    return digest[:12]


def version(name: str) -> str:
    """Give an installed distribution's version; distsub may run from a source tree that is not installed."""
    try:
        return installed(name)
    except PackageNotFoundError:
        return "unknown"
