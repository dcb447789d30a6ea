"""Adapters made in one's own loop, moved, copied and damaged: they load, or one line says what to do."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, BertConfig, BertModel

from distsub import load_adapter
from distsub.adapters import loading
from distsub.errors import AdapterError, DistsubError, UnavailableError
from distsub.models import pretrained
from distsub.records import Subspace
from distsub.subspace.adapter import CONFIG, WEIGHTS
from distsub.subspace.model import SubspaceModel

IDS = torch.tensor([[2, 5, 6, 7, 3]])


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def move(model: SubspaceModel) -> SubspaceModel:
    with torch.no_grad():
        model.coordinates.normal_(generator=torch.Generator().manual_seed(0))
    return model.eval()


@pytest.fixture
def base(tiny_model, tmp_path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "home" / "base"))


@pytest.fixture
def swept(base, tmp_path) -> tuple[Path, torch.Tensor]:
    """An adapter as a sweep leaves it: base by address, head by seed."""
    model = move(SubspaceModel(pretrained.build(pretrained.prepare(str(base)), 2, 3), 60))
    model.save_pretrained(tmp_path / "adapter", base_model=str(base), head_seed=3)
    return tmp_path / "adapter", logits(model)


def by_hand(base: Path, kind=AutoModelForSequenceClassification, **fields) -> SubspaceModel:
    """What a user's own loop has: a head that transformers has drawn, from no seed."""
    return move(SubspaceModel(kind.from_pretrained(base, num_labels=3), 60, Subspace(**fields)))


class TestBase:
    def test_it_may_have_moved(self, swept, base, tmp_path):
        where, expected = swept
        base.rename(tmp_path / "elsewhere")
        pretrained.prepare.cache_clear()
        with pytest.raises(UnavailableError, match=r"is no directory.*lies elsewhere now, give its address as base"):
            load_adapter(where)
        for moved in (str(tmp_path / "elsewhere"), tmp_path / "elsewhere"):
            assert torch.equal(logits(load_adapter(where, base=moved)), expected)
        model = pretrained.build(pretrained.prepare(str(tmp_path / "elsewhere")), 2, 3)
        assert torch.equal(logits(load_adapter(where, base=model)), expected)

    def test_another_is_refused(self, swept, tmp_path):
        where, _ = swept
        torch.manual_seed(1)
        BertModel(BertConfig.from_pretrained(swept[0].parent / "home" / "base")).save_pretrained(tmp_path / "other")
        with pytest.raises(AdapterError, match="was made for other weights"):
            load_adapter(where, base=tmp_path / "other")

    def test_from_another_working_directory(self, base, tmp_path, monkeypatch):
        monkeypatch.chdir(base.parent)
        model = move(SubspaceModel(AutoModelForSequenceClassification.from_pretrained("base"), 60))
        model.save_pretrained("own")
        model.save_pretrained("said", base_model="base")
        monkeypatch.chdir(tmp_path)
        for name in ("own", "said"):
            assert torch.equal(logits(load_adapter(base.parent / name)), logits(model))


class TestOwnLoop:
    @pytest.mark.parametrize("policies", [{}, {"head": "trained"}, {"head": "frozen"}, {"scales": "layer"}])
    def test_all_it_needs_is_recorded(self, base, tmp_path, policies):
        model = by_hand(base, **policies)
        model.save_pretrained(tmp_path / "adapter")
        assert torch.equal(logits(load_adapter(tmp_path / "adapter")), logits(model))
        again = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)  # with a head of its own
        assert torch.equal(logits(load_adapter(tmp_path / "adapter", base=again)), logits(model))

    @pytest.mark.parametrize("head", ["in_subspace", "trained", "frozen"])
    def test_a_pooler_that_the_checkpoint_lacks(self, base, tmp_path, head):
        """transformers draws one with the head; it is read by whoever loads the adapter."""
        BertModel.from_pretrained(base, add_pooling_layer=False).save_pretrained(base)
        model = by_hand(base, head=head)
        assert not model.model.bert.pooler.dense.bias.any()
        model.save_pretrained(tmp_path / "adapter")
        torch.manual_seed(1)  # another pooler would be drawn
        pretrained.prepare.cache_clear()
        assert torch.equal(logits(load_adapter(tmp_path / "adapter")), logits(model))

    def test_in_half_precision(self, base, tmp_path):
        model = move(SubspaceModel(AutoModelForSequenceClassification.from_pretrained(base, dtype=torch.bfloat16), 60))
        model.save_pretrained(tmp_path / "adapter")
        assert torch.equal(logits(load_adapter(tmp_path / "adapter")), logits(model))

    def test_a_base_from_nowhere_is_refused(self, tmp_path):
        config = BertConfig(vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2)
        model = SubspaceModel(AutoModelForSequenceClassification.from_config(config), 60)
        with pytest.raises(AdapterError, match=r"pass base_model = its hub id or directory, or base_model = None"):
            model.save_pretrained(tmp_path / "adapter")
        assert not (tmp_path / "adapter").exists()
        model.save_pretrained(tmp_path / "adapter", base_model=None)
        with pytest.raises(AdapterError, match="does not say its base model; give it as base"):
            load_adapter(tmp_path / "adapter")

    def test_another_kind_of_model(self, base, tmp_path):
        model = by_hand(base, AutoModelForTokenClassification)
        model.save_pretrained(tmp_path / "adapter")
        with pytest.raises(AdapterError, match=r"made for a BertForTokenClassification, .* give it as base"):
            load_adapter(tmp_path / "adapter")
        again = AutoModelForTokenClassification.from_pretrained(base, num_labels=3)
        assert torch.equal(logits(load_adapter(tmp_path / "adapter", base=again)), logits(model))

    def test_another_number_of_labels(self, base, tmp_path):
        by_hand(base).save_pretrained(tmp_path / "adapter")
        other = AutoModelForSequenceClassification.from_pretrained(base, num_labels=2)
        with pytest.raises(AdapterError, match=r"another head.*saved with it, with num_labels = 3"):
            load_adapter(tmp_path / "adapter", base=other)


class TestAddresses:
    def test_a_file_address(self, swept):
        where, expected = swept
        assert torch.equal(logits(load_adapter(where.as_uri())), expected)
        with loading.local(where.as_uri()) as path:
            assert sorted(file.name for file in path.iterdir()) == [CONFIG, WEIGHTS]
        assert not path.exists()

    @pytest.mark.parametrize(
        ("address", "message"),
        [
            ("file:///nowhere/at/all", r"no adapter in file:///nowhere/at/all: adapter_config.json cannot be read"),
            ("ftp://host/adapter", r"cannot use 'ftp://host/adapter' as the address of an adapter"),
            ("/nowhere/at/all", r"no adapter in /nowhere/at/all"),
        ],
    )
    def test_nothing_there(self, address, message):
        with pytest.raises(AdapterError, match=message) as caught:
            load_adapter(address)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
    @pytest.mark.parametrize("damage", ["cut", "gone", "other"])
    def test_damage_is_one_line_that_names_the_address(self, swept, name, damage):
        where, _ = swept
        if damage == "cut":
            (where / name).write_bytes((where / name).read_bytes()[:50])
        elif damage == "gone":
            (where / name).unlink()
        elif name == CONFIG:
            (where / name).write_text(json.dumps({"peft_type": "LORA"}))
        else:
            (where / name).write_bytes((where / name).read_bytes()[:-1] + b"\7")
        for address in (where, where.as_uri()):
            with pytest.raises(DistsubError) as caught:
                load_adapter(address)
            assert "\n" not in str(caught.value) and str(address) in str(caught.value)
