"""The report: complete, self-contained, and drawn for any mixture of trials."""

import dataclasses
import io
import itertools
import re
from html.parser import HTMLParser
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import csv
from pyarrow import parquet as pq

from distsub.errors import OutputError
from distsub.records import Full, Seeds
from distsub.report.curves import draw_curves
from distsub.report.lines import spread_apart
from distsub.report.page import write_report
from distsub.report.schema import D90, SEARCHES


def baseline(observation):
    seen = observation(score=0.8)
    return dataclasses.replace(seen, trial=seen.trial.vary(method=Full(), d=None, eta=None, learning_rate=3e-5))


@pytest.fixture
def trials(observation):
    seen = [observation(40 * number, score=0.5 + 0.03 * number) for number in range(8)]
    seen += [observation(7, "diverged"), observation(9, "error", error="<b>boom</b>")]
    other = seen[0].trial.vary(seeds=Seeds(4, 5, 6), eta=1.0)
    return [*seen, dataclasses.replace(seen[0], trial=other), baseline(observation)]


@pytest.fixture
def searches(observation):
    row = dict.fromkeys(SEARCHES.names) | {
        "search": "one",
        "task": "toy",
        "model": "package:tiny",
        "condition_id": observation().trial.condition.id,
        "label": "said",
        "method": "said",
        "projection": "fastfood",
        "normalization": "global",
        "scales": "layer",
        "head": "in_subspace",
        "baseline_score": 0.8,
        "chance": 0.5,
        "threshold": 0.72,
        "threshold_chance_corrected": 0.77,
        "trials": 9,
        "wall_s": 60.0,
    }
    found = row | {"outcome": "found", "first_passing_d": 380, "bracket_low": 340, "bracket_high": 380}
    return pa.Table.from_pylist([found, row | {"outcome": "above_range"}], schema=SEARCHES)


class Page(HTMLParser):
    """Collect tags, and check that they nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.sources += [value for name, value in attrs if value and name in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_a_report_is_one_page_that_needs_nothing_else(tmp_path, trials, searches):
    address = write_report(trials, searches, str(tmp_path / "report"), title="MRPC & co")
    text = Path(address).read_text(encoding="utf-8")
    assert Page(text).sources == []
    assert text.count("<svg ") == 1
    assert "MRPC &amp; co" in text
    assert "<b>boom" not in text
    assert "&lt;b&gt;boom" in text
    for word in ("2.13.0", "above range", "380", "chance-corrected", "first passing d"):
        assert word in text
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == [
        "curve-toy-tiny.csv",
        "curve-toy-tiny.png",
        "curve-toy-tiny.svg",
        "report.html",
        "searches.csv",
        "searches.parquet",
    ]
    assert pq.read_table(tmp_path / "report" / "searches.parquet").equals(searches)
    assert csv.read_csv(tmp_path / "report" / "searches.csv")["first_passing_d"].to_pylist() == [380, None]


def test_the_answer_comes_first_with_its_data_beside_it(tmp_path, trials, searches):
    estimate = estimated(searches, "found", 150.0, 300.0, None)
    text = Path(write_report(trials, searches, str(tmp_path), d90=estimate)).read_text(encoding="utf-8")
    assert Page(text).sources == []
    assert text.index('aria-label="d90') < text.index("d90 in words") < text.index("What d90 means")
    assert len(ids := re.findall(r'\bid="([^"]+)"', text)) == len(set(ids))
    assert csv.read_csv(tmp_path / "d90.csv")["d90"].to_pylist() == [300.0]
    assert "in words" in (tmp_path / "d90.md").read_text() and "\\bottomrule" in (tmp_path / "d90.tex").read_text()
    data = csv.read_csv(tmp_path / "curve-toy-tiny.csv").to_pylist()
    drawn = [(row["d"], row["score"]) for row in data if row["what"] == "trial"]
    assert sorted(drawn, key=str) == sorted(((seen.trial.d, seen.score) for seen in trials if seen.trial.d), key=str)


def test_more_tables_stand_where_there_are_any_and_long_ones_are_folded(tmp_path, trials, searches):
    others = {"Transfer": pa.table({"a<b": [1]}), "Nothing": pa.table({"x": pa.array([], pa.int64())})}
    address = write_report(trials * 4, searches, str(tmp_path), others=others)
    text = Path(address).read_text(encoding="utf-8")
    Page(text)
    assert "<h2>Transfer</h2>" in text and "a&lt;b" in text and "Nothing" not in text
    assert f"<summary>{4 * (len(trials) - 1)} rows</summary>" in text


def test_a_report_of_nothing_is_still_a_page(tmp_path):
    address = write_report([], SEARCHES.empty_table(), str(tmp_path))
    assert Page(Path(address).read_text(encoding="utf-8")).sources == []


def test_an_unwritable_report_is_told(tmp_path, trials, searches):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write the report"):
        write_report(trials, searches, str(tmp_path / "file" / "report"))


@pytest.mark.parametrize("part", ["all", "no searches", "no trials", "errors only", "one", "wide"])
def test_a_figure_is_drawn_whatever_there_is(tmp_path, trials, searches, observation, part):
    shown, rows = {
        "all": (trials, searches),
        "no searches": (trials, SEARCHES.empty_table()),
        "no trials": ([], searches),
        "errors only": ([observation(1, "error")], SEARCHES.empty_table()),
        "one": ([observation(1)], searches.slice(1)),
        "wide": ([observation(-99), observation(10_000_000)], pa.concat_tables([searches] * 5)),
    }[part]
    sink = io.BytesIO()
    draw_curves(shown, rows).savefig(sink, format="png")
    assert sink.getvalue().startswith(b"\x89PNG")


def estimated(searches, outcome, low, middle, high):
    """One row of D90 for the searches' panel."""
    row = dict.fromkeys(D90.names) | {name: searches[name][0].as_py() for name in D90.names if name in SEARCHES.names}
    row |= {"d90_outcome": outcome, "d90_low": low, "d90": middle, "d90_high": high}
    return pa.Table.from_pylist(
        [row | {"first_passing_d": [380], "d90_text": "d90 in words", "warnings": []}], schema=D90
    )


def artists(axes, gid):
    return [each for each in axes.get_children() if each.get_gid() == gid]


@pytest.mark.parametrize(
    ("outcome", "low", "middle", "high"),
    [
        ("found", 150.0, 300.0, 400.0),
        ("found", 150.0, 300.0, None),
        ("found", None, 300.0, 400.0),
        ("found", None, 300.0, None),
        ("above_range", 390.0, None, None),
        ("below_range", None, None, 120.0),
        ("found", 5.0, 300.0, 90_000.0),
    ],
)
def test_an_interval_runs_off_the_axis_where_it_is_open(trials, searches, outcome, low, middle, high):
    figure = draw_curves(trials, searches, d90=estimated(searches, outcome, low, middle, high))
    figure.canvas.draw()
    axes = figure.axes[0]
    left, right = axes.get_xlim()
    [bar] = artists(axes, "interval")
    assert list(bar.get_xdata()) == pytest.approx([low or left, high or right])
    heads = {head.get_marker(): head.get_xdata()[0] for head in artists(axes, "open end")}
    assert heads == {mark: at for mark, at, end in (("<", left, low), (">", right, high)) if end is None}
    assert all(left < end < right for end in (low, middle, high) if end is not None), "closed ends lie inside"
    assert [mark.get_xdata()[0] for mark in artists(axes, "estimate") if hasattr(mark, "get_xdata")] == (
        [middle] if middle else []
    )


@pytest.mark.parametrize(
    ("outcome", "words"),
    [
        ("baseline_at_chance", "not above chance"),
        ("baseline_missing", "no threshold"),
        ("not_monotone", "no single d90"),
        ("open", "no subspace trial has a result yet"),
        ("found", None),
    ],
)
@pytest.mark.parametrize("some", [True, False])
def test_a_panel_without_a_d90_says_why(trials, searches, outcome, words, some):
    rows = [row | {"outcome": outcome, "first_passing_d": None} for row in searches.to_pylist()]
    table = pa.Table.from_pylist(rows, schema=SEARCHES)
    figure = draw_curves(trials if some else [], table)
    said = [text.get_text() for text in artists(figure.axes[0], "reason")]
    if words is None or (some and outcome == "open"):
        assert said == []
    else:
        [text] = said
        assert words in text


@pytest.mark.parametrize(
    "name", ["a$x_1$b", "$\\frac{1}{0}$", "two\nlines", "esc\x1b[2J", "\u6f22\u5b57", "\u202egpj", "$"]
)
def test_a_name_is_drawn_as_it_is(trials, searches, name):
    table = pa.Table.from_pylist([row | {"task": name} for row in searches.to_pylist()], schema=SEARCHES)
    figure = draw_curves([], table)
    figure.canvas.draw()  # a formula that is none, or a character without a picture, would be an error here
    title = figure.axes[0].get_title(loc="left")
    assert title.startswith(name if name.isascii() and name.isprintable() else name[:1] if name[0] < "~" else "\\u")
    assert not figure.axes[0].title.get_parse_math()


def test_labels_are_pushed_apart_and_stay_inside():
    placed = spread_apart([0.5, 0.79, 0.8, 0.8], 0.06, 0.45, 0.82)
    assert all(b - a >= 0.06 - 1e-9 for a, b in itertools.pairwise(placed))
    assert max(placed) <= 0.82
    assert spread_apart([0.1, 0.5], 0.06, 0, 1) == [0.1, 0.5]
