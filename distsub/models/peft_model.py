"""Models with an adapter of the package PEFT: of exactly d numbers, and drawn from a seed."""

import contextlib
import copy
import dataclasses
import json
import re
import warnings
from collections.abc import Iterator
from importlib import metadata
from typing import Any

import torch
from torch import nn

from distsub.errors import ConfigError, DimensionError, UnavailableError, first_line, nearest
from distsub.models import ladder
from distsub.records import Peft
from distsub.subspace import layout

SEEDS = {
    "FOURIERFT": "random_loc_seed", "RANDLORA": "projection_prng_key", "SHIRA": "random_seed",
    "TINYLORA": "projection_seed", "UNILORA": "proj_seed", "VERA": "projection_prng_key",
}  # fmt: skip
"""The options that are seeds: the projection seed of a trial decides them."""

_DECIDED = {
    "modules_to_save": 'head = "trained" trains the head in full',
    "task_type": "the task decides it",
    **dict.fromkeys(("layers_to_transform", "layers_pattern"), "name the layers by target_modules"),
    **dict.fromkeys(("inference_mode", "auto_mapping", "base_model_name_or_path", "revision"), "the trial decides it"),
}

_ALL_LINEAR = "all-linear"

_LINEAR_ONLY = ("BEFT", "SHIRA")
"""The types that do not adapt GPT-2's Conv1D."""


class Sizes:
    """The sizes that a method can have on a model, of which nothing is changed.

    Attributes:
        num_params: Parameters of the layers that it adapts.
        num_trained_head: Parameters of the head that are trained in full beside it.

    Raises:
        ConfigError: An option is unknown, or the method does not fit the model.
        UnavailableError: PEFT is not installed.
    """

    def __init__(self, base: nn.Module, method: Peft) -> None:
        given = options_of(method)
        self._base, self._method, self._skeleton = base, method, _skeleton(base)
        smallest = {name: value for name, value in _SMALLEST.get(method.peft, {}).items() if name not in given}
        probe = self._draft(smallest)
        adapted = list(_adapted(probe))
        self.num_params = sum(p.numel() for layer in adapted for p in layer.parameters())
        self.num_trained_head = sum(p.numel() for p in trained(probe, head=True))
        shapes = [tuple(layer.weight.shape) for layer in adapted if layer.weight.dim() == 2]
        try:
            self._values, self._options = ladder.ladder(method.peft, given, shapes)
        except ConfigError as error:
            raise ConfigError(f"peft = {method.peft!r} does not fit {type(base).__name__}: {error}") from None
        self._counts: dict[int, int] = {}

    def nearest(self, d: int) -> tuple[int, ladder.Options]:
        """Give the count that is nearest to d in ratio, and the options that have it."""
        value = ladder.nearest(self._values, d, self._count)
        return self._count(value), self._options(value)

    def ends(self, d: int) -> tuple[int, int | None]:
        """Give the smallest count, and the largest where that is not above d."""
        nearest, last = self.nearest(d)[0], self._values[-1]
        return self._count(self._values[0]), nearest if nearest <= d and self._count(last) == nearest else None

    def _count(self, value: int) -> int:
        if value not in self._counts:
            model = self._draft(self._options(value))
            self._counts[value] = sum(p.numel() for p in trained(model, head=False))
        return self._counts[value]

    def _draft(self, size: ladder.Options) -> Any:
        """Make the model without weights; what PEFT cannot make so, on the base model's own weights."""
        for device in ("meta", "cpu"):
            try:
                with torch.device(device):
                    return _inject(copy.deepcopy(self._skeleton), self._method, size, 0)
            except (NotImplementedError, RuntimeError):
                continue
            except ConfigError:
                break
        shared: dict[int, Any] = {id(p): p for p in self._base.parameters()}
        return _inject(copy.deepcopy(self._base, shared), self._method, size, 0)


def build(base: nn.Module, method: Peft, d: int, seed: int) -> tuple[Any, Sizes]:
    """Put an adapter of exactly d numbers on a model, which it freezes.

    It is drawn on the CPU, where the model is, from `seed`, so that it is the same for every device.

    Raises:
        DimensionError: No configuration has exactly d numbers.
        ConfigError: The method does not fit the model.
        UnavailableError: PEFT is not installed.
    """
    sizes = Sizes(base, method)
    found, size = sizes.nearest(d)
    if found != d:
        raise DimensionError(
            f"d = {d}: {method.peft} has no configuration of exactly so many numbers on {type(base).__name__}; the "
            f"nearest has {found}"
        )
    before = [(p, p.data_ptr()) for p in base.parameters()]
    model = _inject(base, method, size, seed)
    if any(p.data_ptr() != where for p, where in before):
        raise ConfigError(f"peft = {method.peft!r}: its options change the base model's own weights, which stay frozen")
    for parameter in trained(model):  # a bias may be the base model's own, which others share
        parameter.data = parameter.data.clone()
    assert sum(p.numel() for p in trained(model, head=False)) == d, "the weightless count is the model's"
    return model, sizes


def plain(model: Any) -> Any:
    """Give the transformers model inside PEFT's, which has the adapter too; any other as it is."""
    return model.get_base_model() if hasattr(model, "peft_config") and hasattr(model, "get_base_model") else model


def merge(model: Any) -> Any:
    """Merge PEFT's adapter into the weights, and give the plain model."""
    from peft.utils.other import AuxiliaryTrainingWrapper

    with quiet():
        plain = model.merge_and_unload()
    for name, module in [*plain.named_modules()]:
        if isinstance(module, AuxiliaryTrainingWrapper):  # LN_TUNING leaves them
            parent, _, key = name.rpartition(".")
            setattr(plain.get_submodule(parent), key, module.unload_and_optionally_merge_module(True, False, None))
    return plain


def provenance(model: Any, method: Peft) -> dict[str, str]:
    """Say, for a row, by which version an adapter was made, and which options follow from d: "r=4 lora_alpha=8"."""
    config = model.peft_config["default"]
    options = " ".join(f"{name}={getattr(config, name)}" for name in ladder.SIZES[method.peft])
    return {"peft": metadata.version("peft"), "peft_configuration": options}


def dims(base: nn.Module, method: Peft, asked: tuple[int, ...]) -> tuple[tuple[int, ...], str]:
    """Give the exact counts nearest to a grid, rising, and a line where the method cannot be as small, or as large."""
    sizes = Sizes(base, method)
    found = tuple(sorted({sizes.nearest(d)[0] for d in asked}))
    least, most = sizes.ends(asked[-1])
    parts = [f"at least {least:,}"] if asked[0] < least else []
    parts += [f"at most {most:,}"] if most is not None and asked[-1] > most else []
    if not parts:
        return found, ""
    return found, f"{method.peft} trains {' and '.join(parts)} numbers here; dims go from {asked[0]:,} to {asked[-1]:,}"


def options_of(method: Peft) -> dict[str, Any]:
    """Read the options of a method, and check their names.

    Raises:
        ConfigError: One is unknown, or decided elsewhere.
        UnavailableError: PEFT is not installed.
    """
    given = {name: json.loads(value) for name, _, value in (each.partition("=") for each in method.options)}
    known = {field.name for field in dataclasses.fields(config_class(method.peft))} - {"peft_type", "peft_version"}
    taken = _DECIDED | ({SEEDS[method.peft]: "the projection seed decides it"} if method.peft in SEEDS else {})
    for name in given:
        if name in taken:
            raise ConfigError(f"peft = {method.peft!r}: leave out options.{name}: {taken[name]}")
        if name not in known:
            raise ConfigError(
                f"peft = {method.peft!r} has no option {name!r}; {nearest(name, sorted(known - {*taken}))}"
            )
    return given


def config_class(peft: str) -> Any:
    """Find PEFT's configuration of a type."""
    try:
        from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING as known
    except ImportError:
        raise UnavailableError(f'peft = {peft!r} needs the package peft: pip install "distsub[peft]"') from None
    found = {str(getattr(key, "value", key)): value for key, value in known.items()}
    if peft not in found:
        raise UnavailableError(f"peft {metadata.version('peft')} has no {peft}: pip install --upgrade peft")
    return found[peft]


def _inject(base: nn.Module, method: Peft, size: ladder.Options, seed: int) -> Any:
    """Put an adapter of a size on a model, drawn from a seed on the CPU."""
    from peft import get_peft_model
    from peft.tuners.tuners_utils import BaseTunerLayer

    settings = _settings(base, method, size)
    heads = [name.rpartition(".")[0] for name in layout.head_names(base)] if method.head == "in_subspace" else []
    if method.peft == "SHIRA":
        torch.sparse.check_sparse_tensor_invariants.disable()  # as it is by default, which torch warns of
    if name := SEEDS.get(method.peft):
        settings[name] = seed % 2**32
    try:
        with torch.random.fork_rng(devices=[]), quiet():
            torch.manual_seed(seed)
            model = get_peft_model(base, config_class(method.peft)(**settings))  # pyright: ignore[reportArgumentType]
    except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        raise ConfigError(f"peft = {method.peft!r} does not fit {type(base).__name__}: {first_line(error)}") from None
    if any(not isinstance(model.base_model.model.get_submodule(name), BaseTunerLayer) for name in heads):
        hint = 'give the method head = "trained" or "frozen"'
        raise ConfigError(f"peft = {method.peft!r}: its options leave out the head; {hint}")
    return model


def _settings(base: nn.Module, method: Peft, size: ladder.Options) -> dict[str, Any]:
    """Give all options: those of the size, those given, and what is adapted."""
    settings = size | options_of(method)
    heads = layout.head_names(base)
    owners = dict.fromkeys(name.rpartition(".")[0] for name, _ in base.named_parameters() if name in heads)
    if method.head != "in_subspace" and not heads and not layout.generates(base):
        raise ConfigError(f"head = {method.head!r} needs a model with a head; {type(base).__name__} has none")
    fitting = [name for name, module in base.named_modules() if _fits(module, method.peft)]
    if method.head == "in_subspace" and (not {*owners} <= {*fitting} or (heads and method.peft == "LN_TUNING")):
        raise ConfigError(
            f"peft = {method.peft!r} cannot adapt the head of {type(base).__name__}: give the method head = "
            '"trained" (beside it, in full) or "frozen"'
        )
    output = getattr(base, "get_output_embeddings", lambda: None)()  # a tied one is the table of tokens, not a layer
    outside = [name for name in fitting if name not in owners and base.get_submodule(name) is not output]
    asked = settings.get("target_modules", _ALL_LINEAR)
    every = isinstance(asked, str) and asked.lower() == _ALL_LINEAR  # PEFT's word for the same layers
    targets = outside if every else _matching(base, asked)
    if not targets:
        kind = {"LN_TUNING": "norms with weights", **dict.fromkeys(_LINEAR_ONLY, "nn.Linear")}.get(method.peft)
        raise ConfigError(
            f"peft = {method.peft!r} finds no layer of {type(base).__name__} that it can adapt, which are "
            f"{kind or 'nn.Linear and Conv1D'}; leave the method out"
        )
    settings["target_modules"] = list(dict.fromkeys([*targets, *(owners if method.head == "in_subspace" else ())]))
    if method.head == "trained" and owners:
        settings["modules_to_save"] = list(dict.fromkeys(name.partition(".")[0] for name in owners))
    if method.peft == "IA3":
        settings.setdefault("feedforward_modules", [])
    return settings


def _matching(base: nn.Module, given: Any) -> list[str]:
    """Name the modules that target_modules means: ends of names in a list, or a regular expression for all of one."""
    names = [name for name, _ in base.named_modules() if name]
    if isinstance(given, str):
        try:
            found = [name for name in names if re.fullmatch(given, name)]
        except re.error as error:
            raise ConfigError(f"options.target_modules = {given!r} is no regular expression: {error}") from None
        if not found:
            raise ConfigError(f"options.target_modules = {given!r} matches no module of {type(base).__name__}")
        return found
    if not isinstance(given, list) or not all(isinstance(each, str) for each in given):
        raise ConfigError(f"options.target_modules = {given!r}: give a list of names, or a regular expression")
    for each in given:
        if not any(f".{name}".endswith(f".{each}") for name in names):
            ends = sorted({name.rpartition(".")[2] for name in names} - {str(number) for number in range(1000)})
            allowed = nearest(each, ends)
            raise ConfigError(f"options.target_modules: {type(base).__name__} has no module {each!r}; {allowed}")
    return [name for name in names if any(f".{name}".endswith(f".{each}") for each in given)]


def _fits(module: nn.Module, peft: str) -> bool:
    """Tell whether a type adapts a module: a norm, or a linear layer."""
    kind = type(module).__name__
    if peft == "LN_TUNING":
        return "Norm" in kind and any(True for _ in module.parameters(recurse=False))
    return isinstance(module, nn.Linear) or (kind == "Conv1D" and peft not in _LINEAR_ONLY)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Leave out what PEFT sets right itself (fan_in_fan_out), and its use of old names of transformers."""
    with warnings.catch_warnings():
        for kind in (UserWarning, FutureWarning):
            warnings.simplefilter("ignore", kind)
        yield


def _skeleton(base: nn.Module) -> nn.Module:
    """Copy a model without its weights."""
    empty = {id(p): nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=False) for p in base.parameters()}
    return copy.deepcopy(base, empty)  # pyright: ignore[reportArgumentType]


def _adapted(model: Any) -> Iterator[Any]:
    """Give the base model's layers that are adapted, each once."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = {id(m.get_base_layer()): m.get_base_layer() for m in model.modules() if isinstance(m, BaseTunerLayer)}
    yield from layers.values()


def trained(model: Any, head: bool | None = None) -> list[nn.Parameter]:
    """List what is trained: all, or the head's own only, or the adapter only."""
    named = ((name, p) for name, p in model.named_parameters() if p.requires_grad)
    return [p for name, p in named if head is None or (".modules_to_save." in name) == head]


_SMALLEST: dict[str, ladder.Options] = {
    "FOURIERFT": {"n_frequency": 1}, "LORA": {"r": 1}, "RANDLORA": {"r": 1}, "SHIRA": {"r": 1}, "TINYLORA": {"u": 1},
    "UNILORA": {"theta_d_length": 1}, "VBLORA": {"vector_length": 1, "num_vectors": 16}, "VERA": {"r": 1},
}  # fmt: skip
