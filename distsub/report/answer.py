"""The answer of a report: every d90 with its interval, as a figure and as tables to paste into a paper."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from distsub.report.drawing import BLUE, GREY, INK, drawable, literal, plain_ticks

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WIDTH, _ROW, _AXIS = 5.2, 0.46, 0.62
"""Inches: narrow enough to be read on a phone; of one line; of the axis below them."""

_LONGEST = 58
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

    figure = Figure(figsize=(_WIDTH, _ROW * max(1, len(rows)) + _AXIS), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set_xscale("log")
    ends = [row[name] for row in rows for name in ("d90_low", "d90", "d90_high") if row[name]]
    low, high = (min(ends) / 1.6, max(ends) * 1.6) if ends else (1.0, 1e4)
    axes.set_xlim(low, high)
    axes.set_ylim(len(rows) - 0.4, -0.75)
    for at, row in enumerate(rows):
        _line(axes, at, row, low, high)
    axes.set_yticks([])
    axes.set_xlabel("d90: numbers that are trained", fontsize=9, color=INK)
    axes.tick_params(labelsize=8, colors=INK)
    plain_ticks(axes)
    axes.grid(True, axis="x", which="major", color="#e6e6e6", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    return figure


def _line(axes: Any, at: int, row: Mapping[str, Any], low: float, high: float) -> None:
    """Draw one interval, with whose it is above it and in words what it is."""
    name = f"{row['task']} · {short_model(row['model'])} · {row['label']}"
    name = name if len(name) <= _LONGEST else name[: _LONGEST - 1] + "…"
    transform = axes.get_yaxis_transform()
    axes.text(0.0, at - 0.28, drawable(name), fontsize=8, color=INK, transform=transform, va="center")
    if row["d90_outcome"] not in ("found", "below_range", "above_range"):
        axes.text(1.0, at - 0.28, said_of(row), fontsize=8, color=GREY, transform=transform, va="center", ha="right")
        return
    axes.text(
        1.0, at - 0.28, drawable(said_of(row)), fontsize=8, color=BLUE, transform=transform, va="center", ha="right"
    )
    span = [row["d90_low"] or low, row["d90_high"] or high]
    axes.plot(span, [at, at], color=BLUE, linewidth=3, solid_capstyle="butt", gid="interval", clip_on=False)
    for end, edge, marker in ((row["d90_low"], low, "<"), (row["d90_high"], high, ">")):
        if end is None:
            axes.plot([edge], [at], marker=marker, color=BLUE, markersize=7, gid="open end", clip_on=False)
    if row["d90"] is not None:
        axes.plot([row["d90"]], [at], marker="o", color=BLUE, markersize=7, gid="estimate", clip_on=False)


def answer_rows(d90: pa.Table) -> list[dict[str, Any]]:
    """Give the rows of D90 by task and model: the fewest numbers first, then those of which only one end is known."""
    kinds = {"found": 0, "below_range": 1, "above_range": 2}

    def place(row: Mapping[str, Any]) -> tuple[Any, ...]:
        end = row["d90"] or row["d90_high"] or row["d90_low"] or 0
        return row["task"], row["model"], kinds.get(row["d90_outcome"], 3), end, row["label"] or ""

    return sorted(d90.to_pylist(), key=place)


def sentences(rows: Iterable[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Say each d90 in words: whose it is, and what it is of how many parameters."""
    said = []
    for row in rows:
        of = f" of {row['num_params']:,} parameters" if row["num_params"] else ""
        said.append((f"{row['task']}, {short_model(row['model'])}, {row['label']}", f"{row['d90_text']}{of}"))
    return said


def said_of(row: Mapping[str, Any]) -> str:
    """Say a d90 without its name, or why there is none."""
    if row["d90_outcome"] in ("found", "below_range", "above_range"):
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
