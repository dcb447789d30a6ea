"""The answer of a report: every d90 with its interval, as a figure and as tables to paste into a paper."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from distsub.report.drawing import BLUE, INK, drawable, literal, plain_ticks
from distsub.report.summary import MEASURED

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WIDTH, _ROW, _HEAD, _NONE, _AXIS = 4.2, 0.42, 0.3, 0.24, 0.6
"""Inches: narrow enough to be read on a phone; of a row, of a heading, of a row without an interval, of the axis."""

_LONGEST = 56
"""Letters that a line has room for."""

COLUMNS = ("task", "model", "method", "d90 (95% interval)", "of parameters", "full", "threshold", "seeds")
"""Of the tables to paste."""


def short_model(name: str) -> str:
    """Give the last part of a model's address."""
    return name.removeprefix("package:").rstrip("/").rpartition("/")[2] or name


@literal
def answer_figure(rows: Sequence[Mapping[str, Any]]) -> "Figure":
    """Draw each d90 as a dot on its 95% interval, on one log axis; an end that is open has an arrowhead.

    Args:
        rows: Of the schema D90, in the order in which they are shown.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines = list[tuple[float, Mapping[str, Any] | str]]()
    height = 0.0
    for name, members in grouped(rows).items():
        height += _HEAD
        lines.append((height, name))
        for row in members:
            height += _ROW if row["d90_outcome"] in MEASURED else _NONE
            lines.append((height, row))
    figure = Figure(figsize=(_WIDTH, height + _AXIS), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set_xscale("log")
    ends = [row[name] for row in rows for name in ("d90_low", "d90", "d90_high") if row[name]]
    low, high = (min(ends) / 1.6, max(ends) * 1.6) if ends else (1.0, 1e4)
    axes.set_xlim(low, high)
    axes.set_ylim(height + 0.14, 0)
    for at, line in lines:
        if isinstance(line, str):
            _words(axes, at - 0.03, _shortened(line, _LONGEST), "", INK, weight="bold")
        else:
            _line(axes, at, line, low, high)
    axes.set_yticks([])
    axes.set_xlabel("d90: numbers that are trained", fontsize=9, color=INK)
    axes.tick_params(labelsize=8, colors=INK)
    plain_ticks(axes)
    axes.grid(True, axis="x", which="major", color="#e6e6e6", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    return figure


def _words(axes: Any, at: float, left: str, right: str, colour: str, **look: Any) -> None:
    """Write words at both ends of a line."""
    look |= {"fontsize": 8, "transform": axes.get_yaxis_transform(), "va": "baseline"}
    axes.text(0.0, at, drawable(left), color=INK, **look)
    if right:
        axes.text(1.0, at, drawable(right), color=colour, ha="right", **look)


def _line(axes: Any, at: float, row: Mapping[str, Any], low: float, high: float) -> None:
    """Draw one interval, with whose it is above it and in words what it is."""
    said = said_of(row)
    label = _shortened(row["label"] or "", _LONGEST - len(said))
    if row["d90_outcome"] not in MEASURED:
        _words(axes, at - 0.03, label, said, "#777777")
        return
    _words(axes, at - 0.17, label, said, BLUE)
    at -= 0.05
    span = [row["d90_low"] or low, row["d90_high"] or high]
    axes.plot(span, [at, at], color=BLUE, linewidth=3, solid_capstyle="butt", gid="interval", clip_on=False)
    for end, edge, marker in ((row["d90_low"], low, "<"), (row["d90_high"], high, ">")):
        if end is None:
            axes.plot([edge], [at], marker=marker, color=BLUE, markersize=7, gid="open end", clip_on=False)
    if row["d90"] is not None:
        axes.plot([row["d90"]], [at], marker="o", color=BLUE, markersize=7, gid="estimate", clip_on=False)


def _shortened(text: str, longest: int) -> str:
    """Leave out the middle of a text that is too long for its line."""
    half = (longest - 1) // 2
    return text if len(text) <= longest else f"{text[:half]}…{text[-half:]}"


def grouped(rows: Iterable[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Give rows by task and model, in words."""
    found = dict[str, list[Mapping[str, Any]]]()
    for row in rows:
        found.setdefault(f"{row['task']} · {short_model(row['model'])}", []).append(row)
    return found


def answer_rows(d90: pa.Table) -> list[dict[str, Any]]:
    """Give the rows of D90 by task and model: the fewest numbers first, then those of which only one end is known."""
    kinds = {"found": 0, "below_range": 1, "above_range": 2}

    def place(row: Mapping[str, Any]) -> tuple[Any, ...]:
        end = row["d90"] or row["d90_high"] or row["d90_low"] or 0
        return row["task"], row["model"], kinds.get(row["d90_outcome"], 3), end, row["label"] or ""

    return sorted(d90.to_pylist(), key=place)


def sentences(rows: Iterable[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Say each d90 in words: whose it is, and what it is of how many parameters. What is said of several is said once.

    Args:
        rows: Of the schema D90, of one task and model.
    """
    said = dict[str, list[str]]()
    for row in rows:
        of = f" of {row['num_params']:,} parameters" if row["num_params"] else ""
        said.setdefault(f"{row['d90_text']}{of}", []).append(row["label"] or "")
    return [(", ".join(labels), text) for text, labels in said.items()]


def said_of(row: Mapping[str, Any]) -> str:
    """Say a d90 without its name, or why there is none."""
    if row["d90_outcome"] in MEASURED:
        return (row["d90_text"] or "").removeprefix("d90 ").removeprefix("= ")
    return f"none: {(row['d90_outcome'] or 'unknown').replace('_', ' ')}"


def _cells(row: Mapping[str, Any]) -> list[str]:
    numbers = [f"{value:.3f}" if (value := row[name]) is not None else "" for name in ("baseline_score", "threshold")]
    size = f"{row['num_params']:,}" if row["num_params"] else ""
    parts = [row["task"], short_model(row["model"]), row["label"], said_of(row), size, *numbers]
    return [*(part or "" for part in parts), str(row["searches"] or "")]


def markdown(rows: Iterable[Mapping[str, Any]]) -> str:
    """Write the table in Markdown."""
    lines = [list(COLUMNS), ["---"] * len(COLUMNS)]
    lines += [[cell.replace("|", "\\|").replace("\n", " ") for cell in _cells(row)] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


_TEX = str.maketrans(
    {char: f"\\{char}" for char in "&%$#_{}"}
    | {
        "<": "$<$",
        ">": "$>$",
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "\n": " ",
    }
)


def latex(rows: Iterable[Mapping[str, Any]]) -> str:
    """Write the table in LaTeX, for the package booktabs."""
    lines = [
        " & ".join(cell.translate(_TEX).replace("$<$=", r"$\le$") for cell in _cells(row)) + r" \\" for row in rows
    ]
    head = " & ".join(name.translate(_TEX) for name in COLUMNS)
    body = "\n".join(lines)
    return (
        f"\\begin{{tabular}}{{llllrrrr}}\n\\toprule\n{head} \\\\\n\\midrule\n{body}\n\\bottomrule\n\\end{{tabular}}\n"
    )
