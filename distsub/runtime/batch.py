"""A fixed list of trials in the place of searches: what runs a sweep runs these too."""

from collections.abc import Iterable, KeysView, Set

from distsub.records import Observation, Trial
from distsub.search.policies import make_policy
from distsub.search.queue import TrialQueue


class Batch(TrialQueue):
    """A queue without searches that hands out given trials in their order, each once, until it is observed."""

    def __init__(self, trials: Iterable[Trial], rows: Iterable[Observation] = ()) -> None:
        super().__init__((), make_policy("grid"))
        self._open = {trial.id: trial for trial in trials}
        self._number = len(self._open)
        for row in rows:
            self.observe(row)

    def observe(self, observation: Observation) -> None:
        """Take a trial off the list."""
        self._open.pop(observation.trial.id, None)

    def next(self, running: Set[str], slots: int) -> Trial | None:
        """Return the first trial that is open and not running, None if there is none or no slot is free."""
        if len(running) >= slots:
            return None
        return next((trial for name, trial in self._open.items() if name not in running), None)

    def wanted(self) -> KeysView[str]:
        """Return a view of the ids of the open trials."""
        return self._open.keys()

    @property
    def num_observed(self) -> int:
        """How many of the trials have a result."""
        return self._number - len(self._open)

    def most_left(self) -> tuple[int, int]:
        """Return how many trials are open, as those that are no baseline."""
        return 0, len(self._open)

    def max_trials(self) -> int:
        """Return the length of the list."""
        return self._number
