"""A saved adapter in use: texts go in, and labels, values or answers come out as they did in its training."""

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from distsub import metrics
from distsub.adapters import loading, units
from distsub.data import chats
from distsub.data import labels as label_names
from distsub.data.dataset import Split
from distsub.errors import AdapterError, ConfigError, DataError
from distsub.finetune import batches, completions, evaluation, generation
from distsub.finetune.precision import autocast_for
from distsub.models import fit, peft_model, pretrained
from distsub.records import Task
from distsub.subspace.model import SubspaceModel


def load(
    adapter: str | os.PathLike[str],
    base: str | os.PathLike[str] | None = None,
    results: str | os.PathLike[str] | None = None,
    device: str = "cpu",
) -> "Predictor":
    """Load a saved adapter to use it: the model with its trained weights, its tokenizer and the names of its labels.

    Args:
        adapter: A directory, or an address such as s3://, gs://, abfs:// or hdfs://.
        base: Where the base model lies (a directory or a hub id), if not where the adapter says.
        results: As of `load_adapter`.
        device: "cpu" or "cuda".

    Raises:
        AdapterError: The adapter is missing, damaged, of another version, or made for another base.
        TrajectoryError: A trajectory that it needs is missing or damaged.
        UnavailableError: The base model is not here.
    """
    if isinstance(base, nn.Module):
        raise AdapterError("base is a model: give its address, which its tokenizer is read from; load_adapter takes it")
    return Predictor(loading.open_adapter(adapter, results, base), device)


class Predictor:
    """A model that came out of a training, ready to use.

    It runs in the precision in which the training scored it, and cuts texts where the training did, so that
    the same rows have the same predictions.

    Attributes:
        model: A plain transformers model in evaluation mode, with the trained weights in it: `pipeline` takes it. Of a
            method of PEFT it has PEFT's layers in it.
        tokenizer: Its tokenizer.
        labels: The classes in their order, as the label column of the training spelled them; none for values and
            completions.
        task: What it was trained on as far as the adapter says: columns, metric, how answers end.
        knows_columns: Whether the adapter says which columns it reads.
        max_length: Tokens per text, the rest is cut.
        precision: "fp32" or "bf16", and `autocast` makes the context for it.
        num_bytes: Size of the adapter's files.
    """

    def __init__(self, opened: loading.Opened, device: str = "cpu") -> None:
        config, base, trained_on = opened.config, opened.base, opened.config.trained_on
        assert base is not None and config.num_labels is not None, "the base came from an address"
        held = opened.model
        self.model: Any = held.merge() if isinstance(held, SubspaceModel) else peft_model.plain(held)
        units.in_original_units(self.model, opened.scale)
        self.model.to(device).eval()
        self.tokenizer: Any = tokenizer_of(opened)
        number, name = config.num_labels, config.task or "adapter"
        if trained_on is None:
            metric = {0: "exact_match", 1: "pearson"}.get(number, "accuracy")
            names = _names(config.id2label, number)
            self.task = Task(name, "", ("text",), num_labels=number, metric=metric, labels=names, validation=None)
        else:
            self.task = trained_on.task(name, number)
        self.labels = () if number < 2 else self.task.labels or tuple(map(str, range(number)))
        self.knows_columns = trained_on is not None
        most = fit.longest(self.tokenizer, self.model.config)
        self.max_length = trained_on.max_length if trained_on else most
        unknown = "auto" if base.dtype == "bfloat16" else "fp32"
        precision = trained_on.precision if trained_on else unknown
        self.precision, self.autocast = autocast_for(precision, device, base.dtype)
        self.num_bytes, self._device = opened.num_bytes, device

    def __repr__(self) -> str:
        """Say in one line what it tells."""
        found = f"labels={list(self.labels)}" if self.labels else "values" if self.task.num_labels else "completions"
        return f"Predictor({type(self.model).__name__}, {found})"

    def predict(self, texts: Iterable[Any], max_new_tokens: int | None = None) -> list[str] | list[float]:
        """Predict a label (or a value, or a completion) for each text.

        Args:
            texts: Strings; pairs of strings where the task has two columns; messages where it is of chats, whose last
                message is left out where it is the assistant's.
            max_new_tokens: Most tokens of a completion; None takes the task's.

        Raises:
            DataError: A row is no text, or an empty one.
            ConfigError: The task says no most tokens, and none are given.
            AdapterError: The model gives no finite numbers.
        """
        if self.task.is_completion:
            return self.complete(texts, max_new_tokens)
        return self.decide(self.logits(texts))

    def predict_proba(self, texts: Iterable[Any]) -> np.ndarray:
        """Give the probability of each label, float32 of shape [texts, labels].

        Raises:
            ConfigError: The task has no classes.
            DataError: A row is no text, or an empty one.
        """
        if not self.labels:
            raise ConfigError(f"{self!r} tells no classes, so there are no probabilities; use predict")
        return self.logits(texts).softmax(-1).numpy()

    def logits(self, texts: Iterable[Any]) -> Tensor:
        """Give the logits of each text, or its value, float32 of shape [texts, labels]; arguments as of `predict`."""
        if self.task.is_completion:
            raise ConfigError(f"{self!r} completes prompts: use complete, or model(**inputs).logits")
        columns = self._columns(texts)
        if not columns[0]:
            return torch.empty(0, self.task.num_labels or 0)
        examples = batches.tokenize(self.tokenizer, Split(columns, [0] * len(columns[0])), self.max_length)
        found = evaluation.logits(
            self.model.eval(),
            lambda rows: batches.collate(self.tokenizer, examples, rows),
            [len(each["input_ids"]) for each in examples],
            self._device,
            self.autocast,
        )
        if not found.isfinite().all():
            row = int((~found.isfinite().all(-1)).nonzero()[0]) + 1
            raise AdapterError(f"the model gives numbers that are not finite, first for row {row}; train it again")
        return found

    def decide(self, logits: Tensor) -> list[str] | list[float]:
        """Turn logits into the names of labels, or into values."""
        if not self.labels:
            return logits.squeeze(-1).tolist()
        return [self.labels[number] for number in logits.argmax(-1).tolist()]

    def complete(self, prompts: Iterable[Any], max_new_tokens: int | None = None) -> list[str]:
        """Write a greedy answer to each prompt, which ends where the task's end; arguments as of `predict`."""
        if not self.task.is_completion:
            raise ConfigError(f"{self!r} completes nothing; use predict")
        most = max_new_tokens or self.task.max_new_tokens
        if most is None:
            raise ConfigError("the task says not how long an answer may be: give max_new_tokens (--max-new-tokens)")
        [column] = self._columns(prompts)
        if not column:
            return []
        answer = "." if self.task.is_chat else ""  # stands where the model is to go on
        if self.task.is_chat:
            column = [json.dumps([*json.loads(chat), {"role": "assistant", "content": answer}]) for chat in column]
        task, split = replace(self.task, max_new_tokens=most), Split((column,), [answer] * len(column))
        both = bool(self.model.config.is_encoder_decoder)
        examples = completions.tokenize(self.tokenizer, task, split, self.max_length, both)
        return generation.generate(self.model.eval(), self.tokenizer, examples, task, self._device, self.autocast)

    def generate(self, *inputs: Any, **settings: Any) -> Any:
        """Generate token ids, as `generate` of transformers does."""
        return self.model.generate(*inputs, **settings)

    def evaluate(self, texts: Iterable[Any], labels: Iterable[Any]) -> dict[str, float]:
        """Score predictions against labels as the training's column spelled them; gives every metric of the task.

        Raises:
            DataError: A label is none of those that the model tells apart; or as of `predict`.
        """
        listed = list(labels)
        if self.task.is_completion:
            [column] = self._columns(texts, whole=True)
            split = Split((column,), [str(each) for each in listed])
            found = evaluation.Evaluation(
                self.task, self.max_length, self.tokenizer, split, self._device, self.model.config
            )
            found.run(self.model, self.autocast)
            self.model.eval()
            return found.metrics
        return self.measure(self.logits(texts), self.encode(listed))

    def measure(self, logits: Tensor, targets: Sequence[float]) -> dict[str, float]:
        """Compute every metric of the task from logits and class numbers or values."""
        found = logits.argmax(-1) if self.labels else logits.squeeze(-1)
        return metrics.evaluate(self.task, found.tolist(), targets)

    def encode(self, labels: Sequence[Any], where: str = "labels", remedy: str = "") -> list[int] | list[float]:
        """Turn names of labels into class numbers, or texts into values.

        Args:
            labels: Names or values.
            where: Where they come from, for the message.
            remedy: What the message advises after fixing them.

        Raises:
            DataError: One is not among the model's, or no number where it predicts values.
        """
        texts = [each if isinstance(each, str) else str(each) for each in labels]
        if self.task.num_labels == 1:
            values, odd = label_names.as_values(texts)
            if odd is None:
                return values
            fix = label_names.with_point(odd) or "fix it"
            raise DataError(
                f"{where}: row {len(values) + 1} of {len(texts)} holds {odd!r}, which is no finite number; the adapter "
                f"predicts values; {fix}{remedy}"
            )
        try:
            return label_names.encode(self.task, texts, where)
        except KeyError as error:
            wrong = error.args[0]
            rows = sum(label_names.plain(text) == wrong for text in texts)
            raise DataError(
                f"{where}: {rows} of {len(texts)} rows have the label {wrong!r}, which the adapter does not know; it "
                f"tells apart {', '.join(self.labels)}; fix them{remedy}"
            ) from None

    def _columns(self, texts: Iterable[Any], whole: bool = False) -> tuple[list[str], ...]:
        """Check rows of texts, and turn them into columns; chats lose the assistant's last message unless `whole`."""
        if isinstance(texts, str | bytes):
            raise DataError("predict takes a list of texts, and was given one text: predict([text])")
        listed: Any = texts.to_pylist() if hasattr(texts, "to_pylist") else list(texts)  # pyright: ignore[reportAttributeAccessIssue]
        if self.task.is_chat:
            return ([_chat(each, number, whole) for number, each in enumerate(listed, start=1)],)
        width = len(self.task.text)
        if not self.knows_columns and listed and not isinstance(listed[0], str):
            width = 2
        rows = [(each,) if width == 1 else each for each in listed]
        for number, row in enumerate(rows, start=1):
            is_row = isinstance(row, Sequence | np.ndarray) and not isinstance(row, str) and len(row) == width
            if not (is_row and all(isinstance(text, str) for text in row)):
                wanted = "a text" if width == 1 else f"a pair of texts ({', '.join(self.task.text)})"
                raise DataError(f"row {number} is {_shown(row[0] if width == 1 else row)}; give {wanted}")
            if self.task.empty != "keep" and not all(text.strip() for text in row):
                raise DataError(f"row {number} is an empty text, which the training had none of; leave it out")
        return tuple([str(row[place]) for row in rows] for place in range(width))


def tokenizer_of(opened: loading.Opened) -> Any:
    """Load the tokenizer of an adapter's base as the training used it: with `truncation`, it cuts where that did."""
    assert opened.base is not None, "the base came from an address"
    tokenizer, model = pretrained.tokenizer(opened.base), opened.model
    if opened.config.num_labels == 0:
        if not getattr(model, "config").is_encoder_decoder:  # noqa: B009 (PEFT's models are no modules with one)
            tokenizer.padding_side = "left"  # an answer follows the last token of its row
    elif opened.config.trained_on is not None:
        tokenizer.model_max_length = opened.config.trained_on.max_length
    return tokenizer


def _chat(given: Any, number: int, whole: bool) -> str:
    """Give the messages of a chat as JSON."""
    try:
        found = json.loads(given) if isinstance(given, str) else list(given)
    except (ValueError, TypeError):
        found = None
    if not isinstance(found, list) or not found or not all(chats.is_message(each) for each in found):
        raise DataError(f'row {number} is {_shown(given)}; give messages: [{{"role": "user", "content": "..."}}]')
    if not whole and found[-1]["role"] == "assistant":
        found = found[:-1]
    return json.dumps(found, ensure_ascii=False)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _names(id2label: dict[str, str] | None, number: int) -> tuple[str, ...]:
    """Give the names of labels that say more than their number."""
    names = tuple(id2label[str(i)] for i in range(number)) if id2label and number > 1 else ()
    return () if names == tuple(f"LABEL_{i}" for i in range(number)) else names
