"""A certificate: a bound on how often a model errs on rows that nobody has seen, from how few bits describe it.

A model that is trained in a random subspace is decided by its base, by P, which is drawn without the data, and by d
numbers. With probability 1 - delta over the draw of n rows, every model that is described by b bits errs at most

    e + sqrt((b ln 2 + ln(1 / delta)) / (2 n))

where e is its share of errors on these rows: the bound of finite hypotheses that Lotfi et al. 2022 (arXiv:2211.13609)
compute for compressed networks, with b = -log2 P(h) of a prior P. The form sqrt(d / m) is Aghajanyan et al. 2020's.
Chernoff's inequality gives the tighter bound that is used here: the largest p with kl(e || p) <= (b ln 2 +
ln(1 / delta)) / n.
"""

import json
import math
import os
import random
from collections.abc import Sequence
from typing import Any, Literal, get_args, get_origin, get_type_hints

from distsub.adapters import loading, prediction, predictor, rounding
from distsub.data.dataset import Split
from distsub.errors import ConfigError, DataError
from distsub.finetune.objective import objective
from distsub.records import Random, Subspace, canonical
from distsub.subspace import adapter as files
from distsub.subspace import code_length
from distsub.subspace.code_length import Rounded
from distsub.subspace.model import SubspaceModel

LEVELS = (1, 2, 3, 5, 8, 12)
"""Levels on either side of 0 that numbers may be rounded to; which of them is coded too, so that it may be chosen."""

TRIED_ON = 1000
"""Rows that levels are chosen by, at most; the bound itself is of all rows."""

_ABOUT = ("base_model", "revision", "num_labels", "head_seed", "head_from", "task", "trained_on", "base_content")
"""What the adapter of the rounded model says as the trained one does."""


def hoeffding(error: float, bits: float, rows: int, delta: float = 0.05) -> float:
    """Bound the error of a model that bits describe, by Hoeffding's inequality; may exceed 1.

    >>> round(hoeffding(0.1, 1000, 60_000), 3)
    0.176
    """
    return error + math.sqrt((bits * math.log(2) + math.log(1 / delta)) / (2 * rows))


def chernoff(error: float, bits: float, rows: int, delta: float = 0.05) -> float:
    """Bound the error of a model that bits describe, by Chernoff's inequality; never looser than Hoeffding's.

    >>> round(chernoff(0.1, 1000, 60_000), 3)
    0.151
    """
    allowed = (bits * math.log(2) + math.log(1 / delta)) / rows
    low, high = error, 1.0
    for _ in range(60):  # kl grows with p: the end that is kept lies above
        middle = (low + high) / 2
        low, high = (middle, high) if _kl(error, middle) <= allowed else (low, middle)
    return high


def _kl(e: float, p: float) -> float:
    """Kullback-Leibler divergence of two coins, in nats."""
    parts = [a * math.log(a / b) if b > 0 else math.inf for a, b in ((e, p), (1 - e, 1 - p)) if a > 0]
    return sum(parts)


def certify(
    adapter: str | os.PathLike[str],
    data: str,
    *,
    text: Sequence[str] = (),
    label: str | None = None,
    base: str | None = None,
    delta: float = 0.05,
    device: str = "cpu",
    steps: int = 0,
    seed: int = 0,
    out: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:
    """Bound the error of a saved classifier on unseen rows; gives facts by name.

    It holds where the rows are independent draws of what the model will meet, and the base was not pretrained on them.
    The model may have been trained on all of them, on some or on none.

    Args:
        adapter: Of a random subspace, with its head in the subspace, frozen or beside it.
        data: Rows with labels; the more, the tighter.
        text: The columns to read in place of the training's.
        label: The column of labels in its place.
        base: Where the base model lies, if not where the adapter says.
        delta: Chance that the bound fails, over the draw of the rows.
        device: "cpu" or "cuda".
        steps: Steps of training that know of the rounding, on the rows given (see `rounding`), from the fewest levels
            on: they win back errors, and add bits. What they make is certified where its bound is the lower one: the
            code is of all models, so that to take the better of several costs nothing. 0 only rounds.
        seed: Of the order of rows in these steps.
        out: Where to save the adapter of the rounded model, which the bound is of; None saves none.

    Raises:
        ConfigError: The adapter is none that a certificate can be of; delta is no probability, `steps` or `out` no use.
        DataError: Rows cannot be read, or lack texts or labels.
        AdapterError: The adapter, or its base, is not there.
        OutputError: `out` cannot be written.
    """
    if not 0 < delta < 1:
        raise ConfigError(f"delta = {delta:g} should lie between 0 and 1")
    if steps < 0:
        raise ConfigError(f"steps = {steps}; allowed: 0, which only rounds, or more")
    if out is not None and os.path.realpath(out) == os.path.realpath(adapter):
        raise ConfigError(f"out = {out} is the adapter that is certified, which stays as it is; give another place")
    subject = _Subject(loading.open_adapter(adapter, None, base), device, delta, data, text, label)
    exact, rows = subject.error(len(subject.targets)), len(subject.targets)
    rounded = [subject.rounded(largest) for largest in LEVELS]
    coded = subject.best(rounded)
    found = subject.counted(coded, rows) | {"steps": 0}
    if steps:
        again = subject.best(subject.trained_to_round(rounded[0], found["bits"], steps, seed))
        if (other := subject.counted(again, rows))["bound"] < found["bound"]:
            found, coded = other | {"steps": steps}, again
    if out is not None:
        subject.put(coded)
        subject.held.save_pretrained(out, **{name: getattr(subject.config, name) for name in _ABOUT})
    numbers, guess = sum(each.numel() for each in subject.numbers.values()), 1 - 1 / len(subject.asking.labels)
    return {
        "rows": rows,
        "error": exact,
        **found,
        "bits_of_configuration": subject.about,
        "numbers": numbers,
        "bits_a_number": (found["bits"] - subject.about) / numbers,
        "confidence": 1 - delta,
        "guessing": guess,
        "sqrt_d_over_rows": math.sqrt(subject.config.d / rows),
        "verdict": "holds below guessing" if found["bound"] < guess else "vacuous: no better than guessing",
    }


class _Subject:
    """The model of an adapter, whose numbers are put in and counted as a code writes them, and the rows it errs on."""

    def __init__(
        self, opened: loading.Opened, device: str, delta: float, data: str, text: Sequence[str], label: str | None
    ) -> None:
        held, config = opened.model, opened.config
        if not isinstance(held, SubspaceModel) or not isinstance(config, files.Config):
            raise ConfigError("a certificate is of a random subspace; of a method of PEFT none is computed")
        if config.snapshots is not None:
            raise ConfigError(
                "a certificate needs a subspace that was drawn without the data; this one was learned from "
                "fine-tunings, so that its d numbers do not describe it"
            )
        self.opened, self.held, self.config, self.device, self.delta = opened, held, config, device, delta
        self.asking = predictor.Predictor(opened, device)
        if not self.asking.labels:
            raise ConfigError(
                "a certificate is of a share of errors: the adapter of a classifier, of two classes or more"
            )
        self.numbers = {name: parameter.detach().clone() for name, parameter in held.trained().items()}
        self.about = configuration_bits(config, self.asking.precision, self.asking.max_length)
        rows = prediction.read(self.asking, data, text, label)
        self.targets = _targets(self.asking, rows)
        self.columns = [column.to_pylist() for column in rows.texts.columns]

    def error(self, first: int) -> float:
        """Give the share of errors on the first rows, of the model as it is now."""
        columns = [column[:first] for column in self.columns]
        texts: list[Any] = columns[0] if len(columns) == 1 else list(zip(*columns, strict=True))
        given = predictor.Predictor(self.opened, self.device).logits(texts).argmax(-1).tolist()
        return sum(one != other for one, other in zip(given, self.targets[:first], strict=True)) / first

    def rounded(self, largest: int) -> dict[str, Rounded]:
        """Round the numbers as they were trained."""
        return {
            name: code_length.rounded(each, largest, float(name == "scales")) for name, each in self.numbers.items()
        }

    def put(self, coded: dict[str, Rounded]) -> None:
        """Make the model the one that a code describes."""
        for name, parameter in self.held.trained().items():
            parameter.data.copy_(coded[name].values.view(parameter.shape))

    def counted(self, coded: dict[str, Rounded], first: int) -> dict[str, Any]:
        """Count errors on the first rows, bits, and the bounds that follow for as many rows as there are."""
        self.put(coded)
        bits, error = self.about + sum(each.bits for each in coded.values()), self.error(first)
        bounds = [form(error, bits, len(self.targets), self.delta) for form in (chernoff, hoeffding)]
        levels = 2 * next(iter(coded.values())).largest + 1
        return {
            "error_rounded": error,
            "levels": levels,
            "bits": bits,
            "bound": bounds[0],
            "bound_hoeffding": bounds[1],
        }

    def best(self, tried: list[dict[str, Rounded]]) -> dict[str, Rounded]:
        """Give the code with the lowest bound, by some of the rows."""
        some = min(TRIED_ON, len(self.targets))
        return min(tried, key=lambda each: self.counted(each, some)["bound"])

    def trained_to_round(
        self, start: dict[str, Rounded], bits: float, steps: int, seed: int
    ) -> list[dict[str, Rounded]]:
        """Train for a few steps that know of the rounding; see `rounding.train`."""
        rows, asking = len(self.targets), self.asking
        taken = random.Random(seed).sample(range(rows), min(steps * rounding.BATCH, rows))
        texts = tuple([column[row] for row in taken] for column in self.columns)
        split = Split(texts, [self.targets[row] for row in taken])
        learned = objective(asking.tokenizer, asking.task, split, asking.max_length, self.held.config)
        price = math.log(2) ** 2 / (4 * rows * hoeffding(0.0, bits, rows, self.delta))
        held = self.held.to(self.device)
        return rounding.train(held, self.numbers, start, learned, price, steps, seed, asking.autocast, self.device)


def configuration_bits(config: files.Config, precision: str, max_length: int) -> float:
    """Bits of everything but the trained numbers that decides a model, given its base and tokenizer.

    Of the fields of the subspace those are counted that have not their defaults: how many they are, and for each which
    it is and its value, one of those that it can have or else as JSON, eight bits a character.
    """
    usual, given = (files.flat(canonical(each)) for each in (Subspace(), config.subspace))
    kinds = get_type_hints(Subspace) | {f"projection.{name}": kind for name, kind in get_type_hints(Random).items()}
    unusual = {key: value for key, value in given.items() if value != usual[key]}
    which = sum(math.log2(len(kinds)) + _value_bits(value, kinds[key]) for key, value in unusual.items())
    two_choices = 2.0  # where the head is from, and the precision
    counts = (config.d, config.projection_seed + 1, (config.head_seed or 0) + 1, max_length, len(unusual) + 1)
    return which + two_choices + sum(code_length.integer(count) for count in counts)


def _value_bits(value: Any, kind: Any) -> float:
    """Bits of a field's value: one of those that its type lists, or something else."""
    parts = (kind,) if get_origin(kind) is Literal else get_args(kind)
    listed = [each for part in parts for each in get_args(part)]
    bits = math.log2(len(listed) + 1)
    if value in listed:
        return bits
    text = json.dumps(value)
    return bits + 8 * len(text) + code_length.integer(len(text) + 1)


def _targets(asking: predictor.Predictor, rows: prediction.Rows) -> list[int]:
    if rows.labels is None:
        raise DataError(f"{rows.source} has no column of labels; give one (--label)")
    if not rows.labels:
        raise DataError(f"{rows.source} has no rows: give the rows with labels that the error is counted on")
    missing = sum(each is None for each in rows.labels) + sum(column.null_count for column in rows.texts.columns)
    if missing:
        raise DataError(
            f"{rows.source} has empty texts or labels ({missing} cells); a certificate counts every row, "
            "leave those rows out of the file"
        )
    known = [each for each in rows.labels if each is not None]
    return [int(each) for each in asking.encode(known, rows.source, prediction.ANOTHER)]
