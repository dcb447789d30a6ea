"""`distsub fit`: the model at d90, out of a sweep that was run, and scored on rows that nothing has looked at."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

from distsub import cli, load
from distsub.data import dataset, unseen
from distsub.data.tasks import resolve
from distsub.files import Files
from distsub.records import Budget
from distsub.results import Store


def call(capsys, *arguments):
    """Run a command in this process; give (exit code, stdout, stderr)."""
    with pytest.raises(SystemExit) as end:
        cli.main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return end.value.code or 0, out, err


def rows_of(split):
    return set(zip(*split.texts, strict=True))


class TestUnseen:
    @pytest.fixture
    def folder(self, tiny_data, tmp_path):
        return shutil.copytree(tiny_data, tmp_path / "data")

    def task(self, folder, **fields):
        return resolve("tiny", path=str(folder), text=("sentence",), num_labels=2, **fields)

    def test_nothing_is_left(self, folder):
        assert unseen.find(self.task(folder), Budget(steps=1)) is None

    @pytest.mark.parametrize("holdout", [False, True])
    def test_rows_that_the_budget_leaves_out(self, folder, holdout):
        place = folder / "train.csv" if holdout else folder
        task = self.task(place, **({"holdout": 64} if holdout else {}))
        for budget in (Budget(steps=1, eval_examples=40), Budget(steps=1, train_examples=100)):
            seen = dataset.load(task, budget)
            looked_at = rows_of(seen.train) | rows_of(seen.validation)
            found = unseen.find(task, budget)
            assert found is not None and found.labels and not {(text,) for text in found.texts} & looked_at
            which = "evaluation" if budget.eval_examples else "training"
            assert found.origin == f"{which} rows that the budget leaves out"
            every = dataset.load(task, Budget(steps=1))
            part = every.validation if budget.eval_examples else every.train
            truth = dict(zip(part.texts[0], part.labels, strict=True))
            assert [int(label) for label in found.labels] == [truth[text] for text in found.texts]
            assert len({*found.texts}) + len(rows_of(part) & looked_at) == len(rows_of(part))

    def test_a_split_called_test(self, folder):
        lines = (folder / "validation.csv").read_text().splitlines()
        (folder / "test.csv").write_text("\n".join([lines[0], "w1 fresh good,1", "w2 fresh bad,0", *lines[1:9]]) + "\n")
        found = unseen.find(self.task(folder), Budget(steps=1, eval_examples=40))
        assert found is not None and found.origin == 'the split "test"'
        assert found.texts[:2] == ["w1 fresh good", "w2 fresh bad"] and found.labels[:2] == ["1", "0"]
        seen = rows_of(dataset.load(self.task(folder), Budget(steps=1, eval_examples=40)).validation)
        assert not {(text,) for text in found.texts} & seen

    def test_a_test_split_that_was_looked_at_or_has_no_labels(self, folder):
        shutil.copy(folder / "validation.csv", folder / "test.csv")
        other = self.task(folder, validation="test")
        assert unseen.find(other, Budget(steps=1)) is None
        assert unseen.find(self.task(folder), Budget(steps=1), [other]) is None
        (folder / "test.csv").write_text("sentence,label\nnew words,-1\nmore words,-1\n")
        assert unseen.find(self.task(folder), Budget(steps=1)) is None


@pytest.fixture(scope="module")
def out(tiny_text, tmp_path_factory):
    """A sweep that was run, of which half the evaluation rows were left out."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("fit")
    text = tiny_text.replace("steps = 40", "steps = 40\neval_examples = 64").replace('"said", "did"', '"did"')
    text = text.replace("[1.0, 3.0]", "[3.0]").replace("seeds = 2", "seeds = 4").replace("[8, 16,", "[4, 16,")
    text = text.replace("256]", "256, 1024]").replace(
        "[baseline]\nlearning_rates = [1e-3, 3e-3]", "[threshold]\nvalue = 0.75"
    )
    (folder / "tiny.toml").write_text(text)
    with pytest.raises(SystemExit) as end:
        cli.main(["run", str(folder / "tiny.toml"), "--out", str(folder / "out"), "--backend", "inline"])
    assert not end.value.code
    return folder / "out"


@pytest.mark.slow
class TestFit:
    def test_at_a_d_that_was_trained(self, out, capsys):
        d = max(row.trial.d or 0 for row in Store.open(out).read())
        code, printed, _ = call(capsys, "fit", "--from", out, "--d", d, "--format", "json")
        facts = json.loads(printed.splitlines()[-1])
        assert code == 0 and facts["d"] == d and facts["bytes"] < 20_000 and len(facts["evaluation_scores"]) == 4
        assert facts["evaluation_score"] == max(facts["evaluation_scores"])
        assert facts["unseen"].endswith("evaluation rows that the budget leaves out")
        rows = Store.open(out).read()
        trial = next(row for row in rows if row.trial.id == facts["adapter"].rsplit("/", 1)[1]).trial
        found = unseen.find(trial.task, trial.budget)
        model = load(facts["adapter"])
        assert model.evaluate(found.texts, found.labels)["accuracy"] == facts["unseen_score"]
        written = json.loads((out / "fitted" / trial.id / "fit.json").read_text())
        assert written.pop("trials") == sorted(row.trial.id for row in rows if row.trial.d == d)
        assert written == facts | {"adapter": "."}  # wherever the folder is moved to
        again = json.loads(call(capsys, "fit", "--from", out, "--d", d, "--format", "json")[1])
        assert again == facts and len(Store.open(out).read()) == len(rows)

    def test_on_an_object_store(self, out, bucket, capsys):
        address, options = bucket
        store = Files.at(f"{address}/out?{options}")
        for file in out.rglob("*"):
            if file.is_file() and "fitted" not in file.parts:
                store.put(file.relative_to(out).as_posix(), file.read_bytes())
        d = max(row.trial.d or 0 for row in Store.open(out).read() if (out / "adapters" / row.trial.id).is_dir())
        ours = json.loads(call(capsys, "fit", "--from", out, "--d", d, "--format", "json")[1].splitlines()[-1])
        code, printed, err = call(capsys, "fit", "--from", f"{address}/out?{options}", "--d", d, "--format", "json")
        assert code == 0, err
        theirs = json.loads(printed.splitlines()[-1])
        assert theirs["adapter"] == f"{address}/out/fitted/{ours['adapter'].rsplit('/', 1)[1]}"
        assert {**theirs, "adapter": ours["adapter"]} == ours

    def test_at_another_d_it_trains(self, out, capsys, tmp_path):
        count = len(Store.open(out).read())
        code, printed, _ = call(capsys, "fit", out.parent / "tiny.toml", "--out", out, "--d", 100, "--format", "json")
        facts = json.loads(printed.splitlines()[-1])
        assert code == 0 and facts["d"] == 100 and len(Store.open(out).read()) == count + 4
        assert "no search of this sweep" not in call(capsys, "status", out)[1]
        shutil.copytree(out / "fitted" / facts["adapter"].rsplit("/", 1)[1], tmp_path / "away")
        about = json.loads((tmp_path / "away" / "fit.json").read_text())
        assert load(tmp_path / "away" / about["adapter"]).task.name == "tiny"
        said = json.loads(call(capsys, "inspect", tmp_path / "away", "--format", "json")[1])
        assert (said["score"], said["unseen_score"]) == (facts["evaluation_score"], facts["unseen_score"])

    @pytest.mark.parametrize("rows", [1, 3])
    def test_killed_it_leaves_no_row_without_a_reason(self, out, capsys, tmp_path, rows):
        here = shutil.copytree(out, tmp_path / "out")
        count = len(list((here / "observations").glob("*.parquet")))
        command = [sys.executable, "-m", "distsub.cli", "fit", "--from", str(here), "--d", "77", "--plain"]
        process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)
        while process.poll() is None and len(list((here / "observations").glob("*.parquet"))) < count + rows:
            time.sleep(0.01)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        found = len(Store.open(here).read())
        assert count + rows <= found < count + 4
        assert "no search of this sweep" not in call(capsys, "status", here)[1]
        code, printed, err = call(capsys, "fit", "--from", here, "--d", 77, "--format", "json")
        assert code == 0, f"{printed}{err}"
        facts = json.loads(printed.splitlines()[-1])
        assert len(facts["evaluation_scores"]) == 4
        assert facts["adapter"].rsplit("/", 1)[1] in os.listdir(here / "fitted")
        assert not any(name.startswith("asked") for name in os.listdir(here / "fitted"))

    def test_by_itself(self, out, capsys):
        code, printed, _ = call(capsys, "fit", "--from", out, "--format", "json")
        facts = json.loads(printed.splitlines()[-1])
        assert code == 0 and "upper end of d(accuracy >= 0.75)" in facts["chosen"]
        query = "select d90_high from d90"
        [row] = json.loads(call(capsys, "query", out, query, "--format", "json")[1])
        dims = (4, 16, 64, 256, 1024)
        assert facts["d"] == next(each for each in dims if each >= row["d90_high"])
        assert len(facts["evaluation_scores"]) == 4

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ([], "give a sweep file with --out RESULTS, or --from RESULTS"),
            (["{out}/../tiny.toml"], "give a sweep file with --out RESULTS, or --from RESULTS"),
            (["--from", "{out}", "--task", "no"], "no search of the sweep fits; give one of: --task tiny --model"),
            (["--from", "/nowhere"], "/nowhere"),
            (
                ["{out}/../tiny.toml", "--out", "{out}/../new"],
                "no d follows from the results (did: d(accuracy >= ",
            ),
            (["{out}/../tiny.toml", "--out", "{out}/../new"], "such as the largest of the grid: --d "),
        ],
    )
    def test_mistakes_are_one_line(self, out, arguments, message, capsys):
        code, _, err = call(capsys, "fit", *(each.format(out=out) for each in arguments))
        lines = [line for line in err.splitlines() if not line.startswith("note: ")]
        assert code == 2 and len(lines) == 1 and message in err, err
