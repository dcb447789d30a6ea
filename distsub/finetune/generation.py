"""Greedy answers of a language model to prompts, in batches that are padded at the left."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from distsub.data import answers
from distsub.finetune.completions import Example
from distsub.finetune.precision import Autocast
from distsub.records import Task


@torch.no_grad()
def generate(
    model: Any,
    tokenizer: Any,
    examples: Sequence[Example],
    task: Task,
    device: str,
    autocast: Autocast,
    batch_size: int = 64,
) -> list[str]:
    """Write an answer to each prompt.

    Args:
        model: A plain language model of transformers: one held in a subspace would make its weights at every token.
        tokenizer: Its own.
        examples: From `completions.tokenize`.
        task: Gives the most tokens and where an answer stops.
        device: Where the model is.
        autocast: The precision to run in.
        batch_size: Prompts at once.

    Returns:
        Texts without special tokens, in the order of the examples.
    """
    from transformers import GenerationConfig

    examples = list(examples)  # read once: mapped rows are made as they are asked for
    ends = sorted({example["labels"][-1] for example in examples})
    config = GenerationConfig(
        max_new_tokens=task.max_new_tokens,
        do_sample=False,
        num_beams=1,
        eos_token_id=ends,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        decoder_start_token_id=getattr(model.config, "decoder_start_token_id", None),
    )
    written = [""] * len(examples)
    order = sorted(range(len(examples)), key=lambda row: -len(examples[row]["input_ids"]))
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        batch = prompts(tokenizer, examples, rows, device)
        start = 0 if model.config.is_encoder_decoder else batch["input_ids"].shape[1]
        criteria = None if task.stop is None else [_Stop(tokenizer, start, task.stop)]
        with autocast(), _greedy(model, config):
            ids = model.generate(**batch, generation_config=config, stopping_criteria=criteria)
        ids = ids[:, start:]
        for row, text in zip(rows, tokenizer.batch_decode(ids, skip_special_tokens=True), strict=True):
            written[row] = answers.cut(text, task.stop)
    return written


class _Stop:
    """Ends the rows whose answers hold a text, whatever tokens it is made of."""

    def __init__(self, tokenizer: Any, start: int, text: str) -> None:
        self._tokenizer, self._start, self._text = tokenizer, start, text

    def __call__(self, ids: Tensor, scores: Any, **more: Any) -> Tensor:
        """Tell for each row whether it has ended."""
        texts = self._tokenizer.batch_decode(ids[:, self._start :], skip_special_tokens=True)
        return torch.tensor([self._text in text for text in texts], device=ids.device)


@contextmanager
def _greedy(model: Any, config: Any) -> Iterator[None]:
    """Put aside what a checkpoint says of generation: transformers takes from there whatever is not given."""
    own, model.generation_config = model.generation_config, config
    try:
        yield
    finally:
        model.generation_config = own


def prompts(tokenizer: Any, examples: Sequence[Example], rows: Sequence[int], device: str) -> dict[str, Tensor]:
    """Pad some prompts at the left, where no answer follows."""
    chosen = [examples[row]["input_ids"] for row in rows]
    longest = max(map(len, chosen))
    ids = [[tokenizer.pad_token_id] * (longest - len(each)) + each for each in chosen]
    mask = [[0] * (longest - len(each)) + [1] * len(each) for each in chosen]
    return {"input_ids": torch.tensor(ids, device=device), "attention_mask": torch.tensor(mask, device=device)}


def matches(written: Sequence[str], targets: Sequence[str], task: Task) -> list[float]:
    """Tell for each answer whether it is the target's: 1 or 0."""
    pairs = zip(written, targets, strict=True)
    return [
        float(answers.same(answers.find(text, task), answers.find(answers.cut(target, task.stop), task)))
        for text, target in pairs
    ]
