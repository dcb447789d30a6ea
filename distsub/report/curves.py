"""The curve that a d90 is read from: score against log d, every trial a dot, with its thresholds."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from distsub.records import Observation, sign
from distsub.report.drawing import drawable, literal, make_panels, plain_ticks
from distsub.report.lines import LINES, known_lines, label_lines
from distsub.report.summary import MEASURED
from distsub.results.schema import METHOD_COLUMNS, method_columns

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Panel = dict[str, Any]
"""What shares one set of axes, a condition: its id, task, model, label, and the values of METHOD_COLUMNS."""

_PANEL_INCHES, _PAGE_INCHES = (5.6, 4.1), (4.4, 2.8)
_NARROWEST = 4
"""The least that an axis of d spans, as a factor."""
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_INK, _BAND, _FIT, _GREY = "#1b1b1b", "#8c96a3", "#0072b2", "#777777"
_REASONS = {
    "baseline_at_chance": "no d90: full fine-tuning is not above chance,\nso there is nothing to reach",
    "baseline_missing": "no d90: full fine-tuning has no score,\nso there is no threshold",
    "not_monotone": "no single d90: a larger d fell short by more than noise",
    "trial_failed": "no d90: a trial that decides it ended in an error",
}
"""Words for a panel, by the outcome of its searches."""


@dataclass(frozen=True)
class Curves:
    """All that is drawn of some trials: panels on one scale, and one look for the same step size and seeds.

    Dots are trials, coloured by eta (by learning rate where no trial has an eta), shaped by seeds; crosses on the
    floor diverged. Blue: expected score with its 95% band, and along the bottom the 95% interval of d90, with an
    arrowhead where it runs beyond the d that could be tried. Horizontal lines: full fine-tuning and the threshold;
    chance and the chance-corrected threshold where scores come near them. A panel without a d90 says why.

    Attributes:
        shown: Trials; full fine-tuning and trials without a result are left out.
        rows: Of the schema SEARCHES, for thresholds and first passing d.
        estimates: Of the schema D90, for the fitted curve and the interval of d90.
    """

    shown: Sequence[Observation]
    rows: Sequence[dict[str, Any]]
    estimates: Sequence[dict[str, Any]]

    @classmethod
    def of(cls, observations: Sequence[Observation], searches: pa.Table, d90: pa.Table | None = None) -> "Curves":
        """Take what is drawn out of the tables."""
        shown = [each for each in observations if each.trial.d and each.status != "error"]
        return cls(shown, searches.to_pylist(), d90.to_pylist() if d90 is not None else [])

    @cached_property
    def panels(self) -> list[Panel]:
        """The conditions of searches, and of trials that no search asks for."""
        return _panels(self.shown, self.rows)

    @cached_property
    def with_trials(self) -> list[Panel]:
        """Those that have something to show."""
        tried = {each.trial.condition.id for each in self.shown}
        return [panel for panel in self.panels if panel["condition_id"] in tried]

    def words(self, panel: Panel) -> tuple[str, str, str]:
        """Say of a panel how its subspace is made, what its searches found, and its d90 ("" without an interval)."""
        mine = (row for row in self.estimates if row["condition_id"] == panel["condition_id"])
        d90 = next((row["d90_text"] for row in mine if row["d90_outcome"] in MEASURED), "")
        found = [row for row in self.rows if row["condition_id"] == panel["condition_id"]]
        return _method(panel), _finding(found), d90 or ""

    def fill(self, grid: Sequence[Any], panels: Sequence[Panel]) -> None:
        """Draw panels into axes."""
        drawn: dict[tuple[str, str], list[tuple[Any, list[float], dict[str, float]]]] = {}
        look = {rate: on_white for rate, (on_white, _) in _colours(self.shown).items()}, _shapes(self.shown)
        for axes, panel in zip(grid, panels, strict=True):
            condition = panel["condition_id"]
            mine = [observation for observation in self.shown if observation.trial.condition.id == condition]
            found = [row for row in self.rows if row["condition_id"] == condition]
            scores = _panel(axes, mine, look)
            levels = known_lines(found, scores)
            estimates = [row for row in self.estimates if row["condition_id"] == condition]
            for row in estimates:
                scores = scores + _estimate(axes, row, [each.trial.d for each in mine if each.trial.d])
            plain_ticks(axes)
            _reason(axes, mine, found, estimates)
            drawn.setdefault((panel["task"], panel["model"]), []).append((axes, scores, levels))
        for together in drawn.values():
            _share_scale(together, next((row["threshold_rule"] for row in self.rows if row["threshold_rule"]), ""))

    @property
    def themes(self) -> dict[str, str]:
        """What the page, which may be dark, writes for the colour of a rate."""
        return {light: f"light-dark({light}, {dark})" for light, dark in _colours(self.shown).values()}

    def key(self) -> list[tuple[str, str, str]]:
        """Explain colours, shapes and lines: words, marker ("-" for a line) and colour of each."""
        name = "η" if any(observation.trial.eta is not None for observation in self.shown) else "learning rate"
        entries = [(f"{name} = {rate:g}", "o", colour) for rate, (colour, _) in _colours(self.shown).items()]
        shapes = _shapes(self.shown)
        if len(shapes) > 1:
            entries += [(f"seed {seeds.text}", shape, _GREY) for seeds, shape in shapes.items()]
        if any(observation.status == "diverged" for observation in self.shown):
            entries.append(("diverged", "x", _GREY))
        conditions = {observation.trial.condition.id for observation in self.shown}
        if any(row["fit"] and row["condition_id"] in conditions for row in self.estimates):
            entries += [("expected score, 95% band", "-", _FIT), ("d90, 95% interval", "D", _FIT)]
        return entries


@literal
def draw_curves(observations: Sequence[Observation], searches: pa.Table, *, d90: pa.Table | None = None) -> "Figure":
    """Draw score against log d, one panel per task, model and method, as `Curves` says.

    Args:
        observations: Trials.
        searches: Rows in the schema SEARCHES.
        d90: Rows in the schema D90.
    """
    from matplotlib.lines import Line2D

    curves = Curves.of(observations, searches, d90)
    figure, grid = make_panels(max(1, len(curves.panels)), 2, *_PANEL_INCHES)
    for axes in grid[len(curves.panels) :]:
        axes.set_visible(False)
    grid = grid[: len(curves.panels)]
    curves.fill(grid, curves.panels)
    for axes, panel in zip(grid, curves.panels, strict=True):
        _words_around(axes, panel, curves.words(panel))
    handles = [
        Line2D([], [], color=colour, label=words, linewidth=1.3)
        if marker == "-"
        else Line2D([], [], color=colour, label=words, linestyle="none", markersize=6, marker=marker)
        for words, marker, colour in curves.key()
    ]
    columns = 6 if figure.get_figwidth() > 8 else 3
    figure.legend(handles=handles, loc="outside lower left", ncols=columns, fontsize=8, frameon=False)
    return figure


@literal
def draw_panels(curves: Curves) -> "Iterator[tuple[Panel, Figure]]":
    """Draw every panel with trials as a figure of its own, narrow enough for a phone, without the words around it.

    They share their scale as in one figure.
    """
    figures = [make_panels(1, 1, *_PAGE_INCHES) for _ in curves.with_trials]
    curves.fill([axes for _, [axes] in figures], curves.with_trials)
    return zip(curves.with_trials, (figure for figure, _ in figures), strict=True)


def _panels(shown: Sequence[Observation], rows: Sequence[dict[str, Any]]) -> list[Panel]:
    """List the conditions of searches, and of trials that no search asks for."""
    keys = ("condition_id", "task", "model", "label", *METHOD_COLUMNS)
    found = {row["condition_id"]: {key: row[key] for key in keys} for row in rows}
    for observation in shown:
        trial = observation.trial
        columns = method_columns(trial.method)
        about = {"condition_id": trial.condition.id, "task": trial.task.name, "model": trial.model.name}
        found.setdefault(trial.condition.id, {**columns, **about, "label": columns["method"]})
    return sorted(found.values(), key=lambda panel: [panel[key] or "" for key in keys[1:]])


def _panel(axes: Any, shown: Sequence[Observation], look: Any) -> list[float]:
    """Draw the trials of one panel and its axes; give the scores."""
    colours, shapes = look
    axes.set_xscale("log")
    scores = _trials(axes, shown, colours, shapes)
    _floor(axes, shown, colours)
    low, high = axes.get_xlim()
    if shown and high < _NARROWEST * low:  # one d, or neighbours
        middle = math.sqrt(low * high)
        axes.set_xlim(middle / math.sqrt(_NARROWEST), middle * math.sqrt(_NARROWEST))
    metric = shown[0].trial.task.metric if shown else "score"
    better = "" if metric == "score" or sign(metric) > 0 else " (lower is better)"
    axes.set_xlabel("subspace dimension d", fontsize=9)
    axes.set_ylabel(drawable(metric) + better, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(True, which="major", color="#e6e6e6", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return scores


def _estimate(axes: Any, row: dict[str, Any], dims: Sequence[int]) -> list[float]:
    """Draw the fitted curve with its band, over the d that were tried, and the interval; give the band's ends."""
    points = [point for point in row["fit"] or [] if dims and min(dims) / 1.3 <= point["d"] <= max(dims) * 1.3]
    if points:
        d = [point["d"] for point in points]
        axes.fill_between(
            d, [p["low"] for p in points], [p["high"] for p in points], color=_FIT, alpha=0.13, linewidth=0, zorder=1
        )
        axes.plot(d, [point["middle"] for point in points], color=_FIT, linewidth=1.3, zorder=2)
    band = [point[end] for point in points for end in ("low", "high")]
    if row["d90_outcome"] not in MEASURED:
        return band
    if dims:
        _interval(axes, row["d90"], row["d90_low"], row["d90_high"])
    return band


def _interval(axes: Any, middle: float | None, low: float | None, high: float | None) -> None:
    """Draw an interval along the bottom; an end that is open runs off the axis, with an arrowhead there."""
    left, right = axes.get_xlim()
    ends = [end for end in (low, middle, high) if end is not None]
    left, right = min([left, *(end / 1.1 for end in ends)]), max([right, *(end * 1.1 for end in ends)])
    axes.set_xlim(left, right)
    look = {"transform": axes.get_xaxis_transform(), "color": _FIT, "zorder": 4, "clip_on": False}
    span = [left if low is None else low, right if high is None else high]
    axes.plot(span, [0.02, 0.02], linewidth=3, solid_capstyle="butt", gid="interval", **look)
    for end, at, marker in ((low, left, "<"), (high, right, ">")):
        if end is None:
            axes.plot([at], [0.02], marker=marker, markersize=9, gid="open end", **look)
    if middle is not None:
        axes.plot([middle], [0.02], marker="D", markersize=5, gid="estimate", **look)


def _reason(
    axes: Any, shown: Sequence[Observation], rows: list[dict[str, Any]], estimates: list[dict[str, Any]]
) -> None:
    """Say in a panel without a d90 why it has none, in words where the curve would be."""
    outcomes = {row["outcome"] for row in rows} | {row["d90_outcome"] for row in estimates}
    reason = next((words for outcome, words in _REASONS.items() if outcome in outcomes), None)
    if reason is None and not shown:
        reason = "no subspace trial has a result yet"
    if reason is None or outcomes & MEASURED:
        return
    if not shown:
        axes.set_xticks([])
        axes.set_xticks([], minor=True)
    axes.text(
        0.5, 0.5, reason, transform=axes.transAxes, ha="center", va="center", fontsize=10, color=_INK, zorder=6,
        gid="reason", bbox={"facecolor": "white", "edgecolor": _BAND, "alpha": 0.9, "boxstyle": "round,pad=0.5"},
    )  # fmt: skip


def _share_scale(together: Sequence[tuple[Any, list[float], dict[str, float]]], rule: str) -> None:
    """Give the panels of one task and model the same score axis, then name the lines, which depends on it."""
    values = [value for _, scores, levels in together for value in (*scores, *levels.values())]
    for axes, _, levels in together:
        if values:
            margin = 0.06 * max(max(values) - min(values), 0.05)
            axes.set_ylim(min(values) - 1.6 * margin, max(values) + margin)
        for name, value in levels.items():
            axes.axhline(value, zorder=1.5, **LINES[name][1])
        label_lines(axes, levels, rule)


def _method(panel: Panel) -> str:
    """Say how the subspace of a panel is made."""
    scales, normalization = panel["scales"], panel["normalization"]
    parts = [panel["projection"], normalization and f"{normalization} norm", scales and f"one scale per {scales}"]
    return ", ".join(part for part in [*parts, f"head {(panel['head'] or '').replace('_', ' ')}"] if part)


def _words_around(axes: Any, panel: Panel, words: tuple[str, str, str]) -> None:
    """Write what a panel is of above it, and its d90 below."""
    short = panel["model"].removeprefix("package:").rstrip("/")
    short = short if len(short) <= 40 else "…" + short[-39:]
    axes.set_title(drawable(f"{panel['task']} · {short} · {panel['label']}"), loc="left", fontsize=10, pad=34)
    method, finding, d90 = words
    axes.text(0, 1.075, drawable(method), transform=axes.transAxes, fontsize=8, color="#555555", va="bottom")
    axes.text(0, 1.015, finding, transform=axes.transAxes, fontsize=8.5, color=_INK, va="bottom")
    if d90:
        look = {"fontsize": 8.5, "color": _FIT, "ha": "center", "va": "top", "gid": "estimate"}
        axes.text(0.5, -0.2, d90, transform=axes.transAxes, **look)


def _trials(axes: Any, shown: Sequence[Observation], colours: dict[float, str], shapes: dict[Any, str]) -> list[float]:
    """Draw every score as a dot; give the scores."""
    scores: list[float] = []
    spread = {seeds: 1 + 0.024 * (index - (len(shapes) - 1) / 2) for index, seeds in enumerate(shapes)}
    for observation in shown:
        score, d = observation.score, observation.trial.d
        if score is None or d is None or not math.isfinite(score) or observation.status == "diverged":
            continue
        colour, seeds = colours[_rate(observation)], observation.trial.seeds
        axes.scatter(
            d * spread[seeds],
            score,
            s=30,
            marker=shapes[seeds],
            facecolors=[colour],
            edgecolors="white",
            linewidths=0.5,
            zorder=4,
        )
        scores.append(score)
    return scores


def _floor(axes: Any, shown: Sequence[Observation], colours: dict[float, str]) -> None:
    """Mark diverged trials, which have no score, on the worst edge."""
    for observation in shown:
        if observation.status == "diverged" and observation.trial.d is not None:
            axes.plot(
                observation.trial.d,
                0.025 if sign(observation.trial.task.metric) > 0 else 0.975,
                marker="x",
                color=colours[_rate(observation)],
                markersize=6,
                transform=axes.get_xaxis_transform(),
                linestyle="none",
            )


def _finding(rows: list[dict[str, Any]]) -> str:
    """Say in one line what the searches of a panel found."""
    if not rows:
        return "no search yet"
    found = sorted(row["first_passing_d"] for row in rows if row["first_passing_d"] is not None)
    if len(rows) > 4:
        span = f" ({found[0]:,} to {found[-1]:,})" if found else ""
        return f"first passing d found for {len(found)} of {len(rows)} seeds{span}"
    each = (f"{d:,}" if (d := row["first_passing_d"]) is not None else _words(row["outcome"]) for row in rows)
    return f"first passing d {', '.join(each)}"


def _words(outcome: str | None) -> str:
    return (outcome or "unknown").replace("_", " ")


def _rate(observation: Observation) -> float:
    return observation.trial.learning_rate if observation.trial.eta is None else observation.trial.eta


def _colours(shown: Iterable[Observation]) -> dict[float, tuple[str, str]]:
    """Give each rate a colour in order, dark to light, distinct also without colour vision: on white, and on black."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    rates = sorted({_rate(observation) for observation in shown})
    last, plasma = max(1, len(rates) - 1), colormaps["plasma"]
    places = {rate: index / last for index, rate in enumerate(rates)}
    return {rate: (to_hex(plasma(0.02 + 0.6 * at)), to_hex(plasma(0.4 + 0.5 * at))) for rate, at in places.items()}


def _shapes(shown: Iterable[Observation]) -> dict[Any, str]:
    seeds = sorted({observation.trial.seeds for observation in shown}, key=lambda s: (s.projection, s.head, s.data))
    return {each: _MARKERS[index % len(_MARKERS)] for index, each in enumerate(seeds)}
