import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distsub.data import reading, tables
from distsub.data.tasks import resolve
from distsub.errors import DataError, DistsubError, UnavailableError

ROWS = pa.table({"text": ["a", "b", "c", "d"], "label": [0, 1, 0, 1]})


def read(path, split="train", **other):
    task = resolve("mine", path=str(path), text=("text",), **{"holdout": 1, **other})
    (table,) = reading.read(task, [split])
    return table["text"].to_pylist(), table["label"].to_pylist()


def write(path, table=ROWS):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


def shards(folder, *tables, count=None):
    for number, table in enumerate(tables):
        write(folder / f"train-{number:05d}-of-{count or len(tables):05d}.parquet", table)
    return folder


LABELS = {
    "int32": pa.array([0, 1, 0, 1], pa.int32()),
    "float": pa.array([0.0, 1.0, 0.0, 1.0]),
    "text": pa.array(["0", "1", "0", "1"]),
    "dictionary": pa.array(["0", "1", "0", "1"]).dictionary_encode(),
}


@pytest.mark.parametrize("kind", LABELS)
def test_shards_that_disagree_in_type_are_one_table(tmp_path, kind):
    other = pa.table({"text": ROWS["text"].cast(pa.large_string()), "label": LABELS[kind]})
    found = read(shards(tmp_path, ROWS, other, ROWS))
    assert found == (list("abcd") * 3, ["0", "1", "0", "1"] * 3)


def test_shards_that_disagree_in_nullability_are_one_table(tmp_path):
    strict = pa.schema([pa.field("text", pa.string(), nullable=False), pa.field("label", pa.int64(), nullable=False)])
    nothing = pa.table({"text": ROWS["text"], "label": pa.nulls(4)})
    found = read(shards(tmp_path, ROWS.cast(strict), ROWS, nothing))
    assert found == (list("abcd") * 3, ["0", "1", "0", "1"] * 2 + [None] * 4)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (
            pa.array(["pos", "neg", "pos", "neg"]),
            r'train-00001-of-00002\.parquet holds text in "label" where train-00000',
        ),
        (pa.array([True, False, True, False]), r"holds true or false in .* where .* holds numbers"),
        (pa.array([[0]] * 4), r'train-00001-of-00002\.parquet column "label" holds list'),
    ],
)
def test_shards_that_hold_other_things_are_told(tmp_path, labels, message):
    with pytest.raises(DataError, match=message):
        read(shards(tmp_path, ROWS, pa.table({"text": ROWS["text"], "label": labels})))


def test_sets_of_shards_are_whole(tmp_path):
    with pytest.raises(DataError, match=r"lacks shard 00002 of 3 beside train-00000-of-00003\.parquet"):
        read(shards(tmp_path / "a", ROWS, ROWS, count=3))
    shards(tmp_path / "b", ROWS)
    with pytest.raises(DataError, match="mixes shards of several versions"):
        read(shards(tmp_path / "b", ROWS, ROWS))
    write(tmp_path / "c/train.parquet")
    with pytest.raises(DataError, match=r"several candidates for \"train\": train\.parquet and train-00000"):
        read(shards(tmp_path / "c", ROWS))


def test_twelve_shards_keep_their_order(tmp_path):
    parts = [pa.table({"text": [str(n)], "label": [0]}) for n in range(12)]
    for number, part in enumerate(parts):
        write(tmp_path / f"train-{number}-of-12.parquet", part)
    assert read(tmp_path)[0] == [str(n) for n in range(12)]


def test_what_save_to_disk_wrote(tmp_path):
    import datasets

    datasets.disable_progress_bars()
    whole = datasets.Dataset.from_dict({"text": list("abcd"), "label": [0, 1, 0, 1]})
    chosen = whole.select([3, 0, 1]).shuffle(seed=1)
    chosen.save_to_disk(str(tmp_path / "one"), num_shards=2)
    both = datasets.DatasetDict({"train": whole, "test": chosen})
    both.save_to_disk(str(tmp_path / "both"))
    expected = (list(chosen["text"]), list(map(str, chosen["label"])))
    assert read(tmp_path / "one") == expected == read(tmp_path / "both", "test")
    assert read(tmp_path / "both") == (list("abcd"), ["0", "1", "0", "1"])
    with pytest.raises(DataError, match="one table without splits; set holdout"):
        reading.read(resolve("mine", path=str(tmp_path / "one"), text=("text",)), ["train", "validation"])
    (tmp_path / "one/data-00001-of-00002.arrow").unlink()
    with pytest.raises(DataError, match=r"lacks data-00001-of-00002\.arrow, which its state\.json names"):
        read(tmp_path / "one")
    (tmp_path / "one/state.json").write_text(json.dumps({"_indices_data_files": [{"filename": "i.arrow"}]}))
    with pytest.raises(DataError, match="saved with an order of rows apart"):
        read(tmp_path / "one")


def test_the_cache_of_datasets(tmp_path):
    for name in ("glue-train.arrow", "glue-validation.arrow", "cache-0123456789abcdef.arrow"):
        with pa.ipc.new_stream(str(tmp_path / name), ROWS.schema) as writer:
            writer.write_table(ROWS)
    assert read(tmp_path)[0] == list("abcd")


CARD = """---
license: mit
configs:
- config_name: small
  data_files:
  - split: train
    path: small/*.parquet
- config_name: large
  data_files:
  - split: train
    path: [large/train-*, large/more.parquet]
---
# A dataset
"""


def test_a_repository_cloned_from_the_hub(tmp_path):
    shards(tmp_path / "plain/data", ROWS)
    assert read(tmp_path / "plain")[0] == list("abcd")
    (tmp_path / "plain/README.md").write_text("---\nlicense: mit\n---\n# Words\n")
    assert read(tmp_path / "plain")[0] == list("abcd")
    cards = tmp_path / "cards"
    write(cards / "small/first.parquet")
    shards(cards / "large", ROWS)
    write(cards / "large/more.parquet")
    (cards / "README.md").write_text(CARD)
    assert read(cards, config="small")[0] == list("abcd")
    assert read(cards, config="large")[0] == list("abcd") * 2
    with pytest.raises(DataError, match="several configurations; set config to one of: small, large"):
        read(cards)
    with pytest.raises(DataError, match='no configuration "smal"; did you mean "small"'):
        read(cards, config="smal")
    with pytest.raises(DataError, match=r'no split "dev" in its README\.md; known: train'):
        read(cards, "dev", config="small")
    (cards / "README.md").unlink()
    with pytest.raises(DataError, match='holds "train" in large; set path to one of these folders'):
        read(cards)
    (tmp_path / "plain/data/train-00000-of-00001.parquet").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(DataError, match=r"train-00000-of-00001\.parquet is a git-lfs pointer"):
        read(tmp_path / "plain")


def test_a_folder_of_a_split(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train/1.csv").write_text("text,label\na,0\n")
    (tmp_path / "train/2.jsonl").write_text('{"text": "b", "label": 1}\n')
    assert read(tmp_path) == (["a", "b"], ["0", "1"])
    (tmp_path / "train/2.json").write_text("[]")
    with pytest.raises(DataError, match=r"holds 2\.json and 2\.jsonl for one split; keep one"):
        read(tmp_path)


def test_places_without_rows(tmp_path):
    with pytest.raises(DataError, match=r"holds no train\{.*\(there: no data files\)"):
        read(tmp_path)
    (tmp_path / "loader.py").write_text("")
    with pytest.raises(DataError, match="a program, which is never run"):
        read(tmp_path)
    with pytest.raises(UnavailableError, match="no file or directory"):
        read(tmp_path / "nowhere")
    (tmp_path / "rows.csv").mkdir()
    with pytest.raises(DistsubError, match="holds no train"):
        read(tmp_path / "rows.csv")


def test_sniff(tmp_path):
    (tmp_path / "tickets.csv").write_bytes("subject;team\ncafé, closed;north\nbad;south\n".encode("cp1252"))
    found = tables.sniff(tmp_path / "tickets.csv")
    assert (found.writing.separator, found.writing.encoding, found.columns) == (";", "cp1252", ("subject", "team"))
    assert found.table["subject"].to_pylist() == ["café, closed", "bad"]
    assert found.notes == (
        'not UTF-8, so read as cp1252 (Windows), for example "café, closed;north"; set encoding if that is wrong',
    )
    (tmp_path / "glue.tsv").write_text('text\tlabel\n"a" b\t1\nc, d\t0\n')
    form = tables.sniff(tmp_path / "glue.tsv")
    assert (form.format, form.writing.separator, form.writing.quote, form.compression) == ("csv", "\t", "none", None)
    write(tmp_path / "rows.parquet")
    assert tables.sniff(tmp_path / "rows.parquet", ["text"]).columns == ("text", "label")
    with pytest.raises(UnavailableError, match="no file"):
        tables.sniff(tmp_path / "nothing.csv")
    with pytest.raises(DataError, match=r'has no column "txt"; did you mean "text"'):
        tables.sniff(tmp_path / "glue.tsv", ["txt"])
