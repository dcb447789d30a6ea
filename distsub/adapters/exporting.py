"""An adapter as a plain transformers model: merged weights, configuration and tokenizer, loaded without distsub."""

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distsub.adapters import predictor, units
from distsub.adapters.loading import Opened
from distsub.adapters.peft_files import Facts
from distsub.data.dataset import Split
from distsub.errors import AdapterError, OutputError, first_line
from distsub.finetune import batches
from distsub.models import conversion, fit, peft_model, pretrained
from distsub.subspace.model import SubspaceModel

DTYPES = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16", "float64")}
"""What merged weights may be written in."""


@dataclass(frozen=True)
class Export:
    """What was written, by name, and the adapter as it was read back."""

    facts: dict[str, Any]
    opened: Opened


def to_transformers(opened: Opened, directory: str | os.PathLike[str], dtype: str | None = None) -> Export:
    """Write the model with its trained weights in it, as `from_pretrained` of transformers reads it.

    The weights are theta_0 + lambda * P theta in the precision in which the held model runs, rounded once more where
    `dtype`, one of `DTYPES`, is another. They are read back and compared bit by bit, like the logits of a few texts.

    Raises:
        OutputError: It cannot be written, or comes back as something else.
        AdapterError: The method of PEFT cannot be merged.
    """
    tokenizer, (held_inputs, held) = tokenizer_of(opened), probe(opened)
    model = merged(opened)
    kept = next(model.parameters()).dtype
    wanted = DTYPES[dtype] if dtype else kept
    if wanted != kept:
        model.to(wanted)
    model.config.dtype = wanted
    config_of(model, opened)
    with fresh_folder(directory) as folder:
        with pretrained.quiet():
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            again = _loader(model).from_pretrained(folder, local_files_only=True, dtype=wanted).eval()
        written, read = dict(model.named_parameters()), dict(again.named_parameters())
        wrong = sorted(name for name in written if name not in read or not torch.equal(written[name], read[name]))
        if wrong or read.keys() - written.keys():
            raise OutputError(
                f"{directory}: transformers does not read back what was written, first {[*wrong, 'a new parameter'][0]}"
            )
        num_bytes = sum(file.stat().st_size for file in folder.iterdir())
    found = run(again, held_inputs)
    facts = {
        "directory": os.fspath(directory),
        "load": f"{_loader(model).__name__}.from_pretrained",
        "architecture": type(model).__name__,
        "dtype": str(wanted).removeprefix("torch."),
        "weights": _said(opened) if wanted == kept else f"rounded from {str(kept).removeprefix('torch.')}",
        "logits": compared(found, held),
        "num_params": sum(p.numel() for p in again.parameters()),
        "bytes": num_bytes,
    }
    return Export(facts, read_back(opened, again))


def read_back(opened: Opened, model: Any) -> Opened:
    """Put an exported model in the place of the adapter's; it has the units of its targets in its weights."""
    trained_on = opened.config.trained_on and replace(opened.config.trained_on, scale=None)
    return replace(opened, model=model, config=replace(opened.config, trained_on=trained_on))


def _said(opened: Opened) -> str:
    return "those of the held model" + (", the last layer in the targets' units" if opened.scale else "")


def merged(opened: Opened) -> Any:
    """Give a plain transformers model with the trained weights, in memory of its own and evaluation mode.

    Raises:
        AdapterError: The method of PEFT cannot be merged into the weights.
    """
    if isinstance(opened.model, SubspaceModel):
        return _folded(opened.model.merge().eval(), opened)
    model: Any = opened.model
    own_memory(model)
    try:
        plain = peft_model.merge(model)
    except (AttributeError, NotImplementedError, ValueError, RuntimeError, TypeError) as error:
        name = opened.config.method.peft if isinstance(opened.config, Facts) else "this method"
        raise AdapterError(f"PEFT cannot merge {name} into the weights ({first_line(error)}); use --to peft") from None
    return _folded(plain.requires_grad_(True).eval(), opened)


def _folded(model: Any, opened: Opened) -> Any:
    if opened.scale is not None:
        units.fold(model, opened.scale)
    return model


def own_memory(model: nn.Module) -> None:
    """Give a model's parameters memory of their own, where they were views of files."""
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()


def config_of(model: Any, opened: Opened) -> None:
    """Put into a model's configuration what its use depends on, and leave out where it lay on this machine."""
    from transformers import GenerationConfig

    model.config._name_or_path = ""
    assert opened.base is not None, "the base came from an address"
    if model.can_generate() and (opened.base.source / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(opened.base.source)


def tokenizer_of(opened: Opened) -> Any:
    """Give the tokenizer as the training used it, so that what is saved of it says so."""
    tokenizer = predictor.tokenizer_of(opened)
    for name in ("padding_side", "model_input_names", "model_max_length"):
        tokenizer.init_kwargs[name] = getattr(tokenizer, name)
    return tokenizer


def _loader(model: Any) -> Any:
    """Give the class of transformers that loads a model."""
    import transformers

    if not model.can_generate():
        return transformers.AutoModelForSequenceClassification
    both = model.config.is_encoder_decoder
    return transformers.AutoModelForSeq2SeqLM if both else transformers.AutoModelForCausalLM


def probe(opened: Opened) -> tuple[dict[str, Tensor], Tensor]:
    """Make a batch of a few texts of random tokens, and give what the held model says of it."""
    tokenizer = predictor.tokenizer_of(opened)
    model: Any = opened.model
    generator = torch.Generator().manual_seed(0)
    words = sorted(set(range(len(tokenizer))) - set(tokenizer.all_special_ids))
    lengths = [min(length, fit.longest(tokenizer, model.config) // 2) for length in (4, 9, 20)]
    draws = [torch.randint(len(words), (length,), generator=generator).tolist() for length in lengths]
    texts = [tokenizer.decode([words[place] for place in draw]) for draw in draws]
    examples = batches.tokenize(tokenizer, Split((texts,), [0] * len(texts)), max(lengths) + 2)
    inputs = batches.collate(tokenizer, examples, range(len(texts)))
    if model.config.is_encoder_decoder and model.can_generate():
        inputs["decoder_input_ids"] = inputs["input_ids"]
    return inputs, run(model, inputs)


@torch.no_grad()
def run(model: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    """Give the logits of a batch, without autocast."""
    return model.eval()(**inputs).logits


def compared(found: Tensor, held: Tensor) -> str:
    """Say whether logits are the held model's."""
    if found.dtype == held.dtype and torch.equal(found, held):
        return "those of the held model, to the bit"
    gap = float((found.double() - held.double()).abs().max())
    return f"differ from the held model's by at most {gap:.2g}, which are up to {float(held.abs().max()):.2g}"


@contextmanager
def fresh_folder(directory: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a folder to write into, which becomes the directory when all went well.

    Raises:
        OutputError: Something is there already, or it cannot be written.
    """
    address = os.fspath(directory)
    if "://" in address:
        raise OutputError(f"cannot export to {address}; give a directory of this machine, and copy it from there")
    target = Path(address).expanduser()
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise OutputError(f"{target} exists already; give another name")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        try:
            yield work
            mask = os.umask(0)  # no system call only asks for it
            os.umask(mask)
            work.chmod(0o777 & ~mask)
            conversion.share(work)
            if target.is_dir():
                target.rmdir()
            work.rename(target)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(f"cannot write {target} ({error.strerror or first_line(error)}); make room there") from None
