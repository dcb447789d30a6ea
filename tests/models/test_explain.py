"""What is missing for a tokenizer is said in one line that names the model and the package."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch
import transformers as tf
from safetensors.torch import load_file, save_file

from distsub.errors import UnavailableError, first_line
from distsub.models import explain, pretrained

SENTENCEPIECE = b"\n\x0e\n\x05<pad>\x15\x00\x00\x00\x00\x18\x03"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"


@pytest.fixture
def model(tiny_model, tmp_path, monkeypatch):
    """A half-precision copy, so that the cache's own directory could show up in a message."""
    monkeypatch.setenv("DISTSUB_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "mine"
    folder.mkdir()
    for file in Path(tiny_model).iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    state = {k: v.to(torch.bfloat16) for k, v in load_file(folder / "model.safetensors").items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def refusal(model: Path) -> str:
    with pytest.raises(UnavailableError) as caught:
        pretrained.tokenizer(pretrained.prepare(str(model)))
    line = str(caught.value)
    assert "\n" not in line and str(model) in line and "cache" not in line
    return line


def only(model: Path, name: str, body: bytes, kind: str) -> None:
    for file in model.glob("*token*"):
        file.unlink()
    (model / "vocab.txt").unlink(missing_ok=True)
    (model / name).write_bytes(body)
    (model / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind}))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("spm.model", "DebertaV2Tokenizer"),
        ("spiece.model", "XLNetTokenizer"),
        ("spiece.model", "AlbertTokenizer"),
        ("spiece.model", "T5Tokenizer"),
        ("sentencepiece.bpe.model", "XLMRobertaTokenizer"),
        ("tokenizer.model", "LlamaTokenizer"),
        ("source.spm", "MarianTokenizer"),
    ],
)
def test_a_sentencepiece_model_asks_for_sentencepiece(name, kind, model, monkeypatch):
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    monkeypatch.setattr(explain, "_installed", lambda module: module != "sentencepiece")
    only(model, name, SENTENCEPIECE, kind)
    assert f'{name} needs the package sentencepiece; pip install "distsub[sentencepiece]"' in refusal(model)


def test_a_tiktoken_file_asks_for_tiktoken(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    monkeypatch.setattr(explain, "_installed", lambda module: module != "tiktoken")
    only(model, "tokenizer.model", b"IQ== 0\nIg== 1\n", "PreTrainedTokenizerFast")
    assert "tokenizer.model needs the package tiktoken; pip install tiktoken" in refusal(model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer.json": b"{"}, "no tokenizer that can be used"),
        ({"tokenizer.json": b""}, "no tokenizer that can be used"),
        ({"tokenizer.json": LFS}, "tokenizer.json is a Git LFS pointer"),
        ({"tokenizer.json": None, "vocab.txt": LFS}, "vocab.txt is a Git LFS pointer"),
        ({"tokenizer.json": None, "vocab.txt": None, "tokenizer_config.json": None}, "vocabulary is empty"),
        ({"tokenizer_config.json": b"{"}, "no tokenizer that can be used"),
        ({"tokenizer.json": None, "tokenizer_config.json": b'{"tokenizer_class": "NoSuch"}'}, "has no tokenizer.json"),
    ],
)
def test_a_tokenizer_that_is_missing_or_damaged(change, message, model):
    for name, body in change.items():
        (model / name).unlink(missing_ok=True)
        if body is not None:
            (model / name).write_bytes(body)
    assert re.search(message, refusal(model))


def test_an_edited_tokenizer_is_read_again(model):
    before = pretrained.tokenizer(pretrained.prepare(str(model)))("good")["input_ids"]
    path = model / "tokenizer.json"
    data = json.loads(path.read_text())
    vocabulary = data["model"]["vocab"]
    vocabulary["good"], vocabulary["bad"] = vocabulary["bad"], vocabulary["good"]
    path.write_text(json.dumps(data))
    assert pretrained.tokenizer(pretrained.prepare(str(model)))("bad")["input_ids"] == before


def test_a_model_in_words_of_its_own_never_runs_them(model):
    (model / "own.py").write_text(f"open({str(model / 'ran')!r}, 'w')")
    for name in ("config.json", "tokenizer_config.json"):
        data = json.loads((model / name).read_text())
        classes = {
            "AutoConfig": "own.A",
            "AutoModelForSequenceClassification": "own.B",
            "AutoTokenizer": ["own.C", None],
        }
        (model / name).write_text(json.dumps(data | {"auto_map": classes}))
    prepared = pretrained.prepare(str(model))
    assert isinstance(pretrained.build(prepared, 2, 0), tf.BertForSequenceClassification)
    assert pretrained.tokenizer(prepared)("good")["input_ids"]
    assert not (model / "ran").exists()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            ImportError("\nXLM needs sacremoses.\nInstall: `pip install sacremoses`"),
            "sacremoses",
        ),
        (ModuleNotFoundError("No module named 'fugashi'", name="fugashi"), "pip install fugashi"),
        (KeyError("x"), "KeyError: 'x'"),
        (ValueError(""), "ValueError"),
    ],
)
def test_errors_become_one_line(error, message):
    assert message in explain.reason(error) and "\n" not in explain.reason(error)


def test_a_line_that_only_introduces_the_next_is_not_the_reason():
    assert first_line(ValueError("Validation error for field 'pad_token_id':\n    Expected int\nmore")) == (
        "Validation error for field 'pad_token_id': Expected int"
    )
    assert first_line(ValueError("two lines\nof which one is said")) == "two lines"
    assert first_line(ValueError()) == "ValueError" and first_line(ValueError("\n it ends. ")) == "it ends"
