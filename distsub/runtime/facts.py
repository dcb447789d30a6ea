"""What is known of a model, or of a saved adapter, without training anything."""

from pathlib import Path
from typing import Any

from distsub.errors import UnavailableError
from distsub.records import Dtype, Peft, canonical, label


def model_facts(
    name: str,
    revision: str | None,
    num_labels: int,
    head: str = "in_subspace",
    groups: str | None = "layer",
    embeddings: str = "in_subspace",
    modules: str = "all",
    dtype: Dtype = "float32",
) -> dict[str, Any]:
    """Count a model's parameters, and those, the tensors and SAID's groups that a subspace of it spans.

    Raises:
        UnavailableError: The model is not here.
        ConfigError: A policy, the modules or the groups do not fit it.
    """
    from distsub.models import pretrained
    from distsub.subspace import layout
    from distsub.subspace.modules import kinds

    prepared = pretrained.prepare(name, revision, dtype)
    model = pretrained.build(prepared, num_labels, head_seed=0)
    entries = layout.entries(model, head, embeddings, modules)
    runs = layout.scale_groups(entries, groups)
    policies, heads, kind_of = layout.outside(model, head, embeddings), layout.head_names(model), kinds(model)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    return {
        "model": name,
        "architecture": type(model).__name__,
        "num_params": entries[-1].stop,
        "num_params_model": sum(sizes.values()),
        "num_params_head": sum(sizes[name] for name in heads),
        **{
            f"num_params_{kind}": sum(
                size for name, size in sizes.items() if kind_of[name] == kind and name not in heads
            )
            for kind in ("attention", "mlp")
        },
        "num_trained_head": sum(sizes[name] for name, policy in policies.items() if policy == "trained"),
        "tensors": len(entries),
        "groups": len({group for *_, group in runs}),
        "spanned_layers": len({entry.layer for entry in entries}),
        "blocks": len(set(layout.blocks(model).values())),
        "max_positions": getattr(model.config, "max_position_embeddings", None),
        "weights_sha256": prepared.sha256,
    }


def peft_facts(name: str, revision: str | None, num_labels: int, method: Peft) -> dict[str, Any]:
    """Count what an adapter of PEFT adapts of a model, and what is trained beside it.

    Raises:
        DistsubError: The model is not here, or the method does not fit it.
    """
    from distsub.models import peft_model, pretrained

    model = pretrained.build(pretrained.prepare(name, revision), num_labels, head_seed=0)
    sizes = peft_model.Sizes(model, method)
    counted = {"num_params": sizes.num_params, "num_trained_head": sizes.num_trained_head}
    return counted | {"num_params_model": sum(p.numel() for p in model.parameters())}


def inspect(what: str) -> dict[str, Any]:
    """Describe a model's parameters, or a saved adapter.

    Raises:
        DistsubError: It is neither.
    """
    from distsub.adapters import peft_files
    from distsub.subspace import adapter

    if "://" in what or (Path(what) / "adapter_config.json").is_file():
        from distsub.adapters import loading

        with loading.local(what) as path:
            config = loading.read_config(path)
        key = "method" if isinstance(config, peft_files.Facts) else "subspace"
        record = canonical(config)
        settings = adapter.flat({key: record.pop(key)})
        facts: dict[str, Any] = {"method": label(getattr(config, key)), **settings, **record}
    else:
        num_labels, about = _built_as(what)
        facts = model_facts(what, None, num_labels)
        tensor = model_facts(what, None, num_labels, groups="tensor")
        facts = {"model": what, **about, **facts, "groups_layer": facts["groups"], "groups_tensor": tensor["groups"]}
        for name in ("groups", "num_trained_head", "spanned_layers"):  # of a method
            del facts[name]
    return facts


def _built_as(what: str) -> tuple[int, dict[str, Any]]:
    """Tell as what a model is shown: as a language model where it was saved as one, else with a head of two classes.

    Returns:
        The number of labels to build it with, and what to say of it.
    """
    from distsub.models import pretrained, weight_files

    prepared = pretrained.prepare(what)
    if not pretrained.is_language_model(prepared.path):
        config = weight_files.read_json(prepared.path / "config.json")
        is_classifier = any(name.endswith("ForSequenceClassification") for name in config.get("architectures") or ())
        given = f"classifier of {len(config.get('id2label') or '01')} classes" if is_classifier else "base model"
        return 2, {"kind": f"{given}, here with a new head of 2 classes"}
    try:
        model: Any = pretrained.build(prepared, 0, head_seed=0)
    except UnavailableError:  # one without its output layer serves classes all the same
        return 2, {"kind": "language model without its output layer, here with a new head of 2 classes"}
    output = {id(p): p.numel() for p in model.get_output_embeddings().parameters()}
    shared = {id(p) for p in model.get_input_embeddings().parameters()}
    sides = "encoder-decoder" if model.config.is_encoder_decoder else "decoder"
    return 0, {
        "kind": f"language model, {sides}; for tasks with classes it gets a head",
        "output_layer": "tied to the embedding of tokens" if output.keys() <= shared else "of its own",
        "num_params_output": sum(output.values()),
    }
