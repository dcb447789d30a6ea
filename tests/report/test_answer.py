"""The answer of a report: every d90 is drawn, said and written as the table has it, whatever is open or missing."""

import re

import pyarrow as pa
import pytest

from distsub.report.answer import answer_figure, answer_rows, grouped, latex, markdown, sentences
from distsub.report.schema import D90


def row(label, outcome, low, middle, high, text="", **more):
    about = {"task": "sst2", "model": "package:tiny", "label": label, "num_params": 1000, "searches": 3}
    about |= {"d90_outcome": outcome, "d90_low": low, "d90": middle, "d90_high": high, "d90_text": text}
    return dict.fromkeys(D90.names) | about | {"baseline_score": 0.8, "threshold": 0.72} | more


ROWS = [
    row("none", "undecided", None, None, None, "d90: undecided"),
    row("above", "above_range", 390.0, None, None, "d90 > 390 (95%)"),
    row("below", "below_range", None, None, 120.0, "d90 <= 120 (95%)"),
    row("more", "found", 150.0, 300.0, None, "d90 = 300 (95%: 150 to > 390)"),
    row("fewer", "found", 20.0, 30.0, 41.0, "d90 = 30 (95%: 20 to 41)"),
]


@pytest.fixture
def rows():
    return answer_rows(pa.Table.from_pylist(ROWS, schema=D90))


def test_the_fewest_numbers_come_first_and_what_is_open_behind_them(rows):
    assert [each["label"] for each in rows] == ["fewer", "more", "below", "above", "none"]


def test_every_interval_is_drawn_as_it_is(rows):
    figure = answer_figure(rows)
    figure.canvas.draw()
    [axes] = figure.axes
    left, right = axes.get_xlim()
    drawn = {
        gid: [line for line in axes.lines if line.get_gid() == gid] for gid in ("interval", "estimate", "open end")
    }
    spans = [list(line.get_xdata()) for line in drawn["interval"]]
    assert spans == [[20, 41], [150, pytest.approx(right)], [pytest.approx(left), 120], [390, pytest.approx(right)]]
    assert [list(line.get_xdata()) for line in drawn["estimate"]] == [[30], [300]]
    assert [line.get_marker() for line in drawn["open end"]] == [">", "<", ">"]
    said = [text.get_text() for text in axes.texts]
    assert "30 (95%: 20 to 41)" in said and "none: undecided" in said and {"sst2 · tiny", "fewer"} <= set(said)


@pytest.mark.parametrize("some", [[], ROWS[:1]])
def test_a_figure_of_nothing_is_drawn(some):
    answer_figure(some).canvas.draw()


def test_tables_say_the_same_and_hold_any_name(rows):
    odd = [each | {"label": "a|b_1 & $x$ 50% \\ ~^{}#\nend"} for each in rows[:1]]
    for text, cells in ((markdown(rows + odd), r"(?<!\\)\|"), (latex(rows + odd), r"(?<!\\)&")):
        lines = [line for line in text.splitlines() if "sst2" in line]
        assert len(lines) == len(rows) + 1
        assert {len(re.split(cells, line.strip("|"))) for line in lines} == {8}
    assert "$\\le$ 120" in latex(rows) and "$>$ 390" in latex(rows) and "\\toprule" in latex(rows)
    assert not re.search(r"(?<!\\)[#%]|(?<!\\)_", latex(odd))
    same = [rows[0] | {"label": "as few"}]
    assert sentences(rows + same)[0] == ("fewer, as few", "d90 = 30 (95%: 20 to 41) of 1,000 parameters")
    assert list(grouped(rows)) == ["sst2 · tiny"] and len(sentences(rows)) == len(rows)
