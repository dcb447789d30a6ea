"""Which processes run a sweep now: each leaves a small file among the results and renews it until it ends.

A driver that was killed leaves its file behind. On its own machine the process is looked up; from elsewhere a file
that was not renewed for two minutes is one whose driver is gone. Works wherever results can lie.
"""

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from distsub.files import Files, parse_json
from distsub.paths import DRIVERS

EVERY_S, STALE_S = 15.0, 120.0
"""Seconds between two renewals, and after how many without one a driver is gone."""


@dataclass(frozen=True)
class Driver:
    """One process that runs a sweep, or did when it was killed.

    Attributes:
        name: Of its file.
        host: Where it runs.
        pid: Its process id there.
        since: When it began, seconds since the epoch.
        beat: When it last said so.
        training: What it trains, a line each.
        alive: Whether it still runs.
    """

    name: str
    host: str
    pid: int
    since: float
    beat: float
    training: tuple[str, ...]
    alive: bool


class Heartbeat:
    """Says in the results that this process runs their sweep, until the block ends; what cannot be written is let be.

    Rows are what a sweep must not lose, and failing to write them is an error; this file only informs.
    """

    def __init__(self, files: Files, training: Callable[[], Sequence[str]] = tuple) -> None:
        """Prepare the file.

        Args:
            files: The results directory.
            training: Gives what is trained now, a line each.
        """
        self._files, self._training = files, training
        self._name = f"{DRIVERS}/{secrets.token_hex(8)}.json"
        self._since = time.time()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beats, name="heartbeat", daemon=True)

    def __enter__(self) -> "Heartbeat":
        """Leave the file, and take away those of drivers that were killed."""
        with contextlib.suppress(OSError, pa.ArrowException):
            self._files.make(DRIVERS)
            for each in drivers(self._files):
                if not each.alive:
                    self._files.delete(each.name)
        self.beat()
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        """Take the file away."""
        self._over.set()
        self._thread.join(EVERY_S)
        with contextlib.suppress(OSError, pa.ArrowException):
            self._files.delete(self._name)

    def beat(self) -> None:
        """Renew the file."""
        record = {
            "host": socket.gethostname(),
            "machine": _machine(),
            "pid": os.getpid(),
            "process": _process(os.getpid()),
            "since": self._since,
            "beat": time.time(),
            "training": list(self._training()),
        }
        with contextlib.suppress(OSError, pa.ArrowException):
            self._files.put(self._name, json.dumps(record).encode())

    def _beats(self) -> None:
        while not self._over.wait(EVERY_S):
            self.beat()


def drivers(files: Files) -> list[Driver]:
    """List the drivers of a results directory, those that were killed among them.

    Raises:
        OSError: The directory cannot be read.
    """
    found = []
    for name in files.names(DRIVERS):
        if name.startswith("."):
            continue
        # Gone or half written since it was listed, or not ours: then it says nothing.
        with contextlib.suppress(FileNotFoundError, ValueError, LookupError, TypeError, ArithmeticError):
            record = parse_json(files.read(f"{DRIVERS}/{name}"))
            found.append(
                Driver(
                    name=f"{DRIVERS}/{name}",
                    host=str(record["host"]),
                    pid=int(record["pid"]),
                    since=float(record["since"]),
                    beat=float(record["beat"]),
                    training=tuple(map(str, record["training"])),
                    alive=_alive(record),
                )
            )
    return found


def _alive(record: dict[str, Any]) -> bool:
    if record["machine"] == _machine():
        return _process(record["pid"]) == record["process"]
    return time.time() - record["beat"] < STALE_S


def _machine() -> str:
    """Name what process ids are counted in: a boot of a machine, and the container."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return f"{file.read().strip()}/{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return socket.gethostname()


def _process(pid: int) -> str | None:
    """Name a process so that a later one with its id is another; None where there is none."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]  # the time at which it started, in ticks since the boot
    except FileNotFoundError:
        if os.path.isdir("/proc/self"):
            return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return "there"
