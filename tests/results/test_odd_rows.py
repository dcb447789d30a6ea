"""Rows as no distsub writes them: one of each kind is named and skipped, the others are read, nothing is dropped."""

import copy
import json
import subprocess
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import compute as pc
from pyarrow import parquet as pq

from distsub.errors import OutputError
from distsub.records import digest, id_of
from distsub.results.compact import compact
from distsub.results.rows import encode
from distsub.results.schema import IDENTITY, OBSERVATIONS, to_table
from distsub.results.store import Store

MISSING = object()
NUMBERS = ("x", True, [], {}, [[1]], 10**30, float("nan"), float("inf"), "a\x1b[31m\nb", -1, MISSING)
TEXTS = (1, None, True, [], {}, 1.5, MISSING)
RECORDS = (None, 1, "x", [], MISSING)
SETUPS = [
    *((("learning_rate",), value) for value in (*NUMBERS, None, 0)),
    *((("seeds", "data"), value) for value in ("x", None, 1.5, [], 10**30)),
    *((("budget", "steps"), value) for value in ("x", None, 1.5, {}, 10**30, MISSING)),
    *((("budget", "precision"), value) for value in ("x", 1, None)),
    *((("model", "name"), value) for value in TEXTS),
    *((("task", "text"), value) for value in ("a", [1], [[]], None, MISSING)),
    *((("task", "where"), value) for value in ([1], [["a"]], "ab", [["a", 1]])),
    *(((name,), value) for name in ("model", "task", "method", "seeds", "budget") for value in RECORDS),
    (("unheard_of",), 1),
    (("seeds", "unheard_of"), 1),
]


@pytest.fixture
def store(tmp_path):
    return Store.create(tmp_path / "out", "title = 'x'\n", "f00d")


def put(table, column, value):
    return table.set_column(table.schema.get_field_index(column), column, value)


def with_setup(table, text):
    """Make a row whose setup is this text, under the ids that such a text has."""
    row = table.to_pylist()[0]
    setup_id = digest(text)
    trial_id = id_of(setup_id, row["d"], row["eta"])
    for name, value in {"setup": text, "setup_id": setup_id, "trial_id": trial_id}.items():
        table = put(table, name, pa.array([value], table.schema.field(name).type))
    return table, trial_id


def lay(store, where, table, trial_id, beside):
    """Lay an odd row down beside a good one: each in a file, or both in a part."""
    root = Path(store.files.root)
    if where == "row":
        (root / "observations" / f"{trial_id}.parquet").write_bytes(encode(table))
        store.write(beside)
    else:
        (root / "parts").mkdir()
        both = pa.concat_tables([table, to_table(beside)], promote_options="permissive")
        metadata = OBSERVATIONS.metadata
        (root / "parts" / f"{'0' * 16}.parquet").write_bytes(encode(both.replace_schema_metadata(metadata), part=True))


def is_skipped(store, beside):
    """Whatever reads the table gives the good row and names the odd one in a line that can be printed."""
    readings = [
        lambda: [row.trial.id for row in store.read()],
        lambda: [row.trial.id for row in store.read(answers=False)],
        lambda: sorted(store.trial_ids()),
        lambda: store.table()["trial_id"].to_pylist(),
        lambda: [row.trial.id for row in store.scores()],
    ]
    for reading in readings:
        assert reading() == [beside.trial.id]
        [line] = store.damaged
        assert "\n" not in line and len(line) < 300
    return True


@pytest.mark.parametrize(
    ("where", "path", "value"),
    [
        pytest.param(where, path, value, marks=[pytest.mark.slow] if (number + place) % 2 else [])  # each once is fast
        for number, (path, value) in enumerate(SETUPS)
        for place, where in enumerate(("row", "part"))
    ],
    ids=lambda value: "missing" if value is MISSING else repr(value)[:30],
)
def test_an_odd_setup_is_named_and_skipped(store, observation, where, path, value):
    record = json.loads(observation().trial.setup.identity)
    inner = record
    for key in path[:-1]:
        inner = inner[key]
    if value is MISSING:
        del inner[path[-1]]
    else:
        inner[path[-1]] = copy.deepcopy(value)
    table, trial_id = with_setup(to_table(observation()), json.dumps(record, sort_keys=True))
    lay(store, where, table, trial_id, observation(1))
    assert is_skipped(store, observation(1))


@pytest.mark.parametrize("where", ["row", "part"])
@pytest.mark.parametrize(
    ("name", "value"), [("d", -1), ("eta", 0.0), ("eta", -1.0), ("eta", float("nan")), ("eta", 1e999)]
)
def test_a_d_or_eta_that_no_trial_has_is_named_and_skipped(store, observation, where, name, value):
    table = to_table(observation())
    row = table.to_pylist()[0] | {name: value}
    trial_id = id_of(row["setup_id"], row["d"], row["eta"])
    for column, each in ((name, value), ("trial_id", trial_id)):
        table = put(table, column, pa.array([each], table.schema.field(column).type))
    lay(store, where, table, trial_id, observation(1))
    assert is_skipped(store, observation(1))


@pytest.mark.parametrize("where", ["row", "part"])
@pytest.mark.parametrize(
    "text", ["", "{", "null", "[]", "1", '"d"', "[" * 100_000, '{"a":' * 100_000, '{"d": ' + "9" * 5000 + "}"],
    ids=lambda text: text[:8],
)  # fmt: skip
def test_a_setup_that_is_no_record_is_named_and_skipped(store, observation, where, text):
    table, trial_id = with_setup(to_table(observation()), text)
    lay(store, where, table, trial_id, observation(1))
    assert is_skipped(store, observation(1))


@pytest.mark.parametrize(
    "how", ["without it", *(pytest.param(how, marks=pytest.mark.slow) for how in ("null", "text", "list", "twice"))]
)
def test_a_column_that_is_missing_or_of_another_type_never_breaks_a_reading(store, observation, how):
    """A row for every column, in which that one is odd."""
    root = Path(store.files.root) / "observations"
    for number, column in enumerate(OBSERVATIONS.names):
        table, kind = to_table(observation(number)), OBSERVATIONS.field(column).type
        if how == "without it":
            table = table.drop_columns([column])
        elif how == "twice":
            table = table.append_column(column, table[column])
        else:
            values = {"null": pa.nulls(1, kind), "text": pa.array(["x"]), "list": pa.array([[{"a": 1}]])}
            table = put(table, column, values[how])
        (root / f"{observation(number).trial.id}.parquet").write_bytes(encode(table))
    ids = {name: observation(number).trial.id for number, name in enumerate(OBSERVATIONS.names)}
    for _ in range(2):
        found = {row.trial.id for row in store.read()}
        assert len(found) + len(store.damaged) == len(ids) and "\n" not in "".join(store.damaged)
        for reading in (store.table, store.trial_ids, store.scores):
            assert reading() is not None and "\n" not in "".join(store.damaged)
        assert not found & {ids[name] for name in ("schema_version", "status", "score", *IDENTITY)}
        compact(store)
    if how in ("without it", "null"):
        assert len(found) == len(ids) - 9


@pytest.mark.parametrize("score", [None, float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["row", "part"])
def test_a_result_without_a_score_is_named_and_skipped(store, observation, where, score):
    odd = observation(status="finished", score=score)
    lay(store, where, to_table(odd), odd.trial.id, observation(1))
    assert is_skipped(store, observation(1))


@pytest.mark.parametrize("where", ["row", "part"])
@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("predicted", [[1.0, None]]),
        ("target", [[None]]),
        ("curve", [[None]]),
        ("curve", [[{"step": None, "score": 0.5}]]),
        ("metrics", [[("f1", None)]]),
        ("provenance", [[("torch", None)]]),
        ("labels", [[None]]),
    ],
)
def test_a_gap_inside_a_list_is_named_and_skipped(store, observation, where, column, value):
    table = put(to_table(observation()), column, pa.array(value, OBSERVATIONS.field(column).type))
    lay(store, where, table, observation().trial.id, observation(1))
    assert store.read() == [observation(1)] and len(store.damaged) == 1
    assert observation().trial.id in store.damaged[0] and column in store.damaged[0]


def test_a_row_that_was_odd_is_trained_and_read_again(store, observation):
    table, trial_id = with_setup(to_table(observation()), observation().trial.identity.replace('"d": 100', '"d": "x"'))
    lay(store, "part", put(table, "trial_id", pa.array([observation().trial.id])), trial_id, observation(1))
    assert len(store.read()) == 1 and store.write(observation())
    assert len(store.read()) == len(store.table()) == 2
    compact(store)
    assert len(store.read()) == len(store.table()) == 2 and len(store.damaged) == 1


@pytest.mark.parametrize("kind", ["row", pytest.param("part", marks=pytest.mark.slow)])
def test_a_small_file_that_claims_billions_of_values_is_named_unread(store, observation, kind):
    table = put(to_table(observation()), "correct", pa.nulls(1, pa.list_(pa.bool_())))
    count = 2**25 if kind == "row" else 2**28 + 1
    values = pa.ListArray.from_arrays([0, count], pa.repeat(pa.scalar(True), count))
    data = encode(put(table, "correct", values), part=kind == "part")
    assert len(data) < 4_000_000
    folder, name = ("observations", observation().trial.id) if kind == "row" else ("parts", "0" * 16)
    store.files.make(folder)
    store.files.put(f"{folder}/{name}.parquet", data)
    before = pa.total_allocated_bytes()
    assert store.read() == [] and store.table().num_rows == 0
    assert f"{count:,} values of correct" in store.damaged[0]
    assert pa.total_allocated_bytes() - before < 2**20


@pytest.mark.parametrize("every", [17 * 11, pytest.param(17, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["row", "part"])
def test_no_bit_of_a_file_that_is_flipped_ends_the_process(observation, kind, every, warm):
    """In a process of its own: pyarrow aborts over some, in what a file says of its columns."""
    data, name = encode(to_table(observation()), part=kind == "part"), f"{observation().trial.id}.parquet"
    read = "parse_row(flipped, name, None)" if kind == "row" else "parse_part(pa.BufferReader(flipped), None)"
    script = f"""
import sys
import pyarrow as pa
from distsub.results.rows import parse_part, parse_row
data, name = sys.stdin.buffer.read(), {name!r}
for at in range(len(data) // 10, len(data), {every}):
    flipped = bytearray(data)
    flipped[at] ^= 0x20
    flipped = bytes(flipped)
    {read}
print("all read")
"""
    done = subprocess.run([*warm.code, script], input=data, capture_output=True)
    assert done.stdout.strip() == b"all read", done.stderr.decode()[-500:]


def test_compact_keeps_columns_that_it_does_not_know(store, observation):
    root = Path(store.files.root) / "observations"
    own = {0: ("later", pa.array([1])), 1: ("later", pa.array([2])), 2: ("note", pa.array(["mine"])), 3: None}
    own |= {4: ("nested", pa.array([[{"a": [1, None]}]])), 5: ("later", pa.array(["of another type"]))}
    for number, column in own.items():
        table = to_table(observation(number))
        table = table.append_column(*column) if column else table
        (root / f"{observation(number).trial.id}.parquet").write_bytes(encode(table))
    seen = store.read()

    def columns():
        found = {}
        for path in Path(store.files.root).glob("*/*.parquet"):
            table = pq.read_table(path, partitioning=None)
            for name in set(table.schema.names) - set(OBSERVATIONS.names):
                kept = table.filter(pc.field(name).is_valid())
                found |= {
                    (d, name): value for d, value in zip(kept["d"].to_pylist(), kept[name].to_pylist(), strict=True)
                }
        return found

    before = columns()
    assert len(before) == 5
    for _ in range(2):
        store.write(observation(6 + _))
        compact(store)
        assert columns() == before and {row.trial.id for row in seen} <= store.trial_ids()
    left = [pq.read_schema(path).field("later").type for path in root.glob("*.parquet")]
    assert left and len(set(left)) == 1  # of two types under one name, the later one stays in its files
    assert store.table().schema.equals(OBSERVATIONS, check_metadata=True)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"a":' * 100_000,
        "",
        "null",
        "[]",
        '"x"',
        '{"fingerprint": 1, "schema_version": 1}',
        '{"fingerprint": "f00d", "schema_version": "1"}',
        '{"fingerprint": "f00d", "schema_version": true}',
        '{"fingerprint": "f00d", "schema_version": 1, "directory": 3}',
        '{"fingerprint": "f00d", "schema_version": ' + "9" * 5000 + "}",
    ],
    ids=lambda text: text[:60],
)
def test_an_odd_identity_is_refused_in_one_line(store, text):
    (Path(store.files.root) / "sweep.json").write_text(text)
    for use in (lambda: Store.open(store.uri), lambda: Store.create(store.uri, "", "f00d")):
        with pytest.raises(OutputError, match=r"sweep\.json is damaged or foreign") as caught:
            use()
        assert "\n" not in str(caught.value)
