"""Write docs/aghajanyan2020.md and its figures from rows: d90 along pre-training, against size, score and gap.

python benchmarks/aghajanyan2020.py results/figure2 results/figure3    # measures: writes aghajanyan2020.csv
python benchmarks/aghajanyan2020.py --table1 results/leaderboard       # beside Table 1, aghajanyan2020-table1.csv
python benchmarks/aghajanyan2020.py                                    # the page and its figures from these files
"""

import csv
import json
import math
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from string import Template
from typing import Any

import distsub

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs"
TABLE1 = HERE / "aghajanyan2020-table1.csv"
ROWS, TEXT, PAGE = HERE / "aghajanyan2020.csv", HERE / "aghajanyan2020.md.in", DOCS / "aghajanyan2020.md"
Row = dict[str, Any]

SQL = """
with rates as (
  select task, model, learning_rate, avg(score) as best, avg(train_score) as train_score, count(*) as seeds
  from observations where method = 'full' and score is not null group by all
), tuned as (select *, row_number() over (partition by task, model order by best desc) as place from rates),
tried as (select condition_id, min(d) as d_min, max(d) as d_max from observations where d > 0 group by all)
select task, model, label as method, num_params, d90_outcome as outcome, d90, d90_low, d90_high, d90_text,
  d90_chance_corrected_text as corrected_text, d_min, d_max, chance, threshold, best as full_score, train_score, seeds,
  failed_full, trials
from d90 join tuned using (task, model) left join tried using (condition_id)
where place = 1 and threshold is not null order by task, num_params, model
"""
"""One row per condition; full fine-tuning at the rate with the best mean over its seeds."""


BESIDE = """
select task, model, method, measured, measured_low, measured_high, published_model, published, verdict, reason
from comparison where quantity = 'd90' order by task, method, published desc
"""

TRIALS = """
select task, model, d, eta, projection_seed as seed, score, status, num_examples from observations
where d > 0 and status != 'error'
"""


def query(directory: str, sql: str) -> list[Row]:
    command = ["distsub", "query", directory, sql, "--format", "json"]
    found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return [row | {"model": row["model"].rstrip("/").rpartition("/")[2].removeprefix("package:")} for row in found]


def measure(directories: Iterable[str]) -> list[Row]:
    """Ask each results directory, and estimate the d at which each model reaches one bar for all of a task."""
    rows = []
    for directory in directories:
        found, trials = query(directory, SQL), query(directory, TRIALS)
        dims = min(each["d"] for each in trials), max(each["d"] for each in trials)
        for row in found:
            bar = 0.9 * max(each["full_score"] for each in found if each["task"] == row["task"])
            mine = [each for each in trials if (each["task"], each["model"]) == (row["task"], row["model"])]
            rows.append(row | {"bar": bar, "bar_text": reached(mine, bar, row["chance"], dims)})
    return rows


def reached(trials: Sequence[Row], bar: float, chance: float, dims: tuple[int, int]) -> str:
    """Say at which d of a range a score is reached."""
    if not trials:
        return "d90 unknown"
    columns = {name: [each[name] for each in trials] for name in ("d", "eta", "seed")}
    return distsub.d90(
        columns["d"],
        [math.nan if each["score"] is None else each["score"] for each in trials],
        threshold=bar,
        chance=chance,
        eval_examples=trials[0]["num_examples"],
        eta=columns["eta"],
        seed=columns["seed"],
        failed=[each["status"] != "finished" for each in trials],
        dims=dims,
    ).text


def read(path: Path) -> list[Row]:
    """Read the rows as numbers and texts; what is not known is None."""

    def value(text: str) -> Any:
        try:
            return float(text) if text else None
        except ValueError:
            return text

    with path.open() as file:
        return [{name: value(text) for name, text in row.items()} for row in csv.DictReader(file)]


def step_of(row: Row) -> int | None:
    """Give the updates of pre-training that a checkpoint has had; None of a model that is no checkpoint."""
    found = re.fullmatch(r"step-(\d+)", row["model"])
    return int(found[1]) if found else None


def gap(row: Row) -> float:
    return row["train_score"] - row["full_score"]


def relative_gap(row: Row) -> float:
    """Give the gap as a share of what the score lacks."""
    return gap(row) / (1 - row["full_score"])


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in [head, ["---"] * len(head), *rows])


def short(text: str) -> str:
    """Leave out what the head of a column says."""
    said = re.sub(r"^d(90|\([^)]*\)) (\(chance-corrected\) )?(= )?", "", text)
    said = said.replace(" (95%)", "").replace("95%: ", "").partition(":")[0]
    return re.sub(r"\d{4,}", lambda found: f"{int(found[0]):,}", said)


def results(rows: Sequence[Row], first: Sequence[str], of: Any) -> str:
    head = [*first, "d90 (95%)", "chance-corrected", "one bar, reached at", "full", "threshold", "chance", "trainings"]
    return table(
        head,
        [
            [*of(row), short(row["d90_text"]), short(row["corrected_text"])]
            + [f"{row['bar']:.3f}: {short(row['bar_text'])}"]
            + [f"{row[name]:.3f}" for name in ("full_score", "threshold", "chance")]
            + [f"{row['trials']:.0f}"]
            for row in rows
        ],
    )


def gaps(rows: Sequence[Row]) -> str:
    head = ["task", "model", "d90", "chance-corrected", "full", "on training rows", "gap", "relative gap"]
    return table(
        head,
        [
            [
                row["task"],
                row["model"],
                short(row["d90_text"]).partition(" (")[0],
                short(row["corrected_text"]).partition(" (")[0],
            ]
            + [f"{value:.3f}" for value in (row["full_score"], row["train_score"], gap(row), relative_gap(row))]
            for row in rows
        ],
    )


def rank_correlation(rows: Sequence[Row], of: Any, name: str = "d90") -> str:
    """Give Spearman's correlation of a d90 with something; one beyond the range counts as its end."""
    from scipy.stats import spearmanr

    pairs = [(middle, of(row)) for row in rows if (middle := interval(row, name)[1])]
    if len(pairs) < 4:
        return f"not computed, {len(pairs)} points"
    found: Any = spearmanr(*zip(*pairs, strict=True))
    return f"{found.statistic:+.2f} over {len(pairs)} points (p = {found.pvalue:.2f})"


_NUMBERS = re.compile(
    r"(?P<sign>=|>|<=) (?P<middle>\d+)(?: \(95%: (?P<below><= )?(?P<low>\d+) to (?P<above>> )?(?P<high>\d+)\))?"
)


def interval(row: Row, name: str) -> tuple[str, float | None, float, float]:
    """Read a d90 out of its text: sign, middle (or the end of the range), low and high; None where there is none.

    Args:
        row: A condition.
        name: "d90", or "corrected", by the threshold that counts from chance.
    """
    found = _NUMBERS.search(row[f"{name}_text"])
    if not found:
        return "", None, 0.0, 0.0
    middle = float(found["middle"])
    low, high = float(found["low"] or middle), float(found["high"] or middle)
    return found["sign"], middle, min(low, middle), max(high, middle)


def draw(rows: Sequence[Row], name: str, label: str, of: Any, log: bool = False) -> None:
    """Draw d90 with its interval against something, a colour for each task; an end that is open has an arrowhead.

    Filled: by the relative threshold, as published. Hollow: by the one that counts from chance.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    from distsub.report.drawing import COLOURS, INK, plain_ticks

    rows = [row for row in rows if interval(row, "d90")[1] or interval(row, "corrected")[1]]
    figure = Figure(figsize=(5.6, 3.6), layout="constrained", dpi=130)
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set_yscale("log")
    ends = [end for row in rows for way in ("d90", "corrected") for end in interval(row, way)[2:] if end]
    low, high = (min(ends) / 1.8, max(ends) * 1.8) if ends else (1.0, 10.0)
    axes.set_ylim(low, high)
    span = max(map(of, rows), default=1.0) - min(map(of, rows), default=0.0)
    for number, task in enumerate(dict.fromkeys(row["task"] for row in rows)):
        for way, filled in (("d90", True), ("corrected", False)):
            colour, shift = COLOURS[number], 2 * number + (not filled)
            first = True
            for row in rows:
                sign, middle, left, right = interval(row, way)
                if row["task"] != task or middle is None:
                    continue
                at = max(of(row), 1.0) * 1.09**shift if log else of(row) + 0.006 * span * shift
                text = row[f"{way}_text"]
                left, right = low if "<=" in text else left, high if "> " in text else right
                axes.plot([at, at], [left, right], color=colour, linewidth=1.4, linestyle="-" if filled else ":")
                for end, mark, is_open in ((right, "^", "> " in text), (left, "v", "<=" in text)):
                    if is_open:
                        axes.plot([at], [end], marker=mark, color=colour, markersize=7, clip_on=False)
                if sign == "=":
                    named = f"{task}{'' if filled else ', from chance'}" if first else None
                    face = colour if filled else "white"
                    axes.plot([at], [middle], "o", color=colour, markerfacecolor=face, markersize=5.5, label=named)
                    first = False
    if log:
        axes.set_xscale("log")
        plain_ticks(axes)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,.0f}"))
    axes.set_xlabel(label, fontsize=9, color=INK)
    axes.set_ylabel("d90: numbers that are trained", fontsize=9, color=INK)
    axes.tick_params(labelsize=8)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8, frameon=False, loc="lower left", bbox_to_anchor=(0, 1.01), ncols=4)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(DOCS / f"aghajanyan2020-{name}.png")


def keep(rows: Sequence[Row], path: Path) -> None:
    with path.open("w") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def beside() -> str:
    """Tabulate the view `comparison`: published numbers beside ours."""
    lines: dict[tuple[str, ...], list[str]] = {}
    for row in read(TABLE1):
        ours = "unknown" if row["measured"] is None else f"{row['measured']:,.0f}"
        ends = [f"{row[name]:,.0f}" if row[name] else "open" for name in ("measured_low", "measured_high")]
        about = (row["task"], row["method"], row["model"], f"{ours} ({' to '.join(ends)})")
        theirs = lines.setdefault(
            (*about, f"{row['verdict']}: {row['reason']}" if row["reason"] else row["verdict"]), []
        )
        theirs.append(f"{row['published_model']} {row['published']:,.0f}")
    head = ["task", "method", "our model", "d90 (95%)", "published", "verdict"]
    return table(head, [[*about, ", ".join(theirs), verdict] for (*about, verdict), theirs in lines.items()])


def write(rows: Sequence[Row]) -> None:
    """Draw the figures, and fill the page's text with the tables."""
    rows = sorted(rows, key=lambda row: (row["task"], step_of(row) or 0, row["num_params"] or 0))
    rows.sort(key=lambda row: step_of(row) is not None)
    sizes = [row for row in rows if step_of(row) is None]
    steps = [row for row in rows if step_of(row) is not None]
    draw(steps, "pretraining", "updates of pre-training (the untrained encoder at 1)", step_of, log=True)
    draw(sizes, "size", "million parameters", lambda row: row["num_params"] / 1e6)
    known = [row for row in rows if row["train_score"] is not None]
    draw(known, "score", "score of full fine-tuning", lambda row: row["full_score"])
    draw(known, "gap", "generalisation gap", gap)
    PAGE.write_text(
        Template(TEXT.read_text()).substitute(
            pretraining=results(steps, ("task", "updates"), lambda row: (row["task"], f"{step_of(row):,}")),
            size=results(
                sizes,
                ("task", "model", "parameters"),
                lambda row: (row["task"], row["model"], f"{(row['num_params'] or 0) / 1e6:.1f} M"),
            ),
            gaps=gaps(known),
            beside=beside(),
            by_score=rank_correlation(known, lambda row: row["full_score"]),
            by_gap=rank_correlation(known, gap),
            by_relative_gap=rank_correlation(known, relative_gap),
            corrected_by_score=rank_correlation(known, lambda row: row["full_score"], "corrected"),
            corrected_by_gap=rank_correlation(known, gap, "corrected"),
        )
    )


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["--table1", directory]:
            keep(query(directory, BESIDE), TABLE1)
        case [_, *_] as directories:
            keep(measure(directories), ROWS)
    write(read(ROWS))
