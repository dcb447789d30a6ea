"""A Tune searcher that only translates between Tune and the queue.

It accepts a verdict only from a result flagged final, since Tune reports a trial that was stopped exactly like one that
finished; and it never raises, since an exception in it would end the whole run.
"""

import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from distsub.runtime import cluster  # isort: skip  # sets Ray's environment before Ray is imported

from ray.tune.search import Searcher

from distsub.config.sweep import Resources
from distsub.errors import DistsubError, OutputError
from distsub.records import Observation, Trial
from distsub.results import Store
from distsub.runtime.crashes import CrashLog
from distsub.runtime.progress import Reporter
from distsub.runtime.resume import StartedTrials
from distsub.runtime.worker import REPORTED, failed
from distsub.search import TrialQueue


class QueueSearcher(cluster.DriverOnly, Searcher):
    """Translates between Tune and the queue."""

    def __init__(
        self,
        queue: TrialQueue,
        store: Store,
        reporter: Reporter,
        crashes: CrashLog,
        losses: Counter[str],
        resources: Resources,
    ) -> None:
        """Serve a queue's trials; `losses` counts, by trial, those that Tune does not."""
        super().__init__(metric="score", mode="max")
        self._queue, self._store, self.reporter = queue, store, reporter
        self.crashes, self._losses, self._resources = crashes, losses, resources
        self._started_trials, self._alone = StartedTrials(store), set[str]()
        self.slots = 1
        self.moved = False
        crashes.on_crash, crashes.starts = self._crashed, self._started
        self.running: dict[str, Trial] = {}
        self.broken: Exception | None = None

    @property
    def demand(self) -> int:
        """How many trials the searches would run at once, before any runs ahead of what it knows."""
        return len(self._queue.wanted())

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        """Keep what goes wrong for after the run: Tune would leave actors and trials behind."""
        try:
            yield
        except Exception as error:
            self.broken = self.broken or error

    def suggest(self, trial_id: str) -> Any:
        """Give Tune the next trial, nothing for now, or the end."""
        with self._guarded():
            if self.broken is None:
                return self._suggest(trial_id)
        return Searcher.FINISHED

    def _suggest(self, trial_id: str) -> Any:
        trial = self._queue.next({trial.id for trial in self.running.values()}, self.slots)
        if trial is None:
            return Searcher.FINISHED if not self.running and self._queue.finished else None
        self.reporter.progress.hand_out(trial)
        self.running[trial_id] = trial
        needs = self._resources.of(trial)
        if trial.id in self._alone:
            needs = replace(needs, gpus_per_trial=1.0)
        return {
            "setup": trial.setup.identity,
            "d": trial.d,
            "eta": trial.eta,
            "resumes": self._started_trials.note(trial),
            "needs": {"CPU": needs.cpus_per_trial, "GPU": needs.gpus_per_trial},
        }

    def is_wanted(self, trial_id: str) -> bool:
        """Tell whether some search still wants a running trial's result."""
        trial = self.running.get(trial_id)
        with self._guarded():
            return self.broken is None and (trial is None or trial.id in self._queue.wanted())
        return False

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Show how far a trial is."""
        trial = self.running.get(trial_id)
        if trial is not None and not result.get("final"):
            with self._guarded():
                self.reporter.stepped(trial, result.get("at_step", 0), result.get("of_steps", trial.budget.steps))

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell the queue of a verdict; a trial that was stopped has none."""
        with self._guarded():
            self._complete(trial_id, result, error)

    def _complete(self, trial_id: str, result: dict[str, Any] | None, error: bool) -> None:
        trial = self.running.pop(trial_id, None)
        if trial is None:
            return
        if error:
            reason = self.crashes.reason(trial_id)
            if self._lose(trial, reason, began=trial_id in self.crashes.began):
                self.reporter.crashed(trial, reason)
            return
        if result and result.get("moved"):
            self.moved = True
            self.reporter.crashed(trial, "its node is about to go; it starts on another")
            return
        if result and (short := result.get("short")):
            # In its share of a GPU, perhaps; it is tried once more with a whole one, where others take nothing from it.
            if self._resources.of(trial).gpus_per_trial == 1 or trial.id in self._alone:
                self._fail(trial, short)
            else:
                self._alone.add(trial.id)
                self.reporter.crashed(trial, f"{short}; tried once more, alone on a GPU")
            return
        if result and result.get("final"):
            observation = Observation(trial, **dict(zip(REPORTED, result["reported"], strict=True)))
        else:
            self.reporter.cancelled(trial)
            return
        self._queue.observe(observation)
        self.reporter.ended(observation)

    def lose_all(self, reason: str) -> None:
        """Count a loss against every trial in flight; those lost too often end in an error."""
        for trial in self.running.values():
            if self._lose(trial, reason, began=False):
                self.reporter.crashed(trial, reason)
        self.running.clear()

    def _lose(self, trial: Trial, reason: str, began: bool) -> bool:
        """Record the error of a trial that failed too often; else the queue proposes it again, and True comes back.

        Tune counts the failures of trials that ran. One whose process dies before it begins (a reused process that is
        gone, with its node for instance) Tune gives up at once, so such losses are counted here.
        """
        self._losses[trial.id] += not began
        if began or self._losses[trial.id] > self._resources.retries:
            self._fail(trial, reason)
            return False
        return True

    def _fail(self, trial: Trial, reason: str) -> None:
        self._refuse_to_go_on(reason)
        observation = failed(trial, DistsubError(reason))
        self._store.write(observation)
        self._queue.observe(observation)
        self.reporter.ended(observation)

    def _refuse_to_go_on(self, reason: str) -> None:
        """Raise where a trial could not write its row: no other trial could either."""
        _, name, message = reason.partition(f"{OutputError.__name__}: ")
        if name:
            raise OutputError(message)

    def _started(self, trial_id: str) -> None:
        if trial_id in self.running:
            with self._guarded():
                self.reporter.started(self.running[trial_id])

    def _crashed(self, trial_id: str, reason: str) -> None:
        with self._guarded():
            self._refuse_to_go_on(reason)
        if trial_id in self.running:
            self.reporter.crashed(self.running[trial_id], reason)

    def save(self, checkpoint_path: str) -> None:
        """Save nothing: the table of observations is the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Restore nothing."""
