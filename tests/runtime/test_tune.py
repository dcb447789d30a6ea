"""The Ray backend on real Ray processes: the same table as inline, kills survived, crashes recorded."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from distsub.config import load_sweep
from distsub.records import label
from distsub.results import Store
from distsub.runtime import launch
from distsub.runtime.checks import check

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

TIMES = {"wall_s", "eval_s", "peak_bytes", "provenance"}


def table_of(out):
    """Every row, without what depends on the clock."""
    rows = Store.open(str(out)).table().to_pylist()
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows]


def command(sweep, out, *more):
    return [sys.executable, "-m", "distsub.cli", "run", str(sweep), "--out", str(out), *more]


@pytest.fixture
def environment():
    folder = tempfile.mkdtemp(prefix="ds-", dir="/tmp")  # Ray's sockets need a short path
    yield {**os.environ, "RAY_TMPDIR": folder, "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def truth(tiny_sweep, tmp_path):
    sweep = check(load_sweep(tiny_sweep))
    store = Store.create(str(tmp_path / "inline"), sweep.text, sweep.fingerprint, str(tmp_path), sweep.places)
    assert launch.run(sweep, store, "inline") == 0
    return table_of(tmp_path / "inline")


def test_tune_gives_the_table_of_the_inline_backend(tiny_sweep, tmp_path, truth, environment):
    done = subprocess.run(command(tiny_sweep, tmp_path / "tune"), env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    ours = {row["trial_id"]: row for row in table_of(tmp_path / "tune")}
    # Tune starts the first d before the threshold is known, so it may hold a trial that inline never needed.
    assert {row["trial_id"] for row in truth} <= set(ours)
    assert [ours[row["trial_id"]] for row in truth] == truth


def test_a_trial_that_kills_its_process_is_retried_then_recorded(tiny_sweep, tmp_path, environment):
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(
        "import os, pathlib\n"
        "import distsub.finetune.train as t\n"
        "real = t.build_model\n"
        "def build(trial, *a, **k):\n"
        "    if trial.d == 64 and getattr(trial.method, 'scales', None) and trial.seeds.data == 0:\n"
        f"        with open({str(tmp_path / 'deaths')!r}, 'a') as f: f.write(trial.id + chr(10))\n"
        "        os.kill(os.getpid(), 9)\n"
        "    return real(trial, *a, **k)\n"
        "t.build_model = build\n"
    )
    environment = {**environment, "PYTHONPATH": str(site)}
    out = tmp_path / "crash"
    done = subprocess.run(command(tiny_sweep, out), env=environment, capture_output=True, text=True)
    assert done.returncode == 3, done.stderr
    rows = Store.open(str(out)).read()
    dead = {row.trial.id for row in rows if row.status == "error"}
    deaths = Path(tmp_path / "deaths").read_text().split()
    assert dead == set(deaths) and all(deaths.count(trial) == 2 for trial in dead)
    board = launch.board_of(check(load_sweep(tiny_sweep)), Store.open(str(out)))
    others = [
        f
        for s, f in zip(board.searches, board.findings(), strict=True)
        if (label(s.method), s.seeds.data) != ("said", 0)
    ]
    assert all(finding.outcome.is_over for finding in others)
