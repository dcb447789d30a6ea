"""From trainings to tables, on a tiny model: recorded fine-tunings, learned and random subspaces, ablations, angles."""

import shutil

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file, save_file

from distsub.adapters import loading
from distsub.errors import ConfigError, OutputError
from distsub.finetune import trajectory
from distsub.finetune.recorder import Recorder
from distsub.finetune.train import train
from distsub.learned import analyse, figures
from distsub.learned.schema import TABLES
from distsub.learned.store import read_analysis
from distsub.learned.updates import adapter_layers, learned_updates
from distsub.models import pretrained
from distsub.records import (
    Ablation,
    Budget,
    Full,
    Learned,
    Model,
    Random,
    Seeds,
    Setup,
    Source,
    Span,
    Subspace,
    Task,
    Trial,
)
from distsub.results import Store, query
from distsub.runtime.worker import WorkerConfig, perform

pytestmark = pytest.mark.slow

BUDGET = Budget(steps=8, batch_size=8, max_length=16, precision="fp32", train_examples=64, eval_examples=64)

INTRINSIC, RANDOM = "intrinsic embeddings trained", "random embeddings trained"


@pytest.fixture(scope="module")
def study_of_two_seeds(tiny_model, tiny_data, tmp_path_factory):
    """A results directory with two recorded fine-tunings, and an intrinsic and a random training beside each."""
    out = str(tmp_path_factory.mktemp("study"))
    store = Store.create(out, "name = 'x'", "f" * 16)
    task = Task("tiny", tiny_data, ("sentence",))
    span = Span((Source(),), 1e-3, BUDGET, every=2, dtype="float32")
    apart = {"scope": "layer", "head": "trained", "embeddings": "trained"}
    learned = Subspace(Learned(span), **apart)
    methods = (learned, Subspace(Random("fastfood", block_length=4), **apart))
    trials = [
        Trial(Setup(Model(tiny_model), task, method, 0.001, BUDGET, Seeds(seed, seed, seed)), 3, 1.0)
        for method in methods
        for seed in (0, 1)
    ]
    for trial in trials:
        for recording in trial.recordings:
            store.write(train(recording.trial, [Recorder(recording, trajectory.directory(out, recording))]))
        perform(trial, WorkerConfig(out))
    return store, trials


def test_updates_are_what_was_added_to_the_weights(study_of_two_seeds):
    store, trials = study_of_two_seeds
    updates = learned_updates(store, store.read())
    assert [(each.kind, each.about["method"]) for each in updates] == [
        *[("adapter", INTRINSIC)] * 2,
        *[("adapter", RANDOM)] * 2,
        *[("trajectory", "full")] * 2,
    ]
    [mine] = [each for each in updates if each.id == trials[0].id]
    model = loading.load_adapter(f"{store.uri}/adapters/{mine.id}", store.uri)
    merged, theta_0 = model.merged_state(), {entry.name: entry.frozen for entry in model.entries}
    layers = list(mine.layers())
    assert [layer.name for layer in layers] == ["bert.encoder.layer.0", "bert.encoder.layer.1"]
    for layer in layers:
        for name, update in layer.update.items():
            assert torch.allclose(torch.from_numpy(update), merged[name] - theta_0[name], atol=1e-6)
            assert np.array_equal(layer.theta_0[name], theta_0[name].numpy())
    assert sum(len(layer.update) for layer in layers) == len(theta_0)
    [full] = [each for each in updates if each.kind == "trajectory" and each.about["data_seed"] == 0]
    last = trajectory.load(trajectory.directory(store.uri, trials[0].recordings[0])).updates[-1]
    for layer in full.layers():
        for name, update in layer.update.items():
            assert np.array_equal(update, last[name].numpy())


def test_scales_are_part_of_the_update(tiny_model):
    from distsub import SubspaceModel

    model = SubspaceModel(pretrained.build(pretrained.prepare(tiny_model), 2, 0), d=40, spec=Subspace(scales="layer"))
    with torch.no_grad():
        model.coordinates.normal_(generator=torch.Generator().manual_seed(0))
        model.scales.copy_(torch.arange(1.0, 1 + len(model.scales)))
    merged = model.merged_state()
    for layer in adapter_layers(model):
        for name, update in layer.update.items():
            frozen = next(entry.frozen for entry in model.entries if entry.name == name)
            assert torch.allclose(torch.from_numpy(update), merged[name] - frozen, atol=1e-6)


def test_trajectories_that_no_row_is_made_of_are_found_where_the_sweep_asks_for_them(study_of_two_seeds):
    store, trials = study_of_two_seeds
    full = [row for row in store.read() if row.trial.d is None]
    asked = [recording for trial in trials for recording in trial.recordings]
    assert learned_updates(store, full) == []
    found = learned_updates(store, full, asked=asked)
    assert {each.id for each in found} == {each.id for each in asked} and len(found) == 2
    spectra, angles = analyse.measure_geometry(store, full, say=lambda line: None, asked=asked)
    assert spectra.num_rows and angles.num_rows


def test_the_whole_way_from_updates_to_ablations(study_of_two_seeds, capsys):
    store, _ = study_of_two_seeds
    rows = store.read()
    updates = analyse.find_outliers(store, rows, k=1.5)
    assert capsys.readouterr().out.count("outliers ") == 6
    analyse.find_outliers(store, rows, k=1.5)
    assert capsys.readouterr().out.count("known ") == 6  # nothing is read twice
    tables = {name: read_analysis(store.files, name) for name in TABLES}
    assert set(tables["outliers"]["update"].to_pylist()) == {update.id for update in updates}
    assert tables["outlier_summaries"].num_rows == 6 * 2 * 17
    assert {row["across"] for row in analyse.find_recurrence(store, updates, permutations=19).to_pylist()} == {
        "seeds",
        "layers",
    }
    assert query(tables, "select count(*) n from profiles")["n"][0].as_py() > 6 * 2 * 16

    masks = analyse.make_masks(store, updates, of=[INTRINSIC, "full"], k=1.5)
    assert sorted(masks["kind"].to_pylist()) == sorted(["outliers", "random", "tensor", "magnitude"] * 4)
    assert analyse.make_masks(store, updates, of=[INTRINSIC], k=99.0).num_rows == 0  # there may be none
    by_kind = {(row["update"], row["kind"]): row for row in masks.to_pylist()}
    for update in {row["update"] for row in masks.to_pylist()}:
        own = by_kind[update, "outliers"]
        assert by_kind[update, "random"]["positions"] == own["positions"] > 0 and own["unmatched"] == 0
        assert by_kind[update, "tensor"]["positions"] + by_kind[update, "tensor"]["unmatched"] == own["positions"]

    intrinsic = masks.filter(pa.array([variant == INTRINSIC for variant in masks["method"].to_pylist()]))
    trials = analyse.ablation_trials(updates, intrinsic, ["zero", "reset"])
    assert len(trials) == 2 + 2 * 4 * 2 and sum(trial.is_baseline for trial in trials) == 2
    for trial in trials[:6]:
        perform(trial, WorkerConfig(store.uri))
    table = analyse.compare_ablations(store, store.read())
    assert {(row["method"], row["scope"]) for row in table.to_pylist()} == {(INTRINSIC, "layer")}
    assert {row["versus"] for row in table.to_pylist()} == {"none", "outliers"}
    modes, transfer = analyse.compare_modes(store, store.read())
    assert {row["method"] for row in modes.to_pylist()} == {
        "full",
        "intrinsic embeddings trained",
        "random embeddings trained",
    }
    assert [row["source"] for row in transfer.to_pylist()] == ["tiny"]
    assert (
        len(figures.draw(store, ["spikes", "components", "ablation", "modes", "dims", "transfer"])) == 5
    )  # one d: no curve


def test_a_row_of_an_ablation_is_read_back(study_of_two_seeds):
    store, trials = study_of_two_seeds
    full = trials[0].recordings[0].trial
    absent = full.vary(method=Full(Ablation("zero", "0" * 16)))
    with pytest.raises(OutputError, match="has no mask 0000000000000000"):
        perform(absent, WorkerConfig(store.uri))


def test_spectra_and_angles_of_the_recordings(study_of_two_seeds):
    store, trials = study_of_two_seeds
    spectra, angles = analyse.measure_geometry(store, store.read())
    path = trajectory.directory(store.uri, trials[0].recordings[0])
    updates = trajectory.load(path).updates
    names = [name for name in updates[0] if name.startswith("bert.encoder.layer.0.")]
    dense = np.stack([np.concatenate([u[name].numpy().ravel() for name in names]) for u in updates])
    mine = [r for r in spectra.to_pylist() if (r["trajectory"], r["layer"]) == (path.name, "bert.encoder.layer.0")]
    assert [row["singular_value"] for row in mine] == pytest.approx(np.linalg.svd(dense)[1].tolist(), rel=1e-4)
    assert angles.num_rows == 2 * 3 and {row["source"] for row in angles.to_pylist()} == {"tiny"}
    assert len(figures.draw(store, ["angles", "spectra"])) == 2


def test_what_cannot_be_done_is_said(study_of_two_seeds, tmp_path):
    store, _ = study_of_two_seeds
    empty = Store.create(tmp_path / "empty", "name = 'x'", "0" * 16)
    with pytest.raises(ConfigError, match="holds no learned update"):
        analyse.find_outliers(empty, [])
    with pytest.raises(ConfigError, match="no update of unified made of one recorded fine-tuning; there are: full, i"):
        analyse.make_masks(store, learned_updates(store, store.read()), of=["unified"])


def test_what_is_not_finite_or_damaged_is_skipped_and_said(study_of_two_seeds, tmp_path):
    store, trials = study_of_two_seeds
    out = str(tmp_path / "copy")
    shutil.copytree(store.uri, out)
    blown, cut = (trajectory.directory(out, trial.recordings[0]) / "step-000008.safetensors" for trial in trials[:2])
    update = load_file(blown)
    update["bert.encoder.layer.1.output.dense.weight"][3, 5] = float("nan")
    save_file(update, blown, {"format": "pt"})  # of the same size
    cut.write_bytes(cut.read_bytes()[:-9])
    copy, said = Store.open(out), []
    updates = analyse.find_outliers(copy, copy.read(), k=2.5, say=said.append)
    assert [(each.kind, each.about["method"]) for each in updates] == [("adapter", RANDOM)] * 2
    skipped = [line for line in said if line.startswith("skipped")]
    assert len(skipped) == 4 and len(said) == 6
    for why, times in (
        ("truncated", 2),
        ("tiny full d=None s0: bert.encoder.layer.1 moved by numbers that are not finite", 1),
        ("checkpoint 4 of the trajectory holds numbers that are not finite", 1),
    ):
        assert sum(why in line for line in skipped) == times, why
    listed = analyse.outlier_listing(copy, updates)
    assert set(listed["method"].to_pylist()) == {RANDOM} and listed.num_rows == 2 * 2
    said.clear()
    spectra, _ = analyse.measure_geometry(copy, [], say=said.append)
    assert spectra.num_rows == 0 and not said


def test_recurrence_and_listing_are_of_one_k(study_of_two_seeds, tmp_path):
    store, _ = study_of_two_seeds
    out = str(tmp_path / "copy")
    shutil.copytree(store.uri, out)
    copy = Store.open(out)
    everything = analyse.find_outliers(copy, copy.read(), k=1.0)
    some = [each for each in everything if each.about["method"] == RANDOM]
    rows = [row for row in copy.read() if row.trial.id in {each.id for each in some}]
    found = analyse.find_recurrence(copy, analyse.find_outliers(copy, rows, k=2.5), permutations=19)
    summaries = read_analysis(copy.files, "outlier_summaries")
    assert set(summaries["k"].to_pylist()) == {1.0, 2.5}
    outliers = read_analysis(copy.files, "outliers").to_pylist()
    count = sum(row["update"] in {each.id for each in some} and abs(row["layer_sigmas"]) >= 2.5 for row in outliers)
    asked = [row for row in found.to_pylist() if (row["across"], row["axis"]) == ("seeds", "output")]
    assert {row["method"] for row in asked} == {RANDOM} and 0 < sum(row["outliers"] for row in asked) <= count
