"""What a training minimises: how the rows of a task become batches, and a batch a loss."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from distsub.data.dataset import Split
from distsub.finetune import batches, completions, tokens
from distsub.records import Task


def in_units(values: Tensor, scale: tuple[float, float]) -> Tensor:
    """Give standardised values in the units of their targets, float32: value * deviation + mean.

    >>> in_units(torch.tensor([-1.0, 0.0]), (2.5, 1.5)).tolist()
    [1.0, 2.5]
    """
    mean, deviation = scale
    return values.float() * deviation + mean


class Labels:
    """The loss of a classifier, or of a regression, whose targets may be standardised, on some rows.

    Attributes:
        examples: The tokens of each row, a sequence of dicts of lists.
        lengths: Tokens per row.
    """

    def __init__(
        self, tokenizer: Any, split: Split, max_length: int, is_regression: bool, content: Sequence[Any] | None
    ) -> None:
        self._tokenizer, self._labels, self._is_regression = tokenizer, split.labels, is_regression
        if split.scale is not None:
            mean, deviation = split.scale
            self._labels = [(float(value) - mean) / deviation for value in split.labels]
        key = content and ["labels", *content, max_length]
        self.examples = tokens.prepared(
            len(split), key, lambda rows: batches.tokenize(tokenizer, split.part(rows), max_length)
        )
        self.lengths = self.examples.lengths("input_ids")

    def batch(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """Pad some rows: what the model reads, and their labels."""
        batch = batches.collate(self._tokenizer, self.examples, rows)
        labels = torch.tensor([self._labels[row] for row in rows])
        return batch | {"labels": labels.float() if self._is_regression else labels.long()}

    def loss(self, model: Any, batch: dict[str, Tensor]) -> Tensor:
        """Return the mean loss of a batch, as the model itself defines it."""
        return model(**batch).loss


class Completions:
    """The loss of a language model on completions: the mean over the tokens of a batch; attributes as of `Labels`."""

    def __init__(
        self,
        tokenizer: Any,
        task: Task,
        split: Split,
        max_length: int,
        encoder_decoder: bool,
        content: Sequence[Any] | None,
    ) -> None:
        self._pad, self._apart = tokenizer.pad_token_id, encoder_decoder
        key = content and ["completions", *content, max_length, task.is_chat]
        self.examples = tokens.prepared(
            len(split),
            key,
            lambda rows: completions.tokenize(
                tokenizer, task, split.part(rows), max_length, encoder_decoder, rows.start + 1
            ),
        )
        self.lengths = self.examples.lengths("input_ids", "labels")

    def batch(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """Pad some rows: what the model reads, and the completions."""
        return completions.collate(self.examples, rows, self._pad, self._apart)

    def loss(self, model: Any, batch: dict[str, Tensor]) -> Tensor:
        """Return the mean negative log-likelihood of a batch, in nats per token of its completions."""
        return completions.losses(model, batch).sum() / (batch["labels"] != completions.IGNORED).sum()


Objective = Labels | Completions


def objective(
    tokenizer: Any, task: Task, split: Split, max_length: int, config: Any, content: Sequence[Any] | None = None
) -> Objective:
    """Prepare some rows of a task.

    Args:
        tokenizer: The model's.
        task: With its number of classes.
        split: The rows.
        max_length: Tokens per example.
        config: The model's configuration.
        content: What tells these rows and this tokenizer from all others, as plain values: their tokens are then made
            once per machine. None makes them anew.

    Raises:
        DataError: A row cannot be read.
    """
    if task.is_completion:
        return Completions(tokenizer, task, split, max_length, bool(config.is_encoder_decoder), content)
    return Labels(tokenizer, split, max_length, task.num_labels == 1, content)
