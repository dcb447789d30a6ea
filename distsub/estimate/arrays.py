"""d90 from given numbers: arrays in, an estimate out. See docs/intervals.md."""

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from distsub.errors import ConfigError
from distsub.estimate.d90 import fit_rows
from distsub.estimate.interval import LEVEL, Estimate
from distsub.estimate.rows import Row, prepare
from distsub.records import sign
from distsub.search.rule import RANGES, Rule, check_score
from distsub.search.settings import SETTINGS

Numbers = Sequence[float]
"""A list, or anything with numbers in a row: a NumPy array, a column of pandas or polars."""


def d90(
    d: Numbers,
    score: Numbers,
    *,
    full: Numbers | Mapping[float, Numbers] | None = None,
    threshold: float | None = None,
    chance: float | None = None,
    metric: str = "accuracy",
    eval_examples: int | None = None,
    eta: Numbers | None = None,
    seed: Sequence[Hashable] | None = None,
    failed: Sequence[bool] | None = None,
    fraction: float | None = None,
    chance_corrected: bool = False,
    dims: tuple[int, int] | None = None,
    level: float = LEVEL,
) -> Estimate:
    """Estimate how many trained numbers reach 90% of full fine-tuning's score, with an interval.

    One entry per training in d, score, eta, seed and failed, in any order. Any trainings will do whose number of
    trained numbers varies: subspaces, LoRA ranks, prompt lengths. Other shares come from the same curves: `.d_at(0.8)`.

    Args:
        d: How many numbers each training trained, at least 1.
        score: What it scored on the evaluation set; anything where it failed.
        full: Scores of full fine-tuning, one per seed; nan where it failed. If several learning rates were tried, a
            mapping from learning rate to those scores (the i-th of every rate under the i-th seed). Not needed where a
            threshold is given.
        threshold: The score to reach, as 0.8, in the place of a share of full fine-tuning's.
        chance: Score of a model that learned nothing: that of the majority class, or for nll of the untouched model. 0
            for correlations if not given.
        metric: accuracy (for any share of right answers), f1, macro_f1, matthews or pearson.
        eval_examples: Size of the evaluation set; 400 is assumed, and said, if not given.
        eta: Step size of each training, if several were tried: what was tried at one d competes there.
        seed: A label for each training; those with the same one share luck. If not given, each has its own.
        failed: Which trainings diverged or failed to train; their scores are ignored.
        fraction: Share of full fine-tuning's score to reach; 0.9 unless a threshold is given.
        chance_corrected: Whether it is a share of the gain over chance.
        dims: Smallest and largest d that could have been tried; those that were if not given.
        level: Probability that the interval is to hold.

    Returns:
        The estimate: `d`, `low`, `high`, `text`, `warnings` and more.

    Raises:
        ConfigError: Lengths differ, a value is outside its range, or chance is missing.

    Example:
        >>> import distsub
        >>> found = distsub.d90(
        ...     d=[10, 30, 100, 300, 1000, 3000],
        ...     score=[0.52, 0.55, 0.66, 0.79, 0.86, 0.88],
        ...     full=[0.89, 0.90, 0.88], chance=0.5, eval_examples=1000,
        ... )
        >>> found.low < 400 < found.high
        True
    """
    places = [_number("d", i, value, 1.0) for i, value in enumerate(d)]
    size = len(places)
    gone = [False] * size if failed is None else [bool(each) for each in _column("failed", failed, size)]
    scores = _column("score", score, size)
    etas = [1.0] * size if eta is None else _column("eta", eta, size)
    labels = range(size) if seed is None else _column("seed", seed, size)
    if metric not in RANGES:
        check_score(0.0, metric, "score")
    if chance is None and metric not in ("matthews", "pearson"):
        raise ConfigError("chance is missing: give the score of a model that learned nothing, as 0.5 for two classes")
    up = sign(metric)
    level_0 = 0.0 if chance is None else up * _score("chance", 0, chance, metric)
    rule = _rule(fraction, threshold, metric, full is not None)
    if eval_examples is not None and not eval_examples >= 1:
        raise ConfigError(f"eval_examples = {eval_examples!r}: give the number of examples evaluated, at least 1")
    examples = int(eval_examples or SETTINGS.unknown_examples)
    ends = dims or (math.floor(min(places, default=1.0)), math.ceil(max(places, default=1.0)))
    if not 1 <= ends[0] <= ends[1]:
        raise ConfigError(f"dims = {dims!r}: give the smallest and the largest d that could have been tried")
    rows = []
    for i, place in enumerate(places):
        found = None if gone[i] else up * _score("score", i, scores[i], metric)
        rows.append(Row(place, _number("eta", i, etas[i]), (labels[i],) * 3, found, examples))
    for rate, values in (full if isinstance(full, Mapping) else {} if full is None else {1.0: full}).items():
        if not hasattr(values, "__iter__"):
            raise ConfigError(f"full = {full!r}: give the scores of full fine-tuning as a list, one per seed")
        for i, value in enumerate(values):
            is_nan = isinstance(value, (int, float)) and math.isnan(value)
            found = None if is_nan else up * _score("full", i, value, metric)
            rows.append(Row(None, _number("learning rate of full", i, rate), (i,) * 3, found, examples))
    warnings = []
    if eval_examples is None:
        warnings.append(f"eval_examples is not given: {examples} are assumed")
    if seed is None:
        warnings.append("seeds are not given: every training is taken to have its own")
    prepared = prepare(rows, level_0, metric, rule).with_warnings(tuple(warnings))
    return fit_rows(prepared, ends).d_at(chance_corrected=chance_corrected, level=level)


def _rule(fraction: float | None, threshold: float | None, metric: str, has_full: bool) -> Rule:
    """Return what has to be reached: a share of full fine-tuning's score, or a score."""
    if threshold is None:
        if not has_full:
            raise ConfigError("full is missing: give the scores of full fine-tuning, or threshold, the score to reach")
        return Rule(0.9 if fraction is None else fraction)
    if fraction is not None:
        raise ConfigError(f"fraction = {fraction!r} beside threshold = {threshold!r}: give one of them")
    return Rule(None, _score("threshold", None, threshold, metric))


def _column(name: str, values: Sequence[Any], size: int) -> list[Any]:
    found = list(values)
    if len(found) != size:
        raise ConfigError(f"{name} has {len(found)} entries, d has {size}: give one per training")
    return found


def _float(value: object) -> float:
    """Return a number; nan for what is none."""
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return math.nan


def _number(name: str, i: int, value: object, least: float = 0.0) -> float:
    number = _float(value)
    if not (math.isfinite(number) and number >= least and number > 0):
        allowed = f"from {least:g} on" if least else "> 0"
        raise ConfigError(f"{name} = {value!r} at position {i}: give a number {allowed}")
    return number


def _score(name: str, i: int | None, value: object, metric: str) -> float:
    number, place = _float(value), "" if i is None else f" at position {i}"
    if not math.isfinite(number):
        hint = "; a training that failed has failed = True, a full fine-tuning that did has nan" if place else ""
        raise ConfigError(f"{name} = {value!r}{place}: give a number{hint}")
    check_score(number, metric, f"{name}{place}")
    return number
