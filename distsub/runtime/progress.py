"""What a person sees while a sweep runs: a live table on a terminal, plain flushed lines everywhere else."""

import sys
import time
from collections import Counter
from collections.abc import Iterable
from typing import Any

from distsub.runtime.intervals import Intervals
from distsub.search import Board, Finding, Outcome
from distsub.trial import Observation, Trial

SHOWN = 24
"""Searches in the live table at once."""

NUMBERS = ("bracket", "trials", "best", "threshold", "elapsed")


def bracket_text(finding: Finding) -> str:
    """Write a bracket as (largest d failed, smallest d passed], with open ends."""
    low, high = finding.bracket
    return f"({'-' if low is None else low}, {'-' if high is None else high}]"


def trial_text(trial: Trial) -> str:
    """Name a trial for people: task, method, d, step and seeds."""
    method, seeds = trial.method, trial.seeds
    if trial.eta is None:  # full fine-tuning, of all weights or with some disabled
        disabled = f" {method.ablation} {method.mask}" if method.ablation else ""
        what = f"full{disabled} lr={trial.learning_rate:g}"
    else:
        what = f"{method.variant or method.name} d={trial.d} eta={trial.eta:g}"
    same = len({seeds.projection, seeds.head, seeds.data}) == 1 or trial.eta is None
    label = f"s{seeds.data}" if same else f"s{seeds.projection}.{seeds.head}.{seeds.data}"
    return f"{trial.task.name} {what} {label}"


def short(trial: Trial) -> str:
    """Give the first eight digits of a trial's id: enough to find its row, `trial_id like '3f9a2b1c%'`."""
    return trial.id[:8]


class Reporter:
    """Prints one flushed line per event; also counts what a final summary needs."""

    def __init__(self, board: Board, rows: Iterable[Observation] = ()) -> None:
        """Report on a board's searches.

        Args:
            board: The searches.
            rows: What is known already, for the intervals.
        """
        self.board = board
        self.intervals = Intervals(board.searches, rows)
        self.counts: Counter[str] = Counter()
        self.began = time.monotonic()
        self._told: list[Finding] = list(board.findings())
        self._known, self._again = self._told, 0.0

    def started(self, trial: Trial) -> None:
        """Note that a trial starts."""

    def stepped(self, trial: Trial, step: int, steps: int) -> None:
        """Note a training step."""

    def crashed(self, trial: Trial, reason: str) -> None:
        """Say that a trial crashed and is tried again."""
        self.line(f"retry    {trial_text(trial)}: {reason}  [{short(trial)}]")

    def cancelled(self, trial: Trial) -> None:
        """Say that a trial was stopped because its result no longer matters."""
        self.counts["cancelled"] += 1
        self.line(f"cancel   {trial_text(trial)}  [{short(trial)}]")

    def ended(self, observation: Observation) -> None:
        """Say what a trial gave, and what that changed in the searches."""
        self.counts[observation.status] += 1
        self.intervals.add(observation)
        score = "-" if observation.score is None else f"{observation.score:.4f}"
        said = f"{observation.status:<8} {trial_text(observation.trial)}: {observation.trial.task.metric} {score}"
        if observation.error or observation.status == "stopped":
            said += f" ({observation.error or observation.stop})"
        self.line(f"{said}  {observation.wall_s:.1f} s  [{short(observation.trial)}]")
        self.changes()

    def findings(self, fresh: bool = False) -> list[Finding]:
        """Ask every search how it stands, seldom enough to cost a twentieth of the time however many they are."""
        now = time.monotonic()
        if fresh or now >= self._again:
            self._known = list(self.board.findings())
            self._again = now + 20 * (time.monotonic() - now)
        return self._known

    def changes(self, fresh: bool = False) -> None:
        """Say which searches moved."""
        now = self.findings(fresh)
        for search, before, after in zip(self.board.searches, self._told, now, strict=True):
            if (before.outcome, before.bracket) != (after.outcome, after.bracket):
                result = f"d90 = {after.d}" if after.outcome is Outcome.found else after.outcome.name
                self.line(f"search   {search.name}: {bracket_text(after)} {result}")
        self._told = now
        for name, text in self.intervals.refresh(fresh):
            self.line(f"estimate {name}: {text}")

    def line(self, text: str) -> None:
        """Print one line at once: logs of jobs are read while they run."""
        print(f"[{time.monotonic() - self.began:7.1f} s] {text}", flush=True)

    def __enter__(self) -> "Reporter":
        """Start."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Say what was not said yet."""
        self.changes(fresh=True)


class LiveReporter(Reporter):
    """Shows one line per search, refreshed in place, and the trials that run below."""

    def __init__(self, board: Board, rows: Iterable[Observation] = ()) -> None:
        """Prepare the live table."""
        super().__init__(board, rows)
        from rich.console import Console
        from rich.live import Live

        self._running: dict[str, tuple[Trial, int, int]] = {}
        self._ended_at: dict[int, float] = {}
        self._live = Live(get_renderable=self._table, console=Console(), refresh_per_second=2, transient=False)

    def __enter__(self) -> "LiveReporter":
        """Take over the terminal's last lines."""
        self._live.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        """Leave the last table standing."""
        self.findings(fresh=True)
        self.intervals.refresh(fresh=True)
        self._live.__exit__(None, None, None)

    def started(self, trial: Trial) -> None:
        """Show a trial among those that run."""
        self._running[trial.id] = (trial, 0, trial.budget.steps)

    def stepped(self, trial: Trial, step: int, steps: int) -> None:
        """Show how far a trial is."""
        self._running[trial.id] = (trial, step, steps)

    def cancelled(self, trial: Trial) -> None:
        """Take a trial off the table."""
        self._running.pop(trial.id, None)
        self.counts["cancelled"] += 1

    def ended(self, observation: Observation) -> None:
        """Count a result; the table shows what it changed."""
        self._running.pop(observation.trial.id, None)
        self.counts[observation.status] += 1
        self.intervals.add(observation)
        self.intervals.refresh()  # here and not in the table, which another thread draws
        if observation.error:
            trial = observation.trial
            self.line(f"{observation.status} {trial_text(trial)}: {observation.error}  [{short(trial)}]")

    def line(self, text: str) -> None:
        """Print above the table."""
        self._live.console.print(text, highlight=False)

    def _table(self) -> Any:
        from rich.console import Group
        from rich.table import Table

        table = Table(box=None, pad_edge=False, header_style="bold")
        for title in ("search", "bracket", "trials", "best", "threshold", "elapsed", "outcome", "over all seeds"):
            table.add_column(title, justify="right" if title in NUMBERS else "left")
        elapsed = time.monotonic() - self.began
        known = list(enumerate(zip(self.board.searches, self.findings(), strict=True)))
        # Open searches first: a long list must not push what moves off the screen.
        known.sort(key=lambda item: item[1][1].outcome.is_over)
        for index, (search, finding) in known[:SHOWN]:
            thresholds = finding.thresholds
            spent = self._ended_at.setdefault(index, elapsed) if finding.outcome.is_over else elapsed
            table.add_row(
                search.name,
                bracket_text(finding),
                str(finding.num_trials),
                "-" if finding.best_score is None else f"{finding.best_score:.4f}",
                "-" if thresholds is None else f"{thresholds.relative:.4f}",
                f"{spent:.0f} s",
                f"d90 = {finding.d}" if finding.outcome is Outcome.found else finding.outcome.name,
                self.intervals.text(search),
            )
        lines = [f"{trial_text(trial)}  step {step}/{steps}" for trial, step, steps in list(self._running.values())[:8]]
        counts = "".join(f", {number} {status}" for status, number in sorted(self.counts.items()))
        more = f", {len(known) - SHOWN} more searches" if len(known) > SHOWN else ""
        return Group(table, *lines, f"{elapsed:.0f} s{counts}{more}")


def reporter_for(board: Board, plain: bool = False, rows: Iterable[Observation] = ()) -> Reporter:
    """Choose the live table on a terminal, lines otherwise or when asked."""
    return Reporter(board, rows) if plain or not sys.stdout.isatty() else LiveReporter(board, rows)
