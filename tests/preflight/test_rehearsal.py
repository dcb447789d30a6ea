"""What the rehearsal accepts trains to its end; what it refuses, it refuses in one line that says what to do."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import zoo

from distsub.data import dataset
from distsub.data.tasks import resolve
from distsub.errors import DistsubError
from distsub.finetune import train
from distsub.models import pretrained
from distsub.preflight.rehearsal import rehearse
from distsub.records import Budget, Full, Model, Random, Seeds, Setup, Subspace, Trial

BUDGET = Budget(steps=2, batch_size=4, max_length=16, precision="fp32", warmup=0.0)
ROWS = [("good w1 w2 w3 w4 w5 w6", 1), ("bad w3", 0), ("w4 good w9", 1), ("bad", 0)] * 3
BLIND = {"ConvBert", "FNet", "Nystromformer"}


def trials(folder, source, budget=BUDGET, text=("text",), **task):
    task = resolve("mine", path=str(source), text=text, **task)
    methods = {Full(): None, Subspace(Random("partition")): 8}
    return [
        Trial(Setup(Model(str(folder)), task, method, 0.001, budget, Seeds()), d, d and 1.0)
        for method, d in methods.items()
    ]


def write(folder, rows=ROWS, header="text,label"):
    for split in ("train", "validation"):
        lines = [header, *(",".join(map(str, row)) for row in rows)]
        (Path(folder) / f"{split}.csv").write_text("\n".join(lines) + "\n")
    return folder


def attempt(made):
    """Rehearse; give the message of a refusal, the notes of none."""
    said = []
    try:
        rehearse(made, dataset.load(made[0].task, made[0].budget), "cpu", said.append)
    except DistsubError as error:
        assert "\n" not in str(error)
        return str(error), []
    return None, said


FAST = {"Bert", "Albert", "DebertaV2", "XLNet", "BigBird", "ConvBert", "GPT2", "Llama", "Bart", "T5"}


@pytest.mark.parametrize("name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in zoo.ALL])
def test_what_is_accepted_trains(name, tmp_path):
    made = trials(zoo.save_model(tmp_path / "model", name), write(tmp_path))
    refused, _ = attempt(made)
    if name == "BigBird":  # changes its own modules at the first short batch, which a held model notices
        assert refused is not None and "a step of did" in refused and attempt(made[:1])[0] is None
    elif name in BLIND:
        assert refused is not None and "does not hide padding; use another model" in refused
    else:
        assert refused is None
        assert [train.train(trial).status for trial in made] == ["finished"] * 2


def lengthen(folder, length):
    return write(folder, [*ROWS, (" ".join(["w1"] * length), 0)])


@pytest.mark.parametrize(
    ("name", "rows", "message"),
    [
        ("Bart", [*ROWS, ("good </s> w2", 1)], "holds the end of sequence '</s>' itself in 2 of 26 rows, first row 13"),
        ("T5", [*ROWS, ("good </s> w2", 1)], "remove it from the text"),
    ],
)
def test_a_text_that_ends_its_own_sequence_is_named(name, rows, message, tmp_path):
    refused, _ = attempt(trials(zoo.save_model(tmp_path / "model", name), write(tmp_path, rows)))
    assert refused is not None and message in refused


@pytest.mark.parametrize("name", ["Bart", "T5"])
def test_an_encoder_decoder_without_end_of_sequence_is_refused(name, tmp_path):
    folder = zoo.save_model(tmp_path / "model", name)
    zoo.save_tokenizer(Path(folder), "decoder")
    refused, _ = attempt(trials(folder, write(tmp_path)))
    assert refused is not None and "the tokenizer does not put behind a text" in refused


@pytest.mark.parametrize("name", ["Bert", "GPT2"])
def test_more_tokens_than_positions_are_told_by_name(name, tmp_path):
    length = {"Bert": "max_position_embeddings", "GPT2": "n_positions"}[name]
    folder = zoo.save_model(tmp_path / "model", name, **{length: 20})
    budget = Budget(steps=1, max_length=40, precision="fp32")
    refused, _ = attempt(trials(folder, lengthen(tmp_path, 30), budget))
    assert refused is not None and "max_length = 40: a row of" in refused and "lower it" in refused
    assert attempt(trials(folder, write(tmp_path), budget))[0] is None  # no row is so long


def test_ids_that_the_embedding_does_not_have_are_refused(tmp_path):
    folder = zoo.save_model(tmp_path / "model", "GPT2", vocab_size=len(zoo.VOCABULARY) - 2)
    refused, _ = attempt(trials(folder, write(tmp_path)))
    assert refused is not None and "the embedding has 44 rows" in refused and "rows, first row 1 of train" in refused
    zoo.save_tokenizer(Path(folder), "decoder", pad_token="bad")
    refused, _ = attempt(trials(folder, write(tmp_path, [("w1", 0), ("w2 w3", 1)])))
    assert refused is not None and "for padding, 'bad'" in refused


@pytest.mark.parametrize(("pair", "most"), [(False, 2), (True, 4)])
def test_a_length_without_room_for_a_word_is_refused(pair, most, tmp_path):
    folder = zoo.save_model(tmp_path / "model", "Bert")
    rows, header = [(f"w{i} w2", "good w1", i % 2) for i in range(6)], "text,other,label"
    text = ("text", "other") if pair else ("text",)
    write(tmp_path, rows, header)
    for length in range(1, most + 1):
        budget = Budget(steps=1, max_length=length, precision="fp32")
        refused, _ = attempt(trials(folder, tmp_path, budget, text))
        assert refused is not None and f"max_length = {length} leaves no room for a word" in refused
        assert f"give at least {most + 1}" in refused
    budget = Budget(steps=1, max_length=most + 1, precision="fp32")
    assert attempt(trials(folder, tmp_path, budget, text))[0] is None


@pytest.mark.parametrize(("name", "joined"), [("GPT2", True), ("Bert", False), ("T5", False)])
def test_pairs_that_run_into_each_other_are_told(name, joined, tmp_path):
    folder = zoo.save_model(tmp_path / "model", name)
    write(tmp_path, [(f"w{i} w2", "good w1", i % 2) for i in range(6)], "text,other,label")
    refused, said = attempt(trials(folder, tmp_path, text=("text", "other")))
    assert refused is None and [("without a separator" in line) for line in said] == [True] * joined


@pytest.mark.parametrize("name", ["Bert", "GPT2"])
def test_texts_without_tokens_are_counted_and_named(name, tmp_path):
    """A tokenizer may drop characters that are not blank: here a control character, as BERT's does."""
    folder = Path(zoo.save_model(tmp_path / "model", name))
    record = json.loads((folder / "tokenizer.json").read_text())
    record["normalizer"] = {"type": "Replace", "pattern": {"String": "\u0001"}, "content": ""}
    (folder / "tokenizer.json").write_text(json.dumps(record))
    made = trials(folder, write(tmp_path, [*ROWS, ("\u0001", 1), ("\u0001\u0001", 0)]))
    refused, _ = attempt(made)
    assert refused is not None and "makes no token of the text in 4 of 28 rows, first row 13 of train" in refused


def test_weights_that_are_not_finite_are_refused(tmp_path):
    folder = Path(zoo.save_model(tmp_path / "model", "Bert"))
    from safetensors.torch import load_file, save_file

    state = load_file(folder / "model.safetensors")
    state["encoder.layer.0.output.dense.weight"][0, 0] = float("nan")
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    pretrained.prepare.cache_clear()
    refused, _ = attempt(trials(folder, write(tmp_path)))
    assert refused is not None and "not finite" in refused


def test_a_checkpoints_head_with_the_classes_in_another_order_is_refused(tmp_path):
    folder = Path(zoo.save_model(tmp_path / "model", "Bert", classifier=True, id2label={0: "Yes", 1: "No"}))
    write(tmp_path, [(f"w{i} w2", ("no", "yes")[i % 2]) for i in range(6)])
    made = trials(folder, tmp_path)
    kept = [each.vary(model=replace(each.model, head_from="checkpoint")) for each in made]
    refused, _ = attempt(kept)
    assert attempt(made)[0] is None and refused is not None
    assert "classes in another order; give the task labels = ['yes', 'no']" in refused
    named = [each.vary(task=replace(each.task, labels=("yes", "no"), num_labels=2)) for each in kept]
    assert attempt(named)[0] is None
