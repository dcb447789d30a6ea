"""Which of a model's parameters a subspace spans: all, those of attention, of the feed-forward modules, or a pattern's.

Attention and feed-forward modules ("mlp") are told by the names that transformers gives them, so one rule serves every
architecture: the outermost module around a parameter whose name says which it is decides. All that lies inside counts:
query, key, value and output matrices, biases, and norms (BERT's `attention.output.LayerNorm`, Qwen3's `q_norm`). A norm
beside them in the block (Llama's `input_layernorm`, DistilBERT's `sa_layer_norm`) belongs to neither.
"""

import re
from collections.abc import Collection, Mapping

from torch import nn

from distsub.errors import ConfigError
from distsub.records import modules_pattern

_NORM = re.compile(r"norm|(^|_)ln(_|\d|$)")
_KINDS = {
    "attention": re.compile(r"attn|attention|(^|_)att(_|$)"),
    "mlp": re.compile(r"mlp|ffn|feed_?forward|(^|_)ff(_|$)|^(fc|lin)_?\d$|moe|experts?$|^intermediate$|dense\w*dense"),
}
_SHOWN = 8
"""How many names a refusal lists."""


def kinds(model: nn.Module) -> dict[str, str | None]:
    """Tell for each parameter, by the first of its names, whether it lies in "attention", in an "mlp" or in neither."""
    modules = {name for name, _ in model.named_modules()}
    return {
        names[0]: next((kind for name in names if (kind := _kind(name, modules))), None)
        for names in _names(model).values()
    }


def chosen(model: nn.Module, modules: str, spanned: Collection[str], heads: Collection[str]) -> set[str]:
    """Choose among the parameters that the policies of head and embeddings leave to the subspace.

    The head follows its own policy alone: where that is "in_subspace", it is spanned whatever the modules are.

    Args:
        model: The model.
        modules: "all", "attention", "mlp", or "regex:" and a pattern that is searched for in the parameters' names.
        spanned: Names of the parameters to choose from.
        heads: Names of the head's parameters.

    Raises:
        ConfigError: The choice is none of these, or matches nothing.
    """
    try:
        pattern = modules_pattern(modules)
    except ValueError as error:
        raise ConfigError(f"modules: {error}") from None
    if modules == "all":
        return set(spanned)
    if pattern is not None:
        found = {names[0] for names in _names(model).values() if any(map(pattern.search, names))} & set(spanned)
    else:
        found = {name for name, kind in kinds(model).items() if kind == modules and name in spanned} - set(heads)
    if not found:
        raise ConfigError(
            f"modules = {modules!r} matches none of the parameters of {type(model).__name__} that the policies of head "
            f"and embeddings leave to the subspace; {_offer(model, spanned, heads, pattern is not None)}"
        )
    return found | (set(spanned) & set(heads))


def _kind(parameter: str, modules: Collection[str]) -> str | None:
    parts = parameter.split(".")[:-1]
    for depth, part in enumerate(parts):
        name = part.lower()
        if _NORM.search(name):
            continue
        for kind, pattern in _KINDS.items():
            if pattern.search(name):
                return kind
        if name == "output" and ".".join([*parts[:depth], "intermediate"]) in modules:  # BERT's second matrix
            return "mlp"
    return None


def _names(model: nn.Module) -> Mapping[int, list[str]]:
    """List the names of each parameter, of which tied ones have several."""
    found: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        found.setdefault(id(parameter), []).append(name)
    return found


def _offer(model: nn.Module, spanned: Collection[str], heads: Collection[str], by_name: bool) -> str:
    """Say what the model has that can be chosen."""
    here = [name for name in spanned if by_name or name not in heads]
    held = dict.fromkeys(kind for name, kind in kinds(model).items() if kind and name in here)
    held_text = f"it has {' and '.join(map(repr, held))}" if held else "it has neither 'attention' nor 'mlp' there"
    alike = list(dict.fromkeys(re.sub(r"(?<=\.)\d+(?=\.)", "N", name) for name in here))
    more = f" and {len(alike) - _SHOWN} more" if len(alike) > _SHOWN else ""
    listed = ", ".join(alike[:_SHOWN]) + more if alike else "none"
    return f"{held_text}; names for 'regex:...' (N is a layer's number): {listed}"
