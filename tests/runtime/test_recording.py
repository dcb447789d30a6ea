"""Recorded as needed: a sweep with learned subspaces from its file to its rows, in this process."""

import pytest

from distsub.config import load_sweep, parse_sweep
from distsub.errors import ConfigError, DimensionError, TrajectoryError
from distsub.finetune import pretrained, trajectory
from distsub.results import Store
from distsub.runtime import launch, planning, recording

METHODS = """methods = [
  "random_matched",
  { name = "intrinsic", etas = [1.0] },
  { name = "intrinsic", training = "zhang2023" },
  "freeze",
]"""


def learned(text: str, methods: str = METHODS, every: int = 20) -> str:
    text = text.replace('methods = ["said", "did"]', methods).replace("seeds = 2", "seeds = 1")
    text = text.replace("dims = [8, 16, 64, 256]", "dims = [2]").replace("[1e-3, 3e-3]", "[3e-3]")
    return text + f'\n[trajectory]\nevery = {every}\nlearning_rate = 3e-3\ndtype = "float32"\n'


@pytest.fixture
def sweep(tiny_text, tmp_path):
    return parse_sweep(learned(tiny_text).replace("etas = [1.0, 3.0]", "etas = [1.0]"), tmp_path)


@pytest.fixture
def store(sweep, tmp_path):
    return Store.create(tmp_path / "out", sweep.text, sweep.fingerprint, str(tmp_path))


def test_a_sweep_records_what_it_needs_once(sweep, store):
    launch.check(sweep)
    assert launch.run(sweep, store, "inline", plain=True) == 0
    rows = {row.trial.method.variant or row.trial.method.name: row for row in store.read()}
    [needed] = sweep.recordings()
    assert {"random_matched", "intrinsic", "intrinsic zhang2023", "freeze", "full"} == set(rows)
    assert rows["intrinsic"].num_trained == 2 * rows["intrinsic"].trial.d and rows["intrinsic"].num_trained_head == 66
    assert rows["intrinsic zhang2023"].num_trained == 32 * rows["intrinsic zhang2023"].trial.d
    assert rows["intrinsic zhang2023"].step_size == 0.01
    assert rows["freeze"].num_trained == 0 and rows["freeze"].num_trained_head == 66
    table = store.table().to_pylist()
    assert {row["d"] for row in table if row["variant"] == "freeze"} == {0}
    assert {tuple(row["trajectories"]) for row in table if row["variant"] == "intrinsic"} == {(needed.id,)}
    # The learned subspace holds what full fine-tuning found, so training in it does at least nearly as well.
    assert rows["intrinsic"].score > rows["intrinsic"].chance + 0.5 * (rows["full"].score - rows["full"].chance)
    folder = trajectory.directory(store.files.root, needed)
    stamps = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    assert list(recording.record_all(sweep, store)) == [(needed, False)]
    assert {file: file.stat().st_mtime_ns for file in folder.iterdir()} == stamps
    adapter = store.files.path(f"adapters/{rows['intrinsic'].trial.id}")
    assert pretrained.load_adapter(adapter).num_trained == rows["intrinsic"].num_trained
    [line] = recording.listing((needed,), store).to_pylist()
    assert (line["checkpoints"], line["steps"], line["score"]) == (2, 40, rows["full"].score)
    (folder / "step-000020.safetensors").write_bytes(b"")
    assert list(recording.record_all(sweep, store)) == [(needed, True)]
    (folder / "trajectory.json").unlink()
    with pytest.raises(TrajectoryError, match="no trajectory in"):
        pretrained.load_adapter(adapter)


def test_the_plan_counts_them(sweep):
    searches, totals = planning.plan(sweep, slots=1)
    last = totals.to_pylist()[-1]
    params = max(row["D"] for row in searches.to_pylist())
    assert last["total"].startswith("trajectories") and last["trials"] == 1 and last["steps"] == 40
    assert last["result_bytes"] > 2 * 4 * params


@pytest.mark.parametrize(
    ("methods", "every", "error", "message"),
    [
        ('methods = [{ name = "intrinsic", dims = [3] }]', 20, DimensionError, "d = 3 is above the 2 directions"),
        ('methods = [{ name = "intrinsic", mode = "centered" }]', 20, DimensionError, "d = 2 is above the 1"),
        (
            'methods = [{ name = "intrinsic", mode = "centered", dims = [1] }]',
            40,
            DimensionError,
            "no direction with one",
        ),
        ('methods = [{ name = "intrinsic", first = 9 }]', 20, TrajectoryError, "first = 9.*has 2 checkpoints"),
        ('methods = ["intrinsic"]', 50, TrajectoryError, "gives 0 checkpoints"),
        ('methods = [{ name = "random", head = "in_subspace" }]', 20, ConfigError, "lies in none"),
        ('methods = [{ name = "intrinsic", head = "in_subspace" }]', 20, ConfigError, "lies in none"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_spent(tiny_text, tmp_path, methods, every, error, message):
    with pytest.raises(error, match=message):
        launch.check(parse_sweep(learned(tiny_text, methods, every), tmp_path))


def test_nothing_to_record(tiny_sweep, tmp_path):
    sweep = load_sweep(tiny_sweep)
    store = Store.create(tmp_path / "out", sweep.text, sweep.fingerprint, str(tmp_path))
    with pytest.raises(ConfigError, match="nothing to record"):
        list(recording.record_all(sweep, store))


def test_one_that_diverged_is_not_trained_again_for_every_trial(sweep, tmp_path, store, monkeypatch):
    text = sweep.text.replace("learning_rate = 3e-3\ndtype", "learning_rate = 1e20\ndtype")
    [needed] = parse_sweep(text, tmp_path).recordings()
    for again in (False, True):
        if again:
            monkeypatch.setattr(trajectory, "record", lambda *_: pytest.fail("trained again"))
        with pytest.raises(TrajectoryError, match=r"diverged at learning rate 1e\+20; lower \[trajectory\]"):
            list(recording.ensure(needed, store))


def test_a_store_elsewhere_gets_and_gives_the_files(sweep, store, tmp_path, monkeypatch):
    [needed] = sweep.recordings()
    monkeypatch.setattr(type(store.files), "is_local", False)
    for _ in recording.ensure(needed, store):
        pass
    here = trajectory.directory(recording.root_of(store), needed)
    there = tmp_path / "out" / "trajectories" / needed.id
    assert here != there and {file.name for file in here.iterdir()} == {file.name for file in there.iterdir()}
    for file in here.iterdir():
        file.unlink()
    assert list(recording.ensure(needed, store)) == [] and trajectory.is_complete(here)
