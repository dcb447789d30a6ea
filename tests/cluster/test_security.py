"""What docs/security.md promises of the code: nothing loaded runs, SQL stays inside, secrets stay outside."""

import ast
import contextlib
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

import pytest
from builders import with_keys

from distsub.errors import QueryError, UnavailableError

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted((ROOT / "distsub").rglob("*.py"))
LOADERS = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "yaml"}
SECRET = "planted-secret-7f3a9c"


def calls(source: str) -> list[tuple[str, dict[str, ast.expr]]]:
    """List the calls in a module: the dotted name as it is written, and the keyword arguments."""
    return [
        (ast.unparse(node.func), {word.arg: word.value for word in node.keywords if word.arg})
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call)
    ]


def unsafe(source: str) -> list[str]:
    """List what in a module could run code that comes out of a file."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in LOADERS]
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in LOADERS:
            found += [alias.name for alias in node.names if alias.name != "UnpicklingError"]
    for name, words in calls(source):
        if name == "torch.load" and ast.unparse(words.get("weights_only", ast.Constant(None))) != "True":
            found.append("torch.load without weights_only=True")
        if "allow_pickle" in words and ast.unparse(words["allow_pickle"]) != "False":
            found.append("allow_pickle")
        if "trust_remote_code" in words and ast.unparse(words["trust_remote_code"]) != "False":
            found.append("trust_remote_code")
        if name in ("eval", "exec", "read_pickle", "Tuner.restore", "tune.Tuner.restore", "os.system"):
            found.append(name)
        if ast.unparse(words.get("shell", ast.Constant(False))) != "False":
            found.append("shell")
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_module_runs_code_out_of_a_file(path):
    assert unsafe(path.read_text()) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "torch.load(f)",
        "torch.load(f, weights_only=False)",
        "np.load(f, allow_pickle=True)",
        "AutoModel.from_pretrained(p, trust_remote_code=True)",
        "AutoModel.from_pretrained(p, trust_remote_code=flag)",
        "eval(text)",
        "tune.Tuner.restore(path, T)",
        "subprocess.run(c, shell=True)",
    ],
)
def test_the_search_finds_what_is_planted(source):
    assert unsafe(source)


def test_transformers_is_told_not_to_run_code():
    """The default may change, so every class that looks at a model's own files is told."""
    told = [
        words
        for path in MODULES
        for name, words in calls(path.read_text())
        if re.fullmatch(r"Auto\w+\.from_pretrained", name)
    ]
    assert len(told) >= 2
    assert all(ast.unparse(words["trust_remote_code"]) == "False" for words in told)


class Evil:
    """Leaves a file where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("how", ["zip", "plain"])
def test_a_checkpoint_that_is_a_program_is_refused_in_one_line(tmp_path, how):
    import torch

    from distsub.models import pretrained

    model, mark = tmp_path / "model", tmp_path / "ran"
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "bert"}')
    weights = {"a": Evil(mark)}
    if how == "zip":
        torch.save(weights, model / "pytorch_model.bin")
    else:
        (model / "pytorch_model.bin").write_bytes(pickle.dumps(weights))
    with pytest.raises(UnavailableError) as caught:
        pretrained.prepare(str(model))
    assert "\n" not in str(caught.value) and "weights_only" not in str(caught.value)
    assert not mark.exists()
    pickle.loads(pickle.dumps(weights))
    assert mark.exists(), "the planted program does nothing, so the test shows nothing"


def test_a_model_that_brings_its_own_code_is_refused_in_one_line(tmp_path):
    import torch
    from safetensors.torch import save_file

    from distsub.models import pretrained

    mark = tmp_path / "ran"
    model = tmp_path / "model"
    model.mkdir()
    classes = {"AutoConfig": "own.Config", "AutoModelForSequenceClassification": "own.Model"}
    (model / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": classes}))
    (model / "own.py").write_text(f"import os\nos.mkdir({str(mark)!r})\n")
    save_file({"a": torch.zeros(2)}, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UnavailableError, match=r"code of its own.*never run; use another model") as caught:
        pretrained.build(pretrained.prepare(str(model)), 2, head_seed=0)
    assert "\n" not in str(caught.value)
    assert not mark.exists()


@pytest.mark.parametrize(
    "sql",
    [
        "select getenv('PLANTED')",
        "select * from read_text('/proc/self/environ')",
        "from '/proc/self/environ'",
        "select * from read_csv_auto('/etc/passwd')",
        "select * from sniff_csv('/etc/passwd')",
        "select * from parquet_metadata('{file}')",
        "select * from read_ndjson('/etc/passwd')",
        "select * from glob('/etc/*')",
        "with x as (select * from read_blob('/etc/passwd')) select * from x",
        "select (select content from read_text('/etc/passwd'))",
        "select * from query_table('/etc/passwd')",
        "select * from query('from read_text(''/etc/passwd'')')",
        "describe select * from '/etc/passwd'",
        "summarize select * from '/etc/passwd'",
        "explain analyze select * from read_text('/etc/passwd')",
        "copy (select 1) to '{file}'",
        "copy (select 1) to '/dev/stdout'",
        "attach '{file}'",
        "attach ':memory:' as other",
        "install httpfs",
        "load httpfs",
        "pragma database_list",
        "pragma threads=1",
        "set file_search_path = '/'",
        "set enable_external_access = true",
        "set home_directory = '/'",
        "create secret s (type s3, key_id 'a', secret 'b')",
        "create macro m() as table select * from read_text('/etc/passwd')",
        "create function m() as 1",
        "select 1; select 2",
        "select 1; attach '{file}'",
        "select * from 'https://127.0.0.1:1/x.parquet'",
        "select * from 's3://bucket/x.parquet'",
        "export database '{file}'",
    ],
)
def test_sql_reaches_no_file_no_network_and_no_environment(sql, tmp_path, monkeypatch):
    import pyarrow as pa

    from distsub.results.sql import query

    monkeypatch.setenv("PLANTED", SECRET)
    file = tmp_path / "file"
    before = sorted(tmp_path.iterdir())
    with pytest.raises(QueryError) as caught:
        query({"observations": pa.table({"d": [1]})}, sql.format(file=file))
    assert "\n" not in str(caught.value) and SECRET not in str(caught.value) and "root:" not in str(caught.value)
    assert sorted(tmp_path.iterdir()) == before


def test_what_sql_can_ask_of_the_database_itself_holds_no_secret(monkeypatch):
    import pyarrow as pa

    from distsub.results.sql import query

    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN", "RAY_AUTH_TOKEN"):
        monkeypatch.setenv(name, SECRET)
    for function in ("duckdb_settings()", "duckdb_secrets()", "duckdb_variables()", "duckdb_databases()"):
        try:
            told = query({"observations": pa.table({"d": [1]})}, f"select * from {function}").to_pylist()
        except QueryError as error:
            told = str(error)
        assert SECRET not in str(told)


@pytest.fixture
def bucket(monkeypatch):
    """An object store on loopback."""
    server = pytest.importorskip("moto.server")
    import boto3

    one = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    one.start()
    port = one._server.socket.getsockname()[1]
    keys = {"aws_access_key_id": "planted-key", "aws_secret_access_key": SECRET, "region_name": "us-east-1"}
    client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}", **keys)
    reset = urllib.request.Request(f"http://127.0.0.1:{port}/moto-api/reset", method="POST")
    urllib.request.urlopen(reset).close()  # what another test of this process left outlives its server
    client.create_bucket(Bucket="bucket")
    yield f"bucket/sweep?scheme=http&endpoint_override=127.0.0.1:{port}&region=us-east-1", client
    one.stop()


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("where", ["environment", "address"])
def test_secrets_are_in_no_row_no_log_and_no_copy(tmp_path, tiny_text, bucket, where, warm):
    rest, client = bucket
    one = {"methods": ["did"], "seeds": 1, "dims": [8, 16], "etas": [3.0], "learning_rates": [3e-3]}
    (tmp_path / "tiny.toml").write_text(with_keys(tiny_text, **one))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_TOKEN": SECRET, "RAY_AUTH_TOKEN": SECRET}
    uri = f"s3://{rest}"
    if where == "environment":
        environment |= {"AWS_ACCESS_KEY_ID": "planted-key", "AWS_SECRET_ACCESS_KEY": SECRET}
    else:
        uri = f"s3://planted-key:{SECRET}@{rest}"

    def distsub(*arguments):
        return warm.run(*arguments, cwd=tmp_path, env=environment)

    runs = [
        distsub("run", "tiny.toml", "--out", uri, "--backend", "inline"),
        distsub("status", uri),
        distsub("query", uri, "select * from observations", "--format", "json"),
        distsub("query", uri, "select nothing from observations"),
    ]
    assert [run.returncode for run in runs] == [0, 0, 0, 2], runs[0].stderr
    for run in runs:
        assert SECRET not in run.stdout + run.stderr and "planted-key" not in run.stdout + run.stderr
    listed = client.list_objects_v2(Bucket="bucket").get("Contents", [])
    names = [entry["Key"] for entry in listed]
    assert any("observations/" in name for name in names) and any("adapters/" in name for name in names)
    for name in names:
        content = client.get_object(Bucket="bucket", Key=name)["Body"].read()
        assert SECRET.encode() not in content and b"planted-key" not in content, name


def holding(folder: str, *secrets: str, known: dict[str, tuple[int, int]] | None = None) -> set[str]:
    """List the files and directories that have one of some texts in their name or their content.

    Files that are as `known` has them (size, time of the last change) are not read again; it is kept up to date.
    """
    found, known = set(), {} if known is None else known
    for path in Path(folder).rglob("*"):
        name, content = str(path.relative_to(folder)), b""
        with contextlib.suppress(OSError):  # a file that has gone, a socket
            state = path.stat()
            if path.is_file() and known.get(name) != (stamp := (state.st_size, state.st_mtime_ns)):
                content, known[name] = path.read_bytes(), stamp
        if any(secret in name or secret.encode() in content for secret in secrets):
            found.add(name)
    return found


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_address_with_secrets_is_in_no_file_of_ray_and_tune(tmp_path, tiny_text, bucket):
    """On a cluster of its own, looked at again and again while it runs, since Tune's folder goes at the end."""
    rest, client = bucket
    # Trainings that last until Tune has written its state, one after the other.
    small = with_keys(tiny_text, seeds=1, methods=["did"], steps=120, dims=[8, 16])
    (tmp_path / "tiny.toml").write_text(f"{small}max_concurrent_trials = 1\n")
    uri = f"s3://planted-key:{SECRET}@{rest}"
    command = [sys.executable, "-m", "distsub.cli", "run", str(tmp_path / "tiny.toml"), "--out", uri]
    kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    folder = tempfile.mkdtemp(prefix="ds-", dir="/tmp")  # Ray's sockets need a short path
    environment = {**kept, "PYTHONPATH": str(ROOT), "TMPDIR": folder, "RAY_TMPDIR": folder, "HOME": str(tmp_path)}
    environment["TUNE_GLOBAL_CHECKPOINT_S"] = "1"  # Tune writes its state by default so seldom that no run here sees it
    found, known, states, log = set(), {}, {}, tmp_path / "log"

    def look():  # beside the search for secrets, which reads many files and takes long
        while run.poll() is None:
            for path in Path(folder).glob("distsub-tune-*/sweep/experiment_state-*.json"):
                with contextlib.suppress(OSError, ValueError, KeyError):  # gone, or half written
                    states[path.name] = json.loads(path.read_text())["trial_data"]
            time.sleep(0.1)

    try:
        with log.open("w") as sink:
            run = subprocess.Popen(command, env=environment, stdout=sink, stderr=subprocess.STDOUT)
        watcher = threading.Thread(target=look)
        watcher.start()
        try:
            while run.poll() is None:
                found |= holding(folder, "planted-key", SECRET, known=known)
                time.sleep(0.5)
        finally:
            run.kill()
            run.wait()
            watcher.join()
        found |= holding(folder, "planted-key", SECRET)
        assert run.returncode == 0, log.read_text()
        assert any("session_" in str(path) and path.suffix == ".log" for path in Path(folder).rglob("*.log"))
        [trials] = states.values()
        assert len(trials) >= 2, "Tune's state was not seen"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    assert found == set() and holding(str(tmp_path), "planted-key", SECRET) == set()
    for entry in client.list_objects_v2(Bucket="bucket")["Contents"]:
        content = client.get_object(Bucket="bucket", Key=entry["Key"])["Body"].read()
        assert SECRET.encode() not in content and b"planted-key" not in content, entry["Key"]
    print(f"Tune's state: {sum(len(str(trial)) for trial in trials) / len(trials):.0f} characters a trial")


def test_a_refused_address_does_not_show_its_credentials():
    from distsub.errors import OutputError
    from distsub.files import Files

    for address in (
        f"nosuch://key:{SECRET}@bucket/x",
        f"s3://key:{SECRET}@?region=x",
        f"s3://key:{SECRET}@",
        f"s3://key:a/{SECRET}@bucket/x",  # as Amazon hands them out; to be written %2F
        f"s3://key:{SECRET}/a@bucket/x",
        f"s3://bucket/x?secret={SECRET}",
    ):
        with pytest.raises(OutputError) as caught:
            Files.at(address)
        assert SECRET not in str(caught.value)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_without_a_cluster_listens_on_loopback_and_asks_for_a_token(tmp_path, tiny_text, processes, addresses):
    small = tiny_text.replace("seeds = 2", "seeds = 1").replace('["said", "did"]', '["did"]')
    small = small.replace("[8, 16, 64, 256]", "[8]").replace("[1.0, 3.0]", "[1.0]").replace("[1e-3, 3e-3]", "[1e-3]")
    (tmp_path / "tiny.toml").write_text(small)
    kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    command = [sys.executable, "-m", "distsub.cli", "run", str(tmp_path / "tiny.toml"), "--out", str(tmp_path / "out")]
    environment = {**kept, "PYTHONPATH": str(ROOT), "PLANTED_MARK": str(tmp_path), "HOME": str(tmp_path)}
    for _ in range(3):  # on a busy machine Ray gives up on itself after 30 s
        seen, tokens = [], set()
        run = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        try:
            while run.poll() is None:
                pids = processes(f"PLANTED_MARK={tmp_path}".encode())
                seen += addresses(pids)
                for pid in pids:
                    with contextlib.suppress(OSError):
                        if Path(f"/proc/{pid}/comm").read_text().startswith("raylet"):
                            given = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
                            assert b"RAY_AUTH_MODE=token" in given
                            tokens |= {line.partition(b"=")[2] for line in given if line.startswith(b"RAY_AUTH_TOKEN=")}
                time.sleep(1)
        finally:
            run.kill()
            output = run.communicate()[0]
        if "timed out during startup" not in output:
            break
    assert run.returncode == 0, output
    assert len(seen) > 5 and set(seen) == {"loopback"}
    [token] = tokens
    assert len(token) == 64 and token.decode() not in output
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len(files) >= 4 and not any(token in path.read_bytes() for path in files)
    assert not (tmp_path / ".ray/auth_token").exists()
