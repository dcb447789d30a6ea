"""SIGTERM: nothing more is handed out, what runs keeps where it stands, and the same command goes on."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest
from builders import with_keys

from distsub.cli import main
from distsub.config import load_sweep, parse_sweep
from distsub.preflight.checks import check
from distsub.results import Store
from distsub.runtime import launch
from distsub.runtime.drain import TERMINATED, Drain
from distsub.runtime.progress import Reporter

TIMES = {"wall_s", "eval_s", "peak_bytes", "provenance"}


def table_of(store):
    rows = store.table().to_pylist()
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows]


def test_the_signal_is_noted_and_given_back():
    former = signal.getsignal(signal.SIGTERM)
    with Drain() as drain:
        assert not drain.asked
        signal.raise_signal(signal.SIGTERM)
        assert drain.asked
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == former


@pytest.mark.parametrize("handler", [signal.default_int_handler, signal.SIG_IGN])
def test_who_waits_is_woken_once(handler):
    """Also in a background job, whose shell has told it to ignore Ctrl-C."""
    former = signal.signal(signal.SIGINT, handler)
    try:
        with Drain() as drain:
            drain.interrupts = True
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)
            assert drain.asked
    finally:
        signal.signal(signal.SIGINT, former)


def test_inline_ends_in_the_middle_of_a_trial_and_goes_on_there(tiny_text, tmp_path, monkeypatch, capsys):
    text = with_keys(tiny_text, steps=12, seeds=1, methods=["said"], dims=[16], etas=[3.0])
    sweep = parse_sweep(text)
    whole = Store.create(str(tmp_path / "whole"), text, sweep.fingerprint, str(tmp_path))
    assert launch.run(sweep, whole, "inline") == 0
    store = Store.create(str(tmp_path / "out"), text, sweep.fingerprint, str(tmp_path))
    real, steps = Reporter.stepped, []

    def stepped(self, trial, step, of_steps):
        steps.append((trial.id, step))
        if len(steps) == 12 * 2 + 7:
            signal.raise_signal(signal.SIGTERM)
        real(self, trial, step, of_steps)

    monkeypatch.setattr(Reporter, "stepped", stepped)
    assert launch.run(sweep, store, "inline") == TERMINATED
    assert "the same command resumes" in capsys.readouterr().out
    assert len(store.read()) == 2 and steps[-1][1] == 7
    assert store.files.names("checkpoints") == [f"{steps[-1][0]}.safetensors"]
    steps.append(("", 0))
    assert launch.run(sweep, store, "inline") == 0
    assert next(step for trial, step in steps[32:]) == 8  # not 1: the trial went on
    assert table_of(store) == table_of(whole)
    assert store.files.names("checkpoints") == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_status_says_what_runs_and_that_nothing_does_afterwards(number, tiny_text, tmp_path, warm, capsys):
    """By the command line, whatever ends the driver: Ctrl-C, a job that is stopped, a machine without memory."""
    (tmp_path / "long.toml").write_text(with_keys(tiny_text, steps=1000000))
    # It says what it trains at once, and not after a quarter of a minute.
    (tmp_path / "sitecustomize.py").write_text("from distsub.results import drivers\ndrivers.EVERY_S = 0.2\n")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    out = str(tmp_path / "out")
    command = [*warm.command, "run", str(tmp_path / "long.toml"), "--out", out, "--backend", "inline", "--plain"]

    def status():
        with pytest.raises(SystemExit) as end:
            main(["status", out])
        said = capsys.readouterr().out
        return "" if end.value.code else said

    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, env=environment, **streams) as run:
        try:
            while "1 in flight: full lr=" not in (said := status()):
                assert run.poll() is None, said
                time.sleep(0.2)
            assert said.startswith("tiny: running, 4 of 4 searches open\nprocess ") and "no row yet" in said
            pid = int(re.findall(r"^process (\d+) on ", said, re.MULTILINE)[0])
            os.kill(pid, number)  # the process that is named is the one that trains: its end is the command's
            run.wait(60)
        finally:
            run.kill()
    said = status()
    assert said.startswith("tiny: not running, 4 of 4 searches open; the same command resumes\n"), said
    assert (f"killed: process {pid} on " in said) == (number == signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_tune_ends_and_goes_on(tiny_text, tmp_path, environment, warm):
    """A real process, without a terminal, on a real cluster of its own."""
    text = tiny_text.replace("steps = 40", "steps = 300").replace("seeds = 2", "seeds = 1")
    text = text.replace('["said", "did"]', '["did"]')
    path, out = tmp_path / "tiny.toml", tmp_path / "out"
    path.write_text(text)
    command = [sys.executable, "-m", "distsub.cli", "run", str(path), "--out", str(out)]
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        rows = 0
        while rows < 2:
            assert process.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.1)
            rows = len(list((out / "observations").glob("*.parquet")))
        while (
            len(list((out / "observations").glob("*.parquet"))) == rows
        ):  # another row, and its process has a next one
            assert process.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.05)
        time.sleep(1.5)
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        code = process.wait(120)
    said = (tmp_path / "log").read_text()
    assert code == TERMINATED, said
    assert "the same command resumes" in said and "Traceback" not in said
    print(f"ended after {time.monotonic() - began:.1f} s")
    store = Store.open(str(out))
    kept = {row.trial.id: row for row in store.read()}
    assert len(kept) >= 2 and store.files.names("checkpoints")
    done = warm.run(*command[3:], env=environment)
    assert done.returncode == 0, done.stderr
    rows = {row.trial.id: row for row in store.read()}
    assert {trial: rows[trial] for trial in kept} == kept
    sweep = check(load_sweep(path))
    assert all(finding.outcome.is_over for finding in launch.queue_of(sweep, store.read()).findings())
    assert store.files.names("checkpoints") == []
