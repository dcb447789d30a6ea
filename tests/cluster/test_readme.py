"""The README's commands that need no cloud, run as they stand: a cluster on loopback, two jobs, their table."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "cluster/README.md").read_text()
CLOUD = ("kubectl", "sbatch", "ray up", "ray down", "docker")


def blocks(marked: bool) -> list[str]:
    """Give the shell blocks that are marked as needing something that is not here, or those that are not."""
    found = re.findall(r"(<!-- needs [^>]+ -->\n)?```bash\n(.*?)```", README, re.DOTALL)
    return [block for mark, block in found if bool(mark) is marked]


def test_only_blocks_that_need_something_are_marked():
    assert len(blocks(marked=False)) == 4
    assert all(not any(word in block for word in CLOUD) for block in blocks(marked=False))
    assert all(any(word in block for word in CLOUD) for block in blocks(marked=True))


def test_every_file_is_in_the_table_and_every_file_in_the_table_is_there():
    listed = set(re.findall(r"^\| \[([\w.]+)\]\(\1\)", README, re.MULTILINE))
    assert listed == {path.name for path in (ROOT / "cluster").iterdir()} - {"README.md"}


def test_the_commands_of_the_blocks_that_need_a_cloud_name_files_that_are_there():
    text = "\n".join(blocks(marked=True))
    files = set(re.findall(r"cluster/[\w.]+", text))
    assert len(files) >= 5 and all((ROOT / file).is_file() for file in files)


def free_ports(count: int) -> list[int]:
    held = [socket.socket() for _ in range(count)]
    for one in held:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports


def wait_for(what, seconds=420.0):
    end = time.monotonic() + seconds
    while not (value := what()):
        assert time.monotonic() < end, "nothing in time"
        time.sleep(0.5)
    return value


@pytest.fixture
def checkout(tmp_path, tiny_text):
    """A folder that looks like the repository, with a sweep that takes seconds in the place of the quickstart."""
    shutil.copytree(ROOT / "cluster", tmp_path / "cluster")
    (tmp_path / "sweeps").mkdir()
    small = tiny_text.replace("seeds = 2", "seeds = 1").replace('["said", "did"]', '["did"]')
    (tmp_path / "sweeps/quickstart.toml").write_text(small)
    return tmp_path


@pytest.fixture
def environment(tmp_path):
    drop = {"RAY_AUTH_MODE", "RAY_ADDRESS", "RAY_TMPDIR", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"}
    kept = {key: value for key, value in os.environ.items() if key not in drop}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return kept | {"PATH": path, "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}


def shell(script, checkout, environment, **more):
    return subprocess.run(
        ["bash", "-euc", script], cwd=checkout, env=environment, capture_output=True, text=True, timeout=600, **more
    )


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_token_is_made_and_a_plan_is_printed(checkout, environment):
    plan, _, _, token = blocks(marked=False)
    assert "distsub plan" in plan and "get-auth-token" in token
    done = shell(plan, checkout, environment)
    assert done.returncode == 0 and "at most" in done.stdout, done.stderr
    done = shell(token, checkout, environment)
    assert done.returncode == 0, done.stderr
    assert len((checkout / ".ray/auth_token").read_text()) >= 64 and done.stdout == ""


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_cluster_on_loopback_stops_a_job_resumes_it_and_ends(checkout, environment, processes, addresses):
    _, start, submit, _ = blocks(marked=False)
    folder = tempfile.mkdtemp(prefix="ds-", dir="/tmp")  # Ray's sockets need a short path
    port, dashboard_port, client_port = free_ports(3)
    options = f"--port {port} --dashboard-port {dashboard_port} --client-port {client_port} --dir {folder}"
    assert "cluster/local.sh --workers 2" in start and "/tmp/distsub-ray-$UID" in submit
    start = start.replace("cluster/local.sh", f"exec cluster/local.sh {options}")
    submit = submit.replace("/tmp/distsub-ray-$UID", folder)
    log = checkout / "local.log"
    with log.open("w") as stream:
        local = subprocess.Popen(
            ["bash", "-euc", start], cwd=checkout, env=environment, stdout=stream, stderr=subprocess.STDOUT
        )
    try:
        wait_for(lambda: "ready: 2 workers" in log.read_text() or local.poll() is not None)
        assert local.poll() is None, log.read_text()
        mark = f"RAY_AUTH_TOKEN_PATH={folder}/token".encode()
        assert len(addresses(processes(mark))) > 8 and set(addresses(processes(mark))) == {"loopback"}

        for headers in ({}, {"Authorization": "Bearer wrong"}):
            with pytest.raises(urllib.error.HTTPError, match=r"401|403"):
                urllib.request.urlopen(
                    urllib.request.Request(f"http://127.0.0.1:{dashboard_port}/api/jobs/", headers=headers), timeout=30
                ).close()

        jobs = (
            f"source {folder}/env.sh; python -c 'from ray.job_submission import JobSubmissionClient as C; "
            "print(*(job.status.value for job in C().list_jobs()))'"
        )

        def over():
            states = shell(jobs, checkout, environment).stdout.split()
            return states if states and not {"PENDING", "RUNNING"} & set(states) else None

        def written():
            folder = checkout / "results/quickstart/observations"
            return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.parquet")}

        first = "\n".join(submit.splitlines()[:2]).replace("job submit", "job submit --no-wait --submission-id stopped")
        done = shell(first, checkout, environment)
        assert done.returncode == 0, done.stdout + done.stderr
        wait_for(written)
        stop = f"source {folder}/env.sh; ray job stop stopped; ray job logs stopped"
        done = shell(stop, checkout, environment)
        assert wait_for(over) == ["STOPPED"]
        assert "the same command resumes" in done.stdout, done.stdout
        kept = written()

        done = shell(submit, checkout, environment)
        assert done.returncode == 0, done.stdout + done.stderr
        assert sorted(wait_for(over)) == ["STOPPED", "SUCCEEDED"] and f" {len(kept)} known" in done.stdout
        rows = written()
        assert len(rows) > 5 and {name: rows[name] for name in kept} == kept, "a finished trial ran again"

        done = shell(submit, checkout, environment)
        assert done.returncode == 0, done.stdout + done.stderr
        assert sorted(wait_for(over)) == ["STOPPED", "SUCCEEDED", "SUCCEEDED"] and "nothing left to do" in done.stdout
        assert written() == rows, "a finished trial ran again"

        done = shell("distsub status results/quickstart --format json", checkout, environment)
        assert {row["outcome"] for row in json.loads(done.stdout)} <= {"found", "above_range", "below_range"}
        secret = Path(folder, "token").read_text()
        left = [
            path for path in (checkout / "results").rglob("*") if path.is_file() and secret in path.read_text("latin1")
        ]
        assert left == [], "the token is in the results"

        lost = "\n".join(submit.splitlines()[:2]).replace('"$PWD/results/quickstart"', "results/lost")
        done = shell(lost, checkout, environment)
        assert done.returncode != 0 and "thrown away when the job ends; give an absolute path" in done.stdout, (
            done.stdout
        )

        local.send_signal(signal.SIGTERM)
        local.wait(timeout=90)
        wait_for(lambda: not processes(mark), 60)
        assert not Path(folder, "token").exists() and not Path(folder, "env.sh").exists()
    finally:
        local.terminate()
        local.wait(timeout=90)
        shutil.rmtree(folder, ignore_errors=True)
