"""The Ray backend on real Ray processes: the same table as inline, kills survived, crashes recorded."""

import os
import subprocess
import sys
from collections import Counter

import pytest
from builders import with_keys

from distsub.config import load_sweep
from distsub.preflight.checks import check
from distsub.results import Store
from distsub.runtime import launch

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


IN_A_NOTEBOOK = """
import signal, sys
from distsub import cli

signal.signal(signal.SIGINT, signal.default_int_handler)
before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
try:
    cli.main(sys.argv[1:])
except SystemExit as end:
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)] == before
    sys.exit(end.code)
"""


def test_tune_gives_the_table_of_the_inline_backend(tiny_sweep, tmp_path, undisturbed, rows_of, environment):
    """And gives every signal back to whoever handled it: Tune keeps them, and swallows the next Ctrl-C."""
    tiny_sweep.write_text(with_keys(tiny_sweep.read_text(), seeds=1))
    truth = undisturbed(tiny_sweep)
    command = [sys.executable, "-c", IN_A_NOTEBOOK, "run", str(tiny_sweep), "--out", str(tmp_path / "tune")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    # Tune starts trials before others have ended. It may hold one that inline never needed, and whose eta, if it is the
    # better one, is then tried first at the next d, so that the other is not needed there.
    tuned = rows_of(tmp_path / "tune")
    shared = truth.keys() & tuned.keys()
    assert [truth[trial] for trial in sorted(shared)] == [tuned[trial] for trial in sorted(shared)]
    assert {trial for trial, row in truth.items() if row["d"] is None} <= shared and len(shared) > len(truth) / 2
    queue = launch.queue_of(check(load_sweep(tiny_sweep)), Store.open(str(tmp_path / "tune")).read())
    for search, found in zip(queue.searches, queue.findings(), strict=True):
        inline, tune = (
            [
                row["d"]
                for row in rows.values()
                if row["setup_id"] == search.setup.id
                and row["d"] is not None
                and row["score"] >= found.thresholds.score
            ]
            for rows in (truth, tuned)
        )
        assert found.outcome.is_over and min(inline, default=None) == min(tune, default=None)


def test_a_trial_that_kills_its_process_is_retried_then_recorded(
    computed, small_sweep, tmp_path, starts, environment, warm
):
    starts.patch(more="if trial.d == 64 and trial.seeds.data == 0: os.kill(os.getpid(), 9)")
    environment["PYTHONPATH"] = os.pathsep.join([str(starts.site), environment["PYTHONPATH"]])
    out = tmp_path / "crash"
    done = warm.run("run", small_sweep, "--out", out, env=environment)
    assert done.returncode == 3, done.stderr
    dead = {row.trial.id for row in Store.open(str(out)).read() if row.status == "error"}
    begun = Counter(trial for *_, trial in starts.read())
    assert dead and {trial: begun[trial] for trial in dead} == dict.fromkeys(dead, 2)
    assert begun.total() - len(begun) == len(dead)  # nothing else began twice
    queue = launch.queue_of(check(load_sweep(small_sweep)), Store.open(str(out)).read())
    others = [found for search, found in zip(queue.searches, queue.findings(), strict=True) if search.seeds.data != 0]
    assert others and all(finding.outcome.is_over for finding in others)
