"""Where every parameter of a transformers model lies among the D positions, and which module uses it when.

A *unit* is the part of a model whose weights W_0 + P theta exist together: a transformer block, an embedding
table (whose rows are made as the batch needs them), or a single module outside the blocks.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, groupby

from torch import Tensor, nn

from distsub.errors import ConfigError, DimensionError
from distsub.subspace import modules as choice

HEADS = ("in_subspace", "trained", "frozen")


@dataclass(frozen=True)
class Entry:
    """One parameter tensor.

    Attributes:
        name: The first of its names.
        frozen: The parameter itself, at theta_0.
        start: Its first place among the D positions.
        stop: The place after its last.
        layer: "embeddings", the layer's name, or "output" for what follows the layers.
        part: "body", "head", or "table" for what belongs to the embeddings' look-ups.
    """

    name: str
    frozen: Tensor
    start: int
    stop: int
    layer: str
    part: str = "body"


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


def blocks(model: nn.Module) -> dict[str, str]:
    """Find the modules that make up the transformer layers.

    They are the members of the outermost ModuleLists, like or unlike (Jamba, Zamba). A list of lists is a way to stage
    layers (Funnel); lists of bare tables or projections are none; and where one layer's parts lie in several lists of
    the same length, of which one holds bare norms (XLM), they are one layer.

    Returns:
        For each module's name the name of its layer, which is that of its first part.
    """
    stacks: dict[tuple[str, int], dict[str, nn.ModuleList]] = {}
    for name, module in model.named_modules():
        outer = (other for lists in stacks.values() for other in lists)
        if not isinstance(module, nn.ModuleList) or any(name.startswith(f"{other}.") for other in outer):
            continue
        if not all(isinstance(child, nn.ModuleList) for child in module):
            stacks.setdefault((name.rpartition(".")[0], len(module)), {})[name] = module
    found: dict[str, str] = {}
    for lists in stacks.values():
        bare = {name for name, stack in lists.items() if not any(True for child in stack for _ in child.children())}
        split = any("norm" in type(child).__name__.lower() for name in bare for child in lists[name])
        if len(bare) == len(lists) or not split:
            lists = {name: stack for name, stack in lists.items() if name not in bare}
        for name, stack in lists.items():
            first = next(iter(lists)) if split else name
            held = (i for i, child in enumerate(stack) if any(True for _ in child.parameters()))
            found.update({f"{name}.{i}": f"{first}.{i}" for i in held})
    return found


def generates(model: nn.Module) -> bool:
    """Tell whether this is a language model that generates, to which policies of a head mean nothing."""
    return bool(getattr(model, "can_generate", bool)())


def head_names(model: nn.Module) -> set[str]:
    """Name the head's parameters: those outside the pretrained base model.

    A language model that generates has none: its output layer is pretrained as the rest is.
    """
    if generates(model):
        return set()
    prefix = getattr(model, "base_model_prefix", "")
    if not prefix or not hasattr(model, prefix):
        return set()
    base = {id(p) for p in getattr(model, prefix).parameters()}
    return {name for name, p in model.named_parameters() if id(p) not in base}


def _places(model: nn.Module) -> dict[str, tuple[str, str]]:
    """Tell each parameter's layer, and whether it lies in the "body", the "head" or an embedding "table".

    Layers are counted as Aghajanyan et al. do: embeddings, each block, and what follows the blocks. What follows is the
    head, and what is registered behind the blocks of the smallest module around it that has any: final norms, poolers;
    and a norm or pooler beside the blocks, wherever it is registered (OPT, T5Gemma), unless it is named for embeddings.
    """
    inside, heads = blocks(model), head_names(model)
    tables = {id(p) for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
    around = {"", *(module for block in inside for module in _ancestors(block))}
    found: dict[str, tuple[str, str]] = {}
    passed: set[str] = set()  # modules of which a block has gone by
    for name, parameter in model.named_parameters():
        parents = ["", *_ancestors(name)]
        block = next((parent for parent in parents if parent in inside), None)
        table = block is None and (id(parameter) in tables or "embed" in name)
        if block is not None:
            layer = inside[block]
            passed.update(("", *_ancestors(block)))
        else:
            closest = next(parent for parent in reversed(parents) if parent in around)
            beside = parents[-1] != closest and _runs_behind(parents[parents.index(closest) + 1])
            layer = "output" if name in heads or ((beside or closest in passed) and not table) else "embeddings"
        found[name] = (layer, "head" if name in heads else "table" if table else "body")
    return found


def _runs_behind(module: str) -> bool:
    name = module.rpartition(".")[2].lower()
    return ("norm" in name or "pool" in name) and "emb" not in name and "pre" not in name


def _ancestors(name: str) -> list[str]:
    """Name the modules around a module or parameter, the outermost first, without the model itself."""
    return list(accumulate(name.split("."), lambda module, child: f"{module}.{child}"))[:-1]


def outside(
    model: nn.Module, head: str = "in_subspace", embeddings: str = "in_subspace", modules: str = "all"
) -> dict[str, str]:
    """Name the parameters that the subspace does not span, each with its policy, "trained" or "frozen".

    Args:
        model: The model.
        head: Policy of the head's parameters (see `head_names`).
        embeddings: Policy of the base model's parameters outside its blocks: embeddings, pooler.
        modules: Which of those that the policies leave to the subspace it spans (see `modules.chosen`).

    Raises:
        ConfigError: A policy is unknown, or the model has no head, or no layers, for it to keep apart; or the modules
            are none of the model's.
    """
    for key, policy in (("head", head), ("embeddings", embeddings)):
        if policy not in HEADS:
            raise ConfigError(f"{key} = {policy!r} is unknown; use one of {', '.join(HEADS)}")
    places, sizes = _places(model), {name: parameter.numel() for name, parameter in model.named_parameters()}
    if head != "in_subspace" and not generates(model) and not any(part == "head" for _, part in places.values()):
        raise ConfigError(
            f"head = {head!r} needs a model with a head outside its base model; {type(model).__name__} has none"
        )
    if embeddings != "in_subspace":
        _check_layers(f"embeddings = {embeddings!r}", [(*place, sizes[name]) for name, place in places.items()])
    found = {}
    for name, (layer, part) in places.items():
        block = layer not in ("embeddings", "output")
        policy = head if part == "head" else "in_subspace" if block else embeddings
        if policy != "in_subspace":
            found[name] = policy
    heads = {name for name, (_, part) in places.items() if part == "head"}
    spanned = choice.chosen(model, modules, [name for name in places if name not in found], heads)
    return found | {name: "frozen" for name in places if name not in found and name not in spanned}


def entries(
    model: nn.Module, head: str = "in_subspace", embeddings: str = "in_subspace", modules: str = "all"
) -> list[Entry]:
    """Lay out the parameters that the subspace spans, tied ones once: embeddings, layer by layer, what follows.

    Raises:
        ConfigError: A policy, or the choice of modules, does not fit (see `outside`).
    """
    apart, places = outside(model, head, embeddings, modules), _places(model)
    order = {"embeddings": -1, "output": len(places)}
    for layer, _ in places.values():
        order.setdefault(layer, len(order))
    inside = [(name, parameter) for name, parameter in model.named_parameters() if name not in apart]
    position, out = 0, []
    for name, parameter in sorted(inside, key=lambda item: order[places[item[0]][0]]):
        size = parameter.numel()
        out.append(Entry(name, parameter, position, position + size, *places[name]))
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


def scale_groups(layout: list[Entry], scales: str | None) -> list[tuple[int, int, int]]:
    """Cut the D positions into the groups that SAID's scales cover.

    Args:
        layout: The entries.
        scales: What one covers, "layer" or "tensor"; None for no scales (one group).

    Returns:
        (start, stop, group number) runs in order.

    Raises:
        ConfigError: Too few layers were found.
    """
    if scales is None:
        return [(0, layout[-1].stop, 0)]
    if scales == "layer":
        _check_layers("scales = 'layer'", [(entry.layer, entry.part, entry.stop - entry.start) for entry in layout])
    numbers: dict[str, int] = {}
    runs: list[tuple[int, int, int]] = []
    for entry in layout:
        number = numbers.setdefault(entry.layer if scales == "layer" else entry.name, len(numbers))
        if runs and runs[-1][2] == number:
            runs[-1] = (runs[-1][0], entry.stop, number)
        else:
            runs.append((entry.start, entry.stop, number))
    return runs


def _check_layers(asked: str, places: list[tuple[str, str, int]]) -> None:
    """Refuse to tell layers apart where most of the model lies in none that was found.

    Args:
        asked: The option that needs layers.
        places: Layer, part and size of each parameter.

    Raises:
        ConfigError: Less than half of the body's parameters lie in the layers found.
    """
    body = [(layer, size) for layer, part, size in places if part == "body"]
    held = {layer: size for layer, size in body if layer not in ("embeddings", "output")}
    inside, whole = sum(size for layer, size in body if layer in held), sum(size for _, size in body)
    if not held or 2 * inside < whole:
        raise ConfigError(
            f"{asked} needs a model with blocks that can be told apart; the {len(held)} found here hold "
            f"{inside / max(whole, 1):.0%} of the {whole} parameters outside embedding tables and head: span the whole "
            "model, without scales (method 'did') or with one for each tensor (groups = 'tensor' in a sweep file)"
        )


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


def check_dimension(d: int, layout: list[Entry], scales: str | None) -> int:
    """Check that d fits the model and the scales, and give the number of scales.

    Raises:
        DimensionError: d does not exceed the number of scales, or the coordinates exceed D.
        ConfigError: Too few layers were found.
    """
    num_scales = len({group for _, _, group in scale_groups(layout, scales)}) if scales else 0
    num_params = layout[-1].stop
    if num_scales and d <= num_scales:
        raise DimensionError(
            f"d = {d} leaves no coordinate: SAID pays for its {num_scales} scales out of d; "
            f"take d > {num_scales}, one scale a layer (groups = 'layer' in a sweep file), or no scales (method 'did')"
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
