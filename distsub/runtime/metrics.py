"""What Ray's Prometheus endpoint shows of a sweep while it runs; cluster/grafana.json draws it.

Ray exports each name with "ray_" before it, and counters with "_total" after it. Figures come from the driver, every
few seconds, and cost it nothing that grows with the sweep but one look at the list of trials.
"""

import contextlib
import math
import time
from collections.abc import Iterable
from typing import Any

from distsub.runtime import cluster  # isort: skip  # sets Ray's environment before Ray is imported

from ray import tune
from ray.util import metrics

from distsub.runtime.progress import Reporter
from distsub.runtime.worker import REPORTED
from distsub.search import Finding

EVERY_S = 5.0
"""Seconds between two looks at searches and pending trials."""

GAUGES = {
    "distsub_searches_open": "Searches that want more trials.",
    "distsub_searches_found": "Searches that have found the first passing d.",
    "distsub_trials_running": "Trials that hold their resources and train.",
    "distsub_trials_waiting": "Trials handed to Ray that wait for a free slot or a new node.",
    "distsub_bracket_log10": "Mean over searches with both ends of log10(smallest d passed / largest d failed).",
}
COUNTERS = {
    "distsub_trials": "Trials that ended, by status: finished, diverged, error, cancelled, retried.",
    "distsub_seconds": "Seconds of slots, by what became of the trial: a status as above; cancelled is speculation.",
    "distsub_tokens": "Training tokens of trials that gave a row, by status.",
}


def mean_log10(findings: Iterable[Finding]) -> float:
    """Average the width of the brackets that have two ends; 0 when none has."""
    widths = [abs(math.log10(high / low)) for low, high in (f.bracket for f in findings) if low and high]
    return sum(widths) / len(widths) if widths else 0.0


class Gauges(cluster.DriverOnly, tune.Callback):
    """Keeps the figures, which `out` labels, up to date; Ray must be connected."""

    def __init__(self, reporter: Reporter, out: str) -> None:
        self._reporter = reporter
        self._gauges = {key: metrics.Gauge(key, text, ("out",)) for key, text in GAUGES.items()}
        self._counters = {key: metrics.Counter(key, text, ("out", "status")) for key, text in COUNTERS.items()}
        for figure in (*self._gauges.values(), *self._counters.values()):
            figure.set_default_tags({"out": out})
        self._began: dict[str, float] = {}
        self._again = 0.0

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Note when a trial began to train."""
        self._began[trial.trial_id] = time.monotonic()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Count a trial that gave a row, or was stopped before it could."""
        result = trial.last_result or {}
        if result.get("final"):
            row = dict(zip(REPORTED, result["reported"], strict=True))
            self._ended(trial, row["status"], row["num_tokens"])
        else:
            self._ended(trial, "retried" if result.get("moved") or result.get("short") else "cancelled")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Count a trial that failed for good."""
        self._ended(trial, "error")

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Count a try that was lost."""
        self._ended(trial, "retried")

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Look at the searches, seldom."""
        now = time.monotonic()
        if now < self._again:
            return
        self._again = now + EVERY_S
        with contextlib.suppress(Exception):  # an exception in a callback would end the whole run
            found = self._reporter.findings()
            self._gauges["distsub_searches_open"].set(sum(not f.outcome.is_over for f in found))
            self._gauges["distsub_searches_found"].set(sum(f.d is not None for f in found))
            self._gauges["distsub_bracket_log10"].set(mean_log10(found))
            self._gauges["distsub_trials_running"].set(len(self._began))
            self._gauges["distsub_trials_waiting"].set(sum(trial.status == "PENDING" for trial in trials))

    def _ended(self, trial: Any, status: str, num_tokens: int = 0) -> None:
        seconds = time.monotonic() - self._began.pop(trial.trial_id, time.monotonic())
        with contextlib.suppress(Exception):
            for name, amount in zip(COUNTERS, (1, seconds, num_tokens), strict=True):
                if amount > 0:
                    self._counters[name].inc(amount, {"status": status})
