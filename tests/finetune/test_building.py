"""What is trained on a base held in bfloat16: full fine-tuning, and a head beside it, in float32."""

import dataclasses
import json
import shutil

import decoders
import pytest
import torch
from safetensors.torch import load_file, save_file

from distsub.adapters import loading
from distsub.api import sweep_of
from distsub.config import parse_sweep
from distsub.data import dataset
from distsub.errors import ConfigError
from distsub.finetune import building
from distsub.models import pretrained
from distsub.preflight import checks
from distsub.records import Freeze, Full, Model, Peft, Subspace, label
from distsub.results import Store
from distsub.runtime import launch
from distsub.runtime.worker import WorkerConfig, perform
from distsub.subspace import adapter

METHODS = """methods = [
  { name = "said", dims = [64] },
  { name = "did", head = "trained" },
  "intrinsic",
  "freeze",
]"""


@pytest.fixture
def text(tiny_text, tiny_model):
    made = tiny_text.replace(f'path = "{tiny_model}"', f'path = "{tiny_model}", dtype = "bfloat16"')
    made = made.replace('methods = ["said", "did"]', METHODS).replace("seeds = 2", "seeds = 1")
    made = made.replace("dims = [8, 16, 64, 256]", "dims = [2]").replace('precision = "fp32"', 'precision = "auto"')
    made = made.replace("[1e-3, 3e-3]", "[3e-3]").replace("etas = [1.0, 3.0]", "etas = [3.0]")
    made = made.replace('{ name = "did"', '{ name = "did", dims = [64]')
    return made + '\n[trajectory]\nevery = 10\nlearning_rate = 3e-3\ndtype = "float32"\n'


@pytest.mark.slow
def test_a_sweep_on_a_base_in_bfloat16(text, tmp_path):
    sweep = checks.check(parse_sweep(text, tmp_path))
    store = Store.create(tmp_path / "out", sweep.text, sweep.fingerprint, str(tmp_path), sweep.places, sweep.record)
    assert launch.run(sweep, store, "inline", plain=True) == 0
    rows = {label(row.trial.method): row for row in store.read()}
    assert {"full", "said", "intrinsic", "freeze"} < set(rows) and len(rows) == 5
    assert all(row.status == "finished" and dict(row.provenance)["precision"] == "bf16" for row in rows.values())
    assert {row["model_dtype"] for row in store.table().to_pylist()} == {"bfloat16"}
    assert {row.trial.model.dtype for row in rows.values()} == {"bfloat16"}
    assert rows["full"].score > 0.9 and rows["intrinsic"].score > 0.9
    assert sweep_of(Store.open(tmp_path / "out")).fingerprint == sweep.fingerprint
    for name in set(rows) - {"full", "freeze"}:
        found = loading.load_adapter(tmp_path / "out" / "adapters" / rows[name].trial.id)
        assert {p.dtype for p in found.model.parameters()} == {torch.bfloat16}
        assert found.coordinates.dtype == torch.float32 and found.coordinates.any()


@pytest.fixture
def built(text, tmp_path):
    """Build the model of any method on the base in bfloat16."""
    sweep = checks.check(parse_sweep(text, tmp_path))
    model, task = sweep.models[0], dataset.load(sweep.tasks[0], sweep.budget).task
    prepared = pretrained.prepare(model.name, dtype="bfloat16")
    trial = sweep.searches()[0].trials_at(64)[0].vary(task=task)

    def build(method):
        moves = isinstance(method, Subspace)
        trained = trial.vary(method=method, d=64 if moves else None, eta=1.0 if moves else None)
        return building.build_model(trained, prepared)[0], pretrained.build(prepared, 2, trial.seeds.head)

    return build


def test_full_fine_tuning_has_float32_weights_from_the_same_theta_0(built):
    model, theta_0 = built(Full())
    assert {p.dtype for p in theta_0.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    widened = {name: p.float() for name, p in theta_0.named_parameters()}
    assert all(torch.equal(p, widened[name]) for name, p in model.named_parameters())


@pytest.mark.parametrize("method", [Subspace(head="trained"), Freeze()])
def test_a_head_beside_it_is_trained_in_float32(built, method):
    model, _ = built(method)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert {p.dtype for p in trained.values()} == {torch.float32}
    assert any("classifier" in name for name in trained)
    rest = {p.dtype for p in model.parameters() if not p.requires_grad}
    assert rest == {torch.bfloat16}


def test_what_would_mix_precisions_is_refused(built, text, tmp_path):
    with pytest.raises(ConfigError, match='embeddings = "trained" needs them in float32'):
        built(Subspace(embeddings="trained"))
    with pytest.raises(ConfigError, match='peft = "LORA" is not trained on a base held in bfloat16 here'):
        built(Peft("LORA"))
    with pytest.raises(ConfigError, match=r'dtype = "bfloat16" runs in bf16, not in .budget. precision = "fp32"'):
        checks.check(parse_sweep(text.replace('precision = "auto"', 'precision = "fp32"'), tmp_path))
    with pytest.raises(ConfigError, match=r'dtype: .*"float16"'):
        parse_sweep(text.replace('dtype = "bfloat16" }]', 'dtype = "float16" }]'))


def test_auto_is_the_checkpoints_own(tiny_model, text, tmp_path):
    half = shutil.copytree(tiny_model, tmp_path / "half")
    tensors = {name: each.bfloat16() for name, each in load_file(half / "model.safetensors").items()}
    save_file(tensors, half / "model.safetensors", metadata={"format": "pt"})

    def models(*asked):
        listed = ", ".join(f'{{ path = "{place}", dtype = "{dtype}" }}' for place, dtype in asked)
        start = text[: text.index("models =")] + f"models = [{listed}]\n"
        return checks.check(parse_sweep(start + text[text.index("methods =") :], tmp_path)).models

    [auto] = models((half, "auto"))
    assert auto.dtype == "bfloat16" and models((half, "bfloat16")) == (auto,)
    assert [each.dtype for each in models((half, "float32"), (half, "auto"))] == ["float32", "bfloat16"]
    assert models((tiny_model, "auto")) == models((tiny_model, "float32"))
    with pytest.raises(ConfigError, match="models: entry 2 repeats entry 1"):
        models((half, "auto"), (half, "bfloat16"))


def test_the_precision_is_part_of_what_a_model_is():
    one, half = Model("org/one", content="a"), Model("org/one", content="a", dtype="bfloat16")
    assert one != half and '"dtype": "bfloat16"' in half.identity and "dtype" not in one.identity


def test_the_weights_are_hashed_once_for_all_adapters(text, tmp_path, monkeypatch):
    hashed, real = [], adapter.hash_of
    monkeypatch.setattr(
        adapter, "hash_of", lambda tensors, names: hashed.append(len(set(names))) or real(tensors, names)
    )
    monkeypatch.setenv("DISTSUB_CACHE", str(tmp_path / "cache"))
    sweep = checks.check(parse_sweep(text, tmp_path))
    store = Store.create(tmp_path / "out", sweep.text, sweep.fingerprint, str(tmp_path), sweep.places, sweep.record)
    [search] = [search for search in sweep.searches() if search.method.scales]
    budget = dataclasses.replace(search.budget, steps=2, eval_every=None)
    trials = [search.trials_at(64)[0].vary(d=d, budget=budget) for d in (16, 32, 64)]
    config = WorkerConfig(store.uri, places=sweep.places)
    for trial in trials:
        perform(trial, config)
    assert sum(number > 10 for number in hashed) == 1  # the others are of heads
    for trial in trials:
        loading.load_adapter(tmp_path / "out" / "adapters" / trial.id)  # which hashes the weights and compares


@pytest.mark.parametrize("kind", ["gpt2", "llama", "t5", "bart"])
def test_language_models_in_bfloat16_pass_what_is_checked_before_a_sweep(kind, tmp_path):
    decoders.make(kind, tmp_path / "model")
    for name in ("train", "validation"):
        words = [("good", "yes") if i % 2 else ("bad", "no") for i in range(24)]
        rows = [{"prompt": f"w{i} {word} :", "completion": answer} for i, (word, answer) in enumerate(words)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sweep = f"""
name = "completions"
models = [{{ path = "{tmp_path}/model", dtype = "bfloat16" }}]
methods = ["did", "said"]
seeds = 1
dims = [32]

[[tasks]]
name = "exact"
path = "{tmp_path}"
kind = "completion"
prompt = "prompt"
completion = "completion"
metric = "exact_match"
max_new_tokens = 2

[search]
etas = [1.0]
learning_rate = 3e-3

[baseline]
learning_rates = [3e-3]

[budget]
steps = 4
batch_size = 8
max_length = 32
"""
    (model,) = checks.check(parse_sweep(sweep, tmp_path)).models
    assert model.dtype == "bfloat16"
