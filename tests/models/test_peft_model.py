"""Every type of PEFT that a sweep can name: exact counts, a training, the same again from its seed, its files."""

import dataclasses
import json

import decoders
import pytest
import torch

from distsub import load_adapter
from distsub.config import parse_sweep
from distsub.data.tasks import resolve
from distsub.errors import AdapterError, ConfigError, DimensionError, UnavailableError
from distsub.finetune.resume import ResumeState
from distsub.finetune.train import Observer, Stopped, train
from distsub.models import peft_model, pretrained
from distsub.preflight.checks import check
from distsub.records import PEFT_STEPS, Budget, Full, Model, Peft, Seeds, Setup, Subspace, Trial
from distsub.results import Store
from distsub.runtime.worker import WorkerConfig, perform

pytest.importorskip("peft")

DRAWN = ["FOURIERFT", "LORA", "RANDLORA", "SHIRA", "TINYLORA", "UNILORA", "VBLORA", "VERA"]
"""The types that draw random numbers."""

IDS = torch.tensor([[2, 5, 6, 7, 3], [2, 9, 8, 7, 3]])


@pytest.fixture
def base(tiny_model):
    torch.set_num_threads(1)
    return pretrained.build(pretrained.prepare(tiny_model), 2, 0)


@pytest.fixture
def setup(tiny_text):
    torch.set_num_threads(1)
    sweep = check(parse_sweep(tiny_text))
    [search, *_] = sweep.searches()
    return dataclasses.replace(search.setup, budget=dataclasses.replace(search.budget, steps=6, eval_every=3))


@pytest.fixture
def trial(setup, base):
    def make(peft, head="frozen", d=200, **changes):
        method = Peft(peft, head=head, step=0.01, **changes)
        return Trial(dataclasses.replace(setup, method=method), peft_model.dims(base, method, (d,))[0][0], 1.0)

    return make


class Watch(Observer):
    """Keeps what is trained before the first step and after the last, and the logits there."""

    def on_start(self, training):
        self.before = [p.detach().clone() for p in training.trained]

    def on_end(self, training, observation):
        self.after = [p.detach().clone() for p in training.trained]
        with torch.no_grad():
            self.logits = training.model.eval()(input_ids=IDS).logits


def plain(observation):
    return dataclasses.replace(observation, wall_s=0.0, eval_s=0.0, peak_bytes=0)


FAST = ("FOURIERFT", "LORA", "LN_TUNING", "UNILORA")
TYPES = [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in PEFT_STEPS]


@pytest.mark.parametrize("peft", TYPES)
def test_it_trains_exactly_d_numbers_from_its_seed(peft, trial):
    one, watch = trial(peft), Watch()
    first = train(one, [watch])
    assert first.status == "finished" and first.steps == 6
    assert first.num_trained == one.d == sum(p.numel() for p in watch.before)
    assert (first.num_trained_head, first.step_size) == (0, 0.01)
    assert 0 < first.num_params < first.num_params_model
    assert all(not torch.equal(a, b) for a, b in zip(watch.before, watch.after, strict=True)), "a gradient is missing"
    assert "peft" in dict(first.provenance) and "peft_configuration" in dict(first.provenance)
    torch.manual_seed(999)
    again = Watch()
    assert plain(train(one, [again])) == plain(first) and torch.equal(again.logits, watch.logits)
    other = Watch()
    train(one.vary(seeds=Seeds(7, 0, 0)), [other])
    assert torch.equal(other.logits, watch.logits) == (peft not in DRAWN)


@pytest.mark.parametrize("peft", TYPES)
def test_its_files_give_the_same_logits(peft, trial, tmp_path):
    store, watch = Store.create(str(tmp_path / "out"), "", "f"), Watch()
    one = trial(peft, head="trained")
    row = perform(one, WorkerConfig(str(tmp_path / "out"), checkpoint_s=None))
    assert row.num_trained_head == 66 and row.num_trained == one.d
    assert plain(train(one, [watch])).predicted == row.predicted
    folder = tmp_path / "out/adapters" / one.id
    assert json.loads((folder / "adapter_config.json").read_text())["peft_type"] == peft
    with torch.no_grad():
        assert torch.equal(load_adapter(folder, store.uri)(input_ids=IDS).logits, watch.logits)


@pytest.mark.parametrize("peft", ["LORA", "TINYLORA", "VERA"])
def test_going_on_gives_the_same_bits(peft, trial):
    class Cut(Observer):
        def on_step(self, training):
            self.data = ResumeState.of(training).to_bytes() if training.step == 5 else self.data
            return training.step == 5

        data = b""

    class Start(Watch):
        def on_start(self, training):
            assert ResumeState.from_bytes(cut.data, one).restore(training)
            super().on_start(training)

    one, cut, whole, resumed = trial(peft, head="trained"), Cut(), Watch(), Start()
    with pytest.raises(Stopped):
        train(one, [cut])
    assert plain(train(one, [resumed])) == plain(train(one, [whole]))
    assert torch.equal(resumed.logits, whole.logits)


def test_the_head_counts_as_it_does_in_a_subspace(trial, setup):
    """Adapted within d, or trained in full beside it and counted apart, or left at theta_0."""
    for head, beside in (("in_subspace", 0), ("trained", 66), ("frozen", 0)):
        adapter = train(trial("UNILORA", head, d=64))
        spanned = train(Trial(dataclasses.replace(setup, method=Subspace(head=head)), 64, 1.0))
        for row in (adapter, spanned):
            assert (row.num_trained, row.num_trained_head) == (64, beside)
    within, apart = (peft_model.Sizes(_built(setup), Peft("LORA", head=head)) for head in ("in_subspace", "frozen"))
    assert within.num_params == apart.num_params + 66
    assert within.nearest(1)[0] == apart.nearest(1)[0] + 32 + 2  # rank 1 on the head's matrix of 2 x 32


def _built(setup):
    return pretrained.build(pretrained.prepare(setup.model.name), 2, 0)


def test_options_reach_peft_and_decide_the_id(trial):
    usual, narrow = trial("LORA"), trial("LORA", options=('target_modules=["query"]', "use_rslora=true"))
    assert len({usual.id, narrow.id, trial("LORA", options=('target_modules=["query"]',)).id}) == 3
    assert len({trial("LORA", head=head).setup.id for head in ("in_subspace", "frozen", "trained")}) == 3
    row = train(narrow)
    assert row.num_trained == 256 and row.num_params == 2 * (32 * 32 + 32)
    assert dict(row.provenance)["peft_configuration"] == "r=2 lora_alpha=4"


def test_the_base_stays_where_a_bias_is_trained(trial, base):
    before = {name: p.clone() for name, p in base.named_parameters()}
    row = train(trial("LORA", options=('bias="lora_only"',), d=1000))
    assert row.num_trained > 0 and row.status == "finished"
    after = dict(_built(row.trial.setup).named_parameters())
    assert all(torch.equal(after[name], p) for name, p in before.items())


def test_what_cannot_be_is_one_line(base, trial, monkeypatch):
    def message(method, error=ConfigError):
        with pytest.raises(error) as raised:
            peft_model.Sizes(base, method)
        assert "\n" not in str(raised.value)
        return str(raised.value)

    assert 'did you mean "use_rslora"' in message(Peft("LORA", ("use_rslra=true",)))
    assert "leave out options.modules_to_save" in message(Peft("LORA", ('modules_to_save=["x"]',)))
    assert "projection seed decides" in message(Peft("VERA", ("projection_prng_key=3",)))
    assert "cannot adapt the head" in message(Peft("LN_TUNING"))
    assert "has no module 'qury'; did you mean \"query\"" in message(Peft("LORA", ('target_modules=["qury"]',)))
    assert "matches no module" in message(Peft("LORA", ('target_modules="nothing"',)))
    assert "leave out the head" in message(Peft("LORA", ('exclude_modules=["classifier"]',)))
    assert "name the layers by target_modules" in message(Peft("LORA", ("layers_to_transform=[0]",)))
    assert "does not fit BertForSequenceClassification" in message(Peft("VBLORA", ("vector_length=7",)))
    with pytest.raises(DimensionError, match=r"d = 201: LORA .* the nearest has \d+"):
        train(trial("LORA").vary(d=201))
    with pytest.raises(ConfigError, match="change the base model's own weights"):
        train(trial("LORA", options=('init_lora_weights="pissa"',)))
    monkeypatch.setitem(__import__("sys").modules, "peft.mapping", None)
    assert "distsub[peft]" in message(Peft("LORA"), UnavailableError)


def test_a_method_says_where_it_ends(base):
    found, line = peft_model.dims(base, Peft("LORA"), (8, 16, 5000))
    assert found[0] > 900 and line == f"LORA trains at least {found[0]:,} numbers here; dims go from 8 to 5,000"
    found, line = peft_model.dims(base, Peft("TINYLORA"), (8, 500))
    assert found == (8, 56) and line == "TINYLORA trains at most 56 numbers here; dims go from 8 to 500"
    assert peft_model.dims(base, Peft("UNILORA"), (8, 500)) == ((8, 500), "")


def test_damaged_files_are_refused(trial, tmp_path):
    Store.create(str(tmp_path / "out"), "", "f")
    one = trial("LORA")
    perform(one, WorkerConfig(str(tmp_path / "out"), checkpoint_s=None))
    folder = tmp_path / "out/adapters" / one.id
    facts = folder / "distsub.json"
    good = json.loads(facts.read_text())
    with pytest.raises(AdapterError, match="give the address of its base"):
        load_adapter(folder, base=_built(one.setup))
    facts.write_text(json.dumps(good | {"base_sha256": "0" * 64}))
    with pytest.raises(AdapterError, match="was trained on weights 000000000000"):
        load_adapter(folder)
    facts.write_text(json.dumps(good | {"d": "many"}))
    with pytest.raises(AdapterError, match="is damaged: d should be"):
        load_adapter(folder)
    facts.write_text(json.dumps(good))
    with open(folder / "adapter_model.safetensors", "ab") as file:
        file.write(b"0")
    with pytest.raises(AdapterError, match="is not the file that"):
        load_adapter(folder)


def test_full_fine_tuning_and_the_rest_are_as_before(setup):
    row = train(Trial(dataclasses.replace(setup, method=Full(), learning_rate=1e-3)))
    assert row.num_trained == row.num_params_model and "peft" not in dict(row.provenance)
    assert Setup(setup.model, setup.task, Peft("LORA"), 1e-3, setup.budget).id


MOST = ("gpt2", "llama", "gpt_neox", "opt", "t5")


@pytest.mark.parametrize("kind", [k if k in MOST else pytest.param(k, marks=pytest.mark.slow) for k in decoders.KINDS])
def test_every_linear_layer_of_a_language_model_is_what_peft_means_by_it(kind, tmp_path):
    """PEFT's "all-linear" leaves out the output layer, tied or not; to name it adapts it."""
    from peft import LoraConfig, get_peft_model

    def adapted(model):
        return {name.rpartition(".lora_A")[0] for name, _ in model.named_modules() if name.endswith(".lora_A")}

    def base():
        return pretrained.build(prepared, 0, 0)

    prepared = pretrained.prepare(decoders.make(kind, tmp_path))
    with peft_model.quiet():
        theirs = adapted(get_peft_model(base(), LoraConfig(r=1, target_modules="all-linear")))  # pyright: ignore
    method = Peft("LORA")
    ours, sizes = peft_model.build(base(), method, peft_model.dims(base(), method, (1,))[0][0], 0)
    assert adapted(ours) == theirs and not any("lm_head" in name for name in theirs)
    named = peft_model.Sizes(base(), Peft("LORA", ('target_modules="All-Linear"',)))
    assert (named.num_params, named.nearest(5000)[0]) == (sizes.num_params, sizes.nearest(5000)[0])
    with_output = peft_model.Sizes(base(), Peft("LORA", ('target_modules=["lm_head"]',)))
    assert with_output.num_params == decoders.SIZE["vocab_size"] * 32
    assert with_output.nearest(1)[0] == decoders.SIZE["vocab_size"] + 32


@pytest.mark.parametrize("kind", ["gpt2", "llama", pytest.param("t5", marks=pytest.mark.slow)])
@pytest.mark.parametrize("metric", ["nll", "exact_match"])
def test_language_models_complete_with_an_adapter(kind, metric, tmp_path):
    folder = decoders.make(kind, tmp_path / kind)
    for name in ("train", "validation"):
        rows = [{"prompt": f"w{i} good :", "completion": "yes"} for i in range(8)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    written = {"metric": metric} | ({"max_new_tokens": 4} if metric == "exact_match" else {})
    task = resolve("toy", path=str(tmp_path), kind="completion", prompt="prompt", completion="completion", **written)
    model, method = pretrained.build(pretrained.prepare(folder), 0, 0), Peft("LORA", step=0.03)
    sizes = peft_model.Sizes(model, method)
    for head in ("frozen", "trained"):  # which a language model does not have
        apart = peft_model.Sizes(model, dataclasses.replace(method, head=head))
        assert (apart.num_params, apart.num_trained_head, apart.nearest(1000)) == (
            sizes.num_params,
            0,
            sizes.nearest(1000),
        )
    assert sizes.num_params < sum(p.numel() for p in model.parameters()) and sizes.num_trained_head == 0
    budget = Budget(steps=160 if kind == "t5" else 40, batch_size=8, max_length=16)
    one = Trial(Setup(Model(folder), task, method, 1e-3, budget), sizes.nearest(1000)[0], 1.0)
    row = train(one)
    assert row.status == "finished" and row.num_trained == one.d
    assert row.score < 2.0 if metric == "nll" else row.score == 1.0  # a guess among the words has 4.0
