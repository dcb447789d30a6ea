"""Models and tasks by their hub ids: the real clients against a server here that speaks the hub's protocol."""

import base64
import hashlib
import http.server
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pyarrow as pa
import pytest
from builders import with_keys
from pyarrow import parquet as pq

from distsub.finetune import trajectory

SHA = "0123456789abcdef0123456789abcdef01234567"
API = re.compile(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(revision|tree)/[^/]+)?(?:/(.+))?")
RESOLVE = re.compile(r"/(datasets/)?([^/]+/[^/]+)/resolve/[^/]+/(.+)")


def tree(files, folder, recursive):
    """List a folder as the hub does."""
    below = {name: body for name, body in files.items() if not folder or name.startswith(f"{folder}/")}
    depth = folder.count("/") + 1 if folder else 0
    folders = {"/".join(name.split("/")[: depth + 1]) for name in below if name.count("/") > depth}
    return [{"type": "directory", "path": name, "oid": SHA, "size": 0} for name in sorted(folders)] + [
        {"type": "file", "path": name, "size": len(body), "oid": hashlib.sha1(body).hexdigest()}
        for name, body in below.items()
        if recursive or name.count("/") == depth
    ]


class Hub(http.server.BaseHTTPRequestHandler):
    """Repositories, each a dict of files."""

    def do_GET(self):
        self.answer()

    def do_HEAD(self):
        self.answer()

    def answer(self):
        path = self.path.partition("?")[0]
        self.server.asked.append(path)
        if found := RESOLVE.fullmatch(path):
            kind, name, file = "datasets" if found[1] else "models", found[2], found[3]
            if (body := self.server.repositories.get((kind, name), {}).get(file)) is not None:
                etag = hashlib.sha256(body).hexdigest()
                return self.send(body, {"ETag": f'"{etag}"', "X-Repo-Commit": SHA})
        elif (found := API.fullmatch(path)) and (files := self.server.repositories.get((found[1], found[2]))):
            about = {"id": found[2], "sha": SHA, "siblings": [{"rfilename": name} for name in files]}
            listed = tree(files, found[4], "recursive=true" in self.path)
            if found[3] != "tree" or listed:
                return self.send(json.dumps(listed if found[3] == "tree" else about).encode(), {})
        self.send(b"", {"X-Error-Code": "EntryNotFound"}, 404)

    def do_POST(self):
        """Make a repository, say how files are sent (within the commit), and take a commit."""
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        path = self.path.partition("?")[0]
        self.server.asked.append(path)
        if self.headers.get("Authorization") != "Bearer hf_that_may_write":
            return self.send(b'{"error": "Invalid username or password."}', {}, 401)
        if path == "/api/repos/create":
            made = json.loads(body)
            name = f"{made['organization']}/{made['name']}"
            self.server.repositories.setdefault(("models", name), {})
            self.server.private[name] = made.get("private", made.get("visibility") == "private")
            return self.send(json.dumps({"url": f"https://huggingface.co/{name}", "name": name}).encode(), {})
        if path == "/api/validate-yaml":
            return self.send(b'{"errors": [], "warnings": []}', {})
        _, _, _, owner, name, what, *_ = path.split("/")
        if what == "preupload":
            files = [{"path": each["path"], "uploadMode": "regular"} for each in json.loads(body)["files"]]
            return self.send(json.dumps({"files": [{**each, "shouldIgnore": False} for each in files]}).encode(), {})
        lines = [json.loads(line) for line in body.decode().splitlines()]
        files = {line["value"]["path"]: line["value"]["content"] for line in lines if line["key"] == "file"}
        self.server.repositories["models", f"{owner}/{name}"] |= {
            path: base64.b64decode(content) for path, content in files.items()
        }
        self.send(
            json.dumps(
                {"commitUrl": f"https://huggingface.co/{owner}/{name}", "commitOid": SHA, "success": True}
            ).encode(),
            {},
        )

    def send(self, body, headers, code=200):
        self.send_response(code)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.repositories, server.asked, server.private = {}, [], {}
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def look(code, home, hub=None):
    """Run code in a process whose hub is that one, or that has no network."""
    given = {"HF_HOME": str(home), "DISTSUB_CACHE": str(home / "own"), "NO_PROXY": "127.0.0.1"}
    given |= {"HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port if hub else 9}", "HF_HUB_OFFLINE": "0" if hub else "1"}
    return subprocess.run([sys.executable, "-c", code], env={**os.environ, **given}, capture_output=True, text=True)


MODEL = """
from distsub.models import pretrained
prepared = pretrained.prepare("some/model")
model = pretrained.build(prepared, 2, 0)
print(prepared.sha256, sum(p.numel() for p in model.parameters()), pretrained.tokenizer(prepared)("good")["input_ids"])
"""


@pytest.mark.slow
def test_a_model_is_fetched_once_without_its_code(hub, tiny_model, tmp_path):
    files = {file.name: file.read_bytes() for file in Path(tiny_model).iterdir()}
    own = {"modeling_own.py": b"raise SystemExit('ran')", "README.md": b"# about", "rust_model.ot": b"0" * 100}
    hub.repositories["models", "some/model"] = {**files, **own}
    done = look(MODEL, tmp_path, hub)
    assert done.returncode == 0, done.stderr
    fetched = {path.rpartition("/")[2] for path in hub.asked if "/resolve/" in path}
    assert {"config.json", "model.safetensors"} <= fetched
    assert not fetched & set(own) and not list(tmp_path.rglob("*.py"))
    again = look(MODEL, tmp_path)  # from the cache
    assert (again.returncode, again.stdout) == (0, done.stdout), again.stderr


IMPORT = """
import sys
from distsub.finetune import importing
found = importing.import_checkpoints("some/base@main", ["other/run@step20", "some/run-10"], sys.argv[1], "float32")
print(found.hashes, found.meta["revision"], [each["checkpoint"] for each in found.meta["checkpoints"]])
"""


@pytest.mark.slow
def test_checkpoints_of_the_hub_become_a_trajectory(hub, series, tmp_path):
    names = {("models", "some/base"): "theta_0", ("models", "some/run-10"): "checkpoint-10"}
    for repository, folder in (names | {("models", "other/run"): "checkpoint-20"}).items():
        files = [series / folder / name for name in ("config.json", "model.safetensors")]
        hub.repositories[repository] = {file.name: file.read_bytes() for file in files}
    done = look(IMPORT.replace("sys.argv[1]", repr(str(tmp_path / "it"))), tmp_path / "home", hub)
    assert done.returncode == 0, done.stderr
    hashes = trajectory.load(series / "recorded").hashes[:2]
    assert done.stdout.split("\n")[0] == f"{hashes} main ['some/run-10', 'other/run@step20']"
    assert any("/other/run/resolve/step20/" in path or "/other/run/revision/step20" in path for path in hub.asked)


TASK = """
from distsub.data import dataset, tasks
from distsub.records import Budget
found = dataset.load(tasks.resolve("mrpc"), Budget(steps=1))
print(found.dataset_hash, found.train.labels, found.train.texts)
"""


@pytest.mark.slow
def test_a_known_task_is_fetched_once(hub, tmp_path):
    def rows(*labels):
        columns = {"sentence1": [f"a {i}" for i in range(len(labels))], "sentence2": ["b"] * len(labels)}
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table({**columns, "label": list(labels), "idx": list(range(len(labels)))}), sink)
        return sink.getvalue().to_pybytes()

    page = """---
configs:
- config_name: mrpc
  data_files:
  - {split: train, path: mrpc/train-*}
  - {split: validation, path: mrpc/validation-*}
---
# GLUE
"""
    hub.repositories["datasets", "nyu-mll/glue"] = {
        "README.md": page.encode(),
        "mrpc/train-00000-of-00001.parquet": rows(0, 1, 1),
        "mrpc/validation-00000-of-00001.parquet": rows(1, 0),
    }
    done = look(TASK, tmp_path, hub)
    assert done.returncode == 0, done.stderr
    assert "[0, 1, 1]" in done.stdout and "a 1" in done.stdout
    again = look(TASK, tmp_path)
    assert (again.returncode, again.stdout) == (0, done.stdout), again.stderr


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"glue.py": b"raise SystemExit('ran')"},
            "DataError: mrpc: dataset nyu-mll/glue (mrpc), .*no longer supported",
        ),
        ({"mrpc/train-0.parquet": b"PAR1 and no more"}, "DataError: mrpc: dataset nyu-mll/glue (mrpc), .*"),
    ],
)
def test_a_dataset_that_is_a_program_or_damaged_is_one_line(hub, tmp_path, files, message):
    hub.repositories["datasets", "nyu-mll/glue"] = files
    done = look(TASK, tmp_path, hub)
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and re.search(message.replace("(mrpc)", r"\(mrpc\)"), last), done.stderr


@pytest.mark.parametrize(
    ("code", "message"), [(MODEL, "is neither cached here"), (TASK, "is not in the cache of this")]
)
def test_without_network_and_cache_that_is_said_in_one_line(tmp_path, code, message):
    done = look(code, tmp_path)
    assert done.returncode == 1 and message in done.stderr.splitlines()[-1]


@pytest.fixture(scope="module")
def results(tiny_text, tmp_path_factory, warm):
    """Results of a sweep, with the address of an adapter."""
    folder = tmp_path_factory.mktemp("pushed")
    (folder / "sweep.toml").write_text(with_keys(tiny_text, methods=["did"], seeds=1))
    done = warm.run("run", folder / "sweep.toml", "--out", folder / "out", "--backend", "inline", "--plain")
    assert done.returncode == 0, done.stderr
    place = max((folder / "out" / "adapters").iterdir())
    return folder, place


PUSH = """
from distsub import cli
cli.main({arguments!r})
"""

USE = """
import distsub
here, there = distsub.load({place!r}), distsub.load("somebody/tiny{revision}", base={base!r})
texts = ["good w1", "bad w2 w3", "w4"]
assert (here.logits(texts) == there.logits(texts)).all()
print(there.predict(texts))
"""


@pytest.mark.slow
def test_an_adapter_is_pushed_with_a_card_and_used_by_its_id(hub, results, tiny_model, tmp_path, monkeypatch, warm):
    folder, place = results
    arguments = ["push", str(place), "somebody/tiny", "--private"]
    refused = look(PUSH.format(arguments=arguments), tmp_path, hub)
    assert refused.returncode == 2 and len(refused.stderr.splitlines()) == 1, refused.stderr
    assert "the hub did not take somebody/tiny" in refused.stderr and "HF_TOKEN" in refused.stderr
    monkeypatch.setenv("HF_TOKEN", "hf_that_may_write")
    done = look(PUSH.format(arguments=arguments), tmp_path, hub)
    assert done.returncode == 0, done.stderr
    assert "somebody/tiny" in done.stdout and hub.private == {"somebody/tiny": True}
    files = hub.repositories["models", "somebody/tiny"]
    assert set(files) == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    everything = b"".join(files.values())
    assert str(folder).encode() not in everything and str(tiny_model).encode() not in everything
    card = files["README.md"].decode()
    assert card.startswith("---\nlibrary_name:") and 'distsub.load("somebody/tiny", base=' in card
    assert "d90, the numbers for 90% of full fine-tuning" in card and "| d | accuracy" in card
    shown = warm.run(*arguments[:3], "--dry-run")
    assert shown.returncode == 0 and shown.stdout.strip() == card.strip()
    for revision in ("", f"@{SHA}"):
        code = USE.format(place=str(place), base=str(tiny_model), revision=revision)
        used = look(code, tmp_path / f"user{len(revision)}", hub)
        assert used.returncode == 0, used.stderr
    again = look(USE.format(place=str(place), base=str(tiny_model), revision=""), tmp_path / "user0")  # from the cache
    assert again.returncode == 0, again.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "where", "message"),
    [
        ("adapter", "no-slash", "'no-slash' is no repository of the hub; give owner/name"),
        ("adapter", "owner/name@main", "'owner/name@main' is no repository of the hub; give owner/name"),
        (
            "elsewhere",
            "somebody/tiny",
            "is no adapter of results, whose rows the card is made of: give OUT/adapters/ID",
        ),
        ("missing", "somebody/tiny", "has no row of trial 0000000000000000"),
    ],
)
def test_what_cannot_be_pushed_is_refused(results, tmp_path, what, where, message, warm):
    _, place = results
    given = {"adapter": place, "elsewhere": tmp_path, "missing": place.parent / "0000000000000000"}[what]
    for dry in ([], ["--dry-run"]):
        done = warm.run("push", given, where, *dry)
        assert done.returncode == 2 and message in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr


def test_an_id_that_the_hub_does_not_know_is_one_line(hub, tmp_path):
    done = look("import distsub; distsub.load('nobody/nothing')", tmp_path, hub)
    assert "AdapterError: nobody/nothing is no directory here, and the hub gives no such adapter" in done.stderr
