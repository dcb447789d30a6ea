"""A disk that is full or read-only: the sweep ends with one line and exit code 2, and resumes to the same table."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from builders import with_keys

from distsub.results import Store

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture
def disk():
    """A file system of 300 kB of its own, where this machine lets us mount one."""
    folder = tempfile.mkdtemp(prefix="ds-", dir="/tmp")
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", folder], capture_output=True
    )
    if not mounted or mounted.returncode:
        os.rmdir(folder)
        pytest.skip("no right to mount a small disk here")
    yield Path(folder)
    subprocess.run(["umount", "-l", folder], check=True)
    os.rmdir(folder)


@pytest.fixture
def sweep(tiny_text, tmp_path):
    path = tmp_path / "small.toml"
    text = with_keys(tiny_text, steps=4, dims=[8, 16], etas=[1.0], seeds=1)
    path.write_text(f"{text}max_concurrent_trials = 1\n")
    return path


@pytest.fixture
def run(sweep, warm, environment):
    return lambda out, backend: warm.run("run", sweep, "--out", out, "--backend", backend, env=environment)


def ends_in_one_line(done, *words):
    lines = [line for line in done.stderr.splitlines() if line]
    assert done.returncode == 2, done.stdout + done.stderr
    assert len(lines) == 1 and lines[0].startswith("distsub: ") and "Traceback" not in done.stdout, done.stderr
    assert any(word in lines[0] for word in words), lines[0]


def ids(out):
    store = Store.open(out)
    found = {row.trial.id: (row.status, row.score) for row in store.read()}
    assert store.damaged == []
    return found


@pytest.mark.parametrize("backend", ["inline", "tune"])
def test_a_full_disk_ends_the_sweep_and_nothing_is_lost(disk, run, tmp_path, backend):
    filler, out = disk / "filler", disk / "out"
    filler.write_bytes(b"\0" * 262_144)
    ends_in_one_line(run(out, backend), "No space left")
    kept = ids(out)
    filler.unlink()
    assert run(out, backend).returncode == 0
    again = ids(out)
    assert kept.items() <= again.items()
    assert run(tmp_path / "undisturbed", "inline").returncode == 0
    truth = ids(tmp_path / "undisturbed")
    shared = truth.keys() & again.keys()  # which trials Tune needs depends on which end first
    assert {trial: truth[trial] for trial in shared} == {trial: again[trial] for trial in shared}
    assert shared == truth.keys() if backend == "inline" else len(shared) > len(truth) / 2


@pytest.mark.parametrize("backend", ["inline", "tune"])
def test_a_read_only_disk_ends_the_sweep(disk, run, backend):
    out = disk / "out"
    out.mkdir()
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    ends_in_one_line(run(out, backend), "Read-only")
