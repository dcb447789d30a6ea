"""A results directory on S3, for real: a server on loopback, every command, credentials nowhere, and a bad network."""

import importlib.util
import os
import random
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from pyarrow import fs as pafs

from distsub import load_adapter
from distsub.config import parse_sweep
from distsub.errors import AdapterError, OutputError
from distsub.files import Files
from distsub.models import pretrained
from distsub.records import Budget, Model, Observation, Random, Seeds, Setup, Subspace, Task, Trial
from distsub.results.compact import compact, write_parts
from distsub.results.store import Store
from distsub.runtime import facts
from distsub.subspace.model import SubspaceModel

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(importlib.util.find_spec("moto") is None, reason="moto[server] is not installed"),
]

ROOT = Path(__file__).parents[2]
KEY, SECRET = "KEYthatNobodySees", "SECRETthatNobodySees"


class Flaky:
    """A server that fails: of the writes of rows one in ten before it is done, one in ten after."""

    def __init__(self, server):
        self.server, self.draw, self.on, self.failed, self.late = server, random.Random(0), False, 0, 0
        self.requests = []

    def __call__(self, environ, start_response):
        self.requests.append(f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}?{environ.get('QUERY_STRING', '')}")
        is_write = environ["REQUEST_METHOD"] in ("PUT", "POST") and "/observations/" in environ["PATH_INFO"]
        fate = self.draw.random() if self.on and is_write else 1.0
        if fate >= 0.2:
            return self.server(environ, start_response)
        if fate < 0.1:
            environ["wsgi.input"].read()
            self.failed += 1
        else:
            list(self.server(environ, lambda *_: None))
            self.late += 1
        start_response("503 Service Unavailable", [("Content-Length", "0")])
        return []


@pytest.fixture
def bucket(monkeypatch):
    """Start a server; give its address, its bucket, and the switch of its faults."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Silent(WSGIRequestHandler):
        def log(self, *_):
            pass

    for name, value in {
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    flaky = Flaky(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, flaky, threaded=True, request_handler=Silent)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    address = server.server_address[:2]
    reset = urllib.request.Request(f"http://{address[0]}:{address[1]}/moto-api/reset", method="POST")
    urllib.request.urlopen(reset).close()  # what another test of this process left outlives its server
    flaky.requests.clear()
    filesystem, _ = pafs.FileSystem.from_uri(f"s3://bucket?{options(address)}&allow_bucket_creation=true")
    filesystem.create_dir("bucket")
    yield address, filesystem, flaky
    server.shutdown()
    thread.join()
    server.server_close()


def options(address):
    return f"endpoint_override={address[0]}:{address[1]}&scheme=http&region=us-east-1"


def test_every_command_on_s3_and_no_credentials_anywhere(bucket, tiny_text, tmp_path, warm):
    address, filesystem, server = bucket
    text = tiny_text.replace("steps = 40", "steps = 4").replace("dims = [8, 16, 64, 256]", "dims = [8, 16]")
    sweep = tmp_path / "small.toml"
    sweep.write_text(text.replace("etas = [1.0, 3.0]", "etas = [1.0]").replace("seeds = 2", "seeds = 1"))
    out = f"s3://bucket/runs/small?{options(address)}"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    said = []

    def distsub(*arguments):
        done = warm.run(*arguments, env=environment, cwd=tmp_path)
        said.append(done.stdout + done.stderr)
        assert done.returncode == 0, said[-1]
        return done.stdout

    distsub("run", sweep, "--out", out, "--backend", "inline")
    status = distsub("status", out)
    assert "tiny: done, 2 of 2 searches ended" in status and "d90" in status
    counted = distsub("query", out, "select count(*) n from observations", "--format", "json")
    assert int(re.findall(r"\d+", counted)[0]) >= 3
    assert '"loose": 0' in distsub("compact", out, "--format", "json")
    table = status.partition("\n\n")[2]  # above it stands how long ago the last row was written
    server.requests.clear()
    assert table and distsub("status", out).partition("\n\n")[2] == table
    assert len(server.requests) < 10, server.requests
    assert distsub("query", out, "select count(*) n from observations", "--format", "json") == counted
    assert "report.html" in distsub("report", out, "--to", tmp_path / "report")
    assert "nothing left to do" in distsub("run", sweep, "--out", out, "--backend", "inline")
    assert "s3://bucket/runs/small" in said[0]

    infos = filesystem.get_file_info(pafs.FileSelector("bucket/runs/small", recursive=True))
    stored = {info.path: filesystem.open_input_file(info.path).readall() for info in infos if info.is_file}
    local = {str(path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert any("/parts/" in path for path in stored) and any(path.endswith("sweep.toml") for path in stored)
    assert not any("/observations/" in path and path.endswith(".parquet") for path in stored)
    rows = str(Store.open(out).table().to_pylist()).encode()  # as text: the files are compressed
    for where, data in {**stored, **local, "rows": rows, "said": "".join(said).encode()}.items():
        assert KEY.encode() not in data and SECRET.encode() not in data, where


def observation(number, status="finished"):
    task = Task(name="toy", source="toy.csv", text=("a",))
    trial = Trial(
        Setup(Model("package:tiny"), task, Subspace(Random("dense")), 0.001, Budget(10), Seeds()), 10 + number, 0.3
    )
    return Observation(trial, status, score=0.5 if status == "finished" else None)


def test_an_adapter_in_a_bucket(bucket, tiny_model, tmp_path):
    address, _, _ = bucket
    model = SubspaceModel(pretrained.build(pretrained.prepare(tiny_model), 2, 3), 60).eval()
    with torch.no_grad():
        model.coordinates.normal_()
    model.save_pretrained(tmp_path, base_model=tiny_model, head_seed=3)
    files = Files.at(f"s3://bucket/runs?{options(address)}")
    for file in tmp_path.glob("adapter_*"):
        files.put(f"adapters/0123/{file.name}", file.read_bytes())
    there = f"s3://bucket/runs/adapters/0123?{options(address)}"
    ids = torch.tensor([[2, 5, 6, 3]])
    with torch.no_grad():
        assert torch.equal(load_adapter(there)(ids).logits, model(ids).logits)
    assert facts.inspect(there)["num_trained"] == 60
    with pytest.raises(AdapterError, match=r"no adapter in s3://bucket/runs: adapter_config.json cannot be read"):
        load_adapter(f"s3://bucket/runs?{options(address)}")


def test_one_put_in_five_fails_and_no_row_is_lost_or_twice(bucket):
    address, _, flaky = bucket
    uri = f"s3://bucket/runs/flaky?{options(address)}"
    store = Store.create(uri, "title = 'x'\n", "f00d")
    flaky.on = True
    for number in range(40):
        if number % 4 == 0:
            store.write(observation(number, "error"))
        store.write(observation(number))
        if number == 10:
            compact(store)
    store.write(observation(89, "error"))
    rows = Store.open(uri).read()
    assert sorted(row.trial.d for row in rows) == [*range(10, 50), 99]
    assert [row.status for row in rows].count("finished") == 40
    assert flaky.failed >= 2 and flaky.late >= 2
    # What a better row could replace stays in a file of its own, where nothing can be removed in one step.
    assert compact(store)["loose"].to_pylist() == [1]
    assert len(store.trial_ids()) == 41 and store.damaged == []


@pytest.mark.parametrize("backend", ["inline", "tune"])
def test_a_trial_costs_at_most_three_requests_and_the_end_one_pass_over_the_rows(
    bucket, environment, tiny_text, tmp_path, backend, warm
):
    address, _, server = bucket
    text = tiny_text.replace("eval_every = 10", "eval_every = 5")
    (tmp_path / "sweep.toml").write_text(text)
    out = f"s3://bucket/runs/counted?{options(address)}"
    command = [*warm.command, "run", str(tmp_path / "sweep.toml"), "--out", out, "--backend", backend, "--plain"]

    def requests():
        server.requests.clear()
        done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        return list(server.requests)

    def of_drivers_beat(line):
        return "PUT /bucket/runs/counted/drivers/" in line  # goes by time

    made = [line for line in requests() if not of_drivers_beat(line)]
    rows = Store.open(out).read()
    assert len(rows) >= 12
    last = max(i for i, line in enumerate(made) if re.match(r"PUT .*/observations/[0-9a-f]", line)) + 1
    trials, end = made[:last], made[last:]
    mine = {row.trial.id: [line for line in trials if row.trial.id in line] for row in rows}
    # A checkpoint goes by time, or is what a trial leaves that is not wanted for a while; nothing else looks for one.
    once = [
        lines for lines in mine.values() if not any("PUT /bucket/runs/counted/checkpoints/" in line for line in lines)
    ]
    assert len(once) >= len(rows) // 2 and not any("/checkpoints/" in line for lines in once for line in lines)
    assert max(map(len, once)) <= 3, mine
    of_inputs = Counter(line for line in trials if "/counted/inputs/" in line)  # each is sent once, and read by workers
    assert {number for line, number in of_inputs.items() if line.startswith("PUT")} == {1}
    assert max(of_inputs.values()) <= 3, of_inputs
    assert len(trials) - of_inputs.total() - sum(map(len, mine.values())) <= 40, trials  # the start, and each worker's
    of_rows = [line for line in end if re.search(r"/observations/[0-9a-f]{16}/[0-9a-f]{16}", line)]
    assert len(of_rows) == len(set(of_rows)) == 2 * len(rows), of_rows  # each is found and read, once
    posts = [line for line in end if line.startswith("POST")]
    assert 1 <= len(posts) <= 2  # and all go at once, as do the checkpoints where there are any
    assert len(end) - len(of_rows) <= 45, end
    store = Store.open(out)
    assert len(store.trial_ids()) == len(rows) and store.loose == 0 and not store.damaged
    print(f"{backend}: {len(rows)} trials, {len(trials)} requests until the last row, {len(end)} from there")
    assert len([line for line in requests() if not of_drivers_beat(line)]) <= 70  # nothing left to do


def test_the_status_of_ten_thousand_rows_takes_few_requests(bucket, environment, warm):
    """Rows that `compact` has merged are parts: what is asked goes by their number, not by that of the rows."""
    spec = importlib.util.spec_from_file_location("table_scale", ROOT / "benchmarks" / "table_scale.py")
    spec.loader.exec_module(scale := importlib.util.module_from_spec(spec))
    text = re.sub(r"models = .*", 'models = ["org/model-a"]', scale.SWEEP)
    text = re.sub(r"tasks = .*", 'tasks = ["mrpc", "cola", "rte", "sst2", "qnli"]', text)
    sweep = parse_sweep(text, Path("."), "many rows")
    address, _, server = bucket
    out = f"s3://bucket/runs/many?{options(address)}"
    store = Store.create(out, text, sweep.fingerprint)
    rows = pa.concat_tables(scale.batches(sweep)).combine_chunks()
    assert rows.num_rows > 10_000
    write_parts(store, rows)
    server.requests.clear()
    done = warm.run("status", out, env=environment)
    assert done.returncode == 0, done.stderr
    print(f"{rows.num_rows} rows: {len(server.requests)} requests")
    assert len(server.requests) < 10, server.requests


@pytest.mark.parametrize("answer", ["refused", "none"])
@pytest.mark.parametrize("what", ["status", "run"])
def test_an_endpoint_that_is_dead_is_told_within_twenty_seconds(tiny_sweep, monkeypatch, answer, what):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if answer == "none":
            server.listen(16)  # takes connections, and says nothing
        out = f"s3://bucket/x?{options(server.getsockname())}"
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, SECRET)
        began = time.monotonic()
        with pytest.raises(OutputError, match=r"^cannot (read|write to) s3://bucket/x \(") as caught:
            _ = Store.open(out) if what == "status" else Store.create(out, tiny_sweep.read_text(), "f00d")
        assert time.monotonic() - began < 20 and "\n" not in str(caught.value) and SECRET not in str(caught.value)


RECORD = """
import sys
from distsub.config import load_sweep
from distsub.results import Store
from distsub.runtime import recording
for each, made in recording.record_all(load_sweep(sys.argv[1]), Store.open(sys.argv[2])):
    print(each.id, made, flush=True)
"""


def test_a_trajectory_is_recorded_once_however_many_machines_need_it(bucket, tiny_text, tmp_path, warm):
    address, filesystem, server = bucket
    path, out = tmp_path / "sweep.toml", f"s3://bucket/runs/recorded?{options(address)}"
    path.write_text(tiny_text.replace("seeds = 2", "seeds = 1") + "\n[trajectory]\nevery = 20\nlearning_rate = 2e-3\n")
    Store.create(out, path.read_text(), "f00d", str(tmp_path))
    machines = []
    for number in range(3):  # each with a cache of its own
        environment = os.environ | {"DISTSUB_CACHE": str(tmp_path / f"cache-{number}")}
        command = [*warm.code, RECORD, str(path), out]
        machines.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
    said = [machine.communicate()[0].split() for machine in machines]
    assert sorted(made for _, made in said) == ["False", "False", "True"]
    assert len({trajectory for trajectory, _ in said}) == 1
    files = {
        tuple(sorted((file.name, file.read_bytes()) for file in folder.glob("results/*/trajectories/*/*")))
        for folder in tmp_path.glob("cache-*")
    }
    assert len(files) == 1 and len(next(iter(files))) == 3  # of each machine the same
    infos = filesystem.get_file_info(pafs.FileSelector("bucket/runs/recorded/trajectories", recursive=True))
    assert not [info.path for info in infos if info.path.endswith(".claim")]
    assert sum(bool(re.match("PUT .*/step-", line)) for line in server.requests) == 2
