"""Listings: three formats of the same table, each whole and well-formed."""

import csv
import datetime
import decimal
import io
import json

import pyarrow as pa
import pytest

from distsub.errors import ConfigError
from distsub.results.listing import render
from distsub.results.schema import to_table

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


def test_a_table_shows_every_cell_whole():
    long = "x" * 300
    text = render(pa.table({"name": [long, "[red]b[/red]"], "d": [1, 22_713_216]}))
    lines = text.splitlines()
    assert long in text
    assert "[red]b[/red]" in text
    assert lines[0].split() == ["name", "d"]
    assert "22713216" in lines[-1]
    assert len(lines) == 4
    assert "\x1b" not in text


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
