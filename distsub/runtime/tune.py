"""Run a sweep on Ray Tune: one Tuner and one searcher for all searches, actors that are reused between trials.

The searcher only translates between Tune and the board. It accepts a verdict only from a result flagged final, since
Tune reports a trial that was stopped exactly like one that finished; and it never raises, since an exception in it
would end the whole run.
"""

import contextlib
import socket
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from distsub.runtime.connect import connect  # isort: skip  # sets Ray's environment before Ray is imported

import ray
from ray import tune
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from distsub.config.sweep import Resources
from distsub.errors import DataError, DistsubError, OutOfMemoryError, OutputError, UnavailableError
from distsub.finetune.train import failed
from distsub.records import Observation, Trial
from distsub.results import Store
from distsub.results.schema import setup_from_json
from distsub.runtime import cluster
from distsub.runtime.checkpoints import Begun
from distsub.runtime.drain import Drain
from distsub.runtime.metrics import Gauges
from distsub.runtime.progress import Reporter
from distsub.runtime.worker import REPORTED, Place, perform
from distsub.search import Board

STEP_S = 2.0
"""Seconds of training per Tune step: how long a cancelled trial may still run."""

DIED = "the trial's process died"
"""Said where nothing else is known."""


class TrainTrial(tune.Trainable):
    """A Tune trial that trains one of ours; its process is reused for the next."""

    def setup(self, config: dict[str, Any], place: Place) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Start a trial; what is slow about it happens in the first step.

        Args:
            config: The trial: what Tune writes to its files and into every result.
            place: Where it runs, by way of the object store; its address may have credentials.
        """
        self._place = place
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Start another trial in the same process."""
        self._steps.close()
        self._begin(new_config)
        return True

    def _begin(self, config: dict[str, Any]) -> None:
        self._fresh = True
        self.config = {}  # Tune would send it back with every result and keep it twice
        trial, needs = Trial(setup_from_json(config["setup"]), config["d"], config["eta"]), config["needs"]
        self._on_gpu = needs["GPU"] > 0
        place = replace(
            self._place.within(needs["CPU"]), resumes=config["resumes"], gpu_share=needs["GPU"] if self._on_gpu else 1.0
        )
        self._steps = perform(trial, place)

    def step(self) -> dict[str, Any]:
        """Train for a moment; the last result carries the verdict and is flagged final."""
        if self._fresh and cluster.drains():  # nothing is lost yet: hand the trial back, to be started elsewhere
            return {"done": True, "final": False, "moved": True}
        self._fresh = False
        began, progress = time.monotonic(), None
        while time.monotonic() - began < STEP_S:
            try:
                progress = next(self._steps)
            except OutOfMemoryError as error:
                if not self._on_gpu:
                    raise  # of a host's memory others may have had too much: tried again as after any crash
                return {"done": True, "final": False, "short": str(error)}
            except (DataError, UnavailableError) as error:
                raise type(error)(f"node {socket.gethostname()}: {error}") from None
            except StopIteration as end:
                observation: Observation = end.value
                return {"done": True, "final": True, "reported": [getattr(observation, name) for name in REPORTED]}
        assert progress is not None
        return {"final": False, "at_step": progress.step, "of_steps": progress.steps}

    def cleanup(self) -> None:
        """Drop a training that was cancelled."""
        self._steps.close()

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Keep nothing: a trial that is lost runs again."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Restore nothing."""


class BoardSearcher(cluster.DriverOnly, Searcher):
    """Translates between Tune and the board."""

    def __init__(
        self,
        board: Board,
        store: Store,
        reporter: Reporter,
        crashes: "CrashLog",
        losses: Counter[str],
        resources: Resources,
    ) -> None:
        super().__init__(metric="score", mode="max")
        self._board, self._store, self.reporter = board, store, reporter
        self.crashes, self._losses, self._resources = crashes, losses, resources
        self._begun, self._alone = Begun(store), set[str]()
        self.slots = 1
        self.moved = False
        crashes.on_crash, crashes.starts = self._crashed, self._started
        self.running: dict[str, Trial] = {}
        self.broken: Exception | None = None

    @property
    def demand(self) -> int:
        """How many trials the searches would run at once, before any runs ahead of what it knows."""
        return len(self._board.wanted())

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
        trial = self._board.next({trial.id for trial in self.running.values()}, self.slots)
        if trial is None:
            return Searcher.FINISHED if not self.running and self._board.finished else None
        self.reporter.handed_out(trial)
        self.running[trial_id] = trial
        needs = self._resources.of(trial)
        if trial.id in self._alone:
            needs = replace(needs, gpus_per_trial=1.0)
        return {
            "setup": trial.setup.identity,
            "d": trial.d,
            "eta": trial.eta,
            "resumes": self._begun.note(trial),
            "needs": {"CPU": needs.cpus_per_trial, "GPU": needs.gpus_per_trial},
        }

    def is_wanted(self, trial_id: str) -> bool:
        """Tell whether some search still wants a running trial's result."""
        trial = self.running.get(trial_id)
        with self._guarded():
            return self.broken is None and (trial is None or trial.id in self._board.wanted())
        return False

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Show how far a trial is."""
        trial = self.running.get(trial_id)
        if trial is not None and not result.get("final"):
            with self._guarded():
                self.reporter.stepped(trial, result.get("at_step", 0), result.get("of_steps", trial.budget.steps))

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell the board of a verdict; a trial that was stopped has none."""
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
        self._board.observe(observation)
        self.reporter.ended(observation)

    def lose_all(self, reason: str) -> None:
        """Count a loss against every trial in flight; those lost too often end in an error."""
        for trial in self.running.values():
            if self._lose(trial, reason, began=False):
                self.reporter.crashed(trial, reason)
        self.running.clear()

    def _lose(self, trial: Trial, reason: str, began: bool) -> bool:
        """Record the error of a trial that failed too often; else the board proposes it again, and True comes back.

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
        self._board.observe(observation)
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


class CancelUnwanted(cluster.DriverOnly, FIFOScheduler):
    """Stops a running trial, when it next reports, if no search wants its result any more.

    A trial stops itself this way; nothing is done to trials that are pending or do not report.
    """

    def __init__(self, searcher: "BoardSearcher") -> None:
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


def run(board: Board, store: Store, place: Place, reporter: Reporter, drain: Drain, resources: Resources) -> None:
    """Run until no search wants another trial, or until interrupted or asked to end.

    Ray ends a whole run when its memory monitor kills an actor (RuntimeError, "Caught unexpected exception"). The
    board knows all results, so the run goes on with a fresh connection; a trial that was in flight too often when
    that happened is recorded as an error.

    Args:
        board: The searches, with what is known already.
        store: Where errors are recorded; results are written by the trials themselves.
        place: Where trials run.
        reporter: Receives every step and result.
        drain: Whether to end before that.
        resources: What a trial occupies and how many run at once.

    Raises:
        ConfigError: The cluster can never run a trial.
        Exception: What the board or the reporter raised, once the run is over.
    """
    drain.interrupts = True
    losses: Counter[str] = Counter()
    while not drain.asked:
        crashes = CrashLog()
        searcher = BoardSearcher(board, store, reporter, crashes, losses, resources)
        reporter.line("ray      connecting")
        try:
            with (
                connect(lambda text: reporter.line(f"ray      {text}")),
                tempfile.TemporaryDirectory(prefix="distsub-tune-") as folder,
            ):
                drain.listen()
                watchers = [crashes, cluster.Watch(resources, reporter.line), Gauges(reporter, store.uri)]
                _fit(searcher, place, watchers, resources, folder)
            if searcher.broken is not None:
                raise searcher.broken
            return
        except RuntimeError as error:
            if "Caught unexpected exception" not in str(error) or ray.is_initialized():
                raise
            reason = str(error).splitlines()[0].removeprefix("Caught unexpected exception: ")
            searcher.lose_all(reason)


def _fit(
    searcher: "BoardSearcher", place: Place, watchers: list[tune.Callback], resources: Resources, folder: str
) -> None:
    """Run one Tuner to its end."""
    searcher.slots = searcher.reporter.progress.slots = cluster.slots(resources, searcher.demand)
    tuner = tune.Tuner(
        tune.with_resources(
            tune.with_parameters(TrainTrial, place=place),
            lambda config: tune.PlacementGroupFactory([config["needs"]]),
        ),
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=CancelUnwanted(searcher),
            num_samples=-1,
            max_concurrent_trials=searcher.slots,
            reuse_actors=True,
            trial_dirname_creator=_id_of,  # by default a name made of all that is in the config
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
    tuner.fit()


def _id_of(trial: Any) -> str:
    return trial.trial_id
