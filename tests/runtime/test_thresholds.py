"""Real sweeps for a score to reach, and with theta_0 as chance, from the file to every command that reads them."""

import json

import pytest
from builders import with_keys
from typer.testing import CliRunner

import distsub
from distsub.cli import app
from distsub.config import load_sweep, parse_sweep
from distsub.errors import ConfigError


@pytest.fixture
def text(tiny_text):
    """Give a sweep that a machine trains in seconds."""
    return with_keys(tiny_text, methods=["did"], steps=6, eval_every=None, dims=[16, 256], etas=[3.0])


def value_of(text, value=0.8):
    return text.replace("[baseline]\nlearning_rates = [1e-3, 3e-3]\n", f"[threshold]\nvalue = {value}\n")


def ask(*words):
    found = CliRunner().invoke(app, [str(word) for word in words])
    assert found.exit_code == 0, found.output
    return found.stdout


def rows(out, sql):
    return json.loads(ask("query", out, sql, "--format", "json"))


def written_on(figure):
    return " ".join(" ".join(text.get_text() for axes in figure.axes for text in axes.texts).split())


def test_a_sweep_for_a_value_trains_no_baseline(text, tmp_path):
    path, out = tmp_path / "value.toml", tmp_path / "out"
    path.write_text(value_of(text))
    planned = json.loads(ask("plan", path, "--format", "json"))
    assert planned[0]["trials"] == 4 and load_sweep(path).searches()[0].baseline == ()  # 2 seeds x 2 dims
    said = ask("run", path, "--backend", "inline", "--out", out)
    assert "d(accuracy >= 0.8) " in said and "d90 " not in said
    assert rows(out, "select count(*) as n from observations where method = 'full'") == [{"n": 0}]
    [row] = rows(out, "select * from d90")
    assert (row["threshold"], row["threshold_rule"], row["chance"]) == (0.8, "accuracy >= 0.8", 0.5)
    empty = ("baseline_score", "failed_full", "threshold_chance_corrected", "d90_chance_corrected_text")
    assert [row[name] for name in empty] == [None] * 4
    assert row["d90_text"].startswith("d(accuracy >= 0.8) ")
    for each in rows(out, "select * from searches"):
        assert (each["threshold"], each["threshold_rule"], each["baseline_score"]) == (0.8, "accuracy >= 0.8", None)
        assert each["outcome"] in ("found", "above_range")
    assert "d(accuracy >= 0.8) " in ask("status", out)
    ask("report", out)
    page = (out / "report" / "report.html").read_text()
    assert "is a score: accuracy &gt;= 0.8" in page and "Full fine-tuning" not in page.split("What d90 means")[1]
    ask("export", out, "--optuna", tmp_path / "study.db")
    found = distsub.open(out)
    assert [each.rule.value for each in found.d90().values()] == [0.8]
    assert "threshold 0.800" in written_on(found.plot())
    assert "nothing left to do" in ask("run", path, "--backend", "inline", "--out", out)
    path.write_text(value_of(text, 0.7))  # another threshold is another sweep
    refused = CliRunner().invoke(app, ["run", str(path), "--backend", "inline", "--out", str(out)])
    assert "[threshold] value: 0.8 -> 0.7" in str(refused.exception)


@pytest.mark.slow
def test_theta_0_is_scored_once_per_head_without_a_step(text, tmp_path):
    path, out = tmp_path / "theta.toml", tmp_path / "out"
    path.write_text(text + '\n[threshold]\nchance = "theta_0"\n')
    ask("run", path, "--backend", "inline", "--out", out)
    untouched = rows(out, "select * from observations where method = 'theta_0' order by head_seed")
    assert [row["head_seed"] for row in untouched] == [0, 1]
    for row in untouched:
        assert (row["status"], row["steps"], row["num_trained"], row["d"]) == ("finished", 0, 0, None)
        assert row["learning_rate"] is None and row["wall_s"] > 0 and row["num_examples"] == 128
        assert len(row["predicted"]) == 128 and len(row["curve"]) == 1
    assert "90% of it 0." in written_on(distsub.open(out).plot())
    chance = sum(row["score"] for row in untouched) / 2
    [row] = rows(out, "select * from d90")
    assert (row["threshold_rule"], row["chance_rule"]) == ("0.9 x full", "theta_0")
    assert row["chance"] == pytest.approx(chance)
    assert row["threshold_chance_corrected"] == pytest.approx(chance + 0.9 * (row["baseline_score"] - chance))
    assert "theta_0" in ask("export", out, "--optuna", tmp_path / "study.db")
    ask("report", out)
    assert "theta_0" in (out / "report" / "report.html").read_text()
    assert rows(out, "select count(*) as n from observations where wall_s is null or wall_s = 0") == [{"n": 0}]
    assert "nothing left to do" in ask("run", path, "--backend", "inline", "--out", out)


def test_theta_0_scores_what_the_built_model_scores(text, tmp_path):
    """The same logits as a forward pass by hand, one row at a time, of the model that a training starts from."""
    import torch

    from distsub.data import dataset
    from distsub.finetune import train
    from distsub.models import pretrained

    sweep = parse_sweep(text + '\n[threshold]\nchance = "theta_0"\n')
    for trial in sweep.searches()[0].theta_0:
        seen = train.train(trial)
        prepared = pretrained.prepare(trial.model.name)
        model = pretrained.build(prepared, 2, trial.seeds.head).eval()
        tokenizer, split = pretrained.tokenizer(prepared), dataset.load(trial.task, trial.budget).validation
        with torch.no_grad():
            found = [model(**tokenizer(one, return_tensors="pt")).logits.argmax(-1).item() for one in split.texts[0]]
        assert list(seen.predicted) == found
        assert seen.score == pytest.approx(sum(a == b for a, b in zip(found, split.labels, strict=True)) / 128)


def test_measure_takes_a_threshold(text, tiny_model, tiny_data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    task = {"name": "tiny", "path": tiny_data, "text": "sentence", "num_labels": 2}
    found = distsub.measure(
        {"path": tiny_model}, task, threshold=0.7, methods=["did"], seeds=1, dims=[16, 256],
        search={"etas": [3.0], "learning_rate": 1e-3}, budget={"steps": 6, "batch_size": 16, "max_length": 16},
        resources={"cpus_per_trial": 1}, out="out",
    )  # fmt: skip
    [each] = found.d90().values()
    assert each.text.startswith("d(accuracy >= 0.7) ")
    assert set(found.observations()["method"].to_pylist()) == {"did"}


WRONG = [
    ("fraction = 0.8", "fraction has moved: write threshold = { fraction = 0.8 } in its place"),
    ("threshold = { fraction = 0.9, value = 0.8 }", "threshold: give either fraction .* or value"),
    ("threshold = 0.8", r"\[baseline\] beside \[threshold\] value = 0.8: no full fine-tuning is trained for a value"),
    ("threshold = { fraction = 1.2 }", r"\[threshold\] fraction: should be less than or equal to 1, got 1.2"),
    ("threshold = { value = nan }", r"\[threshold\] value: should be a finite number"),
    ('threshold = { chance = "theta" }', r"\[threshold\] chance: should be 'majority' or 'theta_0', got \"theta\""),
    ("threshold = { share = 1.2 }", r'\[threshold\]: unknown key "share"; .*known: fraction, value, chance'),
]


@pytest.mark.parametrize(("line", "message"), WRONG)
def test_what_is_no_threshold_is_refused_in_a_line(text, line, message):
    with pytest.raises(ConfigError, match=message) as raised:
        parse_sweep(f"{line}\n{text}")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("value", [80, 1.01, -0.1])
def test_a_value_outside_the_metrics_range_is_refused(text, value):
    with pytest.raises(ConfigError, match=r"\[threshold\] value = .* is outside the range of accuracy, 0 to 1"):
        parse_sweep(value_of(text, value))


def test_a_value_needs_the_learning_rate_that_eta_scales(text):
    with pytest.raises(ConfigError, match=r'\[search\]: key "learning_rate" is missing'):
        parse_sweep(value_of(text).replace("learning_rate = 1e-3\n", ""))


def test_a_share_needs_a_baseline(text):
    with pytest.raises(ConfigError, match='key "baseline" is missing: it sets the threshold, unless'):
        parse_sweep(text.replace("[baseline]\nlearning_rates = [1e-3, 3e-3]\n", ""))
