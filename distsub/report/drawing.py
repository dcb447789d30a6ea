"""What all figures share: names as they are, never taken for formulas; panels, labelled matrices, legends."""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache, wraps
from typing import Any, ParamSpec, TypeVar

import pyarrow as pa

from distsub.report.terminal import printable

_P = ParamSpec("_P")
_T = TypeVar("_T")

INK, GREY, BLUE, RED = "#1b1b1b", "#8c96a3", "#0072b2", "#d55e00"
COLOURS = (BLUE, RED, "#009e73", "#cc79a7", "#e69f00", "#56b4e9", GREY, INK)


def literal(draw: Callable[_P, _T]) -> Callable[_P, _T]:
    """Have a function draw every text as it is: "$x$" in a name is no mathematics."""

    @wraps(draw)
    def drawn(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        from matplotlib import rc_context

        with rc_context({"text.parse_math": False, "font.family": ["DejaVu Sans"]}):
            return draw(*args, **kwargs)

    return drawn


def drawable(text: str) -> str:
    """Escape what the font of the figures, which comes with matplotlib, has no picture for."""
    shown = printable(text)
    if shown.isascii():
        return shown
    return "".join(char if _has_picture(char) else char.encode("unicode_escape").decode() for char in shown)


@lru_cache(maxsize=4096)
def _has_picture(char: str) -> bool:
    from matplotlib import font_manager

    return font_manager.get_font(font_manager.findfont("DejaVu Sans")).get_char_index(ord(char)) != 0


def drawable_rows(table: pa.Table) -> list[dict[str, Any]]:
    """Give a table's rows with every text as it is drawn."""
    return [
        {key: drawable(value) if isinstance(value, str) else value for key, value in row.items()}
        for row in table.to_pylist()
    ]


def make_grid(lines: int, columns: int, width: float, height: float) -> tuple[Any, Any]:
    """Make a figure with so many panels of a size in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines, columns = max(1, lines), max(1, columns)
    figure = Figure(figsize=(width * columns, height * lines + 0.5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(lines, columns, squeeze=False)


def make_panels(count: int, columns: int, width: float, height: float) -> tuple[Any, list[Any]]:
    """Make a figure of so many panels, at most so many beside each other; places behind the last are not shown."""
    columns = min(columns, max(1, count))
    figure, grid = make_grid(-(-count // columns), columns, width, height)
    places = [axes for line in grid for axes in line]
    for axes in places[max(1, count) :]:
        axes.set_visible(False)
    return figure, places[:count]


def heat_map(
    axes: Any,
    cells: Sequence[Sequence[float | None]],
    rows: Sequence[str],
    columns: Sequence[str],
    text: Any,
    colours: str,
    limits: tuple[float, float],
    shown: Sequence[Sequence[float | None]] | None = None,
) -> None:
    """Draw a labelled matrix with its numbers; cells without a value stay grey."""
    import numpy as np

    values = np.array([[math.nan if cell is None else cell for cell in line] for line in cells], dtype=float)
    values = values.reshape(len(rows), len(columns))
    low, high = limits
    pale = (low + high) / 2 if low < 0 else low  # where a diverging or a rising colour map is white
    axes.set_facecolor("#e6e6e6")
    axes.imshow(values, cmap=colours, vmin=low, vmax=high, aspect="auto")
    for i in range(len(rows)):
        for j in range(len(columns)):
            number = (shown or cells)[i][j]
            if number is None:
                continue
            dark = abs(values[i, j] - pale) > 0.6 * (high - pale)
            label = text(number) if text else f"{number:.3f}"
            axes.text(j, i, label, ha="center", va="center", fontsize=7.5, color="white" if dark else INK)
    axes.set_xticks(range(len(columns)), columns, fontsize=8, rotation=30, ha="right")
    axes.set_yticks(range(len(rows)), rows, fontsize=8)


def add_legend(figure: Any, entries: Sequence[tuple[str, Any]]) -> None:
    """Name the colours below all panels."""
    from matplotlib.patches import Patch

    if entries:
        handles = [Patch(color=colour, label=label) for label, colour in entries]
        longest = max(len(label) for label, _ in entries)
        fit = int(figure.get_figwidth() / (0.5 + 0.07 * longest))  # inches: a patch, and letters of 8 points
        columns = max(1, min(6, fit, len(handles)))
        figure.legend(handles=handles, loc="outside lower center", ncols=columns, fontsize=8, frameon=False)


def plain_axes(axes: Any) -> None:
    """Leave of the frame what is read."""
    axes.tick_params(labelsize=8)
    axes.grid(True, axis="y", color="#e6e6e6", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def grouped(rows: Sequence[dict[str, Any]], *columns: str) -> dict[tuple[Any, ...], list[dict[str, Any]]]:
    """Group rows by columns, in the order in which their values come."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[column] for column in columns), []).append(row)
    return groups


def panel_title(model: str, rest: str) -> str:
    """Name a panel after a model's short name and what it is of."""
    short = model.removeprefix("package:").rstrip("/").rpartition("/")[2]
    return f"{short} · {rest.strip()}"


def plain_ticks(axes: Any) -> None:
    """Label the log axis with plain numbers, more of them when it spans little."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axes.get_xlim()
    subs = (1, 2, 3, 5) if high < 8 * low else (1, 2, 5) if high < 100 * low else (1, 3) if high < 3000 * low else (1,)
    axes.xaxis.set_major_locator(LogLocator(subs=subs))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: _short(x)))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _short(x: float) -> str:
    """Write a tick so that neighbours a decade apart never touch."""
    if x < 1e5:
        return f"{x:,.0f}"
    return f"{x / 1e3:g}k" if x < 1e6 else f"{x / 1e6:g}M"
