"""What a sweep asks for, tried before anything is spent."""

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from distsub.config.sweep import Sweep
from distsub.errors import ConfigError, DimensionError, TrajectoryError
from distsub.records import Freeze, Full, Learned, Method, Model, Peft, Random, Subspace, Task, Theta0, Trial, label
from distsub.records.places import Counts, ModelPlace, Places
from distsub.search import Search


def check(sweep: Sweep, say: Callable[[str], None] | None = None, kept: Mapping[str, Path] | None = None) -> Sweep:
    """Make sure, before anything is spent, that every model and task is there, every d fits and one step trains.

    Args:
        sweep: What to check.
        say: Prints, in a line each, what a reader should know of the rows: classes, repeated texts, joined pairs.
        kept: Copies of imported trajectories that are gone, by the path at which each was.

    Returns:
        The sweep with the contents of its models and tasks, by which its trials are told from others.

    Raises:
        DistsubError: What cannot work, and how to fix it.
    """
    import torch

    from distsub.data import dataset, notes
    from distsub.finetune import precision, trajectory
    from distsub.models import pretrained
    from distsub.preflight import rehearsal, rehearsal_of_completions

    if all(isinstance(method, Freeze) for method in sweep.methods):
        raise ConfigError('methods has controls only, and no d to search for: add a subspace, such as "did"')
    _check_device(sweep)
    _check_places(sweep)
    device = "cuda" if sweep.resources.gpus_per_trial and torch.cuda.is_available() else "cpu"
    read = [dataset.load(task, sweep.budget) for task in sweep.tasks]
    models = []
    for each in sweep.models:
        found = pretrained.prepare(each.name, each.revision, each.dtype)
        precision.autocast_for(sweep.budget.precision, device, found.dtype)
        models.append(ModelPlace(each.name, each.revision, found.content, found.dtype))
    tasks = (replace(each.task, content=each.dataset_hash) for each in read)
    kept = kept or {}
    imported = {each.path: trajectory.elsewhere(each.path, kept.get(each.path)) for each in sweep.imported}
    if say is not None:
        for path in kept:
            say(f"note: trajectory {path} is not there; the results hold a copy of it, which is used")
    known = tuple(each for _, each in imported.values())
    sweep = sweep.known(Places(tuple(models), tuple(tasks), known))
    sweep = replace(sweep, counts=_counts(sweep, say))
    for task, splits in zip(sweep.tasks, read, strict=True):
        num_labels = splits.task.num_labels or 0
        if say is not None:
            for line in notes.notes(splits):
                say(f"note: {line}")
        for address in sweep.models:
            prepared = pretrained.prepare(address.name, address.revision, address.dtype)
            model = pretrained.build(prepared, num_labels, head_seed=0)
            for method, (dims, _) in sweep.arms():
                _check_dims(dims, model, method)
                if isinstance(method, Subspace) and method.span is not None:
                    for each in method.span.imported:
                        trajectory.check_weights(found := imported[each.path][0], prepared.sha256)
                        _check_layout(found, model, method)
            del model
            rehearse = (rehearsal_of_completions if task.is_completion else rehearsal).rehearse
            if trials := _one_of_each(sweep, task, address):
                rehearse(trials, splits, device, say)
    done = set()
    for search in sweep.searches():
        if search.span is not None and (kind := (search.task, search.method)) not in done:
            done.add(kind)
            _check_span(search, {path: len(found.steps) for path, (found, _) in imported.items()})
    return sweep


def _counts(sweep: Sweep, say: Callable[[str], None] | None) -> tuple[Counts, ...]:
    """Count what the methods of PEFT offer: exact numbers, those nearest to the grid.

    A method that fits some of the models is left out for the others: none is counted there, and a line says it.
    """
    arms = [(method, dims) for method, (dims, _) in sweep.arms() if isinstance(method, Peft)]
    found: dict[Counts, None] = {}
    refused: dict[tuple[Method, Model], ConfigError] = {}
    for address in sweep.models if arms else ():
        from distsub.models import peft_model, pretrained

        for num_labels in dict.fromkeys(task.num_labels or 0 for task in sweep.tasks):
            prepared = pretrained.prepare(address.name, address.revision, address.dtype)
            model = pretrained.build(prepared, num_labels, head_seed=0)
            for method, dims in arms:
                try:
                    counts, line = peft_model.dims(model, method, dims)
                except ConfigError as error:
                    refused.setdefault((method, address), error)
                    counts, line = (), ""
                found[Counts(address.content or "", num_labels, method, dims, counts)] = None
                if line and say is not None:
                    say(f"note: {address.short_name}: {line}")
    for (method, address), error in refused.items():
        fits = {each.model for each in found if each.method == method and each.dims}
        if not fits or address.content in fits:
            raise ConfigError(f"{address.short_name}: {error}")
        if say is not None:
            why = str(error).removesuffix("; leave the method out")
            say(f"note: {address.short_name}: without {label(method)}, whose searches are left out: {why}")
    return tuple(found)


def _one_of_each(sweep: Sweep, task: Task, address: Model) -> list[Trial]:
    """List a baseline trial of a model on a task, and a trial of each method at its largest d."""
    found: dict[Method, Trial] = {}
    for search in sweep.searches():
        if (search.task, search.model) == (task, address):
            if search.baseline:
                baseline = max(search.baseline, key=lambda trial: trial.learning_rate)
                found.setdefault(baseline.method, baseline)
            found.setdefault(search.method, search.trials_at(search.dims[-1])[0])
    for trial in sweep.controls():
        if (trial.task, trial.model) == (task, address):
            found.setdefault(trial.method, trial)
    return list(found.values())


def _check_places(sweep: Sweep) -> None:
    """Refuse a hub's name that is also a folder here: a training would take that, and another one from elsewhere."""
    for address in sweep.models:
        if not os.path.isabs(address.name) and Path(address.name, "config.json").is_file():
            raise ConfigError(
                f"models: {address.name!r} is a folder of the current directory, not one beside the sweep file; give "
                "{ path = ... } as seen from the sweep file"
            )


def _check_device(sweep: Sweep) -> None:
    """Refuse GPUs on a machine of its own that has none; a cluster may have them elsewhere."""
    import torch

    if sweep.resources.gpus_per_trial and not os.environ.get("RAY_ADDRESS") and not torch.cuda.is_available():
        raise ConfigError(
            f"[resources] gpus_per_trial = {sweep.resources.gpus_per_trial:g}, but no GPU is here and RAY_ADDRESS "
            "names no cluster; set it to 0"
        )


def _check_dims(dims: tuple[int, ...], model: Any, method: Method) -> None:
    """Build the projections at both ends of the grid: whatever refuses a d does so now."""
    from distsub.subspace import assemble, layout

    if isinstance(method, Full | Theta0 | Peft):  # an adapter's sizes are counted
        return
    if isinstance(method, Freeze):
        layout.outside(model, method.head, method.embeddings)
        return
    entries = layout.entries(model, method.head, method.embeddings, method.modules)
    projection = method.projection
    if not isinstance(projection, Random):  # its d is checked with its checkpoints
        if method.scope == "layer":
            layout.layers(entries)
        return
    unmatched = replace(method, projection=replace(projection, match=None))  # there are no checkpoints yet
    for d in {dims[0], dims[-1]}:
        assemble.assemble(entries, d, unmatched)


def _check_layout(found: Any, model: Any, method: Subspace) -> None:
    """Refuse a trajectory that does not hold all that the subspace spans, such as a head that its base has not."""
    from distsub.subspace import layout
    from distsub.subspace.trajectory import Snapshots

    entries = layout.entries(model, method.head, method.embeddings, method.modules)
    if lacking := next((entry.name for entry in entries if entry.name in found.meta.get("left_out", ())), None):
        raise TrajectoryError(
            f"trajectory {found.path} was imported without {lacking}, whose start its base does not say, and the "
            'method spans it: give the method scope = "layer", or import again with a base that holds it'
        )
    Snapshots(found.updates).rows([entry.name for entry in entries], [entry.frozen for entry in entries])


def _check_span(search: Search, imported: Mapping[str, int]) -> None:
    """Refuse a learned subspace of more dimensions than there will be checkpoints."""
    span = search.span
    assert span is not None, "asked for learned subspaces only"
    trial = search.trials_at(search.dims[0])[0]
    if not trial.trajectories:
        raise ConfigError(f"{search.name}: no source is left without the task itself; name more sources")
    most = _num_rows(trial, imported) - (span.mode == "centered")
    if not most:
        raise DimensionError(
            f'{search.name}: mode = "centered" has no direction with one checkpoint; record more ([trajectory] steps, '
            'every), or take mode = "difference"'
        )
    learned = isinstance(search.method, Subspace) and isinstance(search.method.projection, Learned)
    if learned and search.dims[-1] > most:
        raise DimensionError(
            f"{search.name}: d = {search.dims[-1]} is above the {most} directions that its checkpoints span; give the "
            f"method dims up to {most}, or record more ([trajectory] steps, every)"
        )


def _num_rows(trial: Trial, imported: Mapping[str, int]) -> int:
    """Count the rows of W that a trial's subspace is made of; `imported` counts the checkpoints of a path."""
    from distsub.data import dataset
    from distsub.finetune import trajectory

    span, total = trial.span, 0
    assert span is not None, "a trial in a learned subspace has a span"
    for each in trial.imported:
        count = imported[each.path]
        if span.first is not None and span.first > count:
            raise TrajectoryError(f"first = {span.first}, but trajectory {each.path} has {count} checkpoints; lower it")
        total += 1 if span.last else span.first or count
    for recording in trial.recordings:
        full = recording.trial
        steps = trajectory.snapshot_steps(recording, len(dataset.load(full.task, full.budget).train))
        if span.first is not None and span.first > len(steps):
            raise TrajectoryError(
                f"first = {span.first}, but the trajectory of task {full.task.name!r} has {len(steps)} checkpoints; "
                "lower it, or raise [trajectory] steps"
            )
        total += 1 if span.last else span.first or len(steps)
    return total
