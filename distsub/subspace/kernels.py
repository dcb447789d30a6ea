"""Whether Triton's kernels stand in for torch's operations: on CUDA, where they give what those give."""

import os
import warnings
from functools import cache
from typing import Any

import torch

from distsub.errors import first_line

SWITCH = "DISTSUB_TRITON"
"""Environment variable: 0 leaves all to torch's operations."""


def wanted(device: torch.device) -> bool:
    """Tell whether kernels are to be tried on a device."""
    return device.type == "cuda" and os.environ.get(SWITCH) != "0"


@cache
def module() -> Any:
    """Import the kernels; None, with a line, where Triton is not installed or does not work."""
    try:
        from distsub.subspace import triton_kernels
    except Exception as error:  # a Triton of another torch fails in many ways
        give_up(error)
        return None
    return triton_kernels


def give_up(error: object) -> None:
    """Say that torch's operations are taken, and why."""
    why = first_line(error) if isinstance(error, BaseException) else str(error)
    warnings.warn(
        f"Triton's kernels are not used, torch's operations are, more slowly: {why[:200]}; {SWITCH}=0 asks for that",
        stacklevel=3,
    )
