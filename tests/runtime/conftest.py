"""Ray clusters of several nodes on this machine, and sweeps run on them by the command line as a user would."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from textwrap import indent

import computed as computed_trainings
import pytest

from distsub.config import load_sweep, parse_sweep
from distsub.preflight.checks import check
from distsub.results import Store
from distsub.runtime import launch, own

TIMES = {"wall_s", "eval_s", "peak_bytes", "provenance"}


def table_of(out):
    """Every row by trial, without what depends on the clock."""
    rows = Store.open(str(out)).table().to_pylist()
    return {row["trial_id"]: {key: value for key, value in row.items() if key not in TIMES} for row in rows}


@pytest.fixture
def rows_of():
    return table_of


PERFORM = """
import json, sys
from distsub.records import Trial
from distsub.results.schema import setup_from_json
from distsub.runtime.worker import WorkerConfig, perform
setup, d, eta = json.loads(sys.argv[2])
trial, config = Trial(setup_from_json(setup), d, eta), json.loads(sys.argv[3])
perform(trial, WorkerConfig(sys.argv[1], checkpoint_s=0.0, **config), lambda step, steps: print(step, flush=True))
"""


@pytest.fixture
def trained_apart(warm):
    """Train a trial in a process of its own: to the end, giving the steps it made, or to where it is killed."""

    def train(store, trial, kill_at=None, program=warm.code, **config):
        parts = [trial.setup.identity, trial.d, trial.eta]
        command = [*program, PERFORM, store.uri, json.dumps(parts), json.dumps(config)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            if kill_at is None:
                steps = [int(line) for line in process.stdout]
            else:
                steps = []
                while not steps or steps[-1] < kill_at:
                    steps.append(int(process.stdout.readline()))
                process.send_signal(signal.SIGKILL)
                process.stdout.read()  # until nothing of it is left
        assert process.returncode == (0 if kill_at is None else -signal.SIGKILL)
        return steps

    return train


class Run(subprocess.Popen):
    """`distsub run` in a process group of its own, its lines in a file."""

    def __init__(self, program, sweep, out, environment, *more):
        beside = os.path.join(environment["RAY_TMPDIR"], "run") if "://" in str(out) else out
        self.out, self._lines = out, f"{beside}-{time.monotonic_ns()}.log"
        with open(self._lines, "w") as sink:
            super().__init__(
                [*program, "run", str(sweep), "--out", str(out), "--no-adapters", *more],
                env=environment,
                stdout=sink,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def log(self):
        with open(self._lines) as file:
            return file.read()

    def rows(self):
        """Count finished rows."""
        folder = os.path.join(self.out, "observations")
        return len([name for name in os.listdir(folder) if name.endswith(".parquet")]) if os.path.isdir(folder) else 0

    def until(self, condition, what, seconds=240):
        """Wait for a condition while the run lasts; give the seconds it took."""
        began = time.monotonic()
        while not condition():
            assert self.poll() is None, f"ended before {what}:\n{self.log()}"
            assert time.monotonic() - began < seconds, f"no {what} in {seconds} s:\n{self.log()}"
            time.sleep(0.1)
        return time.monotonic() - began

    def finish(self, truth=None, seconds=400):
        """Wait for the end, which must be a good one; with `truth`, the table must be that of the undisturbed run."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(seconds)
        assert self.returncode == 0, f"{self.returncode} after at most {seconds} s:\n{self.log()}"
        if truth is not None:
            ours = table_of(self.out)
            # Tune starts the first d before the threshold is known, so it may hold a trial that inline never needed.
            assert {trial: ours.get(trial) for trial in truth} == truth
            assert not Store.open(str(self.out)).damaged

    def end(self):
        """End the group this process leads; a warm one takes the command and the Ray it has started with it."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.wait()


@pytest.fixture
def folder():
    made = tempfile.mkdtemp(prefix="ds-", dir="/tmp")  # Ray's sockets need a short path
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture(scope="session")
def light_site(tmp_path_factory):
    site = tmp_path_factory.mktemp("site")
    (site / "sitecustomize.py").write_text(LIGHT.format(more=""))
    return site


@pytest.fixture
def environment(folder, light_site):
    """Of a process that starts Ray of its own."""
    given = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    given |= {"RAY_TMPDIR": folder, "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
    return given | {"PYTHONPATH": os.pathsep.join([str(light_site), *filter(None, [given.get("PYTHONPATH")])])}


@pytest.fixture
def distsub_run(warm):
    """Start `distsub run`; whatever still runs at the end of the test is ended."""
    runs = []

    def start(sweep, out, environment, *more, apart=False):
        # Only below a process of its own are its children found, such as a Ray that it has started.
        program = (sys.executable, "-m", "distsub.cli") if apart else warm.command
        runs.append(Run(program, sweep, out, environment, *more))
        return runs[-1]

    yield start
    for run in runs:
        run.end()


@pytest.fixture
def sweep(tiny_text):
    return parse_sweep(tiny_text)


@pytest.fixture
def store(sweep, tmp_path):
    return Store.create(str(tmp_path / "out"), sweep.text, sweep.fingerprint, str(tmp_path))


@pytest.fixture
def small_sweep(tiny_text, tmp_path):
    """Two searches of a third of the tiny sweep's trials: two at once, and more to come."""
    path = tmp_path / "small.toml"
    path.write_text(tiny_text.replace('["said", "did"]', '["did"]').replace("etas = [1.0, 3.0]", "etas = [3.0]"))
    return path


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    """Give the rows of a sweep that ran in this process; what says the same runs once."""
    tables = {}

    def rows(path, is_computed=False):
        sweep = check(load_sweep(path))
        key = sweep.text, sweep.places, is_computed  # a sweep's addresses may be relative
        if key not in tables:
            out = tmp_path_factory.mktemp("inline") / "out"
            store = Store.create(str(out), sweep.text, sweep.fingerprint, str(path.parent), sweep.places)
            with pytest.MonkeyPatch.context() as patch:
                if is_computed:
                    patch.setattr("distsub.runtime.worker.train", computed_trainings.train)
                assert launch.run(sweep, store, "inline") == 0
            tables[key] = table_of(out)
        return tables[key]

    return rows


@pytest.fixture
def truth(small_sweep, undisturbed, request):
    """The rows of the undisturbed small sweep."""
    return undisturbed(small_sweep, "computed" in request.fixturenames)


@pytest.fixture
def computed(starts):
    """Let workers compute their rows, where it is not trainings that are tested but who makes which, when and where."""
    starts.are_computed = True
    starts.patch()


LIGHT = """\
import importlib.util, os, sys, time
def lighten(module):  # agents without the dashboard start in a third of the time, and these tests start many
    if "ALL_AGENTS" not in os.environ:
        module.get_dashboard_dependency_error = lambda: ImportError("not wanted")
class Finder:
    patches = {{"ray._private.utils": lighten}}
    files = {{}}
    def find_spec(self, name, path=None, target=None):
        change = self.patches.pop(name, None)
        if change is not None:
            file = self.files.get(name)
            spec = importlib.util.spec_from_file_location(name, file) if file else importlib.util.find_spec(name)
            real = spec.loader.exec_module
            spec.loader.exec_module = lambda module: (real(module), change(module))
            return spec
sys.meta_path.insert(0, Finder())
{more}
"""

NOTE = """\
def patch(module):
    real = module.build_model
    def build(trial, *args, **more):
        import ray
        if ray._private.worker.global_worker.mode != ray.WORKER_MODE:  # the driver tries a step of its own
            return real(trial, *args, **more)
        with open({file!r}, "a") as sink:
            sink.write(f"{{time.time()}} {{ray.get_runtime_context().get_node_id()}} {{os.getpid()}} {{trial.id}}\\n")
        time.sleep({delay})
{more}
        return real(trial, *args, **more)
    module.build_model = build
Finder.patches["distsub.finetune.train"] = patch
"""


COMPUTED = """\
class Nothing(type(sys)):
    EVERY_S = None
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        does = dict.fromkeys(("__init__", "read", "remove", "provide"), lambda *_: None)
        return type(name, (), does)
    def bound(self, *_):
        pass
    is_shortage = advice = release = set_num_threads = bound
class WithoutTorch:  # while the worker's module is loaded, nothing stands for what it imports and only trainings need
    rooms = ("torch", "distsub.adapters.", "distsub.finetune.", "distsub.models.", "distsub.subspace.")
    rooms += ("distsub.runtime.recording", "distsub.runtime.resume")
    state = "before"
    def find_spec(self, name, path=None, target=None):
        if name == "distsub.runtime.worker" and self.state == "before":
            self.state = "found"
            spec = importlib.util.find_spec(name)
            real = spec.loader.exec_module
            spec.loader.exec_module = lambda module: self.load(real, module)
            return spec
        if self.state == "loading" and name.startswith(self.rooms) and name != "distsub.finetune.train":
            return importlib.util.spec_from_loader(name, self)
    def load(self, real, module):
        self.state = "loading"
        real(module)
        self.state = "loaded"
        for name in [name for name, each in sys.modules.items() if isinstance(each, Nothing)]:
            del sys.modules[name]
    def create_module(self, spec):
        return Nothing(spec.name)
    def exec_module(self, module):
        pass
if any(each.endswith("default_worker.py") for each in sys.orig_argv):
    Finder.files["distsub.finetune.train"] = {file!r}
    Finder.patches.setdefault("distsub.finetune.train", lambda module: None)
    sys.meta_path.insert(0, WithoutTorch())
"""


class Starts:
    """What worker processes note when they begin a training; `delay` seconds make it last."""

    are_computed = False

    def __init__(self, folder):
        self.site, self._file = folder / "site", folder / "starts"
        self.site.mkdir()
        self._file.touch()
        self.patch()

    def patch(self, delay=0.0, more="pass", once=None):
        """Say what else happens at the start of a training, whose record is `trial`; with `once`, the first time."""
        if once is not None:
            more = f"if not os.path.exists({str(once)!r}):\n    open({str(once)!r}, 'w').close()\n" + indent(
                more, "    "
            )
        code = NOTE.format(file=str(self._file), delay=delay, more=indent(more, " " * 8))
        if self.are_computed:
            code += COMPUTED.format(file=computed_trainings.__file__)
        (self.site / "sitecustomize.py").write_text(LIGHT.format(more=code))

    def read(self):
        """List (time, node, pid, trial id) of every start so far."""
        lines = [line.split() for line in self._file.read_text().splitlines()]
        return [(float(when), node, int(pid), trial) for when, node, pid, trial in lines]


@pytest.fixture
def starts(tmp_path):
    return Starts(tmp_path)


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def free_port():
    return _free_port


@pytest.fixture
def with_resources():
    def write(sweep, **resources):
        """Write other [resources] into a sweep file."""
        text = sweep.read_text().split("[resources]")[0] + "[resources]\n"
        sweep.write_text(text + "".join(f"{key} = {value}\n" for key, value in resources.items()))
        return sweep

    return write


def _small():
    """Keep a node small, and give its agents their ports: a node dies when one has not chosen its own in 15 s."""
    ports = ("metrics_agent_port", "runtime_env_agent_port", "metrics_export_port")
    return {"object_store_memory": 80_000_000} | {name: _free_port() for name in ports}


def patiently(start, tries=4):
    """Start a node again when it did not come up in Ray's 30 s, as happens on a machine that is busy."""
    while True:
        tries -= 1
        try:
            return start()
        except Exception:
            if not tries:
                raise


class Reaper(threading.Thread):
    """Kills processes that a process of this test has started, as soon as they appear; `killed` counts them."""

    def __init__(self, above, name, times, delay=0.0):
        super().__init__(daemon=True)
        self._above, self._name, self._times, self._delay = above, name, times, delay
        self.killed, self.over = [], threading.Event()

    def run(self):
        while len(self.killed) < self._times and not self.over.wait(0.02):
            found = [self._above]
            for pid in found:  # which grows
                found += own.children(pid)
            for pid in found[1:]:
                with contextlib.suppress(OSError):
                    if Path(f"/proc/{pid}/comm").read_text().strip() == self._name and pid not in self.killed:
                        time.sleep(self._delay)
                        os.kill(pid, signal.SIGKILL)
                        self.killed.append(pid)


@pytest.fixture
def reaper():
    made = []

    def start(above, name, times, delay=0.0):
        made.append(Reaper(above, name, times, delay))
        made[-1].start()
        return made[-1]

    yield start
    for each in made:
        each.over.set()
        each.join(10)


class Rig:
    """A head without CPUs and nodes of one CPU, each a set of real Ray processes on this machine."""

    def __init__(self, cluster, environment):
        self.cluster = cluster
        self.environment = environment | {"RAY_ADDRESS": self.cluster.address}

    def add(self, **resources):
        """Start a node; its processes inherit this process's environment."""
        return patiently(lambda: self.cluster.add_node(**{"num_cpus": 1, **resources}, **_small()))

    def drain(self, node, seconds):
        """Give notice, as a spot market does, that a node will go in so many seconds."""
        from ray._raylet import GcsClient
        from ray.core.generated.autoscaler_pb2 import DrainNodeReason

        accepted, why = GcsClient(self.cluster.address).drain_node(
            node.node_id,
            DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION"),
            "spot notice",
            int((time.time() + seconds) * 1e3),
        )
        assert accepted, why

    def processes(self, node):
        """List a node's processes: those that this rig has started for it, and theirs."""
        found = [info.process.pid for kind in node.all_processes.values() for info in kind]
        for pid in found:  # which grows
            for file in Path(f"/proc/{pid}/task").glob("*/children"):
                with contextlib.suppress(OSError):
                    found += map(int, file.read_text().split())
        return found

    def signal(self, pid, number):
        """Send a signal to a process of this rig, and to no other."""
        assert any(pid in self.processes(node) for node in self.cluster.list_all_nodes())
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def start_head(**options):
    """Start a cluster of a head alone."""
    from ray.cluster_utils import Cluster

    os.makedirs("/tmp/ray", exist_ok=True)  # Ray notes its last cluster there
    return patiently(lambda: Cluster(True, head_node_args=options | _small()))


@pytest.fixture
def head_of_one(monkeypatch):
    """A head with one CPU, of one test's own, whose agents export metrics."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("ALL_AGENTS", "1")
    made = []

    def start():
        made.append(start_head(num_cpus=1))
        return made[-1]

    yield start
    for each in made:
        each.shutdown()


@pytest.fixture(scope="session")
def head(light_site):
    """A head that tests share: what they do harm to are nodes of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(light_site), os.environ.get("PYTHONPATH", "")]))
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setattr("ray._private.utils.get_dashboard_dependency_error", lambda: ImportError("not wanted"))
        cluster = start_head(num_cpus=0, include_dashboard=False)
    yield cluster
    cluster.shutdown()


@pytest.fixture
def rig(head, environment, starts, folder, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(starts.site), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setattr("ray._private.utils.get_dashboard_dependency_error", lambda: ImportError("not wanted"))
    yield Rig(head, environment)
    for node in list(head.worker_nodes):
        head.remove_node(node, allow_graceful=False)
