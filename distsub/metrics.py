"""Scores of a task, what guessing would give, and how far a score would move on another draw of examples.

The score of a trial is `evaluate(...)[task.metric]`; the other entries stand beside it in its row.
"""

import math
import warnings
from collections.abc import Sequence

import numpy as np

from distsub.errors import DataError
from distsub.records import Observation, Task


def evaluate(task: Task, predicted: Sequence[float], target: Sequence[float]) -> dict[str, float]:
    """Compute every metric of a task.

    Args:
        task: Says whether this is classification, regression or completion.
        predicted: Predicted class or value per example; of completions their negative log-likelihood in nats, or
            whether the answer is right (`Evaluation.predicted`).
        target: True class or value per example; of completions their number of tokens, or 1.

    Returns:
        nll, in nats per token of all completions (lower is better), or exact_match, the share of right answers; else
        accuracy, macro_f1 (the mean of the F1 of every class that is predicted or true) and matthews, and for two
        labels f1 of label 1; or pearson, spearman and mse, in the targets' own units, for regression. A constant
        prediction correlates with nothing and scores 0; one prediction that is not finite makes every score nan.

    Raises:
        DataError: No examples, or not as many predictions as targets.
    """
    guess, truth = np.asarray(predicted, dtype=np.float64), np.asarray(target, dtype=np.float64)
    if guess.shape != truth.shape or truth.ndim != 1 or not truth.size:
        raise DataError(f"cannot score {guess.size} predictions against {truth.size} targets")
    if task.is_completion:
        return {task.metric: float(guess.sum() / truth.sum()) if np.isfinite(guess).all() else float("nan")}
    if not np.isfinite(guess).all():
        names = ("pearson", "spearman", "mse") if task.num_labels == 1 else ("accuracy", "macro_f1", "matthews", "f1")
        return dict.fromkeys(names, float("nan"))
    if task.num_labels == 1:
        return _correlations(guess, truth) | {"mse": float(((guess - truth) ** 2).mean())}
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

    classes, true = guess.astype(np.int64), truth.astype(np.int64)
    constant = np.ptp(classes) == 0 or np.ptp(true) == 0
    scores = {
        "accuracy": float(accuracy_score(true, classes)),
        "macro_f1": float(f1_score(true, classes, average="macro", zero_division=0.0)),  # pyright: ignore[reportArgumentType]
        "matthews": 0.0 if constant else float(matthews_corrcoef(true, classes)),
    }
    if task.num_labels == 2:
        scores["f1"] = float(f1_score(true, classes, pos_label=1, zero_division=0.0))  # pyright: ignore[reportArgumentType]
    return scores


def chance(task: Task, target: Sequence[float]) -> float | None:
    """Compute what a prediction that ignores the text scores in the task's metric.

    Args:
        task: Gives the metric.
        target: True class or value per evaluated example.

    Returns:
        The share of the majority class for accuracy, the F1 of always answering 1, the mean F1 of the best constant
        answer, or 0 for correlations; None for completions, where only the untouched model tells.

    Raises:
        DataError: No examples.
    """
    truth = np.asarray(target, dtype=np.float64)
    if not truth.size:
        raise DataError("cannot compute the chance level of no targets")
    if task.is_completion:
        return None
    if task.metric in ("accuracy", "macro_f1"):
        counts = np.unique(truth, return_counts=True)[1]
        share = float(counts.max() / truth.size)
        # Precision of the majority class is its share and recall 1; the others' F1 is 0.
        return share if task.metric == "accuracy" else 2 * share / (1 + share) / counts.size
    if task.metric == "f1":
        return evaluate(task, np.ones_like(truth).tolist(), truth.tolist())["f1"]
    return 0.0


def _correlations(guess: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    from scipy.stats import pearsonr, spearmanr

    if truth.size < 2 or np.ptp(guess) == 0 or np.ptp(truth) == 0:
        return {"pearson": 0.0, "spearman": 0.0}
    with warnings.catch_warnings():
        # Early in training predictions may differ in the last bits only; the value is noise but still a value.
        warnings.simplefilter("ignore")
        pearson, spearman = pearsonr(guess, truth), spearmanr(guess, truth)
    return {"pearson": _finite(pearson[0]), "spearman": _finite(spearman[0])}  # pyright: ignore[reportArgumentType]


def _finite(value: float) -> float:
    return float(value) if np.isfinite(value) else 0.0


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
    if metric == "nll":  # a ratio of sums
        return (guess - guess.sum() / truth.sum() * truth) / truth.mean()
    if metric in ("accuracy", "exact_match"):
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

    0 for nll, whose value alone tells nothing of its error: only the predictions do (`influences`). Exact for accuracy
    and exact_match, the usual approximation for a correlation; one success and one failure are added so that a score of
    1 is not without error.
    """
    if metric == "nll":
        return 0.0
    if metric in ("pearson", "matthews"):
        spread = (1.0 - min(abs(observation_score), 1.0) ** 2) ** (2 if metric == "pearson" else 1)
        return max(spread, 1.0 / num_examples) / num_examples
    share = (min(max(observation_score, 0.0), 1.0) * num_examples + 1.0) / (num_examples + 2.0)
    return share * (1.0 - share) / num_examples
