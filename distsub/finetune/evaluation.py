"""Score a model on the fixed evaluation rows of a trial."""

import math
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from distsub import metrics
from distsub.finetune import batches, data
from distsub.finetune.precision import Autocast
from distsub.records import Trial

EVAL_BATCH = 128
"""Rows per evaluation batch; large, because a unit's weights are made once a batch."""


class Evaluation:
    """Scores a model and keeps its last predictions.

    Attributes:
        targets: The truth of each row.
        predicted: The last prediction for each row.
        metrics: Every metric of the last predictions.
        wall_s: Seconds spent so far.
    """

    def __init__(self, trial: Trial, tokenizer: Any, split: data.Split, device: str) -> None:
        """Tokenize the rows once, longest first so that padding is small."""
        self._task, self._tokenizer, self._device = trial.task, tokenizer, device
        self.targets = tuple(float(label) for label in split.labels)
        self._examples = batches.tokenize(tokenizer, split, trial.budget.max_length)
        self._order = sorted(range(len(split)), key=lambda i: -len(self._examples[i]["input_ids"]))
        self.predicted: Sequence[float] = ()
        self.metrics: dict[str, float] = {}
        self.wall_s = 0.0

    @torch.no_grad()
    def run(self, model: nn.Module, autocast: Autocast) -> float:
        """Evaluate, without touching the random state of training."""
        began = time.perf_counter()
        model.eval()
        predicted = [0.0] * len(self._examples)
        for first in range(0, len(self._order), EVAL_BATCH):
            indices = self._order[first : first + EVAL_BATCH]
            batch = batches.collate(self._tokenizer, self._examples, indices)
            with autocast():
                logits = model(**{k: v.to(self._device) for k, v in batch.items()}).logits.float()
            values = logits.squeeze(-1) if self._task.num_labels == 1 else logits.argmax(-1).float()
            values = values.masked_fill(~logits.isfinite().all(-1), math.nan)  # the argmax of nan is a class
            for i, value in zip(indices, values.tolist(), strict=True):
                predicted[i] = float(value)
        model.train()
        self.predicted = predicted
        self.metrics = metrics.evaluate(self._task, predicted, self.targets)
        self.wall_s += time.perf_counter() - began
        return self.metrics[self._task.metric]
