"""Where a training stands: all that the rest of it depends on, small enough to be written every few seconds.

The frozen weights, the projection and the order of the data follow from the trial; what does not is the trained
numbers, the optimizer's moments and the random state. A training that resumes from them ends with the same bits.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from distsub.files import parse_json
from distsub.finetune.train import Training
from distsub.records import Trial

FORMAT = 1
"""Raised when the content of a resume state changes; others are not read."""


@dataclass(frozen=True)
class ResumeState:
    """A training after some of its steps.

    Attributes:
        trial_id: What is trained.
        inputs: What else the numbers depend on (`Training.decisive`).
        step: Steps taken.
        num_tokens: Training tokens seen.
        wall_s: Seconds spent so far.
        eval_s: Of those, in evaluation.
        curve: (step, score) of the evaluations so far.
        tensors: Trained numbers, moments and random states by name; the training's own, not copies.
    """

    trial_id: str
    inputs: str
    step: int
    num_tokens: int
    wall_s: float
    eval_s: float
    curve: tuple[tuple[int, float], ...]
    tensors: Mapping[str, Tensor]

    @classmethod
    def of(cls, training: Training) -> "ResumeState":
        """Take the state of a training after a step; valid until the next one."""
        return cls(
            training.trial.id,
            training.decisive,
            training.step,
            training.num_tokens,
            training.wall_s,
            training.evaluation.wall_s,
            tuple(training.curve),
            _tensors_of(training.trained, training.optimizer, training.device),
        )

    def restore(self, training: Training) -> bool:
        """Move a training that has not begun to this state; False, and nothing changed, if it is of other inputs.

        Raises:
            ValueError: It is of another model; nothing was changed.
        """
        if (self.trial_id, self.inputs) != (training.trial.id, training.decisive):
            return False
        _restore(self.tensors, training.trained, training.optimizer, training.device)
        _move_schedule(training.schedule, self.step)
        training.move_to(self.step, self.num_tokens, self.curve, self.wall_s, self.eval_s)
        return True

    @property
    def num_bytes(self) -> int:
        """Size of the tensors."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors.values())

    def to_bytes(self) -> bytes:
        """Write it as safetensors, with everything else as JSON in the header."""
        from safetensors.torch import save

        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.tensors.items()}
        record = {name: getattr(self, name) for name in _PLAIN}
        text = json.dumps({"format": FORMAT, "sha256": _digest(tensors), **record})
        return save(tensors, {"distsub": text})

    @classmethod
    def from_bytes(cls, data: bytes, trial: Trial) -> "ResumeState":
        """Read what `to_bytes` wrote.

        Raises:
            ValueError: It is damaged, of another trial, or of another format.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            size = int.from_bytes(data[:8], "little")
            record = parse_json(parse_json(data[8 : 8 + size])["__metadata__"]["distsub"])
            tensors = load(data)
            if record["format"] != FORMAT or record["trial_id"] != trial.id or record["sha256"] != _digest(tensors):
                raise ValueError("of another trial or format, or damaged")
            curve = tuple((step, score) for step, score in record["curve"])
            plain: dict[str, Any] = {name: record[name] for name in _PLAIN} | {"curve": curve}
            return cls(**plain, tensors=tensors)
        except (SafetensorError, KeyError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"no resume state of trial {trial.id}: {error}") from error


_PLAIN = ("trial_id", "inputs", "step", "num_tokens", "wall_s", "eval_s", "curve")


def _tensors_of(trained: Sequence[Tensor], optimizer: torch.optim.Optimizer, device: str) -> dict[str, Tensor]:
    """Name the trained numbers, the optimizer's state of each and the random states."""
    named = {"random.cpu": torch.get_rng_state()}
    if torch.device(device).type == "cuda":
        named["random.cuda"] = torch.cuda.get_rng_state(device)
    for number, parameter in enumerate(trained):
        named[f"{number}.value"] = parameter.detach()
        for key, value in optimizer.state[parameter].items():
            named[f"{number}.state.{key}"] = value
    return named


@torch.no_grad()
def _restore(
    tensors: Mapping[str, Tensor], trained: Sequence[Tensor], optimizer: torch.optim.Optimizer, device: str
) -> None:
    """Put back what `_tensors_of` named.

    Raises:
        ValueError: They are of another model; nothing was changed.
    """
    values = [tensors.get(f"{number}.value") for number in range(len(trained))]
    fits = all(value is not None and value.shape == p.shape for value, p in zip(values, trained, strict=True))
    if not fits or f"{len(trained)}.value" in tensors or "random.cpu" not in tensors:
        raise ValueError("the resume state is of another model")
    for number, (parameter, value) in enumerate(zip(trained, values, strict=True)):
        assert value is not None
        parameter.copy_(value)
        prefix = f"{number}.state."
        state = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        # Counters stay on the CPU, moments are where the parameter is: as the optimizer itself makes them.
        optimizer.state[parameter] = {
            key: tensor.clone() if tensor.dim() == 0 else tensor.to(parameter.device).clone()
            for key, tensor in state.items()
        }
    torch.set_rng_state(tensors["random.cpu"].clone())
    if torch.device(device).type == "cuda" and "random.cuda" in tensors:
        torch.cuda.set_rng_state(tensors["random.cuda"].clone(), device)


def _move_schedule(schedule: Any, step: int) -> None:
    """Set a LambdaLR, whose rates are a function of the step alone, to where it is after some steps."""
    schedule.last_epoch, schedule._step_count = step, step + 1
    for group, base, factor in zip(
        schedule.optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True
    ):
        group["lr"] = base * factor(step)


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """Hash names, kinds and bytes: safetensors itself has no checksum."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
