"""Rows as an Optuna database: Optuna itself reads it, and finds every number where its users look for it."""

import optuna
import pytest

from distsub.errors import OutputError
from distsub.records import Budget, Full, Model, Observation, Random, Seeds, Setup, Subspace, Task, Trial
from distsub.results.export import to_optuna

TASK = Task("toy", "toy", ("text",))
SUBSPACE = Trial(
    Setup(Model("org/tiny"), TASK, Subspace(Random("partition")), 0.001, Budget(steps=9), Seeds(2, 3, 4)), 16, 0.3
)
FULL = SUBSPACE.vary(method=Full(), d=None, eta=None, seeds=Seeds(0, 3, 4))


def rows():
    for d in (16, 64):
        for eta in (0.1, 0.3):
            trial = SUBSPACE.vary(d=d, eta=eta)
            yield Observation(
                trial, "finished", score=0.5 + d / 1000, chance=0.5, curve=((3, 0.4), (9, 0.5)), wall_s=2.0
            )
    yield Observation(SUBSPACE.vary(d=128), "diverged", error="the loss is not finite")
    yield Observation(SUBSPACE.vary(d=256), "error", error="no memory")
    yield Observation(FULL, "finished", score=0.9)


@pytest.mark.parametrize("metric, best", [("nll", 0.2), ("exact_match", 0.9)])
def test_a_study_knows_which_way_its_metric_is_better(tmp_path, metric, best):
    task = Task("c", "c", ("p",), "q", num_labels=0, metric=metric, max_new_tokens=4 if metric != "nll" else None)
    setup = Setup(Model("m"), task, Subspace(), 1e-3, Budget(steps=1))
    given = [Observation(Trial(setup, d, 1.0), "finished", score) for d, score in ((1, 0.2), (2, 0.9))]
    to_optuna(given, tmp_path / "studies.db")
    storage = f"sqlite:///{tmp_path / 'studies.db'}"
    [name] = optuna.get_all_study_names(storage)
    assert optuna.load_study(study_name=name, storage=storage).best_value == best


def test_optuna_reads_every_row(tmp_path):
    path = tmp_path / "new" / "study.db"
    assert to_optuna(rows(), path) == {"toy / tiny / did partition": 6, "toy / tiny / full": 1}
    storage = f"sqlite:///{path}"
    assert optuna.get_all_study_names(storage) == ["toy / tiny / did partition", "toy / tiny / full"]
    study = optuna.load_study(study_name="toy / tiny / did partition", storage=storage)
    assert study.best_value == 0.5 + 64 / 1000 and study.best_params["d"] == 64
    by_id = {each.user_attrs["trial_id"]: each for each in study.trials}
    for row in rows():
        if row.trial.d is None:
            continue
        found = by_id[row.trial.id]
        assert found.params == {
            "d": row.trial.d,
            "eta": row.trial.eta,
            "projection_seed": 2,
            "head_seed": 3,
            "data_seed": 4,
        }
        assert (found.value, found.intermediate_values) == (row.score, dict(row.curve))
        assert found.user_attrs["status"] == row.status and found.user_attrs["error"] == row.error
        assert (found.state is optuna.trial.TrialState.COMPLETE) is (row.status == "finished")
    full = optuna.load_study(study_name="toy / tiny / full", storage=storage)
    assert full.best_params == {"learning_rate": 1e-3, "head_seed": 3, "data_seed": 4}
    assert optuna.importance.get_param_importances(study)  # as the dashboard does


def test_the_order_of_rows_changes_nothing(tmp_path):
    for name, given in (("a", list(rows())), ("b", list(rows())[::-1])):
        to_optuna(given, tmp_path / name)
    one, other = (
        [
            each.params
            for each in optuna.load_study(
                study_name="toy / tiny / did partition", storage=f"sqlite:///{tmp_path / n}"
            ).trials
        ]
        for n in "ab"
    )
    assert one == other


def test_nothing_is_overwritten_and_nothing_half_written_stays(tmp_path):
    path = tmp_path / "study.db"
    path.write_text("mine")
    with pytest.raises(OutputError, match="exists already"):
        to_optuna(rows(), path)
    with pytest.raises(OutputError, match="no rows"):
        to_optuna([], tmp_path / "other.db")
    assert [each.name for each in tmp_path.iterdir()] == ["study.db"] and path.read_text() == "mine"
