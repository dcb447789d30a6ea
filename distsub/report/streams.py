"""The three standard streams as a command finds them: closed, full, without a reader, of a small encoding."""

import contextlib
import io
import os
import sys


def settle() -> None:
    """Give this process all three streams, and let what an encoding lacks be escaped.

    Where one is closed, the next file opened would take its number, and what is printed would end in that file.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w" if number else "r", closefd=False))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def say(line: str) -> None:
    """Write a line to standard error at once; where that cannot be written, the exit code says the rest."""
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)


def give_up_output() -> None:
    """Let what is still to be written to standard output go nowhere, as it would fail again at the end."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
