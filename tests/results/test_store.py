"""The append-only store: idempotent, whole rows only, many writers, any file system."""

import dataclasses
import os
import subprocess
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet as pq

from distsub.errors import OutputError
from distsub.records import Observation, Seeds
from distsub.results.compact import compact
from distsub.results.rows import encode
from distsub.results.schema import OBSERVATIONS, to_table
from distsub.results.store import Store


@pytest.fixture
def store(tmp_path):
    return Store.create(tmp_path / "out", "title = 'x'\n", "f00d")


def rows(store: Store) -> Path:
    return Path(store.files.root) / "observations"


def test_what_is_written_is_read(store, observation):
    seen = [observation(number) for number in range(5)]
    assert all(store.write(each) for each in seen)
    assert sorted(store.read(), key=lambda o: o.trial.d) == seen
    assert store.trial_ids() == {each.trial.id for each in seen}
    assert (rows(store) / f"{seen[0].trial.id}.parquet").is_file()
    assert store.damaged == []
    again = Store.open(store.uri)
    assert (again.sweep_text, again.fingerprint) == ("title = 'x'\n", "f00d")
    assert len(again.read()) == 5


def test_an_empty_store_has_an_empty_table(store):
    assert store.read() == []
    assert store.table().schema.equals(OBSERVATIONS, check_metadata=True)
    assert store.table(["d", "score"]).schema.names == ["d", "score"]
    assert store.scores() == []


def test_columns_come_in_the_order_asked_and_with_canonical_types(store, observation):
    store.write(observation())
    table = store.table(["score", "d", "metrics"])
    assert table.schema.names == ["score", "d", "metrics"]
    assert table.to_pylist() == [{"score": 0.75, "d": 100, "metrics": [("f1", 0.7), ("accuracy", 0.75)]}]
    assert store.table().schema.equals(OBSERVATIONS, check_metadata=True)


def test_without_answers_is_all_but_the_answers(store, observation):
    for number in range(3):
        store.write(observation(number))
    compact(store)
    store.write(observation(3, status="error", error="it broke"))
    store.write(observation(4, status="diverged", error="loss was nan"))
    nothing = {"metrics": (), "predicted": (), "target": (), "provenance": ()}
    assert store.read(answers=False) == [dataclasses.replace(row, **nothing) for row in store.read()]
    assert len(store.read()) == 5


def test_without_answers_a_row_with_damaged_answers_is_missing_too(store, observation):
    """Whoever decides what is to run reads no answers, and must have the trial run again."""
    table = to_table(observation())
    part = Path(store.files.root) / "parts" / f"{'0' * 16}.parquet"
    part.parent.mkdir()
    part.write_bytes(encode(table.set_column(table.schema.get_field_index("predicted"), "predicted", [["x"]])))
    assert store.read(answers=False) == [] and len(store.damaged) == 1


def test_scores_are_every_row_once_without_its_arrays(store, observation):
    seen = [observation(number, score=number / 10) for number in range(4)]
    for row in seen[:3]:
        store.write(row)
    compact(store)
    again = dataclasses.replace(seen[0], trial=seen[0].trial.vary(seeds=Seeds(7, 7, 7)))
    for row in (seen[1], seen[3], again):
        store.write(row)
    said = ("status", "score", "chance", "num_examples", "wall_s", "num_params", "num_scales")
    bare = [Observation(row.trial, **{name: getattr(row, name) for name in said}) for row in (*seen, again)]
    assert sorted(store.scores(), key=lambda row: row.trial.id) == sorted(bare, key=lambda row: row.trial.id)


def test_writing_everything_twice_changes_nothing(store, observation):
    store.write(observation())
    before = store.table()
    assert not store.write(observation(wall_s=99.0))
    assert store.table() == before


@pytest.mark.parametrize(
    ("first", "second", "replaced"),
    [
        ("error", "finished", True),
        ("error", "diverged", True),
        ("diverged", "finished", True),
        ("error", "error", False),
        ("finished", "error", False),
        ("diverged", "error", False),
        ("finished", "diverged", False),
    ],
)
def test_a_row_gives_way_only_to_one_that_says_more(store, observation, first, second, replaced):
    store.write(observation(status=first))
    assert store.write(observation(status=second)) is replaced
    assert [each.status for each in store.read()] == [second if replaced else first]
    assert store.trial_ids({"error"}) == (set() if replaced or first != "error" else store.trial_ids())


def damage(kind: str, path: Path, good: bytes) -> None:
    if kind == "truncated":
        path.write_bytes(good[: len(good) // 2])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_bytes(b"not a table")
    elif kind == "flipped":
        column = pq.ParquetFile(pa.BufferReader(good)).metadata.row_group(0).column(14)
        middle = column.data_page_offset + column.total_compressed_size - 1
        path.write_bytes(good[:middle] + bytes([good[middle] ^ 0xFF]) + good[middle + 1 :])
    elif kind == "foreign":
        pq.write_table(pa.table({"x": [1]}), path)
    elif kind == "wrong types":
        pq.write_table(
            pa.table({"schema_version": ["a"], "trial_id": [1], "status": [2], "setup": [3], "setup_id": [4]}), path
        )
    elif kind == "no rows":
        pq.write_table(OBSERVATIONS.empty_table(), path)
    elif kind == "newer":
        table = pq.read_table(pa.BufferReader(good))
        pq.write_table(table.set_column(0, "schema_version", pa.array([99], pa.int32())), path)


@pytest.mark.parametrize(
    "kind", ["truncated", "empty", "text", "flipped", "foreign", "wrong types", "no rows", "newer", "another's name"]
)
def test_a_damaged_file_is_named_never_read_and_written_anew(store, observation, kind):
    kept, lost = observation(1), observation(2)
    store.write(kept)
    store.write(lost)
    path = rows(store) / f"{lost.trial.id}.parquet"
    other = rows(store) / f"{kept.trial.id}.parquet"
    damage(kind, path, other.read_bytes() if kind == "another's name" else path.read_bytes())
    if kind == "another's name":
        path.write_bytes(other.read_bytes())
    assert store.read() == [kept]
    assert store.trial_ids() == {kept.trial.id}
    assert len(store.damaged) == 1
    assert lost.trial.id in store.damaged[0]
    assert "\n" not in store.damaged[0]
    earlier = observation(3)
    pq.write_table(to_table(earlier).drop_columns(["wall_s"]), rows(store) / f"{earlier.trial.id}.parquet")
    assert len(store.read()) == 2
    (rows(store) / f"{earlier.trial.id}.parquet").unlink()
    assert store.write(observation(2, status="error"))
    assert store.write(lost)
    assert len(store.read()) == 2
    assert store.damaged == []


def test_leftovers_are_passed_over_and_foreign_names_are_told(store, observation):
    store.write(observation())
    (rows(store) / ".tmp-0123456789abcdef.parquet-1-aa").write_bytes(b"half")
    (rows(store) / "_SUCCESS").write_bytes(b"")
    (rows(store) / "part-0.parquet").write_bytes(b"")
    (rows(store) / "notes.txt").write_bytes(b"")
    (rows(store) / "folder").mkdir()
    assert len(store.read()) == 1
    assert [line.split(":")[0] for line in store.damaged] == ["observations/notes.txt", "observations/part-0.parquet"]


def test_rows_with_later_columns_and_without_newer_ones_are_read(store, observation):
    """A dataset must not take its schema from the first file."""
    seen = [observation(number) for number in range(2)]
    for index, each in enumerate(seen):
        table = to_table(each)
        table = table.append_column("later", pa.array([1])) if index else table.drop_columns(["peak_bytes"])
        pq.write_table(table, rows(store) / f"{each.trial.id}.parquet")
    assert sorted(store.table()["peak_bytes"].to_pylist(), key=str) == [0, None]
    assert store.damaged == []


def test_a_directory_of_another_sweep_is_refused(store):
    with pytest.raises(OutputError, match=r"another sweep .*f00d.*beef.*--out"):
        Store.create(store.uri, "", "beef")
    assert Store.create(store.uri, "# a comment", "f00d").sweep_text == "# a comment"


def test_observations_without_an_identity_are_not_taken_over(store, observation):
    store.write(observation())
    (Path(store.files.root) / "sweep.json").unlink()
    with pytest.raises(OutputError, match=r"no sweep\.json"):
        Store.create(store.uri, "", "f00d")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"fingerprint": 1, "schema_version": 1}', "\x00"])
def test_a_broken_identity_is_told(store, text):
    (Path(store.files.root) / "sweep.json").write_text(text)
    for use in (Store.open, lambda uri: Store.create(uri, "", "f00d")):
        with pytest.raises(OutputError, match="damaged or foreign"):
            use(store.uri)


def test_a_newer_directory_asks_for_an_upgrade(store):
    (Path(store.files.root) / "sweep.json").write_text(
        '{"fingerprint": "f00d", "schema_version": 99, "distsub_version": "9.1"}'
    )
    with pytest.raises(OutputError, match=r"upgrade distsub to 9\.1"):
        Store.open(store.uri)


def test_a_directory_that_is_none_is_told(tmp_path):
    with pytest.raises(OutputError, match="no results directory"):
        Store.open(tmp_path)
    with pytest.raises(OutputError, match="no results directory"):
        Store.open(tmp_path / "absent")


def test_an_unwritable_place_is_told_before_anything_is_spent(tmp_path):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file" / "out", tmp_path / "file", "/proc/out"):
        with pytest.raises(OutputError, match="cannot write") as caught:
            Store.create(place, "", "f00d")
        assert "\n" not in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_directory_is_told(store):
    rows(store).chmod(0o500)
    with pytest.raises(OutputError, match="cannot write"):
        Store.create(store.uri, "", "f00d")


def test_a_directory_that_vanished_is_told(store, observation):
    for path in sorted(Path(store.files.root).rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    with pytest.raises(OutputError, match="cannot write trial"):
        store.write(observation())


WRITER = """
import sys, time, pathlib
sys.path.insert(0, sys.argv[3])
from builders import make_observation
from distsub.results.store import Store
out, index = sys.argv[1], int(sys.argv[2])
store = Store.create(out, "", "f00d")
pathlib.Path(out, f"ready-{index}").touch()
while not pathlib.Path(out, "go").exists():
    time.sleep(0.01)
for number in range(20):
    store.write(make_observation(number, status="error" if index % 2 else "finished", wall_s=float(index)))
for number in range(5):
    store.write(make_observation(1000 + 10 * index + number))
"""


@pytest.mark.timeout(600)  # eight interpreters on a machine that may be busy
@pytest.mark.slow
def test_eight_writers_lose_nothing_and_write_nothing_twice(tmp_path, warm):
    out, here = tmp_path / "out", str(Path(__file__).parents[1])
    out.mkdir()
    writers = [subprocess.Popen([*warm.code, WRITER, str(out), str(index), here]) for index in range(8)]
    while not all((out / f"ready-{index}").exists() for index in range(8)):
        assert all(writer.poll() is None for writer in writers)
    (out / "go").touch()
    assert [writer.wait(500) for writer in writers] == [0] * 8
    store = Store.open(out)
    seen = store.read()
    assert store.damaged == []
    assert len(seen) == len({each.trial.id for each in seen}) == 20 + 8 * 5
    assert {each.status for each in seen} == {"finished"}
    assert [name for name in os.listdir(rows(store)) if name.startswith(".tmp")] == []


@pytest.mark.slow
def test_an_object_store_behaves_like_a_directory(bucket, observation):
    address, options = bucket
    with pytest.raises(OutputError, match="cannot write"):
        Store.create(f"s3://absent/x?{options}", "", "f00d")
    uri = f"{address}/runs/mrpc?{options}"
    store = Store.create(uri, "title = 'x'\n", "f00d")
    assert store.uri == "s3://bucket/runs/mrpc"
    assert store.write(observation(1, status="error"))
    assert store.write(observation(1))
    assert not store.write(observation(1, status="error"))
    assert store.write(observation(2))
    store.files.put("observations/0123456789abcdef.parquet", b"PAR1 half")
    again = Store.open(uri)
    assert [each.status for each in again.read()] == ["finished"] * 2
    assert len(again.damaged) == 1
    assert again.sweep_text == "title = 'x'\n"
    with pytest.raises(OutputError, match="another sweep"):
        Store.create(uri, "", "beef")
    with pytest.raises(OutputError, match="no results directory"):
        Store.open(f"{address}/other?{options}")


def test_many_damaged_files_are_counted_and_the_first_named(tmp_path, observation):
    store = Store.create(tmp_path / "out", "", "f00d")
    for number in range(20):
        store.write(observation(number))
    for path in (tmp_path / "out" / "observations").glob("*.parquet"):
        path.write_bytes(b"junk")
    assert store.table().num_rows == 0
    *named, last = store.notices()
    assert all(line.startswith("skipped observations/") for line in named)
    assert last == f"skipped {20 - len(named)} more files" and len(named) < 20


def test_it_says_what_it_is(store, observation):
    assert repr(store) == f"Store({store.uri!r}, rows not read yet)"
    store.write(observation(1))
    store.read()
    assert repr(store) == f"Store({store.uri!r}, 1 rows)"
