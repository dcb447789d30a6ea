"""The precision that a training runs in: fp32, or bf16 by autocast where the hardware gains by it."""

import statistics
import time
from contextlib import AbstractContextManager
from functools import cache
from typing import Any

import torch

from distsub.errors import ConfigError

MIN_SPEEDUP = 1.2
"""How much faster bf16 must be in the probe to be taken: below that, its rounding is the only thing gained."""


class Autocast:
    """Makes the context in which a model runs: bf16 autocast, or nothing."""

    def __init__(self, device: str, enabled: bool) -> None:
        self._device, self._enabled = torch.device(device).type, enabled

    def __call__(self) -> AbstractContextManager[Any]:
        """Open a fresh context."""
        return torch.autocast(self._device, dtype=torch.bfloat16, enabled=self._enabled, cache_enabled=False)


def autocast_for(precision: str, device: str, held: str = "float32") -> tuple[str, Autocast]:
    """Resolve a precision on this machine, and make its context.

    Args:
        precision: "fp32", "bf16", or "auto": bf16 where the hardware gains by it, else fp32.
        device: "cpu" or "cuda".
        held: The precision that theta_0 is held in; one in bfloat16 runs in bf16.

    Returns:
        "fp32" or "bf16", which a trial's row records, and the context for it.

    Raises:
        ConfigError: fp32 is asked for with a model in bfloat16.
    """
    if held == "bfloat16":
        if precision == "fp32":
            raise ConfigError(
                'a model in dtype = "bfloat16" runs in bf16, not in [budget] precision = "fp32": give "auto" or "bf16" '
                'there, or the model dtype = "float32"'
            )
        precision = "bf16"
    if precision == "auto":
        precision = "bf16" if gains_by_bf16(torch.device(device).type) else "fp32"
    return precision, Autocast(device, precision == "bf16")


@cache
def gains_by_bf16(kind: str) -> bool:
    """Tell whether bf16 is faster than fp32 on this machine's "cpu" or "cuda".

    CUDA has it from Ampere on; what older cards offer is an emulation that is slower than fp32. An x86 processor has it
    with AMX or AVX512-BF16, and no other way. Where no flag tells (Arm, say) a probe of a second does.
    """
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported():
        return True
    return not torch.cpu._is_avx2_supported() and speed_up() >= MIN_SPEEDUP


def speed_up(seconds: float = 1.0) -> float:
    """Time a linear layer's forward and backward pass in both precisions, in turns.

    Args:
        seconds: How long to go on.

    Returns:
        The median time in fp32 over the median time under bf16 autocast.
    """
    with torch.random.fork_rng(devices=[]):
        layer, rows = torch.nn.Linear(512, 1024), torch.randn(512, 512)
    spent: dict[bool, list[float]] = {False: [], True: []}
    end = time.perf_counter() + seconds
    while len(spent[True]) < 4 or time.perf_counter() < end:
        for bf16, times in spent.items():
            began = time.perf_counter()
            with Autocast("cpu", bf16)():
                out = layer(rows)
            out.sum().backward()
            times.append(time.perf_counter() - began)
    fp32, bf16 = (statistics.median(times[1:]) for times in spent.values())  # the first of each sets up its kernels
    return fp32 / bf16
