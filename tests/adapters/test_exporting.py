"""Adapters as plain transformers and PEFT models, loaded by those alone."""

import dataclasses
import json
import subprocess
import sys

import decoders
import pytest
import torch
import transformers

from distsub.adapters import exporting, exporting_peft, loading, units
from distsub.adapters.predictor import Predictor
from distsub.config import parse_sweep
from distsub.data.tasks import resolve
from distsub.errors import AdapterError, ConfigError, OutputError
from distsub.models import peft_model, pretrained
from distsub.preflight.checks import check
from distsub.records import PEFT_STEPS, Budget, Model, Peft, Random, Setup, Subspace, Trial
from distsub.results import Store
from distsub.runtime.worker import WorkerConfig, perform

FAST = ("LORA", "IA3", "UNILORA", "gpt2", "llama", "t5")
EXACT = "those of the held model, to the bit"


@pytest.fixture(scope="module")
def setup(tiny_text):
    [search, *_] = check(parse_sweep(tiny_text)).searches()
    return dataclasses.replace(search.setup, budget=dataclasses.replace(search.setup.budget, steps=6, eval_every=None))


def opened(trial, folder):
    """Train as a sweep does, and open the adapter."""
    torch.set_num_threads(1)
    if not (folder / "sweep.json").exists():
        Store.create(str(folder), "", "f")
    assert perform(trial, WorkerConfig(str(folder), checkpoint_s=None)).status == "finished"
    return loading.open_adapter(folder / "adapters" / trial.id)


def of_decoder(kind, tmp_path, d=500):
    folder = decoders.make(kind, tmp_path / kind)
    for name in ("train", "validation"):
        rows = [{"prompt": f"w{i} good :", "completion": "yes"} for i in range(8)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    task = resolve("toy", path=str(tmp_path), kind="completion", prompt="prompt", completion="completion")
    budget = Budget(steps=5, batch_size=8, max_length=24)
    return opened(Trial(Setup(Model(folder), task, Subspace(), 1e-3, budget), d, 3.0), tmp_path / "out")


class TestTransformers:
    @pytest.mark.parametrize(
        "fields", [{}, {"scales": "layer"}, {"head": "trained"}, {"embeddings": "frozen"}, {"ensemble": 2},
                   {"projection": Random("fastfood", block_length=1024)}],
    )  # fmt: skip
    def test_weights_and_logits_are_those_of_the_held_model(self, setup, tmp_path, fields):
        found = opened(Trial(dataclasses.replace(setup, method=Subspace(**fields)), 64, 3.0), tmp_path / "out")
        expected = found.model.merged_state()
        export = exporting.to_transformers(found, tmp_path / "plain")
        assert export.facts["logits"] == EXACT and export.facts["dtype"] == "float32"
        again = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "plain")
        assert {name: p for name, p in again.named_parameters() if not torch.equal(p, expected[name])} == {}

    @pytest.mark.parametrize("dtype", [None, "float32", "bfloat16"])
    def test_of_a_base_in_bfloat16(self, setup, tmp_path, dtype):
        budget = dataclasses.replace(setup.budget, precision="auto")
        held = dataclasses.replace(setup, budget=budget, model=Model(setup.model.name, dtype="bfloat16"))
        found = opened(Trial(held, 64, 3.0), tmp_path / "out")
        export = exporting.to_transformers(found, tmp_path / "plain", dtype)
        assert (export.facts["logits"] == EXACT) == (dtype != "float32")
        again = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "plain")
        assert again.dtype == getattr(torch, dtype or "bfloat16")
        for name, tensor in found.model.merged_state().items():
            assert torch.equal(again.get_parameter(name).float(), tensor.float())

    @pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
    def test_another_precision_is_said(self, setup, tmp_path, dtype):
        found = opened(Trial(setup, 64, 3.0), tmp_path / "out")
        export = exporting.to_transformers(found, tmp_path / "plain", dtype)
        assert export.facts["weights"] == "rounded from float32" and "differ" in export.facts["logits"]
        config = json.loads((tmp_path / "plain/config.json").read_text())
        assert config["dtype"] == dtype and "_name_or_path" not in config

    @pytest.mark.parametrize("peft", [p if p in FAST else pytest.param(p, marks=pytest.mark.slow) for p in PEFT_STEPS])
    def test_of_every_method_of_peft(self, setup, tmp_path, peft):
        pytest.importorskip("peft")
        base = pretrained.build(pretrained.prepare(setup.model.name), 2, 0)
        method = Peft(peft, head="trained", step=0.01)
        d = peft_model.dims(base, method, (200,))[0][0]
        found = opened(Trial(dataclasses.replace(setup, method=method), d, 1.0), tmp_path / "out")
        inputs, held = exporting.probe(found)
        try:
            exporting.to_transformers(found, tmp_path / "plain")
        except AdapterError as error:
            assert peft in str(error) and str(error).endswith("use --to peft") and not (tmp_path / "plain").exists()
            return
        again = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "plain")
        torch.testing.assert_close(exporting.run(again, inputs), held, rtol=0, atol=1e-5)
        before = dict(base.named_parameters())
        body = [(name, p) for name, p in again.named_parameters() if "classifier" not in name]
        assert not all(torch.equal(p, before[name]) for name, p in body), "nothing was merged"

    @pytest.mark.parametrize(
        "kind", [k if k in FAST else pytest.param(k, marks=pytest.mark.slow) for k in decoders.KINDS]
    )
    def test_of_language_models(self, kind, tmp_path):
        found = of_decoder(kind, tmp_path)
        export = exporting.to_transformers(found, tmp_path / "plain")
        assert export.facts["logits"] == EXACT
        auto = transformers.AutoModelForSeq2SeqLM if kind in ("t5", "bart") else transformers.AutoModelForCausalLM
        again = auto.from_pretrained(tmp_path / "plain")
        tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "plain")
        batch = tokenizer(["w1 good :", "w2 :"], return_tensors="pt", padding=True)
        batch.pop("token_type_ids", None)
        ids = again.generate(**batch, max_new_tokens=3, do_sample=False)
        held = found.model.generate(**batch, max_new_tokens=3, do_sample=False)
        assert torch.equal(ids, held)
        assert tokenizer.padding_side == ("right" if kind in ("t5", "bart") else "left")

    @pytest.mark.slow
    def test_a_pipeline_without_distsub_says_the_same(self, setup, tmp_path):
        lines = [f"w{i} {'good' if i % 2 else 'bad'},{'sales' if i % 2 else 'legal'}" for i in range(40)]
        (tmp_path / "mail.csv").write_text("\n".join(["body,team", *lines]) + "\n")
        task = resolve("mail", path=str(tmp_path / "mail.csv"), text=("body",), label="team", holdout=10)
        trial = Trial(dataclasses.replace(setup, task=task), 64, 3.0)
        found = opened(trial, tmp_path / "out")
        texts = ["w1 good", "w2 bad w3", "w1 " * 30]  # the last is longer than the training's max_length
        expected = Predictor(found).predict(texts)
        exporting.to_transformers(found, tmp_path / "plain")
        code = (
            "import sys, json\nfrom transformers import pipeline\n"
            f"classify = pipeline('text-classification', model={str(tmp_path / 'plain')!r})\n"
            f"print(json.dumps([each['label'] for each in classify({texts!r}, truncation=True)]))\n"
            "assert 'distsub' not in sys.modules"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout.splitlines()[-1]) == expected

    def test_what_is_there_is_kept(self, setup, tmp_path):
        found = opened(Trial(setup, 64, 3.0), tmp_path / "out")
        (tmp_path / "full").mkdir()
        (tmp_path / "full/mine").write_text("x")
        for place in (tmp_path / "full", tmp_path / "full/mine"):
            with pytest.raises(OutputError, match="exists already"):
                exporting.to_transformers(found, place)
        with pytest.raises(OutputError, match="give a directory of this machine"):
            exporting.to_transformers(found, "s3://bucket/x")
        assert [each.name for each in tmp_path.iterdir() if each.name.startswith(".")] == []


class TestPeft:
    @pytest.mark.parametrize(
        ("peft", "head"),
        [
            pytest.param(peft, head, marks=[pytest.mark.slow] if number % 2 or (number + place) % 3 else [])
            for number, peft in enumerate(PEFT_STEPS)
            for place, head in enumerate(("trained", "frozen", "in_subspace"))
        ],
    )
    def test_a_method_of_peft_is_loaded_by_peft_alone(self, setup, tmp_path, peft, head):
        pytest.importorskip("peft")
        base = pretrained.build(pretrained.prepare(setup.model.name), 2, 0)
        method = Peft(peft, head=head, step=0.01)
        try:
            d = peft_model.dims(base, method, (200,))[0][0]
        except ConfigError:
            pytest.skip("it cannot adapt a head")
        found = opened(Trial(dataclasses.replace(setup, method=method), d, 1.0), tmp_path / "out")
        inputs, held = exporting.probe(found)
        try:
            export = exporting_peft.to_peft(found, tmp_path / "peft")
        except AdapterError as error:
            assert head == "in_subspace" and "use --to transformers" in str(error)
            return
        assert (export.facts["logits"] == EXACT) or head == "in_subspace", export.facts
        assert f"peft.{export.facts['load'].split('.')[0]}." in (tmp_path / "peft" / "README.md").read_text()
        torch.testing.assert_close(exporting.run(loaded(setup, tmp_path / "peft"), inputs), held, rtol=0, atol=1e-5)

    @pytest.mark.parametrize("fields", [{}, {"head": "trained"}, {"embeddings": "trained"}, {"scales": "layer"}])
    def test_a_subspace_of_full_rank_comes_back(self, setup, tmp_path, fields):
        pytest.importorskip("peft")
        found = opened(Trial(dataclasses.replace(setup, method=Subspace(**fields)), 64, 3.0), tmp_path / "out")
        inputs, held = exporting.probe(found)
        export = exporting_peft.to_peft(found, tmp_path / "peft", rank=64)
        assert export.facts["relative_error"] < 1e-4 and "share_of_update_lost" not in export.facts
        whole, there = export.facts["whole"], {name for name, _ in found.model.model.named_modules()}
        assert len(set(whole)) == len(whole) and set(whole) <= there, whole
        torch.testing.assert_close(exporting.run(loaded(setup, tmp_path / "peft"), inputs), held, rtol=0, atol=1e-4)

    def test_the_error_is_that_of_the_best_approximation(self, setup, tmp_path):
        """Against singular values in float64, layer by layer."""
        pytest.importorskip("peft")
        method = Subspace(modules="attention", head="frozen")
        found = opened(Trial(dataclasses.replace(setup, method=method), 64, 3.0), tmp_path / "out")
        lost = total = 0.0
        after = found.model.merged_state()
        with found.model.hooks.states_of("theta_0"):
            before = found.model.model.state_dict()
        for name in after:
            update = after[name].double() - before[name].double()
            total += float(update.square().sum())
            if update.dim() == 2:
                lost += float(torch.linalg.svdvals(update)[4:].square().sum())
        export = exporting_peft.to_peft(found, tmp_path / "peft", rank=4)
        assert export.facts["relative_error"] == pytest.approx((lost / total) ** 0.5, rel=1e-4)
        assert 0.1 < export.facts["relative_error"] < 1

    def test_more_rank_is_nearer(self, setup, tmp_path):
        pytest.importorskip("peft")
        found = opened(Trial(setup, 64, 3.0), tmp_path / "out")
        errors = [
            exporting_peft.to_peft(found, tmp_path / f"peft-{rank}", rank=rank).facts["relative_error"]
            for rank in (1, 4, 16)
        ]
        assert 1 > errors[0] > errors[1] > errors[2] > 0

    def test_what_the_format_cannot_hold_is_refused(self, tmp_path):
        pytest.importorskip("peft")
        found = of_decoder("gpt2", tmp_path)
        with pytest.raises(AdapterError, match=r"cannot hold \d+\.\d\d% of the update .* transformer\.wte\.weight"):
            exporting_peft.to_peft(found, tmp_path / "peft", rank=64)
        assert not (tmp_path / "peft").exists()
        export = exporting_peft.to_peft(found, tmp_path / "peft", rank=64, drop=True)
        share = export.facts["share_of_update_lost"]
        assert 0 < share < 1 and export.facts["relative_error"] == pytest.approx(share**0.5, rel=1e-3)
        with pytest.raises(ConfigError, match="rank = 0"):
            exporting_peft.to_peft(found, tmp_path / "other", rank=0)

    def test_of_a_decoder(self, tmp_path):
        pytest.importorskip("peft")
        import peft

        found = of_decoder("llama", tmp_path)
        inputs, held = exporting.probe(found)
        exporting_peft.to_peft(found, tmp_path / "peft", rank=64)
        with peft_model.quiet():
            again = peft.AutoPeftModelForCausalLM.from_pretrained(str(tmp_path / "peft"))
        torch.testing.assert_close(exporting.run(again, inputs), held, rtol=0, atol=1e-3)


def loaded(setup, place):
    """Load an adapter as a user of PEFT does: its base has a head of its own."""
    import peft

    torch.manual_seed(99)
    base = transformers.AutoModelForSequenceClassification.from_pretrained(setup.model.name, num_labels=2)
    with peft_model.quiet():
        return peft.PeftModel.from_pretrained(base, str(place))


@pytest.mark.parametrize(
    ("address", "shown", "words"),
    [
        ("org/base", "base_model: org/base\n", "`org/base`"),
        ("package:gt_base", "`package:gt_base`", "in a Python package, where transformers looks for none"),
        ("/home/me/base", "`base`", "The base lies in a folder"),
    ],
)
def test_the_readme_of_an_export_says_where_the_base_lies_and_shows_no_path(address, shown, words):
    text = exporting_peft.readme(address, "PeftModel")
    assert shown in text and words in text and "/home/me" not in text
    assert ("adapter_config.json" in text) == (address != "org/base")


def test_units_that_the_last_layer_cannot_hold_are_refused():
    """A decoder's last layer has no bias for the mean."""
    for model in (torch.nn.Linear(4, 1, bias=False), torch.nn.Linear(4, 2)):
        with pytest.raises(AdapterError, match=r"no last layer with a bias .* mean 2\.5: use distsub\.load"):
            units.fold(model, (2.5, 1.5))


def test_folded_units_are_those_of_the_values_in_float64():
    torch.manual_seed(0)
    layer, rows = torch.nn.Linear(8, 1).double(), torch.randn(20, 8, dtype=torch.float64)
    expected = layer(rows) * 1.5 + 2.5
    units.fold(layer, (2.5, 1.5))
    torch.testing.assert_close(layer(rows), expected, rtol=1e-12, atol=1e-12)
