"""A text has one result: alone, in any batch, in any order, whichever side its tokenizer would pad."""

import json
from pathlib import Path

import pytest
import torch
import zoo
from safetensors.torch import load_file

from distsub.adapters import loading
from distsub.config import parse_sweep
from distsub.data import dataset
from distsub.errors import AdapterError, ConfigError, UnavailableError
from distsub.finetune import batches
from distsub.models import pretrained
from distsub.records import Observation
from distsub.results import schema
from distsub.subspace.model import SubspaceModel

TEXTS = ["good w3 w4", "bad w2 w3 w4 w6 w7 w8 w9 w10 w11 w12 w13 w14 w15", "w5", "good w1", "w9 w8 w7 w6 w5 w4"]
BLIND = {"ConvBert", "FNet", "Nystromformer"}
"""Architectures that mix padding into the text whatever the mask says: transformers' own, refused by the check."""


def logits(folder, texts=TEXTS, orders=None):
    pretrained.prepare.cache_clear()
    prepared = pretrained.prepare(str(folder))
    model, tokenizer = pretrained.build(prepared, 2, 0).eval(), pretrained.tokenizer(prepared)
    examples = batches.tokenize(tokenizer, dataset.Split((list(texts),), [0] * len(texts)), 32)
    found = torch.zeros(len(texts), 2)
    with torch.no_grad():
        for indices in orders or [range(len(texts))]:
            found[list(indices)] = model(**batches.collate(tokenizer, examples, indices)).logits
    return found


def set_json(path, **changes):
    record = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in record.items() if value is not ...}))


FAST = ("Bert", "Roberta", "DebertaV2", "Albert", "XLNet", "Funnel", "ModernBert", "GPT2", "Llama", "OPT", "Bart", "T5")


def names(some):
    return [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in some]


@pytest.mark.parametrize("name", names(zoo.ALL))
def test_logits_do_not_depend_on_the_batch(name, tmp_path):
    folder = Path(zoo.save_model(tmp_path / name, name))
    alone = logits(folder, orders=[[i] for i in range(len(TEXTS))])
    assert alone.std(0).min() > 1e-3  # the texts can be told apart
    for side in ("right", "left"):
        set_json(folder / "tokenizer_config.json", padding_side=side)
        for orders in ([[0, 1, 2, 3, 4]], [[4, 2], [3, 1, 0]]):
            apart = (logits(folder, orders=orders) - alone).abs().max().item()
            assert (apart < 1e-5) != (name in BLIND), (side, orders, apart)


@pytest.mark.parametrize("name", names([*zoo.DECODERS, "Roberta", "Bart", "T5"]))
def test_a_config_that_pads_with_a_word_changes_nothing(name, tmp_path):
    """Id 5 is a word of the texts: were it taken for padding, a decoder would pool before or behind the text."""
    folder = Path(zoo.save_model(tmp_path / name, name))
    expected = logits(folder)
    if name == "Roberta":  # its positions are counted by this very id: other ones, and still those of the text alone
        set_json(folder / "config.json", pad_token_id=5)
        expected = logits(folder, orders=[[i] for i in range(len(TEXTS))])
    for pad in (5, None):
        if pad is None and name in ("Roberta", "Bart", "T5"):
            continue
        set_json(folder / "config.json", pad_token_id=pad)
        assert (logits(folder) - expected).abs().max() < 1e-5


def test_the_end_of_sequence_may_stand_for_padding(tmp_path):
    folder = Path(zoo.save_model(tmp_path / "m", "GPT2"))
    expected = logits(folder, orders=[[i] for i in range(len(TEXTS))])
    zoo.save_tokenizer(folder, "decoder", pad_token=None)
    assert (logits(folder) - expected).abs().max() < 1e-5


@pytest.mark.parametrize("name", ["GPT2", "CTRL", "DistilBert", "Roberta", "T5", "Llama"])
def test_token_types_are_not_passed_where_they_mean_something_else(name, tmp_path):
    folder = Path(zoo.save_model(tmp_path / name, name))
    expected = logits(folder)
    set_json(folder / "tokenizer_config.json", model_input_names=["input_ids", "token_type_ids", "attention_mask"])
    assert (logits(folder) - expected).abs().max() < 1e-6


@pytest.mark.parametrize("name", ["Bert", "XLNet", "Funnel"])
def test_token_types_are_passed_where_the_model_has_them(name, tmp_path):
    folder = Path(zoo.save_model(tmp_path / name, name))
    names = ["input_ids", "token_type_ids", "attention_mask"]
    set_json(folder / "tokenizer_config.json", model_input_names=names)
    tokenizer = pretrained.tokenizer(pretrained.prepare(str(folder)))
    [example] = batches.tokenize(tokenizer, dataset.Split((["w1"], ["w2"]), [0]), 8)
    assert example["token_type_ids"] == [0, 0, 0, 1, 1]


def test_a_tokenizer_that_cannot_pad_is_refused(tmp_path):
    folder = Path(zoo.save_model(tmp_path / "m", "GPT2"))
    zoo.save_tokenizer(folder, "decoder", pad_token=None, eos_token=None)
    with pytest.raises(UnavailableError, match="has no padding token"):
        pretrained.tokenizer(pretrained.prepare(str(folder)))


@pytest.mark.parametrize("left_over", ["multi_label_classification", "regression"])
def test_the_task_decides_the_problem_type(left_over, tmp_path):
    folder = Path(zoo.save_model(tmp_path / "m", "GPT2"))
    set_json(folder / "config.json", problem_type=left_over, return_dict=False)
    prepared = pretrained.prepare(str(folder))
    batch = {"input_ids": torch.tensor([[5, 6], [7, 8]])}
    model = pretrained.build(prepared, 2, 0).eval()
    output = model(**batch, labels=torch.tensor([0, 1]))
    expected = torch.nn.functional.cross_entropy(output.logits, torch.tensor([0, 1]))
    assert torch.allclose(output.loss, expected)
    value = pretrained.build(prepared, 1, 0).eval()
    output = value(**batch, labels=torch.tensor([0.5, 2.0]))
    assert torch.allclose(output.loss, (output.logits.squeeze(-1) - torch.tensor([0.5, 2.0])).square().mean())


def test_a_head_that_the_checkpoint_carries_is_made_anew(tmp_path):
    folder = zoo.save_model(tmp_path / "m", "Roberta", classifier=True)
    prepared, before = pretrained.prepare(folder), (tmp_path / "m" / "model.safetensors").read_bytes()
    own = load_file(tmp_path / "m" / "model.safetensors")
    first, again, other = (dict(pretrained.build(prepared, 2, seed).named_parameters()) for seed in (0, 0, 1))
    for name, parameter in first.items():
        assert torch.equal(parameter, again[name])
        assert torch.equal(parameter, own[name]) == (not name.startswith("classifier")), name
        assert torch.equal(parameter, other[name]) == (parameter.dim() == 1 or not name.startswith("classifier")), name
    assert (tmp_path / "m" / "model.safetensors").read_bytes() == before


def test_a_head_of_the_checkpoint_is_kept_where_the_sweep_says_so(tmp_path):
    folder = zoo.save_model(tmp_path / "m", "Roberta", classifier=True)
    prepared, own = pretrained.prepare(folder), load_file(tmp_path / "m" / "model.safetensors")
    for private in (False, True):
        model = pretrained.build(prepared, 2, 7, private, head_from="checkpoint")
        assert all(torch.equal(parameter, own[name]) for name, parameter in model.named_parameters())
    with pytest.raises(ConfigError, match="no head for 3 labels"):
        pretrained.build(prepared, 3, 0, head_from="checkpoint")
    with pytest.raises(ConfigError, match="no head for regression"):
        pretrained.build(prepared, 1, 0, head_from="checkpoint")
    bare = pretrained.prepare(zoo.save_model(tmp_path / "bare", "Roberta"))
    with pytest.raises(ConfigError, match=r"lacks classifier\."):
        pretrained.build(bare, 2, 0, head_from="checkpoint")


def test_an_adapter_on_a_checkpoints_head_is_loaded_on_it(tmp_path):
    folder = zoo.save_model(tmp_path / "m", "Bert", classifier=True)
    prepared, ids = pretrained.prepare(folder), torch.tensor([[1, 5, 6, 2]])
    model = SubspaceModel(pretrained.build(prepared, 2, 0, head_from="checkpoint"), d=20).eval()
    with torch.no_grad():
        model.coordinates.normal_()
        expected = model(input_ids=ids).logits
        kept = {"base_model": folder, "num_labels": 2, "head_seed": 0}
        model.save_pretrained(tmp_path / "adapter", **kept, head_from="checkpoint")
        loaded = loading.load_adapter(tmp_path / "adapter").eval()
        assert torch.equal(loaded(input_ids=ids).logits, expected)
    model.save_pretrained(tmp_path / "wrong", **kept)
    with pytest.raises(AdapterError):
        loading.load_adapter(tmp_path / "wrong")


def test_where_the_head_comes_from_is_part_of_every_identity(tiny_text):
    text = tiny_text.replace('" }]', '", head_from = "checkpoint" }]', 1)
    (kept, *_), (fresh, *_) = parse_sweep(text).searches(), parse_sweep(tiny_text).searches()
    assert kept.id != fresh.id and kept.baseline[0].id != fresh.baseline[0].id
    trials = [search.trials_at(search.dims[0])[0] for search in (kept, fresh)]
    assert trials[0].id != trials[1].id and not fresh.owns(trials[0]) and not fresh.owns(kept.baseline[0])
    [row] = schema.to_table(Observation(trials[0], "diverged")).to_pylist()
    assert row["head_from"] == "checkpoint" and row["method"] == "said"
    assert schema.from_row(row).trial == trials[0]
