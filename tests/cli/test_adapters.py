"""`distsub predict`: the same rows in every format have the same predictions; a mistake is one line and exit code 2."""

import csv
import inspect
import json
import re
import shutil
from itertools import product

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from distsub import cli, load
from distsub.config import parse_sweep
from distsub.data.tasks import resolve
from distsub.errors import ConfigError, OutputError
from distsub.preflight.checks import check
from distsub.records import Trial
from distsub.report import table_files
from distsub.results import Store
from distsub.runtime.worker import WorkerConfig, perform

ROWS = [("w1 good w2", "sales", "7"), ("w3 bad", "legal", "8"), ("w4 good", "legal", "9"), ("w5 bad w6", "legal", "10")]


def call(capsys, *arguments):
    """Run a command in this process; give (exit code, stdout, stderr)."""
    with pytest.raises(SystemExit) as end:
        cli.main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return end.value.code or 0, out, err


@pytest.fixture(scope="module")
def adapter(tiny_text, tmp_path_factory):
    """An adapter trained on a column of names, as a sweep leaves it."""
    import dataclasses

    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("adapter")
    lines = [f"w{i} {'good' if i % 2 else 'bad'},{'sales' if i % 2 else 'legal'}" for i in range(60)]
    (folder / "mail.csv").write_text("\n".join(["body,team", *lines]) + "\n")
    task = resolve("mail", path=str(folder / "mail.csv"), text=("body",), label="team", holdout=20)
    [search, *_] = check(parse_sweep(tiny_text)).searches()
    trial = Trial(dataclasses.replace(search.setup, task=task), 64, 3.0)
    Store.create(str(folder / "out"), "", "f")
    assert perform(trial, WorkerConfig(str(folder / "out"), checkpoint_s=None)).score > 0.8
    return folder / "out/adapters" / trial.id


def write(folder, suffix, labelled=True):
    """Write ROWS as a file."""
    names = ["body", "team", "id"] if labelled else ["body", "id"]
    rows = [dict(zip(("body", "team", "id"), row, strict=True)) for row in ROWS]
    rows = [{name: row[name] for name in names} for row in rows]
    place = folder / f"rows{suffix}"
    if suffix in (".csv", ".tsv"):
        with place.open("w", newline="") as file:
            table = csv.DictWriter(file, names, delimiter="\t" if suffix == ".tsv" else ",")
            table.writeheader()
            table.writerows(rows)
    elif suffix == ".jsonl":
        place.write_text("\n".join(map(json.dumps, rows)) + "\n")
    else:
        pq.write_table(pa.Table.from_pylist(rows), place)
    return place


def read(place):
    if place.suffix == ".parquet":
        return pq.read_table(place).to_pylist()
    if place.suffix == ".jsonl":
        return [json.loads(line) for line in place.read_text().splitlines()]
    with place.open(newline="") as file:
        return list(csv.DictReader(file))


FAST = ((".csv", ".jsonl"), (".tsv", ".csv"), (".jsonl", ".parquet"), (".parquet", ".csv"))
READ_AND_WRITTEN = product((".csv", ".tsv", ".jsonl", ".parquet"), (".csv", ".jsonl", ".parquet"))


@pytest.mark.parametrize(
    ("suffix", "written"), [pytest.param(*e, marks=[] if e in FAST else pytest.mark.slow) for e in READ_AND_WRITTEN]
)
def test_every_format_gives_the_same(adapter, tmp_path, suffix, written, capsys):
    found = tmp_path / f"new/predicted{written}"
    code, out, err = call(capsys, "predict", adapter, write(tmp_path, suffix), "--out", found, "--keep", "id")
    assert (code, out) == (0, "")
    assert err == f"wrote 4 rows to {found}\naccuracy 0.7500, macro_f1 0.7333, matthews 0.5774, f1 0.6667 on 4 rows\n"
    rows = read(found)
    assert [list(row) for row in rows] == [["body", "id", "team", "prediction", "probability"]] * 4
    assert [row["prediction"] for row in rows] == load(adapter).predict([row[0] for row in ROWS])
    assert [(row["body"], row["team"], row["id"]) for row in rows] == ROWS
    assert all(0.5 <= float(row["probability"]) <= 1 for row in rows)


def test_without_labels_nothing_is_scored(adapter, tmp_path, capsys):
    place = write(tmp_path, ".csv", labelled=False)
    code, out, err = call(capsys, "predict", adapter, place, "--format", "json")
    assert (code, err) == (0, "") and [row["prediction"] for row in json.loads(out)] == ["sales", "legal"] * 2
    code, _, err = call(capsys, "predict", adapter, write(tmp_path, ".csv"), "--no-score", "--format", "csv")
    assert (code, err) == (0, "")


def test_other_names_of_columns(adapter, tmp_path, capsys):
    (tmp_path / "rows.csv").write_text("message,desk\nw1 good,sales\nw2 bad,legal\n")
    code, _, err = call(capsys, "predict", adapter, tmp_path / "rows.csv", "--text", "message", "--label", "desk")
    assert code == 0 and err.startswith("accuracy 1.0000,") and err.endswith(" on 2 rows\n")


def test_rows_that_lack_something_are_counted(adapter, tmp_path, capsys):
    (tmp_path / "rows.csv").write_text('body,team\nw1 good,sales\n"",legal\nw2 bad,\n" ",\nw3 bad,legal\n')
    code, out, err = call(capsys, "predict", adapter, tmp_path / "rows.csv", "--format", "json")
    rows = json.loads(out)
    assert code == 0 and [row["prediction"] for row in rows] == ["sales", None, "legal", None, "legal"]
    assert [row["probability"] is None for row in rows] == [False, True, False, True, False]
    assert "note: 2 of 5 rows have an empty text and no prediction, first row 2\n" in err
    assert "note: 1 rows have no team and are not in the score\n" in err and err.endswith(" on 2 rows\n")


def test_an_adapter_that_names_no_columns(adapter, tmp_path, capsys):
    place = shutil.copytree(adapter, tmp_path / "adapter")
    config = json.loads((place / "adapter_config.json").read_text())
    (place / "adapter_config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "trained_on"}))
    rows = write(tmp_path, ".csv")
    code, _, err = call(capsys, "predict", place, rows)
    assert code == 2 and "name one by text (--text)" in err and "body, team, id" in err
    code, out, err = call(capsys, "predict", place, rows, "--text", "body", "--label", "team", "--format", "json")
    assert code == 0 and "accuracy 0.7500" in err and json.loads(out)[0]["prediction"] == "sales"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{rows}", "--text", "bdy"], 'has no column "bdy"; did you mean "body"?'),
        (
            ["{other}"],
            'has no column "body"; known: x (the first line must name the columns); name the columns to read by',
        ),
        (["{rows}", "--text", "body,team"], "text names 2 columns (body, team), the adapter reads 1: body"),
        (
            ["{rows}", "--label", "id"],
            "column \"id\": 1 of 4 rows have the label '7', which the adapter does not know",
        ),
        (["{rows}", "--label", "id", "--no-score"], "contradict each other"),
        (["{rows}", "--keep", "idd"], 'did you mean "id"?'),
        (["{rows}", "--separator", ";;"], "--separator = ';;'; allowed: one character"),
        (["{rows}", "--encoding", "utf-x"], '--encoding = "utf-x": unknown encoding'),
        (["{folder}"], "is a folder; give a file of rows"),
        (["nowhere.csv"], "nowhere.csv is no file"),
        (["{rows}", "--out", "x.xls"], "cannot write x.xls; give a name that ends in .csv, .jsonl, .parquet"),
        (["{rows}", "--out", "{rows}"], "exists already"),
        (["{empty}"], "has no rows"),
        (["{rows}", "--base", "/nowhere"], "/nowhere"),
    ],
)
def test_mistakes_are_one_line(adapter, tmp_path, arguments, message, capsys):
    rows = write(tmp_path, ".csv")
    (tmp_path / "other.csv").write_text("x\n1\n")
    (tmp_path / "empty.csv").write_text("body,team\n")
    places = {"rows": rows, "folder": tmp_path, "other": tmp_path / "other.csv", "empty": tmp_path / "empty.csv"}
    code, _, err = call(capsys, "predict", adapter, *(each.format(**places) for each in arguments))
    assert code == 2 and err.count("\n") == 1 and err.startswith("distsub: ") and message in err, err


def test_addresses(adapter, tmp_path, bucket, capsys):
    """The adapter, the rows and the result, all on an object store."""
    from distsub.files import Files

    address, options = bucket
    for file in adapter.iterdir():
        Files.at(f"{address}/adapter?{options}").put(file.name, file.read_bytes())
    rows = write(tmp_path, ".csv")
    Files.at(f"{address}/data?{options}").put("rows.csv", rows.read_bytes())
    place = f"{address}/out/found.csv?{options}"
    code, _, err = call(
        capsys, "predict", f"{address}/adapter?{options}", f"{address}/data/rows.csv?{options}", "--out", place
    )
    assert code == 0 and "on 4 rows" in err, err
    here = tmp_path / "here.csv"
    assert call(capsys, "predict", adapter, rows, "--out", here)[0] == 0
    assert Files.at(f"{address}/out?{options}").read("found.csv") == here.read_bytes()


def test_places(tmp_path):
    with pytest.raises(ConfigError, match="give a name that ends in"):
        table_files.check_place("s3://user:secret@bucket/x.txt")
    files, name = table_files.check_place(str(tmp_path / "x.csv"))
    (tmp_path / "file").write_text("")
    table_files.write(pa.table({"a": ["ä,\n", None]}), files, name)
    assert (tmp_path / "x.csv").read_bytes() == 'a\n"ä,\n"\n""\n'.encode()
    with pytest.raises(OutputError, match="cannot write"):
        table_files.write(pa.table({"a": [1]}), *table_files.check_place(str(tmp_path / "file/x.csv")))


class TestExport:
    def test_transformers(self, adapter, tmp_path, capsys):
        place, rows = tmp_path / "plain", write(tmp_path, ".csv")
        code, out, err = call(
            capsys, "export", adapter, "--to", "transformers", place, "--data", rows, "--format", "json"
        )
        facts = json.loads(out)
        assert (code, err) == (0, "") and facts["logits"] == "those of the held model, to the bit"
        assert facts["accuracy_before"] == facts["accuracy_after"] == 0.75 and facts["scored_rows"] == 4
        assert {file.stat().st_mode & 0o077 for file in place.iterdir()} == {0o044}
        code, _, err = call(capsys, "export", adapter, "--to", "transformers", place)
        assert code == 2 and "exists already" in err

    def test_peft(self, adapter, tmp_path, capsys):
        pytest.importorskip("peft")
        place, rows = tmp_path / "lora", write(tmp_path, ".csv")
        code, out, err = call(
            capsys, "export", adapter, "--to", "peft", place, "--rank", 64, "--data", rows, "--format", "json"
        )
        facts = json.loads(out)
        assert (code, err) == (0, "") and facts["method"] == "LoRA of rank 64" and facts["relative_error"] < 1e-4
        assert facts["accuracy_before"] == facts["accuracy_after"] == 0.75

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (
                ["{adapter}"],
                "give one: --to transformers DIRECTORY or --to peft DIRECTORY for an adapter, --optuna FILE",
            ),
            (["{adapter}", "--to", "peft", "x", "--optuna", "y"], "give one"),
            (["{adapter}", "--to", "peft"], "--to peft needs a directory"),
            (["{adapter}", "--to", "peft", "x", "--dtype", "float16"], "--dtype is of --to transformers"),
            (["{adapter}", "--to", "transformers", "x", "--rank", "4"], "--rank and --drop are of --to peft"),
            (["{out}", "--to", "peft", "x"], "is a results directory: give one of its adapters"),
            (["{out}", "x", "--optuna", "y"], "a directory is of --to transformers or --to peft"),
            (["{adapter}", "--to", "transformers", "{rows}"], "exists already"),
            (["{adapter}", "--to", "transformers", "x", "--data", "{unlabelled}"], "has no row with a label to score"),
            (["{adapter}", "--to", "transformers", "x", "--data", "{rows}", "--label", "id"], "have the label '7'"),
        ],
    )
    def test_mistakes_are_one_line(self, adapter, tmp_path, arguments, message, capsys, monkeypatch):
        monkeypatch.chdir(tmp_path)
        unlabelled = write(tmp_path, ".parquet", labelled=False)
        places = {"adapter": adapter, "out": adapter.parents[1], "rows": write(tmp_path, ".csv")}
        code, _, err = call(capsys, "export", *(each.format(unlabelled=unlabelled, **places) for each in arguments))
        assert code == 2 and err.count("\n") == 1 and err.startswith("distsub: ") and message in err, err
        assert not (tmp_path / "x").exists()

    def test_a_results_directory_on_an_object_store_is_no_adapter(self, bucket, capsys):
        from distsub.files import Files

        address, options = bucket
        Files.at(f"{address}/out?{options}").put("sweep.json", b"{}")
        code, _, err = call(capsys, "predict", f"{address}/out?{options}", "rows.csv")
        assert code == 2 and "s3://bucket/out is a results directory: give one of its adapters" in err


@pytest.mark.parametrize(
    "arguments",
    [
        ["predict", "{adapter}", "{rows}", "--label", "id"],
        ["certify", "{adapter}", "{rows}", "--label", "id"],
        ["export", "{adapter}", "{folder}/plain", "--to", "transformers", "--data", "{rows}", "--label", "id"],
    ],
)
def test_a_command_advises_its_own_options(adapter, tmp_path, capsys, arguments):
    given = {"adapter": adapter, "rows": write(tmp_path, ".csv"), "folder": tmp_path}
    code, _, err = call(capsys, *(each.format(**given) for each in arguments))
    advised = set(re.findall(r"--[a-z][a-z-]*", err))
    assert code == 2 and "4 of 4 rows" in err.replace("1 of 4", "4 of 4") and advised
    known = {command.callback.__name__: command.callback for command in cli.app.registered_commands}[arguments[0]]
    assert {option[2:].replace("-", "_") for option in advised} <= inspect.signature(known).parameters.keys()
