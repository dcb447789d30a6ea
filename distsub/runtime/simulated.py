"""Run a sweep on a virtual clock: the same queue and policies, with recorded or synthetic scores and no training.

For comparing policies, for planning, and for testing what a cluster does to a search: slots, start-up cost, crashes
and preemptions. Nothing here is random but what follows from the machines' seed and a trial's id.
"""

import hashlib
import heapq
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from distsub.records import Observation, Trial
from distsub.search import TrialQueue

Source = Callable[[Trial], Observation]
"""What a trial gives when it runs to its end."""


@dataclass(frozen=True)
class Machines:
    """What trials run on.

    Attributes:
        slots: Trials at once.
        startup_s: Seconds before a trial's first step, at each attempt.
        crash: Chance that an attempt crashes, at any point of its way.
        retries: Further attempts after a crash before the trial is in error.
        preempted_per_hour: Rate at which a slot is taken away under its trial; the queue then offers it again.
        seed: Draws crashes and preemptions.
    """

    slots: int = 1
    startup_s: float = 0.0
    crash: float = 0.0
    retries: int = 2
    preempted_per_hour: float = 0.0
    seed: int = 0


ONE_SLOT = Machines()
"""One trial after the other, and nothing goes wrong."""


@dataclass
class Ledger:
    """What a simulated sweep took, in virtual seconds, steps and attempts.

    Attributes:
        busy_s: Seconds of all slots that were occupied.
        steps: Training steps, those of cancelled, crashed and preempted trials included.
        baseline_steps: Of those, full fine-tuning.
        started: Attempts.
        rows: The observations, in the order of the clock.
    """

    wall_s: float = 0.0
    busy_s: float = 0.0
    steps: float = 0.0
    baseline_steps: float = 0.0
    started: int = 0
    cancelled: int = 0
    cancelled_steps: float = 0.0
    crashed: int = 0
    preempted: int = 0
    rows: list[Observation] = field(default_factory=list)


@dataclass
class _Attempt:
    """One trial in one slot."""

    trial: Trial
    row: Observation
    began: float
    fate: str  # what the end of its time is: done, crash, preempt


class Recorded:
    """Scores from rows; a trial without a row is one in error that took no time, and is counted as missing."""

    def __init__(self, rows: Iterable[Observation]) -> None:
        self.missing: set[str] = set()
        self._rows: dict[str, Observation] = {}
        for row in rows:
            if row.trial.id not in self._rows or row.status == "finished":
                self._rows[row.trial.id] = row

    def __call__(self, trial: Trial) -> Observation:
        """Return the row of a trial."""
        row = self._rows.get(trial.id)
        if row is None:
            self.missing.add(trial.id)
            return Observation(trial, "error", error="not among the recorded trials")
        return row


def simulate(queue: TrialQueue, source: Source, machines: Machines = ONE_SLOT) -> Ledger:
    """Run until no search wants another trial."""
    return _Clock(queue, source, machines).run()


class _Clock:
    """The events of a simulated sweep in the order of time."""

    def __init__(self, queue: TrialQueue, source: Source, machines: Machines) -> None:
        self.queue, self.source, self.machines = queue, source, machines
        self.ledger, self.now = Ledger(), 0.0
        self.running: dict[str, _Attempt] = {}
        self.events: list[tuple[float, int, str, _Attempt]] = []
        self.attempts: dict[str, int] = {}
        self.crashes: dict[str, int] = {}
        self.sequence = 0

    def run(self) -> Ledger:
        self.fill()
        while self.events:
            self.now = self.events[0][0]
            changed = False
            while self.events and self.events[0][0] == self.now:  # what ends at once is known at once
                _, _, trial_id, attempt = heapq.heappop(self.events)
                if self.running.get(trial_id) is not attempt:
                    continue
                self.end(attempt)
                changed = True
            if changed:
                self.cancel()
                self.fill()
        self.ledger.wall_s = self.now
        return self.ledger

    def fill(self) -> None:
        """Start trials while slots are free."""
        while (trial := self.queue.next(self.running.keys(), self.machines.slots)) is not None:
            self.start(trial)

    def start(self, trial: Trial) -> None:
        number = self.attempts[trial.id] = self.attempts.get(trial.id, 0) + 1
        row = self.source(trial)
        fate, lasts = "done", row.wall_s
        crash, when, preempt = _chances(self.machines.seed, trial.id, number)
        if crash < self.machines.crash:
            fate, lasts = "crash", row.wall_s * when
        if self.machines.preempted_per_hour > 0:
            lost = -math.log(1 - preempt) * 3600 / self.machines.preempted_per_hour - self.machines.startup_s
            if lost < lasts:
                fate, lasts = "preempt", lost
        ends = self.now + self.machines.startup_s + lasts
        attempt = self.running[trial.id] = _Attempt(trial, row, self.now, fate)
        self.ledger.started += 1
        self.sequence += 1
        heapq.heappush(self.events, (ends, self.sequence, trial.id, attempt))

    def end(self, attempt: _Attempt) -> None:
        self.leave(attempt)
        trial_id = attempt.trial.id
        if attempt.fate == "preempt":
            self.ledger.preempted += 1
        elif attempt.fate == "crash":
            self.ledger.crashed += 1
            self.crashes[trial_id] = self.crashes.get(trial_id, 0) + 1
            if self.crashes[trial_id] > self.machines.retries:
                self.tell(Observation(attempt.trial, "error", error="crashed at every attempt"))
        else:
            self.tell(attempt.row)

    def tell(self, row: Observation) -> None:
        self.ledger.rows.append(row)
        self.queue.observe(row)

    def cancel(self) -> None:
        """Stop what is no longer worth running."""
        wanted = self.queue.wanted()
        for attempt in [each for trial_id, each in self.running.items() if trial_id not in wanted]:
            self.ledger.cancelled += 1
            self.ledger.cancelled_steps += self.leave(attempt)

    def leave(self, attempt: _Attempt) -> float:
        """Free the slot; return the steps that the attempt made."""
        del self.running[attempt.trial.id]
        trained = max(self.now - attempt.began - self.machines.startup_s, 0.0)
        share = min(trained / attempt.row.wall_s, 1.0) if attempt.row.wall_s > 0 else 1.0
        steps = share * attempt.row.steps
        self.ledger.busy_s += self.now - attempt.began
        self.ledger.steps += steps
        if attempt.trial.is_baseline:
            self.ledger.baseline_steps += steps
        return steps


def _chances(seed: int, trial_id: str, attempt: int) -> tuple[float, float, float]:
    """Draw three numbers in [0, 1) that follow from their key alone."""
    digest = hashlib.blake2b(f"{seed}/{trial_id}/{attempt}".encode(), digest_size=24).digest()
    return tuple(int.from_bytes(digest[i : i + 8]) / 2**64 for i in (0, 8, 16))  # type: ignore[return-value]
