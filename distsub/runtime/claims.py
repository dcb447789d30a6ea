"""A claim among results: one process of a cluster does what is to be done once, and the others wait for it.

Nodes that share an object store share no lock. A claim is a small file there that its holder renews until it is done;
another process that sees it unchanged for two minutes, by its own clock, takes it over. Of several that claim at the
same moment the last to write holds it. One that stands still for a second just then may leave two holders, so what is
claimed must do no harm when it is done twice.
"""

import contextlib
import secrets
import threading
import time

import pyarrow as pa

from distsub.files import Files

EVERY_S, STALE_S = 15.0, 120.0
"""Seconds between two renewals, and after how many without one the holder is gone."""

SETTLE_S = 1.0
"""Seconds after which whoever claimed looks whether another did as well."""


class Claim:
    """A claim by a file whose folder exists; a context in which it is renewed, once it is taken."""

    def __init__(self, files: Files, name: str) -> None:
        self._files, self._name = files, name
        self._owner, self._count = secrets.token_hex(8), 0
        self._seen, self._since = b"", 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._renewals, name="claim", daemon=True)

    def take(self) -> bool:
        """Claim it unless somebody holds it; ask again until it is taken or no longer wanted.

        Raises:
            OSError: The storage fails.
        """
        found = self._read()
        if found and (found != self._seen or time.monotonic() - self._since < STALE_S):
            if found != self._seen:
                self._seen, self._since = found, time.monotonic()
            return False
        self._write()
        time.sleep(SETTLE_S)
        return self._read().startswith(self._owner.encode())

    def __enter__(self) -> "Claim":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        self._thread.join(EVERY_S)
        self.give_up()

    def give_up(self) -> None:
        """Delete the claim, if it is still held."""
        with contextlib.suppress(OSError, pa.ArrowException):
            if self._read().startswith(self._owner.encode()):
                self._files.delete(self._name)

    def _read(self) -> bytes:
        with contextlib.suppress(FileNotFoundError):
            return self._files.read(self._name)
        return b""

    def _write(self) -> None:
        self._count += 1
        self._files.put(self._name, f"{self._owner} {self._count}".encode())

    def _renewals(self) -> None:
        while not self._over.wait(EVERY_S):
            with contextlib.suppress(OSError, pa.ArrowException):
                self._write()
