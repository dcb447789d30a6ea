"""Disable weights by position: the masks of an ablation, their files, and the edit of a model while it is trained.

A mask is named by a hash of its positions, and the name is part of the trial that uses it, so that a row can never be
of another mask than it says. What the edits mean is in `records.Ablation`.
"""

import hashlib
from collections.abc import Mapping
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from distsub import paths
from distsub.errors import DataError, OutputError, first_line
from distsub.files import Files
from distsub.finetune.train import Observer, Training
from distsub.records import Ablation

Positions = Mapping[str, np.ndarray]
"""Positions in each flattened parameter, int64 and rising, by the parameter's name."""


def mask_id(positions: Positions) -> str:
    """Give the sixteen hex digits that name a mask: a hash of its parameters' names and positions."""
    digest = hashlib.sha256()
    for name in sorted(positions):
        digest.update(f"{name} {positions[name].size} ".encode())
        digest.update(np.ascontiguousarray(positions[name], dtype="<i8").data)
    return digest.hexdigest()[:16]


def to_bytes(positions: Positions) -> bytes:
    """Write a mask as safetensors."""
    from safetensors.numpy import save

    return save({name: np.ascontiguousarray(at, dtype=np.int64) for name, at in positions.items()})


def from_bytes(data: bytes, mask: str) -> dict[str, np.ndarray]:
    """Read a mask.

    Args:
        data: What `to_bytes` wrote.
        mask: The name that the mask must have.

    Raises:
        DataError: It is no mask, or another one.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        positions = load(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise DataError(f"mask {mask} cannot be read ({error}); delete it and run `distsub outliers` again") from None
    if (found := mask_id(positions)) != mask:
        raise DataError(f"mask {mask} holds the positions of {found}; delete it and run `distsub outliers` again")
    return positions


@torch.no_grad()
def take(model: nn.Module, positions: Positions) -> dict[str, Tensor]:
    """Copy the weights at a mask's positions.

    Raises:
        DataError: The mask is of another model.
    """
    parameters = dict(model.named_parameters())
    out = {}
    for name, at in positions.items():
        parameter = parameters.get(name)
        if parameter is None or (at.size and not 0 <= at.min() <= at.max() < parameter.numel()):
            given = "no such parameter" if parameter is None else f"{parameter.numel()} weights, not {at.max() + 1}"
            raise DataError(f"the mask disables weights of {name}, of which this model has {given}; make it anew")
        out[name] = parameter.reshape(-1)[torch.from_numpy(at).to(parameter.device)].clone()
    return out


@torch.no_grad()
def put(model: nn.Module, positions: Positions, values: Mapping[str, Tensor] | None = None) -> None:
    """Set the weights at a mask's positions, in place.

    Args:
        model: Its parameters are contiguous and may be written.
        positions: The mask.
        values: From `take`; None sets zeros.

    Raises:
        DataError: The mask is of another model.
    """
    take(model, positions)  # nothing is written if anything does not fit
    parameters = dict(model.named_parameters())
    for name, at in positions.items():
        flat = parameters[name].view(-1)
        flat[torch.from_numpy(at).to(flat.device)] = 0.0 if values is None else values[name]


class WeightEdit(Observer):
    """Edits the weights of a mask as an ablation says, see `records.Ablation`."""

    def __init__(self, ablation: Ablation, positions: Positions) -> None:
        self._edit, self._positions = ablation.edit, positions
        self._theta_0: dict[str, Tensor] = {}

    @classmethod
    def read(cls, ablation: Ablation, files: Files) -> Self:
        """Read the mask of an ablation from the results.

        Raises:
            OutputError: It is not there.
            DataError: It is damaged.
        """
        try:
            data = files.read(paths.mask(ablation.mask))
        except OSError as error:
            raise OutputError(
                f"{files.uri} has no mask {ablation.mask} ({first_line(error)}); make it with `distsub ablate`"
            ) from None
        return cls(ablation, from_bytes(data, ablation.mask))

    def on_start(self, training: Training) -> None:
        """Keep theta_0 at the positions; set them to zero unless they are only reset at the end."""
        self._theta_0 = take(training.model, self._positions)
        if self._edit != "reset":
            put(training.model, self._positions)
        training.is_edited = True

    def on_evaluation(self, training: Training) -> None:
        """Score the edited weights."""
        if self._edit == "reset" and training.is_last:
            put(training.model, self._positions, self._theta_0)
        self.on_step(training)

    def on_step(self, training: Training) -> None:
        """Put held weights back to zero."""
        if self._edit == "hold":
            put(training.model, self._positions)
