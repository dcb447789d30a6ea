"""Pretrained models by address: a package, a local directory or a hub id, as read-only memory-mapped weights.

`prepare` gives the tensors that transformers loads as float32 files, once per machine; `build` makes a classifier whose
parameters are views of them, so that every process of a machine shares one copy. Only the head, which belongs to the
task, is memory of its own; it comes from a seed.
"""

import contextlib
import copy
import hashlib
import json
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from distsub.cache import cache_directory, once
from distsub.errors import ConfigError, UnavailableError
from distsub.files import parse_json
from distsub.models import contents, conversion, explain, weight_files
from distsub.models.addresses import SMALL_FILES, locate
from distsub.models.fit import fit_padding, fit_tokenizer, init_head
from distsub.models.tensor_files import DTYPES
from distsub.records import Dtype, HeadFrom
from distsub.subspace import layout

_FORMAT = 4  # of a directory in the cache


@dataclass(frozen=True)
class Prepared:
    """A model ready to be memory-mapped.

    Attributes:
        path: Directory with config.json and the weights as safetensors.
        sha256: Hash of the tensors that transformers loads (names, shapes, bytes), the identity of theta_0.
        name: The model as it was asked for, for messages.
        source: The model's own directory, which holds the tokenizer.
        content: Hash of all that decides what the model makes of a text: tensors, configuration and tokenizer.
        dtype: The precision that theta_0 is held in.
    """

    path: Path
    sha256: str
    name: str
    source: Path
    content: str = ""
    dtype: Literal["float32", "bfloat16"] = "float32"


def prepare(model: str, revision: str | None = None, dtype: Dtype = "float32", cache: Path | None = None) -> Prepared:
    """Find a model, and make its weights safetensors of the precision that it is held in, once per machine.

    A checkpoint that is that already is used where it lies. Files are known by their content, which is read once per
    machine as long as nobody touches them. See `cache.once` for several processes that prepare the same model.

    Args:
        model: Its address, see `locate`.
        revision: Hub revision.
        dtype: The precision to hold it in; "auto" takes bfloat16 where all of the checkpoint is that, else float32.
        cache: Where converted weights go; None takes this machine's cache.

    Raises:
        UnavailableError: The model cannot be found or loaded, or the cache cannot be written.
    """
    source = locate(model, revision)
    try:
        config = weight_files.read_config(source)
        files = weight_files.files(source, config)
        config.pop("transformers_weights", None)  # in the cache they have the usual names
        hashes = [weight_files.content_hash(file) for file in files]
        known = tuple(zip(files, hashes, strict=True))
        held = conversion.dtype_of(files) if dtype == "auto" else dtype
        found = _prepare(model, source, json.dumps(config), known, held, cache or cache_directory())
        return replace(found, content=contents.of_all(found.sha256, config, source))
    except UnavailableError as error:
        raise UnavailableError(f"model {model!r}: {error}") from None
    except OSError as error:
        raise UnavailableError(f"model {model!r} cannot be read: {error.strerror}: {error.filename}") from None


@lru_cache(maxsize=16)
def _prepare(
    model: str, source: Path, config: str, files: tuple[tuple[Path, str], ...], dtype: Any, cache: Path
) -> Prepared:
    paths = [file for file, _ in files]
    in_place = conversion.is_ready(paths, dtype)
    known: list[Any] = [_FORMAT, metadata.version("transformers"), config, [digest for _, digest in files], dtype]
    if in_place:  # by links to the files, so of no use for a copy of them
        known.append([str(file.resolve()) for file in paths])
    target = cache / hashlib.sha256(json.dumps(known).encode()).hexdigest()[:24]
    once(target, lambda work: _convert(model, config, paths, in_place, dtype, work))
    sha256 = parse_json((target / "distsub.json").read_text())["sha256"]
    return Prepared(target, sha256, model, source, dtype=dtype)


def files_of(source: Path) -> list[Path]:
    """List the files of a model's own directory that decide what it is: configuration, weights and tokenizer.

    Raises:
        UnavailableError: A file of weights is missing or damaged.
    """
    config = weight_files.read_json(source / "config.json")
    weights = weight_files.files(source, config)
    index = weight_files.index_of(source, config)
    tokenizers = (file for pattern in contents.TOKENIZER_FILES for file in source.glob(pattern))
    return sorted({source / "config.json", *weights, *([index] if index else []), *tokenizers})


prepare.cache_clear = _prepare.cache_clear  # pyright: ignore[reportFunctionMemberAccess]


def _convert(model: str, config: str, files: list[Path], in_place: bool, dtype: Any, work: Path) -> None:
    """Write config, weights and the hash of what transformers loads of them."""
    (work / "config.json").write_text(config)
    if in_place:
        conversion.link(files, work)
    else:
        conversion.write(files, work, dtype)
    prepared = Prepared(work, "", model, work, dtype=dtype)
    try:
        loaded, fresh = _load(prepared, is_language_model(work))
    except UnavailableError:  # one without its output layer may be a classifier's base all the same
        loaded, fresh = _load(prepared)
    (work / "distsub.json").write_text(json.dumps({"sha256": contents.of_tensors(loaded, fresh)}))
    conversion.share(work)


def is_language_model(directory: Path) -> bool:
    """Tell whether a checkpoint was saved as a model that generates text, whose output layer it then holds."""
    from transformers.models.auto import modeling_auto

    config = weight_files.read_json(directory / "config.json")
    decoders = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
    both = modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES.values()
    # A type that has several classes has them as a tuple.
    names = {name for each in (*decoders, *both) for name in ([each] if isinstance(each, str) else each)}
    return not names.isdisjoint(config.get("architectures") or ())


def load_given(prepared: Prepared, language_model: bool, num_labels: int = 0) -> tuple[nn.Module, set[str]]:
    """Load a model on memory-mapped weights as its checkpoint has it, and name what it does not give.

    A classifier has `num_labels`, 0 for as many as the checkpoint's own.

    Raises:
        UnavailableError: transformers cannot make such a model of it.
    """
    settings = {"num_labels": num_labels} if num_labels else {}
    try:
        return _load(prepared, language_model, **settings)
    except UnavailableError as error:
        raise UnavailableError(f"model {prepared.name!r}: {error}") from None


def _load(prepared: Prepared, language_model: bool = False, **settings: Any) -> tuple[Any, set[str]]:
    """Load a model as transformers does; the second value names what the checkpoint does not give."""
    what = "language model" if language_model else "sequence classifier"
    try:
        with quiet():
            import transformers

            loader: Any = transformers.AutoModelForSequenceClassification
            if language_model:
                config = transformers.AutoConfig.from_pretrained(
                    prepared.path, local_files_only=True, trust_remote_code=False
                )
                loader = (
                    transformers.AutoModelForSeq2SeqLM
                    if config.is_encoder_decoder
                    else transformers.AutoModelForCausalLM
                )
            model, info = loader.from_pretrained(
                prepared.path,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                local_files_only=True,
                dtype=DTYPES[prepared.dtype],
                trust_remote_code=False,
                **settings,
            )
    except MemoryError:
        raise
    except Exception as error:  # whatever a config can make the constructors of some hundred architectures raise
        raise UnavailableError(f"no {what} can be made of it: {explain.reason(error)}") from None
    fresh = set(info["missing_keys"]) | {
        item[0] if isinstance(item, tuple) else item for item in info["mismatched_keys"]
    }
    _check_loaded(model, fresh, prepared)
    return model, fresh


@lru_cache(maxsize=1)
def _template(prepared: Prepared, language_model: bool, settings: tuple[tuple[str, Any], ...]) -> tuple[Any, set[str]]:
    return _load(prepared, language_model, **dict(settings))


def _copied(prepared: Prepared, language_model: bool, **settings: Any) -> tuple[Any, set[str]]:
    """Copy a model that this process has loaded before, all but its parameters: the copy's are the same memory."""
    model, fresh = _template(prepared, language_model, tuple(sorted(settings.items())))
    shared = {id(p): nn.Parameter(p.detach(), p.requires_grad) for p in model.parameters()}
    return copy.deepcopy(model, shared), set(fresh)


def build(
    prepared: Prepared,
    num_labels: int,
    head_seed: int,
    private: bool = False,
    head_from: HeadFrom = "seed",
    again: bool = False,
) -> nn.Module:
    """Load a model on memory-mapped weights, with a head from its seed or the checkpoint's own.

    Args:
        prepared: From `prepare`.
        num_labels: Classes of a sequence classifier; 1 means regression, 0 a language model, which has no head.
        head_seed: Seed of the head, and of what else the checkpoint does not carry.
        private: Copy the weights as float32, so that they may be trained.
        head_from: "seed" makes a head anew that the checkpoint carries; "checkpoint" keeps it.
        again: Keep the loaded model in this process, and copy it the next time: for callers that never write to
            parameters of the base model, which all copies share.

    Returns:
        A transformers model in the precision that it is held in, in training mode.

    Raises:
        UnavailableError: transformers cannot make such a model of it.
        ConfigError: The checkpoint has no head for so many labels, or is no language model.
    """
    settings: dict[str, Any] = {"return_dict": True}
    if num_labels == 0 and not is_language_model(prepared.path):
        named = ", ".join(weight_files.read_json(prepared.path / "config.json").get("architectures") or ["nothing"])
        raise ConfigError(
            f"model {prepared.name!r}: completions need a language model, and its config.json names {named}; give a "
            "checkpoint that was saved as one, such as GPT2LMHeadModel or T5ForConditionalGeneration"
        )
    problem = "regression" if num_labels == 1 else "single_label_classification"
    try:
        if num_labels:
            settings |= {"num_labels": num_labels, "problem_type": problem}
        model, fresh = (_copied if again else _load)(prepared, not num_labels, **settings)
    except UnavailableError as error:
        raise UnavailableError(f"model {prepared.name!r}: {error}") from None
    heads = layout.head_names(model)
    if head_from == "seed":
        fresh |= heads
    elif num_labels and (not heads or heads & fresh):
        wanted = f"{num_labels} labels" if num_labels > 1 else "regression"
        lacking = min(heads & fresh, default="a head outside the base model")
        raise ConfigError(
            f'model {prepared.name!r}: head_from = "checkpoint", but the checkpoint has no head for {wanted}: it lacks '
            f"{lacking}, or has it in another shape; leave head_from out"
        )
    init_head(model, fresh, head_seed)
    if private:
        _make_private(model)
    with contextlib.suppress(UnavailableError):  # a model to look at may have no tokenizer; one to train is refused
        fit_padding(model, tokenizer(prepared).pad_token_id)
    return model.train()


def _make_private(model: Any) -> None:
    """Give a model float32 weights of its own: updates are a thousand times smaller than what bfloat16 rounds."""
    for owner in model.modules():
        for key, parameter in owner._parameters.items():
            if parameter is not None:
                owner._parameters[key] = nn.Parameter(parameter.detach().to(torch.float32, copy=True))
        for key, buffer in owner._buffers.items():
            if buffer is not None and buffer.dtype == torch.bfloat16:
                owner._buffers[key] = buffer.float()
    model.tie_weights()
    model.config.dtype = torch.float32


def _check_loaded(model: nn.Module, fresh: set[str], prepared: Prepared) -> None:
    """Refuse a checkpoint that fills less than the base model: the rest would be noise under a pretrained name."""
    own = {name for name, _ in model.named_parameters()}
    wrong = sorted(name for name in fresh & own - layout.head_names(model) if "pooler" not in name)
    if wrong:
        held = conversion.names(sorted(prepared.path.glob("*.safetensors")))
        raise UnavailableError(explain.lacking(wrong, held))


def tokenizer(prepared: Prepared) -> Any:
    """Load the tokenizer, to give what the model reads (`fit.fit_tokenizer`).

    Raises:
        UnavailableError: There is no tokenizer in the model's directory, or none that can pad.
    """
    try:
        for pattern in SMALL_FILES:
            for file in prepared.source.glob(pattern):
                weight_files.check_present(file, may_be_empty=True)
        with quiet():
            from transformers import AutoTokenizer

            loaded = AutoTokenizer.from_pretrained(prepared.source, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the tokenizers' own code raises plain Exception, and each file format its own kind
        raise UnavailableError(
            f"model {prepared.name!r} has no tokenizer that can be used: {explain.reason(error, prepared.source)}"
        ) from None
    if len(loaded) <= len(set(loaded.all_special_ids)):
        reason = explain.missing_package(prepared.source) or "its vocabulary is empty; add tokenizer.json there"
        raise UnavailableError(f"model {prepared.name!r} has no tokenizer that can be used: {reason}")
    fit_tokenizer(loaded, prepared.source, prepared.name)
    return loaded


class quiet:
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
