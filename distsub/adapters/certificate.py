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
    opened = loading.open_adapter(adapter, None, base)
    held, config = opened.model, opened.config
    if not isinstance(held, SubspaceModel) or not isinstance(config, files.Config):
        raise ConfigError("a certificate is of a random subspace; of a method of PEFT none is computed")
    if config.snapshots is not None:
        raise ConfigError(
            "a certificate needs a subspace that was drawn without the data; this one was learned from fine-tunings, "
            "so that its d numbers do not describe it"
        )
    asking = predictor.Predictor(opened, device)
    if not asking.labels:
        raise ConfigError("a certificate is of a share of errors: the adapter of a classifier, of two classes or more")
    rows = prediction.read(asking, data, text, label)
    targets = _targets(asking, rows)
    columns = [column.to_pylist() for column in rows.texts.columns]
    texts: list[Any] = columns[0] if len(columns) == 1 else list(zip(*columns, strict=True))

    def error(model: predictor.Predictor, first: int) -> float:
        found = model.logits(texts[:first]).argmax(-1).tolist()
        return sum(one != other for one, other in zip(found, targets[:first], strict=True)) / first

    trained = {name: parameter.detach().clone() for name, parameter in held.trained().items()}
    about = configuration_bits(config, asking.precision, asking.max_length)
    exact = error(asking, len(targets))

    def put(coded: dict[str, Rounded]) -> None:
        for name, parameter in held.trained().items():
            parameter.data.copy_(coded[name].values.view(parameter.shape))

    def counted(coded: dict[str, Rounded], first: int) -> dict[str, Any]:
        put(coded)
        bits = about + sum(each.bits for each in coded.values())
        rate = error(predictor.Predictor(opened, device), first)
        bounds = [form(rate, bits, len(targets), delta) for form in (chernoff, hoeffding)]
        found = {"error_rounded": rate, "levels": 2 * next(iter(coded.values())).largest + 1, "bits": bits}
        return {**found, "bound": bounds[0], "bound_hoeffding": bounds[1]}

    some = min(TRIED_ON, len(targets))
    tried = [
        {name: code_length.rounded(values, largest, float(name == "scales")) for name, values in trained.items()}
        for largest in LEVELS
    ]
    coded = min(tried, key=lambda each: counted(each, some)["bound"])
    best = {**counted(coded, len(targets)), "steps": 0}
    if steps:
        taken = random.Random(seed).sample(range(len(targets)), min(steps * rounding.BATCH, len(targets)))
        split = Split(tuple([column[row] for row in taken] for column in columns), [targets[row] for row in taken])
        learned = objective(asking.tokenizer, asking.task, split, asking.max_length, held.config)
        width = hoeffding(0.0, best["bits"], len(targets), delta)
        price = math.log(2) ** 2 / (4 * len(targets) * width)
        made = rounding.train(held.to(device), trained, tried[0], learned, price, steps, seed, asking.autocast, device)
        again = min(made, key=lambda each: counted(each, some)["bound"])
        if (found := counted(again, len(targets)))["bound"] < best["bound"]:
            best, coded = {**found, "steps": steps}, again
    if out is not None:
        put(coded)
        held.save_pretrained(out, **{name: getattr(config, name) for name in _ABOUT})
    numbers, guess = sum(values.numel() for values in trained.values()), 1 - 1 / len(asking.labels)
    says = best["bound"] < guess
    return {
        "rows": len(targets),
        "error": exact,
        **best,
        "bits_of_configuration": about,
        "numbers": numbers,
        "bits_a_number": (best["bits"] - about) / numbers,
        "confidence": 1 - delta,
        "guessing": guess,
        "sqrt_d_over_rows": math.sqrt(config.d / len(targets)),
        "verdict": "holds below guessing" if says else "vacuous: no better than guessing",
    }


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
