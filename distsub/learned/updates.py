"""Learned updates, one layer at a time: P theta of a saved adapter, or theta_T - theta_0 of a recorded fine-tuning."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distsub import paths
from distsub.errors import OutputError, TrajectoryError
from distsub.files import Files
from distsub.finetune import adapters, inputs, pretrained, trajectory
from distsub.records import Observation, Recording, Subspace, Trial, label
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
        trial: The training that gave it.
        full: The full fine-tuning that its subspace is made of, where that is one, of its own task and seeds.
        layers: Reads the transformer blocks, one after the other.
    """

    id: str
    kind: str
    trial: Trial
    full: Trial | None
    layers: Callable[[], Iterator[Layer]]

    @property
    def about(self) -> dict[str, Any]:
        """What every row of the update's tables says."""
        trial = self.trial
        return {
            "update": self.id,
            "kind": self.kind,
            "task": trial.task.name,
            "model": trial.model.name,
            "method": label(trial.method),
            "projection": trial.method.family if isinstance(trial.method, Subspace) else None,
            "d": trial.d,
            "projection_seed": trial.seeds.projection,
            "head_seed": trial.seeds.head,
            "data_seed": trial.seeds.data,
        }


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
) -> Iterator[tuple[Path, Recording]]:
    """Give the trajectories that are there to the end, each with its directory; say why another is not used.

    Args:
        root: A results directory.
        observations: Its rows, which name those that their subspaces are made of.
        asked: Others that may be there, such as those that the sweep asks for.
        say: Prints why one is not used.
    """
    needed = (each for observation in observations for each in observation.trial.recordings)
    for name, recording in {each.id: each for each in (*needed, *asked)}.items():
        path = root / paths.trajectory(name)
        try:
            if path.is_dir():
                trajectory.load(path)
                yield path, recording
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
        if observation.score is None or trial.d is None or not (root / paths.adapter(trial.id)).is_dir():
            continue
        key = (trial.setup.id, trial.d if every_d else None)
        if key not in best or _rank(observation) > _rank(best[key]):
            best[key] = observation
    found = [_adapter(root, observation.trial) for observation in best.values()]
    found += [_trajectory(path, recording, store.files) for path, recording in recorded(root, observations, asked, say)]
    return sorted(found, key=_place)


def _place(update: Update) -> tuple[str, ...]:
    """Order by what an update is of: adapters first, ids last."""
    about = update.about
    return update.kind, *(str(about[key]) for key in about if key not in ("kind", "update")), update.id


def _rank(observation: Observation) -> tuple[int, float]:
    return observation.trial.d or 0, observation.score or 0.0


def _adapter(root: Path, trial: Trial) -> Update:
    def layers() -> Iterator[Layer]:
        model = adapters.load_adapter(root / paths.adapter(trial.id), root)
        yield from adapter_layers(model)

    seeds = replace(trial.seeds, projection=0)
    own = [each.trial for each in trial.recordings if (each.trial.task, each.trial.seeds) == (trial.task, seeds)]
    return Update(trial.id, "adapter", trial, own[0] if len(trial.recordings) == len(own) == 1 else None, layers)


def _trajectory(path: str | os.PathLike[str], recording: Recording, files: Files) -> Update:
    def layers() -> Iterator[Layer]:
        trial = recording.trial
        prepared = inputs.model(trial.model.name, trial.model.revision, trial.model.content, files)
        recorded = trajectory.load(path)
        base = pretrained.build(
            prepared, recorded.meta["num_labels"], trial.seeds.head, head_from=trial.model.head_from
        )
        last = recorded.updates[-1]
        for name, entries in blocks(layout.entries(base)):
            yield Layer(
                name,
                {entry.name: _array(last[entry.name]) for entry in entries},
                {entry.name: _array(entry.frozen) for entry in entries},
            )

    return Update(recording.id, "trajectory", recording.trial, recording.trial, layers)


@torch.no_grad()
def adapter_layers(model: SubspaceModel) -> Iterator[Layer]:
    """Compute a held model's update, lambda P theta, block by block."""
    for name, entries in blocks(model.entries):
        yield Layer(
            name,
            {entry.name: _array(model.update(entry.start, entry.stop).view(entry.frozen.shape)) for entry in entries},
            {entry.name: _array(entry.frozen) for entry in entries},
        )


def blocks(entries: Sequence[layout.Entry]) -> Iterator[tuple[str, list[layout.Entry]]]:
    """Group entries by transformer block, leaving out what lies in none: embeddings, pooler and head."""
    found: dict[str, list[layout.Entry]] = {}
    for entry in entries:
        if entry.layer not in ("embeddings", "output"):
            found.setdefault(entry.layer, []).append(entry)
    yield from found.items()


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().cpu().float().numpy()
