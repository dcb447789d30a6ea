"""Faults on real Ray processes: after each, the table is that of the undisturbed run, times aside.

`pytest tests/runtime/test_faults.py -m slow -s` prints how long each took to recover: from the fault to the next row,
or, where trials run on beside it, to the new start of what was lost. docs/reliability.md keeps the figures.
"""

import contextlib
import fcntl
import os
import random
import re
import signal
import statistics
import tempfile
import time
from pathlib import Path
from textwrap import indent

import pytest

from distsub.results import Store
from distsub.runtime import own

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def say(fault, seconds):
    print(f"\n{fault}: recovered after {seconds:.1f} s")


def both_busy(run, starts, rig):
    """Wait until both nodes have begun a trial."""
    nodes = {node.node_id for node in rig.nodes}
    run.until(lambda: {node for _, node, *_ in starts.read()} >= nodes, "use of both nodes")


def lost(run):
    """List the beginnings of the ids of the trials that the run has begun again so far, in order."""
    return re.findall(r"^\[[^]]*\] retry .*\[(\w+)\]$", run.log(), re.MULTILINE)


def back(run, starts, number, since):
    """Wait until a run has lost so many trials and the last of these has begun again; give the seconds since then.

    Which trial a fault hits is asked of the run: a process may have ended one and not begun the next.
    """
    run.until(lambda: len(lost(run)) >= number, f"loss of {number} trials")
    trial = lost(run)[number - 1]
    run.until(lambda: any(t.startswith(trial) and at > since for at, *_, t in starts.read()), f"new start of {trial}")
    return time.time() - since


@pytest.fixture
def two(rig, starts):
    """A rig of two nodes on which a training lasts long enough to be hit."""
    starts.patch(delay=2.0)
    rig.nodes = [rig.add(), rig.add()]
    return rig


KILLS = int(os.environ.get("DISTSUB_KILLS", "4"))
"""Each costs a start of Ray; `make soak` asks for twenty, and test_inline kills twenty times without Ray."""


def test_kills_of_the_driver(computed, small_sweep, tmp_path, starts, environment, distsub_run, request):
    """Half at any moment, most of them while it starts; half soon after it has written another row."""
    seeds = max(2, KILLS * 3 // 10)
    small_sweep.write_text(small_sweep.read_text().replace("seeds = 2", f"seeds = {seeds}"))
    truth, seed, out = request.getfixturevalue("truth"), int(time.time()), tmp_path / "killed"
    print(f"\nseed {seed}")
    starts.patch(delay=1.0)
    environment["PYTHONPATH"] = os.pathsep.join([str(starts.site), os.environ.get("PYTHONPATH", "")])
    draw, written, recoveries = random.Random(seed), {}, []
    for kill in range(KILLS):
        began, run = time.monotonic(), distsub_run(small_sweep, out, environment)
        if kill % 2:
            run.until(lambda run=run: run.rows() > len(written), "a row more")
            recoveries.append(time.monotonic() - began)
            time.sleep(draw.uniform(0.0, 1.5))
        else:
            time.sleep(draw.uniform(0.2, 6.0))
        assert run.poll() is None, run.log()
        run.end()  # the driver and the Ray it has started
        for file in (out / "observations").glob("*.parquet"):
            stamp = file.stat().st_mtime_ns
            assert written.setdefault(file.name, stamp) == stamp, "a finished trial was run again"
    assert KILLS // 2 <= len(written) < len(truth)
    say(
        f"driver killed {KILLS} times, {len(written)} of {len(truth)} rows by then; median",
        statistics.median(recoveries),
    )
    distsub_run(small_sweep, out, environment).finish(truth)
    assert all((out / "observations" / name).stat().st_mtime_ns == stamp for name, stamp in written.items())


DIE = "sys.modules['distsub.runtime.trainable'].perform = lambda *_: os.kill(os.getpid(), 9)"

LIMIT = """\
import resource
used = next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith("VmData:"))
resource.setrlimit(resource.RLIMIT_DATA, (used + (1 << 30), -1))
try:
    bytearray(2 << 30)
finally:
    resource.setrlimit(resource.RLIMIT_DATA, (-1, -1))
"""

ONE_AFTER_THE_OTHER = """\
first, second = {first!r}, {second!r}
if not os.path.exists(first):
    open(first, "w").close()
{limit}
elif not os.path.exists(second):
    open(second, "w").close()
{die}
"""


def test_processes_that_fail_are_killed_or_stand_still_under_one_run(
    two, starts, small_sweep, tmp_path, truth, distsub_run
):
    """No memory for a trial, one killed while it waits for its next, one killed while it trains, a node that pauses."""
    small_sweep.write_text(small_sweep.read_text().replace("retries = 1", "retries = 9"))  # all may hit one trial
    flags = [tmp_path / "first", tmp_path / "second"]
    first, second = map(str, flags)
    faults = ONE_AFTER_THE_OTHER.format(first=first, second=second, limit=indent(LIMIT, " " * 4), die=f"    {DIE}")
    starts.patch(delay=2.0, more=faults)
    run = distsub_run(small_sweep, tmp_path / "processes", two.environment)
    run.until(lambda: all(flag.exists() for flag in flags), "both faults inside")
    run.until(lambda: "the trial's process died" in run.log(), "loss of the process that waited")
    began = len(starts.read())
    run.until(lambda: len(starts.read()) > began, "another start")
    _, _, pid, _ = starts.read()[-1]
    known, killed = len(lost(run)), time.time()
    two.signal(pid, signal.SIGKILL)
    say("worker killed", back(run, starts, known + 1, killed))
    stopped = two.processes(two.nodes[0])
    with still(stopped):
        end = time.monotonic() + 4.0  # a short stop is waited out
        while time.monotonic() < end and run.poll() is None:
            time.sleep(0.2)
    run.finish(truth)
    assert "MemoryError" in run.log() and "retry" in run.log()


@contextlib.contextmanager
def still(pids):
    """Let processes stand still for a while."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def test_nodes_that_stand_still_leave_with_notice_and_are_lost_under_one_run(
    computed, two, starts, small_sweep, tmp_path, distsub_run, request
):
    """One stands still until it counts as lost, and wakes again; meanwhile one leaves after a notice, one without."""
    # A grid asks for the same trials whatever is known when; bisection learns from the seeds that are ahead.
    text = small_sweep.read_text().replace("seeds = 2", "seeds = 4").replace('"bisection"', '"grid"')
    small_sweep.write_text(text.replace("retries = 1", "retries = 9"))
    truth = request.getfixturevalue("truth")
    gate = tmp_path / "gate"  # no training ends before both nodes have one and one of them stands still
    starts.patch(delay=2.0, more=f"while not os.path.exists({str(gate)!r}):\n    time.sleep(0.1)")
    run = distsub_run(small_sweep, tmp_path / "nodes", two.environment)
    frozen, leaves = two.nodes
    both_busy(run, starts, two)
    with still(two.processes(frozen)):
        gate.touch()
        stopped, third = time.monotonic(), two.add()
        two.drain(leaves, seconds=4)
        noticed = time.time()
        time.sleep(4)
        two.cluster.remove_node(leaves, allow_graceful=False)
        rows = run.rows()
        say("spot notice, node lost 4 s later", run.until(lambda: run.rows() > rows, "a row"))
        two.add()
        run.until(lambda: third.node_id in [node for _, node, *_ in starts.read()], "use of the third node")
        known, removed = len(lost(run)), time.time()
        two.cluster.remove_node(third, allow_graceful=False)
        say("node lost", back(run, starts, known + 1, removed))
        # Ray declares a node dead that has not answered for a while: half a minute to a minute.
        gone = re.compile(rf"node id: {frozen.node_id} .*marked dead")
        run.until(lambda: gone.search(run.log()), "loss of the node that stands still")
        say("node stopped for good, known as lost", time.monotonic() - stopped)
    run.finish(truth)
    rows = [row.trial.id for row in Store.open(str(run.out)).read()]
    assert len(rows) == len(set(rows))
    assert not [when for when, node, *_ in starts.read() if node == leaves.node_id and when > noticed + 1.0]


EAT = """\
eaten = b"x" * (5 << 30)
time.sleep(60)
"""


def memory(name):
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{name}:"))


@pytest.fixture
def full_at(monkeypatch):
    """Let Ray take its node for full when 3 GiB more are used than now, by one test of the machine at a time."""
    with open(os.path.join(tempfile.gettempdir(), "distsub-test-memory.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield from _full_at(monkeypatch)


def _full_at(monkeypatch):
    total, free = (memory(name) for name in ("MemTotal", "MemAvailable"))
    if free < 8 << 30:
        pytest.skip("needs 8 GiB of free memory")
    monkeypatch.setenv("RAY_memory_usage_threshold", f"{(total - free + (3 << 30)) / total:.3f}")
    yield


def test_a_trial_that_the_memory_monitor_kills(
    computed, starts, small_sweep, tmp_path, truth, distsub_run, full_at, request, with_resources
):
    """Ray kills the process when its node runs full, and ends the driver's whole run with it; the run begins anew."""
    with_resources(small_sweep, cpus_per_trial=1, retries=9)  # it kills what runs beside, for others' memory too
    rig, flag = request.getfixturevalue("rig"), tmp_path / "once"
    starts.patch(more=EAT, once=flag)
    rig.add()
    run = distsub_run(small_sweep, tmp_path / "monitor", rig.environment)
    run.until(flag.exists, "allocation")
    say("process killed for memory", run.until(lambda: len(starts.read()) > 1, "another start"))
    run.finish(truth)
    assert run.log().count("ray      connecting") >= 2


def test_the_session_after_memory_pressure_is_killed_while_it_starts(
    computed, starts, small_sweep, tmp_path, truth, distsub_run, full_at, request, reaper, with_resources
):
    """Memory is still short when the run begins anew, on a cluster of its own: each kill costs one more attempt."""
    with_resources(
        small_sweep, cpus_per_trial=1, retries=9
    )  # the monitor kills what runs beside, for others' memory too
    environment, flag = request.getfixturevalue("environment"), tmp_path / "once"
    environment["PYTHONPATH"] = os.pathsep.join([str(starts.site), os.environ.get("PYTHONPATH", "")])
    starts.patch(more=EAT, once=flag)
    with (starts.site / "sitecustomize.py").open("a") as site:  # later sessions are not to be hit by what others use
        site.write(f"if os.path.exists({str(flag)!r}):\n    os.environ['RAY_memory_usage_threshold'] = '1.0'\n")
    run = distsub_run(small_sweep, tmp_path / "short", environment, apart=True)
    run.until(flag.exists, "allocation")
    run.until(lambda: run.log().count("ray      connecting") == 2, "another connection")
    for attempt, name in enumerate(["gcs_server", "raylet"], start=2):
        killed = reaper(run.pid, name, 1, delay=0.2).killed
        said = f"its process {name} died while it started); attempt {attempt} of {own.ATTEMPTS}"
        run.until(lambda said=said: said in run.log(), said)
        assert len(killed) == 1
    run.finish(truth)
