"""One trial where it runs: what ends it early, where it starts, and what its row says of that."""

import dataclasses
import subprocess
import sys

import pytest

from distsub.analysis.summary import Summary
from distsub.config import parse_sweep
from distsub.errors import ConfigError
from distsub.finetune.train import finish
from distsub.results import Store
from distsub.runtime import launch, worker
from distsub.runtime.worker import Place, perform
from distsub.search.stopping import Rule, audit_of, audited


@pytest.fixture
def sweep(tiny_text):
    return parse_sweep(tiny_text)


@pytest.fixture
def store(sweep, tmp_path):
    return Store.create(str(tmp_path / "out"), sweep.text, sweep.fingerprint, str(tmp_path))


def trial_where(search, is_audited):
    """Return a trial at d = 64 which the rule's audit takes or leaves; the learning rate tells ids apart."""
    trial = search.trials_at(64)[0]
    near = (dataclasses.replace(trial, learning_rate=1e-3 * (1 + 1e-6 * k)) for k in range(1000))
    return next(each for each in near if audited(each.id) == is_audited)


LOW = Rule((0.1,))


def test_a_certain_pass_ends_at_once_with_the_row_of_that_moment(sweep, store):
    trial = trial_where(sweep.searches()[0], is_audited=False)
    row = finish(perform(trial, Place(store.uri), LOW))
    assert (row.status, row.stop, row.goal, row.steps) == ("stopped", "pass", 0.1, 10)
    [read] = store.read()
    assert read == dataclasses.replace(row, target=read.target, predicted=read.predicted)
    assert worker.load_adapter(store, trial.id)["coordinates"].shape == (60,)


def test_an_audited_trial_runs_on_and_tells_what_would_have_been(sweep, store):
    trial = trial_where(sweep.searches()[0], is_audited=True)
    row = finish(perform(trial, Place(store.uri), LOW))
    assert (row.status, row.stop, row.goal, row.steps) == ("finished", "pass", 0.1, 40)
    assert (audit_of([row]).stops, audit_of([row]).false) == (1, 0)


def test_without_a_rule_or_a_verdict_a_trial_runs_to_its_end(sweep, store):
    trial = trial_where(sweep.searches()[0], is_audited=False)
    free = finish(perform(trial, Place(store.uri)))
    assert (free.status, free.stop, free.goal) == ("finished", None, None)
    judged = finish(perform(trial, Place(store.uri), Rule((1.5,))))
    assert (judged.status, judged.stop, judged.goal) == ("finished", None, 1.5)
    assert judged.predicted == free.predicted


def warm(text):
    """Ask for warm starts, with projections whose first columns are those of any larger d."""
    nested = '[{ name = "said", projection = "fastfood" }, { name = "did", projection = "fastfood" }]'
    return text.replace('["said", "did"]', nested).replace("[search]", "[search]\nwarm_start = true")


def test_a_warm_start_takes_the_next_smaller_trial_that_left_its_numbers(tiny_text, tmp_path):
    sweep = parse_sweep(warm(tiny_text))
    store = Store.create(str(tmp_path / "out"), sweep.text, sweep.fingerprint, str(tmp_path))
    place, search = Place(store.uri, dims=sweep.dims), sweep.searches()[0]
    at = {d: search.trials_at(d)[0] for d in sweep.dims}
    assert finish(perform(at[8], place)).warm_from is None
    assert finish(perform(at[64], place)).warm_from == at[8].id
    assert finish(perform(at[256], place)).warm_from == at[64].id
    (tmp_path / "out" / "adapters" / at[64].id / "adapter_model.safetensors").write_bytes(b"damaged")
    assert finish(perform(dataclasses.replace(at[256]), place)).warm_from == at[8].id
    assert finish(perform(search.baseline[0], place)).warm_from is None
    assert {row.trial.d: row.warm_from for row in store.read()}[64] == at[8].id


def test_a_warm_start_without_adapters_is_refused(tiny_text, tmp_path):
    sweep = parse_sweep(warm(tiny_text))
    store = Store.create(str(tmp_path / "out"), sweep.text, sweep.fingerprint, str(tmp_path))
    with pytest.raises(ConfigError, match="no-adapters"):
        launch.run(sweep, store, "inline", adapters=False)


@pytest.fixture
def early_text(tiny_text):
    """A sweep whose threshold, 0.4 of the full score, is under the chance level: every subspace training passes."""
    return (
        tiny_text.replace('stopping = "none"', 'stopping = "pass"\nconfirm = false')
        .replace("seeds = 2", "seeds = 1\nfraction = 0.4")
        .replace("dims = [8, 16, 64, 256]", "dims = [8, 64]")
    )


def test_a_sweep_of_early_passes_has_its_verdicts_and_its_estimate(early_text, tmp_path, capsys):
    """From real rows: what stopped counts as passed, the table says how many, the estimate takes them."""
    sweep = parse_sweep(early_text)
    store = Store.create(str(tmp_path / "out"), sweep.text, sweep.fingerprint, str(tmp_path))
    assert launch.run(sweep, store, "inline") == 0
    rows = store.read()
    probes = [row for row in rows if not row.trial.is_baseline]
    assert probes and all(row.stop == "pass" and row.goal is not None for row in probes)
    stopped = [row for row in probes if row.status == "stopped"]
    assert len(stopped) == sum(not audited(row.trial.id) for row in probes) > 0
    assert all(row.steps == 10 and row.score >= row.goal for row in stopped)
    assert all(row.status == "finished" and row.goal is None for row in rows if row.trial.is_baseline)
    assert f"stopping {len(stopped)} trials ended early" in capsys.readouterr().out
    summary = Summary(sweep.searches(), sweep.policy, store)
    assert set(summary.searches["outcome"].to_pylist()) == {"below_range"}
    for row in summary.d90.to_pylist():
        own = [each for each in stopped if each.trial.method.name == row["method"]]
        assert (row["num_stopped"], row["false_stops"]) == (len(own), 0)
        assert row["estimate_outcome"] == "below_range" and row["estimate_text"].startswith("d40 <= 8")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_tune_stops_where_inline_does(early_text, tmp_path):
    """The same rows, but for a trial that began before its threshold was known: it ran to its end."""
    (tmp_path / "early.toml").write_text(early_text)
    tables = {}
    for backend in ("inline", "tune"):
        # A process of its own: Ray in this one would keep what earlier tests asked of it.
        out = str(tmp_path / backend)
        command = [sys.executable, "-m", "distsub.cli", "run", str(tmp_path / "early.toml"), "--out", out]
        done = subprocess.run([*command, "--backend", backend, "--plain"], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        store = Store.open(out)
        rows = [dataclasses.replace(row, wall_s=0, eval_s=0, peak_bytes=0, provenance=()) for row in store.read()]
        tables[backend] = {row.trial.id: row for row in rows}
    judged = {trial: row for trial, row in tables["tune"].items() if row.goal is not None or row.trial.is_baseline}
    assert any(row.status == "stopped" for row in judged.values())
    shared = judged.keys() & tables["inline"].keys()
    assert {trial: judged[trial] for trial in shared} == {trial: tables["inline"][trial] for trial in shared}
    assert all(row.status == "finished" for trial, row in tables["tune"].items() if trial not in judged)
