"""Run a sweep in this process, one trial after the other: a debugger works, and an error has its real stack."""

from collections.abc import Callable, Generator
from dataclasses import replace

from distsub.config.sweep import Resources
from distsub.errors import OutOfMemoryError, OutputError
from distsub.finetune.train import Progress, failed
from distsub.records import Observation, Trial
from distsub.results import Store
from distsub.runtime.checkpoints import Begun
from distsub.runtime.drain import Drain
from distsub.runtime.progress import Reporter
from distsub.runtime.worker import Place, perform
from distsub.search import Board


def run(
    board: Board,
    store: Store,
    place: Place,
    reporter: Reporter,
    drain: Drain,
    resources: Resources,
    perform_one: Callable[[Trial], Observation] | None = None,
) -> None:
    """Run until no search wants another trial, or until asked to end.

    Args:
        board: The searches, with what is known already.
        store: Where errors are recorded; results are written by the trial itself.
        place: Where trials run.
        reporter: Receives every step and result.
        drain: Whether to end before that.
        resources: What a trial occupies, and its further attempts after a crash; on a GPU it is alone.
        perform_one: Replaces the training; for tests of the loop.
    """
    begun = Begun(store)
    while not drain.asked and (trial := board.next(set(), 1)) is not None:
        reporter.started(trial)

        def training(trial: Trial = trial) -> Generator[Progress, None, Observation]:
            return perform(trial, replace(place.within(resources.of(trial).cpus_per_trial), resumes=begun.note(trial)))

        observation = (
            perform_one(trial) if perform_one else _attempts(trial, training, store, reporter, drain, resources.retries)
        )
        if observation is None:
            return
        board.observe(observation)
        reporter.ended(observation)


def _attempts(
    trial: Trial,
    training: Callable[[], Generator[Progress, None, Observation]],
    store: Store,
    reporter: Reporter,
    drain: Drain,
    retries: int,
) -> Observation | None:
    """Train a trial, again after a crash; then record the error. None when asked to end before its end."""
    attempt = 0
    while True:
        try:
            steps = training()
            while True:
                try:
                    progress: Progress = next(steps)
                except StopIteration as end:
                    return end.value
                reporter.stepped(trial, progress.step, progress.steps)
                if drain.asked:
                    steps.close()
                    return None
        except OutputError:
            raise  # no other trial could be recorded either
        except Exception as error:
            observation = failed(trial, error)
            if attempt == retries or isinstance(error, OutOfMemoryError):  # which would be so again
                store.write(observation)
                return observation
            attempt += 1
            reporter.crashed(trial, observation.error or "")
