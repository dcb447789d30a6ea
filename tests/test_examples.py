"""Every example runs, as its first lines say, and the notebook gives what it shows."""

import json
import runpy
import sys

import pytest
from test_docs import ROOT

pytestmark = pytest.mark.slow

EXAMPLES = ROOT / "examples"
ELSEWHERE = {"pretrain.py": "tests/models/test_pretrain.py", "trainer.py": "tests/subspace/test_trainer.py"}


@pytest.fixture
def example(monkeypatch, capsys):
    """Run an example with arguments; give what it prints."""

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_every_example_is_run_by_a_test():
    for name in sorted(path.name for path in EXAMPLES.iterdir() if path.is_file()):
        text = (ROOT / ELSEWHERE.get(name, "tests/test_examples.py")).read_text()
        assert f'"{name}"' in text, name


def test_by_hand(example):
    assert "logits after loading the adapter: identical" in example("by_hand.py", 3)


def test_a_classification_as_text(example, tmp_path):
    (tmp_path / "rows.csv").write_text("sentence,label\nfine,1\nno,0\n")
    words = ["--prompt", "Review: {sentence}", "--prompt", "Sentiment:", "--label", "label"]
    example(
        "as_text.py",
        tmp_path / "rows.csv",
        tmp_path / "out" / "train.jsonl",
        *words,
        "--answer",
        " bad",
        "--answer",
        " good",
    )
    lines = [json.loads(line) for line in (tmp_path / "out" / "train.jsonl").read_text().splitlines()]
    assert lines[0] == {"prompt": "Review: fine\nSentiment:", "completion": " good"}


def test_a_decoder_from_scratch(example, tmp_path):
    assert "parameters written to" in example("decoder.py", tmp_path, "--steps", 2)
    assert {path.name for path in tmp_path.iterdir()} == {"model", "sentiment", "sums"}


def test_the_end_of_a_trajectory(example, tmp_path, tiny_text, warm):
    (tmp_path / "learned.toml").write_text(
        tiny_text.replace("seeds = 2", "seeds = 1")
        .replace('"said", "did"', '"intrinsic"')
        .replace("[8, 16, 64, 256]", "[2]")
        .replace("[1e-3, 3e-3]", "[3e-3]")
        + "\n[trajectory]\nevery = 20\n"
    )
    done = warm.run("run", tmp_path / "learned.toml", "--out", tmp_path / "out", "--backend", "inline")
    assert done.returncode == 0, done.stderr
    printed = example("endpoint.py", tmp_path / "out")
    assert printed.startswith("tiny s0: accuracy with theta_T - theta_0 of everything 0.")


@pytest.mark.timeout(900)  # a minute on a quiet core
def test_the_notebook_gives_what_it_shows(tmp_path):
    client = pytest.importorskip("nbclient", reason="nbclient is not installed")
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed")
    shown = nbformat.read(EXAMPLES / "quickstart.ipynb", as_version=4)
    again = nbformat.from_dict(json.loads(json.dumps(shown)))
    runner = client.NotebookClient(
        again, timeout=900, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    runner.execute()

    def kinds(notebook):
        """What each cell gives, and of what kind: numbers differ between processors."""
        return [
            [(each.output_type, sorted(each.get("data", ()))) for each in cell.get("outputs", ())]
            for cell in notebook.cells
        ]

    assert kinds(again) == kinds(shown) and sum(map(len, kinds(shown))) == 4
    assert "Results('results/" in json.dumps(shown), "no path of the machine that ran it"
