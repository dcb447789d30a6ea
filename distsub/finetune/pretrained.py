"""Pretrained models by address: a package, a local directory or a hub id, as read-only memory-mapped weights.

`prepare` brings a model into the run's precision once per machine; `build` makes a classifier whose parameters are
views of that file, so that every process of a machine shares one copy. Only the head, which no checkpoint carries,
is memory of its own; it comes from a seed.
"""

import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from filelock import FileLock
from safetensors import SafetensorError
from torch import nn

from distsub.errors import AdapterError, UnavailableError
from distsub.finetune import packages
from distsub.subspace import adapter, bits, layout
from distsub.subspace.model import SubspaceModel

_SMALL_FILES = ("*.json", "*.txt", "*.model", "merges.txt", "*.tiktoken", "*.jinja")


@dataclass(frozen=True)
class Prepared:
    """A model directory ready to be memory-mapped.

    Attributes:
        path: Directory with config, tokenizer and safetensors in float32.
        sha256: Hash of the checkpoint's tensors (names, shapes, float32 bytes), the identity of theta_0.
    """

    path: Path
    sha256: str


def cache_directory() -> Path:
    """Give the directory for converted weights: DISTSUB_CACHE, or the user's cache."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "distsub"
    return Path(os.environ.get("DISTSUB_CACHE", default))


def locate(model: str, revision: str | None = None) -> Path:
    """Find a model's files.

    Args:
        model: "package:NAME", a local directory, or a hub id such as "FacebookAI/roberta-base".
        revision: Hub revision.

    Raises:
        UnavailableError: Nothing there, and the hub cannot be asked or does not know it.
    """
    if model.startswith("package:"):
        return packages.model_directory(model)
    path = Path(model).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UnavailableError(f"model {model!r} is a directory without config.json; give a transformers directory")
        return path
    if model.startswith((".", "/", "~")):
        raise UnavailableError(
            f"model {model!r} is no directory; give a transformers directory, a hub id or package:NAME"
        )
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.txt", "*.model", "*.safetensors", "*.tiktoken", "*.jinja"]
    try:
        found = Path(snapshot_download(model, revision=revision, allow_patterns=patterns))
        if not list(found.glob("*.safetensors")):
            found = Path(snapshot_download(model, revision=revision, allow_patterns=[*patterns, "pytorch_model*.bin"]))
    except Exception as error:  # the hub client raises a dozen unrelated types; all mean the same to a user
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UnavailableError(
            f"model {model!r} is neither cached here nor reachable on the hub ({reason}); "
            f"give a local directory, package:NAME, or run once with the network"
        ) from None
    return found


@lru_cache(maxsize=16)
def prepare(model: str, revision: str | None = None) -> Prepared:
    """Convert a checkpoint to float32 safetensors, once per machine, and hash it.

    A checkpoint that is float32 safetensors already is used where it lies. Of several processes that prepare the same
    model at once, one converts and the others wait for it; where the lock does not work, as on some network file
    systems, each writes a directory of its own and the first rename wins.

    Raises:
        UnavailableError: The model cannot be found or read.
    """
    source = locate(model, revision)
    files = sorted(source.glob("*.safetensors")) or sorted(source.glob("pytorch_model*.bin"))
    if not files:
        raise UnavailableError(f"model {model!r} has no *.safetensors and no pytorch_model.bin in {source.name}")
    stamp = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    target = cache_directory() / hashlib.sha256(json.dumps(["float32", stamp]).encode()).hexdigest()[:24]
    record = target / "distsub.json"
    if not record.is_file():
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{target}.lock"):  # the system lets go of it when its process dies
                if not record.is_file():
                    _convert(source, files, target)
        except (OSError, RuntimeError, ValueError, SafetensorError) as error:
            raise UnavailableError(f"model {model!r} cannot be read: {str(error).splitlines()[0]}") from None
        except UnpicklingError:  # its own message advises to load the file with its code
            raise UnavailableError(
                f"model {model!r}: {', '.join(file.name for file in files)} is damaged or holds more than tensors, "
                "which could run code when loaded; give the model as safetensors"
            ) from None
    saved = json.loads(record.read_text())
    return Prepared(Path(saved["path"]) if saved["path"] else target, saved["sha256"])


def _convert(source: Path, files: list[Path], target: Path) -> None:
    """Write the hash, and the float32 copy where one is needed, in one rename."""
    from safetensors.torch import load_file, save_file

    work = Path(tempfile.mkdtemp(prefix=".convert-", dir=target.parent))
    try:
        state: dict[str, torch.Tensor] = {}
        ready = True
        for file in files:
            if file.suffix == ".safetensors":
                state |= load_file(file)
            else:
                ready = False
                state |= torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        digest = hashlib.sha256()
        for name in sorted(state):
            floating = state[name].is_floating_point()
            ready &= not floating or state[name].dtype == torch.float32
            tensor = (state[name].float() if floating else state[name]).contiguous()
            digest.update(f"{name} {tuple(tensor.shape)} ".encode())
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
            state[name] = tensor
        if not ready:
            for pattern in _SMALL_FILES:
                for file in source.glob(pattern):
                    if not file.name.endswith(".index.json"):
                        shutil.copy(file, work / file.name)
            state = {name: tensor.clone() for name, tensor in state.items()}  # tied tensors must not share memory
            save_file(state, work / "model.safetensors", metadata={"format": "pt"})
        record = {"path": str(source.resolve()) if ready else None, "sha256": digest.hexdigest()}
        (work / "distsub.json").write_text(json.dumps(record))
        try:
            work.rename(target)
        except OSError:  # another process was first; its directory is the same
            if not (target / "distsub.json").is_file():
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


def build(prepared: Prepared, num_labels: int, head_seed: int, private: bool = False) -> nn.Module:
    """Load a sequence classifier on memory-mapped weights, with a head from its seed.

    Args:
        prepared: From `prepare`.
        num_labels: Classes; 1 means regression.
        head_seed: Seed of the parameters that the checkpoint does not carry.
        private: Copy the weights, so that they may be trained.

    Returns:
        A transformers model in float32, in training mode.

    Raises:
        UnavailableError: transformers cannot make a sequence classifier of it.
    """
    from transformers import AutoModelForSequenceClassification

    settings: dict[str, Any] = {"num_labels": num_labels, "dtype": torch.float32, "trust_remote_code": False}
    if num_labels == 1:
        settings["problem_type"] = "regression"
    with _quiet():
        try:
            model, info = AutoModelForSequenceClassification.from_pretrained(
                prepared.path, output_loading_info=True, ignore_mismatched_sizes=True, local_files_only=True, **settings
            )
        except (ValueError, KeyError, OSError) as error:
            reason = str(error).splitlines()[0]
            if "custom code" in reason:
                reason = "it needs code of its own (auto_map in config.json), which is never run; use another model"
            raise UnavailableError(f"no sequence classifier can be made of {prepared.path.name}: {reason}") from None
    fresh = set(info["missing_keys"]) | {
        item[0] if isinstance(item, tuple) else item for item in info["mismatched_keys"]
    }
    _check_loaded(model, fresh, prepared)
    init_head(model, fresh, head_seed)
    if private:
        for owner in model.modules():
            for key, parameter in owner._parameters.items():
                if parameter is not None:
                    owner._parameters[key] = nn.Parameter(parameter.detach().clone())
        model.tie_weights()
    if getattr(model.config, "pad_token_id", None) is None:
        model.config.pad_token_id = tokenizer(prepared).pad_token_id
    return model.train()


def _check_loaded(model: nn.Module, fresh: set[str], prepared: Prepared) -> None:
    """Refuse a checkpoint that fills less than the base model: the rest would be noise under a pretrained name."""
    own = {name for name, _ in model.named_parameters()}
    wrong = sorted(name for name in fresh & own - layout.head_names(model) if "pooler" not in name)
    if wrong:
        raise UnavailableError(
            f"{prepared.path} lacks {len(wrong)} tensors of the base model, or has them in other shapes, first "
            f"{wrong[0]}: its config.json does not belong to its weights; give a whole transformers directory"
        )


def init_head(model: nn.Module, names: set[str], seed: int) -> None:
    """Fill parameters that no checkpoint carries from counter-based random bits, the same on every machine.

    Matrices are N(0, initializer_range^2), as transformers draws them; biases 0, norm gains 1.
    """
    config: Any = model.config
    std = getattr(config, "initializer_range", None) or getattr(config, "init_std", 0.02)
    for name, parameter in model.named_parameters():
        if name in names:
            with torch.no_grad():
                if parameter.dim() > 1:
                    values = bits.normals(seed, f"head/{name}", 0, parameter.numel(), parameter.device)
                    parameter.copy_(values.view(parameter.shape) * std)
                else:
                    parameter.fill_(1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0)


def tokenizer(prepared: Prepared) -> Any:
    """Load the tokenizer, with a padding token (the end of sequence where it has none).

    Raises:
        UnavailableError: There is no tokenizer in the model's directory.
    """
    from transformers import AutoTokenizer

    try:
        loaded = AutoTokenizer.from_pretrained(prepared.path, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UnavailableError(f"no tokenizer in {prepared.path.name}: {str(error).splitlines()[0]}") from None
    if len(loaded) <= len(set(loaded.all_special_ids)):
        raise UnavailableError(f"no tokenizer in {prepared.path}: its vocabulary is empty; add tokenizer.json there")
    if loaded.pad_token_id is None:
        loaded.pad_token = loaded.eos_token
    return loaded


def load_adapter(directory: str | os.PathLike[str], results: str | os.PathLike[str] | None = None) -> SubspaceModel:
    """Rebuild a saved model from its directory: the base by its address, the head by its seed.

    Args:
        directory: An adapter.
        results: Results directory with the trajectories that a learned subspace is made of; None takes the one that
            holds the adapter as adapters/ID.

    Raises:
        AdapterError: The adapter is damaged, foreign, or made for other weights.
        TrajectoryError: A trajectory that it needs is missing or damaged.
        UnavailableError: The base model is not here.
    """
    from distsub.finetune import trajectory

    config = adapter.load_config(directory)
    if config["base_model"] is None or config["num_labels"] is None:
        raise AdapterError(f"{directory} does not say its base model; build it yourself and use from_pretrained")
    prepared = prepare(config["base_model"], config["revision"])
    base = build(prepared, config["num_labels"], config["head_seed"] or 0)
    made_of, snapshots = config["settings"].get("snapshots"), None
    if made_of is not None:
        root = Path(directory).resolve().parents[1] if results is None else Path(results)
        paths = [root / trajectory.FOLDER / name for name in made_of["recordings"]]
        snapshots = trajectory.collect(paths, prepared.sha256, made_of["mode"], made_of["first"], made_of["last"])
    return adapter.from_pretrained(directory, base, snapshots)


class _quiet:
    """Silence the loader's progress bar and its table of newly made weights, which is said in the row instead."""

    def __enter__(self) -> None:
        from transformers.utils import logging

        self._level, self._bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
        logging.set_verbosity_error()
        logging.disable_progress_bar()

    def __exit__(self, *exception: object) -> None:
        from transformers.utils import logging

        logging.set_verbosity(self._level)
        if self._bar:
            logging.enable_progress_bar()
