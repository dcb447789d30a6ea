"""Score a model on rows of a task, as at the end of a training."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from distsub import metrics
from distsub.data import dataset
from distsub.finetune import batches, completions, generation
from distsub.finetune.objective import in_units, objective
from distsub.finetune.precision import Autocast
from distsub.models import peft_model
from distsub.records import Task
from distsub.subspace.model import SubspaceModel

EVAL_BATCH = 128
"""Rows per evaluation batch; large, because weights that are not kept are made once a batch."""

KEPT_BYTES = 2**30
"""Weights of a held model that one evaluation makes once for all its batches: of a model of base size all of them."""

EVAL_TOKENS = 4096
"""Most tokens in an evaluation batch of completions: their logits take a vocabulary's width each."""


class Evaluation:
    """Scores a model and keeps its last predictions.

    Attributes:
        targets: The truth of each row: a class, or a value as it is in the file; of completions their number of tokens
            (nll), or 1.
        predicted: The last prediction for each row: a class or value; of completions their negative log-likelihood in
            nats (nll), or 1 where the answer was right and 0 where not (exact_match).
        metrics: Every metric of the last predictions.
        wall_s: Seconds spent so far.
    """

    def __init__(
        self,
        task: Task,
        max_length: int,
        tokenizer: Any,
        split: dataset.Split,
        device: str,
        config: Any,
        content: Sequence[Any] | None = None,
    ) -> None:
        """Tokenize the rows once, longest first so that padding is small; arguments as of `objective`."""
        self._task, self._tokenizer, self._device, self._scale = task, tokenizer, device, split.scale
        self._rows = objective(tokenizer, task, split, max_length, config, content)
        self._answers = [str(label) for label in split.labels] if task.is_completion else []
        self._order = sorted(range(len(split)), key=lambda i: -self._rows.lengths[i])
        if not task.is_completion:
            self.targets = tuple(float(label) for label in split.labels)
        elif task.metric == "nll":
            self.targets = tuple(map(float, self._rows.examples.lengths("labels")))
        else:
            self.targets = (1.0,) * len(split)
        self.predicted: Sequence[float] = ()
        self.metrics: dict[str, float] = {}
        self.wall_s = 0.0

    @torch.no_grad()
    def run(self, model: nn.Module, autocast: Autocast) -> float:
        """Evaluate, without touching the random state of training."""
        began = time.perf_counter()
        model.eval()
        if not self._task.is_completion:
            self.predicted = self._labels(model, autocast)
        elif self._task.metric == "nll":
            self.predicted = self._likelihoods(model, autocast)
        else:
            self.predicted = self._matches(model, autocast)
        model.train()
        self.metrics = metrics.evaluate(self._task, self.predicted, self.targets)
        if self._task.metric == "nll":
            size = sum(len(answer.encode()) for answer in self._answers)
            self.metrics["bits_per_byte"] = math.fsum(self.predicted) / math.log(2) / size
        self.wall_s += time.perf_counter() - began
        return self.metrics[self._task.metric]

    def _labels(self, model: nn.Module, autocast: Autocast) -> list[float]:
        found = logits(model, self._rows.batch, self._rows.lengths, self._device, autocast)
        values = found.squeeze(-1) if self._task.num_labels == 1 else found.argmax(-1).float()
        if self._scale is not None:
            values = in_units(values, self._scale)
        return values.masked_fill(~found.isfinite().all(-1), math.nan).tolist()  # the argmax of nan is a class

    def _likelihoods(self, model: nn.Module, autocast: Autocast) -> list[float]:
        predicted = [0.0] * len(self._order)
        with _weights_kept(model):
            for rows in self._batches():
                batch = batches.send(self._rows.batch(rows), self._device)
                with autocast():
                    found = completions.losses(model, batch)
                for row, value in zip(rows, found.tolist(), strict=True):
                    predicted[row] = value if math.isfinite(value) else math.nan
        return predicted

    def _batches(self) -> Iterator[list[int]]:
        """Cut the rows, longest first, into batches of so many tokens."""
        left = self._order
        while left:
            size = max(1, min(EVAL_BATCH, EVAL_TOKENS // self._rows.lengths[left[0]]))
            yield left[:size]
            left = left[size:]

    def _matches(self, model: nn.Module, autocast: Autocast) -> list[float]:
        # Merged once: a held model would make all its weights again at every token.
        plain = model.merge().eval() if isinstance(model, SubspaceModel) else peft_model.plain(model)
        written = generation.generate(plain, self._tokenizer, self._rows.examples, self._task, self._device, autocast)
        return generation.matches(written, self._answers, self._task)


@torch.no_grad()
def logits(
    model: nn.Module,
    batch_of: Callable[[Sequence[int]], dict[str, Tensor]],
    lengths: Sequence[int],
    device: str,
    autocast: Autocast,
) -> Tensor:
    """Run a classifier on rows, longest first so that padding is small.

    Args:
        model: In evaluation mode.
        batch_of: Makes a batch of some rows, by their numbers; its labels are left out.
        lengths: Tokens per row.
        device: Where the model is.
        autocast: The precision to run in.

    Returns:
        float32 on the CPU, shape [rows, labels], in the order of the rows.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    parts = []
    with _weights_kept(model):
        for first in range(0, len(order), EVAL_BATCH):
            batch = batch_of(order[first : first + EVAL_BATCH])
            inputs = batches.send({key: value for key, value in batch.items() if key != "labels"}, device)
            with autocast():
                parts.append(model(**inputs).logits.float().cpu())
    found = torch.cat(parts)
    return torch.empty_like(found).index_copy_(0, torch.tensor(order), found)


def _weights_kept(model: nn.Module) -> AbstractContextManager[None]:
    """Have a held model make its weights once for all batches."""
    return model.hooks.keeping(KEPT_BYTES) if isinstance(model, SubspaceModel) else nullcontext()
