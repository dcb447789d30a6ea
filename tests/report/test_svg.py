"""Figures as SVG: the same bytes every time, words as words, and on a page in the page's own colours."""

import re
from xml.etree import ElementTree

import pytest

from distsub.report.answer import answer_figure
from distsub.report.svg import inline, to_svg
from tests.report.test_answer import ROWS


def test_a_file_is_the_same_every_time_and_its_words_are_words():
    first, second = (to_svg(answer_figure(ROWS), "d90") for _ in range(2))
    assert first == second
    texts = [each.text for each in ElementTree.fromstring(first).iter("{http://www.w3.org/2000/svg}text")]
    assert {"sst2 · tiny", "fewer"} <= set(texts)


@pytest.mark.parametrize("name", ["d90", "curve-a-b"])
def test_on_a_page_it_takes_the_page_s_colours_and_shares_no_name(name):
    svg = inline(to_svg(answer_figure(ROWS), name), name, "what it shows")
    assert svg.startswith("<svg ") and svg.endswith("</svg>") and 'aria-label="what it shows"' in svg
    ids = re.findall(r'\bid="([^"]+)"', svg)
    assert len(ids) == len(set(ids)) and all(each.startswith(f"{name}-") for each in ids)
    used = re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', svg)
    assert used and {one or other for one, other in used} <= set(ids)
    assert "#1b1b1b" not in svg and "#000000" not in svg and "currentColor" in svg
    assert 'width="' not in svg.partition(">")[0] and "viewBox" in svg.partition(">")[0]
