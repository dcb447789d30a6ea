"""The command line in a process forked from one that has imported what takes seconds, where its start is not the point.

A server (`python warm.py`) holds the imports; `Warm.command` is a client that gives it arguments, environment,
directory and open streams, and ends with the command's exit code, so that it stands where `python -m distsub.cli`
would; `-c CODE` runs code as `python -c` does. Killed, it takes the command and what that has started with it; other
signals it does not pass on. A command that a signal ends ends the client likewise. What an interpreter takes from its
environment when it starts (locale, HOME) needs a real start instead.
"""

import atexit
import contextlib
import io
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading

IMPORTED = (
    "distsub.cli",
    "distsub.report.page",
    "distsub.report.standing",
    "distsub.preflight.checks",
    "distsub.runtime.inline",
    "distsub.runtime.launch",
    "distsub.preflight.rehearsal",
    "duckdb",
    "matplotlib.figure",
    "pandas",
    "pyarrow.dataset",
    "rich.live",
    "rich.table",
    "scipy.stats",
    "sklearn.metrics",
    "transformers.models.bert.modeling_bert",
    "transformers.models.bert.tokenization_bert",
)
CAPABILITIES = "-dac_override,-dac_read_search"
LESS_THAN_ROOT = ("setpriv", f"--bounding-set={CAPABILITIES}", f"--inh-caps={CAPABILITIES}")
"""Starts a process to which permissions apply."""


class Warm:
    """A server, and its clients' command."""

    def __init__(self, folder, environment=None):
        address = os.path.join(folder, "socket")
        prefix = LESS_THAN_ROOT if os.geteuid() == 0 and shutil.which("setpriv") else ()
        words = [*prefix, sys.executable, __file__, address]
        self._server = subprocess.Popen(words, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._server.stdout.read(1)  # it listens
        self.command = (sys.executable, "-I", "-S", __file__, address)
        self.code = (*self.command, "-c")

    def run(self, *arguments, **more):
        """Run a command to its end, as `subprocess.run` does, its output captured as text."""
        return subprocess.run([*self.command, *map(str, arguments)], capture_output=True, text=True, **more)

    def end(self):
        self._server.communicate()  # it ends when its input does


def ask(address, *arguments):
    """Have a command run with this process's streams; give its exit code."""
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(address)
        request = {"arguments": arguments, "environment": dict(os.environ), "directory": os.getcwd()}
        request["open"] = [number for number in range(3) if _is_open(number, server.fileno())]
        data = json.dumps(request).encode()
        socket.send_fds(server, [len(data).to_bytes(4)], request["open"] or [server.fileno()])
        server.sendall(data)
        return int(server.recv(8))


def _is_open(number, but):
    try:
        os.fstat(number)
    except OSError:
        return False
    return number != but  # which takes the lowest number that is free


def serve(address):
    """Fork for every request, until the standard input ends; the process that carries one out goes on from here."""
    import importlib

    for name in IMPORTED:
        importlib.import_module(name)
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(address)
    listening.listen()
    os.write(1, b".")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those who wait
    while listening in select.select([listening, 0], [], [])[0]:
        connection, _ = listening.accept()
        if os.fork() == 0:
            break
        connection.close()
    else:
        return
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    listening.close()
    head, files, _, _ = socket.recv_fds(connection, 4, 3)
    size, data = int.from_bytes(head), b""
    while len(data) < size:
        data += connection.recv(65536)
    if child := os.fork():
        _keep(child, connection)
    connection.close()
    _become(json.loads(data), files)


def _keep(child, connection):
    """Say how a command ends, or end it when nobody is left to be told."""
    ended = os.pidfd_open(child)
    if ended not in select.select([ended, connection], [], [])[0]:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with contextlib.suppress(OSError):
        connection.sendall(b"%d" % code)
    os._exit(0)


def _become(request, files):
    """Be the command: its streams, environment and directory, then what `python -m distsub.cli` or `-c` does."""
    import runpy
    import tempfile
    import traceback

    from distsub import cli

    os.setsid()
    high = [os.dup2(file, 100 + file) for file in files]
    for number in (*range(3), *files):
        os.closerange(number, number + 1)
    for file, number in zip(high, request["open"], strict=False):
        os.dup2(file, number)
    for file in high:
        os.close(file)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["directory"])
    tempfile.tempdir = None
    for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep):
        if os.path.exists(patches := os.path.join(folder, "sitecustomize.py")):
            runpy.run_path(patches)
    encoding = os.environ.get("PYTHONIOENCODING", "utf-8")
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        stream = None
        if number in request["open"]:
            raw = io.FileIO(number, "w" if number else "r", closefd=False)
            errors = "backslashreplace" if number == 2 else None
            plain = raw if number == 2 else io.BufferedWriter(raw) if number else io.BufferedReader(raw)
            stream = io.TextIOWrapper(plain, encoding, errors, None, raw.isatty(), number == 2)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    code = 0
    try:
        if request["arguments"][:1] == ["-c"]:
            _, source, *rest = request["arguments"]
            sys.argv = ["-c", *rest]
            exec(compile(source, "<string>", "exec"), {"__name__": "__main__"})
        else:
            cli.main(request["arguments"])
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    os._exit(_finish(code))  # to take apart what is imported would take seconds


def _finish(code):
    """Do what an interpreter does at its end; give its exit code."""
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except OSError:
            with contextlib.suppress(OSError):
                print(f"Exception ignored on flushing {stream.name}", file=sys.stderr, flush=True)
            code = 120
    return code


if __name__ == "__main__":
    if len(sys.argv) == 2:
        serve(sys.argv[1])
    elif (code := ask(*sys.argv[1:])) >= 0:
        sys.exit(code)
    else:
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
