"""A sweep in subspaces of imported checkpoints, from its file to its tables."""

import shutil

import pytest

from distsub import cli
from distsub.adapters import loading
from distsub.api import sweep_of
from distsub.config import parse_sweep
from distsub.errors import ConfigError, DistsubError
from distsub.finetune import importing
from distsub.learned import analyse
from distsub.preflight import checks
from distsub.records import Subspace, label
from distsub.results import Store
from distsub.runtime import launch, recording

METHODS = """methods = [
  "intrinsic",
  { name = "intrinsic", trajectory = "imported" },
  { name = "last", trajectory = "imported" },
  { name = "random_matched", trajectory = "imported" },
]
"""


@pytest.fixture(scope="module")
def imported(series, tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("imported") / "imported"
    steps = [str(series / f"checkpoint-{step}") for step in (10, 20, 30, 40)]
    importing.import_checkpoints(tiny_model, steps, folder, "float32")
    return folder


@pytest.fixture
def text(tiny_text):
    made = tiny_text.replace('methods = ["said", "did"]', METHODS).replace("seeds = 2", "seeds = 1")
    made = made.replace("dims = [8, 16, 64, 256]", "dims = [1]").replace("etas = [1.0, 3.0]", "etas = [3.0]")
    made = made.replace("[1e-3, 3e-3]", "[1e-3]")
    return made + '\n[trajectory]\nevery = 10\ndtype = "float32"\n'


def created(text, folder, out):
    sweep = checks.check(parse_sweep(text, folder))
    return sweep, Store.create(out, sweep.text, sweep.fingerprint, str(folder), sweep.places, sweep.record)


@pytest.mark.slow
def test_a_sweep_trains_in_imported_checkpoints_as_in_recorded_ones(imported, text, tmp_path):
    folder = tmp_path / "here"
    shutil.copytree(imported, folder / "imported")
    sweep, store = created(text, folder, tmp_path / "out")
    assert launch.run(sweep, store, "inline", plain=True) == 0
    rows = {label(row.trial.method): row for row in store.read()}
    name = f"imported:{sweep.imported[0].content[:8]}"
    assert set(rows) == {"full", "intrinsic", name, f"{name} last", "random_matched"}
    # The same checkpoints, by another way: the same subspace, so the same training to the bit.
    assert rows[name].predicted == rows["intrinsic"].predicted and rows[name].trial != rows["intrinsic"].trial
    table = {row["trial_id"]: row for row in store.table().to_pylist()}
    [own], [theirs] = rows["intrinsic"].trial.trajectories, rows[name].trial.trajectories
    assert list(table[rows[name].trial.id]["trajectories"]) == [theirs] != [own]
    assert {each.name for each in (tmp_path / "out" / "trajectories").iterdir() if each.is_dir()} == {own, theirs}

    shutil.rmtree(folder)  # what was used lies among the results
    again = sweep_of(Store.open(tmp_path / "out"))
    assert again.imported == sweep.imported and again.fingerprint == sweep.fingerprint
    trial = rows[name].trial
    assert loading.load_adapter(tmp_path / "out" / "adapters" / trial.id).num_trained == rows[name].num_trained
    observations = store.read()
    updates = analyse.find_outliers(store, observations, say=lambda line: None, asked=again.recordings())
    found = {each.about["method"]: each.about for each in updates if each.kind == "trajectory"}
    assert set(found) == {"full", "imported"} and found["imported"]["task"] == name
    assert found["imported"]["head_seed"] is None
    spectra, angles = analyse.measure_geometry(store, observations, say=lambda line: None, asked=again.recordings())
    assert set(spectra["trajectory"].to_pylist()) == {own, theirs}
    values = {
        each: [r["singular_value"] for r in spectra.to_pylist() if r["trajectory"] == each] for each in (own, theirs)
    }
    assert values[own] == values[theirs]
    pair = next(row for row in angles.to_pylist() if row["source_trajectory"] != row["target_trajectory"])
    assert pair["overlap"] == pytest.approx(1) and {pair["source"], pair["target"]} == {"tiny", name}
    modes, transfer = analyse.compare_modes(store, observations)
    assert {row["source"] for row in transfer.to_pylist()} == {"tiny", name} and len(modes) == 5


def test_it_is_told_by_its_content(imported, text, tmp_path):
    one = checks.check(parse_sweep(text, imported.parent))
    shutil.copytree(imported, tmp_path / "moved")
    moved = text.replace('"imported"', f'"{tmp_path / "moved"}"')
    other = checks.check(parse_sweep(moved, tmp_path))
    assert one.fingerprint == other.fingerprint and one.record == other.record
    assert {each.id for each in one.searches()} == {each.id for each in other.searches()}
    spans = [method.span for method in one.methods if isinstance(method, Subspace) and method.span.imported]
    assert all(span.budget.steps == 0 for span in spans)  # [trajectory] says nothing of them


def test_one_that_changes_while_a_sweep_runs_is_not_used(imported, text, tmp_path):
    shutil.copytree(imported, tmp_path / "imported")
    sweep, store = created(text, tmp_path, tmp_path / "out")
    file = tmp_path / "imported" / "step-000020.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(DistsubError, match=r"step-000020\.safetensors has changed since it was written; import it"):
        list(recording.record_all(sweep, store))


@pytest.mark.slow
def test_it_resumes_from_the_copy_among_the_results(imported, text, series, tiny_model, tmp_path, capsys):
    """Where the folder is gone, wherever sweep file and results lie; not where one of its bytes has changed."""
    first, moved = tmp_path / "first", tmp_path / "moved"
    shutil.copytree(imported, first / "imported")
    small = text.replace('  "intrinsic",\n', "").replace("steps = 40", "steps = 4").partition("\n[trajectory]")[0]
    (first / "tiny.toml").write_text(small)

    def run(folder, out="out"):
        with pytest.raises(SystemExit) as ended:
            cli.main(["run", str(folder / "tiny.toml"), "--out", str(folder / out), "--backend", "inline", "--plain"])
        return ended.value.code, "".join(capsys.readouterr())

    code, said = run(first)
    assert code == 0 and "is not there" not in said
    first.rename(moved)
    shutil.rmtree(moved / "imported")
    for _ in range(2):
        code, said = run(moved)
        assert code == 0 and "done     nothing left to do" in said
        assert f"note: trajectory {moved / 'imported'} is not there; the results hold a copy of it" in said
    code, said = run(moved, "elsewhere")
    assert code == 2 and "no trajectory in" in said and not (moved / "elsewhere").exists()

    [file] = (moved / "out" / "trajectories").glob("*/step-000020.safetensors")
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    code, said = run(moved)
    assert code == 2 and "has changed since it was written; put back either" in said
    file.write_bytes(whole)
    importing.import_checkpoints(tiny_model, [str(series / "checkpoint-40")], moved / "imported", "float32")
    code, said = run(moved)
    assert code == 2 and "imported has changed (content" in said and "rows of the old: 3)" in said
    assert said.count("distsub: ") == 1


def head_spanned(text):
    return text.replace('{ name = "last", trajectory', '{ name = "last", scope = "model", trajectory')


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (head_spanned, "was imported without classifier.weight, whose start .*give the method scope"),
        (lambda text: text.replace("dims = [1]", "dims = [5]"), "d = 5 is above the 4 directions"),
        (lambda text: text.replace('"imported" }', '"imported", first = 9 }', 1), "first = 9, but trajectory .* has 4"),
        (lambda text: text.replace('"imported" }', '"nowhere" }', 1), "no trajectory in .*nowhere.*import"),
    ],
    ids=["its head", "too many", "first", "not there"],
)
def test_what_it_cannot_give_is_refused_before_anything_is_spent(imported, text, change, message):
    with pytest.raises(DistsubError, match=message):
        checks.check(parse_sweep(change(text), imported.parent))


def test_one_of_another_model_is_refused(imported, text, series, tmp_path, tiny_model):
    other = shutil.copytree(tiny_model, tmp_path / "other")
    shutil.copy(series / "checkpoint-10" / "model.safetensors", other)
    with pytest.raises(DistsubError, match="is of other weights: sha256"):
        checks.check(parse_sweep(text.replace(tiny_model, str(other)), imported.parent))


@pytest.mark.parametrize("name", ["did", "inductive", "other_seed"])
def test_methods_that_have_no_trajectory_of_their_own(text, name):
    with pytest.raises(ConfigError, match=f'trajectory is for intrinsic, last, random_matched, not "{name}"'):
        parse_sweep(text.replace('{ name = "last"', f'{{ name = "{name}"'))


def test_two_imports_are_two_methods(imported, text, series, tiny_model, tmp_path):
    shutil.copytree(imported, tmp_path / "imported")
    importing.import_checkpoints(tiny_model, [str(series / "checkpoint-40")], tmp_path / "less", "float32")
    both = text.replace('{ name = "last", trajectory = "imported" }', '{ name = "last", trajectory = "less" }')
    sweep = checks.check(parse_sweep(both, tmp_path))
    assert len({label(method) for method in sweep.methods}) == 4 and len(sweep.imported) == 2
