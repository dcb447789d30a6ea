"""Connect to a Ray cluster, or start one on this machine's loopback; never wait for one that does not answer.

Ray's settings for this process are made here, before Ray is imported: every module that uses Ray
imports this one first.
"""

import contextlib
import importlib
import logging
import os
import re
import secrets
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

# Ray reads these when it is imported; a setting of the user's is kept.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
# Under `uv run` Ray would upload the working directory, even to a cluster of its own.
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")

import ray

from distsub.errors import ClusterError, first_line
from distsub.runtime import own

ANSWER_S = 20.0
"""Seconds in which a cluster must answer a first request. Ray itself waits without limit."""

CONNECT_S = 35.0
"""Seconds in which this process must be connected after that; it takes one or two here."""

_SOCKET = "/ray/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store"
_LONGEST_SOCKET = 107
"""Bytes in the path of a Unix socket, by the kernel's interface."""

_PROBE = """
import sys
from ray._raylet import GcsClient
GcsClient(address=sys.argv[1]).check_alive([], timeout=10)
"""


def has_own_cluster() -> bool:
    """Tell whether this run starts its own cluster: RAY_ADDRESS names none."""
    return os.environ.get("RAY_ADDRESS", "") in ("", "local")


def check() -> None:
    """Check that a cluster answers, or that one can be started, before anything is trained.

    Raises:
        ClusterError: RAY_ADDRESS cannot be used or nothing answers there, or no cluster can be started here.
    """
    if has_own_cluster():
        _check_sockets()
    else:
        _check_answers(os.environ["RAY_ADDRESS"])


@contextlib.contextmanager
def connect(say: Callable[[str], None] = lambda line: None) -> Iterator[None]:
    """Connect to RAY_ADDRESS or the job's cluster, else start one on this machine's loopback and end it.

    `say` prints why an attempt to start one failed.

    Raises:
        ClusterError: RAY_ADDRESS cannot be used or nothing answers there, or no cluster can be started here.
    """
    if ray.is_initialized():
        yield
        return
    # An error in a trial is printed once, in one line; Tune would print each traceback twice.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    logging.getLogger("ray.air").setLevel(logging.CRITICAL)
    check()
    try:
        if has_own_cluster():
            _ask_for_token()
            options = {"_node_ip_address": "127.0.0.1", **own.QUIET}
            with own.started(lambda address: _join("the cluster started here", address=address, **options), say):
                try:
                    yield
                finally:
                    ray.shutdown()  # first: Ray silently ends a driver whose cluster is gone
        else:
            _join(f"RAY_ADDRESS = {os.environ['RAY_ADDRESS']!r}", **own.QUIET)
            yield
    finally:
        ray.shutdown()


def _ask_for_token() -> None:
    """Require a token on the cluster that this run starts, unless the user has set the mode.

    Ray reads these when it is imported, which may have been before.
    """
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    raylet: Any = importlib.import_module("ray._raylet")  # compiled: a type checker sees nothing of it
    raylet.Config.initialize("")
    raylet.AuthenticationTokenLoader.instance().reset_cache()


def _join(what: str, **options: Any) -> None:
    late = f"{what}: no connection after {CONNECT_S:.0f} s; run the same command again"
    with _at_most(CONNECT_S, late), own.on_loopback() if has_own_cluster() else contextlib.nullcontext():
        try:
            ray.init(**options)
        except Exception as error:  # Ray raises whatever its parts raise
            ray.shutdown()
            raise ClusterError(f"{what}: {first_line(error)}") from None


@contextlib.contextmanager
def _at_most(seconds: float, message: str) -> Iterator[None]:
    """End the process with one line and exit code 2 when what is inside takes too long.

    Ray waits inside compiled code that no exception reaches. Nothing of the sweep has begun, so nothing is lost.
    """

    def give_up() -> None:
        show_cursor = "\x1b[?25h" if sys.stderr.isatty() else ""  # a live table may have hidden it
        print(f"{show_cursor}distsub: {message}", file=sys.stderr, flush=True)
        os._exit(2)

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _check_sockets() -> None:
    """Refuse a temporary directory that cannot be written, or whose name is too long for Ray's sockets."""
    name = "RAY_TMPDIR" if os.environ.get("RAY_TMPDIR") else "TMPDIR"
    folder = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    length = len(os.fsencode(folder + _SOCKET))
    if length > _LONGEST_SOCKET:
        most = _LONGEST_SOCKET - len(_SOCKET)
        raise ClusterError(
            f"{name} = {folder} is too long for Ray's sockets: {length - len(_SOCKET)} bytes, at most {most}; "
            f"set {name} to a shorter directory, such as {name}=/tmp"
        )
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ClusterError(
            f"{name} = {folder} cannot be written ({error.strerror}); set {name} to a directory that Ray can write to"
        ) from None


@cache
def _check_answers(address: str) -> None:
    """Check that a cluster answers, in a process that can be killed."""
    allowed = (
        'give HOST:PORT of a Ray head (its port is 6379 unless set otherwise), "auto" for one on this machine, '
        "or unset RAY_ADDRESS to start one here"
    )
    if address.startswith("ray://"):
        raise ClusterError(
            f"RAY_ADDRESS = {address!r} is a Ray Client address, and distsub runs beside its cluster: submit the "
            f"command as a job (ray job submit), or {allowed}"
        )
    if address == "auto":
        from ray._private import services

        try:
            address = services.canonicalize_bootstrap_address_or_die("auto")
        except (ConnectionError, ValueError) as error:
            raise ClusterError(f"RAY_ADDRESS = 'auto': {first_line(error)}; {allowed}") from None
    found = re.fullmatch(r"\[?([^\[\]/]+?)\]?:(\d{1,5})", address)
    if found is None or not 0 < int(found[2]) < 65536:
        raise ClusterError(f"RAY_ADDRESS = {address!r} is not HOST:PORT; {allowed}")
    try:
        socket.create_connection((found[1], int(found[2])), timeout=ANSWER_S / 2).close()
    except OSError as error:
        raise ClusterError(
            f"RAY_ADDRESS = {address!r}: nothing answers there ({error.strerror or first_line(error)}); {allowed}"
        ) from None
    try:
        probe = subprocess.run(
            [sys.executable, "-c", _PROBE, address], capture_output=True, text=True, timeout=ANSWER_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise ClusterError(
            f"RAY_ADDRESS = {address!r}: something listens there, but no Ray head answered within {ANSWER_S:.0f} s; "
            f"{allowed}"
        ) from None
    if probe.returncode:
        reason = (probe.stderr.strip().splitlines() or ["no reason given"])[-1]
        token = "; it asks for a token: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH"
        hint = token if "nauthenticated" in probe.stderr or "token" in probe.stderr.lower() else f"; {allowed}"
        raise ClusterError(f"RAY_ADDRESS = {address!r}: {reason}{hint}")
