"""Recording a full fine-tuning and reading its checkpoints back, on a real tiny model."""

import dataclasses
import json

import pytest
import torch

from distsub.config import load_sweep
from distsub.errors import TrajectoryError
from distsub.finetune import train, trajectory
from distsub.finetune.inputs import Inputs
from distsub.finetune.recorder import Recorder
from distsub.finetune.train import Observer, Progress, Stopped
from distsub.models import pretrained
from distsub.records import Learned, Recording, Source, Span, Subspace


def run(recording, path, *more):
    return train.train(recording.trial, [Recorder(recording, path), *more])


def is_complete(path):
    try:
        return bool(trajectory.load(path))
    except TrajectoryError:
        return False


@pytest.fixture
def recording(tiny_sweep):
    torch.set_num_threads(1)
    return Recording(load_sweep(tiny_sweep).searches()[0].baseline[0], every=10, dtype="float32")


@pytest.fixture
def recorded(recording, tmp_path):
    run(recording, trajectory.directory(tmp_path, recording))
    return tmp_path


def subspace(recording, **other):
    given = {"sources": (Source(),), "learning_rate": recording.trial.learning_rate, "budget": recording.trial.budget}
    span = Span(
        **{**given, "every": recording.every, "checkpoints": recording.checkpoints, "dtype": "float32", **other}
    )
    method = Subspace(Learned(span), head="trained", scope="layer", embeddings="frozen")
    return recording.trial.vary(method=method, d=3, eta=1.0)


def test_the_checkpoints_are_the_weights_along_the_way(recording, tmp_path):
    weights = {}

    class Weights(Observer):
        def on_step(self, training):
            weights[training.step] = {name: p.detach().clone() for name, p in training.model.named_parameters()}

    train.train(recording.trial, [Weights()])
    observation = run(recording, tmp_path / "one")
    found = trajectory.load(tmp_path / "one")
    assert found.steps == (10, 20, 30, 40) and len(found.updates) == 4
    trial = recording.trial
    theta_0 = pretrained.build(pretrained.prepare(trial.model.name), trial.task.num_labels, trial.seeds.head)
    assert [name for name, _ in found.parameters] == [name for name, _ in theta_0.named_parameters()]
    for step, update in zip(found.steps, found.updates, strict=True):
        for name, parameter in theta_0.named_parameters():
            torch.testing.assert_close(parameter + update[name], weights[step][name], rtol=1e-6, atol=1e-7)
    assert found.meta["complete"] and found.meta["score"] == observation.score
    assert found.meta["curve"] == [list(point) for point in observation.curve]
    assert found.meta["checkpoints"][-1]["epoch"] == 2.5  # 256 rows are 16 batches


def test_recording_changes_nothing_about_the_training(recording, tmp_path):
    assert run(recording, tmp_path / "one").predicted == train.train(recording.trial).predicted


def test_the_same_recording_gives_the_same_bytes(recording, tmp_path):
    short = dataclasses.replace(recording, checkpoints=2, dtype="bfloat16")
    run(short, tmp_path / "one")
    with pytest.raises(Stopped):
        run(short, tmp_path / "two", Progress(lambda step, steps: step == 15))
    # Killed after its first checkpoint, while it wrote the next
    (tmp_path / "two" / ".step-000020.safetensors.77").write_bytes(b"half")
    meta = trajectory.read_meta(tmp_path / "two")
    assert not meta["complete"] and [each["step"] for each in meta["checkpoints"]] == [10]
    with pytest.raises(TrajectoryError, match="incomplete: 1 of 2 checkpoints"):
        trajectory.load(tmp_path / "two")
    run(short, tmp_path / "two")
    assert trajectory.load(tmp_path / "one").hashes == trajectory.load(tmp_path / "two").hashes
    assert {file.name for file in (tmp_path / "two").iterdir()} == {file.name for file in (tmp_path / "one").iterdir()}
    assert trajectory.load(tmp_path / "one").updates[0]["bert.pooler.dense.weight"].dtype == torch.bfloat16
    sizes = sum(file.stat().st_size for file in (tmp_path / "one").glob("*.safetensors"))
    num_params = sum(p.numel() for p in pretrained.build(pretrained.prepare(short.trial.model.name), 2, 0).parameters())
    assert 0 < sizes - trajectory.num_bytes(short, num_params, 256) < 20_000  # names and shapes


def test_one_that_diverged_says_so(recording, tmp_path):
    blown = dataclasses.replace(recording, trial=recording.trial.vary(learning_rate=1e20))
    assert run(blown, tmp_path / "one").status == "diverged" and trajectory.has_diverged(tmp_path / "one")
    with pytest.raises(TrajectoryError, match=r"\(tiny\) has 0 of 4.*diverged at learning rate 1e\+20; lower"):
        trajectory.load(tmp_path / "one")
    assert not is_complete(tmp_path / "one") and not trajectory.has_diverged(tmp_path)


def test_which_steps_are_kept(recording):
    assert trajectory.snapshot_steps(recording, 256) == [10, 20, 30, 40]
    assert trajectory.snapshot_steps(dataclasses.replace(recording, every=None), 256) == [16, 32]
    assert trajectory.snapshot_steps(dataclasses.replace(recording, every=None), 250) == [16, 32]
    assert trajectory.snapshot_steps(dataclasses.replace(recording, every=15, checkpoints=1), 256) == [15]


@pytest.mark.parametrize(
    ("every", "rows", "message"), [(None, 256, "40 steps are 2 epochs of 16 steps"), (12, 256, "")]
)
def test_a_task_without_enough_epochs(recording, every, rows, message):
    wanted = dataclasses.replace(recording, every=every, checkpoints=8)
    with pytest.raises(TrajectoryError, match=f"8 are asked for: {message}.*raise .trajectory. steps to"):
        trajectory.snapshot_steps(wanted, rows)


def test_a_missing_or_truncated_checkpoint(recording, recorded):
    path = trajectory.directory(recorded, recording)
    assert is_complete(path)
    file = path / "step-000020.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-100])
    with pytest.raises(TrajectoryError, match=rf"step-000020.safetensors has {len(content) - 100} bytes.*truncated"):
        trajectory.load(path)
    file.write_bytes(b"x" * len(content))
    with pytest.raises(TrajectoryError, match="no safetensors file"):
        trajectory.load(path)
    file.unlink()
    with pytest.raises(TrajectoryError, match=r"step-000020\.safetensors is missing"):
        trajectory.load(path)
    assert not is_complete(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "is not JSON"), ("{}", "not of a trajectory"), ('{"format": "distsub-trajectory"}', "format version None")],
)
def test_a_foreign_description(tmp_path, content, message):
    (tmp_path / "trajectory.json").write_text(content)
    with pytest.raises(TrajectoryError, match=message):
        trajectory.load(tmp_path)
    with pytest.raises(TrajectoryError, match="no trajectory in"):
        trajectory.load(tmp_path / "nowhere")


def test_the_rows_of_a_subspace(recording, recorded):
    name = "bert.encoder.layer.0.output.dense.weight"
    kept = [update[name] for update in trajectory.load(trajectory.directory(recorded, recording)).updates]

    def snapshots(**other):
        return Inputs(subspace(recording, **other), root=recorded).snapshots

    def rows(**other):
        return [row[name] for row in snapshots(**other).updates]

    for found, wanted in [
        (rows(), kept),
        (rows(first=2), kept[:2]),
        (rows(last=True), kept[-1:]),
        (rows(first=3, last=True), kept[2:3]),
        (rows(sources=(Source(), Source(recording.trial.task)), last=True), [kept[-1]] * 2),
    ]:
        assert len(found) == len(wanted) and all(map(torch.equal, found, wanted))
    assert snapshots().made_of != snapshots(mode="raw").made_of


def test_a_trajectory_that_is_not_there_or_of_another_model(recording, recorded):
    def load(trial):
        train.train(trial, inputs=Inputs(trial, root=recorded))

    with pytest.raises(TrajectoryError, match=r"task 'tiny' \(head and data seed 1, 1\).*distsub trajectory"):
        load(subspace(recording, sources=(Source(shift=1),)))
    with pytest.raises(TrajectoryError, match=r"first 9 checkpoints are asked for.*has 4"):
        load(subspace(recording, first=9))
    file = trajectory.directory(recorded, recording) / "trajectory.json"
    meta = json.loads(file.read_text()) | {"weights_sha256": "0" * 64, "model": "some/other"}
    file.write_text(json.dumps(meta))
    with pytest.raises(TrajectoryError, match=r"of other weights: sha256 000000000000 \(some/other"):
        load(subspace(recording))
