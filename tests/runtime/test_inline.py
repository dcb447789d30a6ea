import dataclasses
import multiprocessing
import os
import random
import signal
import time

import computed
import pytest
from builders import with_keys

from distsub.cli import main
from distsub.config import load_sweep, parse_sweep
from distsub.records import label
from distsub.results import Store
from distsub.runtime import launch
from distsub.search import Outcome
from distsub.search.spending import Limit

IMPORTED = [
    "distsub.runtime.inline",
    "distsub.preflight.checks",
    "distsub.estimate.d90",
    "distsub.search.synthetic",
    "pandas",
    "sklearn.metrics",
    "transformers.models.bert.modeling_bert",
]
TIMES = {"wall_s", "eval_s", "peak_bytes", "provenance"}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_twenty_kills_lose_and_repeat_nothing(tiny_text, tmp_path):
    """Half at any moment; half soon after another row. Ray's part in it is in test_faults."""
    sweep, out, seed = tmp_path / "sweep.toml", tmp_path / "killed", time.time_ns()
    text = tiny_text.replace('["said", "did"]', '["did"]').replace("etas = [1.0, 3.0]", "etas = [3.0]")
    sweep.write_text(text.replace("seeds = 2", "seeds = 10").replace("steps = 40", "steps = 20"))
    print(f"\nseed {seed}")
    draw, written, rows = random.Random(seed), {}, out / "observations"
    server = multiprocessing.get_context("forkserver")  # a process that has imported all that a run needs
    server.set_forkserver_preload(IMPORTED)

    def run(out):
        command = ["run", str(sweep), "--out", str(out), "--backend", "inline", "--no-adapters"]
        process = server.Process(target=main, args=(command,))
        process.start()
        return process

    def finished(process):
        process.join()
        assert process.exitcode == 0

    def table(out):
        found = Store.open(str(out)).table().to_pylist()
        return [{key: value for key, value in row.items() if key not in TIMES} for row in found]

    for kill in range(20):
        process = run(out)
        if kill % 2:
            while len(list(rows.glob("*.parquet"))) <= len(written):
                assert process.is_alive()
                time.sleep(0.01)
            time.sleep(draw.uniform(0.0, 0.2))
        else:
            time.sleep(draw.uniform(0.0, 1.5))
        assert process.is_alive()
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        for file in rows.glob("*.parquet"):
            stamp = file.stat().st_mtime_ns
            assert written.setdefault(file.name, stamp) == stamp, "a finished trial was run again"
    finished(run(tmp_path / "undisturbed"))
    truth = table(tmp_path / "undisturbed")
    assert 10 <= len(written) < len(truth)
    finished(run(out))
    assert table(out) == truth and not Store.open(str(out)).damaged
    assert all((rows / name).stat().st_mtime_ns == stamp for name, stamp in written.items())


def open_store(sweep, tmp_path):
    return Store.create(str(tmp_path / "out"), sweep.text, sweep.fingerprint, str(tmp_path))


def test_a_sweep_runs_to_its_end_and_again_does_nothing(tiny_sweep, tmp_path, capsys):
    sweep = parse_sweep(with_keys(tiny_sweep.read_text(), seeds=1, steps=4, eval_every=None), tmp_path)
    store = open_store(sweep, tmp_path)
    assert launch.run(sweep, store, "inline") == 0
    rows = store.read()
    assert len(rows) <= launch.queue_of(sweep).max_trials()
    assert all(f.outcome is not Outcome.open for f in launch.queue_of(sweep, store.read()).findings())
    assert len(list((tmp_path / "out" / "adapters").iterdir())) == sum(not row.trial.is_baseline for row in rows)
    capsys.readouterr()
    assert launch.run(sweep, store, "inline") == 0
    assert "nothing left to do" in capsys.readouterr().out
    assert store.read() == rows


def test_ranges_run_to_the_same_end_from_any_rows(tiny_sweep, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("distsub.runtime.worker.train", computed.train)
    text = tiny_sweep.read_text().replace("[1.0, 3.0]", "{ low = 0.5, high = 5.0, tries = 3 }")
    text = text.replace("[1e-3, 3e-3]", "{ low = 1e-3, high = 1e-2, tries = 4 }").replace('["said", "did"]', '["did"]')
    tiny_sweep.write_text(text.replace("steps = 40\n", "steps = 2\n").replace("eval_every = 10\n", ""))
    sweep = load_sweep(tiny_sweep)
    store = open_store(sweep, tmp_path)
    assert launch.run(sweep, store, "inline") == 0
    said = capsys.readouterr().out
    rows, queue = store.read(), launch.queue_of(sweep)
    assert f"and at most {queue.max_trials()}, 0 known" in said and len(rows) <= queue.max_trials()
    full = [row.trial for row in rows if row.trial.is_baseline]
    assert len(full) == 4 + 2 and len({trial.learning_rate for trial in full}) == 4
    assert len({row.trial.eta for row in rows if row.trial.d == 64 and row.trial.seeds.head == 0}) == 3
    for start in (2, 5, 8):  # what was there when it was killed, in any order
        again = open_store(sweep, tmp_path / str(start))
        for row in sorted(rows, key=lambda row: row.trial.id)[:start]:
            again.write(row)
        assert launch.run(sweep, again, "inline") == 0
        assert {row.trial.id for row in again.read()} == {row.trial.id for row in rows}


def test_a_crashing_trial_is_retried_then_recorded_and_the_others_go_on(tiny_sweep, tmp_path, monkeypatch, capsys):
    from distsub.runtime import inline

    monkeypatch.setattr("distsub.runtime.worker.train", computed.train)
    sweep = parse_sweep(with_keys(tiny_sweep.read_text(), seeds=1, steps=4, eval_every=None), tmp_path)
    store = open_store(sweep, tmp_path)
    real, calls = inline.perform, []

    def flaky(trial, *given):
        if trial.d == 64 and label(trial.method) == "said":
            calls.append(trial.id)
            raise RuntimeError("boom\nwith a second line")
        return real(trial, *given)

    monkeypatch.setattr(inline, "perform", flaky)
    assert launch.run(sweep, store, "inline") == 3
    assert len(calls) == 2 * len(set(calls))  # each tried twice: retries = 1
    errors = [row for row in store.read() if row.status == "error"]
    assert {row.error for row in errors} == {"RuntimeError: boom"}
    _, did = launch.queue_of(sweep, store.read()).findings()
    assert did.outcome.is_over and did.outcome is not Outcome.trial_failed
    monkeypatch.setattr(inline, "perform", real)
    assert launch.run(sweep, store, "inline") == 0  # errors are tried again, and heal
    assert not [row for row in store.read() if row.status == "error"]


def test_a_limit_ends_the_sweep_and_what_it_cut_short_keeps_its_checkpoint(tiny_sweep, tmp_path, capsys):
    sweep = load_sweep(tiny_sweep)
    budget = dataclasses.replace(sweep.budget, steps=2, eval_every=None)
    sweep = dataclasses.replace(sweep, budget=budget, limit=Limit(trials=1))
    store = open_store(sweep, tmp_path)
    store.files.make("checkpoints")
    store.files.put("checkpoints/0123456789abcdef.safetensors", b"of a trial that the limit cut short")
    assert launch.run(sweep, store, "inline") == 4
    assert "raise [limit] and rerun to continue" in capsys.readouterr().out
    assert len(store.read()) == 1 and store.files.names("checkpoints") == ["0123456789abcdef.safetensors"]


def test_an_unwritable_table_ends_the_run(tiny_sweep, tmp_path, monkeypatch):
    from distsub.errors import OutputError

    sweep = load_sweep(tiny_sweep)
    store = open_store(sweep, tmp_path)

    def full(self, observation):
        raise OutputError("disk full")

    monkeypatch.setattr(Store, "write", full)
    with pytest.raises(OutputError):
        launch.run(sweep, store, "inline")


def test_modules_side_by_side_from_the_file_to_the_table(tiny_text, tmp_path, capsys):
    sweep, out = tmp_path / "sweep.toml", str(tmp_path / "out")
    methods = '["did", { name = "did", modules = "attention" }, { name = "did", modules = "regex:intermediate" }]'
    text = with_keys(tiny_text, seeds=1, etas=[3.0], dims=[8, 16], steps=4, eval_every=None)
    sweep.write_text(text.replace('["said", "did"]', methods))
    with pytest.raises(SystemExit) as ended:
        main(["run", str(sweep), "--out", out, "--backend", "inline"])
    assert not ended.value.code
    rows = [row for row in Store.open(out).table().to_pylist() if row["d"]]
    spanned = {row["modules"]: row["num_params"] for row in rows}
    [whole] = {row["num_params_model"] for row in rows}
    assert spanned["all"] == whole > spanned["attention"] > spanned["regex:intermediate"] > 0
    assert {row["method"] for row in rows} == {"did", "did attention", "did regex:intermediate"}
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(["query", out, "select label, num_params, num_params_model, num_trained_head from d90"])
    shown = capsys.readouterr().out
    assert not ended.value.code and all(each in shown for each in ("attention", "regex", str(spanned["attention"])))
