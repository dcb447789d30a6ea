"""Why trials of a Tune run failed, for their rows."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from distsub.runtime import cluster  # isort: skip  # sets Ray's environment before Ray is imported

from ray import tune

DIED = "the trial's process died"
"""Said where nothing else is known."""


class CrashLog(cluster.DriverOnly, tune.Callback):
    """Keeps what a failed trial raised, for its row; the searcher is told only that it failed."""

    def __init__(self) -> None:
        self._reasons: dict[str, str] = {}
        self.began: set[str] = set()
        self.on_crash: Callable[[str, str], None] = lambda trial_id, reason: None
        self.starts: Callable[[str], None] = lambda trial_id: None

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Note that a process has taken a trial on."""
        self.began.add(trial.trial_id)
        self.starts(trial.trial_id)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Note why a trial that will be tried again failed, and that it may have left a checkpoint."""
        self.note(trial)
        trial.config["resumes"] = True
        self.began.discard(trial.trial_id)
        self.on_crash(trial.trial_id, self.reason(trial.trial_id))

    def reason(self, trial_id: str) -> str:
        """Say why a trial failed last."""
        return self._reasons.get(trial_id, DIED)

    def note(self, trial: Any) -> None:
        """Read what a trial raised from the file that Tune has just written; `trial.get_error` looks at its copy."""
        with contextlib.suppress(Exception):  # an exception in a callback would end the whole run
            latest = Path(trial.error_file).read_text().rpartition("Failure # ")[2]
            last = [line for line in latest.splitlines() if line and not line[0].isspace()][-1]
            self._reasons[trial.trial_id] = DIED if last.startswith("The actor") else last
