"""One trial in the process that runs it: train, keep the adapter, write the row.

Every backend ends here, so that a trial leaves the same row wherever it ran. The row is written before anybody is
told of it: whoever hears of a result can count on finding it in the table.
"""

import tempfile
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import torch

from distsub.errors import OutOfMemoryError, OutputError, first_line
from distsub.files import parse_json
from distsub.finetune import ablate, inputs, memory, train
from distsub.paths import ROWS
from distsub.records import Observation, Recording, Trial
from distsub.records.places import Places
from distsub.results import Store
from distsub.runtime.checkpoints import EVERY_S, Kept, kept_by
from distsub.runtime.recording import provide, row_of
from distsub.subspace.model import SubspaceModel

REPORTED = ("status", "score", "chance", "error", "wall_s", "num_tokens", "num_examples", "curve")
"""What the driver hears of a row, as a list: of every number beside it Tune would keep five averages."""


@dataclass(frozen=True)
class Place:
    """Where a trial runs and leaves what it found.

    Attributes:
        out: Results directory, an absolute path or a URI.
        rows: The folder in it where rows go.
        device: "cpu" or "cuda".
        gpu_share: Of a GPU's memory that others share, at most 1.
        threads: CPU threads of the training; part of what makes it repeatable to the last bit.
        adapters: Whether subspace trials that have a score leave their adapter in adapters/<trial id>/.
        checkpoint_s: Seconds between checkpoints of a training; None keeps none.
        resumes: Whether an earlier attempt may have left a checkpoint, so that one is looked for.
        recordings: By the id of a full fine-tuning, how its trajectory is recorded while it is trained: what
            `Recording` takes beside the trial.
        places: Where models and data lie.
        inputs: Whether those that do not lie there are taken from the inputs among the results.
    """

    out: str
    rows: str = ROWS
    device: str = "cpu"
    gpu_share: float = 1.0
    threads: int = 1
    adapters: bool = True
    checkpoint_s: float | None = EVERY_S
    resumes: bool = True
    recordings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    places: Places = field(default_factory=Places)
    inputs: bool = True

    def within(self, cpus: float) -> "Place":
        """Give the place of a trial that has so many cores."""
        return replace(self, threads=max(1, int(cpus)))


def perform(trial: Trial, place: Place) -> Generator[train.Progress, None, Observation]:
    """Train a trial and write its row; closing the generator leaves none, but a checkpoint to go on from.

    Whatever way it ends, it leaves no memory behind.

    Args:
        trial: What to train.
        place: Where.

    Raises:
        OutOfMemoryError: It takes more memory than there is; says what to lower.
        DistsubError: The trial cannot be run, or its row not written.
    """
    short = ""
    memory.bound(place.device, place.gpu_share)
    try:
        return (yield from _perform(trial, place))
    except (MemoryError, RuntimeError) as error:
        if not memory.is_shortage(error):
            raise
        short = memory.advice(trial, place.device, place.gpu_share, error)
    finally:
        memory.release()
    raise OutOfMemoryError(short)  # here, where nothing holds the stack of what was raised, and the model in it


def _perform(trial: Trial, place: Place) -> Generator[train.Progress, None, Observation]:
    torch.set_num_threads(place.threads)
    store = _store(place.out) if "://" in place.out else Store.open(place.out)
    store.folder = place.rows
    trial = place.places.locate_trial(store.places.locate_trial(trial))
    here = inputs.here(trial, store.files) if place.inputs else trial

    def keep(model: torch.nn.Module) -> None:
        if place.adapters and isinstance(model, SubspaceModel):
            save_adapter(store, trial, model)

    if (how := place.recordings.get(trial.id)) is not None:
        recorded = yield from row_of(Recording(here, **how), store, place.device, place.checkpoint_s)
        if recorded is not None:
            return recorded
    snapshots = yield from provide(here, store, place.device, place.checkpoint_s)
    kept = Kept(store.files, trial, place.checkpoint_s)
    training = train.train(
        here,
        place.device,
        on_trained=keep,
        disabled=mask_of(store, trial),
        resume=kept.read() if place.resumes else None,
        snapshots=snapshots,
    )
    observation = yield from kept_by(kept, training)
    store.write(observation)
    kept.remove()
    return observation


@lru_cache(maxsize=1)
def _store(out: str) -> Store:
    """Open the results on an object store once per process: what says that they are some never changes."""
    return Store.open(out)


def mask_of(store: Store, trial: Trial) -> ablate.Positions | None:
    """Read the mask that an ablated trial names, None for every other trial.

    Raises:
        OutputError: It is not among the results.
        DataError: It is damaged.
    """
    if trial.ablation is None:
        return None
    mask = trial.ablation.mask
    try:
        data = store.files.read(f"masks/{mask}.safetensors")
    except OSError as error:
        raise OutputError(
            f"{store.uri} has no mask {mask} ({first_line(error)}); make it with `distsub ablate`"
        ) from None
    return ablate.from_bytes(data, mask)


def load_adapter(store: Store, trial_id: str) -> dict[str, torch.Tensor]:
    """Read the trained numbers that a trial has left.

    Raises:
        OSError: There are none.
        AdapterError: They are damaged.
    """
    from distsub.subspace import adapter

    config = parse_json(store.files.read(f"adapters/{trial_id}/{adapter.CONFIG}"))
    weights = store.files.read(f"adapters/{trial_id}/{adapter.WEIGHTS}")
    return adapter.trained_from(weights, config["weights_sha256"], f"adapters/{trial_id}/{adapter.WEIGHTS}")


def save_adapter(store: Store, trial: Trial, model: SubspaceModel) -> None:
    """Leave the trained numbers under adapters/<trial id>/ of the results."""
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(
            folder,
            base_model=trial.model.name,
            revision=trial.model.revision,
            head_seed=trial.seeds.head,
            head_from=trial.model.head_from,
            task=trial.task.name,
            base_content=trial.model.content,
        )
        target = f"adapters/{trial.id}"
        try:
            store.files.make(target)
            for file in sorted(Path(folder).iterdir()):
                store.files.put(f"{target}/{file.name}", file.read_bytes())
        except OSError as error:
            raise OutputError(
                f"cannot write the adapter of trial {trial.id} to {store.uri} ({first_line(error)}); "
                "fix that and run the same command again, finished trials are kept"
            ) from error
