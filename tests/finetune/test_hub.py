"""Models by their hub id: the real client against a server on this machine that speaks the hub's protocol."""

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

SHA = "0123456789abcdef0123456789abcdef01234567"


class Hub(http.server.BaseHTTPRequestHandler):
    """One repository, "some/model", out of a directory."""

    def do_GET(self):
        self.answer(with_body=True)

    def do_HEAD(self):
        self.answer(with_body=False)

    def answer(self, with_body):
        path = self.path.partition("?")[0]
        self.server.asked.append(path)
        files = self.server.files
        if path.startswith("/api/models/some/model/revision/"):
            body = json.dumps({"id": "some/model", "sha": SHA, "siblings": [{"rfilename": name} for name in files]})
            self.send(body.encode(), {"Content-Type": "application/json"}, with_body)
        elif path == f"/api/models/some/model/tree/{SHA}":
            listed = [
                {"type": "file", "path": name, "size": len(body), "oid": hashlib.sha1(body).hexdigest()}
                for name, body in files.items()
            ]
            self.send(json.dumps(listed).encode(), {"Content-Type": "application/json"}, with_body)
        elif (name := path.rpartition("/")[2]) in files and path.startswith("/some/model/resolve/"):
            etag = hashlib.sha256(files[name]).hexdigest()
            self.send(files[name], {"ETag": f'"{etag}"', "X-Repo-Commit": SHA}, with_body)
        else:
            self.send_error(404)

    def send(self, body, headers, with_body):
        self.send_response(200)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(tiny_model):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.files = {file.name: file.read_bytes() for file in Path(tiny_model).iterdir()}
    server.files |= {
        "modeling_own.py": b"raise SystemExit('ran')",
        "README.md": b"# about",
        "rust_model.ot": b"0" * 100,
    }
    server.asked = []
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


LOOK = """
import sys
from distsub.finetune import pretrained
prepared = pretrained.prepare("some/model")
model = pretrained.build(prepared, 2, 0)
print(prepared.sha256, sum(p.numel() for p in model.parameters()), pretrained.tokenizer(prepared)("good")["input_ids"])
"""


def look(home, endpoint=None):
    given = {"HF_HOME": str(home), "HF_ENDPOINT": endpoint or "http://127.0.0.1:9", "NO_PROXY": "127.0.0.1"}
    environment = {
        **os.environ,
        **given,
        "HF_HUB_OFFLINE": "0" if endpoint else "1",
        "DISTSUB_CACHE": str(home / "own"),
    }
    return subprocess.run([sys.executable, "-c", LOOK], env=environment, capture_output=True, text=True)


def test_a_model_is_fetched_once_without_its_code(hub, tiny_model, tmp_path):
    done = look(tmp_path, f"http://127.0.0.1:{hub.server_port}")
    assert done.returncode == 0, done.stderr
    fetched = {path.rpartition("/")[2] for path in hub.asked if "/resolve/" in path}
    assert {"config.json", "model.safetensors"} <= fetched
    assert not fetched & {"modeling_own.py", "rust_model.ot"} and not list(tmp_path.rglob("*.py"))
    again = look(tmp_path)  # offline, from the cache
    assert (again.returncode, again.stdout) == (0, done.stdout), again.stderr


def test_a_hub_that_cannot_be_reached_is_said_in_one_line(tmp_path):
    done = look(tmp_path)
    assert done.returncode == 1 and "is neither cached here nor reachable on the hub" in done.stderr.splitlines()[-1]
