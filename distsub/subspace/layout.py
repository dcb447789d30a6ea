"""Where every parameter of a transformers model lies among the D positions, and which module uses it when.

A *unit* is the part of a model whose weights W_0 + P theta exist together: a transformer block, an embedding
table (whose rows are made as the batch needs them), or a single module outside the blocks.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

from torch import Tensor, nn

from distsub.errors import ConfigError, DimensionError

HEADS = ("in_subspace", "trained", "frozen")
GROUPS = ("layer", "tensor")


@dataclass(frozen=True)
class Entry:
    """One parameter: its first name, itself, its place among the D positions and its SAID group of each kind."""

    name: str
    frozen: Tensor
    start: int
    stop: int
    layer: str


@dataclass(frozen=True)
class Unit:
    """Weights that exist together.

    Attributes:
        module: The module whose forward pass needs them.
        uses: (owner module, attribute name, entry) for every place a parameter is read from.
        runs: Contiguous (start, stop) stretches of positions that the unit's entries cover, in order.
        rows: Whether the module is an embedding table outside the blocks: its rows are made as they are looked up.
        block: Whether the module is a transformer block.
    """

    module: nn.Module
    uses: tuple[tuple[nn.Module, str, Entry], ...]
    runs: tuple[tuple[int, int], ...]
    rows: bool = False
    block: bool = False


def blocks(model: nn.Module) -> dict[str, nn.Module]:
    """Find the transformer blocks by name: members of the outermost ModuleLists of like modules."""
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or any(name.startswith(f"{prefix}.") for prefix in found):
            continue
        kinds = {type(child) for child in module}
        # A list of lists is a way to stage blocks (Funnel): its members' members are the blocks.
        if len(kinds) == 1 and kinds != {nn.ModuleList}:
            found.update(
                {f"{name}.{i}": child for i, child in enumerate(module) if any(True for _ in child.parameters())}
            )
    return found


def head_names(model: nn.Module) -> set[str]:
    """Name the head's parameters: those outside the pretrained base model."""
    prefix = getattr(model, "base_model_prefix", "")
    if not prefix or not hasattr(model, prefix):
        return set()
    base = {id(p) for p in getattr(model, prefix).parameters()}
    return {name for name, p in model.named_parameters() if id(p) not in base}


def _layer_of(name: str, block_names: list[str], head: set[str]) -> str:
    """Group a parameter as Aghajanyan et al. count layers: embeddings, each block, and what follows the blocks."""
    for block in block_names:
        if name.startswith(f"{block}."):
            return block
    return "output" if name in head or "pooler" in name else "embeddings"


def outside(model: nn.Module, head: str = "in_subspace", embeddings: str = "in_subspace") -> dict[str, str]:
    """Name the parameters that the subspace does not span, each with its policy, "trained" or "frozen".

    Args:
        model: The model.
        head: Policy of the head's parameters (see `head_names`).
        embeddings: Policy of the base model's parameters outside its blocks: embeddings, pooler.

    Raises:
        ConfigError: A policy is unknown, or the model has no such parameters for it to keep apart.
    """
    for key, policy in (("head", head), ("embeddings", embeddings)):
        if policy not in HEADS:
            raise ConfigError(f"{key} = {policy!r} is unknown; use one of {', '.join(HEADS)}")
    heads, inside = head_names(model), tuple(f"{name}." for name in blocks(model))
    if head != "in_subspace" and not heads:
        raise ConfigError(
            f"head = {head!r} needs a model with a head outside its base model; {type(model).__name__} has none"
        )
    if embeddings != "in_subspace" and not inside:
        raise ConfigError(f"embeddings = {embeddings!r} needs a model with blocks; {type(model).__name__} has none")
    found = {}
    for name, _ in model.named_parameters():
        policy = head if name in heads else "in_subspace" if name.startswith(inside) and inside else embeddings
        if policy != "in_subspace":
            found[name] = policy
    return found


def entries(model: nn.Module, head: str = "in_subspace", embeddings: str = "in_subspace") -> list[Entry]:
    """Lay out the parameters that the subspace spans, tied ones once, in the model's own order.

    Raises:
        ConfigError: A policy does not fit (see `outside`).
    """
    apart, heads = outside(model, head, embeddings), head_names(model)
    names, position, out = list(blocks(model)), 0, []
    for name, parameter in model.named_parameters():
        if name in apart:
            continue
        size = parameter.numel()
        out.append(Entry(name, parameter, position, position + size, _layer_of(name, names, heads)))
        position += size
    return out


def layers(layout: list[Entry]) -> list[list[Entry]]:
    """Cut entries into the transformer blocks, for one subspace each.

    Raises:
        ConfigError: Some entry lies in no block.
    """
    found = [list(group) for _, group in groupby(layout, key=lambda entry: entry.layer)]
    rest = next((entry.name for entry in layout if entry.layer in ("embeddings", "output")), None)
    if rest is not None:
        raise ConfigError(
            f'scope = "layer" spans the transformer blocks only, {rest} lies in none: give head and embeddings each '
            '"trained" or "frozen"'
        )
    return found


def scale_groups(layout: list[Entry], groups: str | None) -> list[tuple[int, int, int]]:
    """Cut the D positions into SAID groups.

    Args:
        layout: The entries.
        groups: "layer", "tensor", or None for no scales (one group).

    Returns:
        (start, stop, group number) runs in order; a group may have several runs.
    """
    if groups is None:
        return [(0, layout[-1].stop, 0)]
    if groups not in GROUPS:
        raise ConfigError(f"groups = {groups!r} is unknown; use one of {', '.join(GROUPS)}")
    numbers: dict[str, int] = {}
    runs: list[tuple[int, int, int]] = []
    for entry in layout:
        number = numbers.setdefault(entry.layer if groups == "layer" else entry.name, len(numbers))
        if runs and runs[-1][2] == number:
            runs[-1] = (runs[-1][0], entry.stop, number)
        else:
            runs.append((entry.start, entry.stop, number))
    return runs


def units(model: nn.Module, layout: list[Entry]) -> Iterator[Unit]:
    """Cut the model into units; together their uses cover every place that reads a laid-out parameter."""
    by_name = {entry.name: entry for entry in layout}
    by_id = {id(p): by_name[name] for name, p in model.named_parameters() if name in by_name}
    block_names = blocks(model)
    for name, module in model.named_modules():
        if any(name.startswith(f"{block}.") for block in block_names):
            continue
        readers = module.modules() if name in block_names else [module]
        uses = tuple(
            (owner, key, by_id[id(p)])
            for owner in readers
            for key, p in owner._parameters.items()
            if p is not None and id(p) in by_id
        )
        if uses:
            block = name in block_names
            rows = isinstance(module, nn.Embedding) and not block
            yield Unit(module, uses, _runs([entry for _, _, entry in uses]), rows, block)


def _runs(used: list[Entry]) -> tuple[tuple[int, int], ...]:
    """Merge entries, each once, into contiguous stretches."""
    runs: list[tuple[int, int]] = []
    for start, stop in sorted({(entry.start, entry.stop) for entry in used}):
        if runs and runs[-1][1] == start:
            runs[-1] = (runs[-1][0], stop)
        else:
            runs.append((start, stop))
    return tuple(runs)


def check_dimension(d: int, entries: list[Entry], groups: list[tuple[int, int, int]], method: str) -> int:
    """Check that d fits the model and the method, and give the number of scales.

    Raises:
        DimensionError: d <= m, or d > D.
    """
    num_scales = len({group for _, _, group in groups}) if method == "said" else 0
    num_params = entries[-1].stop
    if d <= num_scales:
        raise DimensionError(
            f"d = {d} leaves no coordinate: SAID pays for its {num_scales} scales out of d; "
            f"take d > {num_scales}, groups = 'layer', or method 'did'"
        )
    if d - num_scales > num_params:
        raise DimensionError(f"d = {d} exceeds the D = {num_params} parameters that the subspace spans; lower d")
    return num_scales


def offsets(runs: tuple[tuple[int, int], ...], used: list[Entry]) -> Iterator[tuple[Entry, int]]:
    """Give each use's place in a buffer that holds the runs end to end."""
    starts, total = [], 0
    for start, stop in runs:
        starts.append((start, stop, total))
        total += stop - start
    for entry in used:
        yield entry, next(offset + entry.start - start for start, stop, offset in starts if start <= entry.start < stop)


def free(model: nn.Module, names: set[str]) -> dict[str, nn.Parameter]:
    """Replace parameters by trainable copies, tied ones wherever they are used."""
    found = {id(p): (name, nn.Parameter(p.detach().clone())) for name, p in model.named_parameters() if name in names}
    for owner in model.modules():
        for key, parameter in owner._parameters.items():
            if id(parameter) in found:
                owner._parameters[key] = found[id(parameter)][1]
    return dict(found.values())
