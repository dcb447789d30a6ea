"""Peak memory of a stretch of work, on a CPU or a GPU."""

import contextlib
from pathlib import Path

import torch


class Meter:
    """Measures the peak memory since its making: resident bytes (CPU, Linux) or allocated bytes (CUDA).

    On other systems the CPU figure is the process's peak since it began.
    """

    def __init__(self, device: str = "cpu") -> None:
        """Reset the counters where the system allows it."""
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
