"""Memory of a training on a CPU or a GPU: its peak, its bound, what it left behind, and that it was too little."""

import contextlib
import gc
from functools import cache
from pathlib import Path

import torch

from distsub.errors import first_line
from distsub.records import Full, Trial, label

CONTEXT_BYTES = 512 * 2**20
"""What a CUDA context takes beside the tensors that torch counts: it is part of a share of a GPU."""

_SHORTAGE = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")


def is_shortage(error: BaseException) -> bool:
    """Tell whether there was too little memory, of the host or of a GPU."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _SHORTAGE)


def bound(device: str, share: float) -> None:
    """Keep this process within its share of a GPU, so that it cannot take what others on the same GPU count on.

    Args:
        device: Nothing is done unless it is "cuda".
        share: Of the GPU's memory, above 0; 1 is all of it.
    """
    if torch.device(device).type == "cuda":
        total = torch.cuda.get_device_properties().total_memory
        own = share - CONTEXT_BYTES / total if share < 1 else 1.0
        torch.cuda.set_per_process_memory_fraction(max(own, 0.0))


def release() -> None:
    """Give back what a training that is over holds: models are in reference cycles, and torch keeps what it has had."""
    gc.collect()
    _set_imports_aside()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


@cache
def _set_imports_aside() -> None:
    gc.freeze()  # what was imported, half a million objects: neither looked through nor counted again


def advice(trial: Trial, device: str, share: float, error: BaseException) -> str:
    """Say in a line that a training takes too much memory, what it asked for and what to lower.

    Args:
        trial: What was trained.
        device: "cpu" or "cuda".
        share: Of a GPU's memory that it had.
        error: What was raised.
    """
    budget, table = trial.budget, "[resources.baseline]" if isinstance(trial.method, Full) else "[resources]"
    precision = "" if budget.precision == "bf16" else ', take precision = "bf16"'
    if torch.device(device).type == "cuda":
        where = "memory of a whole GPU" if share == 1 else f"memory on {share:g} of a GPU"
        more = "" if share == 1 else f", or raise {table} gpus_per_trial"
    else:
        where, more = "this machine's memory", f", or raise {table} cpus_per_trial so that fewer run at once"
    what = label(trial.method)
    return (
        f"out of {where}: {what} with batch_size = {budget.batch_size}, max_length = {budget.max_length}, precision = "
        f'"{budget.precision}"; lower [budget] batch_size or max_length{precision}{more} ({first_line(error)[:160]})'
    )


class Meter:
    """Measures the peak memory since its making: resident bytes (CPU, Linux) or allocated bytes (CUDA).

    On other systems the CPU figure is the process's peak since it began.
    """

    def __init__(self, device: str = "cpu") -> None:
        self._cuda = torch.device(device).type == "cuda"
        if self._cuda:
            torch.cuda.reset_peak_memory_stats()
            return
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")

    def peak_bytes(self) -> int:
        """Read the peak so far."""
        if self._cuda:
            return torch.cuda.max_memory_allocated()
        try:
            line = next(s for s in Path("/proc/self/status").read_text().splitlines() if s.startswith("VmHWM"))
            return int(line.split()[1]) * 1024
        except (OSError, StopIteration):
            import resource

            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
