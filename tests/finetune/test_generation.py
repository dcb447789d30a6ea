"""Greedy answers, held against one token after the other by hand, over the zoo of architectures."""

from dataclasses import replace

import decoders
import pytest
import torch

from distsub.data.dataset import Split
from distsub.finetune import generation
from distsub.finetune.completions import tokenize
from distsub.finetune.precision import Autocast
from distsub.models import pretrained
from distsub.records import Task

PROMPTS = ["w1 w2 good :", "w3 bad :", "w4 w5 w6 w7 w8 w9 good :"]
TASK = Task("toy", "toy", ("prompt",), "completion", num_labels=0, metric="exact_match", max_new_tokens=5)
PLAIN = Autocast("cpu", False)


@pytest.fixture(scope="module", params=decoders.KINDS)
def built(request, tmp_path_factory):
    prepared = pretrained.prepare(decoders.make(request.param, tmp_path_factory.mktemp(request.param)))
    return pretrained.build(prepared, 0, 0).eval(), pretrained.tokenizer(prepared)


@torch.no_grad()
def by_hand(model, tokenizer, prompt):
    """Take the likeliest token again and again, with nothing remembered between them."""
    both, written = model.config.is_encoder_decoder, []
    for _ in range(TASK.max_new_tokens):
        if both:
            start = [model.config.decoder_start_token_id, *written]
            inputs = {"input_ids": torch.tensor([prompt]), "decoder_input_ids": torch.tensor([start])}
        else:
            inputs = {"input_ids": torch.tensor([prompt + written])}
        written.append(model(**inputs, use_cache=False).logits[0, -1].argmax().item())
        if written[-1] == tokenizer.eos_token_id:
            break
    return tokenizer.decode(written, skip_special_tokens=True)


def test_answers_in_a_padded_batch_are_those_of_each_prompt_alone(built):
    model, tokenizer = built
    examples = tokenize(tokenizer, TASK, Split((PROMPTS,), ["yes"] * 3), 32, model.config.is_encoder_decoder)
    expected = [by_hand(model, tokenizer, each["input_ids"]) for each in examples]
    assert generation.generate(model, tokenizer, examples, TASK, "cpu", PLAIN) == expected
    assert generation.generate(model, tokenizer, examples, TASK, "cpu", PLAIN, batch_size=2) == expected


def test_an_answer_ends_before_a_stop_of_several_tokens(built, capfd):
    model, tokenizer = built
    examples = tokenize(tokenizer, TASK, Split((PROMPTS,), ["yes"] * 3), 32, model.config.is_encoder_decoder)
    whole = generation.generate(model, tokenizer, examples, TASK, "cpu", PLAIN)
    capfd.readouterr()
    for text in whole:
        words = text.split()
        for stop in {" ".join(words[1:3]), words[0]} if len(words) > 2 else ():
            found = generation.generate(model, tokenizer, examples, replace(TASK, stop=stop), "cpu", PLAIN)
            assert found == [each.partition(stop)[0] for each in whole]
    assert "deprecated" not in capfd.readouterr().err


def test_what_a_checkpoint_says_of_generation_has_no_part_in_it(built):
    model, tokenizer = built
    examples = tokenize(tokenizer, TASK, Split((PROMPTS,), ["yes"] * 3), 32, model.config.is_encoder_decoder)
    plain = generation.generate(model, tokenizer, examples, TASK, "cpu", PLAIN)
    given = model.generation_config.to_dict()
    model.generation_config.update(repetition_penalty=5.0, do_sample=True, temperature=3.0, max_length=2)
    try:
        assert generation.generate(model, tokenizer, examples, TASK, "cpu", PLAIN) == plain
    finally:
        model.generation_config = type(model.generation_config)(**given)
