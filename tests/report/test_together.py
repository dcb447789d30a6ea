"""Several results as one report: rows once, labels that name their sweep."""

from types import SimpleNamespace

import pyarrow as pa
import pytest

from distsub.errors import ConfigError
from distsub.report.schema import D90, SEARCHES
from distsub.report.together import Part, place, together


def part(name, rows):
    table = pa.table({"task": ["sst2"]})
    made = [
        pa.Table.from_pylist([dict.fromkeys(schema.names) | {"label": "did"}], schema=schema)
        for schema in (SEARCHES, D90)
    ]
    return Part(name, rows, SimpleNamespace(searches=made[0], d90=made[1], smallest=table), {"Transfer": table})


def test_one_is_as_it_is(observation):
    found = together([part("one", [observation(4)])])
    assert (
        found["title"] == "one"
        and found["d90"]["label"].to_pylist() == ["did"]
        and list(found["others"]) == ["Transfer"]
    )


def test_several_are_told_apart_and_a_trial_counts_once(observation):
    found = together([part("one", [observation(4), observation(8)]), part("two", [observation(4)])])
    assert [row.trial.d for row in found["observations"]] == [104, 108]
    assert found["d90"]["label"].to_pylist() == found["searches"]["label"].to_pylist() == ["did (one)", "did (two)"]
    assert list(found["others"]) == ["Transfer, one", "Transfer, two"]
    assert found["title"] == "one, two" and found["adapters"].num_rows == 2


def test_several_sweeps_of_one_name_are_told_apart_and_lose_no_table(observation):
    found = together([part("one", [observation(4)]), part("one", [observation(8)])])
    assert found["d90"]["label"].to_pylist() == ["did (one)", "did (one #2)"]
    assert list(found["others"]) == ["Transfer, one", "Transfer, one #2"] and found["title"] == "one, one #2"


@pytest.mark.parametrize(
    ("outs", "expected"),
    [
        (["A"], "A/report"),
        (["s3://b/A/?region=x"], "s3://b/A/report?region=x"),
        (["A/", "x/B", "C/"], "A/report-with-B-C"),
        (["s3://b/A?region=x", "B"], "s3://b/A/report-with-B?region=x"),
    ],
)
def test_the_report_of_several_leaves_the_page_of_each_alone(outs, expected):
    assert place(outs) == expected and place(outs, "elsewhere") == "elsewhere"
    if len(outs) == 1:
        return
    for out in ("A/report", "A//report/") if outs[0] == "A/" else ("s3://b/A/report?region=y",):
        with pytest.raises(ConfigError, match="report-with-B"):
            place(outs, out)
