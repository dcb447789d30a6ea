"""A Ray cluster of this run's own, on loopback: started by a process beside it, which can be ended when Ray hangs.

`ray.init` starts a cluster and connects to it in one go, and waits in compiled code, for ever, for processes that were
killed meanwhile, as they are when memory is short. So a helper process starts the cluster, gives its address and
lives as long as the driver; one that does not come up is ended with all that it has started, and another one tries.
"""

import contextlib
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from distsub.errors import ClusterError, first_line

ATTEMPTS = 3
"""How often a cluster is started before it is given up."""

START_S = 50.0
"""Seconds that one may take; it takes 5 to 15 here."""

END_S = 10.0
"""Seconds that Ray gets to end its processes; the kernel ends them when the helper is killed."""

QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": "error", "configure_logging": False}
"""How `ray.init` keeps what Ray says out of the terminal."""

_ADDRESS, _REASON = "address ", "reason "


@contextlib.contextmanager
def started(join: Callable[[str], None], say: Callable[[str], None]) -> Iterator[None]:
    """Start a cluster and join it; it ends with the block, or with this process.

    Args:
        join: Connects this process to the address that it is given, or raises ClusterError.
        say: Prints why an attempt failed before the next one.

    Raises:
        ClusterError: None of the attempts came up.
    """
    reason = ""
    for attempt in range(1, ATTEMPTS + 1):
        if attempt > 1:
            say(f"no Ray cluster came up here ({reason}); attempt {attempt} of {ATTEMPTS}")
        helper = _Helper()
        try:
            join(helper.address())
        except BaseException as error:
            helper.end()
            if not isinstance(error, ClusterError):
                raise
            reason = str(error)
            continue
        try:
            yield
        finally:
            helper.end()
        return
    raise ClusterError(
        f"no Ray cluster could be started here in {ATTEMPTS} attempts: {reason}; is there enough memory? Run the same "
        "command again, or with --backend inline, which needs no Ray"
    )


class _Helper:
    """The process that starts a cluster. In a session of its own: what interrupts the driver is not meant for Ray."""

    def __init__(self) -> None:
        # No prestarted workers: whoever connects first would wait for them, also for those that were killed.
        environment = {"RAY_prestart_worker_first_driver": "0", **os.environ}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "distsub.runtime.own", str(os.getpid())],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            text=True,
        )

    def address(self) -> str:
        """Wait for the head's address; a ClusterError says that Ray did not start, or not in time."""
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], START_S)[0]:
            raise ClusterError(f"Ray was not up after {START_S:.0f} s")
        line = self._process.stdout.readline().rstrip("\n")
        if not line.startswith(_ADDRESS):
            raise ClusterError(line.removeprefix(_REASON) or "the process that starts it died")
        return line.removeprefix(_ADDRESS)

    def end(self) -> None:
        """Let Ray end its processes, or kill what does not."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()  # the kernel ends what it has started
            self._process.wait()
        self._process.stdout.close()


@contextlib.contextmanager
def on_loopback() -> Iterator[None]:
    """Keep Ray on 127.0.0.1. Ray reads that address as a request to be reachable, and listens everywhere."""
    from ray._private import ray_constants

    known = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = known


def children(pid: int) -> list[int]:
    """List the processes that a process has started, as far as the system tells."""
    found = []
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # a thread that has ended
            found += map(int, file.read_text().split())
    return found


def _watch(up: threading.Event) -> None:
    """End this process when one that Ray needs has died before Ray is up: `ray.init` would wait for it for long."""
    while not up.wait(0.2):
        for pid in children(os.getpid()):
            with contextlib.suppress(OSError):  # gone, and waited for
                name, _, state = Path(f"/proc/{pid}/stat").read_text().partition("(")[2].rpartition(")")
                if name in ("gcs_server", "raylet") and state.split()[0] == "Z":
                    print(f"{_REASON}its process {name} died while it started", flush=True)
                    os._exit(1)


def _serve(driver: int) -> None:
    """Start a cluster, say where it is, and end it when the driver closes its end of the pipe or is gone."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    up = threading.Event()
    threading.Thread(target=_watch, args=(up,), daemon=True).start()
    import ray

    try:
        with on_loopback():
            ray.init(address="local", include_dashboard=False, _node_ip_address="127.0.0.1", **QUIET)
        up.set()
        print(f"{_ADDRESS}{ray.get_runtime_context().gcs_address}", flush=True)
    except Exception as error:  # Ray raises whatever its parts raise
        print(f"{_REASON}{first_line(error)}", flush=True)
        return
    # The pipe tells at once; a process that the driver has forked may hold its other end.
    while os.getppid() == driver and not select.select([sys.stdin], [], [], 5.0)[0]:
        pass
    ray.shutdown()


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
