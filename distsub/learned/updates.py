"""Learned updates, one layer at a time: P theta of a saved adapter, or theta_T - theta_0 of a recorded fine-tuning."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distsub import paths
from distsub.adapters import loading
from distsub.errors import OutputError, TrajectoryError
from distsub.files import Files
from distsub.finetune import inputs, trajectory
from distsub.models import pretrained
from distsub.records import Imported, Model, Observation, Recording, Seeds, Subspace, Trial, label, sign
from distsub.results import Store
from distsub.subspace import layout
from distsub.subspace.model import SubspaceModel

Say = Callable[[str], None]


@dataclass(frozen=True)
class Layer:
    """One transformer block's part of an update.

    Attributes:
        name: Such as "bert.encoder.layer.3".
        update: What was added to each parameter, in its shape, by full name.
        theta_0: The pretrained values.
    """

    name: str
    update: dict[str, np.ndarray]
    theta_0: dict[str, np.ndarray]


@dataclass(frozen=True)
class Update:
    """A learned update that lies in a results directory.

    Attributes:
        id: The trial, or the trajectory.
        kind: "adapter" or "trajectory".
        source: The training that gave it, or the imported trajectory that it is of.
        model: The pretrained model.
        full: The full fine-tuning that its subspace is made of, where that is one, of its own task and seeds.
        layers: Reads the transformer blocks, one after the other.
    """

    id: str
    kind: str
    source: Trial | Imported
    model: Model
    full: Trial | None
    layers: Callable[[], Iterator[Layer]]

    @property
    def about(self) -> dict[str, Any]:
        """What every row of the update's tables says; what is not known of an imported one is null."""
        found = {"update": self.id, "kind": self.kind, "model": self.model.name}
        source = self.source
        if isinstance(source, Imported):
            unknown = ("projection", "d", "projection_seed", "head_seed", "data_seed")
            return found | {"task": source.name, "method": "imported"} | dict.fromkeys(unknown)
        return found | {
            "task": source.task.name,
            "method": label(source.method),
            "projection": source.method.family if isinstance(source.method, Subspace) else None,
            "d": source.d,
            "projection_seed": source.seeds.projection,
            "head_seed": source.seeds.head,
            "data_seed": source.seeds.data,
        }


@dataclass(frozen=True)
class Recorded:
    """A trajectory that is there to the end.

    Attributes:
        path: Its directory.
        model: The pretrained model that it is of.
        source: The full fine-tuning, or where it was imported from.
    """

    path: Path
    model: Model
    source: Trial | Imported

    @property
    def task(self) -> str:
        """The task's name, or what an imported one is called."""
        return self.source.name if isinstance(self.source, Imported) else self.source.task.name

    @property
    def seeds(self) -> Seeds | None:
        """Of the full fine-tuning."""
        return None if isinstance(self.source, Imported) else self.source.seeds


def root_of(store: Store) -> Path:
    """Give the local directory of a store.

    Raises:
        OutputError: It lies elsewhere: weights are mapped into memory, not fetched.
    """
    if not store.files.is_local:
        raise OutputError(f"{store.uri} is not on this machine; copy it to a local directory and give that")
    return Path(store.files.root)


def recorded(
    root: Path, observations: Sequence[Observation], asked: Iterable[Recording] = (), say: Say = print
) -> Iterator[Recorded]:
    """Give the trajectories that are there to the end; say why another is not used.

    Args:
        root: A results directory.
        observations: Its rows, which name those that their subspaces are made of.
        asked: Others that may be there, such as those that the sweep asks for.
        say: Prints a line.
    """
    trials = {row.trial.setup.id: row.trial for row in observations if row.trial.span is not None}.values()
    sources: dict[str, tuple[Model, Trial | Imported]] = {}
    for each in (*(each for trial in trials for each in trial.recordings), *asked):
        sources[each.id] = each.trial.model, each.trial
    sources |= {each.id: (trial.model, each) for trial in trials for each in trial.imported}
    for name, (model, source) in sources.items():
        path = root / paths.trajectory(name)
        try:
            if path.is_dir():
                trajectory.load(path)
                yield Recorded(path, model, source)
        except TrajectoryError as error:
            say(f"skipped  {error}")


def learned_updates(
    store: Store,
    observations: Sequence[Observation],
    every_d: bool = False,
    say: Say = print,
    asked: Iterable[Recording] = (),
) -> list[Update]:
    """List the updates that a results directory holds.

    Of the trainings that differ in d and step size only, the largest d counts, and there the best score.

    Args:
        store: The results.
        observations: Its rows.
        every_d: Take every d, at its best step size.
        say: Prints which trajectories cannot be used.
        asked: Trajectories that may be there beside those that rows name.
    """
    root = root_of(store)
    best: dict[tuple[str, int | None], Observation] = {}
    for observation in observations:
        trial = observation.trial
        if not isinstance(trial.method, Subspace) or observation.score is None:
            continue
        if not (root / paths.adapter(trial.id)).is_dir():
            continue
        key = (trial.setup.id, trial.d if every_d else None)
        if key not in best or _rank(observation) > _rank(best[key]):
            best[key] = observation
    found = [_adapter(root, observation.trial) for observation in best.values()]
    found += [_trajectory(each, store.files) for each in recorded(root, observations, asked, say)]
    return sorted(found, key=_place)


def _place(update: Update) -> tuple[str, ...]:
    """Order by what an update is of: adapters first, ids last."""
    about = update.about
    return update.kind, *(str(about[key]) for key in about if key not in ("kind", "update")), update.id


def _rank(observation: Observation) -> tuple[int, float]:
    return observation.trial.d or 0, sign(observation.trial.task.metric) * (observation.score or 0.0)


def _adapter(root: Path, trial: Trial) -> Update:
    def layers() -> Iterator[Layer]:
        model = loading.load_adapter(root / paths.adapter(trial.id), root)
        assert isinstance(model, SubspaceModel), "only adapters of subspaces are listed"
        yield from adapter_layers(model)

    seeds = replace(trial.seeds, projection=0)
    own = [each.trial for each in trial.recordings if (each.trial.task, each.trial.seeds) == (trial.task, seeds)]
    full = own[0] if len(trial.trajectories) == len(own) == 1 else None
    return Update(trial.id, "adapter", trial, trial.model, full, layers)


def _trajectory(found: Recorded, files: Files) -> Update:
    def layers() -> Iterator[Layer]:
        read = trajectory.load(found.path)
        base, last = base_of(found, read.meta["num_labels"], files), read.updates[-1]
        for name, entries in blocks(layout.entries(base)):
            yield _layer(name, entries, lambda entry: last[entry.name])

    full = None if isinstance(found.source, Imported) else found.source
    return Update(found.path.name, "trajectory", found.source, found.model, full, layers)


def base_of(found: Recorded, num_labels: int, files: Files) -> torch.nn.Module:
    """Build the model that a trajectory is of; its blocks are read, which no seed decides."""
    model = found.model
    prepared = inputs.model(model.name, model.revision, model.content, files, model.dtype)
    return pretrained.build(prepared, num_labels, 0)


@torch.no_grad()
def adapter_layers(model: SubspaceModel) -> Iterator[Layer]:
    """Compute a held model's update, lambda P theta, block by block."""
    for name, entries in blocks(model.entries):
        yield _layer(name, entries, lambda entry: model.update(entry.start, entry.stop).view(entry.frozen.shape))


def blocks(entries: Sequence[layout.Entry]) -> Iterator[tuple[str, list[layout.Entry]]]:
    """Group entries by transformer block, leaving out what lies in none: embeddings, pooler and head."""
    found: dict[str, list[layout.Entry]] = {}
    for entry in entries:
        if entry.layer not in ("embeddings", "output"):
            found.setdefault(entry.layer, []).append(entry)
    yield from found.items()


def _layer(name: str, entries: Sequence[layout.Entry], update: Callable[[layout.Entry], torch.Tensor]) -> Layer:
    def array(tensor: torch.Tensor) -> np.ndarray:
        return tensor.detach().cpu().float().numpy()

    return Layer(
        name, {each.name: array(update(each)) for each in entries}, {each.name: array(each.frozen) for each in entries}
    )
