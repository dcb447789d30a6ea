"""An adapter in PEFT's format, as PEFT alone loads it onto the base model as anybody has it.

Whatever the base model's checkpoint does not give, such as the head that a seed has drawn, travels whole (PEFT's
`modules_to_save`). An adapter of PEFT stays what it is. The update of a subspace is no matrix of low rank: each layer's
becomes its best approximation of a rank, by singular values (Eckart and Young 1936), and the error is said.
"""

import copy
import os
from typing import Any

import torch
from torch import Tensor, nn

from distsub.adapters import exporting
from distsub.adapters.exporting import Export
from distsub.adapters.loading import Opened
from distsub.addresses import is_hub_id
from distsub.errors import AdapterError, ConfigError
from distsub.models import peft_model, pretrained
from distsub.subspace.model import SubspaceModel

TOLERANCE = 1e-3
"""Most relative error of an adapter of PEFT that is written again: rounding of a merged head is far below."""


def to_peft(opened: Opened, directory: str | os.PathLike[str], rank: int = 8, drop: bool = False) -> Export:
    """Write an adapter that PEFT loads onto the base model, and read it back to say how near it is.

    Args:
        opened: The adapter on its base.
        directory: Where to; it must not be there, or be empty.
        rank: Of each layer's update, where the adapter is of a subspace.
        drop: Leave out updates that PEFT's format cannot hold.

    Raises:
        AdapterError: Part of the update cannot be held, and `drop` is not given; or a method of PEFT cannot do without
            the head's adapter.
        ConfigError: The rank is below 1.
        OutputError: It cannot be written.
        UnavailableError: PEFT is not installed.
    """
    peft_model.config_class("LORA")
    from peft import PeftModel

    if rank < 1:
        raise ConfigError(f"rank = {rank}; allowed: 1 or more")
    inputs, held = exporting.probe(opened)
    theirs, lacking = as_others_have_it(opened)
    if isinstance(opened.model, SubspaceModel):
        weights = exporting.merged(opened).state_dict() if opened.scale else opened.model.merged_state()
        start = _theta_0(opened.model, weights, theirs, lacking)
        model, about = _low_rank(theirs, start, weights, lacking, {*opened.model.head}, rank, drop)
    else:
        start = {name: p.detach().clone() for name, p in theirs.named_parameters()}
        model, weights = _again(opened, theirs, lacking)
        start |= {name: weights[name] for name in start if name.rpartition(".")[0] in lacking}
        about = {"method": model.peft_config["default"].peft_type.value}
    config, base = model.peft_config["default"], opened.base
    assert base is not None, "the base came from an address"
    address = opened.config.base_model or ""
    config.base_model_name_or_path = str(base.source) if address.startswith("package:") else address
    config.revision = opened.config.revision
    with exporting.fresh_folder(directory) as folder:
        with peft_model.quiet():
            model.save_pretrained(folder, save_embedding_layers=False)
            (folder / "README.md").write_text(readme(address, type(model).__name__), encoding="utf-8")
            read, merged = (
                PeftModel.from_pretrained(as_others_have_it(opened)[0], str(folder)).eval() for _ in range(2)
            )
        found = dict(peft_model.merge(merged).named_parameters())
        error = relative_error(found, weights, start)
        if "layers" not in about and error > TOLERANCE:
            raise AdapterError(
                f"{about['method']} cannot be written without the adapter of its head, which PEFT would put on a head "
                'that others do not have; use --to transformers, or train with head = "trained"'
            )
        num_bytes = sum(file.stat().st_size for file in folder.iterdir())
    facts = {
        "directory": os.fspath(directory),
        "load": f"{type(model).__name__}.from_pretrained, onto {config.base_model_name_or_path}",
        **about,
        "whole": [name for name in sorted(set(config.modules_to_save or ())) if _is_there(model, name)],
        "relative_error": error,
        "logits": exporting.compared(exporting.run(read, inputs), held),
        "bytes": num_bytes,
        "adapter_bytes": opened.num_bytes,
    }
    return Export(facts, exporting.read_back(opened, read))


def _is_there(model: Any, name: str) -> bool:
    """Tell whether a module of this name is in the model: PEFT lists every name that a head has somewhere."""
    return any(f".{each}".endswith(f".{name}") for each, _ in model.named_modules())


def readme(address: str, loader: str) -> str:
    """Write what a reader of the export needs: its base, and how to load it.

    Args:
        address: Of the base, as in the adapter.
        loader: The class of PEFT that loads it.
    """
    on_hub, packed = is_hub_id(address), address.startswith("package:")
    shown = address if on_hub or packed else address.rstrip("/").rpartition("/")[2]
    lines = [
        "---",
        "library_name: peft",
        *([f"base_model: {address}"] if on_hub else []),
        "---",
        "",
        f"An adapter for PEFT of `{shown}`, exported by distsub. Load the base model, then the adapter onto it:",
        "",
        "```python",
        "import peft",
        "",
        f'model = peft.{loader}.from_pretrained(base, "THIS FOLDER")',
        "```",
    ]
    if not on_hub:
        where = "in a Python package, where transformers looks for none" if packed else "in a folder"
        lines += [
            "",
            f"The base lies {where}. So adapter_config.json names its folder on the machine that exported, which",
            "`AutoPeftModel` needs; elsewhere, write the folder there.",
        ]
    return "\n".join(lines) + "\n"


def as_others_have_it(opened: Opened) -> tuple[Any, set[str]]:
    """Build the base model with another head than the adapter's, and name the modules that the checkpoint lacks."""
    config, base = opened.config, opened.base
    assert base is not None and config.num_labels is not None, "the base came from an address"
    seeds = [(config.head_seed or 0) + more for more in (1, 2)]
    theirs, other = (pretrained.build(base, config.num_labels, seed, head_from=config.head_from) for seed in seeds)
    others = dict(other.named_parameters())
    lacking = {name.rpartition(".")[0] for name, p in theirs.named_parameters() if not torch.equal(p, others[name])}
    if config.base_dtype in ("float16", "float64"):
        theirs = theirs.to(getattr(torch, config.base_dtype))
    exporting.own_memory(theirs)
    return theirs.eval(), lacking


def _theta_0(held: SubspaceModel, weights: dict[str, Tensor], theirs: Any, lacking: set[str]) -> dict[str, Tensor]:
    """Give the weights before training; a head that was trained in full counts as unmoved, where none is known."""
    with held.hooks.states_of("theta_0"):
        state = held.model.state_dict()
    given = {name: p.detach().clone() for name, p in theirs.named_parameters()}
    start = {}
    for name in given:
        fresh = name.rpartition(".")[0] in lacking
        start[name] = given[name] if not fresh else weights[name] if name in held.head else state[name].detach()
    return start


def relative_error(found: dict[str, Any], wanted: dict[str, Tensor], start: dict[str, Tensor]) -> float:
    """Compute |found - wanted| / |wanted - start| over all weights: the share of the update that is wrong."""
    gap = norm = 0.0
    for name, parameter in found.items():
        there = wanted[name].double()
        gap += float((parameter.detach().double() - there).square().sum())
        norm += float((there - start[name].double()).square().sum())
    return (gap / norm) ** 0.5 if norm else float(gap > 0)


def _task_type(model: Any) -> str:
    if not model.can_generate():
        return "SEQ_CLS"
    return "SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM"


def _again(opened: Opened, theirs: Any, lacking: set[str]) -> tuple[Any, dict[str, Tensor]]:
    """Make an adapter of PEFT again, with the head whole instead of adapted; give it and the merged weights."""
    from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
    from peft.tuners.tuners_utils import BaseTunerLayer

    model: Any = opened.model
    inner = peft_model.plain(model)
    config = copy.deepcopy(model.peft_config["default"])
    adapted = [name for name, module in inner.named_modules() if isinstance(module, BaseTunerLayer)]
    saved = set(config.modules_to_save or ())
    whole = {name for name in lacking if not any(name == each or name.startswith(f"{each}.") for each in saved)}
    config.target_modules = [name for name in adapted if name not in whole]
    config.modules_to_save, config.task_type = sorted(saved | whole) or None, _task_type(inner)
    if not config.target_modules:
        raise AdapterError("nothing but the head is adapted, which travels whole: use --to transformers")
    state = {
        name: tensor.clone()
        for name, tensor in get_peft_model_state_dict(model, save_embedding_layers=False).items()
        if not any(name.startswith(f"base_model.model.{each}.") for each in whole)
    }
    weights = {name: p.detach() for name, p in exporting.merged(opened).named_parameters()}
    for name, each in weights.items():  # of a saved head too: it has the units of the targets in it only now
        key = f"base_model.model.{name}"
        if name.rpartition(".")[0] in whole or (key in state and state[key].shape == each.shape):
            state[key] = each
    with peft_model.quiet():
        made: Any = get_peft_model(theirs, config)
        set_peft_model_state_dict(made, state)
    return made, weights


def _low_rank(
    theirs: Any,
    start: dict[str, Tensor],
    weights: dict[str, Tensor],
    lacking: set[str],
    beside: set[str],
    rank: int,
    drop: bool,
) -> tuple[Any, dict[str, Any]]:
    """Make a LoRA of the update of a subspace; give it and what is said of it."""
    from peft import LoraConfig, get_peft_model

    sizes = {
        name: size
        for name, _ in theirs.named_parameters()
        if (size := float((weights[name].double() - start[name].double()).square().sum()))
    }
    layers, whole, lost = _held_by(theirs, sizes, lacking, beside)
    total = sum(sizes.values())
    share = sum(sizes[name] for name in lost) / total if total else 0.0
    if lost and not drop:
        named = ", ".join(sorted(lost, key=lambda name: -sizes[name])[:3]) + (", ..." if len(lost) > 3 else "")
        raise AdapterError(
            f"PEFT's format cannot hold {share:.2%} of the update (of its squared norm), which lies in {named}: use "
            "--to transformers, which holds all of it, or --drop to leave it out"
        )
    if not layers:
        raise AdapterError("no linear layer or embedding moved, so there is nothing that a LoRA could hold")
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        lora_dropout=0.0,
        target_modules=layers,
        modules_to_save=sorted(whole) or None,
        bias="lora_only",
        task_type=_task_type(theirs),  # pyright: ignore[reportArgumentType]
    )
    with peft_model.quiet():
        made: Any = get_peft_model(theirs, config)
    with torch.no_grad():
        for name in layers:
            _put_layer(made.base_model.model.get_submodule(name), name, start, weights, rank)
        for name in whole:
            saved = made.base_model.model.get_submodule(name).modules_to_save["default"]
            for key, parameter in saved.named_parameters():
                parameter.copy_(weights[f"{name}.{key}"])
    about = {"method": f"LoRA of rank {rank}", "layers": len(layers)}
    return made, about | ({"share_of_update_lost": share} if lost else {})


def _held_by(
    theirs: Any, sizes: dict[str, float], lacking: set[str], beside: set[str]
) -> tuple[list[str], set[str], set[str]]:
    """Say which layers get a LoRA, which modules travel whole, and which parameters PEFT's format cannot hold."""
    from transformers.pytorch_utils import Conv1D

    places: dict[int, int] = {}
    for _, parameter in theirs.named_parameters(remove_duplicate=False):
        places[id(parameter)] = places.get(id(parameter), 0) + 1
    layers: dict[str, None] = {}
    whole, lost = set(lacking), set[str]()
    for name in sizes:
        owner, _, kind = name.rpartition(".")
        if owner in lacking:
            continue
        module = theirs.get_submodule(owner)
        own = dict(module.named_parameters())
        if any(places[id(parameter)] > 1 for parameter in own.values()):  # PEFT adapts one use of a tied weight
            lost.add(name)
        elif name in beside:
            whole.add(owner)
        elif kind in ("weight", "bias") and type(module) in (nn.Linear, Conv1D, nn.Embedding):
            layers[owner] = None
        elif all(parameter.dim() == 1 for parameter in own.values()) and not [*module.children()]:
            whole.add(owner)  # a norm
        else:
            lost.add(name)
    return [name for name in layers if name not in whole], whole, lost


def _put_layer(layer: Any, name: str, start: dict[str, Tensor], weights: dict[str, Tensor], rank: int) -> None:
    """Put the best approximation of a rank of a layer's update into its LoRA, and its bias as it is."""
    update = weights[f"{name}.weight"].float() - start[f"{name}.weight"].float()
    is_table = isinstance(layer.get_base_layer(), nn.Embedding)
    if is_table or layer.fan_in_fan_out:
        update = update.T
    left, values, right = torch.linalg.svd(update, full_matrices=False)
    kept = min(rank, len(values))
    root = values[:kept].sqrt()
    second, first = left.new_zeros(len(left), rank), right.new_zeros(rank, right.shape[1])
    second[:, :kept], first[:kept] = left[:, :kept] * root, root[:, None] * right[:kept]
    if is_table:
        layer.lora_embedding_A["default"].copy_(first)
        layer.lora_embedding_B["default"].copy_(second)
        return
    layer.lora_A["default"].weight.copy_(first)
    layer.lora_B["default"].weight.copy_(second)
    if f"{name}.bias" in weights:
        layer.get_base_layer().bias.copy_(weights[f"{name}.bias"])
