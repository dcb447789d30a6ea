import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distsub.data import dataset
from distsub.data.tasks import TASKS, resolve
from distsub.errors import DataError, UnavailableError
from distsub.records import Budget

SHARED = Path(os.environ.get("DISTSUB_SHARED", Path(__file__).parents[3] / "shared"))
ALL = Budget(steps=1)


def mine(path: Path, **other):
    return resolve("mine", path=str(path), **{"text": ("text",), **other})


@pytest.fixture
def directory(tmp_path):
    """Hold 40 training and 10 validation rows as CSV."""
    for split, rows in (("train", 40), ("validation", 10)):
        lines = [f'"{split} {row}, said\nhe",{row % 2},{row % 4}' for row in range(rows)]
        (tmp_path / f"{split}.csv").write_text("text,label,part\n" + "\n".join(lines) + "\n")
    return tmp_path


def test_reads_csv_with_newlines(directory):
    splits = dataset.load(mine(directory), ALL)
    assert len(splits.train) == 40 and len(splits.validation) == 10
    assert splits.validation.texts[0][1] == "validation 1, said\nhe"
    assert splits.validation.labels == [0, 1] * 5


def test_every_format_gives_the_same_rows_and_hash(tmp_path):
    table = pa.table({"text": ["a", "12", "NA", "null"], "label": [0, 1, 1, 0]})
    rows = table.to_pylist()
    writers = {
        "csv": lambda p: p.write_text("text,label\n" + "".join(f"{r['text']},{r['label']}\n" for r in rows)),
        "tsv": lambda p: p.write_text("text\tlabel\n" + "".join(f"{r['text']}\t{r['label']}\n" for r in rows)),
        "jsonl": lambda p: p.write_text("".join('{"text": "%s", "label": %d}\n' % (*r.values(),) for r in rows)),  # noqa: UP031
        "parquet": lambda p: pq.write_table(table, p),
    }
    hashes = set()
    for kind, write in writers.items():
        (tmp_path / kind).mkdir()
        for split in ("train", "validation"):
            write(tmp_path / kind / f"{split}.{kind}")
        splits = dataset.load(mine(tmp_path / kind), ALL)
        assert splits.train.texts == (["a", "12", "NA", "null"],)
        hashes.add(splits.dataset_hash)
    assert len(hashes) == 1


def test_subsets_are_fixed_nested_and_ordered(directory):
    task = mine(directory)
    few, more = (dataset.load(task, Budget(steps=1, train_examples=n)).train.texts[0] for n in (5, 20))
    whole = dataset.load(task, Budget(steps=99, train_examples=1000)).train.texts[0]
    assert set(few) < set(more) < set(whole) and len(few) == 5 and len(more) == 20 and len(whole) == 40
    assert more == [text for text in whole if text in more]
    assert [int(text.split()[1].strip(",")) for text in few] == [8, 12, 13, 24, 39]  # golden: never to change


def test_holdout_is_disjoint_stratified_and_fixed(directory):
    (directory / "rows.csv").write_text("text,label\n" + "".join(f"t{i},{int(i % 10 == 0)}\n" for i in range(100)))
    splits = dataset.load(mine(directory / "rows.csv", holdout=20), ALL)
    assert len(splits.train) == 80 and len(splits.validation) == 20
    assert sum(splits.validation.labels) == 2
    assert not set(splits.train.texts[0]) & set(splits.validation.texts[0])
    again = dataset.load(mine(directory / "rows.csv", holdout=20), ALL)
    assert again.dataset_hash == splits.dataset_hash


def test_where_keeps_rows(directory):
    assert len(dataset.load(mine(directory, where=(("part", "3"),), labels=("0", "1")), ALL).train) == 10
    with pytest.raises(DataError, match='"train": no rows with part = 9'):
        dataset.load(mine(directory, where=(("part", "9"),)), ALL)


@pytest.mark.parametrize(("holdout", "rows"), [(30, 30), (0.3, 30), (0.301, 30), (0.001, 1), (0.99, 99)])
def test_holdout_is_rows_or_a_share(directory, holdout, rows):
    (directory / "rows.csv").write_text("text,label\n" + "".join(f"t{i},{int(i % 10 < 2)}\n" for i in range(100)))
    splits = dataset.load(mine(directory / "rows.csv", holdout=holdout), ALL)
    assert (len(splits.train), len(splits.validation)) == (100 - rows, rows)
    assert sum(splits.validation.labels) == pytest.approx(rows / 5, abs=1)


@pytest.mark.parametrize("pair", [False, True])
def test_empty_texts_are_refused_dropped_or_kept(tmp_path, pair):
    first = ["a", "", "  ", None, "b", "c"]
    table = pa.table({"one": ["x"] * 6 if pair else first, "two": first, "label": [0, 1, 0, 1, 1, None]})
    for split in ("train", "validation"):
        pq.write_table(table, tmp_path / f"{split}.parquet")
    text = ("one", "two") if pair else ("two",)
    with pytest.raises(DataError, match=r'"train": the text is empty in 3 of 6 rows, first in row 2 \(column "two"'):
        dataset.load(mine(tmp_path, text=text), ALL)
    dropped = dataset.load(mine(tmp_path, text=text, empty="drop"), ALL)
    assert dropped.train.texts[-1] == ["a", "b"] and dropped.train.labels == [0, 1]
    with pytest.raises(DataError, match=r'label column "label" is empty in 1 of 6 rows, first in row 6'):
        dataset.load(mine(tmp_path, text=text, empty="keep"), ALL)
    for split in ("train", "validation"):
        pq.write_table(table.slice(0, 5), tmp_path / f"{split}.parquet")
    kept = dataset.load(mine(tmp_path, text=text, empty="keep"), ALL)
    assert [text.strip() for text in kept.train.texts[-1]] == ["a", "", "", "", "b"]


def test_drop_that_leaves_nothing(directory):
    (directory / "train.csv").write_text("text,label\n,0\na,\n")
    with pytest.raises(DataError, match='empty in all 2 rows, empty = "drop" leaves none'):
        dataset.load(mine(directory, empty="drop"), ALL)


def test_pairs_and_regression(tmp_path):
    table = pa.table({"a": ["x", "y"], "b": ["z", "w"], "score": [0.5, 4.0]})
    for split in ("train", "validation"):
        pq.write_table(table, tmp_path / f"{split}-00000-of-00001.parquet")
    train = dataset.load(mine(tmp_path, text=("a", "b"), label="score", num_labels=1), ALL).train
    assert train.texts == (["x", "y"], ["z", "w"]) and train.labels == [0.5, 4.0]


@pytest.mark.parametrize("holdout", [None, 4])
def test_a_scale_is_that_of_the_rows_that_are_trained_on(tmp_path, holdout):
    values = [float(i * i) for i in range(20)]
    table = pa.table({"text": [f"w{i}" for i in range(20)], "label": values})
    for split in ("train", "validation"):
        pq.write_table(table if split == "train" else table.slice(0, 5), tmp_path / f"{split}.parquet")
    place = {"holdout": holdout} if holdout else {}
    plain = mine(tmp_path, num_labels=1, metric="pearson", **place)
    task = dataclasses.replace(plain, standardise=True)
    for budget in (ALL, Budget(steps=1, train_examples=7)):
        splits, without = dataset.load(task, budget), dataset.load(plain, budget)
        used = np.array(splits.train.labels, dtype=np.float64)
        assert splits.train.scale == splits.validation.scale == (used.mean(), used.std())
        # The rows are what they are: only what is learned of them differs.
        assert splits.train.labels == without.train.labels and splits.dataset_hash == without.dataset_hash
        assert without.train.scale is None and splits.train.part(slice(0, 2)).scale == splits.train.scale
        folder = tmp_path / f"saved-{budget.train_examples}"
        folder.mkdir()
        dataset.save(splits, folder)
        again = dataset.load(dataclasses.replace(task, source=f"{dataset.ROWS}{folder}"), ALL)
        assert again.train.scale == splits.train.scale and again.dataset_hash == splits.dataset_hash


def test_equal_values_have_no_scale(tmp_path):
    table = pa.table({"text": ["a", "b", "c"], "label": [3.0, 3.0, 3.0]})
    for split in ("train", "validation"):
        pq.write_table(table, tmp_path / f"{split}.parquet")
    with pytest.raises(DataError, match="all 3 training rows have the value 3, so standardise = true has no scale"):
        dataset.load(mine(tmp_path, num_labels=1, metric="pearson", standardise=True), ALL)


def test_local_files_need_neither_the_hub_libraries_nor_a_cache(directory):
    before = sorted(directory.iterdir())
    code = (
        "import sys; from distsub.data import dataset, tasks; from distsub.records import Budget\n"
        f"dataset.load(tasks.resolve('mine', path={str(directory)!r}, text=('text',)), Budget(steps=1))\n"
        "print({'datasets', 'huggingface_hub', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "set()" and not done.stderr
    assert sorted(directory.iterdir()) == before


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("txt,label\na,0\n", r'train\.csv has no column "text"; did you mean "txt"\? known: txt, label'),
        ("text,label\na,-1\n", "-1 marks a split without labels"),
        ("text,label\na,0.5\n", r"not whole, first 0\.5"),
        ("text,label\na,yes\nb,no\n", r"validation rows have labels that no training row has: 0, 1"),
        ("text,label\na,\nb,1\n", r'label column "label" is empty in 1 of 2 rows, first in row 1; .*"drop"'),
        ("text,label\n,0\n \t,1\nb,1\n", r'empty in 2 of 3 rows, first in row 1 \(column "text" in 2\); .*"keep"'),
        ("text,label\n", "no rows"),
        ("text,label\na,0,7\n", r"train\.csv line 2: 3 cells where the header has 2"),
        ("", r"train\.csv is empty"),
    ],
)
def test_unusable_rows_are_one_clear_line(directory, rows, message):
    (directory / "train.csv").write_text(rows)
    with pytest.raises(DataError, match=message) as caught:
        dataset.load(mine(directory), ALL)
    assert "\n" not in str(caught.value)


def test_text_that_is_not_text(directory):
    (directory / "train.csv").unlink()
    pq.write_table(pa.table({"text": [1], "label": [0]}), directory / "train.parquet")
    with pytest.raises(DataError, match='column "text" holds int64, not text'):
        dataset.load(mine(directory), ALL)


def test_missing_places(directory, tmp_path):
    with pytest.raises(UnavailableError, match="no file or directory"):
        dataset.load(mine(tmp_path / "nowhere"), ALL)
    with pytest.raises(DataError, match=r"no dev\{.*there: train\.csv, validation\.csv"):
        dataset.load(mine(directory, validation="dev"), ALL)
    (directory / "train.json").write_text("{}")
    with pytest.raises(DataError, match=r"train\.csv and train\.json"):
        dataset.load(mine(directory), ALL)
    with pytest.raises(DataError, match="holdout = 10 of 10 rows"):
        dataset.load(mine(directory / "validation.csv", holdout=10), ALL)


def test_offline_hub_dataset_is_one_clear_line_without_network(tmp_path):
    code = (
        "from distsub.data import dataset, tasks; from distsub.records import Budget\n"
        "try: dataset.load(tasks.TASKS['mrpc'], Budget(steps=1))\n"
        "except OSError as error: print(type(error).__name__, error)"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60)
    assert done.stdout.startswith("UnavailableError mrpc: dataset nyu-mll/glue (mrpc) is not in the cache")
    assert done.stdout.count("\n") == 1 and not done.stderr


def test_hub_dataset_goes_through_the_library_quietly(monkeypatch):
    import datasets

    asked = {}

    def load_dataset(source, **given):
        asked.update(source=source, **given)
        assert datasets.are_progress_bars_disabled()
        rows = {"premise": ["a", "b"], "hypothesis": ["c", "d"], "label": [0, 2], "idx": [0, 1]}
        return [datasets.Dataset.from_dict(rows) for _ in given["split"]]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    bars = datasets.are_progress_bars_disabled()
    splits = dataset.load(resolve("mnli", revision="abc"), ALL)
    assert splits.train.texts == (["a", "b"], ["c", "d"]) and splits.train.labels == [0, 2]
    assert asked == {
        "source": "nyu-mll/glue",
        "name": "mnli",
        "revision": "abc",
        "split": ["train", "validation_matched"],
    }
    assert datasets.are_progress_bars_disabled() == bars
    with pytest.raises(DataError, match=r'nyu-mll/glue \(mrpc\) train has no column "sentence1"; .*known: premise'):
        dataset.load(TASKS["mrpc"], ALL)


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (ConnectionError("Couldn't reach it\nmore"), UnavailableError),
        (ValueError("Couldn't find cache for nyu-mll/glue for config 'mrpc'"), UnavailableError),
        (ValueError('Unknown split "dev". Should be one of [train]'), DataError),
    ],
)
def test_what_the_hub_library_raises_becomes_ours(monkeypatch, raised, expected):
    import datasets

    def load_dataset(*_, **__):
        raise raised

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(expected, match="mrpc: dataset nyu-mll/glue") as caught:
        dataset.load(TASKS["mrpc"], ALL)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["cola", "sst2", "mrpc", "qqp", "stsb", "mnli", "qnli", "rte"])
def test_real_glue_rows(name):
    path = SHARED / "data" / name
    if not path.is_dir():
        pytest.skip(f"no {path}")
    splits = dataset.load(resolve(name, path=str(path)), Budget(steps=1, train_examples=100, eval_examples=50))
    assert len(splits.train) == 100 and len(splits.validation) == 50
    assert len(splits.train.texts) == len(TASKS[name].text)


def test_the_demo_task():
    try:
        splits = dataset.load(TASKS["rotten_tomatoes"], ALL)
    except UnavailableError as error:
        pytest.skip(str(error))
    assert len(splits.train) == 6530 and len(splits.validation) == 2000
    assert sum(splits.validation.labels) == 1000
    assert splits.dataset_hash.startswith("ebffce28")  # golden: another hash would be another task
