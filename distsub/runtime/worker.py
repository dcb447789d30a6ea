"""One trial in the process that runs it: train, save the adapter, write the row.

Every backend ends here, so that a trial leaves the same row wherever it ran. The row is written before its result is
returned, so a driver that sees a result finds it in the table.
"""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from distsub import paths
from distsub.adapters import peft_files
from distsub.cache import remembered
from distsub.errors import DistsubError, OutOfMemoryError, OutputError, first_line
from distsub.finetune import ablate, memory
from distsub.finetune.train import Observer, Progress, Report, Training, train
from distsub.records import Observation, Peft, Recording, Searched, TrainedOn, Trial
from distsub.records.places import Places
from distsub.results import Store
from distsub.runtime.recording import Trajectories
from distsub.runtime.resume import EVERY_S, ResumeFile
from distsub.subspace.model import SubspaceModel

REPORTED = ("status", "score", "chance", "error", "wall_s", "num_tokens", "num_examples", "curve")
"""What the driver hears of a row, as a list: of every number beside it Tune would keep five averages."""


@dataclass(frozen=True)
class WorkerConfig:
    """Where and how a trial runs, and where it leaves its row.

    Attributes:
        out: Results directory, an absolute path or a URI.
        rows: The folder in it where rows go.
        device: "cpu" or "cuda".
        gpu_share: Of a GPU's memory that others share, at most 1.
        threads: CPU threads of the training; part of what makes it repeatable to the last bit.
        adapters: Whether subspace trials that have a score leave their adapter in adapters/<trial id>/.
        checkpoint_s: Seconds between resume states of a training; None writes none.
        resumes: Whether an earlier attempt may have left a resume state, so that one is looked for.
        recordings: By the id of a full fine-tuning, how its trajectory is recorded while it is trained: what
            `Recording` takes beside the trial.
        places: Where models and data lie.
        inputs: Whether those that do not lie there are taken from the inputs among the results.
    """

    out: str
    rows: str = paths.ROWS
    device: str = "cpu"
    gpu_share: float = 1.0
    threads: int = 1
    adapters: bool = True
    checkpoint_s: float | None = EVERY_S
    resumes: bool = True
    recordings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    places: Places = field(default_factory=Places)
    inputs: bool = True

    def within(self, cpus: float) -> "WorkerConfig":
        """Return the configuration of a trial that has so many cores."""
        return replace(self, threads=max(1, int(cpus)))


def perform(trial: Trial, config: WorkerConfig, report: Report | None = None) -> Observation:
    """Train a trial, whose contents lie at its addresses or among the results, and write its row.

    However it ends, it leaves no memory behind. `report` is told of every step; asked to stop, the training leaves no
    row, but a resume state.

    Raises:
        Stopped: As `report` asked.
        OutOfMemoryError: It takes more memory than there is; says what to lower.
        DistsubError: The trial cannot be run, or its row not written.
    """
    memory.bound(config.device, config.gpu_share)
    try:
        return _perform(trial, config, report or (lambda step, steps: None))
    except (MemoryError, RuntimeError) as error:
        if not memory.is_shortage(error):
            raise
        advice = memory.advice(trial, config.device, config.gpu_share, error)
    finally:
        memory.release()
    raise OutOfMemoryError(advice)  # here, where nothing holds the stack of what was raised, and the model in it


def _perform(trial: Trial, config: WorkerConfig, report: Report) -> Observation:
    torch.set_num_threads(config.threads)
    store = _store(config.out) if "://" in config.out else Store.open(config.out)
    store.folder = config.rows
    trial = config.places.locate_trial(store.places.locate_trial(trial))
    trajectories = Trajectories(store, config.device, config.checkpoint_s, report, config.inputs)
    inputs = trajectories.provide(trial)
    if (how := config.recordings.get(trial.id)) is not None:
        row = trajectories.record(Recording(trial, **how))
        row = row or next((row for row in store.read() if row.trial.id == trial.id), None)
        if row is not None:
            return row
    resume = ResumeFile(store.files, trial, config.checkpoint_s)
    if config.resumes:
        resume.read()
    observers: list[Observer] = [resume, Progress(report)]
    if config.adapters and isinstance(trial.method, Searched):
        observers.append(SaveAdapter(store, trial))
    if trial.ablation is not None:
        observers.insert(0, ablate.WeightEdit.read(trial.ablation, store.files))
    observation = train(trial, observers, config.device, inputs)
    store.write(observation)
    resume.remove()
    return observation


@lru_cache(maxsize=1)
def _store(out: str) -> Store:
    """Open the results on an object store once per process: what says that they are some never changes."""
    return Store.open(out)


def failed(trial: Trial, error: BaseException) -> Observation:
    """Record a trial that crashed: one line of why, and no score."""
    kind = "" if isinstance(error, DistsubError) else f"{type(error).__name__}: "
    text = str(error).strip().splitlines()
    return Observation(trial=trial, status="error", error=(kind + (text[0] if text else "no message"))[:500])


class SaveAdapter(Observer):
    """Leaves the trained numbers under adapters/<trial id>/ of the results, if the trial has a score."""

    def __init__(self, store: Store, trial: Trial) -> None:
        self._store, self._trial = store, trial

    def on_end(self, training: Training, observation: Observation | None) -> None:
        """Save the adapter.

        Raises:
            OutputError: It cannot be written.
        """
        if observation is None or observation.score is None:
            return
        model, trial, store = training.model, self._trial, self._store
        splits, precision = training.inputs.splits, dict(observation.provenance)["precision"]
        task, trained_on = splits.task, TrainedOn.of(splits.task, trial.budget, precision, splits.train.scale)
        with tempfile.TemporaryDirectory() as folder:
            if isinstance(trial.method, Peft):
                sha256 = training.inputs.model.sha256
                peft_files.save(Path(folder), model, trial, sha256, task.num_labels, trained_on)
            else:
                assert isinstance(model, SubspaceModel)
                model.save_pretrained(
                    folder,
                    base_model=trial.model.name,
                    revision=trial.model.revision,
                    head_seed=trial.seeds.head,
                    head_from=trial.model.head_from,
                    task=trial.task.name,
                    trained_on=trained_on,
                    base_content=trial.model.content,
                    **({"remember": remembered} if trial.model.content else {}),
                )
            target = paths.adapter(trial.id)
            try:
                store.files.make(target)
                for file in sorted(Path(folder).iterdir()):
                    store.files.put(f"{target}/{file.name}", file.read_bytes())
            except OSError as error:
                raise OutputError(
                    f"cannot write the adapter of trial {trial.id} to {store.uri} ({first_line(error)}); "
                    "fix that and run the same command again, finished trials are kept"
                ) from error
