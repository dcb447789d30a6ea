"""Where every parameter of a transformers model lies among the D positions, and which module uses it when.

A *unit* is the part of a model whose weights W_0 + P theta exist together: a transformer block, an embedding
table (whose rows are made as the batch needs them), or a single module outside the blocks.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from distsub.errors import ConfigError

HEADS = ("in_subspace", "trained", "frozen")
GROUPS = ("layer", "tensor")


@dataclass(frozen=True)
class Entry:
    """One parameter tensor: its first name, its place among the D positions and its SAID group of each kind."""

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


def entries(model: nn.Module, head: str = "in_subspace") -> list[Entry]:
    """Lay out the parameters that the subspace spans, tied ones once, in the model's own order.

    Raises:
        ConfigError: The head policy is unknown, or the model has no head for it to keep apart.
    """
    if head not in HEADS:
        raise ConfigError(f"head = {head!r} is unknown; use one of {', '.join(HEADS)}")
    apart = head_names(model)
    if head != "in_subspace" and not apart:
        raise ConfigError(
            f"head = {head!r} needs a model with a head outside its base model; {type(model).__name__} has none"
        )
    names, position, out = list(blocks(model)), 0, []
    for name, parameter in model.named_parameters():
        if head != "in_subspace" and name in apart:
            continue
        size = parameter.numel()
        out.append(Entry(name, parameter.detach(), position, position + size, _layer_of(name, names, apart)))
        position += size
    return out


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
