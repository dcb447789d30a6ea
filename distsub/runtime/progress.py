"""Progress of a running sweep as plain flushed lines; `live` draws the table of a terminal."""

import math
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from distsub.errors import OutputError
from distsub.records import Observation, Trial
from distsub.report.listing import write_out
from distsub.report.streams import say
from distsub.report.terminal import Terminal, printable
from distsub.runtime.intervals import Intervals
from distsub.runtime.labels import Labels
from distsub.search import Finding, Outcome, Search, TrialQueue

EVERY_S = 8.0
"""Seconds between two progress lines."""

SHOWN = 4
"""Trainings that a line names at once."""


def bracket_text(finding: Finding) -> str:
    """Write a bracket as (largest d failed, smallest d passed], with open ends."""
    low, high = finding.bracket
    return f"({'-' if low is None else low}, {'-' if high is None else high}]"


def short(trial: Trial) -> str:
    """Give the first eight digits of a trial's id: enough to find its row, `trial_id like '3f9a2b1c%'`."""
    return trial.id[:8]


def left_text(seconds: float | None) -> str:
    """Write the remaining time, in minutes up to two hours."""
    if seconds is None:
        return "time left unknown"
    minutes = max(1, math.ceil(seconds / 60))
    if minutes <= 120:
        return f"about {minutes} minute{'s' if minutes > 1 else ''} left"
    return f"about {round(minutes / 60)} hours left"


@dataclass(frozen=True)
class Running:
    """A running training, its progress and start."""

    trial: Trial
    began: float
    step: int = 0
    steps: int = 1

    @property
    def share(self) -> float:
        """The fraction done."""
        return min(1.0, self.step / max(1, self.steps))


class Progress:
    """How far a sweep is: trainings done, how many it may take, how long.

    `look` reads the queue, in the thread of the run; other threads show what it found last. `rows` are results from
    before, and `expected` is the share of all possible subspace trainings that the sweep will take.

    Attributes:
        done: Trainings with a result, those known before the run included.
        left: Trainings still to come, those that run included: what the policy is expected to take of what it may.
        waiting: Trainings that were handed out and have no slot yet.
        slots: Trainings at once.
    """

    def __init__(self, queue: TrialQueue, rows: Iterable[Observation] = (), expected: float = 1.0) -> None:
        self._queue, self._expected = queue, expected
        self._running: dict[str, Running] = {}
        self.waiting: dict[str, Trial] = {}
        self.slots = 1
        self._seconds, self._ended = 0.0, 0
        for row in rows:
            self._measure(row)
        self.look()

    def look(self) -> None:
        """Count what is done and what is left."""
        baselines, probes = self._queue.most_left()
        self.done = self._queue.num_observed
        self.left = max(baselines + round(self._expected * probes), len(self._running) + len(self.waiting))
        if probes and not self.left:
            self.left = 1

    @property
    def total(self) -> int:
        """Trainings in all, as far as known."""
        return self.done + self.left

    def hand_out(self, trial: Trial) -> None:
        """Note a trial that waits for a slot."""
        self.waiting[trial.id] = trial

    def start(self, trial: Trial) -> None:
        """Note a training that begins."""
        self.waiting.pop(trial.id, None)
        self._running[trial.id] = Running(trial, time.monotonic(), 0, trial.budget.steps)

    def step(self, trial: Trial, step: int, steps: int) -> None:
        """Record the step of a training."""
        if trial.id not in self._running:
            self.start(trial)
        self._running[trial.id] = replace(self._running[trial.id], step=step, steps=steps)

    def leave(self, trial: Trial) -> None:
        """Note that a training runs no longer."""
        self.waiting.pop(trial.id, None)
        self._running.pop(trial.id, None)

    def end(self, row: Observation) -> None:
        """Note a result."""
        self.leave(row.trial)
        self._measure(row)
        # Until the queue is read again, which is rare when it is large.
        self.done, self.left = self.done + 1, max(self.left - 1, len(self._running))

    def _measure(self, row: Observation) -> None:
        if row.status != "error" and row.wall_s > 0:
            self._seconds, self._ended = self._seconds + row.wall_s, self._ended + 1

    def running(self) -> list[Running]:
        """List what runs, the longest first."""
        return list(self._running.values())

    def seconds_left(self) -> float | None:
        """Estimate the remaining seconds: the mean time of a training, times what is left, over the slots."""
        running, now = self.running(), time.monotonic()
        if self._ended:
            each = self._seconds / self._ended
        else:  # none has ended: as fast as the one that is furthest
            begun = [(now - one.began) / one.share for one in running if one.step]
            if not begun:
                return None
            each = min(begun)
        work = [each * (1 - one.share) for one in running]
        rest = each * max(0, self.left - len(running))
        slots = len(running) if running and self.waiting else self.slots  # a cluster may not have grown so far, or ever
        return max([(sum(work) + rest) / max(1, min(slots, self.left)), *work])

    @property
    def text(self) -> str:
        """Both in words: "3/14 trainings, about 4 minutes left"."""
        counted = f"{self.done}/{self.total} trainings"
        return f"{counted}, {left_text(self.seconds_left())}" if self.left else counted


class Reporter:
    """Prints one flushed line per event, and every few seconds how far the sweep is; arguments as of `Progress`."""

    def __init__(self, queue: TrialQueue, rows: Iterable[Observation] = (), expected: float = 1.0) -> None:
        rows = list(rows)
        self.queue = queue
        self.labels = Labels(queue.searches)
        self.intervals = Intervals(queue.searches, rows)
        self.progress = Progress(queue, rows, expected)
        self.counts: Counter[str] = Counter()
        self.began = time.monotonic()
        self._reported: list[Finding] = list(queue.findings())
        self._known, self._again = self._reported, 0.0
        self.final: Callable[[], Mapping[Search, str]] | None = None
        self._closed, self._printing = threading.Event(), threading.Lock()
        self._clock = threading.Thread(target=self._tick, daemon=True, name="distsub-progress")

    def started(self, trial: Trial) -> None:
        """Note that a trial starts."""
        self.progress.start(trial)

    def stepped(self, trial: Trial, step: int, steps: int) -> None:
        """Note a training step."""
        self.progress.step(trial, step, steps)
        self.findings()

    def crashed(self, trial: Trial, reason: str) -> None:
        """Report that a trial crashed and will be retried."""
        self.progress.leave(trial)
        self.line(f"retry    {self.labels.trial(trial)}: {reason}  [{short(trial)}]")

    def cancelled(self, trial: Trial) -> None:
        """Report that a trial was stopped because its result no longer matters."""
        self.progress.leave(trial)
        self.counts["cancelled"] += 1
        self.event(f"cancel   {self.labels.trial(trial)}  [{short(trial)}]")

    def ended(self, observation: Observation) -> None:
        """Report the result of a trial, and what it changed in the searches."""
        self.progress.end(observation)
        self.counts[observation.status] += 1
        self.intervals.add(observation)
        trial = observation.trial
        score = "-" if observation.score is None else f"{observation.score:.4f}"
        text = f"{observation.status:<8} {self.labels.trial(trial)}: {trial.task.metric} {score}"
        if observation.error:
            text += f" ({observation.error})"
        say = self.line if observation.error else self.event
        say(f"{text}  {observation.wall_s:.1f} s  [{short(trial)}]")
        self.changes()

    def findings(self, fresh: bool = False) -> list[Finding]:
        """Give the state of every search, refreshed so rarely that it costs at most a twentieth of the time."""
        now = time.monotonic()
        if fresh or now >= self._again:
            self.progress.look()
            self._known = list(self.queue.findings())
            self._again = now + 20 * (time.monotonic() - now)
        return self._known

    def conclude(self, error: type[BaseException] | None) -> None:
        """Report the last changes, and the estimates of the final tables unless an error ended the run."""
        final = self.final() if self.final and error in (None, KeyboardInterrupt) else None
        self.changes(fresh=True, final=final)

    def changes(self, fresh: bool = False, final: Mapping[Search, str] | None = None) -> None:
        """Report which searches changed, and the estimates: those given, else the current ones."""
        now = self.findings(fresh)
        for index, (before, after) in enumerate(zip(self._reported, now, strict=True)):
            if (before.outcome, before.bracket) != (after.outcome, after.bracket):
                result = f"first passing d = {after.d}" if after.outcome is Outcome.found else after.outcome.name
                self.event(f"search   {self.labels.name(index)}: {bracket_text(after)} {result}")
        self._reported = now
        for index, text in self.intervals.refresh(fresh) if final is None else self.intervals.settle(final):
            self.event(f"estimate {self.labels.name(index, seed=False)}: {text}")

    def event(self, text: str) -> None:
        """Print what a live table shows anyway."""
        self.line(text)

    def line(self, text: str) -> None:
        """Print one line and flush it. A failure to print does not end the run."""
        text = printable(text, Terminal.of(sys.stdout))
        with self._printing:
            try:
                write_out(f"[{time.monotonic() - self.began:7.1f} s] {text}")
            except OutputError as error:
                say(f"distsub: {error}; the run continues without output")

    def _tick(self) -> None:
        while not self._closed.wait(EVERY_S):
            self.line(f"progress {self.progress.text}{self._now()}")

    def training(self) -> list[str]:
        """List the running trainings with their steps."""
        return [f"{self.labels.trial(one.trial)} step {one.step}/{one.steps}" for one in self.progress.running()]

    def _now(self) -> str:
        running = self.training()
        if not running:
            return ""
        named = running[:SHOWN]
        more = f" and {len(running) - SHOWN} more" if len(running) > SHOWN else ""
        return f"; training {', '.join(named)}{more}"

    def __enter__(self) -> "Reporter":
        self._clock.start()
        return self

    def __exit__(self, error: type[BaseException] | None, *exception: object) -> None:
        self._closed.set()
        self._clock.join()
        self.conclude(error)
