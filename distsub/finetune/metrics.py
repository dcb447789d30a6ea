"""Scores of a task and what guessing would give, computed by scikit-learn and scipy.

The score of a trial is `evaluate(...)[task.metric]`; the other entries stand beside it in its row.
"""

import warnings
from collections.abc import Sequence

import numpy as np

from distsub.errors import DataError
from distsub.records import Task


def evaluate(task: Task, predicted: Sequence[float], target: Sequence[float]) -> dict[str, float]:
    """Compute every metric of a task.

    Args:
        task: Says whether this is classification or regression.
        predicted: Predicted class or value per example.
        target: True class or value per example.

    Returns:
        accuracy, macro_f1 (the mean of the F1 of every class that is predicted or true) and matthews, and for two
        labels f1 of label 1; or pearson and spearman for regression. A constant prediction correlates with nothing
        and scores 0; one prediction that is not finite makes every score nan.

    Raises:
        DataError: No examples, or not as many predictions as targets.
    """
    guess, truth = np.asarray(predicted, dtype=np.float64), np.asarray(target, dtype=np.float64)
    if guess.shape != truth.shape or truth.ndim != 1 or not truth.size:
        raise DataError(f"cannot score {guess.size} predictions against {truth.size} targets")
    if not np.isfinite(guess).all():
        names = ("pearson", "spearman") if task.num_labels == 1 else ("accuracy", "macro_f1", "matthews", "f1")
        return dict.fromkeys(names, float("nan"))
    if task.num_labels == 1:
        return _correlations(guess, truth)
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


def chance(task: Task, target: Sequence[float]) -> float:
    """Compute what a prediction that ignores the text scores in the task's metric.

    Args:
        task: Gives the metric.
        target: True class or value per evaluated example.

    Returns:
        The share of the majority class for accuracy, the F1 of always answering 1, the mean F1 of the best constant
        answer, or 0 for correlations.

    Raises:
        DataError: No examples.
    """
    truth = np.asarray(target, dtype=np.float64)
    if not truth.size:
        raise DataError("cannot compute the chance level of no targets")
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
