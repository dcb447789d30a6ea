"""What makes a trial give the same numbers again: its provenance, and deterministic algorithms on CUDA.

torch offers them for most operations; one that has none runs all the same, a line says which, and so does the row.
"""

import json
import os
import platform
import re
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import torch

SWITCH = "DISTSUB_DETERMINISTIC"
"""Environment variable: 0 takes the algorithms that torch takes by itself, which may be faster."""

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
"""What cuBLAS must find in the environment, before its first product, to sum in one order."""

_LACKS = re.compile(r"(?P<name>.+?) does not have a deterministic implementation")
_CUBLAS = re.compile(r"Deterministic behavior was enabled .*?(?P<name>CuBLAS)", re.DOTALL)


_VERSIONS = ("distsub", "peft", "peft_configuration", "torch", "transformers")
_DECISIVE = ("weights_sha256", "dataset_sha256", "precision", *_VERSIONS)
"""Of the provenance, what must be the same for a training to resume."""


def provenance(device: str, precision: str, weights: str, dataset: str) -> dict[str, str]:
    """Say what the numbers of a training depend on beside its trial, for its row."""
    return {
        "dataset_sha256": dataset,
        "device": device,
        "device_name": torch.cuda.get_device_name() if device.startswith("cuda") else platform.machine(),
        "distsub": version("distsub"),
        "precision": precision,
        "python": sys.version.split()[0],
        "threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "weights_sha256": weights,
    }


def decisive(provenance: Mapping[str, str]) -> str:
    """Give what must be the same for a training to resume."""
    return json.dumps([each for each in sorted(provenance.items()) if each[0] in _DECISIVE])


class Determinism:
    """Whether a training repeats itself to the bit.

    Attributes:
        state: "on"; "off" where the environment says so; "" on a CPU, which needs nothing for it.
        lacking: Operations without a deterministic implementation that have run.
    """

    def __init__(self, state: str) -> None:
        self.state = state
        self.lacking: set[str] = set()

    def provenance(self) -> dict[str, str]:
        """Say it for a row; nothing on a CPU."""
        but = f" but for {', '.join(sorted(self.lacking))}" if self.lacking else ""
        return {"deterministic": self.state + but} if self.state else {}


@contextmanager
def deterministic(device: str) -> Iterator[Determinism]:
    """Have torch take deterministic algorithms on CUDA; its settings are as before afterwards.

    An operation that has none warns, once, in one line; it is not refused, for then its model could not be trained.

    Args:
        device: "cpu" or "cuda".
    """
    if torch.device(device).type == "cpu":
        yield Determinism("")
        return
    if os.environ.get(SWITCH) == "0":
        yield Determinism("off")
        return
    os.environ.setdefault(WORKSPACE, ":4096:8")
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    more: Any = torch.utils.deterministic
    filled = more.fill_uninitialized_memory
    found = Determinism("on")
    try:
        with warnings.catch_warnings():
            torch.use_deterministic_algorithms(True, warn_only=True)
            more.fill_uninitialized_memory = False  # a launch for each buffer, all of them written
            _listen(found)
            yield found
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        more.fill_uninitialized_memory = filled


def _listen(found: Determinism) -> None:
    """Turn what torch says of an operation, each time that it runs, into one line the first time."""
    for pattern in (_LACKS, _CUBLAS):
        warnings.filterwarnings("always", message=pattern.pattern)
    show = warnings.showwarning

    def hear(message: Warning | str, *args: object, **kwargs: object) -> None:
        heard = _LACKS.match(str(message)) or _CUBLAS.match(str(message))
        if heard is None:
            return show(message, *args, **kwargs)  # type: ignore[arg-type]
        name = heard["name"]
        if name in found.lacking:
            return None
        found.lacking.add(name)
        why = f"{WORKSPACE} was set after its first use" if name == "CuBLAS" else "torch has no deterministic algorithm"
        line = f"this training may not repeat to the last digit: {name} is not deterministic here ({why})"
        return show(UserWarning(line), *args, **kwargs)  # type: ignore[arg-type]

    warnings.showwarning = hear
