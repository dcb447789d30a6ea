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
from distsub.records import Peft, TrainedOn, Trial, canonical
from distsub.records.reading import parse
from distsub.subspace import adapter

FACTS, WEIGHTS = "distsub.json", "adapter_model.safetensors"
"""Beside PEFT's own files: what it takes to find the base model, and to know that it is the right one."""


FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Facts(adapter.About):
    """What an adapter says beside PEFT's own files.

    Attributes:
        method: The method.
        format_version: Raised when other programs would rebuild another model from the same files.
    """

    method: Peft
    format_version: int = FORMAT_VERSION


def save(directory: Path, model: Any, trial: Trial, sha256: str, num_labels: int | None, trained_on: TrainedOn) -> None:
    """Write a trial's adapter in PEFT's own format, and beside it what it takes to load it again.

    `sha256` is the hash of the base model's weights (`Prepared.sha256`).
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


def load(directory: Path, facts: Facts, base: nn.Module) -> nn.Module:
    """Put a saved adapter on its base model.

    Raises:
        AdapterError: PEFT cannot read it.
        UnavailableError: PEFT is not installed.
    """
    config_class(facts.method.peft)
    from peft import PeftModel

    if facts.num_labels and (names := facts.id2label):
        adapter.name_labels(base, [names[str(number)] for number in range(len(names))])

    try:
        with quiet():
            return PeftModel.from_pretrained(base, str(directory)).eval()  # pyright: ignore[reportArgumentType]
    except (OSError, ValueError, RuntimeError, TypeError, KeyError) as error:
        raise AdapterError(f"{directory} cannot be put on its base model: {first_line(error)}") from None
