"""Every figure is drawn from rows alone, from few of them and from none."""

import pyarrow as pa
import pytest
from matplotlib.text import Text

from distsub.learned import figures_of_scores
from distsub.learned.figures import FIGURES, png
from distsub.learned.schema import ABLATIONS, ANGLES, MODES, OUTLIER_SUMMARIES, PROFILES, SPECTRA, TRANSFER
from distsub.report.drawing import literal

UPDATE = {
    "update": "u",
    "kind": "adapter",
    "task": "mrpc",
    "model": "package:m",
    "method": "intrinsic",
    "data_seed": 0,
}
MODE = {"model": "m", "task": "mrpc", "projection": None, "metric": "accuracy", "chance": 0.68, "full": 0.8}
ROWS = {
    "spikes": (
        PROFILES,
        [
            UPDATE
            | {"layer": f"l.{i}", "tensor": "l.0.LayerNorm.bias", "start": s, "stop": s + 5, "low": -4.0, "high": 9.0}
            for i in range(5)
            for s in (0, 5)
        ],
    ),
    "components": (
        OUTLIER_SUMMARIES,
        [
            UPDATE
            | {"layer": "l.0", "tensor": name, "component": name, "size": 100, "outliers": 3, "layer_outliers": 3}
            | {"expected_outliers": 0.27}
            for name in ("LayerNorm", "mixer.weight", None)
        ],
    ),
    "ablation": (
        ABLATIONS,
        [
            {"task": "mrpc", "model": "m", "edit": "zero", "method": "intrinsic", "mask": mask, "versus": "none"}
            | {
                "score": 0.7,
                "score_low": low,
                "score_high": low and 0.8,
                "scores": [0.7],
                "difference": -0.1,
                "chance": 0.5,
            }
            for mask, low in (("random", 0.6), ("outliers", None))
        ],
    ),
    "transfer": (
        TRANSFER,
        [
            {"model": "m", "source": "a", "target": "a", "d": 8, "training": "default", "score": 0.8, "recovered": 1.0},
            {
                "model": "m",
                "source": "b",
                "target": "a",
                "d": 8,
                "training": "default",
                "score": 0.5,
                "recovered": None,
            },
        ],
    ),
    "angles": (
        ANGLES,
        [
            {"model": "m", "layer": "l.0", "source": "a", "target": "b", "overlap": 0.3, "expected_overlap": 0.01}
            | {"source_trajectory": "x", "target_trajectory": "y"}
        ],
    ),
    "modes": (
        MODES,
        [
            MODE | {"method": "full", "score": 0.8, "scores": [0.8]},
            MODE
            | {"method": "intrinsic", "d": 4, "score": 0.7, "score_low": 0.6, "score_high": 0.8, "scores": [0.6, 0.8]},
            MODE | {"method": "intrinsic", "d": 8, "score": 0.75, "scores": [0.75]},
        ],
    ),
    "dims": (
        MODES,
        [
            MODE | {"method": "full", "score": 0.8},
            MODE | {"method": "intrinsic", "d": 4, "score": 0.7, "score_low": 0.6, "score_high": 0.8},
            MODE | {"method": "intrinsic", "d": 8, "score": 0.75},
        ],
    ),
    "spectra": (
        SPECTRA,
        [
            {"trajectory": "x", "model": "m", "task": "a", "layer": "l.0", "rank": k, "cumulative": 1 - 0.5**k}
            for k in (1, 2, 3)
        ],
    ),
}


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("some", [True, False], ids=["rows", "none"])
def test_a_figure_is_a_picture(name, some):
    schema, rows = ROWS[name]
    picture = png(name, pa.Table.from_pylist(rows if some else [], schema=schema))
    assert picture.startswith(b"\x89PNG") and len(picture) > 1000


@literal
def drawn(name, table):
    figure = FIGURES[name](table)
    figure.canvas.draw()
    return figure


@pytest.mark.parametrize("name", ROWS)
def test_names_are_drawn_as_they_are(name):
    """No formula, no control character, no character without a picture: each would be a warning or an error."""
    schema, rows = ROWS[name]
    bad = {"task": "$x_$", "model": "a/$\\frac$", "method": "\x1b[2J\u6f22", "source": "$a$", "target": "\u202eb"}
    named = [row | {key: value for key, value in bad.items() if row.get(key) not in (None, "full")} for row in rows]
    figure = drawn(name, pa.Table.from_pylist(named, schema=schema))
    texts = [text for text in figure.findobj(Text) if text.get_text()]
    assert texts and not any(text.get_parse_math() for text in texts)
    assert all(char.isprintable() or char == "\n" for text in texts for char in text.get_text())
    assert any("$" in text.get_text() for text in texts)


def test_a_curve_takes_two_d_of_one_way_on_one_task():
    rows = [MODE | {"method": "intrinsic", "d": 4}, MODE | {"method": "last", "d": 1}]
    assert figures_of_scores.curves(rows) == []
    assert figures_of_scores.curves([*rows, MODE | {"method": "intrinsic", "d": 8}]) == ["intrinsic"]
