"""A results directory as an Optuna database, for the tools that read one."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from distsub.errors import OutputError
from distsub.records import Observation, Subspace, Trial, label, sign

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial


def to_optuna(observations: Iterable[Observation], path: str | os.PathLike[str]) -> dict[str, int]:
    """Write rows as Optuna studies into a new SQLite file, one study per task, model and method.

    A training is a trial: d, eta or the learning rate, and the seeds are its parameters, the score its value, each
    evaluation on the way an intermediate value at its step. One that diverged is a failed trial, as is one that ended
    in an error. `optuna-dashboard sqlite:///study.db` opens the file.

    Args:
        observations: Rows, in any order.
        path: Where to write; there must be nothing yet.

    Returns:
        How many trials each study holds, by its name.

    Raises:
        OutputError: There is a file already, there are no rows, or it cannot be written.
    """
    import optuna

    target = Path(path).expanduser()
    if target.exists():
        raise OutputError(f"{target} exists already; give another name")
    studies: dict[str, list[Observation]] = {}
    for observation in sorted(observations, key=lambda observation: observation.trial.id):
        studies.setdefault(_name(observation.trial), []).append(observation)
    if not studies:
        raise OutputError("there are no rows to export yet")
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}-{os.getpid()}")  # whole or not at all
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        storage = optuna.storages.RDBStorage(f"sqlite:///{part}")
        for name, rows in sorted(studies.items()):
            direction = "maximize" if sign(rows[0].trial.task.metric) > 0 else "minimize"
            optuna.create_study(storage=storage, study_name=name, direction=direction).add_trials(_frozen(rows))
        storage.engine.dispose()
        part.rename(target)
    except OSError as error:
        raise OutputError(f"cannot write {target} ({error.strerror}); give a path that you may write") from None
    finally:
        optuna.logging.set_verbosity(verbosity)
        part.unlink(missing_ok=True)
    return {name: len(rows) for name, rows in sorted(studies.items())}


def _name(trial: Trial) -> str:
    method = trial.method
    family = [method.family] if isinstance(method, Subspace) else []
    return f"{trial.task.name} / {trial.model.short_name} / {' '.join([label(method), *family])}"


def _params(trial: Trial) -> dict[str, float]:
    seeds = trial.seeds
    if trial.is_theta_0:
        return {"head_seed": seeds.head}
    params: dict[str, float] = {"head_seed": seeds.head, "data_seed": seeds.data}
    if trial.eta is None or trial.d is None:
        return params | {"learning_rate": trial.learning_rate}
    return params | {"projection_seed": seeds.projection, "d": trial.d, "eta": trial.eta}


def _frozen(rows: Sequence[Observation]) -> "list[FrozenTrial]":
    """Make the trials of one study, whose parameters range over what was tried."""
    from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
    from optuna.trial import TrialState, create_trial

    params = [_params(observation.trial) for observation in rows]
    kinds: dict[str, BaseDistribution] = {}
    for name in params[0]:
        values = [each[name] for each in params]
        if name in ("eta", "learning_rate"):
            kinds[name] = FloatDistribution(min(values), max(values), log=True)
        else:
            kinds[name] = IntDistribution(int(min(values)), int(max(values)), log=name == "d")
    found = []
    for observation, mine in zip(rows, params, strict=True):
        finished = observation.status == "finished" and observation.score is not None
        about = {name: getattr(observation, name) for name in ("status", "error", "chance", "num_trained", "wall_s")}
        about |= {"trial_id": observation.trial.id, "metric": observation.trial.task.metric}
        found.append(
            create_trial(
                state=TrialState.COMPLETE if finished else TrialState.FAIL,
                value=observation.score if finished else None,
                params=mine,
                distributions=kinds,
                intermediate_values=dict(observation.curve),
                user_attrs=about,
            )
        )
    return found
