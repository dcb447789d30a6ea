"""From Python in one call: the same sweep, the same rows and the same estimate as the command line gives."""

import html
import json
import os
import shutil
import tomllib

import numpy as np
import pytest

import distsub
from distsub import api, cli
from distsub.errors import ConfigError, DistsubError, OutputError
from distsub.results import Store

KEYS = {
    "methods": ["did"],
    "seeds": 1,
    "dims": [8, 64],
    "policy": "grid",
    "search": {"etas": [1.0], "learning_rate": 1e-3},
    "baseline": {"learning_rates": [1e-3]},
    "budget": {"steps": 4, "batch_size": 16, "max_length": 16, "precision": "fp32"},
}


@pytest.fixture(scope="module")
def task(tiny_data):
    return {"name": "tiny", "path": tiny_data, "text": "sentence", "num_labels": 2, "metric": "accuracy"}


@pytest.fixture(scope="module")
def measured(tmp_path_factory, tiny_model, task):
    out = tmp_path_factory.mktemp("measured") / "out"
    return distsub.measure(tiny_model, task, out=out, **KEYS)


def test_every_table_of_what_was_measured_agrees(measured, capsys):
    assert measured.observations().num_rows == 3
    [(name, found)] = measured.d90().items()
    assert name == "did" or name.endswith("did")
    with pytest.raises(SystemExit):
        cli.main(["query", measured.store.uri, "select * from d90", "--format", "json"])
    [row] = json.loads(capsys.readouterr().out)
    assert found.text in row.values()
    assert set(measured.curves().column_names) == {
        *("task", "model", "label", "d", "low", "middle", "high"),
    }
    assert found.text in repr(measured) and html.escape(found.text) in measured._repr_html_()
    figure = measured.plot()
    [axes] = [each for each in figure.axes if each.has_data()]
    assert axes.get_xscale() == "log"


@pytest.mark.parametrize(
    "text", [None, "", "name = [", "name = 3", "a." * 2_000 + "b = 1"], ids=lambda text: str(text)[:9]
)
def test_a_copy_of_the_sweep_file_that_is_lost_or_damaged_is_one_line_that_says_how_it_heals(measured, text, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(measured.store.uri, out)
    if text is None:
        (out / "sweep.toml").unlink()
    else:
        (out / "sweep.toml").write_text(text)
    assert distsub.open(out).d90() == distsub.open(measured.store.uri).d90()  # that copy is for people
    identity = json.loads((out / "sweep.json").read_text())
    identity["held"] = identity["held"][:-1] if text is None else [identity["held"][-1] | {"text": text}]
    (out / "sweep.json").write_text(json.dumps(identity))
    with pytest.raises(OutputError, match=r"out/sweep\.json.*restore it with `distsub run`") as caught:
        distsub.open(out).d90()
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
    kept, store = measured.store, distsub.open(measured.store.uri).store
    Store.create(out, store.sweep_text, store.fingerprint, store.directory, store.places, measured.sweep.record)
    assert distsub.open(out).d90() == distsub.open(kept.uri).d90()


def test_the_same_call_resumes_and_open_sees_the_same(measured, tiny_model, task, capsys):
    before = measured.observations()
    again = distsub.measure(tiny_model, task, out=measured.store.uri, **KEYS)
    assert "nothing left to do" in capsys.readouterr().out
    assert again.observations() == before == distsub.open(measured.store.uri).observations()
    assert distsub.open(measured.store.uri).d90() == measured.d90()


def test_a_folder_of_own_rows_is_looked_at_as_init_does(tiny_model, tiny_data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = distsub.measure(tiny_model, tiny_data, adapters=False, **KEYS | {"dims": [8]})
    assert found.observations().num_rows == 2
    assert found.store.uri.startswith(str(tmp_path / "results")) and os.listdir(tmp_path) == ["results"]


WRONG = {
    "a key that no sweep has": ({"dimz": [1]}, "dimz"),
    "a value that a key cannot have": ({"dims": [0]}, "dims"),
    "what a sweep file cannot hold": ({"dims": object()}, "sweep file"),
    "a number that is none": ({"search": {"etas": [float("nan")], "learning_rate": 1e-3}}, "etas"),
    "a table where a list belongs": ({"methods": {"name": "did"}}, "methods"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_measured_is_said_in_one_line(case, tiny_model, task, tmp_path):
    keys, word = WRONG[case]
    with pytest.raises(ConfigError, match=word):
        distsub.measure(tiny_model, task, out=tmp_path / "out", **{**KEYS, **keys})
    assert not (tmp_path / "out").exists()


UNCLEAR = {
    "which is the text": ("alpha,label", lambda i: f"w{i},{i % 2}", 'the text? give "text"; columns: alpha (w0)'),
    "which is the label": ("text,alpha", lambda i: f"w{i % 7},w{i}", 'the label? give "label"; columns: text'),
    "classes or values": ("text,label", lambda i: f"w{i % 7} w{i},c{i % 40}", "num_labels = 40"),
}


@pytest.mark.parametrize("case", UNCLEAR)
def test_a_hint_names_what_measure_takes(case, tiny_model, tmp_path):
    head, row, said = UNCLEAR[case]
    data = tmp_path / "mail.csv"
    data.write_text("\n".join([head, *map(row, range(120))]) + "\n")
    with pytest.raises(DistsubError) as caught:
        distsub.measure(tiny_model, str(data), out=tmp_path / "out", **KEYS)
    message = str(caught.value)
    assert said in message and "--" not in message and "distsub init" not in message and "\n" not in message
    assert f'task={{"name": "mail", "path": "{data}", "text": ..., "label": ..., "holdout": 0.2}}' in message


def test_a_training_that_fails_is_an_error_and_the_rest_is_kept(tiny_model, task, tmp_path, monkeypatch):
    from distsub.finetune import train

    real = train.build_model

    def crash(trial, *rest, **more):
        if trial.d == 64:
            raise OSError("the disk is gone")
        return real(trial, *rest, **more)

    from distsub.preflight import rehearsal

    monkeypatch.setattr(rehearsal, "rehearse", lambda *rest: None)
    monkeypatch.setattr(train, "build_model", crash)
    with pytest.raises(DistsubError, match="the disk is gone"):
        distsub.measure(tiny_model, task, out=tmp_path / "out", **KEYS, resources={"retries": 0})
    assert distsub.open(tmp_path / "out").observations().num_rows == 3


@pytest.mark.parametrize(
    "value",
    [
        {"a": 1, "b": [1.5, True, 'x\n"\\ é \x7f 😀'], "c": {"d": [], "e f": "="}},
        {"n": np.int64(3), "x": np.float64(0.1), "small": 1e-300, "list": (1, 2)},
    ],
)
def test_what_is_given_comes_back_from_toml(value):
    plain = json.loads(json.dumps(value, default=float))
    assert tomllib.loads(api._toml(value)) == plain
