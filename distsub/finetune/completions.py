"""What a language model reads and is scored on: prompts with completions as token ids, and the loss of the latter.

A decoder reads prompt and completion in one sequence, an encoder-decoder the prompt in its encoder. The loss counts
the completion's tokens only, its end among them; logits are computed at those places and nowhere else, since a
vocabulary of 262,144 makes them the largest tensor of a step.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from distsub.data import chats
from distsub.data.dataset import Split
from distsub.errors import ConfigError, DataError, UnavailableError
from distsub.records import Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Example = dict[str, list[int]]
"""One tokenized row: input_ids, of the prompt; and labels, of the completion and its end. No padding."""

IGNORED = -100
"""In place of labels that do not count, as everywhere in PyTorch."""


def tokenize(
    tokenizer: "PreTrainedTokenizerBase",
    task: Task,
    split: Split,
    max_length: int,
    encoder_decoder: bool,
    first_row: int = 1,
) -> list[Example]:
    """Turn prompts and completions into token ids.

    A prompt that is too long loses its beginning; a completion is never cut. Where a text of the completion alone has
    other tokens than behind its prompt, it has those it has there, unless they are not the prompt's continued.

    Args:
        tokenizer: The model's.
        task: Says whether the rows are chats, which the tokenizer's template renders.
        split: Prompts, and completions as labels.
        max_length: Tokens per example, special tokens included; of an encoder-decoder, per side.
        encoder_decoder: Whether prompt and completion are read apart.
        first_row: Number of the first row, for messages.

    Returns:
        One example per row.

    Raises:
        DataError: A completion leaves no token of its prompt.
        UnavailableError: The tokenizer has no end of sequence; or no template, and rows are chats.
    """
    if task.is_chat:
        rows = [
            chats.render(tokenizer, text, f"{task.name} row {i}")
            for i, text in enumerate(split.texts[0], start=first_row)
        ]
        prompts, completions, ended = map(list, zip(*rows, strict=True))
    else:
        prompts, completions = list(split.texts[0]), [str(text) for text in split.labels]
        ended = [False] * len(completions)
    if tokenizer.eos_token_id is None:
        raise UnavailableError(
            f"the tokenizer of {tokenizer.name_or_path} has no end of sequence, by which completions end: set "
            "eos_token in its tokenizer_config.json"
        )
    first, last = ([], []) if task.is_chat else _around(tokenizer)
    heads = _ids(tokenizer, prompts)
    if encoder_decoder:
        encoded: Any = tokenizer(text_target=completions, truncation=False, return_attention_mask=False)
        tails = [list(ids) for ids in encoded["input_ids"]]
        ended = [bool(tail) and tail[-1] in tokenizer.all_special_ids for tail in tails]
    else:
        joined = _ids(tokenizer, [prompt + end for prompt, end in zip(prompts, completions, strict=True)])
        apart = _ids(tokenizer, completions)
        tails = [
            whole[len(head) :] if whole[: len(head)] == head else alone
            for head, whole, alone in zip(heads, joined, apart, strict=True)
        ]
        last = []
    tails = [tail if has_end else [*tail, tokenizer.eos_token_id] for tail, has_end in zip(tails, ended, strict=True)]
    starter: Any = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    if not encoder_decoder and not first:  # the first token of a completion follows from the one before it
        heads = [head or [starter] for head in heads]
    return [
        _fitted(head, tail, first, last, max_length, encoder_decoder, f"{task.name}: row {row}")
        for row, (head, tail) in enumerate(zip(heads, tails, strict=True), start=first_row)
    ]


def joined(split: Split) -> str:
    """Say that completions follow their prompts without a space, as a decoder reads them; nothing where few do."""
    rows = [(prompt, str(text)) for prompt, text in zip(split.texts[0], split.labels, strict=True)]
    touching = [(a, b) for a, b in rows if a and b and a[-1].isascii() and not a[-1].isspace() and b[0].isalnum()]
    if len(touching) <= len(rows) / 2:
        return ""
    prompt, text = touching[0]
    return (
        f"nothing stands between prompt and completion, as in {(prompt[-20:] + text[:20])!r}: begin completions with a "
        "space where one belongs there"
    )


def _ids(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    return [list(ids) for ids in tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"]]


def _around(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Find the special tokens that a tokenizer puts before and behind a text."""
    inner = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    at = next((i for i in range(len(whole)) if whole[i : i + len(inner)] == inner), 0)
    return list(whole[:at]), list(whole[at + len(inner) :])


def _fitted(
    head: list[int], tail: list[int], first: list[int], last: list[int], most: int, apart: bool, where: str
) -> Example:
    """Cut the beginning of a prompt so that all fits."""
    room = most - len(first) - len(last) - (0 if apart else len(tail))
    if len(tail) > most or room < 1:
        kept = "" if apart else " beside one of the prompt"
        raise DataError(
            f"{where}: the completion alone has {len(tail)} tokens, which [budget] max_length = {most} does not "
            f"hold{kept}: give at least {len(tail) if apart else len(first) + len(tail) + 1}, or leave the row out"
        )
    return {"input_ids": [*first, *head[-room:], *last], "labels": tail}


def collate(examples: Sequence[Example], rows: Sequence[int], pad: int, encoder_decoder: bool) -> dict[str, Tensor]:
    """Pad some examples at the right.

    Args:
        examples: From `tokenize`.
        rows: Which of them.
        pad: The padding token.
        encoder_decoder: Whether prompt and completion are read apart.

    Returns:
        input_ids and attention_mask, [len(rows), longest]; labels, IGNORED where no completion is: of the same shape
        for a decoder, [len(rows), longest completion] for an encoder-decoder; chosen, where tokens of completions are,
        counted row by row: of a decoder, the places from which they are predicted.
    """
    chosen = [(examples[row]["input_ids"], examples[row]["labels"]) for row in rows]
    read = [torch.tensor(head if encoder_decoder else head + tail) for head, tail in chosen]
    answers = [torch.tensor(tail if encoder_decoder else [IGNORED] * len(head) + tail) for head, tail in chosen]
    labels = pad_sequence(answers, batch_first=True, padding_value=IGNORED)
    return {
        "input_ids": pad_sequence(read, batch_first=True, padding_value=pad),
        "attention_mask": pad_sequence([torch.ones_like(ids) for ids in read], batch_first=True),
        "labels": labels,
        "chosen": _chosen(labels, encoder_decoder),  # found here: on a device, to count them is to wait for it
    }


def _chosen(labels: Tensor, encoder_decoder: bool) -> Tensor:
    """Find the places at which the next token is one of a completion, counted row by row."""
    targets = labels if encoder_decoder else nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED)
    return (targets.reshape(-1) != IGNORED).nonzero()[:, 0]


def losses(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """Compute the negative log-likelihood of each row's completion.

    Args:
        model: A language model of transformers, held in a subspace or not.
        batch: From `collate`, on the model's device.

    Returns:
        In nats, summed over the completion's tokens; float32, shape [rows].

    Raises:
        ConfigError: The model's output layer does not see one vector for each token.
    """
    inputs, labels = dict(batch), batch["labels"]
    del inputs["labels"]
    chosen = inputs.pop("chosen")
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = model.prepare_decoder_input_ids_from_labels(labels=labels)
    with _logits_at(model, labels.shape, chosen):
        logits = model(**inputs, use_cache=False).logits[0].float()
    targets = labels.reshape(-1)[chosen if model.config.is_encoder_decoder else chosen + 1]
    each = nn.functional.cross_entropy(logits, targets, reduction="none")
    return torch.zeros(len(labels), device=each.device).index_add(0, chosen // labels.shape[1], each)


@contextmanager
def _logits_at(model: Any, shape: torch.Size, chosen: Tensor) -> Iterator[None]:
    """Have the output layer see only the vectors at some places of [rows, tokens]: [1, number of places, width]."""

    def choose(module: nn.Module, given: tuple[Any, ...]) -> tuple[Tensor]:
        if len(given) != 1 or given[0].shape[:2] != shape:
            raise ConfigError(
                f"{type(model).__name__} does not call its output layer with one vector for each token of a row, so "
                "its loss cannot be taken of the completion alone; use another model"
            )
        return (given[0].flatten(0, 1)[chosen][None],)

    handle = model.get_output_embeddings().register_forward_pre_hook(choose)
    try:
        yield
    finally:
        handle.remove()
