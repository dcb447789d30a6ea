"""What goes wrong before Ray is there: one line that names the thing, in bounded time."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

import pytest

from distsub import addresses
from distsub.errors import ClusterError
from distsub.runtime import connect, own


@pytest.fixture
def deaf():
    """A server that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def shut():
    """A port where nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    return port


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("junk", "'junk' is not HOST:PORT; give HOST:PORT of a Ray head"),
        ("host:port", "is not HOST:PORT"),
        ("127.0.0.1:", "is not HOST:PORT"),
        ("127.0.0.1:99999", "is not HOST:PORT"),
        ("127.0.0.1:0", "is not HOST:PORT"),
        ("a b:6379", "nothing answers there"),
        ("ray://127.0.0.1:10001", "a Ray Client address"),
        ("http://127.0.0.1:8265", "is not HOST:PORT"),
        ("no-such-host.invalid:6379", "nothing answers there"),
        ("127.0.0.1:{shut}", "nothing answers there (Connection refused)"),
        ("localhost:{shut}", "nothing answers there"),
    ],
)
def test_an_address_that_cannot_be_used_is_told_in_one_line(address, message, shut):
    address = address.format(shut=shut)
    with pytest.raises(ClusterError) as caught:
        connect._check_answers(address)
    said = str(caught.value)
    assert message in said and repr(address) in said and "unset RAY_ADDRESS" in said and "\n" not in said


def test_what_listens_and_is_no_ray_is_given_up(deaf, monkeypatch):
    monkeypatch.setattr(connect, "ANSWER_S", 4.0)
    with pytest.raises(ClusterError, match="something listens there, but no Ray head answered within 4 s"):
        connect._check_answers(f"127.0.0.1:{deaf}")


@pytest.mark.parametrize("name", ["TMPDIR", "RAY_TMPDIR"])
def test_a_temporary_directory_too_long_for_sockets_is_named(name, tmp_path, monkeypatch):
    long = tmp_path / ("x" * 90)
    long.mkdir()
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv(name, str(long))
    monkeypatch.setattr(tempfile, "tempdir", None)
    with pytest.raises(ClusterError, match=f"{name} = .* is too long for Ray's sockets: .* set {name} to a shorter"):
        connect._check_sockets()


def test_a_temporary_directory_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", "/proc")
    with pytest.raises(ClusterError, match="RAY_TMPDIR = /proc cannot be written"):
        connect._check_sockets()


def test_a_start_that_never_ends_is_ended():
    code = (
        "import threading\nfrom distsub.runtime import connect\n"
        "with connect._at_most(0.2, 'Ray was not up'):\n    threading.Event().wait()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert done.returncode == 2 and done.stderr == "distsub: Ray was not up\n"


def test_a_start_in_time_is_left_alone():
    before = threading.active_count()
    with connect._at_most(60, "never said"):
        pass
    for thread in threading.enumerate():
        if isinstance(thread, threading.Timer):
            thread.join(5)
    assert threading.active_count() == before


COMMANDS = {
    "nothing listens": ({"RAY_ADDRESS": "127.0.0.1:{shut}"}, "RAY_ADDRESS = '127.0.0.1:{shut}': nothing answers there"),
    "not a Ray": ({"RAY_ADDRESS": "127.0.0.1:{deaf}"}, "no Ray head answered within 20 s"),
    "client": ({"RAY_ADDRESS": "ray://127.0.0.1:{shut}"}, "a Ray Client address"),
    "junk": ({"RAY_ADDRESS": "junk"}, "RAY_ADDRESS = 'junk' is not HOST:PORT"),
    "long": ({"RAY_TMPDIR": "", "TMPDIR": "{long}"}, "TMPDIR = {long} is too long for Ray's sockets"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", COMMANDS)
def test_the_command_ends_with_one_line_and_exit_code_2(case, small_sweep, environment, tmp_path, deaf, shut, warm):
    long = tmp_path / ("x" * 80)
    long.mkdir()
    given, message = COMMANDS[case]
    fill = {"deaf": deaf, "shut": shut, "long": long}
    environment |= {key: value.format(**fill) for key, value in given.items()}
    done = warm.run("run", small_sweep, "--out", tmp_path / "out", "--plain", env=environment, timeout=150)
    assert done.returncode == 2, done.stderr
    assert message.format(**fill) in done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_a_job_is_known_by_what_ray_sets_in_it():
    from ray._private.runtime_env import constants

    assert addresses._JOB == constants.RAY_JOB_CONFIG_JSON_ENV_VAR


def test_ray_uploads_nothing_under_uv_run():
    """Ray asks this constant, at import, whether `uv run` means that the working directory is to be uploaded."""
    code = "from distsub.runtime import connect; from ray._private import ray_constants as c; print(c.{0})"
    code = code.format("RAY_ENABLE_UV_RUN_RUNTIME_ENV")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


TOKENS = """
import os
{first}
from distsub.runtime.connect import connect
import ray
with connect(lambda text: print(text, flush=True)):
    from ray._raylet import AuthenticationMode, get_authentication_mode
    asks = get_authentication_mode() == AuthenticationMode.TOKEN
    print(ray.get(ray.remote(lambda: "answered").remote()), asks, flush=True)
"""


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("first", "asks"),
    [
        ("import ray", True),  # which has read its settings by then
        ("os.environ['RAY_AUTH_MODE'] = 'disabled'", False),
    ],
)
def test_a_cluster_of_ones_own_asks_for_a_token_whenever_ray_was_imported(environment, folder, first, asks):
    environment = {key: value for key, value in environment.items() if not key.startswith("RAY_AUTH")}
    environment |= {"HOME": folder}
    code = TOKENS.format(first=first)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"answered {asks}"]
    assert not os.path.exists(os.path.join(folder, ".ray"))


CONNECT = """
from distsub.runtime.connect import connect
import ray
with connect(lambda text: print(text, flush=True)):
    print(ray.get(ray.remote(lambda: "answered").remote()), flush=True)
"""


@pytest.fixture
def connecting(environment):
    """A process that starts a cluster of its own and asks it something."""
    with subprocess.Popen(
        [sys.executable, "-c", CONNECT], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        yield process
        process.kill()


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    "kills", [[("gcs_server", 0.0), ("raylet", 0.0)], [("raylet", 1.0), ("gcs_server", 1.5)]], ids=["soon", "late"]
)
def test_a_process_of_ray_that_is_killed_while_it_starts_costs_one_attempt(connecting, reaper, kills):
    """Each of two: a start has three attempts."""
    for attempt, (name, delay) in enumerate(kills, start=2):
        killed = reaper(connecting.pid, name, 1, delay).killed
        said = connecting.stdout.readline()
        assert len(killed) == 1 and "no Ray cluster came up here (" in said and f"attempt {attempt} of 3" in said
    out, error = connecting.communicate(timeout=300)
    assert connecting.returncode == 0, error
    assert out.splitlines() == ["answered"]


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_cluster_that_never_comes_up_is_given_up_after_three_attempts(connecting, reaper):
    killed = reaper(connecting.pid, "gcs_server", 99, delay=0.3).killed  # Ray misses one killed at once after 30 s
    out, error = connecting.communicate(timeout=300)
    assert len(killed) == 3 and connecting.returncode == 1 and "attempt 3 of 3" in out
    assert "ClusterError: no Ray cluster could be started here in 3 attempts: " in error.strip().splitlines()[-1]


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_cluster_of_ones_own_ends_with_its_driver_however_that_ends(environment, number):
    code = CONNECT + "    import time\n    time.sleep(300)\n"
    with subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        while process.stdout.readline() != "answered\n":
            assert process.poll() is None
        found = [process.pid]
        for pid in found:
            found += own.children(pid)
        assert len(found) > 4
        process.send_signal(number)
        process.wait(60)
        end = time.monotonic() + 60
        while left := [pid for pid in found[1:] if os.path.exists(f"/proc/{pid}")]:
            assert time.monotonic() < end, left
            time.sleep(0.2)
