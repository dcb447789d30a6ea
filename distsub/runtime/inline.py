"""Run a sweep in this process, one trial after the other: a debugger works, and an error has its real stack."""

from collections.abc import Callable
from dataclasses import replace

from distsub.config.sweep import Resources
from distsub.errors import OutOfMemoryError, OutputError
from distsub.finetune.train import Stopped
from distsub.records import Observation, Trial
from distsub.results import Store
from distsub.runtime.drain import Drain
from distsub.runtime.progress import Reporter
from distsub.runtime.resume import StartedTrials
from distsub.runtime.worker import WorkerConfig, failed, perform
from distsub.search import TrialQueue


def run(
    queue: TrialQueue,
    store: Store,
    config: WorkerConfig,
    reporter: Reporter,
    drain: Drain,
    resources: Resources,
    perform_one: Callable[[Trial], Observation] | None = None,
) -> None:
    """Run until no search wants another trial, or until asked to end.

    A trial writes its row itself; the store takes those of errors. `perform_one` replaces the training in tests.
    """
    started = StartedTrials(store)

    def train(trial: Trial) -> Observation:
        def report(step: int, steps: int) -> bool:
            reporter.stepped(trial, step, steps)
            return drain.asked

        own = replace(config.within(resources.of(trial).cpus_per_trial), resumes=started.note(trial))
        return perform(trial, own, report)

    while not drain.asked and (trial := queue.next(set(), 1)) is not None:
        reporter.started(trial)
        try:
            observation = _attempt(trial, perform_one or train, store, reporter, resources.retries)
        except Stopped:
            return
        queue.observe(observation)
        reporter.ended(observation)


def _attempt(
    trial: Trial, train: Callable[[Trial], Observation], store: Store, reporter: Reporter, retries: int
) -> Observation:
    """Train a trial, again after a crash; then record the error."""
    attempt = 0
    while True:
        try:
            return train(trial)
        except (OutputError, Stopped):
            raise  # after an OutputError no other trial could be recorded either
        except Exception as error:
            observation = failed(trial, error)
            if attempt == retries or isinstance(error, OutOfMemoryError):  # which would be so again
                store.write(observation)
                return observation
        attempt += 1
        reporter.crashed(trial, observation.error or "")
