"""Adapters in use: the predictions are those of the training, in plain transformers too; every mistake is one line."""

import dataclasses
import json

import decoders
import numpy as np
import peft
import pyarrow as pa
import pytest
import torch
import transformers

import distsub
from distsub.adapters import exports
from distsub.config import parse_sweep
from distsub.data import dataset
from distsub.data.tasks import resolve
from distsub.errors import AdapterError, ConfigError, DataError, UnavailableError
from distsub.models import peft_model, pretrained
from distsub.preflight.checks import check
from distsub.records import Budget, Model, Peft, Setup, Subspace, Trial
from distsub.results import Store
from distsub.runtime.worker import WorkerConfig, perform
from distsub.subspace.model import SubspaceModel


def train(trial, folder):
    """Train a trial as a sweep does; give its row, the address of its adapter, and its evaluation rows."""
    torch.set_num_threads(1)
    if not (folder / "sweep.json").exists():
        Store.create(str(folder), "", "f")
    row = perform(trial, WorkerConfig(str(folder), checkpoint_s=None))
    return row, folder / "adapters" / trial.id, dataset.load(trial.task, trial.budget).validation


def short(setup, **changes):
    budget = dataclasses.replace(setup.budget, steps=6, eval_every=None, **changes)
    return dataclasses.replace(setup, budget=budget)


@pytest.fixture(scope="module")
def setup(tiny_text):
    [search, *_] = check(parse_sweep(tiny_text)).searches()
    return short(search.setup)


@pytest.fixture(scope="module")
def trained(setup, tmp_path_factory):
    return train(Trial(setup, 64, 3.0), tmp_path_factory.mktemp("trained") / "out")


def texts_of(split):
    return list(split.texts[0]) if len(split.texts) == 1 else list(zip(*split.texts, strict=True))


class TestPredictionsAreThoseOfTheTraining:
    @pytest.mark.parametrize("precision", ["fp32", "bf16"])
    def test_of_a_subspace(self, setup, tmp_path, precision):
        row, place, split = train(Trial(short(setup, precision=precision), 64, 3.0), tmp_path / "out")
        found = distsub.load(place)
        numbers = [found.labels.index(each) for each in found.predict(texts_of(split))]
        assert tuple(map(float, numbers)) == row.predicted and found.precision == precision
        assert found.evaluate(texts_of(split), split.labels) == dict(row.metrics)

    @pytest.mark.parametrize("head", ["trained", "frozen", "in_subspace"])
    def test_of_a_method_of_peft(self, setup, tmp_path, head):
        pytest.importorskip("peft")
        base = pretrained.build(pretrained.prepare(setup.model.name), 2, 0)
        method = Peft("LORA", head=head, step=0.01)
        d = peft_model.dims(base, method, (200,))[0][0]
        trial = Trial(dataclasses.replace(setup, method=method), d, 1.0)
        row, place, split = train(trial, tmp_path / "out")
        found = distsub.load(place)
        assert found.evaluate(texts_of(split), split.labels) == dict(row.metrics)
        assert type(found.model).__name__ == "BertForSequenceClassification"

    def test_of_a_base_in_bfloat16(self, setup, tmp_path):
        trial = Trial(
            dataclasses.replace(short(setup, precision="auto"), model=Model(setup.model.name, dtype="bfloat16")),
            64,
            3.0,
        )
        row, place, split = train(trial, tmp_path / "out")
        assert distsub.load(place).evaluate(texts_of(split), split.labels) == dict(row.metrics)

    def test_of_values_and_pairs(self, setup, tmp_path):
        lines = ["one,two,score", *(f"w{i} good,w{i + 1} bad,{i / 7:.3f}" for i in range(30))]
        (tmp_path / "pairs.csv").write_text("\n".join(lines) + "\n")
        task = resolve(
            "pairs", path=str(tmp_path / "pairs.csv"), text=("one", "two"), label="score", num_labels=1, holdout=10
        )
        row, place, split = train(Trial(dataclasses.replace(setup, task=task), 64, 1.0), tmp_path / "out")
        found = distsub.load(place)
        assert tuple(found.predict(texts_of(split))) == row.predicted and found.labels == ()
        with pytest.raises(ConfigError, match="no probabilities"):
            found.predict_proba(texts_of(split))
        with pytest.raises(DataError, match=r"row 1 is 'w1'; give a pair of texts \(one, two\)"):
            found.predict(["w1"])
        given = {"texts": texts_of(split)[:3], "labels": [0.5, "true", "2e-1"]}
        assert len(found.evaluate(**given)) > 1
        for odd, fix in (("sales", "fix it"), ("3,5", "write 3.5"), ("nan", "fix it"), (None, "fix it")):
            for place in range(3):
                labels = [*given["labels"]]
                labels[place] = odd
                with pytest.raises(DataError) as caught:
                    found.encode(labels, 'mail.csv: column "team"', ", or give another column")
                assert str(caught.value) == (
                    f'mail.csv: column "team": row {place + 1} of 3 holds {str(odd)!r}, which is no finite number; the '
                    f"adapter predicts values; {fix}, or give another column"
                )

    @pytest.mark.parametrize(
        ("method", "d"), [(Subspace(), 64), (Subspace(head="trained"), 64), (Peft("LORA", head="trained"), 960)]
    )
    def test_of_standardised_values(self, setup, tmp_path, method, d):
        """Everything that gives a value gives it in the units of the file, and so does what is exported."""
        lines = ["text,score", *(f"w{i} good,{100 + i / 7:.3f}" for i in range(30))]
        (tmp_path / "values.csv").write_text("\n".join(lines) + "\n")
        columns = {"text": ("text",), "label": "score", "num_labels": 1, "holdout": 10}
        task = resolve("values", path=str(tmp_path / "values.csv"), **columns, standardise=True)
        trial = Trial(dataclasses.replace(setup, task=task, method=method), d, 1.0)
        row, place, split = train(trial, tmp_path / "out")
        texts, found = texts_of(split), distsub.load(place)
        assert tuple(found.predict(texts)) == row.predicted and min(row.predicted) > 90
        assert found.evaluate(texts, split.labels) == dict(row.metrics)
        inputs = found.tokenizer(texts, return_tensors="pt", padding=True)
        targets = torch.tensor(split.labels)
        for model in (found.model, distsub.load_adapter(place), distsub.load_adapter(place)):
            given = model.eval()(**inputs, labels=targets)
            assert given.logits.squeeze(-1).tolist() == pytest.approx(list(row.predicted), abs=1e-3)
            assert given.loss.item() == pytest.approx(dict(row.metrics)["mse"], rel=1e-3)
        rows = str(tmp_path / "values.csv")
        for to in ("transformers", "peft"):
            facts = exports.export(place, to, tmp_path / to, data=rows, **({"rank": 32} if to == "peft" else {}))
            assert facts["scored_rows"] == 30
        plain = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "transformers")
        assert plain(**inputs).logits.squeeze(-1).tolist() == pytest.approx(list(row.predicted), abs=1e-3)
        base = transformers.AutoModelForSequenceClassification.from_pretrained(setup.model.name, num_labels=1)
        with peft_model.quiet():
            lora = peft.PeftModel.from_pretrained(base, str(tmp_path / "peft")).eval()
        assert lora(**inputs).logits.squeeze(-1).tolist() == pytest.approx(list(row.predicted), abs=0.5)

    def test_of_named_labels(self, setup, tmp_path):
        lines = [
            "body,team",
            *(f"w{i} {'good' if i % 2 else 'bad'},{'sales' if i % 2 else 'legal'}" for i in range(30)),
        ]
        (tmp_path / "mail.csv").write_text("\n".join(lines) + "\n")
        task = resolve("mail", path=str(tmp_path / "mail.csv"), text=("body",), label="team", holdout=10)
        row, place, split = train(Trial(dataclasses.replace(setup, task=task), 64, 3.0), tmp_path / "out")
        found = distsub.load(place)
        assert found.labels == ("legal", "sales") and set(found.predict(["w1 good"])) <= {"legal", "sales"}
        named = [found.labels[int(label)] for label in split.labels]
        assert found.evaluate(texts_of(split), named) == dict(row.metrics)
        with pytest.raises(DataError, match=r"1 of 2 rows have the label 'ops'.*tells apart legal, sales"):
            found.evaluate(["w1", "w2"], ["legal", "ops"])
        assert found.model.config.id2label == {0: "legal", 1: "sales"}


class TestPlainTransformers:
    def test_a_pipeline_says_the_same(self, trained):
        from transformers import pipeline

        _, place, split = trained
        found, texts = distsub.load(place), texts_of(split)
        classify = pipeline("text-classification", model=found.model, tokenizer=found.tokenizer)
        said = classify(texts, batch_size=8)
        assert [each["label"].removeprefix("LABEL_") for each in said] == found.predict(texts)
        expected = found.predict_proba(texts).max(-1)
        assert np.allclose([each["score"] for each in said], expected, atol=1e-5)

    def test_probabilities_sum_to_one(self, trained):
        _, place, split = trained
        chances = distsub.load(place).predict_proba(texts_of(split))
        assert chances.shape == (128, 2) and np.allclose(chances.sum(-1), 1, atol=1e-6)

    @pytest.mark.parametrize("given", [list, tuple, pa.array, np.array])
    def test_any_sequence_will_do(self, trained, given):
        found = distsub.load(trained[1])
        assert found.predict(given(["w1 good", "w2 bad w3"])) == found.predict(["w1 good", "w2 bad w3"])
        assert found.predict([]) == [] and found.predict_proba([]).shape == (0, 2)


class TestByHand:
    """An adapter that does not say what it was trained on reads texts or pairs, up to what the model takes."""

    @pytest.fixture
    def place(self, tiny_model, tmp_path):
        model = SubspaceModel(pretrained.build(pretrained.prepare(tiny_model), 2, 3), 60, Subspace())
        with torch.no_grad():
            model.coordinates.normal_(generator=torch.Generator().manual_seed(0))
        model.save_pretrained(tmp_path / "adapter", base_model=tiny_model, head_seed=3)
        return tmp_path / "adapter"

    def test_texts_and_pairs(self, place):
        found = distsub.load(place)
        assert found.max_length == 32 and not found.knows_columns and found.precision == "fp32"
        assert len(found.predict(["w1", "w2 good"])) == len(found.predict([("w1", "w2"), ("w3", "good")])) == 2
        with pytest.raises(DataError, match=r"row 2 is 'w2'"):
            found.predict([("w1", "w2"), "w2"])

    def test_print_trainable_parameters(self, tiny_model, capsys):
        model = SubspaceModel(pretrained.build(pretrained.prepare(tiny_model), 2, 3), 60)
        model.print_trainable_parameters()
        whole = model.num_params_model + 60
        assert capsys.readouterr().out == (
            f"trainable params: 60 || all params: {whole:,} || trainable%: {6000 / whole:.4f}\n"
        )


OTHER_PAIRS = [pytest.param(*pair, marks=pytest.mark.slow) for pair in (("llama", False), ("t5", True))]


@pytest.mark.parametrize(("kind", "chat"), [("llama", True), ("t5", False), *OTHER_PAIRS])
def test_completions_are_those_of_the_training(kind, chat, tmp_path):
    folder = decoders.make(kind, tmp_path / kind, decoders.CHAT if chat else None)
    for name in ("train", "validation"):
        rows = [{"prompt": f"w{i} good :", "completion": "yes"} for i in range(8)]
        if chat:
            rows = [
                {"messages": [{"role": "user", "content": f"w{i} good"}, {"role": "assistant", "content": "yes"}]}
                for i in range(8)
            ]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    columns = {"messages": "messages"} if chat else {"prompt": "prompt", "completion": "completion"}
    task = resolve("toy", path=str(tmp_path), kind="completion", metric="exact_match", max_new_tokens=4, **columns)
    budget = Budget(steps=30, batch_size=8, max_length=24)
    row, place, split = train(Trial(Setup(Model(folder), task, Subspace(), 1e-3, budget), 500, 3.0), tmp_path / "out")
    found = distsub.load(place)
    assert found.evaluate(texts_of(split), split.labels) == dict(row.metrics)
    said = found.predict(texts_of(split))
    assert [float(text == "yes") for text in said] == list(row.predicted)
    assert found.predict(texts_of(split)[:3], max_new_tokens=1) != ["yes yes"] * 3
    inputs = found.tokenizer(["w1 good :", "good"], return_tensors="pt", padding=True)
    inputs.pop("token_type_ids", None)
    assert found.generate(**inputs, max_new_tokens=2, do_sample=False).shape[0] == 2
    with pytest.raises(ConfigError, match="completes prompts"):
        found.logits(["w1"])
    with pytest.raises(ConfigError, match="no probabilities"):
        found.predict_proba(["w1"])


class TestMistakes:
    @pytest.mark.parametrize(
        ("texts", "message"),
        [
            ("one text", r"was given one text: predict\(\[text\]\)"),
            (["w1", None], r"row 2 is None; give a text"),
            (["w1", " "], r"row 2 is an empty text"),
            ([("w1", "w2")], r"row 1 is \('w1', 'w2'\); give a text"),
            ([float("nan")], r"row 1 is nan"),
        ],
    )
    def test_texts(self, trained, texts, message):
        with pytest.raises(DataError, match=message) as caught:
            distsub.load(trained[1]).predict(texts)
        assert "\n" not in str(caught.value)

    def test_a_base_that_is_not_here_or_another(self, trained, tmp_path):
        place = trained[1]
        with pytest.raises(UnavailableError, match="nowhere"):
            distsub.load(place, base=tmp_path / "nowhere")
        from transformers import BertConfig, BertModel

        config = json.loads((place / "adapter_config.json").read_text())
        torch.manual_seed(5)
        BertModel(BertConfig.from_pretrained(config["base_model"])).save_pretrained(tmp_path / "other")
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (tmp_path / "other" / name).write_bytes(
                (pretrained.prepare(config["base_model"]).source / name).read_bytes()
            )
        with pytest.raises(AdapterError, match="made for other weights"):
            distsub.load(place, base=tmp_path / "other")
        with pytest.raises(AdapterError, match="base is a model: give its address"):
            distsub.load(place, base=torch.nn.Linear(2, 2))  # pyright: ignore[reportArgumentType]

    def test_another_version(self, trained, tmp_path):
        import shutil

        place = shutil.copytree(trained[1], tmp_path / "copy")
        config = json.loads((place / "adapter_config.json").read_text())
        (place / "adapter_config.json").write_text(json.dumps(config | {"format_version": 99}))
        with pytest.raises(AdapterError, match=r"has format version 99, distsub .* reads version 2; use the"):
            distsub.load(place)

    def test_numbers_that_are_not_finite(self, trained):
        found = distsub.load(trained[1])
        with torch.no_grad():
            found.model.classifier.bias.fill_(float("nan"))
        with pytest.raises(AdapterError, match="not finite, first for row 1"):
            found.predict(["w1"])
