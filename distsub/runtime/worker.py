"""One trial in the process that runs it: train, keep the adapter, write the row.

Every backend ends here, so that a trial leaves the same row wherever it ran. The row is written before anybody is
told of it: whoever hears of a result can count on finding it in the table.
"""

import tempfile
from collections.abc import Generator
from dataclasses import dataclass

import torch

from distsub.errors import OutputError
from distsub.finetune import ablate, train
from distsub.results import Store
from distsub.results.files import first_line
from distsub.subspace.model import SubspaceModel
from distsub.trial import Observation, Trial


@dataclass(frozen=True)
class Place:
    """Where a trial runs and leaves what it found.

    Attributes:
        out: Results directory, an absolute path or a URI.
        device: "cpu" or "cuda".
        threads: CPU threads of the training; part of what makes it repeatable to the last bit.
        adapters: Whether finished subspace trials leave their adapter in adapters/<trial id>/.
    """

    out: str
    device: str = "cpu"
    threads: int = 1
    adapters: bool = True


def perform(trial: Trial, place: Place) -> Generator[train.Progress, None, Observation]:
    """Train a trial and write its row; closing the generator leaves none.

    Raises:
        DistsubError: The trial cannot be run, or its row not written.
    """
    torch.set_num_threads(place.threads)
    store = Store.open(place.out)

    def keep(model: torch.nn.Module) -> None:
        if place.adapters and isinstance(model, SubspaceModel):
            save_adapter(store, trial, model)

    observation = yield from train.train(trial, place.device, on_trained=keep, disabled=mask_of(store, trial))
    store.write(observation)
    return observation


def mask_of(store: Store, trial: Trial) -> ablate.Positions | None:
    """Read the mask that an ablated trial names, None for every other trial.

    Raises:
        OutputError: It is not among the results.
        DataError: It is damaged.
    """
    mask = trial.method.mask
    if mask is None:
        return None
    try:
        data = store.files.read(f"masks/{mask}.safetensors")
    except OSError as error:
        raise OutputError(
            f"{store.uri} has no mask {mask} ({first_line(error)}); run `distsub outliers` on it first"
        ) from None
    return ablate.from_bytes(data, mask)


def save_adapter(store: Store, trial: Trial, model: SubspaceModel) -> None:
    """Leave the trained numbers under adapters/<trial id>/ of the results."""
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(
            folder,
            base_model=trial.model,
            revision=trial.revision,
            num_labels=trial.task.num_labels,
            head_seed=trial.seeds.head,
            task=trial.task.name,
        )
        target = f"adapters/{trial.id}"
        store.files.make(target)
        for file in sorted(Path(folder).iterdir()):
            store.files.put(f"{target}/{file.name}", file.read_bytes())
