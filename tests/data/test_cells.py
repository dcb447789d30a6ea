from datetime import date, datetime, time
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from distsub.data import cells
from distsub.errors import DataError

NOON = datetime(2024, 1, 31, 12, 0, 0, 500_000)


def text(array):
    column = cells.as_text(pa.chunked_array([array]))
    assert column.type == cells.TEXT
    return column.to_pylist()


TEXTS = [
    *(pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(), pa.binary_view()),
    *(pa.dictionary(pa.int32(), pa.string()), pa.dictionary(pa.uint8(), pa.large_string())),
    pa.run_end_encoded(pa.int32(), pa.string()),
]


@pytest.mark.parametrize("kind", TEXTS, ids=str)
def test_every_type_that_holds_text_gives_the_text(kind):
    words = ["007", "1e5", "1.0", "NA", " a ", "é\n", "é\n", None, ""]
    array = pa.array(words, kind) if not isinstance(kind, pa.RunEndEncodedType) else pc.run_end_encode(pa.array(words))
    assert text(array) == [*words[:-1], None]
    assert cells.holds(kind) == "text"


WHOLE = [
    *(pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()),
    *(pa.float32(), pa.float64(), pa.decimal32(5, 2), pa.decimal128(10, 0), pa.decimal256(50, 3)),
    *(pa.dictionary(pa.int8(), pa.int64()), pa.string(), pa.float16()),
]


@pytest.mark.parametrize("kind", WHOLE, ids=str)
def test_every_type_that_holds_whole_numbers_gives_the_same(kind):
    values = [0, 1, 10, None]
    if pa.types.is_string(kind):
        values = ["0", "1", "10", None]
    if pa.types.is_float16(kind):
        values = [np.float16(0), np.float16(1), np.float16(10), None]
    assert text(pa.array(values, kind)) == ["0", "1", "10", None]


def test_numbers_beside():
    assert text(pa.array([0.1, -0.0, 1e-7, 1e17, float("nan"), 2.5])) == ["0.1", "0", "1e-07", str(10**17), None, "2.5"]
    assert text(pa.array([0.1, 16777217.0], pa.float32())) == ["0.1", "16777216"]
    assert text(pa.array([np.float16(0.1)])) == ["0.1"]
    assert text(pa.array([Decimal("0.10"), Decimal("-3.00")])) == ["0.1", "-3"]
    assert text(pa.array([2**64 - 1], pa.uint64())) == [str(2**64 - 1)]
    assert text(pa.array([True, False, None])) == ["true", "false", None]
    assert text(pa.nulls(2)) == [None, None]
    assert text(pa.array([float("inf")])) == ["inf"]


def test_points_in_time():
    assert text(pa.array([date(2024, 1, 31)])) == text(pa.array([date(2024, 1, 31)], pa.date64())) == ["2024-01-31"]
    for unit in ("ms", "us", "ns"):
        assert text(pa.array([NOON], pa.timestamp(unit))) == ["2024-01-31 12:00:00.5"]
        assert text(pa.array([NOON], pa.timestamp(unit, "UTC"))) == ["2024-01-31 12:00:00.5Z"]
    assert text(pa.array([datetime(2024, 1, 31, 10)], pa.timestamp("s"))) == ["2024-01-31 10:00:00"]
    assert text(pa.array([time(8, 30)])) == ["08:30:00"]


@pytest.mark.parametrize(
    "array", [pa.array([[1]]), pa.array([{"a": 1}]), pa.array([b"\xff"]), pa.array([NOON - NOON])], ids=str
)
def test_what_has_no_text_is_refused(array):
    with pytest.raises(DataError, match=r"^holds "):
        text(array)


def kept(wanted, *values):
    column = pa.chunked_array([pa.array(values, cells.TEXT)])
    return column.filter(cells.matching(column, wanted)).to_pylist()


def test_where_means_values():
    assert kept("1", "0", "1.0", None) == ["1.0"]
    assert kept("1.0", "0", "1") == ["1"]
    assert kept("1e0", "1", "01", "+1", " 1") == ["1"]
    assert kept("01", "1", "01") == ["01"]
    assert kept("True", "true", "1", "yes") == ["true"]
    assert kept("2024-01-31", "2024-01-31 00:00:00", "2024-02-01") == ["2024-01-31 00:00:00"]
    assert kept("2024-01-31 08:00:00Z", "2024-01-31 10:00:00+0200", "2024-01-31 08:00:00") == [
        "2024-01-31 10:00:00+0200"
    ]
    assert kept("2024-13-31", "2024-13-31", "x") == ["2024-13-31"]
    assert kept("", None, "x", None) == [None, None]
    assert kept("a", "b") == []
    assert kept(str(10**30), str(10**30 + 1), str(10**30)) == [str(10**30)]


def test_where_refuses_one_value_written_in_two_ways():
    with pytest.raises(DataError, match=r'^writes 1\.1 both as "1\.1" and as "1\.10"; make them one'):
        kept("1.1", "1.1", "1.10")
