"""SIGTERM: a machine is taken away, or a job is stopped. Hand out nothing more, keep where the rest stands, end."""

import signal
import threading
from types import FrameType
from typing import Any

INTERRUPTED = 130
"""Exit code of a run that Ctrl-C ended early: 128 + 2."""

TERMINATED = 143
"""Exit code of a run that SIGTERM ended early: 128 + 15, as a shell would say it."""


class Drain:
    """Notes SIGTERM instead of dying of it; a context manager around a run.

    Attributes:
        asked: Whether the run shall end.
        interrupts: Whether SIGTERM wakes a waiting Tune like Ctrl-C; else `asked` is looked at often.
    """

    def __init__(self) -> None:
        self.asked = self.interrupts = False
        self._former: Any = None

    def __enter__(self) -> "Drain":
        self._former = signal.getsignal(signal.SIGTERM)
        self.listen()
        return self

    def __exit__(self, *exception: object) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._former or signal.SIG_DFL)

    def listen(self) -> None:
        """Take the signal, again where Ray has taken it for itself."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        first, self.asked = not self.asked, True
        if first and self.interrupts:
            handler = signal.getsignal(signal.SIGINT)
            if not callable(handler):  # ignored, as in a job that a shell has put into the background
                raise KeyboardInterrupt
            handler(signal.SIGINT, frame)
