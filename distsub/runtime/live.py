"""The live table of a terminal: a row per search, a bar of trainings, what trains and what waits.

Another thread draws it twice a second, from the last state that the run's own thread has read.
Nothing in it is markup: a name or an error with [brackets] is shown as it is.
"""

import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from distsub.records import Observation, Trial
from distsub.report.terminal import Terminal, printable
from distsub.runtime.labels import PARTS, shorten
from distsub.runtime.progress import Reporter, bracket_text
from distsub.search import Finding, Outcome, TrialQueue

MOST_ROWS = 24
"""Searches in the table at once, where the terminal is as high."""

MOST_TRAINING = 8
"""Trainings that are named at once."""

NARROWEST = 6
"""Cells that a name keeps at least."""

DROPPED = ("d90 over seeds", "trials", "goal", "best", "bracket")
"""Columns that a narrow terminal goes without, the first one first; the estimates then stand below the table."""

TRAINING = "training  "
"""Label of the lines of running trainings."""

RIGHT = ("trials", "goal", "best")


@dataclass(frozen=True)
class Row:
    """A search in the table: its cells by column, and whether it is over."""

    cells: dict[str, str]
    is_over: bool


class LiveReporter(Reporter):
    """Shows one line per search, refreshed in place, and the trials that run below."""

    def __init__(
        self, queue: TrialQueue, rows: Iterable[Observation] = (), expected: float = 1.0, title: str = ""
    ) -> None:
        """Prepare the live table; see `Reporter`. The title stands before what all rows have in common."""
        super().__init__(queue, rows, expected)
        self._title = printable(title)
        self._is_open = False
        console = Console()
        self._live = Live(get_renderable=lambda: self.picture(*console.size), console=console, refresh_per_second=2)

    def __enter__(self) -> "LiveReporter":
        self._live.__enter__()
        self._is_open = True
        return self

    def __exit__(self, error: type[BaseException] | None, *exception: object) -> None:
        try:
            self.conclude(error)
        finally:
            self._is_open = False
            self._live.__exit__(None, None, None)

    def stepped(self, trial: Trial, step: int, steps: int) -> None:
        """Show how far a training is."""
        super().stepped(trial, step, steps)
        self.intervals.refresh()  # here and not in the table, which another thread draws

    def event(self, text: str) -> None:
        """Print nothing: the table shows it."""

    def line(self, text: str) -> None:
        """Print above the table."""
        self._live.console.print(Text(printable(text)))

    def picture(self, width: int, height: int) -> RenderableType:
        """Draw the table and the lines below it in a size."""
        training, waiting = self._training(width, MOST_TRAINING if height > 30 else 3), len(self.progress.waiting)
        below: list[RenderableType] = [self._bar(width), *training]
        if waiting and self._is_open:
            below.append(_line(f"{'waiting':<{len(TRAINING)}}{waiting} more, for a free slot", width))
        found, names = self._known, list(self.labels.varying)
        if not found:
            return Group(*below)
        room = max(1, min(MOST_ROWS, height - len(below) - 5))
        # Open searches first: a long list must not push what moves off the screen.
        first = sorted(range(len(found)), key=lambda index: found[index].outcome.is_over)
        rows = self._rows(sorted(first[:room]), found)
        columns = _fitting(rows, names, width)
        estimates = [] if DROPPED[0] in columns else self._estimates(width, room - len(rows))
        over = sum(found[index].outcome.is_over for index in first[room:])
        more = [f"{len(first) - room} more searches, {over} of them over"] if len(first) > room else []
        return Group(
            _line(": ".join(filter(None, [self._title, self.labels.common])), width, "bold"),
            _table(rows, names, columns, width),
            *(_line(text, width, "dim") for text in more),
            *estimates,
            *below,
        )

    def _rows(self, indices: Sequence[int], known: Sequence[Finding]) -> list[Row]:
        """Describe searches by their positions."""
        tried: dict[str, list[int | None]] = {}
        for one in self.progress.running():
            if not one.trial.is_reference:
                tried.setdefault(one.trial.setup.id, []).append(one.trial.d)
        rows = []
        for index in indices:
            search, found = self.queue.searches[index], known[index]
            cells = {
                "bracket": bracket_text(found) if any(found.bracket) else "-",
                "best": "-" if found.best_score is None else f"{found.best_score:.4f}",
                "goal": "-" if found.thresholds is None else f"{found.thresholds.score:.4f}",
                "trials": str(found.num_trials),
                "state": _state(found, tried.get(search.setup.id, [])),
                DROPPED[0]: self.intervals.text(search),
            }
            rows.append(Row(self.labels.parts(index) | cells, found.outcome.is_over))
        return rows

    def _estimates(self, width: int, room: int) -> list[Text]:
        texts = [(self.labels.name(index, seed=False), text) for index, text in sorted(self.intervals.texts.items())]
        names = shorten([name for name, _ in texts], max(NARROWEST, width - max([30, *(len(t) for _, t in texts)]) - 2))
        return [_line(f"{names[name]}: {text}", width) for name, text in texts if text][: max(0, room)]

    def _bar(self, width: int) -> Table:
        """Show how many trainings are done, and the remaining time."""
        gone = f"{time.monotonic() - self.began:.0f} s so far"
        counts = [f"{number} {status}" for status, number in sorted(self.counts.items()) if status != "finished"]
        done = self.progress.text if self._is_open else f"{self.progress.done} trainings with a result"
        grid = Table.grid(padding=(0, 1))
        bar = ProgressBar(total=max(1, self.progress.total), completed=self.progress.done, width=max(4, width // 5))
        text = Text(", ".join([done, gone, *counts]), no_wrap=True, overflow="ellipsis")
        grid.add_row(bar, text)
        return grid

    def _training(self, width: int, most: int) -> list[Text]:
        running = self.progress.running() if self._is_open else []
        if not running:
            return []
        steps = [f"step {one.step}/{one.steps}" if one.step else "starting" for one in running]
        room = max(NARROWEST, width - max(map(len, steps)) - len(TRAINING) - 2)
        texts = [self.labels.trial(one.trial) for one in running]
        names = shorten(texts, room)
        widest = min(room, max(cell_len(names[text]) for text in texts[:most]))
        pads = [" " * max(0, widest - cell_len(names[text])) for text in texts]
        lines = [
            _line(f"{TRAINING}{names[text]}{pad}  {step}", width)
            for text, pad, step in zip(texts[:most], pads, steps, strict=False)
        ]
        return lines + [_line(f"{'':<{len(TRAINING)}}and {len(running) - most} more", width)] * (len(running) > most)


def _state(found: Finding, tried: Sequence[int | None]) -> str:
    if found.outcome is Outcome.found:
        return f"passes at d = {found.d}"
    if found.outcome.is_over:
        return found.outcome.name.replace("_", " ")
    if tried:
        return "tries " + ", ".join(f"d = {d}" for d in dict.fromkeys(tried))
    return "waits for baseline" if found.thresholds is None else "waits"


def _line(text: str, width: int, style: str = "") -> Text:
    return Text(next(iter(shorten([text], width).values())), style=style, no_wrap=True)


def _widths(rows: Sequence[Row], columns: Sequence[str]) -> dict[str, int]:
    return {name: max(len(name), *(cell_len(row.cells[name]) for row in rows)) for name in columns}


def _fitting(rows: Sequence[Row], names: Sequence[str], width: int) -> list[str]:
    """Choose the columns beside the names: as many as fit, so that names keep what they need, or half of the width."""
    columns = [name for name in rows[0].cells if name not in PARTS]
    if not any(row.cells[DROPPED[0]] for row in rows):
        columns.remove(DROPPED[0])
    needed = min(sum(_widths(rows, names).values()) + 2 * len(names), width // 2)
    for name in DROPPED:
        if needed + sum(_widths(rows, columns).values()) + 2 * (len(columns) - 1) <= width:
            break
        columns = [each for each in columns if each != name]
    return columns


def _table(rows: Sequence[Row], names: Sequence[str], columns: Sequence[str], width: int) -> Table:
    """Set up the table; names that are too long are cut in the middle, the longest first, and stay apart."""
    widths = _widths(rows, [*names, *columns])
    over = sum(widths.values()) + 2 * (len(widths) - 1) - width
    while over > 0 and names and max(widths[name] for name in names) > NARROWEST:
        widths[max(names, key=lambda name: widths[name])] -= 1
        over -= 1
    cut = {name: shorten([row.cells[name] for row in rows], widths[name]) for name in names}
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in (*names, *columns):
        table.add_column(name, justify="right" if name in RIGHT else "left", no_wrap=True, width=widths[name])
    for row in rows:
        cells = [cut[name][row.cells[name]] for name in names] + [row.cells[name] for name in columns]
        table.add_row(*(Text(cell) for cell in cells), style="dim" if row.is_over else "")
    return table


def reporter_for(
    queue: TrialQueue, plain: bool = False, rows: Iterable[Observation] = (), expected: float = 1.0, title: str = ""
) -> Reporter:
    """Choose the live table on a terminal that can move its cursor, lines otherwise or when asked."""
    if plain or not sys.stdout.isatty() or Console().is_dumb_terminal or not Terminal.of(sys.stdout).shows("…━"):
        return Reporter(queue, rows, expected)
    return LiveReporter(queue, rows, expected, title)
