"""What is known of a model, or of a saved adapter, without training anything."""

import os
from pathlib import Path
from typing import Any

from distsub.errors import OutputError, UnavailableError
from distsub.files import parse_json
from distsub.paths import ADAPTERS, FIT, FITTED
from distsub.records import Dtype, Observation, Peft, canonical, label


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


def inspect(what: str, brief: bool = False) -> dict[str, Any]:
    """Describe a model's parameters, or a saved adapter; of that only what people ask where it is to be brief.

    Raises:
        DistsubError: It is neither.
    """
    if "://" in what or (Path(what) / "adapter_config.json").is_file():
        return _adapter(what, brief)
    num_labels, about = _built_as(what)
    facts = model_facts(what, None, num_labels)
    tensor = model_facts(what, None, num_labels, groups="tensor")
    facts = {"model": what, **about, **facts, "groups_layer": facts["groups"], "groups_tensor": tensor["groups"]}
    for name in ("groups", "num_trained_head", "spanned_layers"):  # of a method
        del facts[name]
    return facts


def _adapter(what: str, brief: bool) -> dict[str, Any]:
    """Say what an adapter is of and what it scored, as far as it or the results that it lies in know."""
    from distsub.adapters import loading, peft_files
    from distsub.results import method_columns
    from distsub.subspace import adapter

    with loading.local(what) as path:
        config = loading.read_config(path)
        size = sum(file.stat().st_size for file in path.iterdir() if file.name != FIT and file.is_file())
        fit = parse_json((path / FIT).read_bytes()) if (path / FIT).is_file() else {}
    key = "method" if isinstance(config, peft_files.Facts) else "subspace"
    method, trained_on, row = getattr(config, key), config.trained_on, _row(what)
    trained = getattr(config, "num_trained", row and row.num_trained)
    beside = getattr(config, "num_trained_head", row and row.num_trained_head)
    facts = {
        "base": f"{config.base_model or 'given by its owner'}{f'@{config.revision}' if config.revision else ''}",
        "task": config.task,
        "reads": list(trained_on.text) if trained_on else None,
        "labels": list(trained_on.labels if trained_on and trained_on.labels else (config.id2label or {}).values()),
        "method": label(method),
        "projection": method_columns(method)["projection"],
        "d": config.d,
        "num_trained": trained,
        "num_trained_head": beside,
        "bytes": size,
        "metric": trained_on and trained_on.metric,
        "score": row.score if row else fit.get("evaluation_score"),
        "num_examples": row and row.num_examples,
        "seeds": row.trial.seeds.text if row else fit.get("seed"),
        "unseen_score": fit.get("unseen_score"),
        "distsub": config.versions.get("distsub"),
    }
    if not config.num_labels or config.num_labels < 2:
        facts["labels"] = None
    if brief:
        return {name: value for name, value in facts.items() if value not in (None, [])}
    record = canonical(config)
    return facts | adapter.flat({key: record.pop(key)}) | record | {"method": label(method)}


def _row(what: str) -> Observation | None:
    """Find an adapter's row in the results that it lies in as adapters/ID or fitted/ID."""
    from distsub.results import Store

    path, mark, options = what.partition("?") if "://" in what else (os.path.abspath(what), "", "")
    out, folder, trial_id = ["", "", *path.rstrip("/").rsplit("/", 2)][-3:]
    if folder not in (ADAPTERS, FITTED):
        return None
    try:
        rows = Store.open(f"{out}{mark}{options}").read(answers=False)
    except OutputError:  # copied out of them
        return None
    return next((row for row in rows if row.trial.id == trial_id), None)


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
