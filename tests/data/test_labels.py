"""Labels as people write them: which classes they are, and which are told to be a mistake."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distsub.data import dataset, labels
from distsub.data.tasks import resolve
from distsub.errors import ConfigError, DataError
from distsub.records import Budget, Model, Random, Setup, Subspace, Task

ALL = Budget(steps=1)

SPELLINGS = {  # what two rows of each of the classes 0, 1, 2 ... hold, and what the classes are called
    "classes": ([0, 1, 0, 1], ()),
    "three classes": ([0, 1, 2, 1], ()),
    "names": (["pos", "neg", "pos", "neg"], ("neg", "pos")),
    "names as they are": (["b c", "A", 'say "x"', "ä;b"], ("A", "b c", 'say "x"', "ä;b")),
    "truth values": ([True, False, True, False], ("false", "true")),
    "truth as text": (["True", "False", "True", "False"], ("False", "True")),
    "yes and no": (["yes", "no", "no", "yes"], ("no", "yes")),
    "one-based": ([1, 2, 3, 1], ("1", "2", "3")),
    "stars as text": (["1", "10", "9", "2"], ("1", "2", "9", "10")),
    "signs": ([1, -1, 1, -1], ("-1", "1")),
    "signs and zero": ([1, -1, 0, -1], ("-1", "0", "1")),
    "whole floats": ([1.0, 0.0, 1.0, 0.0], ()),
    "one-based floats": ([1.0, 2.0, 1.0, 2.0], ("1", "2")),
    "gaps": ([0, 7, 3, 7], ("0", "3", "7")),
    "above 2^53": ([0, 10**17, 10**17 + 1, 0], ("0", "100000000000000000", "100000000000000001")),
    "codes": (["007", "010", "007", "1"], ("007", "010", "1")),
    "numbers and words": (["1", "other", "2", "other"], ("1", "2", "other")),
    "a class called NA": (["NA", "EU", "NA", "EU"], ("EU", "NA")),
}


def mine(path, **other):
    return resolve("mine", path=str(path), text=("text",), **other)


def write(path, kind, values, texts=None):
    """Write both splits of a task in one format."""
    rows = [{"text": text, "label": value} for text, value in zip(texts or "abcdefghij", values, strict=False)]
    path.mkdir(exist_ok=True)
    for split in ("train", "validation"):
        file = path / f"{split}.{kind}"
        if kind == "parquet":
            pq.write_table(pa.Table.from_pylist(rows), file)
        elif kind == "jsonl":
            file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        else:
            quoted = ['"{}"'.format(str(row["label"]).replace('"', '""')) for row in rows]
            lines = [f"{row['text']},{label}" for row, label in zip(rows, quoted, strict=True)]
            file.write_text("\n".join(["text,label", *lines]) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "csv"])
@pytest.mark.parametrize("name", SPELLINGS)
def test_any_spelling_in_any_format_is_classes_by_sorted_name(tmp_path, name, kind):
    values, names = SPELLINGS[name]
    found = dataset.load(mine(write(tmp_path / kind, kind, values)), ALL)
    order = sorted(set(values), key=int if name == "stars as text" else None)
    assert found.train.labels == found.validation.labels == [order.index(value) for value in values]
    assert found.task.num_labels == len(order)
    assert tuple(n.lower() if name == "truth values" else n for n in found.task.labels) == names
    given = dataset.load(mine(tmp_path / kind, num_labels=len(order)), ALL)
    assert (given.train, given.task.labels) == (found.train, found.task.labels)


@pytest.mark.parametrize(
    ("train", "given", "message"),
    [
        ([0.5, 1.0], {}, r"not whole, first 0\.5: .*num_labels = 1"),
        (["0.5", "1"], {"num_labels": 2}, r"not whole, first 0\.5"),
        (["a", "a"], {}, "is a in every row; classification needs two"),
        ([1, 1], {}, "needs two"),
        ([1, 2, 3, 4, 5], {"num_labels": 6}, r"5 different labels .*num_labels = 6: class 0 would be empty"),
        ([1, 2], {"num_labels": 3}, "class 0 would be empty"),
        (["a", "b"], {"num_labels": 3}, "class 2 would be empty"),
        (["a", "b", "c"], {"num_labels": 2}, "3 different labels .*set it to 3"),
        ([0, 1, 2], {"num_labels": 2}, "3 different labels .*set it to 3"),
        ([0, 1, 2, -1], {"num_labels": 3}, "-1 marks rows without a label"),
        ([-1, -1], {}, "-1 in every train row: -1 marks a split without labels"),
        ([-1, -1], {"num_labels": 2}, "-1 marks a split without labels"),
        (["0", "1", "NA"], {}, '"NA" in 2 rows'),
        (["0", "1", "nan"], {}, '"nan" in 2 rows'),
        ([True, 1, False, 0], {}, 'holds numbers, first 1, and "true" in 4 rows; write the same'),
        ([0, 1, "TRUE"], {}, 'and "TRUE" in 2 rows'),
        (["a", None, "b"], {}, "is empty in 1 of 3 rows, first in row 2"),
        (["a", " ", "b"], {}, "is empty in 1 of 3 rows, first in row 2"),
        (["pos", "neg", "meh"], {"labels": ("neg", "pos")}, "holds meh in 2 rows, which labels"),
        ([0, 1, 2], {"metric": "f1"}, 'f1" is for two labels, the rows have 3'),
        (["a", "b"], {"num_labels": 1}, 'holds "a", which is no finite number'),
        (["3,5", "1"], {"num_labels": 1}, r"write 3\.5"),
        (["inf", "1"], {"num_labels": 1}, "no finite number"),
    ],
)
def test_mistakes_are_one_line(tmp_path, train, given, message):
    with pytest.raises(DataError, match=message) as caught:
        dataset.load(mine(write(tmp_path, "jsonl", train), **given), ALL)
    assert "\n" not in str(caught.value) and str(caught.value).startswith("mine")


def test_ids_and_values_are_not_classes(tmp_path):
    for values in (range(60), [f"id{i}" for i in range(60)]):
        write(tmp_path, "jsonl", values, texts=[f"t{i}" for i in range(60)])
        with pytest.raises(DataError, match=r"60 different labels in 60 rows .*regression or an id column"):
            dataset.load(mine(tmp_path), ALL)
        assert dataset.load(mine(tmp_path, num_labels=60), ALL).task.num_labels == 60


def test_a_class_that_only_validation_has(tmp_path):
    write(tmp_path, "jsonl", ["Yes", "No"])
    (tmp_path / "validation.jsonl").write_text('{"text": "a", "label": "yes"}\n')
    with pytest.raises(DataError, match=r'1 validation rows have labels that no training row has: yes.*mean "Yes"'):
        dataset.load(mine(tmp_path), ALL)
    assert dataset.load(mine(tmp_path, labels=("No", "Yes", "yes")), ALL).validation.labels == [2]


@pytest.mark.parametrize("train", [["True", "False"], ["true", "FALSE"], ["TRUE", "False", "true", "false"]])
def test_truth_values_in_several_spellings_are_two_classes(tmp_path, train):
    write(tmp_path, "csv", train)
    pq.write_table(pa.table({"text": ["a", "b"], "label": [False, True]}), tmp_path / "validation.parquet")
    (tmp_path / "validation.csv").unlink()
    found = dataset.load(mine(tmp_path), ALL)
    assert found.task.labels == ("false", "true") and found.validation.labels == [0, 1]
    assert found.train.labels == [value.lower() == "true" for value in train]
    listed = dataset.load(mine(tmp_path, labels=("True", "False")), ALL)
    assert listed.validation.labels == [1, 0] and listed.train.labels == [1 - label for label in found.train.labels]


def test_one_truth_value_in_two_spellings_is_one_class(tmp_path):
    with pytest.raises(DataError, match="is true in every row"):
        dataset.load(mine(write(tmp_path, "csv", ["true", "True"])), ALL)


@pytest.mark.parametrize("values", [["pos", "neg"], ["1", "2"], [1, 2], [1.0, 2.0], [True, False], ["True", "False"]])
def test_labels_give_the_order(tmp_path, values):
    listed = tuple(str(value).lower() for value in values)
    found = dataset.load(mine(write(tmp_path, "jsonl", values), labels=listed), ALL)
    assert found.train.labels == [0, 1] and found.task.labels == listed
    assert dataset.load(mine(tmp_path, labels=listed[::-1]), ALL).train.labels == [1, 0]


def test_regression_reads_numbers_in_any_spelling(tmp_path):
    for values in ([3.25, 1, -2], ["3.25", "1.0", "-2e0"]):
        write(tmp_path, "jsonl", values)
        for given in ({"num_labels": 1}, {"metric": "pearson"}):
            found = dataset.load(mine(tmp_path, **given), ALL)
            assert found.train.labels == [3.25, 1.0, -2.0] and found.task.labels == ()


def test_known_tasks_and_class_numbers_are_what_they_were():
    task = resolve("mnli")
    assert labels.settle(task, {"0": 3, "2": 1}, {"1": 1}) == task
    assert labels.settle(resolve("stsb"), {"x": 1}, {}) == resolve("stsb")
    assert labels.encode(task, ["2", "0", "1"], "train") == [2, 0, 1]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"labels": ("a",)}, "two or more names"),
        ({"labels": ("a", "a")}, "each once"),
        ({"labels": ("1", "1.0")}, "each once"),
        ({"labels": ("a", " ")}, "none empty"),
        ({"labels": ("a", "b"), "num_labels": 3}, "lists 2 classes, num_labels = 3"),
        ({"labels": ("a", "b"), "metric": "pearson"}, "regression is num_labels = 1"),
        ({"labels": ("a", "b", "c"), "metric": "f1"}, "two labels"),
        ({"num_labels": 1, "metric": "accuracy"}, "regression"),
    ],
)
def test_lists_that_contradict(given, message):
    with pytest.raises(ConfigError, match=message):
        mine("/x", **given)


def test_numbers():
    assert [labels.number(x) for x in ("3", " 3.0 ", "-1e2", "0.5", str(10**17 + 1))] == [3, 3, -100, 0.5, 10**17 + 1]
    odd = ("3,5", "nan", "inf", "1e999", "1_000", "", "٣", "0x1", "1" * 5000, "--1")
    assert [labels.number(x) for x in odd] == [None] * len(odd)


def test_a_task_of_plain_numbers_has_no_names():
    assert labels.settle(Task("t", "x", ("text",), num_labels=None), {"0": 1, "1": 1}, {}).labels == ()


def test_names_stay_with_the_adapter_and_the_row(tmp_path, tiny_model):
    from distsub.adapters import loading
    from distsub.finetune import train
    from distsub.finetune.train import Observer
    from distsub.records import Seeds, Trial

    write(tmp_path, "jsonl", ["pos", "neg", "meh", "pos"], texts=["good w1", "bad w2", "w3", "good w4"])
    budget = Budget(steps=2, batch_size=2, max_length=16, precision="fp32")
    trial = Trial(Setup(Model(tiny_model), mine(tmp_path), Subspace(Random("dense")), 0.001, budget, Seeds()), 8, 1.0)

    class Save(Observer):
        def on_end(self, training, observation):
            training.model.save_pretrained(tmp_path / "adapter", base_model=tiny_model, head_seed=0)

    row = train.train(trial, [Save()])
    assert row.labels == ("meh", "neg", "pos") and row.target == (2.0, 1.0, 0.0, 2.0)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["id2label"] == {"0": "meh", "1": "neg", "2": "pos"} and config["num_labels"] == 3
    loaded = loading.load_adapter(tmp_path / "adapter").config
    assert loaded.id2label == {0: "meh", 1: "neg", 2: "pos"} and loaded.label2id["pos"] == 2
