"""Figures of learned updates, each one PNG that is drawn from rows of a table alone: spikes, components, spectra."""

from typing import TYPE_CHECKING, Any

import pyarrow as pa

from distsub.learned.outliers import K
from distsub.report import drawing
from distsub.report.drawing import BLUE, GREY, RED, drawable_rows, grouped, heat_map, panel_title, plain_axes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_LAYERS, _MOST_UPDATES = 3, 6
"""Of `spikes_figure`: columns, evenly from the first layer to the last, and rows."""

_COMPONENTS = (
    *("attention query", "attention key", "attention value", "attention output"),
    *("intermediate", "output dense", "LayerNorm", "biases"),
)
"""In the order in which a block's data pass them; components of unknown names come first."""


def spikes_figure(profiles: pa.Table) -> "Figure":
    """Draw updates along their layers, one row per update and one column per layer: does anything stand out?

    Each stretch of positions is drawn from its smallest to its largest entry, in sigma of the layer; shaded: within K
    sigma. Compare with Zhang et al. 2023, Figure 4.

    Args:
        profiles: Rows of PROFILES; of each task and way of training one update is drawn, learned and random ones first.
    """
    by_method: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for part in grouped(drawable_rows(profiles), "update").values():
        by_method.setdefault((part[0]["task"], part[0]["method"]), part)
    first = ("full", "intrinsic", "random", "random_matched")
    order = sorted(by_method, key=lambda key: first.index(key[1]) if key[1] in first else len(first))
    shown = [by_method[key] for key in order[:_MOST_UPDATES]]
    names = list(dict.fromkeys(row["layer"] for part in shown for row in part))
    last = len(names) - 1
    kept = [names[round(i * last / (_MOST_LAYERS - 1))] for i in range(min(_MOST_LAYERS, len(names)))]
    figure, grid = drawing.make_grid(len(shown), len(kept), 4.6, 1.9)
    heights = [abs(row[end]) for part in shown for row in part if row["layer"] in kept for end in ("low", "high")]
    top = 1.15 * max([1.5 * K, *heights])  # one scale for all, so that what stands out in one is seen beside the others
    for number, part in enumerate(shown):
        for axes, layer in zip(grid[number], kept, strict=True):
            _spikes(axes, [row for row in part if row["layer"] == layer])
            axes.set_ylim(-top, top)
            axes.set_title(f"layer {_number(layer)}" if number == 0 else "", fontsize=9)
        grid[number][0].set_ylabel(f"{_update_name(part[0])}\nsigma", fontsize=8)
    for axes in grid[-1]:
        axes.set_xlabel("position in the layer, millions", fontsize=8)
    return figure


def _spikes(axes: Any, rows: list[dict[str, Any]]) -> None:
    """Draw one layer of one update, its LayerNorms and biases marked below."""
    middle = [(row["start"] + row["stop"]) / 2e6 for row in rows]
    axes.axhspan(-K, K, color=GREY, alpha=0.2, linewidth=0)
    axes.vlines(middle, [row["low"] for row in rows], [row["high"] for row in rows], color=BLUE, linewidth=0.6)
    norms = [x for x, row in zip(middle, rows, strict=True) if "norm" in row["tensor"].lower()]
    axes.plot(norms, [0.03] * len(norms), "|", color=RED, markersize=7, transform=axes.get_xaxis_transform())
    peak = max((max(abs(row["low"]), abs(row["high"])) for row in rows), default=1.0)
    axes.text(0.99, 0.95, f"max {peak:.1f} sigma", transform=axes.transAxes, fontsize=7.5, ha="right", va="top")
    plain_axes(axes)


def components_figure(summaries: pa.Table) -> "Figure":
    """Draw which components and layers hold the outliers by the layer's sigma, one panel per way of training.

    A cell is the share of the component's entries in the layer that are outliers, averaged over updates; beside the
    layer's name, how many times as many as in a Gaussian. Compare with Zhang et al. 2023, Table 4.

    Args:
        summaries: Rows of OUTLIER_SUMMARIES.
    """
    rows = drawable_rows(summaries)
    panels = grouped(rows, "model", "method", "kind")
    layers = list(dict.fromkeys(row["layer"] for row in rows))
    components = list(dict.fromkeys(row["component"] for row in rows if row["component"]))
    components.sort(key=lambda name: _COMPONENTS.index(name) if name in _COMPONENTS else -1)
    parts = [[[_share(mine, layer, part) for part in components] for layer in layers] for mine in panels.values()]
    top = max([0.01, *(cell for cells in parts for line in cells for cell in line if cell is not None)])
    figure, places = drawing.make_panels(len(panels), 1, 1.4 + 0.95 * len(components), 1.1 + 0.34 * len(layers))
    for axes, ((model, method, kind), mine), cells in zip(places, panels.items(), parts, strict=True):
        labels = [f"{_number(layer)}  ({_times(mine, layer)})" for layer in layers]
        heat_map(axes, cells, labels, components, lambda value: f"{100 * value:.2g}%", "Reds", (0.0, top))
        axes.set_ylabel("layer (times a Gaussian)", fontsize=8)
        axes.set_title(panel_title(model, f"{method} {'' if kind == 'adapter' else 'θ_T - θ₀'}"), fontsize=9)
    return figure


def _share(rows: list[dict[str, Any]], layer: str, component: str) -> float | None:
    mine = [row for row in rows if (row["layer"], row["component"]) == (layer, component)]
    size = sum(row["size"] for row in mine)
    return sum(row["layer_outliers"] for row in mine) / size if size else None


def _times(rows: list[dict[str, Any]], layer: str) -> str:
    mine = [row for row in rows if row["layer"] == layer and row["tensor"] is None]
    expected = sum(row["expected_outliers"] for row in mine)
    return f"{sum(row['outliers'] for row in mine) / expected:.1f}" if expected else "-"


def spectra_figure(spectra: pa.Table) -> "Figure":
    """Draw the share of a trajectory's movement outside its first directions, one line per layer, a panel per task.

    Args:
        spectra: Rows of SPECTRA.
    """
    from matplotlib import colormaps

    rows = drawable_rows(spectra)
    panels = grouped(rows, "model", "task")
    layers = list(dict.fromkeys(row["layer"] for row in rows))
    shades = {layer: colormaps["viridis"](0.9 * i / max(1, len(layers) - 1)) for i, layer in enumerate(layers)}
    figure, places = drawing.make_panels(len(panels), 3, 4.0, 2.8)
    for axes, (panel, mine) in zip(places, panels.items(), strict=True):
        for (_, layer), line in grouped(mine, "trajectory", "layer").items():
            outside = [(row["rank"], 1 - row["cumulative"]) for row in line if row["cumulative"] < 1 - 1e-12]
            axes.plot([rank for rank, _ in outside], [rest for _, rest in outside], color=shades[layer], linewidth=1.1)
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda x, _: f"{x:g}")
        axes.yaxis.set_minor_formatter(lambda x, _: "")
        axes.set_title(panel_title(*panel), fontsize=9)
        axes.set_xlabel("directions", fontsize=8)
        axes.set_ylabel("share of |W|² outside", fontsize=8)
        plain_axes(axes)
    drawing.add_legend(figure, [(f"layer {_number(layer)}", shades[layer]) for layer in layers])
    return figure


def _update_name(row: dict[str, Any]) -> str:
    what = row["method"] if row["kind"] == "adapter" else "θ_T - θ₀"
    return f"{row['task']}, seed {row['data_seed']}\n{what}"


def _number(layer: str) -> str:
    return layer.rpartition(".")[2]
