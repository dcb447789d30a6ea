"""Figures of the analyses of learned updates, out of their tables: spikes, components, ablations, transfer, dimensions.

Every function draws one PNG from rows alone, so that a figure can be made again from a results directory.
"""

from collections import Counter
from collections.abc import Sequence
from typing import IO, Any

import pyarrow as pa

from distsub.report.drawing import INK, add_legend, drawable_rows, heat_map, literal, make_grid, make_panels, plain_axes

Target = str | IO[bytes]

_INK, _GREY, _BLUE, _RED = INK, "#8c96a3", "#0072b2", "#d55e00"
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c96a3", "#1b1b1b")
_COMPONENTS = (
    *("attention query", "attention key", "attention value", "attention output"),
    *("intermediate", "output dense", "LayerNorm", "biases"),
)
"""In the order in which a block's data pass them; components of unknown names come first."""

_MASKS = {
    "none": ("none", "#44505c"),
    "outliers": ("outliers", "#d55e00"),
    "random": ("random", "#56b4e9"),
    "tensor": ("matched by tensor", "#0072b2"),
    "magnitude": ("by tensor and |θ₀|", "#004a7c"),
}
"""What ablation bars are called and coloured; "none" is full fine-tuning of all weights."""


@literal
def spikes_figure(profiles: pa.Table, to: Target, *, k: float = 3.0, layers: int = 3, updates: int = 6) -> None:
    """Draw updates along their layers, one row per update and one column per layer: does anything stand out?

    Each stretch of positions is drawn from its smallest to its largest entry, in sigma of the layer; shaded: within k
    sigma. Compare with Zhang et al. 2023, Figure 4.

    Args:
        profiles: Rows of PROFILES.
        to: Where the PNG goes.
        k: Where outliers begin.
        layers: At most so many layers, evenly from the first to the last.
        updates: At most so many updates: of each task and way of training one, learned and random ones first.
    """
    by_method: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for part in _by(profiles, "update").values():
        by_method.setdefault((part[0]["task"], part[0]["method"]), part)
    first = ("full", "intrinsic", "random", "random_matched")
    order = sorted(by_method, key=lambda key: first.index(key[1]) if key[1] in first else len(first))
    shown = [by_method[key] for key in order[:updates]]
    names = list(dict.fromkeys(row["layer"] for part in shown for row in part))
    kept = [names[round(i * (len(names) - 1) / max(1, layers - 1))] for i in range(min(layers, len(names)))]
    figure, grid = make_grid(len(shown), len(kept), 4.6, 1.9)
    heights = [abs(row[end]) for part in shown for row in part if row["layer"] in kept for end in ("low", "high")]
    top = 1.15 * max([1.5 * k, *heights])  # one scale for all, so that what stands out in one is seen beside the others
    for number, part in enumerate(shown):
        for axes, layer in zip(grid[number], kept, strict=True):
            _spikes(axes, [row for row in part if row["layer"] == layer], k)
            axes.set_ylim(-top, top)
            axes.set_title(f"layer {_number(layer)}" if number == 0 else "", fontsize=9)
        grid[number][0].set_ylabel(f"{_update_name(part[0])}\nsigma", fontsize=8)
    for axes in grid[-1]:
        axes.set_xlabel("position in the layer, millions", fontsize=8)
    _save(figure, to)


def _spikes(axes: Any, rows: list[dict[str, Any]], k: float) -> None:
    """Draw one layer of one update, its LayerNorms and biases marked below."""
    middle = [(row["start"] + row["stop"]) / 2e6 for row in rows]
    axes.axhspan(-k, k, color=_GREY, alpha=0.2, linewidth=0)
    axes.vlines(middle, [row["low"] for row in rows], [row["high"] for row in rows], color=_BLUE, linewidth=0.6)
    norms = [x for x, row in zip(middle, rows, strict=True) if "norm" in row["tensor"].lower()]
    axes.plot(norms, [0.03] * len(norms), "|", color=_RED, markersize=7, transform=axes.get_xaxis_transform())
    peak = max((max(abs(row["low"]), abs(row["high"])) for row in rows), default=1.0)
    axes.text(0.99, 0.95, f"max {peak:.1f} sigma", transform=axes.transAxes, fontsize=7.5, ha="right", va="top")
    plain_axes(axes)


@literal
def components_figure(summaries: pa.Table, to: Target) -> None:
    """Draw which components and layers hold the outliers by the layer's sigma, one panel per way of training.

    A cell is the share of the component's entries in the layer that are outliers, averaged over updates; beside the
    layer's name, how many times as many as in a Gaussian. Compare with Zhang et al. 2023, Table 4.

    Args:
        summaries: Rows of OUTLIER_SUMMARIES.
        to: Where the PNG goes.
    """
    rows = drawable_rows(summaries)
    panels = list(dict.fromkeys((row["model"], row["method"], row["kind"]) for row in rows))
    layers = list(dict.fromkeys(row["layer"] for row in rows))
    components = list(dict.fromkeys(row["component"] for row in rows if row["component"]))
    components.sort(key=lambda name: _COMPONENTS.index(name) if name in _COMPONENTS else -1)
    drawn = [(panel, [row for row in rows if (row["model"], row["method"], row["kind"]) == panel]) for panel in panels]
    parts = [[[_share(mine, layer, part) for part in components] for layer in layers] for _, mine in drawn]
    top = max([0.01, *(cell for cells in parts for line in cells for cell in line if cell is not None)])
    figure, grid = make_grid(len(panels), 1, 1.4 + 0.95 * len(components), 1.1 + 0.34 * len(layers))
    for axes, (panel, mine), cells in zip([line[0] for line in grid], drawn, parts, strict=False):
        labels = [f"{_number(layer)}  ({_times(mine, layer)})" for layer in layers]
        heat_map(axes, cells, labels, components, lambda value: f"{100 * value:.2g}%", "Reds", (0.0, top))
        axes.set_ylabel("layer (times a Gaussian)", fontsize=8)
        axes.set_title(_title(panel[0], f"{panel[1]} {'' if panel[2] == 'adapter' else 'θ_T - θ₀'}"), fontsize=9)
    _save(figure, to)


def _share(rows: list[dict[str, Any]], layer: str, component: str) -> float | None:
    mine = [row for row in rows if (row["layer"], row["component"]) == (layer, component)]
    size = sum(row["size"] for row in mine)
    return sum(row["layer_outliers"] for row in mine) / size if size else None


def _times(rows: list[dict[str, Any]], layer: str) -> str:
    mine = [row for row in rows if row["layer"] == layer and row["tensor"] is None]
    expected = sum(row["expected_outliers"] for row in mine)
    return f"{sum(row['outliers'] for row in mine) / expected:.1f}" if expected else "-"


@literal
def ablation_figure(ablations: pa.Table, to: Target) -> None:
    """Draw what disabling weights costs: bars per task and mask, one panel per edit and kind of update.

    Whiskers: 95% t interval over seeds; dots: seeds; dotted: chance. Compare with Zhang et al. 2023, Table 3.

    Args:
        ablations: Rows of ABLATIONS.
        to: Where the PNG goes.
    """
    rows = [row for row in drawable_rows(ablations) if row["versus"] == "none"]
    panels = list(dict.fromkeys((row["model"], row["edit"], row["method"]) for row in rows))
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    figure, grid = make_grid(len(panels), 1, 2.2 + 2.1 * len(tasks), 2.9)
    words = {
        "zero": "set to zero, then fine-tuned",
        "hold": "fine-tuned, held at zero",
        "reset": "fine-tuned, then put back to θ₀",
    }
    for axes, panel in zip([line[0] for line in grid], panels, strict=False):
        for at, task in enumerate(tasks):
            mine = [row for row in rows if (row["model"], row["edit"], row["method"], row["task"]) == (*panel, task)]
            _bars(axes, at, mine)
        axes.set_xticks(range(len(tasks)), tasks, fontsize=9)
        axes.set_title(
            _title(panel[0], f"{words.get(panel[1], panel[1])}; {'θ_T - θ₀' if panel[2] == 'full' else panel[2]}"),
            fontsize=9,
        )
        axes.set_ylabel("score", fontsize=8)
        plain_axes(axes)
    present = [key for key in _MASKS if key == "none" or any(row["mask"] == key for row in rows)]
    add_legend(figure, [(_MASKS[key][0], _MASKS[key][1]) for key in present])
    _save(figure, to)


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
        axes.bar(x, score, width * 0.9, color=_MASKS.get(mask, (mask, _GREY))[1], alpha=0.85, zorder=2)
        if low is not None and high is not None:
            axes.vlines(x, low, high, color=_INK, linewidth=1.1, zorder=4)
        axes.plot([x] * len(scores), scores, "o", color="white", markeredgecolor=_INK, markersize=3.5, zorder=5)
    if first["chance"] is not None:
        axes.hlines(first["chance"], at - 0.45, at + 0.45, color=_INK, linestyle=":", linewidth=1.1, zorder=3)


@literal
def transfer_figure(transfer: pa.Table, to: Target) -> None:
    """Draw scores by source and target task, coloured by the share of the way from random to full fine-tuning.

    Grey is a score whose share means nothing, or no score at all.

    Args:
        transfer: Rows of TRANSFER.
        to: Where the PNG goes.
    """
    rows = drawable_rows(transfer)
    panels = list(dict.fromkeys((row["model"], row["d"], row["training"]) for row in rows))
    names = list(dict.fromkeys([row["source"] for row in rows] + [row["target"] for row in rows]))
    figure, places = make_panels(len(panels), 3, max(3.4, 2.2 + 0.85 * len(names)), 1.5 + 0.5 * len(names))
    for axes, panel in zip(places, panels, strict=True):
        mine = [row for row in rows if (row["model"], row["d"], row["training"]) == panel]
        found = {(row["source"], row["target"]): row for row in mine}
        colour = [[_cell(found, source, target, "recovered") for target in names] for source in names]
        score = [[_cell(found, source, target, "score") for target in names] for source in names]
        heat_map(axes, colour, names, names, None, "RdBu", (-1.0, 1.0), score)
        axes.set_xlabel("target task", fontsize=8)
        axes.set_ylabel("source of the subspace", fontsize=8)
        title = f"d = {panel[1]} per layer, {panel[2]} training\nscore; blue: as full, white: as random"
        axes.set_title(_title(panel[0], title), fontsize=9)
    _save(figure, to)


@literal
def angles_figure(angles: pa.Table, to: Target) -> None:
    """Draw how much two tasks' subspaces share: mean squared cosine of the principal angles, averaged over layers.

    Args:
        angles: Rows of ANGLES.
        to: Where the PNG goes.
    """
    rows = [row for row in drawable_rows(angles) if row["overlap"] is not None]
    panels = list(dict.fromkeys(row["model"] for row in rows))
    names = list(dict.fromkeys([row["source"] for row in rows] + [row["target"] for row in rows]))
    figure, grid = make_grid(len(panels), 1, 2.2 + 0.85 * len(names), 1.5 + 0.5 * len(names))
    for axes, model in zip([line[0] for line in grid], panels, strict=False):
        cells = []
        for source in names:
            cells.append([_overlap([row for row in rows if row["model"] == model], source, target) for target in names])
        expected = [row["expected_overlap"] for row in rows if row["model"] == model]
        top = max([0.01, *(cell for line in cells for cell in line if cell is not None)])
        heat_map(axes, cells, names, names, lambda value: f"{value:.2g}", "Blues", (0.0, top))
        chance = f"{sum(expected) / len(expected):.1g}" if expected else "-"
        axes.set_title(_title(model, f"overlap of spans\nof different runs; random: {chance}"), fontsize=9)
    _save(figure, to)


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


@literal
def dims_figure(modes: pa.Table, to: Target) -> None:
    """Draw score against d for every way of training that has several, learned and random on one axis.

    One panel per model and task. Bars: 95% t interval over seeds; solid line: full fine-tuning, dashed: freeze, dotted:
    chance. Compare with Zhang et al. 2023, Tables 5 and 6.

    Args:
        modes: Rows of MODES.
        to: Where the PNG goes.
    """
    rows = drawable_rows(modes)
    panels = list(dict.fromkeys((row["model"], row["task"]) for row in rows))
    names = curves(rows)
    colours = {name: _COLOURS[index % len(_COLOURS)] for index, name in enumerate(names)}
    figure, places = make_panels(len(panels), 3, 4.0, 3.0)
    for axes, panel in zip(places, panels, strict=True):
        mine = [row for row in rows if (row["model"], row["task"]) == panel]
        for name in names:
            _curve(axes, sorted((row for row in mine if _name(row) == name), key=lambda row: row["d"]), colours[name])
        for method, look in (("full", "-"), ("freeze", "--")):
            for row in (row for row in mine if row["method"].startswith(method) and row["d"] is None):
                axes.axhline(row["score"], color=_INK, linestyle=look, linewidth=1.1)
        _limit(axes.set_ylim, mine)
        if mine and mine[0]["chance"] is not None:
            axes.axhline(mine[0]["chance"], color=_INK, linestyle=":", linewidth=1.0)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
        axes.xaxis.set_minor_formatter(lambda x, _: "")
        axes.set_title(_title(panel[0], panel[1]), fontsize=9)
        axes.set_xlabel("d per layer", fontsize=8)
        axes.set_ylabel(mine[0]["metric"] if mine else "score", fontsize=8)
        plain_axes(axes)
    add_legend(figure, [(name, colours[name]) for name in names])
    _save(figure, to)


def _curve(axes: Any, rows: list[dict[str, Any]], colour: str) -> None:
    """Draw one way of training over d with its interval."""
    d = [row["d"] for row in rows]
    axes.plot(d, [row["score"] for row in rows], "o-", color=colour, markersize=3.5, linewidth=1.3)
    known = [row for row in rows if row["score_low"] is not None]
    axes.vlines(
        [row["d"] for row in known],
        [row["score_low"] for row in known],
        [row["score_high"] for row in known],
        color=colour,
        linewidth=1.0,
        alpha=0.6,
    )


def _limit(set_limits: Any, rows: Sequence[dict[str, Any]]) -> None:
    """Show every score and chance; of the intervals, which two seeds make very long, what fits."""
    known = [x for row in rows for x in (*(row["scores"] or ()), row["score"], row["chance"]) if x is not None]
    if known:
        room = 0.12 * max(max(known) - min(known), 0.05)
        set_limits(min(known) - room, max(known) + room)


@literal
def modes_figure(modes: pa.Table, to: Target) -> None:
    """Draw the scores of all ways of training side by side, the best on top; one panel per model and task.

    Dots: seeds; tick and bar: their mean and its 95% t interval; solid line: full fine-tuning, dotted: chance. Compare
    with Zhang et al. 2023, Tables 1 and 2.

    Args:
        modes: Rows of MODES.
        to: Where the PNG goes.
    """
    rows = drawable_rows(modes)
    panels = list(dict.fromkeys((row["model"], row["task"]) for row in rows))
    most = max((sum((row["model"], row["task"]) == panel for row in rows) for panel in panels), default=1)
    figure, places = make_panels(len(panels), 2, 5.5, 1.2 + 0.24 * most)
    for axes, panel in zip(places, panels, strict=True):
        mine = sorted((row for row in rows if (row["model"], row["task"]) == panel), key=lambda row: row["score"])
        for y, row in enumerate(mine):
            colour = _INK if row["method"] == "full" else _BLUE if row["projection"] == "trajectory" else _GREY
            if row["score_low"] is not None:
                axes.hlines(y, row["score_low"], row["score_high"], color=colour, linewidth=1.2)
            axes.plot(row["scores"], [y] * len(row["scores"]), "o", color=colour, markersize=3.0, alpha=0.6)
            axes.plot(row["score"], y, "|", color=colour, markersize=9)
            if row["method"] == "full":
                axes.axvline(row["score"], color=_INK, linewidth=0.9)
        if mine[0]["chance"] is not None:
            axes.axvline(mine[0]["chance"], color=_INK, linestyle=":", linewidth=0.9)
        names = [_name(row) + (f", d = {row['d']}" if row["d"] is not None else "") for row in mine]
        axes.set_yticks(range(len(mine)), names)
        axes.set_ylim(-0.7, len(mine) - 0.3)
        _limit(axes.set_xlim, mine)
        axes.set_title(_title(*panel), fontsize=9)
        axes.set_xlabel(mine[0]["metric"], fontsize=8)
        plain_axes(axes)
    _save(figure, to)


@literal
def spectra_figure(spectra: pa.Table, to: Target) -> None:
    """Draw the share of a trajectory's movement outside its first directions, one line per layer, a panel per task.

    Args:
        spectra: Rows of SPECTRA.
        to: Where the PNG goes.
    """
    from matplotlib import colormaps

    rows = drawable_rows(spectra)
    panels = list(dict.fromkeys((row["model"], row["task"]) for row in rows))
    layers = list(dict.fromkeys(row["layer"] for row in rows))
    shades = {layer: colormaps["viridis"](0.9 * i / max(1, len(layers) - 1)) for i, layer in enumerate(layers)}
    figure, places = make_panels(len(panels), 3, 4.0, 2.8)
    for axes, panel in zip(places, panels, strict=True):
        lines: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for row in rows:
            if (row["model"], row["task"]) == panel:
                lines.setdefault((row["trajectory"], row["layer"]), []).append(row)
        for (_, layer), line in lines.items():
            outside = [(row["rank"], 1 - row["cumulative"]) for row in line if row["cumulative"] < 1 - 1e-12]
            axes.plot([rank for rank, _ in outside], [rest for _, rest in outside], color=shades[layer], linewidth=1.1)
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda x, _: f"{x:g}")
        axes.yaxis.set_minor_formatter(lambda x, _: "")
        axes.set_title(_title(panel[0], panel[1]), fontsize=9)
        axes.set_xlabel("directions", fontsize=8)
        axes.set_ylabel("share of |W|² outside", fontsize=8)
        plain_axes(axes)
    add_legend(figure, [(f"layer {_number(layer)}", shades[layer]) for layer in layers])
    _save(figure, to)


# ---- what they share


def _save(figure: Any, to: Target) -> None:
    figure.savefig(to, format="png")


def _by(table: pa.Table, column: str) -> dict[str, list[dict[str, Any]]]:
    """Group rows by a column, in the order in which its values come."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in drawable_rows(table):
        found.setdefault(row[column], []).append(row)
    return found


def _cell(found: dict[Any, dict[str, Any]], source: str, target: str, column: str) -> float | None:
    row = found.get((source, target))
    return None if row is None else row[column]


def _name(row: dict[str, Any]) -> str:
    return row["method"] if row["projection"] in (None, "trajectory") else f"{row['method']} ({row['projection']})"


def _update_name(row: dict[str, Any]) -> str:
    what = row["method"] if row["kind"] == "adapter" else "θ_T - θ₀"
    return f"{row['task']}, seed {row['data_seed']}\n{what}"


def _number(layer: str) -> str:
    return layer.rpartition(".")[2]


def _title(model: str, rest: str) -> str:
    short = model.removeprefix("package:").rstrip("/").rpartition("/")[2]
    return f"{short} · {rest.strip()}"
