"""Merging row files: nothing lost, nothing twice, whoever writes, reads or is killed meanwhile."""

import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
from pyarrow import parquet as pq

from distsub.files import Files
from distsub.results.compact import compact
from distsub.results.schema import OBSERVATIONS
from distsub.results.store import Store


@pytest.fixture
def store(tmp_path):
    return Store.create(tmp_path / "out", "title = 'x'\n", "f00d")


def names(store: Store, folder: str) -> list[str]:
    return sorted(path.name for path in Path(store.files.root, folder).glob("*") if path.name[0] != ".")


def test_the_table_is_the_same_afterwards_and_doing_it_again_changes_nothing(store, observation):
    for number in range(7):
        store.write(observation(number, status=("finished", "error", "finished", "diverged")[number % 4]))
    before, read = store.table(), store.read()
    assert compact(store).to_pylist() == [{"rows": 7, "parts": 1, "merged": 7, "loose": 0, "damaged": 0}]
    assert store.table().equals(before) and store.read() == read
    assert store.table().schema.equals(OBSERVATIONS, check_metadata=True)
    assert store.trial_ids() == set(before["trial_id"].to_pylist())
    assert names(store, "observations") == []
    part = names(store, "parts")
    assert compact(store).to_pylist() == [{"rows": 7, "parts": 1, "merged": 0, "loose": 0, "damaged": 0}]
    assert names(store, "parts") == part


def test_nothing_at_all_is_merged_to_nothing(store):
    assert compact(store).to_pylist() == [{"rows": 0, "parts": 0, "merged": 0, "loose": 0, "damaged": 0}]


def test_parts_fill_up(store, observation):
    seen = []
    for number in range(11):
        seen.append(observation(number))
        store.write(seen[-1])
        compact(store, rows_per_part=4)
    assert len(names(store, "parts")) == 3 and names(store, "observations") == []
    assert sorted(store.read(), key=lambda row: row.trial.d) == seen


def test_a_row_that_says_more_comes_through_a_merge(store, observation):
    store.write(observation(1, status="error"))
    store.write(observation(2, wall_s=1.0))
    compact(store, rows_per_part=2)  # a full part, which is not written again
    store.write(observation(1))
    store.write(observation(2, wall_s=2.0))
    assert [row.status for row in store.read()] == ["finished"] * 2
    assert sorted(row.wall_s for row in store.read()) == [0.0, 1.0]  # of equal rows the first stays
    for _ in range(2):
        compact(store, rows_per_part=2)
        assert [row.status for row in store.read()] == ["finished"] * 2
        assert names(store, "observations") == [] and len(store.trial_ids()) == 2
        assert sorted(row.wall_s for row in store.read()) == [0.0, 1.0]


def test_damaged_files_are_left_and_named(store, observation):
    kept, lost = observation(1), observation(2)
    store.write(kept)
    store.write(lost)
    path = Path(store.files.root, "observations", f"{lost.trial.id}.parquet")
    path.write_bytes(path.read_bytes()[:100])
    assert compact(store)["damaged"].to_pylist() == [1]
    assert store.damaged and lost.trial.id in store.damaged[0] and path.exists()
    assert store.read() == [kept]
    assert store.write(lost) and len(store.read()) == 2


@pytest.mark.parametrize("kind", ["truncated", "empty", "flipped", "foreign", "name"])
def test_a_damaged_part_is_named_and_its_trials_are_made_again(store, observation, kind):
    seen = [observation(number) for number in range(3)]
    for each in seen:
        store.write(each)
    compact(store, rows_per_part=3)
    [name] = names(store, "parts")
    path = Path(store.files.root, "parts", name)
    good = path.read_bytes()
    if kind == "flipped":
        # In a column that the keys are not in: whoever decides what to run must see it all the same.
        group = pq.ParquetFile(path).metadata.row_group(0)
        [column] = [group.column(i) for i in range(group.num_columns) if group.column(i).path_in_schema == "wall_s"]
        at = (column.dictionary_page_offset or column.data_page_offset) + column.total_compressed_size - 1
        path.write_bytes(good[:at] + bytes([good[at] ^ 0xFF]) + good[at + 1 :])
    elif kind == "name":
        path.rename(path.with_name("notes.txt"))
    else:
        path.write_bytes({"truncated": good[:-20], "empty": b"", "foreign": good[:0] + b"PAR1"}[kind])
    assert store.trial_ids() == set()
    assert len(store.damaged) == 1 and "\n" not in store.damaged[0]
    again = [observation(number, wall_s=9.0) for number in range(3)]
    for each in again:
        store.write(each)
    compact(store, rows_per_part=3)
    assert len(store.trial_ids()) == 3 and len(store.damaged) == 1
    assert names(store, "observations") == [] and len(names(store, "parts")) == 2
    if kind != "flipped":
        assert sorted(store.read(), key=lambda row: row.trial.d) == again


def test_a_row_replaced_while_it_is_merged_is_not_removed(store, observation, monkeypatch):
    """The better row arrives between reading and removing."""
    store.write(observation(1, status="error"))
    put = Files.put

    def late(files, name, data, **options):
        written = put(files, name, data, **options)
        if name.startswith("parts/"):
            monkeypatch.undo()
            Store.open(store.uri).write(observation(1))
        return written

    monkeypatch.setattr(Files, "put", late)
    compact(store)
    assert [row.status for row in store.read()] == ["finished"]
    compact(store)
    assert [row.status for row in store.read()] == ["finished"] and names(store, "observations") == []


def test_a_writer_that_finds_its_row_just_merged_writes_it(store, observation, monkeypatch):
    store.write(observation(1, status="error"))
    locked = Files.locked

    def merge_first(files, name):
        monkeypatch.undo()
        compact(store)
        return locked(files, name)

    monkeypatch.setattr(Files, "locked", merge_first)
    assert store.write(observation(1))
    assert [row.status for row in store.read()] == ["finished"]


def test_a_part_that_is_merged_while_it_is_read(store, observation, monkeypatch):
    for number in range(4):
        store.write(observation(number))
        compact(store, rows_per_part=number + 1)
    for number in range(4, 6):
        store.write(observation(number))
    opened = Files.open

    def merge_first(files, name):
        monkeypatch.undo()
        compact(Store.open(store.uri))
        return opened(files, name)

    monkeypatch.setattr(Files, "open", merge_first)
    assert len(store.read()) == 6


@pytest.mark.slow
def test_one_listing_in_order_meets_every_row_whatever_is_merged_meanwhile(store, observation, monkeypatch):
    """As of an object store, name by name; in the middle of it two parts become one, and others stay."""
    times, stay = Files.times, set()

    def slowly(files, folder, *, deep=False):
        if folder != "parts" or not idle:
            return times(files, folder, deep=deep)
        idle.clear()
        found = {}
        while later := [name for name in times(files, folder) if name > max(found, default="")]:
            if not merged and min(later) not in stay:
                merged.append(compact(Store.open(store.uri), rows_per_part=2))
            else:
                found[min(later)] = 1.0
        return found

    monkeypatch.setattr(Files, "lists_in_order", True)
    monkeypatch.setattr(Files, "times", slowly)
    for number in range(0, 16, 2):
        idle, merged, stay = [], [], set(names(store, "parts"))
        for each in (number + 100, number + 101):
            store.write(observation(each))
        compact(store, rows_per_part=1)
        idle.append("slowly, once")
        assert len(store.read()) == number + 2
        assert len(names(store, "parts")) == number // 2 + 1


WRITER = """
import sys, time
sys.path.insert(0, sys.argv[3])
from builders import make_observation
from distsub.results.store import Store
store = Store.open(sys.argv[1])
first = int(sys.argv[2])
for number in range(first, first + 60):
    store.write(make_observation(number, status="error"))
    time.sleep(0.02)
    store.write(make_observation(number))
"""

MERGER = """
import sys
from distsub.results.compact import compact
from distsub.results.store import Store
print("ready", flush=True)
while True:
    compact(Store.open(sys.argv[1]), rows_per_part=25)
"""

READER = """
import sys, time
from distsub.results.store import Store
most = 0
while True:
    store = Store.open(sys.argv[1])
    ids = store.table(["trial_id"])["trial_id"].to_pylist()
    assert len(ids) == len(set(ids)), "a row twice"
    assert len(ids) >= most, f"rows lost: {most} before, {len(ids)} now"
    assert not store.damaged, store.damaged
    most = len(ids)
    time.sleep(0.05)
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_writers_readers_and_merges_that_are_killed_at_any_moment(store, warm):
    """Two writers, a reader, and two merging processes of which one is killed and started again all the time."""
    started = []

    def start(code, *arguments):
        command = [*warm.code, code, store.files.root, *map(str, arguments)]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE))
        return started[-1]

    here, draw, kills = Path(__file__).parents[1], random.Random(0), 0
    writers = [start(WRITER, first, here) for first in (0, 1000)]
    others = [start(READER), start(MERGER)]
    try:
        while any(writer.poll() is None for writer in writers) or kills < 5:
            victim = start(MERGER)
            victim.stdout.readline()
            time.sleep(draw.uniform(0.0, 0.5))
            victim.send_signal(signal.SIGKILL)
            victim.wait()
            kills += 1
            for other in others:
                assert other.poll() is None, other.stderr.read().decode()
        assert [writer.returncode for writer in writers] == [0, 0], [writer.stderr.read() for writer in writers]
    finally:
        for process in started:
            process.kill()
            process.communicate()
    again = Store.open(store.uri)
    compact(again)
    rows = again.read()
    assert len(rows) == len({row.trial.id for row in rows}) == 120
    assert {row.status for row in rows} == {"finished"} and again.damaged == []
    assert names(store, "observations") == [] and len(names(store, "parts")) == 1
