"""Run a sweep in this process, one trial after the other: a debugger works, and an error has its real stack."""

from collections.abc import Callable

from distsub.errors import OutputError
from distsub.finetune.train import Progress, failed
from distsub.results import Store
from distsub.runtime.progress import Reporter
from distsub.runtime.worker import Place, perform
from distsub.search import Board
from distsub.search.stopping import Rule, Rules
from distsub.trial import Observation, Trial


def run(
    board: Board,
    store: Store,
    place: Place,
    reporter: Reporter,
    rules: Rules,
    retries: int = 0,
    perform_one: Callable[[Trial], Observation] | None = None,
) -> None:
    """Run until no search wants another trial.

    Args:
        board: The searches, with what is known already.
        store: Where errors are recorded; results are written by the trial itself.
        place: Where trials run.
        reporter: Told of every step and result.
        rules: Which trials end early.
        retries: Further attempts after a crash.
        perform_one: Replaces the training; for tests of the loop.
    """
    while (trial := board.next(set(), 1)) is not None:
        reporter.started(trial)
        rule = rules.rule(trial)
        observation = perform_one(trial) if perform_one else _attempts(trial, rule, store, place, reporter, retries)
        rules.observe(observation)
        board.observe(observation)
        reporter.ended(observation)


def _attempts(
    trial: Trial, rule: Rule | None, store: Store, place: Place, reporter: Reporter, retries: int
) -> Observation:
    """Train a trial, again after a crash; then record the error."""
    attempt = 0
    while True:
        try:
            steps = perform(trial, place, rule)
            while True:
                try:
                    progress: Progress = next(steps)
                except StopIteration as end:
                    return end.value
                reporter.stepped(trial, progress.step, progress.steps)
        except OutputError:
            raise  # no other trial could be recorded either
        except Exception as error:
            observation = failed(trial, error)
            if attempt == retries:
                store.write(observation)
                return observation
            attempt += 1
            reporter.crashed(trial, observation.error or "")
