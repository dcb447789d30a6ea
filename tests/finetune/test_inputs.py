"""Inputs beside their results: put whole or not at all, the same to the bit, and found when the originals are gone."""

import dataclasses
import json
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import AutoModel

from distsub.addresses import refuse_credentials
from distsub.data import dataset
from distsub.data.tasks import resolve
from distsub.errors import ConfigError, UnavailableError
from distsub.files import Files
from distsub.finetune import inputs, train
from distsub.finetune.inputs import Inputs
from distsub.models import pretrained
from distsub.records import Budget, Model, Random, Seeds, Setup, Subspace, Trial
from distsub.records.places import ModelPlace, Places

TEXTS = ["plain", 'said "he"\nand went', "tab\there", "ünïcode 漢字 🙂", " padded ", "NA", "a,b;c", "x" * 5000]
TABLES = {
    "class numbers": ({"text": TEXTS, "label": [0, 1] * 4}, {}),
    "named classes": ({"text": TEXTS, "label": ["yes", "no", "1e3", "007"] * 2}, {"num_labels": 4}),
    "listed classes": ({"text": TEXTS, "label": ["b", "a"] * 4}, {"labels": ("b", "a")}),
    "values": ({"text": TEXTS, "label": [0.1, -1e-17, 3.0, 1e200, 2.5, 0.3, 1 / 3, -0.0]}, {"num_labels": 1}),
    "pairs": ({"a": TEXTS, "b": TEXTS[::-1], "label": [0, 1] * 4}, {"text": ("a", "b")}),
    "a text called label": ({"label": TEXTS, "y": [1, 0] * 4}, {"text": ("label",), "label": "y"}),
    "empty texts kept": ({"text": [*TEXTS[:-1], ""], "label": [0, 1] * 4}, {"empty": "keep"}),
}
BUDGETS = {"all": Budget(steps=2), "a draw": Budget(steps=2, train_examples=3, eval_examples=2)}


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("holdout", [None, 3])
@pytest.mark.parametrize("table", TABLES)
def test_rows_that_are_saved_come_back_to_the_bit(table, holdout, budget, tmp_path):
    columns, more = TABLES[table]
    for name in ("train", "validation"):
        pq.write_table(pa.table(columns), tmp_path / f"{name}.parquet")
    path = tmp_path / "train.parquet" if holdout else tmp_path
    task = resolve("mine", path=str(path), **{"text": ("text",), "holdout": holdout, **more})
    splits = dataset.load(task, BUDGETS[budget])
    (tmp_path / "kept").mkdir()
    dataset.save(splits, tmp_path / "kept")
    again = dataset.load(replace(task, source=f"{dataset.ROWS}{tmp_path / 'kept'}"), BUDGETS[budget])
    assert repr(again.train) == repr(splits.train) and repr(again.validation) == repr(splits.validation)
    assert again.dataset_hash == splits.dataset_hash
    assert (again.task.labels, again.task.num_labels) == (splits.task.labels, splits.task.num_labels)


class Home:
    """A model, rows and results in folders of their own, and a trial of them."""

    def __init__(self, folder, model, rows):
        self.model, self.rows = (
            Path(shutil.copytree(each, folder / name)) for each, name in ((model, "m"), (rows, "r"))
        )
        task = resolve("tiny", path=str(self.rows), text=("sentence",))
        self.budget = Budget(steps=2, batch_size=4, max_length=16, precision="fp32", train_examples=20)
        task = replace(task, content=dataset.load(task, self.budget).dataset_hash, num_labels=2)
        content = pretrained.prepare(str(self.model)).content
        self.places = Places((ModelPlace(str(self.model), None, content),), (task,))
        self.trial = Trial(
            Setup(
                Model(str(self.model), content=content), task, Subspace(Random("dense")), 0.001, self.budget, Seeds()
            ),
            8,
            1.0,
        )
        self.files = Files.at(folder / "out")

    def put(self):
        return [each.what for each in inputs.put(self.files, self.places, self.budget)]

    def names(self):
        return self.files.folders("inputs")


@pytest.fixture
def home(tmp_path, tiny_model, tiny_data):
    return Home(tmp_path, tiny_model, tiny_data)


def test_inputs_are_put_once_and_a_trial_is_the_same_without_the_originals(home):
    before = train.train(home.trial)
    assert home.put() == [f"model {home.model}", "rows of tiny"] and home.put() == []
    assert home.names() == sorted([home.trial.model.content, home.trial.task.content])
    shutil.rmtree(home.model)
    shutil.rmtree(home.rows)
    after = train.train(home.trial, inputs=Inputs(home.trial, home.files))
    assert after.trial == home.trial
    assert (after.score, after.predicted, after.labels) == (before.score, before.predicted, before.labels)
    assert dict(after.provenance)["weights_sha256"] == dict(before.provenance)["weights_sha256"]


def halved(folder):
    AutoModel.from_pretrained(folder).half().save_pretrained(folder, max_shard_size="10KB")


def binary(folder):
    import torch

    model = AutoModel.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")


def trained_there(folder):
    (folder / "optimizer.pt").write_bytes(b"x" * 100)
    (folder / "training_args.bin").write_bytes(b"x" * 100)


@pytest.mark.parametrize("change", [halved, binary, trained_there])
def test_any_checkpoint_is_put_with_what_it_is_read_from_alone(change, tmp_path, tiny_model, tiny_data):
    model = Path(shutil.copytree(tiny_model, tmp_path / "changed"))
    (model / "model.safetensors.index.json").unlink(missing_ok=True)
    if change is halved:
        weights = model / "model.safetensors"
        change(model)
        weights.unlink(missing_ok=True)
    else:
        change(model)
    home = Home(tmp_path, str(model), tiny_data)
    home.put()
    shutil.rmtree(home.model)
    found = inputs.model(str(home.model), None, home.trial.model.content, home.files)
    assert found.content == home.trial.model.content
    names = home.files.names(f"inputs/{home.trial.model.content}")
    assert "config.json" in names and not {"optimizer.pt", "training_args.bin"} & set(names)


def test_another_content_at_the_address_is_not_taken(home, tiny_model):
    home.put()
    file = home.rows / "train.csv"
    file.write_text(file.read_text().replace("good", "bad"))
    config = json.loads((home.model / "config.json").read_text())
    (home.model / "config.json").write_text(json.dumps(config | {"hidden_act": "relu"}))
    here = Inputs(home.trial, home.files)
    assert here.model.content == home.trial.model.content
    assert here.splits.dataset_hash == home.trial.task.content
    unread = home.trial.vary(model=dataclasses.replace(home.trial.model, content=None))
    assert Inputs(unread, home.files).model.source == home.model


def test_what_changed_before_it_was_put_is_left_out(home):
    file = home.rows / "train.csv"
    file.write_text(file.read_text().replace("good", "bad"))
    shutil.rmtree(home.model)
    assert home.put() == [] and home.names() == []


@pytest.mark.parametrize("gone", ["model", "rows"])
def test_where_neither_is_there_one_line_says_so(home, gone):
    shutil.rmtree(getattr(home, gone))
    with pytest.raises(UnavailableError, match=r"out/inputs has no copy of it") as caught:
        train.train(home.trial, inputs=Inputs(home.trial, home.files))
    assert str(getattr(home, gone)) in str(caught.value) and "\n" not in str(caught.value)


def test_a_model_that_has_moved_is_found_where_the_results_say(home, tmp_path):
    home.model.rename(tmp_path / "moved")
    places = Places((ModelPlace(str(tmp_path / "moved"), None, home.trial.model.content),))
    home.files.make("")
    home.files.put("sweep.json", json.dumps({"places": places.to_json()}).encode())
    found = inputs.model(str(home.model), None, home.trial.model.content, home.files)
    assert found.source == tmp_path / "moved"


KILLED = """
import os, signal, sys
from distsub.files import Files
from distsub.finetune import inputs
from distsub.models import pretrained
from distsub.records.places import ModelPlace, Places
from distsub.records import Budget
real, left = Files.send, int(sys.argv[3])
def send(self, name, source):
    global left
    if not left:
        (self.root and open(self.path(name.rpartition("/")[0]) + "/.tmp-half", "w")).write("half")
        os.kill(os.getpid(), signal.SIGKILL)
    left -= 1
    real(self, name, source)
Files.send = send
content = pretrained.prepare(sys.argv[1]).content
list(inputs.put(Files.at(sys.argv[2]), Places((ModelPlace(sys.argv[1], None, content),)), Budget(1)))
"""


@pytest.mark.parametrize("files_before", [0, 2])
def test_a_driver_that_is_killed_leaves_nothing_that_is_taken_for_whole(home, files_before, warm):
    done = warm.run("-c", KILLED, home.model, home.files.root, files_before)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert home.names() == [home.trial.model.content] and inputs.copy(home.files, home.trial.model.content) is None
    assert f"model {home.model}" in home.put()
    found = inputs.copy(home.files, home.trial.model.content)
    assert found is not None and pretrained.prepare(str(found)).content == home.trial.model.content


@pytest.mark.parametrize(
    "address",
    [
        "s3://KEY:SECRET@bucket/model",
        "s3://KEY:SEC/RET@bucket/model",
        "s3://KEY:SEC/RET/MORE@bucket/a/b?region=us-east-1",
        "s3://bucket/model?secret_key=SECRET",
        "abfs://bucket/model?client_secret=SECRET",
        "hdfs://user:SECRET@host:8020/model",
    ],
)
def test_an_address_with_credentials_is_refused_without_repeating_them(address):
    with pytest.raises(ConfigError, match="credentials") as caught:
        refuse_credentials(address)
    assert "SEC" not in str(caught.value).replace("AWS_SECRET", "") and "KEY:" not in str(caught.value)


@pytest.mark.parametrize(
    "address",
    [
        "s3://bucket/model?endpoint_override=localhost:9000&scheme=http&region=us-east-1",
        "gs://anonymous@bucket/rows.csv",
        "hdfs://host:8020/user/a@b/model",
        "abfs://container@account.dfs.core.windows.net/x",
        "hdfs://user@host:8020/x",
    ],
)
def test_other_addresses_pass(address):
    assert refuse_credentials(address) == address
