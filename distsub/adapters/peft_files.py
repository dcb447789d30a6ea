"""Adapters of the package PEFT as files: in PEFT's own format, and beside it what it takes to load them again."""

import hashlib
import json
import os
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from torch import nn

from distsub.errors import AdapterError, first_line
from distsub.files import parse_json
from distsub.models.peft_model import config_class, quiet
from distsub.records import HeadFrom, Peft, TrainedOn, Trial, canonical
from distsub.records.reading import parse
from distsub.subspace import adapter

FACTS, WEIGHTS = "distsub.json", "adapter_model.safetensors"
"""Beside PEFT's own files: what it takes to find the base model, and to know that it is the right one."""


FORMAT_VERSION = 1


@dataclass(frozen=True)
class Facts:
    """What an adapter says beside PEFT's own files.

    Attributes:
        method: The method.
        d: Its trained numbers.
        projection_seed: What it was drawn from.
        base_model: Address of the base model.
        revision: Its hub revision.
        base_content: What tells it wherever it lies.
        base_sha256: Hash of its weights.
        base_dtype: Their precision.
        num_labels: Classes of the head.
        id2label: What they are called.
        head_seed: Seed of the head at theta_0.
        head_from: "seed", or "checkpoint" for the checkpoint's own.
        architecture: Class of the model.
        task: What it was trained on, for the reader.
        weights_sha256: Hash of PEFT's file of weights.
        versions: Of distsub, peft, torch and transformers.
        trained_on: What it reads and writes; None where only its owner knows.
        format_version: Raised when other programs would rebuild another model from the same files.
    """

    method: Peft
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
    format_version: int = FORMAT_VERSION


def save(directory: Path, model: Any, trial: Trial, sha256: str, num_labels: int | None, trained_on: TrainedOn) -> None:
    """Write a trial's adapter in PEFT's own format, and beside it what it takes to load it again.

    Args:
        directory: Where to.
        model: The trained model.
        trial: What was trained.
        sha256: Hash of its base model's weights (`Prepared.sha256`).
        num_labels: Classes of its head.
        trained_on: What it reads and writes.
    """
    method, address, base = trial.method, trial.model, model.get_base_model()
    assert isinstance(method, Peft) and trial.d is not None, "the trial has an adapter"
    config = model.peft_config["default"]
    config.base_model_name_or_path, config.revision = address.name, address.revision
    with quiet():
        model.save_pretrained(directory, save_embedding_layers=False)
    names = getattr(base.config, "id2label", None)
    facts = Facts(
        method=method,
        d=trial.d,
        projection_seed=trial.seeds.projection,
        base_model=address.name,
        revision=address.revision,
        base_content=address.content,
        base_sha256=sha256,
        base_dtype="float32",
        num_labels=num_labels,
        id2label=names and {str(number): name for number, name in names.items()},
        head_seed=trial.seeds.head,
        head_from=address.head_from,
        architecture=type(base).__name__,
        task=trial.task.name,
        weights_sha256=hashlib.sha256((directory / WEIGHTS).read_bytes()).hexdigest(),
        versions={name: metadata.version(name) for name in ("distsub", "peft", "torch", "transformers")},
        trained_on=trained_on,
    )
    (directory / FACTS).write_text(json.dumps(canonical(facts), indent=2) + "\n")


def load_facts(directory: str | os.PathLike[str]) -> Facts:
    """Read and check what lies beside PEFT's own files.

    Raises:
        AdapterError: It is damaged or of another version, or the weights are others.
    """
    path = Path(directory) / FACTS
    try:
        values = parse_json(path.read_bytes())
        found = values.get("format_version", 1) if isinstance(values, dict) else 1  # the first version said none
        if found != FORMAT_VERSION:
            raise AdapterError(
                f"{path} has format version {found}, distsub {adapter.version('distsub')} reads version "
                f"{FORMAT_VERSION}; use the distsub that wrote it, or train and save the adapter again"
            )
        facts = parse(Facts, values)
        found = hashlib.sha256((path.parent / WEIGHTS).read_bytes()).hexdigest()
    except AdapterError:
        raise
    except (OSError, ValueError) as error:
        raise AdapterError(f"{path} is damaged: {first_line(error)}; save the adapter again") from None
    if found != facts.weights_sha256:
        raise AdapterError(f"{path.parent / WEIGHTS} is not the file that {FACTS} was written for; save it again")
    return facts


def load(directory: Path, base: nn.Module) -> nn.Module:
    """Put a saved adapter on its base model.

    Raises:
        AdapterError: PEFT cannot read it.
        UnavailableError: PEFT is not installed.
    """
    facts = load_facts(directory)
    config_class(facts.method.peft)
    from peft import PeftModel

    if facts.num_labels and (names := facts.id2label):
        adapter.name_labels(base, [names[str(number)] for number in range(len(names))])

    try:
        with quiet():
            return PeftModel.from_pretrained(base, str(directory)).eval()  # pyright: ignore[reportArgumentType]
    except (OSError, ValueError, RuntimeError, TypeError, KeyError) as error:
        raise AdapterError(f"{directory} cannot be put on its base model: {first_line(error)}") from None
