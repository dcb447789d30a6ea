"""Listings: three formats of the same table, each whole and well-formed."""

import csv
import datetime
import decimal
import io
import json
import re
import unicodedata
from collections import Counter

import pyarrow as pa
import pytest
from builders import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from distsub.errors import ConfigError, QueryError
from distsub.report.listing import _cell, _plain, render, render_facts
from distsub.report.terminal import Terminal, printable
from distsub.results.schema import to_table
from distsub.results.sql import query

TABLE = pa.table(
    {
        "name": ["a, b", 'say "x"\n[bold]', None],
        "d": [1, 22_713_216, None],
        "score": [0.5, float("nan"), 1e-9],
        "flags": [[True, False], [], None],
        "metrics": pa.array([[("f1", 0.5)], [("f1", float("inf"))], None], pa.map_(pa.string(), pa.float64())),
        "sum": pa.array([decimal.Decimal(3), decimal.Decimal(4), None], pa.decimal128(38, 0)),
        "day": [datetime.date(2020, 1, 2)] * 3,
    }
)


def test_json_is_one_valid_document():
    def refuse(constant):
        raise AssertionError(constant)

    rows = json.loads(render(TABLE, "json"), parse_constant=refuse)
    assert rows[0] == {
        "name": "a, b",
        "d": 1,
        "score": 0.5,
        "flags": [True, False],
        "metrics": {"f1": 0.5},
        "sum": 3,
        "day": "2020-01-02",
    }
    assert rows[1]["score"] is None
    assert rows[1]["metrics"] == {"f1": None}
    assert rows[2]["name"] is None


def test_csv_reads_back_with_its_header():
    rows = list(csv.reader(io.StringIO(render(TABLE, "csv"))))
    assert rows[0] == TABLE.schema.names
    assert rows[2][0] == 'say "x"\n[bold]'
    assert [row[1] for row in rows[1:]] == ["1", "22713216", ""]
    assert json.loads(rows[1][4]) == {"f1": 0.5}


@pytest.fixture(autouse=True)
def no_columns(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)


def test_a_table_in_a_file_shows_every_cell_whole():
    long = "x" * 300
    text = render(pa.table({"name": [long, "[red]b[/red]"], "d": [1, 22_713_216]}))
    assert long in text and "[red]b[/red]" in text and "22713216" in text
    text = render(pa.table({"name": [long[:150], "b"], "d": [1, 22_713_216]}))
    lines = text.splitlines()
    assert long[:150] in text and lines[0].split() == ["name", "d"] and len(lines) == 4
    assert lines[2].endswith("       1") and lines[3].endswith("  22713216"), "numbers end at the right"


TEXTS = st.text(
    st.one_of(
        st.sampled_from("ab_-/ \x1b\r\n\t\u202e\u2066\u200d\ufe0f\u0301\u6f22\U0001f600\xa0"),
        st.characters(codec="utf-8"),
    ),
    max_size=90,
)
CELLS = {
    pa.string(): TEXTS,
    pa.int64(): st.integers(-(2**63), 2**63 - 1),
    pa.float64(): st.floats(),
    pa.list_(pa.string()): st.lists(TEXTS, max_size=15),
}


@st.composite
def tables(draw):
    rows = draw(st.integers(0, 5))
    columns, names = [], []
    for _ in range(draw(st.integers(1, 9))):
        kind = draw(st.sampled_from(list(CELLS)))
        value = st.none() | CELLS[kind]
        one = draw(st.booleans())
        columns.append(pa.array([draw(value)] * rows if one else [draw(value) for _ in range(rows)], kind))
        names.append(draw(TEXTS))
    return pa.Table.from_arrays(columns, names=names)


@settings(examples(120), suppress_health_check=[HealthCheck.too_slow])
@given(tables(), st.integers(40, 200), st.sampled_from(["utf-8", "ascii"]))
def test_a_table_fits_any_terminal_and_loses_nothing(table, width, encoding):
    terminal = Terminal(width, encoding)
    text = render(table, "table", terminal)
    lines = text.split("\n")
    assert all(cell_len(line) <= width for line in lines)
    assert all(char == "\n" or char.isprintable() or unicodedata.category(char) == "Zs" for char in text)
    text.encode(encoding)
    assert_same_words(table, text, terminal)


def assert_same_words(table, text, terminal):
    """Every name and cell is there, letter by letter; only spaces and line breaks may differ."""
    found = Counter(char for char in text if not char.isspace())
    for field, column in zip(table.schema, table.columns, strict=True):
        is_float = pa.types.is_floating(field.type)
        cells = [_cell(value if is_float else _plain(value, field.type)) for value in column.to_pylist()]
        distinct = cells if len(set(cells)) > 1 else cells[:1]
        if len(cells) > 1 and column.null_count == len(cells):
            distinct = []  # the column is told to be empty
        wanted = "".join(printable(cell, terminal) for cell in [field.name, *distinct])
        found.subtract(char for char in wanted if not char.isspace())
    assert not [char for char, count in found.items() if count < 0]


def read_back(text):
    """Take a printed grid apart again: its columns stand where the rule says, its rows between blank lines."""
    lines = text.split("\n")
    [at] = [number for number, line in enumerate(lines) if line and set(line) <= {"-", " "}]
    spans = [match.span() for match in re.finditer("-+", lines[at])]

    def join(block):
        return ["".join(line[start:end].strip() for line in block) for start, end in spans]

    body = lines[at + 1 :]
    blocks = [part.split("\n") for part in "\n".join(body).split("\n\n")] if "" in body else [[line] for line in body]
    return join(lines[:at]), [join(block) for block in blocks]


@examples(200)
@given(
    st.lists(
        st.tuples(st.text("abc_/", min_size=1, max_size=60), st.integers(0, 10**6), st.text("xyz", min_size=1)),
        min_size=2,
        max_size=6,
        unique_by=(lambda row: row[0], lambda row: row[1], lambda row: row[2]),
    ),
    st.integers(40, 120),
)
def test_what_a_terminal_shows_reads_back_as_the_table(rows, width):
    names = ["a_long_header_of_words", "d", "what"]
    columns = [[row[i] for row in rows] for i in range(3)]
    text = render(pa.table(dict(zip(names, columns, strict=True))), "table", Terminal(width, "ascii"))
    if text.startswith("row 1 of"):
        least = [max(len("header_"), *(len(str(value)) for value in column)) for column in columns]
        assert sum(least) > width - 4, "there was room for columns"
    else:
        assert read_back(text) == (names, [[str(value) for value in row] for row in rows])


def test_what_all_rows_share_is_said_once_above_them():
    table = pa.table(
        {"task": ["mrpc"] * 3, "d": [1, 2, 3], "revision": pa.array([None] * 3, pa.string()), "n": [7] * 3}
    )
    lines = render(table, "table", Terminal(80)).splitlines()
    assert lines[0] == "task: mrpc  n: 7  empty: revision" and lines[1] == "d" and lines[3:] == ["1", "2", "3"]
    assert render(table.slice(0, 1), "table", Terminal(80)).splitlines()[0].split() == ["task", "d", "revision", "n"]
    same = table.select(["task", "n"])
    assert render(same, "table", Terminal(80)).splitlines()[2:] == ["mrpc  7"] * 3


def test_nearly_equal_numbers_are_not_said_to_be_one():
    text = render(pa.table({"score": [0.1234567, 0.1234568]}), "table", Terminal(80))
    assert text.splitlines()[0].strip() == "score"


def test_a_table_too_wide_is_written_row_below_row():
    table = pa.table({f"column_{i}": [float(i), 2.5, 3.5] for i in range(12)})
    text = render(table, "table", Terminal(60))
    assert text.startswith("row 1 of 3\ncolumn_0   0\n") and "\n\nrow 3 of 3\n" in text
    assert render(table, "table", Terminal(None)).splitlines()[0].split() == table.schema.names


def test_names_cannot_steer_the_terminal():
    names = ["a\x1b[2Jb", "\rx", "\u202egpj", "two\nlines", "\x9b31m", "caf\xe9"]
    text = render(pa.table({"name": names, "na\x07me": range(6)}), "table", Terminal(80))
    for escaped in (r"a\x1b[2Jb", r"\rx", r"\u202egpj", r"two\nlines", r"\x9b31m", "caf\xe9", r"na\x07me"):
        assert escaped in text
    assert r"caf\xe9" in render(pa.table({"name": names}), "table", Terminal(80, "ascii"))


def test_sizes_are_for_people_in_a_table_only():
    table = pa.table({"peak_bytes": [83464, 1023, 3 * 2**30], "bytes": [0, 1024**2 - 1, None], "d": [1, 2, 3]})
    text = render(table, "table", Terminal(80))
    for shown in ("81.5 KiB", "1023 B", "3.0 GiB", "0 B", "1.0 MiB"):
        assert shown in text
    assert json.loads(render(table, "json"))[0]["peak_bytes"] == 83464
    assert "83464" in render(table, "csv")


@pytest.mark.parametrize(("columns", "width"), [("90", 90), ("7", 40), ("", None), ("x", None), ("0", None)])
def test_the_width_of_redirected_output_is_that_of_columns(monkeypatch, columns, width):
    monkeypatch.setenv("COLUMNS", columns)
    assert Terminal.of(io.StringIO()).width == width


def test_facts_are_one_object_with_typed_values():
    facts = {"d": 16, "groups": None, "loss": float("nan"), "peak_bytes": 2048, "versions": {"torch": "2"}, "x": [1.5]}
    assert json.loads(render_facts(facts, "json")) == facts | {"loss": None}
    rows = dict(csv.reader(io.StringIO(render_facts(facts, "csv"))))
    assert rows["d"] == "16" and json.loads(rows["versions"]) == {"torch": "2"}
    lines = render_facts(facts, "table", Terminal(80)).splitlines()
    assert lines[0].split() == ["d", "16"] and lines[3].split() == ["peak_bytes", "2.0", "KiB"]


def test_json_of_a_narrow_encoding_is_still_json():
    table = pa.table({"name": ["caf\xe9 \U0001f600"]})
    text = render(table, "json", Terminal(None, "ascii"))
    assert text.isascii() and json.loads(text)[0]["name"] == "caf\xe9 \U0001f600"


def test_long_lists_are_counted_in_a_table_and_whole_elsewhere():
    table = pa.table({"correct": [[True] * 408]})
    assert "[408 items]" in render(table)
    assert len(json.loads(render(table, "json"))[0]["correct"]) == 408


@pytest.mark.parametrize("format", ["table", "json", "csv"])
def test_an_empty_table_and_an_observation_render(format, observation):
    empty = render(TABLE.slice(0, 0), format)
    assert json.loads(empty) == [] if format == "json" else empty.startswith("name")
    assert "package:tiny" in render(to_table(observation()), format)


def test_columns_named_alike_are_all_kept():
    table = pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["d", "d"])
    assert json.loads(render(table, "json")) == [{"d": 1, "d_2": 2}]
    assert render(table, "csv") == "d,d\n1,2"


def test_an_unknown_format_names_the_known_ones():
    with pytest.raises(ConfigError, match="'xml', allowed are table, json, csv"):
        render(TABLE, "xml")


@pytest.mark.parametrize("format", ["table", "json", "csv"])
@pytest.mark.parametrize(
    "value",
    [
        "timestamp 'infinity'", "timestamp '-infinity'", "timestamptz 'infinity'", "timestamp_s 'infinity'",
        "date 'infinity'", "date '-infinity'", "date '0044-03-15 (BC)'", "timestamp '10000-01-01'",
        "[timestamp 'infinity']", "{'a': date 'infinity'}", "map([1], [date 'infinity'])",
    ],
)  # fmt: skip
def test_a_time_that_python_does_not_know_is_one_line(value, format):
    table = query({}, f"select {value} as moment")
    with pytest.raises(QueryError, match=r'column "moment" .*years 1 to 9999; cast it to text') as caught:
        render(table, format, Terminal(80))
    assert "\n" not in str(caught.value)
    assert "inf" in render(query({}, "select (timestamp 'infinity')::varchar x"), format, Terminal(80))


@pytest.mark.parametrize("format", ["table", "json", "csv"])
@pytest.mark.parametrize(
    "value",
    [
        "interval 400 years", "'a'::blob", "uuid()", "'1010'::bit", "union_value(a := 1)", "time '24:00:00'",
        "170141183460469231731687303715884105727", "'nan'::double", "null", "array_value(1, 2)", "1::uhugeint",
        "'12:00:00+02'::timetz", "{'a': [1, null]}", "map(['a'], [1.5])", "time_ns '12:00:00.123456789'", "true",
        "1.5::decimal(9, 3)",
    ],
)  # fmt: skip
def test_every_other_type_of_a_query_is_shown(value, format):
    assert "x" in render(query({}, f"select {value} as x"), format, Terminal(80))
