"""The loss of completions, held against transformers' own in float64, over a zoo of architectures."""

import json

import decoders
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy

from distsub.data.dataset import Split
from distsub.errors import DataError, UnavailableError
from distsub.finetune import completions
from distsub.finetune.objective import objective
from distsub.models import pretrained
from distsub.records import Random, Subspace, Task
from distsub.subspace.model import SubspaceModel

TASK = Task("toy", "toy", ("prompt",), "completion", num_labels=0, metric="nll")
SPLIT = Split((["w1 w2 good :", "w3 bad :", "w4 w5 w6 w7 w8 good :"],), ["yes", "no w9 no", "yes 1 2"])


@pytest.fixture(scope="module", params=decoders.KINDS)
def built(request, tmp_path_factory):
    folder = decoders.make(request.param, tmp_path_factory.mktemp(request.param))
    prepared = pretrained.prepare(folder)
    return pretrained.build(prepared, 0, 0).eval(), pretrained.tokenizer(prepared)


def reference(model, example, pad):
    """One row alone, with logits at all places, and the completion's taken out of them."""
    prompt, tail = example["input_ids"], example["labels"]
    if model.config.is_encoder_decoder:
        logits = model(input_ids=torch.tensor([prompt]), labels=torch.tensor([tail])).logits[0]
    else:
        logits = model(input_ids=torch.tensor([prompt + tail])).logits[0, len(prompt) - 1 : -1]
    return cross_entropy(logits.double(), torch.tensor(tail), reduction="sum")


def test_the_loss_in_a_padded_batch_is_that_of_each_completion_alone(built):
    model, tokenizer = built
    model.double()
    rows = objective(tokenizer, TASK, SPLIT, 32, model.config)
    expected = torch.stack([reference(model, each, tokenizer.pad_token_id) for each in rows.examples])
    with torch.no_grad():
        found = completions.losses(model, rows.batch([0, 1, 2]))
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    assert len({round(each, 3) for each in expected.tolist()}) == 3
    model.float()


def test_a_held_model_has_the_same_loss_and_a_gradient(built):
    model, tokenizer = built
    rows = objective(tokenizer, TASK, SPLIT, 32, model.config)
    with torch.no_grad():
        expected = rows.loss(model, rows.batch([0, 1, 2]))
    held = SubspaceModel(model, 64, Subspace(Random("fastfood")))
    loss = rows.loss(held, rows.batch([0, 1, 2]))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    loss.backward()
    assert held.coordinates.grad.abs().max() > 0
    assert {entry.part for entry in held.entries} <= {"body", "table"}, "a language model has no head of its own"
    assert held.num_params == sum(parameter.numel() for parameter in model.parameters())
    held.unload()


def test_logits_are_computed_for_completions_only(built, monkeypatch):
    model, tokenizer = built
    rows = objective(tokenizer, TASK, SPLIT, 32, model.config)
    seen = []
    handle = model.get_output_embeddings().register_forward_hook(lambda *args: seen.append(args[2].shape))
    with torch.no_grad():
        completions.losses(model, rows.batch([0, 1, 2]))
    handle.remove()
    assert [tuple(shape[:2]) for shape in seen] == [(1, sum(len(each["labels"]) for each in rows.examples))]


def ids(text):
    made = decoders.tokenizer(starts=False)
    return made(text)["input_ids"]


def test_prompts_lose_their_beginning_and_completions_nothing():
    made = decoders.tokenizer()
    (whole,) = completions.tokenize(made, TASK, Split((["w1 w2 w3"],), ["yes no"]), 32, False)
    assert whole == {"input_ids": [1, *ids("w1 w2 w3")], "labels": [*ids("yes no"), 2]}
    (cut,) = completions.tokenize(made, TASK, Split((["w1 w2 w3"],), ["yes no"]), 6, False)
    assert cut == {"input_ids": [1, *ids("w2 w3")], "labels": [*ids("yes no"), 2]}
    (apart,) = completions.tokenize(made, TASK, Split((["w1 w2 w3 w4"],), ["yes no"]), 4, True)
    assert apart["input_ids"] == [1, *ids("w2 w3 w4")]


@pytest.mark.parametrize("length, least", [(4, 5), (3, 5), (1, 5)])
def test_a_completion_that_does_not_fit_is_refused_with_the_length_it_takes(length, least):
    split = Split((["w1 w2"] * 2,), ["yes", "yes no"])
    with pytest.raises(DataError, match=rf"row [12]: the completion alone has .* give at least [4{least}]") as caught:
        completions.tokenize(decoders.tokenizer(), TASK, split, length, False)
    if length > 3:
        assert "row 2" in str(caught.value) and f"at least {least}" in str(caught.value)


def test_chats_are_rendered_by_the_template_and_end_where_it_ends_a_turn():
    task = Task("chat", "chat", ("messages",), "messages", num_labels=0, metric="nll")
    chat = '[{"role": "user", "content": "w1 good"}, {"role": "assistant", "content": "yes"}]'
    (row,) = completions.tokenize(decoders.tokenizer(chat=decoders.CHAT), task, Split(([chat],), ["yes"]), 32, False)
    assert row == {"input_ids": ids("<user> w1 good <end> <assistant>"), "labels": ids("yes <end>")}
    with pytest.raises(UnavailableError, match="need a chat template"):
        completions.tokenize(decoders.tokenizer(), task, Split(([chat],), ["yes"]), 32, False)


CHATS = {
    "no mark at the end of a turn": (
        "{% for m in messages %}<{{ m.role }}> {{ m.content }} {% endfor %}",
        "yes <s> 3",
        2,
    ),
    "no prompt for the assistant": ("{% for m in messages %}{{ m.content }} <end> {% endfor %}", "yes <s> 3", 6),
    "a mark inside the answer": (decoders.CHAT, "yes <s> 3", 6),
    "white space behind the mark": (decoders.CHAT.replace("<end> ", "<end>\n"), "yes 3", 6),
}


@pytest.mark.parametrize("name", CHATS)
def test_all_of_an_answer_counts_whatever_the_template_ends_it_with(name):
    template, answer, end = CHATS[name]
    task = Task("chat", "chat", ("messages",), "messages", num_labels=0, metric="nll")
    chat = json.dumps([{"role": "user", "content": "w1 good"}, {"role": "assistant", "content": answer}])
    (row,) = completions.tokenize(decoders.tokenizer(chat=template), task, Split(([chat],), [answer]), 32, False)
    assert row["labels"][-len(ids(answer)) - 1 :] == [*ids(answer), end]


def test_a_template_that_changes_the_answer_is_refused():
    task = Task("chat", "chat", ("messages",), "messages", num_labels=0, metric="nll")
    chat = '[{"role": "user", "content": "w1"}, {"role": "assistant", "content": "yes"}]'
    made = decoders.tokenizer(chat="{% for m in messages %}{{ m.content | upper }} <end> {% endfor %}")
    with pytest.raises(DataError, match="does not write the last message as it is"):
        completions.tokenize(made, task, Split(([chat],), ["yes"]), 32, False)


def test_every_completion_ends_and_has_a_token_before_it():
    for starts in (True, False):
        made = decoders.tokenizer(starts=starts)
        (read, blank) = completions.tokenize(made, TASK, Split((["w1", ""],), ["yes no", "yes"]), 32, False)
        assert read["labels"] == [*ids("yes no"), 2] and blank["labels"] == [*ids("yes"), 2]
        assert len(blank["input_ids"]) == 1 and len(read["input_ids"]) == 1 + starts
        (apart,) = completions.tokenize(made, TASK, Split((["w1"],), ["yes no"]), 32, True)
        assert apart["labels"][-3:] == [*ids("yes no"), 2], "though the tokenizer puts no end behind a text"


def test_another_chat_template_is_another_model_and_travels_with_it(tmp_path):
    found = []
    for name, chat in (("one", decoders.CHAT), ("other", decoders.CHAT.replace("<end> ", "<end>")), ("none", None)):
        folder = tmp_path / name
        folder.mkdir()
        prepared = pretrained.prepare(decoders.make("llama", folder, chat=chat))
        has_one = "chat_template.jinja" in {file.name for file in pretrained.files_of(prepared.source)}
        assert has_one is (chat is not None)
        found.append(prepared)
    assert len({each.sha256 for each in found}) == 1 and len({each.content for each in found}) == 3


def test_a_checkpoint_without_its_output_layer_is_a_base_for_a_classifier_and_no_language_model(tmp_path):
    folder = decoders.make("llama", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    assert tensors.pop("lm_head.weight", None) is not None, "untied"
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    prepared = pretrained.prepare(folder)
    assert pretrained.build(prepared, 2, 0).config.num_labels == 2
    with pytest.raises(UnavailableError, match=r"lm_head\.weight"):
        pretrained.build(prepared, 0, 0)


@pytest.mark.parametrize(
    "text",
    [
        "hello",
        "[]",
        '[{"role": "user", "content": "a"}]',
        '[{"role": "assistant", "content": "a"}, {"role": "user", "content": "a"}]',
        '[{"role": "user", "content": "a"}, {"role": "assistant", "content": " "}]',
        '[{"role": "user", "content": 3}, {"role": "assistant", "content": "b"}]',
    ],
)
def test_what_is_no_chat_is_refused(text):
    task = Task("chat", "chat", ("messages",), "messages", num_labels=0, metric="nll")
    with pytest.raises(DataError, match=r"chat row 1: .* is no chat; give a list"):
        completions.tokenize(decoders.tokenizer(chat=decoders.CHAT), task, Split(([text],), ["yes"]), 32, False)
