"""What a sweep has spent of its limit, and whether it can afford the next trial.

No clock: hours are those that rows tell, and for what runs or was lost on the way the longest that a trial of its
condition took so far. So a limit in trials is kept exactly, one in hours as far as trials of a condition take alike:
while none has ended, nothing is known and all slots start.
"""

from collections.abc import Set
from dataclasses import dataclass

from distsub.records import Observation, Trial


@dataclass(frozen=True)
class Limit:
    """What a sweep may spend.

    Attributes:
        hours: Slot-hours: the time of all its trials together, whatever ran beside them; None is no limit.
        trials: Trials that are started, the baseline's included, repeats after a crash not; None is no limit.
    """

    hours: float | None = None
    trials: int | None = None


class Spending:
    """Counts trials and slot-hours against a limit; without one it costs nothing and allows everything."""

    def __init__(self, limit: Limit | None) -> None:
        """Start with nothing spent."""
        self.limit = limit
        self.running: frozenset[str] = frozenset()
        self._begun: set[str] = set()
        self._conditions: dict[str, str] = {}  # of the trials that were offered
        self._longest: dict[str, float] = {}
        self._done: set[str] = set()  # trials that have a row
        self._rows: set[tuple[str, str, float]] = set()
        self._hours = 0.0  # of rows, and of what was cancelled, crashed or lost its slot

    def saw(self, running: Set[str]) -> None:
        """Note what runs now; what ran before and left no row has cost as much as a whole trial."""
        if self.limit is None or running == self.running:
            return
        lost = self.running - running - self._done
        self._hours += sum(self._expected(self._conditions.get(each)) for each in lost)
        self.running = frozenset(running)
        self._begun |= self.running

    def ended(self, row: Observation) -> None:
        """Count a row, once however often it is given; a trial that is run again has a second one."""
        if self.limit is None or (key := (row.trial.id, row.status, row.wall_s)) in self._rows:
            return
        self._rows.add(key)
        self._done.add(row.trial.id)
        self._begun.add(row.trial.id)
        condition, hours = row.trial.condition.id, row.wall_s / 3600
        self._hours += hours
        self._longest[condition] = max(self._longest.get(condition, 0.0), hours)

    def allows(self, trial: Trial) -> bool:
        """Return whether this trial may start beside those that run; one that was begun before is no further trial."""
        if self.limit is None:
            return True
        condition = self._conditions[trial.id] = trial.condition.id
        in_flight = sum(self._expected(self._conditions.get(each)) for each in self.running)
        hours, begun = self._hours + in_flight + self._expected(condition), len(self._begun - {trial.id})
        in_time = self.limit.hours is None or hours <= self.limit.hours
        return in_time and (self.limit.trials is None or begun < self.limit.trials)

    @property
    def trials_left(self) -> int | None:
        """How many more trials may end, those that run included; None where that is not limited."""
        if self.limit is None or self.limit.trials is None:
            return None
        return max(0, self.limit.trials - len(self._begun) + len(self.running - self._done))

    @property
    def is_spent(self) -> bool:
        """Whether what runs must end now, its verdicts unknown: hours are counted as they pass."""
        return self.limit is not None and self.limit.hours is not None and self._hours >= self.limit.hours

    def _expected(self, condition: str | None) -> float:
        return self._longest.get(condition or "", max(self._longest.values(), default=0.0))
