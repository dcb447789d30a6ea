"""Run a sweep on Ray Tune: one Tuner and one searcher for all searches, actors that are reused between trials."""

import signal
import tempfile
import threading
import time
from collections import Counter
from typing import Any

from distsub.runtime.connect import connect  # isort: skip  # sets Ray's environment before Ray is imported

import ray
from ray import tune
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from distsub.config.sweep import Resources
from distsub.results import Store
from distsub.runtime import cluster
from distsub.runtime.crashes import CrashLog
from distsub.runtime.drain import Drain
from distsub.runtime.metrics import Gauges
from distsub.runtime.progress import Reporter
from distsub.runtime.searcher import QueueSearcher
from distsub.runtime.trainable import TrainTrial
from distsub.runtime.worker import WorkerConfig
from distsub.search import TrialQueue


class CancelUnwanted(cluster.DriverOnly, FIFOScheduler):
    """Stops a running trial, when it next reports, if no search wants its result any more; leaves pending ones."""

    def __init__(self, searcher: QueueSearcher) -> None:
        super().__init__()
        self._searcher = searcher
        self._busy_at = time.monotonic()

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        """Choose in order; when there is long nothing to start, let go of the process that waits for a next trial."""
        if self._searcher.moved:  # before Tune gives the process on a node that goes another trial
            self._searcher.moved = False
            cluster.release_idle(tune_controller)
        chosen = super().choose_trial_to_run(tune_controller)
        now = time.monotonic()
        if chosen is not None:
            self._busy_at = now
        elif now - self._busy_at > cluster.IDLE_S:
            self._busy_at = now
            cluster.release_idle(tune_controller)
        return chosen

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """Note why a trial failed for good, before the searcher hears that it did."""
        super().on_trial_error(tune_controller, trial)
        self._searcher.crashes.note(trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Stop or go on."""
        wanted = result.get("final") or self._searcher.is_wanted(trial.trial_id)
        return TrialScheduler.CONTINUE if wanted else TrialScheduler.STOP


def run(
    queue: TrialQueue, store: Store, config: WorkerConfig, reporter: Reporter, drain: Drain, resources: Resources
) -> None:
    """Run until no search wants another trial, or until interrupted or asked to end.

    Ray ends a whole run when its memory monitor kills an actor (RuntimeError, "Caught unexpected exception"). The
    queue knows all results, so the run goes on with a fresh connection; a trial that was in flight too often when
    that happened is recorded as an error.

    Raises:
        ConfigError: The cluster can never run a trial.
        Exception: What the queue or the reporter raised, once the run is over.
    """
    drain.interrupts = True
    losses: Counter[str] = Counter()
    while not drain.asked:
        crashes = CrashLog()
        searcher = QueueSearcher(queue, store, reporter, crashes, losses, resources)
        reporter.line("ray      connecting")
        try:
            with (
                connect(lambda text: reporter.line(f"ray      {text}")),
                tempfile.TemporaryDirectory(prefix="distsub-tune-") as folder,
            ):
                drain.listen()
                watchers = [crashes, cluster.Watch(resources, reporter.line), Gauges(reporter, store.uri)]
                _fit(searcher, config, watchers, resources, folder)
            if searcher.broken is not None:
                raise searcher.broken
            return
        except RuntimeError as error:
            if "Caught unexpected exception" not in str(error) or ray.is_initialized():
                raise
            reason = str(error).splitlines()[0].removeprefix("Caught unexpected exception: ")
            searcher.lose_all(reason)


def _fit(
    searcher: QueueSearcher, config: WorkerConfig, watchers: list[tune.Callback], resources: Resources, folder: str
) -> None:
    """Run one Tuner to its end."""
    searcher.slots = searcher.reporter.progress.slots = cluster.slots(resources, searcher.demand)
    tuner = tune.Tuner(
        tune.with_resources(
            tune.with_parameters(TrainTrial, worker=config),
            lambda trial: tune.PlacementGroupFactory([trial["needs"]]),
        ),
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=CancelUnwanted(searcher),
            num_samples=-1,
            max_concurrent_trials=searcher.slots,
            reuse_actors=True,
            trial_dirname_creator=lambda trial: trial.trial_id,  # by default a name made of all that is in the config
        ),
        run_config=tune.RunConfig(
            storage_path=folder,
            name="sweep",
            verbose=0,
            callbacks=watchers,
            failure_config=tune.FailureConfig(max_failures=resources.retries),
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
        ),
    )
    former = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGUSR1)}
    try:
        tuner.fit()
    finally:  # Tune leaves handlers behind, which swallow the next Ctrl-C
        if threading.current_thread() is threading.main_thread():
            for number, handler in former.items():
                signal.signal(number, handler)
