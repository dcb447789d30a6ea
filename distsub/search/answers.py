"""How far a score would move on another draw of evaluation examples, and how much of that two trials share."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from distsub.records import Observation


def influences(observation: Observation) -> np.ndarray | None:
    """Return what each evaluated example adds to the score, to first order, with mean zero.

    The variance over examples, divided by their number, is the squared standard error that a paired bootstrap of
    the examples tends to; the covariance of two trials' influences is that of their scores.

    Returns:
        None without stored answers, or where they are all the same example to the metric (a constant prediction of a
        correlation).
    """
    if not observation.predicted or len(observation.predicted) != len(observation.target):
        return None
    guess, truth = np.asarray(observation.predicted, dtype=float), np.asarray(observation.target, dtype=float)
    metric = observation.trial.task.metric
    if metric == "accuracy":
        right = (guess == truth).astype(float)
        return right - right.mean()
    if metric == "pearson":
        if guess.std() == 0 or truth.std() == 0:
            return None
        a, b = (guess - guess.mean()) / guess.std(), (truth - truth.mean()) / truth.std()
        correlation = (a * b).mean()
        return a * b - correlation / 2 * (a**2 + b**2)
    return _of_table(guess, truth, metric)


def _of_table(guess: np.ndarray, truth: np.ndarray, metric: str) -> np.ndarray | None:
    """Return the influences for a metric of the confusion table, by its derivative in each cell."""
    labels, codes = np.unique(np.concatenate([truth, guess]), return_inverse=True)
    k = len(labels)
    cell = codes[: len(truth)] * k + codes[len(truth) :]
    table = np.bincount(cell, minlength=k * k) / len(truth)

    def value(cells: np.ndarray) -> float:
        square = cells.reshape(k, k)
        rows, columns, hits = square.sum(1), square.sum(0), float(np.trace(square))
        if metric == "f1":
            positive = list(labels).index(1.0) if 1.0 in labels else -1
            total = rows[positive] + columns[positive]
            return float(2 * square[positive, positive] / total) if total > 0 else math.nan
        if metric == "macro_f1":
            seen = rows + columns > 0
            return float((2 * np.diag(square)[seen] / (rows + columns)[seen]).mean())
        bottom = math.sqrt(max((1 - (rows**2).sum()) * (1 - (columns**2).sum()), 0.0))
        return float((hits - rows @ columns) / bottom) if bottom > 0 else math.nan

    step = 1e-5
    base = value(table)
    slopes = np.array([value((table + step * unit) / (1 + step)) - base for unit in np.eye(k * k)]) / step
    found = slopes[cell]
    return found - found.mean() if np.isfinite(found).all() else None


def variance(observation_score: float, metric: str, num_examples: int) -> float:
    """Return the sampling variance of a score of which only the value is known.

    Exact for accuracy, the usual approximation for a correlation; one success and one failure are added so that a
    score of 1 is not without error.
    """
    if metric in ("pearson", "matthews"):
        spread = (1.0 - min(abs(observation_score), 1.0) ** 2) ** (2 if metric == "pearson" else 1)
        return max(spread, 1.0 / num_examples) / num_examples
    share = (min(max(observation_score, 0.0), 1.0) * num_examples + 1.0) / (num_examples + 2.0)
    return share * (1.0 - share) / num_examples


_KNOTS = np.linspace(0.0, 1.0, 7)
_WIDTH = 0.12  # of the neighbourhood, in gain, whose rows tell what is shared there
_TRUST = 4.0  # pairs of trainings that the usual correlations are worth


@dataclass(frozen=True)
class Shared:
    """What another evaluation set would do to all trials alike, on the way from chance to full fine-tuning.

    Trials at about the same score err on the same examples, distant ones on others; so this is known by gain.

    Attributes:
        total: Sum of the correlations of answers over pairs of rows, by knot; the last is the baseline.
        pairs: Number of those pairs.
        variances: Sampling variance at every knot and of the baseline, in units of gain.
        usual: Correlation of two good subspace trainings, two baselines, one of each, where rows are few or mute.
    """

    total: np.ndarray
    pairs: np.ndarray
    variances: np.ndarray
    usual: tuple[float, float, float]

    def own(self, gain: float | None, total: float) -> float:
        """Return the part of a sampling variance that is a subspace trial's own; a baseline's for gain None."""
        share = self._correlations(1.0 if gain is None else gain)[1 if gain is None else 0]
        return max(1.0 - share, 0.02) * total

    def error(self, gain: float, of_full: float, of_chance: float) -> float:
        """Return the standard error of (score at a gain) - of_full * (full) - of_chance * (chance).

        Only what is shared counts; the rows' own errors are in the fit.
        """
        gain = min(max(gain, 0.0), 1.0)
        inner, outer, cross = self._correlations(gain)
        here, there = math.sqrt(np.interp(gain, _KNOTS, self.variances[:-1])), math.sqrt(self.variances[-1])
        square = inner * here**2 + outer * (of_full * there) ** 2 - 2 * of_full * cross * here * there
        # Chance is the majority's share among the examples: full fine-tuning has little to do with who that is.
        chance = math.sqrt(self.variances[0])
        square += (of_chance * chance) ** 2 - 2 * of_chance * chance * here * math.sqrt(1.0 - gain) * math.sqrt(inner)
        return math.sqrt(max(square, 0.0))

    def _correlations(self, gain: float) -> tuple[float, float, float]:
        """Return the shared part of two subspace trials' errors at a gain, of two baselines', and of one of each."""
        near = np.exp(-0.5 * ((_KNOTS - min(max(gain, 0.0), 1.0)) / _WIDTH) ** 2)
        inner, outer, cross = self.usual
        # The majority class at one end, the easy examples at the other.
        usual = ((1.0 - gain) + inner * gain, outer, cross * math.sqrt(max(gain, 0.0)))
        found = []
        subspace, baseline = np.append(near, 0.0), np.append(0.0 * near, 1.0)
        groups = ((subspace, subspace), (baseline, baseline), (subspace, baseline))
        for (left, right), prior in zip(groups, usual, strict=True):
            count = float(left @ self.pairs @ right)
            found.append((float(left @ self.total @ right) + _TRUST * prior) / (count + _TRUST))
        inner, outer = (min(max(each, 0.0), 1.0) for each in found[:2])
        limit = math.sqrt(inner * outer)
        return inner, outer, min(max(found[2], -limit), limit)


def shared(
    gains: Sequence[float],
    answers: Sequence[np.ndarray | None],
    is_baseline: Sequence[bool],
    variances: Sequence[float],
    usual: tuple[float, float, float],
) -> Shared:
    """Measure what trials share in their sampling errors by the correlation of their answers.

    Args:
        gains: Where each row is between chance (0) and full (1).
        answers: Influences of each row, or None.
        is_baseline: Whether a row is a baseline.
        variances: Sampling variance at `knot_scores`, in units of gain.
        usual: Correlation of two good subspace trainings, two baselines, one of each. Counts as much as a few
            pairs of rows do, and alone where there are no answers.
    """
    size = len(_KNOTS) + 1
    length = max((len(row) for row in answers if row is not None), default=0)
    told = [i for i, row in enumerate(answers) if row is not None and len(row) == length and row.std() > 0]
    if not told:
        return Shared(np.zeros((size, size)), np.zeros((size, size)), np.asarray(variances), usual)
    matrix = np.stack([row / row.std() for i in told if (row := answers[i]) is not None])
    base = np.asarray(is_baseline)[told]
    load = np.column_stack([_hats(np.asarray(gains)[told]) * ~base[:, None], base])
    sums, mass, alone = load.T @ matrix, load.sum(0), load.T @ load
    return Shared(sums @ sums.T / length - alone, np.outer(mass, mass) - alone, np.asarray(variances), usual)


def knot_scores(chance: float, full: float) -> list[float]:
    """Return the scores whose sampling variances `shared` asks for."""
    return [chance + gain * (full - chance) for gain in (*_KNOTS, 1.0)]


def _hats(gains: np.ndarray) -> np.ndarray:
    """Return how much each gain belongs to each knot; [gains, knots]."""
    return np.maximum(1.0 - np.abs(np.clip(gains, 0.0, 1.0)[:, None] - _KNOTS) / _KNOTS[1], 0.0)
