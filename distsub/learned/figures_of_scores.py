"""Figures of trainings side by side, out of their tables: ablations, transfer, angles, ways of training, dimensions."""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from distsub.report import drawing
from distsub.report.drawing import BLUE, COLOURS, GREY, INK, drawable_rows, grouped, heat_map, panel_title, plain_axes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MASKS = {
    "none": ("none", "#44505c"),
    "outliers": ("outliers", "#d55e00"),
    "random": ("random", "#56b4e9"),
    "tensor": ("matched by tensor", "#0072b2"),
    "magnitude": ("by tensor and |θ₀|", "#004a7c"),
}
"""What ablation bars are called and coloured; "none" is full fine-tuning of all weights."""


def ablation_figure(ablations: pa.Table) -> "Figure":
    """Draw what disabling weights costs: bars per task and mask, one panel per edit and kind of update.

    Whiskers: 95% t interval over seeds; dots: seeds; dotted: chance. Compare with Zhang et al. 2023, Table 3.

    Args:
        ablations: Rows of ABLATIONS.
    """
    rows = [row for row in drawable_rows(ablations) if row["versus"] == "none"]
    panels = grouped(rows, "model", "edit", "method")
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    figure, places = drawing.make_panels(len(panels), 1, 2.2 + 2.1 * len(tasks), 2.9)
    words = {
        "zero": "set to zero, then fine-tuned",
        "hold": "fine-tuned, held at zero",
        "reset": "fine-tuned, then put back to θ₀",
    }
    for axes, ((model, edit, method), mine) in zip(places, panels.items(), strict=True):
        for at, task in enumerate(tasks):
            _bars(axes, at, [row for row in mine if row["task"] == task])
        axes.set_xticks(range(len(tasks)), tasks, fontsize=9)
        title = f"{words.get(edit, edit)}; {'θ_T - θ₀' if method == 'full' else method}"
        axes.set_title(panel_title(model, title), fontsize=9)
        axes.set_ylabel("score", fontsize=8)
        plain_axes(axes)
    present = [key for key in _MASKS if key == "none" or any(row["mask"] == key for row in rows)]
    drawing.add_legend(figure, [_MASKS[key] for key in present])
    return figure


def _bars(axes: Any, at: int, rows: list[dict[str, Any]]) -> None:
    """Draw one task's bars: full fine-tuning first, then the masks."""
    if not rows:
        return
    first = rows[0]
    bars: list[Any] = [("none", first["score"] - first["difference"], None, None, [])]
    bars += [(row["mask"], row["score"], row["score_low"], row["score_high"], row["scores"]) for row in rows]
    order = list(_MASKS)
    bars.sort(key=lambda bar: order.index(bar[0]) if bar[0] in order else len(order))
    width = 0.82 / len(bars)
    for number, (mask, score, low, high, scores) in enumerate(bars):
        x = at + (number - (len(bars) - 1) / 2) * width
        axes.bar(x, score, width * 0.9, color=_MASKS.get(mask, (mask, GREY))[1], alpha=0.85, zorder=2)
        if low is not None and high is not None:
            axes.vlines(x, low, high, color=INK, linewidth=1.1, zorder=4)
        axes.plot([x] * len(scores), scores, "o", color="white", markeredgecolor=INK, markersize=3.5, zorder=5)
    if first["chance"] is not None:
        axes.hlines(first["chance"], at - 0.45, at + 0.45, color=INK, linestyle=":", linewidth=1.1, zorder=3)


def transfer_figure(transfer: pa.Table) -> "Figure":
    """Draw scores by source and target task, coloured by the share of the way from random to full fine-tuning.

    Grey is a score whose share means nothing, or no score at all.

    Args:
        transfer: Rows of TRANSFER.
    """
    rows = drawable_rows(transfer)
    panels = grouped(rows, "model", "d", "training")
    names = list(dict.fromkeys([row["source"] for row in rows] + [row["target"] for row in rows]))
    figure, places = drawing.make_panels(len(panels), 3, max(3.4, 2.2 + 0.85 * len(names)), 1.5 + 0.5 * len(names))
    for axes, ((model, d, training), mine) in zip(places, panels.items(), strict=True):
        by_tasks = {(row["source"], row["target"]): row for row in mine}
        cells = [[by_tasks.get((source, target), {}) for target in names] for source in names]
        colour = [[cell.get("recovered") for cell in line] for line in cells]
        score = [[cell.get("score") for cell in line] for line in cells]
        heat_map(axes, colour, names, names, None, "RdBu", (-1.0, 1.0), score)
        axes.set_xlabel("target task", fontsize=8)
        axes.set_ylabel("source of the subspace", fontsize=8)
        title = f"d = {d} per layer, {training} training\nscore; blue: as full, white: as random"
        axes.set_title(panel_title(model, title), fontsize=9)
    return figure


def angles_figure(angles: pa.Table) -> "Figure":
    """Draw how much two tasks' subspaces share: mean squared cosine of the principal angles, averaged over layers.

    Args:
        angles: Rows of ANGLES.
    """
    rows = [row for row in drawable_rows(angles) if row["overlap"] is not None]
    panels = grouped(rows, "model")
    names = list(dict.fromkeys([row["source"] for row in rows] + [row["target"] for row in rows]))
    figure, places = drawing.make_panels(len(panels), 1, 2.2 + 0.85 * len(names), 1.5 + 0.5 * len(names))
    for axes, ((model,), mine) in zip(places, panels.items(), strict=True):
        cells = [[_overlap(mine, source, target) for target in names] for source in names]
        expected = [row["expected_overlap"] for row in mine]
        top = max([0.01, *(cell for line in cells for cell in line if cell is not None)])
        heat_map(axes, cells, names, names, lambda value: f"{value:.2g}", "Blues", (0.0, top))
        chance = f"{sum(expected) / len(expected):.1g}" if expected else "-"
        axes.set_title(panel_title(model, f"overlap of spans\nof different runs; random: {chance}"), fontsize=9)
    return figure


def _overlap(rows: list[dict[str, Any]], source: str, target: str) -> float | None:
    """Average over layers and pairs of different runs; a run's overlap with itself says nothing."""
    values = [
        row["overlap"]
        for row in rows
        if {row["source"], row["target"]} == {source, target} and row["source_trajectory"] != row["target_trajectory"]
    ]
    return sum(values) / len(values) if values else None


def curves(modes: Sequence[dict[str, Any]]) -> list[str]:
    """List the ways of training, of rows of MODES, that some model and task has at several d."""
    tried = Counter((row["model"], row["task"], _name(row)) for row in modes if row["d"] is not None)
    return list(dict.fromkeys(name for (_, _, name), count in tried.items() if count > 1))


def dims_figure(modes: pa.Table) -> "Figure":
    """Draw score against d for every way of training that has several, learned and random on one axis.

    One panel per model and task. Bars: 95% t interval over seeds; solid line: full fine-tuning, dashed: freeze, dotted:
    chance. Compare with Zhang et al. 2023, Tables 5 and 6.

    Args:
        modes: Rows of MODES.
    """
    rows = drawable_rows(modes)
    panels = grouped(rows, "model", "task")
    names = curves(rows)
    colours = {name: COLOURS[index % len(COLOURS)] for index, name in enumerate(names)}
    figure, places = drawing.make_panels(len(panels), 3, 4.0, 3.0)
    for axes, (panel, mine) in zip(places, panels.items(), strict=True):
        for name in names:
            _curve(axes, sorted((row for row in mine if _name(row) == name), key=lambda row: row["d"]), colours[name])
        for method, look in (("full", "-"), ("freeze", "--")):
            for row in (row for row in mine if row["method"].startswith(method) and row["d"] is None):
                axes.axhline(row["score"], color=INK, linestyle=look, linewidth=1.1)
        _limit(axes.set_ylim, mine)
        if mine[0]["chance"] is not None:
            axes.axhline(mine[0]["chance"], color=INK, linestyle=":", linewidth=1.0)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
        axes.xaxis.set_minor_formatter(lambda x, _: "")
        axes.set_title(panel_title(*panel), fontsize=9)
        axes.set_xlabel("d per layer", fontsize=8)
        axes.set_ylabel(mine[0]["metric"], fontsize=8)
        plain_axes(axes)
    drawing.add_legend(figure, [(name, colours[name]) for name in names])
    return figure


def _curve(axes: Any, rows: list[dict[str, Any]], colour: str) -> None:
    """Draw one way of training over d with its interval."""
    d = [row["d"] for row in rows]
    axes.plot(d, [row["score"] for row in rows], "o-", color=colour, markersize=3.5, linewidth=1.3)
    for row in rows:
        if row["score_low"] is not None:
            axes.vlines(row["d"], row["score_low"], row["score_high"], color=colour, linewidth=1.0, alpha=0.6)


def _limit(set_limits: Any, rows: Sequence[dict[str, Any]]) -> None:
    """Show every score and chance; of the intervals, which two seeds make very long, what fits."""
    known = [x for row in rows for x in (*(row["scores"] or ()), row["score"], row["chance"]) if x is not None]
    if known:
        room = 0.12 * max(max(known) - min(known), 0.05)
        set_limits(min(known) - room, max(known) + room)


def modes_figure(modes: pa.Table) -> "Figure":
    """Draw the scores of all ways of training side by side, the best on top; one panel per model and task.

    Dots: seeds; tick and bar: their mean and its 95% t interval; solid line: full fine-tuning, dotted: chance. Compare
    with Zhang et al. 2023, Tables 1 and 2.

    Args:
        modes: Rows of MODES.
    """
    rows = drawable_rows(modes)
    panels = grouped(rows, "model", "task")
    most = max(map(len, panels.values()), default=1)
    figure, places = drawing.make_panels(len(panels), 2, 5.5, 1.2 + 0.24 * most)
    for axes, (panel, mine) in zip(places, panels.items(), strict=True):
        mine = sorted(mine, key=lambda row: row["score"])
        for y, row in enumerate(mine):
            colour = INK if row["method"] == "full" else BLUE if row["projection"] == "trajectory" else GREY
            if row["score_low"] is not None:
                axes.hlines(y, row["score_low"], row["score_high"], color=colour, linewidth=1.2)
            axes.plot(row["scores"], [y] * len(row["scores"]), "o", color=colour, markersize=3.0, alpha=0.6)
            axes.plot(row["score"], y, "|", color=colour, markersize=9)
            if row["method"] == "full":
                axes.axvline(row["score"], color=INK, linewidth=0.9)
        if mine[0]["chance"] is not None:
            axes.axvline(mine[0]["chance"], color=INK, linestyle=":", linewidth=0.9)
        names = [_name(row) + (f", d = {row['d']}" if row["d"] is not None else "") for row in mine]
        axes.set_yticks(range(len(mine)), names)
        axes.set_ylim(-0.7, len(mine) - 0.3)
        _limit(axes.set_xlim, mine)
        axes.set_title(panel_title(*panel), fontsize=9)
        axes.set_xlabel(mine[0]["metric"], fontsize=8)
        plain_axes(axes)
    return figure


def _name(row: dict[str, Any]) -> str:
    return row["method"] if row["projection"] in (None, "trajectory") else f"{row['method']} ({row['projection']})"
