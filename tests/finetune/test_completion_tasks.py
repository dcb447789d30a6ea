"""Completion tasks from the sweep file to rows: what is accepted, what is refused, and how chats are read."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distsub.data import dataset
from distsub.data.tasks import resolve
from distsub.errors import ConfigError, DataError
from distsub.finetune import generation
from distsub.records import Budget

TWO = {"kind": "completion", "prompt": "prompt", "completion": "completion"}
EXACT = TWO | {"metric": "exact_match", "max_new_tokens": 8}


def write(folder, rows):
    for name in ("train", "validation"):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return str(folder)


def test_a_completion_task_has_its_columns_and_no_labels(tmp_path):
    rows = [{"prompt": "a b ", "completion": " yes"}, {"prompt": "c", "completion": "007"}]
    task = resolve("toy", path=write(tmp_path, rows), **TWO)
    assert (task.text, task.label, task.num_labels, task.metric) == (("prompt",), "completion", 0, "nll")
    splits = dataset.load(task, Budget(steps=1))
    assert splits.train.texts == (["a b ", "c"],) and splits.train.labels == [" yes", "007"]
    saved = tmp_path / "saved"
    saved.mkdir()
    dataset.save(splits, saved)
    again = dataset.load(resolve("toy", source=f"{dataset.ROWS}{saved}", **TWO), Budget(steps=1))
    assert (again.train, again.dataset_hash) == (splits.train, splits.dataset_hash)


@pytest.mark.parametrize(
    "given, said",
    [
        (TWO | {"metric": "accuracy"}, 'metric "accuracy" is of labels; completions have nll or exact_match'),
        (TWO | {"metric": "exact_match"}, "give max_new_tokens, the most tokens of one"),
        (TWO | {"max_new_tokens": 3}, 'max_new_tokens is for metric "exact_match"'),
        (TWO | {"answer": "x"}, 'answer is for metric "exact_match"'),
        (EXACT | {"answer": "("}, "is no regular expression"),
        (EXACT | {"answer": "(a)(b)"}, "has 2 groups; give one around the answer"),
        (EXACT | {"stop": ""}, "give the text before which an answer ends"),
        (TWO | {"labels": ("a", "b")}, "labels is for tasks with labels"),
        (TWO | {"text": ("a",)}, "text is for tasks with labels"),
        ({"kind": "completion"}, "with no columns; give prompt and completion"),
        ({"kind": "completion", "prompt": "a"}, "with prompt; give prompt and completion"),
        (TWO | {"messages": "m"}, "with prompt and completion and messages; give prompt and completion"),
        (TWO | {"kind": "classification"}, 'prompt is a column of kind = "completion"'),
        ({"text": ("a",), "metric": "nll"}, 'metric "nll" is of completions; give kind = "completion"'),
        ({"text": ("a",), "stop": "x"}, 'stop is for kind = "completion"'),
        ({"text": ("a",), "num_labels": 0}, "num_labels = 0; allowed: 1"),
        (TWO | {"validation": None, "holdout": None}, "no rows to evaluate on"),
        (TWO | {"compltion": "x"}, 'unknown field "compltion"'),
    ],
)
def test_what_contradicts_itself_is_refused_in_one_line(given, said):
    with pytest.raises(ConfigError, match=r'task "toy": ') as caught:
        resolve("toy", path="/nowhere", **given)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_known_task_is_no_completion_task():
    with pytest.raises(ConfigError, match="is a known task with labels"):
        resolve("sst2", path="/nowhere", **TWO)


def test_an_empty_completion_and_an_expression_that_finds_nothing_are_refused(tmp_path):
    rows = [{"prompt": "a", "completion": "#### 3"}, {"prompt": "b", "completion": " "}]
    with pytest.raises(DataError, match=r'completion column "completion" is empty in 1 of 2 rows, first in row 2'):
        dataset.load(resolve("toy", path=write(tmp_path, rows), **TWO), Budget(steps=1))
    rows[1]["completion"] = "so 4"
    task = resolve("toy", path=write(tmp_path, rows), **EXACT, answer=r"#### (\S+)")
    with pytest.raises(DataError, match=r"finds nothing in 1 of 2 completions, first in row 2 \('so 4'\)"):
        dataset.load(task, Budget(steps=1))


def test_what_an_answer_stops_before_ends_the_completion_too(tmp_path):
    rows = [{"prompt": "a", "completion": " yes\nAnswer: no"}, {"prompt": "b", "completion": "\nno"}]
    task = resolve("toy", path=write(tmp_path, rows), **EXACT, stop="\n")
    with pytest.raises(DataError, match=r"nothing stands before stop = '\\n' in 1 of 2 completions, first in row 2"):
        dataset.load(task, Budget(steps=1))
    assert generation.matches(["yes", " no"], [row["completion"] for row in rows], task) == [1.0, 0.0]


CHAT = [{"role": "user", "content": "hé"}, {"role": "assistant", "content": " yes\n"}]


@pytest.mark.parametrize("form", ["jsonl", "text", "parquet"])
def test_chats_are_read_from_lists_and_from_json_alike(tmp_path, form):
    for name in ("train", "validation"):
        if form == "parquet":
            pq.write_table(pa.table({"messages": [CHAT, CHAT]}), tmp_path / f"{name}.parquet")
        else:
            row = {"messages": CHAT if form == "jsonl" else json.dumps(CHAT)}
            (tmp_path / f"{name}.jsonl").write_text(f"{json.dumps(row)}\n{json.dumps(row)}\n")
    task = resolve("toy", path=str(tmp_path), kind="completion", messages="messages")
    splits = dataset.load(task, Budget(steps=1))
    assert task.is_chat and splits.train.labels == [" yes\n"] * 2
    assert json.loads(splits.train.texts[0][0]) == CHAT


def test_lists_in_other_columns_stay_refused(tmp_path):
    rows = [{"prompt": ["a"], "completion": "b"}]
    with pytest.raises(DataError, match='"prompt" is a list'):
        dataset.load(resolve("toy", path=write(tmp_path, rows), **TWO), Budget(steps=1))


def test_held_out_rows_are_drawn_without_classes(tmp_path):
    lines = "\n".join(json.dumps({"prompt": f"p{i}", "completion": f"c{i}"}) for i in range(10))
    (tmp_path / "all.jsonl").write_text(lines)
    splits = dataset.load(resolve("toy", path=str(tmp_path / "all.jsonl"), holdout=3, **TWO), Budget(steps=1))
    assert len(splits.train) == 7 and len(splits.validation) == 3
    assert not {*splits.train.labels} & {*splits.validation.labels}
