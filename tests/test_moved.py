"""What a number is of is content: moving it changes nothing, changing it is noticed."""

import json
import shutil
from pathlib import Path

import pytest
from builders import with_keys

import distsub
from distsub import cli
from distsub.results import Store


@pytest.fixture(scope="module")
def home(tmp_path_factory, tiny_model, tiny_data, tiny_text):
    """A folder with a model, data and a sweep beside each other, run once; nothing outside it is named."""
    folder = tmp_path_factory.mktemp("home") / "first"
    shutil.copytree(tiny_model, folder / "model")
    shutil.copytree(tiny_data, folder / "data")
    text = tiny_text.replace(tiny_model, "model").replace(tiny_data, "data")
    text = with_keys(text, methods=["did"], seeds=1, dims=[8, 64], steps=4, eval_every=None)
    (folder / "sweep.toml").write_text(text)
    assert run(folder, folder.parent / "out") == 0
    return folder


def run(folder, out, *more):
    with pytest.raises(SystemExit) as end:
        cli.main(["run", str(folder / "sweep.toml"), "--out", str(out), "--backend", "inline", "--plain", *more])
    return end.value.code


@pytest.fixture
def copy(home, tmp_path):
    """The folder and its results, each copied to another place."""
    shutil.copytree(home, tmp_path / "second")
    shutil.copytree(home.parent / "out", tmp_path / "results")
    return tmp_path / "second", tmp_path / "results"


def rename_model(folder):
    (folder / "model").rename(folder / "renamed")
    (folder / "sweep.toml").write_text((folder / "sweep.toml").read_text().replace('"model"', '"renamed"'))


def other_column(folder):
    for file in (folder / "data").glob("*.csv"):
        file.write_text(file.read_text().replace("sentence,label", "text,label"))
    (folder / "sweep.toml").write_text((folder / "sweep.toml").read_text().replace('"sentence"', '"text"'))


def other_format(folder):
    for file in (folder / "data").glob("*.csv"):
        rows = [line.rsplit(",", 1) for line in file.read_text().splitlines()[1:]]
        file.with_suffix(".jsonl").write_text(
            "".join(json.dumps({"sentence": text, "label": int(label)}) + "\n" for text, label in rows)
        )
        file.unlink()


def saved_again(folder):
    from transformers import AutoModel

    AutoModel.from_pretrained(folder / "model").save_pretrained(folder / "model", max_shard_size="10KB")


MOVES = {
    "nothing but the place": lambda folder: None,
    "an unrelated file beside it": lambda folder: (folder / "data" / "notes.txt").write_text("hello"),
    "the model's folder renamed": rename_model,
    "the text column renamed": other_column,
    "the same rows in another format": other_format,
    "the weights in other files": saved_again,
    "a file written anew": lambda folder: (folder / "data" / "train.csv").write_text(
        (folder / "data" / "train.csv").read_text()
    ),
}


FAST = ("nothing but the place", "the text column renamed", "the weights in other files", "one label", "one weight")


@pytest.mark.parametrize("move", [m if m in FAST else pytest.param(m, marks=pytest.mark.slow) for m in MOVES])
def test_what_is_moved_resumes_to_the_same_rows(home, copy, move, capsys):
    folder, out = copy
    before = Store.open(out).table()
    MOVES[move](folder)
    assert run(folder, out) == 0
    assert "nothing left to do" in capsys.readouterr().out
    assert Store.open(out).table() == before
    assert str(folder) in Store.open(out).places.models[0].name


def test_every_view_names_a_model_by_where_it_lies_now(home, copy, capsys):
    """Also a row that was trained before it moved, so that a join by model finds both."""
    folder, out = copy
    rename_model(folder)
    (folder / "sweep.toml").write_text((folder / "sweep.toml").read_text().replace("seeds = 1", "seeds = 2"))
    assert run(folder, out) == 0
    capsys.readouterr()
    stored = set(Store.open(out).table(["model"])["model"].to_pylist())
    named = {}
    for view in ("d90", "searches", "observations"):
        with pytest.raises(SystemExit):
            cli.main(["query", str(out), f"select distinct model, 'x' as x from {view}", "--format", "json"])
        [row] = json.loads(capsys.readouterr().out)
        named[view] = row["model"]
    assert {*named.values()} == {str(folder / "renamed")} and len(stored) == 2
    with pytest.raises(SystemExit):
        joined = "select count(*) as n from observations join d90 using (task, model)"
        cli.main(["query", str(out), joined, "--format", "json"])
    assert json.loads(capsys.readouterr().out) == [{"n": Store.open(out).table().num_rows}]
    again = distsub.open(out).observations()
    assert {*again["model"].to_pylist()} == {*named.values()}
    assert again.drop_columns(["model"]) == Store.open(out).table().drop_columns(["model"])


def flip(folder):
    file = folder / "data" / "train.csv"
    first, row, *rest = file.read_text().splitlines()
    file.write_text("\n".join([first, row[:-1] + str(1 - int(row[-1])), *rest]) + "\n")


def fewer(folder):
    file = folder / "data" / "validation.csv"
    file.write_text("\n".join(file.read_text().splitlines()[:-1]) + "\n")


def retrain(folder):
    import torch
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder / "model")
    with torch.no_grad():
        model.embeddings.word_embeddings.weight[7, 3] += 1e-3
    model.save_pretrained(folder / "model")


def edit(name, old, new):
    def change(folder):
        path = folder / "model" / name
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))

    return change


CHANGES = {
    "one label": (flip, "task tiny"),
    "one row less to evaluate on": (fewer, "task tiny"),
    "one weight": (retrain, "model "),
    "the configuration": (edit("config.json", '"hidden_act": "gelu"', '"hidden_act": "relu"'), "model "),
    "the tokenizer": (edit("tokenizer.json", '"w7"', '"w7x"'), "model "),
}


@pytest.mark.parametrize("change", [c if c in FAST else pytest.param(c, marks=pytest.mark.slow) for c in CHANGES])
def test_what_has_changed_in_place_is_refused_in_one_line(home, copy, change, capsys):
    folder, out = copy
    assert run(folder, out) == 0  # the same place from now on
    before, said = Store.open(out).table(), capsys.readouterr()
    act, what = CHANGES[change]
    act(folder)
    assert run(folder, out) == 2
    said = capsys.readouterr().err
    complaint = next(line for line in said.splitlines() if line.startswith("distsub: "))
    assert what in complaint and f"rows of the old: {before.num_rows}" in complaint and "--out" in complaint
    assert Store.open(out).table() == before


def test_a_change_while_the_sweep_runs_is_no_row(home, copy):
    from distsub.config import parse_sweep
    from distsub.errors import DataError
    from distsub.finetune import train
    from distsub.preflight.checks import check

    folder, _ = copy
    sweep = check(parse_sweep((folder / "sweep.toml").read_text(), folder))
    flip(folder)
    with pytest.raises(DataError, match="content"):
        train.train(sweep.searches()[0].baseline[0])


def test_results_are_read_where_neither_model_nor_data_lie(home, copy, capsys):
    folder, out = copy
    shutil.rmtree(folder)
    tables = []
    for place in (out, home.parent / "out"):
        with pytest.raises(SystemExit) as end:
            cli.main(["query", str(place), "select d90_text, trials, model from d90", "--format", "json"])
        assert end.value.code == 0
        tables.append(capsys.readouterr().out)
    assert tables[0] == tables[1] and str(Path("first") / "model") in tables[0]


def test_two_names_of_one_model_are_refused(home, copy, capsys):
    folder, out = copy
    shutil.copytree(folder / "model", folder / "again")
    text = (folder / "sweep.toml").read_text()
    (folder / "sweep.toml").write_text(text.replace('[{ path = "model" }]', '[{ path = "model" }, { path = "again" }]'))
    assert run(folder, out.parent / "fresh") == 2
    assert "models: entry 2 repeats entry 1" in capsys.readouterr().err


def gone(folder, out):
    shutil.rmtree(folder)


def another_there(folder, out):
    retrain(folder)


def moved_and_run_again(folder, out):
    shutil.rmtree(out / "inputs")
    rename_model(folder)
    assert run(folder, out, "--no-inputs") == 0


@pytest.mark.parametrize(
    "change", [moved_and_run_again, *(pytest.param(each, marks=pytest.mark.slow) for each in (gone, another_there))]
)
def test_adapters_and_analyses_find_the_model_that_results_are_of(home, copy, change, monkeypatch):
    import torch

    from distsub import load_adapter
    from distsub.errors import AdapterError, UnavailableError

    folder, out = copy
    assert run(folder, out) == 0  # so that it is here, and not at home
    adapter = next(path for path in sorted((out / "adapters").iterdir()))
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model": str(folder / "model")}))
    ids = torch.tensor([[2, 5, 6, 7, 3]])
    with torch.no_grad():
        before = load_adapter(adapter)(input_ids=ids).logits
    change(folder, out)
    with torch.no_grad():
        assert torch.equal(load_adapter(adapter)(input_ids=ids).logits, before)
        assert torch.equal(load_adapter(adapter, base=home / "model")(input_ids=ids).logits, before)
    with pytest.raises((AdapterError, UnavailableError)):
        load_adapter(adapter, base=folder / "model" if change is another_there else folder / "nowhere")
    with pytest.raises(SystemExit) as end:
        cli.main(["outliers", str(out)])
    assert end.value.code == 0
