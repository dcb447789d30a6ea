"""One real training step on completions before anything is spent, and whether padding is hidden from the model."""

from collections.abc import Callable, Iterable
from typing import Any

import torch

from distsub.data.dataset import Splits
from distsub.errors import ConfigError
from distsub.finetune import completions, generation
from distsub.finetune.completions import Example
from distsub.finetune.objective import objective
from distsub.finetune.precision import Autocast
from distsub.finetune.tokens import Tokens
from distsub.models import pretrained
from distsub.preflight.rehearsal import one_line, opened, probes, refuse_visible_padding, steps
from distsub.records import Trial


def rehearse(trials: Iterable[Trial], splits: Splits, device: str, say: Callable[[str], None] | None = None) -> None:
    """Train a step of each trial, at its largest d; all are of one language model and one completion task.

    What is tried: that every row fits the length and the model, that the loss of a completion does not depend on its
    batch, nor what is generated on padding at the left, and a step of each trial. It costs some passes of three rows.

    Raises:
        DistsubError: What would fail or give a wrong number later, and how to fix it.
    """
    first, *others = trials
    prepared, tokenizer, name = opened(first)
    model: Any = pretrained.build(prepared, 0, 0).to(device).eval()
    apart, length = bool(model.config.is_encoder_decoder), first.budget.max_length
    parts = {"train": splits.train, "validation": splits.validation}
    content = [prepared.content, splits.dataset_hash]
    found_of = {
        key: objective(tokenizer, splits.task, part, length, model.config, [*content, key])
        for key, part in parts.items()
    }
    rows = Tokens.joined([each.examples for each in found_of.values()])
    chosen = [rows[row] for row in probes(rows.lengths("input_ids", "labels"))]
    if say and not apart and not splits.task.is_chat and (line := completions.joined(splits.train)):
        say(f"note: {splits.task.name}: {line}")
    with one_line(name, "a forward pass"):
        _check_ids(rows, model, name)
        _check_losses(chosen, tokenizer, model, name, device)
        if splits.task.metric == "exact_match":
            _check_answers(found_of["validation"].examples, splits, tokenizer, model, name, say)
            _check_generation(chosen, tokenizer, model, splits, name, device)
    del model
    batch = completions.collate(chosen, range(len(chosen)), tokenizer.pad_token_id, apart)
    steps((first, *others), splits.task, prepared, name, batch, device, found_of["train"].loss)


def _check_ids(rows: Tokens, model: Any, name: str) -> None:
    """Refuse tokens that the embedding does not have."""
    size = model.get_input_embeddings().num_embeddings
    most = max(max(*example["input_ids"], *example["labels"]) for example in rows)
    if most >= size:
        raise ConfigError(
            f"{name}: the tokenizer gives ids up to {most}, the embedding has {size} rows; the tokenizer is not this "
            "model's, or tokens were added to it and not to the model"
        )


def _check_answers(
    rows: Tokens, splits: Splits, tokenizer: Any, model: Any, name: str, say: Callable[[str], None] | None
) -> None:
    """Refuse answers beyond the model's positions, and say which completions no answer can match."""
    task, targets = splits.task, [str(label) for label in splits.validation.labels]
    most, positions = task.max_new_tokens or 0, getattr(model.config, "max_position_embeddings", None)
    longest = most if model.config.is_encoder_decoder else most + max(rows.lengths("input_ids"))
    if positions is not None and longest > positions:
        raise ConfigError(
            f"a prompt of {longest - most} tokens with max_new_tokens = {most} is more than its {positions} positions: "
            "lower [budget] max_length or max_new_tokens"
        )
    texts = tokenizer.batch_decode([row["labels"] for row in rows], skip_special_tokens=True)
    lost = [i for i, right in enumerate(generation.matches(texts, targets, task)) if not right]
    long = [i for i, length in enumerate(rows.lengths("labels")) if length > most]
    for found, what in (
        (lost, "are not what the tokenizer makes of them, so that no answer matches"),
        (long, f"have more tokens than max_new_tokens = {most}"),
    ):
        if found and say:
            first = f"first row {found[0] + 1} ({targets[found[0]][:40]!r})"
            say(f"note: {name}: {len(found)} of {len(targets)} completions {what}, {first}")


@torch.no_grad()
def _check_losses(rows: list[Example], tokenizer: Any, model: Any, name: str, device: str) -> None:
    """Refuse a model whose loss of a completion depends on what stands beside it."""

    def losses(some: list[Example]) -> torch.Tensor:
        apart = bool(model.config.is_encoder_decoder)
        batch = completions.collate(some, range(len(some)), tokenizer.pad_token_id, apart)
        return completions.losses(model, {key: value.to(device) for key, value in batch.items()})

    alone = torch.cat([losses([each]) for each in rows])
    if not alone.isfinite().all():
        raise ConfigError(f"{name}: the loss of the untrained model is not finite; its weights are damaged")
    refuse_visible_padding(losses(rows), alone, model, name, "the loss of a completion differs")


@torch.no_grad()
def _check_generation(rows: list[Example], tokenizer: Any, model: Any, splits: Splits, name: str, device: str) -> None:
    """Refuse a model whose first generated token depends on padding at the left."""

    def scores(numbers: list[int]) -> torch.Tensor:
        batch = generation.prompts(tokenizer, rows, numbers, device)
        return model.generate(
            **batch, max_new_tokens=1, do_sample=False, output_logits=True, return_dict_in_generate=True,
            pad_token_id=tokenizer.pad_token_id,
        ).logits[0].float()  # fmt: skip

    every = list(range(len(rows)))
    alone = torch.cat([scores([row]) for row in every])
    refuse_visible_padding(scores(every), alone, model, name, "what is generated differs")
    generation.generate(model, tokenizer, rows, splits.task, device, Autocast(device, False))
