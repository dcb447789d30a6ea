"""A held model in other people's code: signature, counts, generate, pipelines, and the base model back."""

import copy
import inspect

import pytest
import torch
import transformers
from transformers.utils import generic

from distsub.records import Random, Subspace
from distsub.subspace.model import SubspaceModel


def state_of(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def plain(model) -> bool:
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_state_dict_hooks", "_load_state_dict_pre_hooks")
    modules = list(model.modules())
    return not any("forward" in m.__dict__ or any(getattr(m, hook) for hook in hooks) for m in modules)


class TestUnload:
    @pytest.mark.parametrize("policies", [{}, {"head": "trained"}, {"head": "trained", "embeddings": "trained"}])
    def test_it_gives_the_base_back_as_it_was(self, zoo, policies):
        base, data = zoo.build("Bert", torch.float32), zoo.batch("Bert")
        base.bert.embeddings.word_embeddings.weight.requires_grad_(False)
        before, flags, logits = state_of(base), [p.requires_grad for p in base.parameters()], base(**data.inputs).logits
        names, own = [name for name, _ in base.named_parameters()], list(base.parameters())
        held = SubspaceModel(base, 60, Subspace(**policies))
        optimizer = torch.optim.AdamW(held.trained().values(), lr=0.1)
        held(**data.inputs, labels=data.labels).loss.backward()
        optimizer.step()
        assert not torch.equal(held(**data.inputs).logits, logits)
        again = held.unload()
        assert again is base and plain(base)
        assert all(torch.equal(tensor, before[name]) for name, tensor in base.state_dict().items())
        assert [name for name, _ in base.named_parameters()] == names
        assert all(a is b for a, b in zip(base.parameters(), own, strict=True))
        assert [p.requires_grad for p in base.parameters()] == flags
        assert torch.equal(base(**data.inputs).logits, logits)
        assert SubspaceModel(base, 60).num_trained == 60  # it can be wrapped again

    def test_nothing_is_left_to_run(self, zoo):
        held, data = zoo.held(), zoo.batch("Bert")
        held.unload()
        assert repr(held).startswith("SubspaceModel(unloaded, d=60")
        for use in (lambda: held(**data.inputs), lambda: held.config, lambda: held.merge(), lambda: held.num_labels):
            with pytest.raises(AttributeError, match="wrap it again"):
                use()

    def test_a_base_that_has_moved_comes_back_where_it_is(self, zoo):
        held = zoo.held(head="trained", dtype=torch.float32).double()
        assert {p.dtype for p in held.unload().parameters()} == {torch.float64}


class TestMerge:
    def test_it_is_a_plain_model_at_theta_with_memory_of_its_own(self, zoo, architecture):
        held, data = zoo.move(zoo.held(architecture, scales="layer")), zoo.batch(architecture)
        expected = held(**data.inputs).logits
        merged = held.merge()
        assert type(merged) is type(held.model) and plain(merged) and not merged.training
        torch.testing.assert_close(merged(**data.inputs).logits, expected, rtol=0, atol=1e-12)
        with torch.no_grad():
            next(merged.parameters()).add_(1.0)
        assert torch.equal(held(**data.inputs).logits, expected)

    @pytest.mark.parametrize(
        "policies", [{"head": "trained"}, {"embeddings": "trained"}, {"projection": Random("fastfood")}]
    )
    def test_saved_and_loaded_by_transformers(self, zoo, tmp_path, policies):
        held, data = zoo.move(zoo.held(dtype=torch.float32, **policies)), zoo.batch("Bert")
        with torch.no_grad():
            for parameter in held.head.values():
                parameter.add_(0.1)
        held.merge().save_pretrained(tmp_path)
        again = transformers.BertForSequenceClassification.from_pretrained(tmp_path).eval()
        for name, tensor in held.merged_state().items():
            assert torch.equal(again.state_dict()[name], tensor)
        torch.testing.assert_close(again(**data.inputs).logits, held(**data.inputs).logits, rtol=0, atol=1e-5)

    def test_parameters_may_be_trained_where_they_could_be(self, zoo):
        assert all(parameter.requires_grad for parameter in zoo.held().merge().parameters())


def test_generate_is_that_of_the_merged_model(zoo):
    held = zoo.move(zoo.held("GPT2LMHeadModel", dtype=torch.float32), size=5)
    ids = torch.tensor([[5, 6, 7], [9, 8, 7]])
    settings = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    expected = held.merge().generate(ids, **settings)
    assert torch.equal(held.generate(ids, **settings), expected)
    assert not torch.equal(zoo.build("GPT2LMHeadModel", torch.float32).generate(ids, **settings), expected)


@pytest.mark.parametrize("which", ["held", "held.model", "merged"])
def test_pipelines(tiny_model, which):
    torch.manual_seed(0)
    held = SubspaceModel(transformers.AutoModelForSequenceClassification.from_pretrained(tiny_model), 60).eval()
    with torch.no_grad():
        held.coordinates.normal_(std=3)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_model)
    model = {"held": held, "held.model": held.model, "merged": held.merge()}[which]
    [[found, other]] = transformers.pipeline("text-classification", model=model, tokenizer=tokenizer, top_k=2)(
        ["good w3"]
    )
    scores = held(**tokenizer("good w3", return_tensors="pt")).logits.softmax(-1)[0]
    assert found["score"] == pytest.approx(scores.max().item(), abs=1e-5)
    assert found["score"] - other["score"] > 1e-3


class TestSignature:
    def test_it_is_that_of_the_base(self, zoo, architecture):
        held, base = zoo.held(architecture), zoo.build(architecture)
        assert inspect.signature(held.forward) == inspect.signature(base.forward)
        assert inspect.signature(copy.deepcopy(held).forward) == inspect.signature(base.forward)

    def test_trainer_finds_the_labels(self):
        assert generic.find_labels(SubspaceModel) == ["labels"]

    def test_the_base_answers_for_what_the_wrapper_lacks(self, zoo):
        held = zoo.held()
        assert (held.num_labels, held.device.type, held.dtype) == (3, "cpu", torch.float64)
        assert not hasattr(held, "hf_device_map") and held.base_model is held.model.bert
        with pytest.raises(AttributeError, match="no attribute 'nothing_of_that_name'"):
            held.nothing_of_that_name  # noqa: B018


def test_trained_numbers_are_printed_in_the_words_of_peft(zoo, capsys):
    held = zoo.held(head="trained")
    held.print_trainable_parameters()
    every = sum(p.numel() for p in held.model.parameters()) + 60
    line = f"trainable params: 111 || all params: {every:,d} || trainable%: {11100 / every:.4f}\n"
    assert capsys.readouterr().out == line
