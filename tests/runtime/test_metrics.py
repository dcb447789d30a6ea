"""The figures that Prometheus reads: their names, what they count, and that Ray's endpoint shows them."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from distsub.runtime import metrics

DASHBOARD = Path(__file__).resolve().parents[2] / "cluster" / "grafana.json"


def test_the_dashboard_draws_exactly_what_is_exported():
    board = json.loads(DASHBOARD.read_text())
    drawn = {name for panel in board["panels"] for target in panel["targets"] for name in NAME.findall(target["expr"])}
    assert drawn == metrics.exported()
    asked = NAME.findall(json.dumps(board["templating"]))
    assert asked and set(asked) <= metrics.exported()
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in board["panels"]]
    assert len({panel["id"] for panel in board["panels"]}) == len(set(places)) == len(places)


NAME = re.compile(r"ray_distsub_\w+")


@pytest.mark.parametrize(
    ("brackets", "mean"),
    [([(10, 1000), (100, 1000)], 1.5), ([(None, 10), (10, None)], 0.0), ([(1000, 10)], 2.0), ([], 0.0)],
)
def test_the_mean_width_counts_brackets_with_two_ends(brackets, mean):
    assert metrics.mean_log10([SimpleNamespace(bracket=each) for each in brackets]) == pytest.approx(mean)
