"""Recorded as needed: a sweep with learned subspaces from its file to its rows, in this process."""

import dataclasses

import pytest

from distsub.adapters import loading
from distsub.api import summary_of
from distsub.cli.shell import unrelated_rows
from distsub.config import load_sweep, parse_sweep
from distsub.errors import ConfigError, DimensionError, TrajectoryError
from distsub.finetune import trajectory
from distsub.finetune.train import Stopped
from distsub.preflight import checks, planning
from distsub.records import label
from distsub.results import Store
from distsub.runtime import launch, recording
from distsub.runtime.worker import WorkerConfig, perform

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


@pytest.fixture(scope="module")
def ran(tiny_text, tmp_path_factory):
    """The sweep, its store, and the trials that were trained while they were recorded."""
    folder, trained, real = tmp_path_factory.mktemp("ran"), [], recording.train
    sweep = parse_sweep(learned(tiny_text).replace("etas = [1.0, 3.0]", "etas = [1.0]"), folder)
    store = Store.create(folder / "out", sweep.text, sweep.fingerprint, str(folder))

    def note(trial, *given, **named):
        trained.append(trial.id)
        return real(trial, *given, **named)

    checks.check(sweep)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recording, "train", note)
        assert launch.run(sweep, store, "inline", plain=True) == 0
    return sweep, store, trained


def test_a_baseline_that_is_recorded_is_trained_once(ran, tmp_path):
    sweep, store, trained = ran
    [needed] = sweep.recordings()
    assert trained == [needed.trial.id]
    [row] = [row for row in store.read() if row.trial == needed.trial]
    [plain] = sweep.searches()[0].baseline
    again = Store.create(tmp_path / "again", sweep.text, sweep.fingerprint, str(tmp_path))
    without = perform(plain, WorkerConfig(again.uri))
    spent = {"wall_s": 0.0, "eval_s": 0.0, "peak_bytes": 0}
    assert dataclasses.replace(row, **spent) == dataclasses.replace(without, **spent)


def test_a_sweep_records_what_it_needs_once(ran):
    sweep, store, _ = ran
    rows = {label(row.trial.method): row for row in store.read()}
    [needed] = sweep.recordings()
    assert {"random_matched", "intrinsic", "intrinsic zhang2023", "freeze", "full"} == set(rows)
    assert rows["intrinsic"].num_trained == 2 * rows["intrinsic"].trial.d and rows["intrinsic"].num_trained_head == 66
    assert rows["intrinsic zhang2023"].num_trained == 32 * rows["intrinsic zhang2023"].trial.d
    assert rows["intrinsic zhang2023"].step_size == 0.01
    assert rows["freeze"].num_trained == 0 and rows["freeze"].num_trained_head == 66
    assert unrelated_rows(summary_of(sweep, store), sweep, store) == []  # a control is asked for, though by no search
    table = store.table().to_pylist()
    assert {row["d"] for row in table if row["method"] == "freeze"} == {0}
    assert {tuple(row["trajectories"]) for row in table if row["method"] == "intrinsic"} == {(needed.id,)}
    # The learned subspace holds what full fine-tuning found, so training in it does at least nearly as well.
    assert rows["intrinsic"].score > rows["intrinsic"].chance + 0.5 * (rows["full"].score - rows["full"].chance)
    folder = trajectory.directory(store.files.root, needed)
    stamps = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    assert list(recording.record_all(sweep, store)) == [(needed, False)]
    assert {file: file.stat().st_mtime_ns for file in folder.iterdir()} == stamps
    adapter = store.files.path(f"adapters/{rows['intrinsic'].trial.id}")
    assert loading.load_adapter(adapter).num_trained == rows["intrinsic"].num_trained
    [line] = recording.listing((needed,), store).to_pylist()
    assert (line["checkpoints"], line["steps"], line["score"]) == (2, 40, rows["full"].score)
    (folder / "step-000020.safetensors").write_bytes(b"")
    assert list(recording.record_all(sweep, store)) == [(needed, True)]
    (folder / "trajectory.json").unlink()
    with pytest.raises(TrajectoryError, match="no trajectory in"):
        loading.load_adapter(adapter)


@pytest.mark.slow
def test_a_killed_recording_goes_on(sweep, tmp_path, trained_apart):
    """In another process, from its last checkpoint; and leaves the bytes that it would have left."""
    [needed] = sweep.recordings()
    needed = dataclasses.replace(needed, every=4)
    whole, broken = (
        Store.create(tmp_path / name, sweep.text, sweep.fingerprint, str(tmp_path)) for name in ("whole", "broken")
    )
    trial, recordings = needed.trial, {needed.trial.id: needed.how}
    assert trained_apart(whole, trial, recordings=recordings) == list(range(1, 41))
    trained_apart(broken, trial, kill_at=18, recordings=recordings)
    steps = trained_apart(broken, trial, recordings=recordings)
    assert steps == list(range(steps[0], 41)) and steps[0] > 1
    there, here = (trajectory.directory(store.files.root, needed) for store in (whole, broken))
    assert len(names := sorted(file.name for file in there.iterdir())) == 11
    assert [(here / name).read_bytes() for name in names] == [(there / name).read_bytes() for name in names]
    assert {file.name for file in here.parent.iterdir()} == {needed.id, f"{needed.id}.lock"}
    [row], [other] = whole.read(), broken.read()
    assert (row.score, row.predicted, row.curve) == (other.score, other.predicted, other.curve)


@pytest.mark.parametrize("harm", [None, "missing", "other data"])
def test_it_goes_on_unless_something_before_is_missing(sweep, store, harm, monkeypatch):
    [needed] = sweep.recordings()
    with pytest.raises(Stopped):  # as in a drain
        recording.Trajectories(store, report=lambda step, steps: step == 25).ensure(needed)
    path = trajectory.directory(store.files.root, needed)
    assert [each["step"] for each in trajectory.read_meta(path)["checkpoints"]] == [20]
    if harm == "missing":
        (path / "step-000020.safetensors").unlink()
    elif harm == "other data":
        monkeypatch.setattr("distsub.finetune.determinism._DECISIVE", ("python",))
    seen = []
    recording.Trajectories(store, report=lambda step, steps: seen.append(step)).ensure(needed)
    assert seen == list(range(1 if harm else 26, 41))
    assert trajectory.load(path).steps == (20, 40)


@pytest.mark.parametrize(("rate", "apart"), [("3e-3", 0), ("2e-3", 1)])
def test_the_plan_counts_them_and_not_what_is_a_baseline_anyway(sweep, tmp_path, rate, apart):
    given = sweep.text.replace("learning_rate = 3e-3\ndtype", f"learning_rate = {rate}\ndtype")
    searches, totals = planning.plan(parse_sweep(given, tmp_path), slots=1)
    last = totals.to_pylist()[-1]
    params = max(row["D"] for row in searches.to_pylist())
    assert last["total"].startswith("trajectories") and (last["trials"], last["steps"]) == (apart, 40 * apart)
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
        checks.check(parse_sweep(learned(tiny_text, methods, every), tmp_path))


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
            monkeypatch.setattr(recording, "train", lambda *_: pytest.fail("trained again"))
        with pytest.raises(TrajectoryError, match=r"diverged at learning rate 1e\+20; lower \[trajectory\]"):
            recording.Trajectories(store).ensure(needed)


def test_a_store_elsewhere_gets_and_gives_the_files(sweep, store, tmp_path, monkeypatch):
    [needed] = sweep.recordings()
    monkeypatch.setattr(type(store.files), "is_local", False)
    assert recording.Trajectories(store).ensure(needed)
    here = trajectory.directory(recording.Trajectories(store).root, needed)
    there = tmp_path / "out" / "trajectories" / needed.id
    assert here != there and {file.name for file in here.iterdir()} == {file.name for file in there.iterdir()}
    for file in here.iterdir():
        file.unlink()
    assert not recording.Trajectories(store).ensure(needed) and trajectory.load(here)
