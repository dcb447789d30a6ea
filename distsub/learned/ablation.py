"""Disable outliers and fine-tune: what the outliers cost against controls of the same size, paired by seed and example.

Three edits. "zero": theta_0 is set to zero at the mask's positions and the model is then fine-tuned in full, every
parameter free to move, those too (Zhang et al. 2023, Table 3). "hold": the same, but they stay zero. "reset": of a
model that was fine-tuned in full, the mask's positions are put back to theta_0, and it is evaluated without further
training, so that only the update is lost.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from distsub.learned.schema import ABLATIONS
from distsub.records import Full, Observation

NONE, OUTLIERS = "none", "outliers"

_ARM = ("method", "d", "scope", "k")
"""Whose outliers: what masks share that are compared over seeds."""

RESAMPLES = 999


class Difference(NamedTuple):
    """What one arm scores above another, and how sure that is.

    Attributes:
        difference: Mean over seeds of the paired differences.
        difference_low: Lower end of the 95% t interval over seeds; None with one seed.
        difference_high: Upper end.
        t_p: p-value of the paired t test; None with one seed, or when all differences are equal.
        examples_low: Lower end of the 95% percentile bootstrap over examples, drawn together for all seeds and both
            arms; None where the arms were not evaluated on the same examples.
        examples_high: Upper end.
        mcnemar_p: The exact McNemar test of each seed; None for regression.
    """

    difference: float
    difference_low: float | None
    difference_high: float | None
    t_p: float | None
    examples_low: float | None
    examples_high: float | None
    mcnemar_p: list[float] | None


def score(metric: str, predicted: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Compute a metric of many samples at once, [..., examples] to [...]: as `metrics.evaluate`, where that gives one.

    Matthews of more than two labels has the form of Gorodkin (2004).
    """
    if metric == "accuracy":
        return (predicted == target).mean(axis=-1)
    if metric == "nll":
        return predicted.sum(axis=-1) / target.sum(axis=-1)
    if metric == "f1":
        both, either = ((predicted == 1) & (target == 1)).sum(-1), (predicted == 1).sum(-1) + (target == 1).sum(-1)
        return np.divide(2.0 * both, either, out=np.zeros(both.shape), where=either > 0)
    if metric == "macro_f1":
        each = []
        for label in np.union1d(predicted, target):
            either = (predicted == label).sum(-1) + (target == label).sum(-1)
            both = ((predicted == label) & (target == label)).sum(-1)
            each.append(np.divide(2.0 * both, either, out=np.full(both.shape, np.nan), where=either > 0))
        return np.nanmean(each, axis=0)
    if metric == "pearson":
        x, y = predicted[..., None, :].astype(float), target[..., None, :].astype(float)
    else:  # one indicator per class: their summed covariance, which for two classes is the correlation
        classes = np.union1d(predicted, target)[:, None]
        x, y = (predicted[..., None, :] == classes).astype(float), (target[..., None, :] == classes).astype(float)
    x, y = x - x.mean(-1, keepdims=True), y - y.mean(-1, keepdims=True)
    norms = np.sqrt((x**2).sum((-1, -2)) * (y**2).sum((-1, -2)))
    return np.divide((x * y).sum((-1, -2)), norms, out=np.zeros(norms.shape), where=norms > 1e-12)


def compare(arm: Sequence[Observation], control: Sequence[Observation], resamples: int = RESAMPLES) -> Difference:
    """Compare two arms of trials of one task with a score or chance, the i-th of both under the same seeds."""
    differences = np.array([known_score(a) - known_score(b) for a, b in zip(arm, control, strict=True)])
    low, high, p = t_interval(differences)
    examples: tuple[float | None, float | None] = (None, None)
    tests: list[float] | None = None
    target, task = np.array(arm[0].target), arm[0].trial.task
    if target.size and all(row.target == arm[0].target and row.predicted for row in (*arm, *control)):
        ours, theirs = (np.array([row.predicted for row in side]) for side in (arm, control))
        examples = _bootstrap(task.metric, ours, theirs, target, resamples)
        if task.num_labels != 1 and task.metric != "nll":
            tests = [mcnemar(a == target, b == target) for a, b in zip(ours, theirs, strict=True)]
    return Difference(float(differences.mean()), low, high, p, *examples, tests)


def t_interval(values: np.ndarray) -> tuple[float | None, float | None, float | None]:
    """Give the 95% t interval of a mean, and the p-value of its being 0.

    Returns:
        All None for one value; no p-value where all are equal, whose interval is a point.
    """
    from scipy.stats import ttest_1samp

    if len(values) < 2:
        return None, None, None
    if np.ptp(values) <= 1e-12:
        return float(values[0]), float(values[0]), None
    found: Any = ttest_1samp(values, 0.0)
    interval = found.confidence_interval(0.95)
    return float(interval.low), float(interval.high), float(found.pvalue)


def mcnemar(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Give the exact McNemar test's p-value for two arms' correctness on the same examples.

    The examples on which the two differ are a fair coin's tosses if the arms are equally good; 1 if there are none.
    """
    from scipy.stats import binomtest

    better, worse = int((ours & ~theirs).sum()), int((~ours & theirs).sum())
    return float(binomtest(better, better + worse).pvalue) if better + worse else 1.0


def _bootstrap(
    metric: str, ours: np.ndarray, theirs: np.ndarray, target: np.ndarray, resamples: int
) -> tuple[float, float]:
    """Resample the examples, the same ones for every seed and both arms."""
    from scipy.stats import bootstrap

    def difference(rows: np.ndarray, axis: int = -1) -> np.ndarray:
        rows = np.moveaxis(rows, axis, -1).astype(int)
        truth = target[rows]
        pairs = zip(ours, theirs, strict=True)  # seed by seed: many samples at once are large
        return np.mean([score(metric, a[rows], truth) - score(metric, b[rows], truth) for a, b in pairs], axis=0)

    found = bootstrap(
        (np.arange(target.size),),
        difference,
        vectorized=True,
        n_resamples=resamples,
        batch=100,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def ablations_table(observations: Sequence[Observation], masks: pa.Table) -> pa.Table:
    """Compare every ablated fine-tuning with the whole one, and every control with the outliers.

    Args:
        observations: Rows of trials; those with an ablation, and full fine-tunings without.
        masks: Rows of MASKS, which say what kind a mask is.

    Returns:
        Rows of ABLATIONS. A training that diverged counts as chance, since weights whose loss ruins the training would
        else be missed just there; one that ended in an error is left out.
    """
    kinds: dict[str | None, dict[str, Any]] = {row["mask"]: row for row in masks.to_pylist()}
    whole: dict[Any, dict[Any, Observation]] = {}
    arms: dict[Any, dict[str, dict[Any, Observation]]] = {}
    sizes: dict[Any, dict[Any, int]] = {}
    for observation in observations:
        trial = observation.trial
        if not isinstance(trial.method, Full) or score_of(observation) is None:
            continue
        seeds, place = (trial.seeds.head, trial.seeds.data), _place(observation)
        if trial.is_baseline:
            whole.setdefault(place, {})[seeds] = observation
        elif trial.ablation and (mask := kinds.get(trial.ablation.mask)) is not None:
            arm = (*place, *(mask[name] for name in _ARM), trial.ablation.edit)
            arms.setdefault(arm, {}).setdefault(mask["kind"], {})[seeds] = observation
            sizes.setdefault((*arm, mask["kind"]), {})[seeds] = mask["positions"]
    rows = []
    for arm, by_kind in sorted(arms.items(), key=lambda item: _sortable(item[0])):
        against = {NONE: whole.get(arm[: -len(_ARM) - 1], {}), OUTLIERS: by_kind.get(OUTLIERS, {})}
        for kind, trials in sorted(by_kind.items()):
            for versus, others in against.items():
                shared = sorted(trials.keys() & others.keys())
                if kind == versus or not shared:
                    continue
                about = dict(zip((*_ARM, "edit"), arm[-len(_ARM) - 1 :], strict=True))
                about |= {"mask": kind, "versus": versus}
                about["positions"] = [sizes[(*arm, kind)][seeds] for seeds in shared]
                rows.append(about | _compared([trials[s] for s in shared], [others[s] for s in shared]))
    return pa.Table.from_pylist(rows, schema=ABLATIONS)


def _compared(arm: Sequence[Observation], control: Sequence[Observation]) -> dict[str, Any]:
    trial = arm[0].trial
    scores = np.array([known_score(observation) for observation in arm])
    low, high, _ = t_interval(scores)
    return {
        "task": trial.task.name,
        "model": trial.model.name,
        "seeds": len(arm),
        "metric": trial.task.metric,
        "chance": arm[0].chance,
        "score": float(scores.mean()),
        "score_low": low,
        "score_high": high,
        "scores": scores.tolist(),
        **compare(arm, control)._asdict(),
    }


def _place(observation: Observation) -> tuple[Any, ...]:
    """Give what a full fine-tuning and its ablated twin share besides the seeds."""
    trial = observation.trial
    return (trial.task, trial.model, trial.learning_rate, trial.budget)


def _sortable(arm: tuple[Any, ...]) -> tuple[str, ...]:
    return (arm[0].name, *(str(part) for part in arm[1:]))


def score_of(observation: Observation) -> float | None:
    """Return the score, chance for a training that diverged; None where neither is known."""
    return observation.chance if observation.status == "diverged" else observation.score


def known_score(observation: Observation) -> float:
    """Return `score_of` a row that has one."""
    score = score_of(observation)
    assert score is not None, "only trials with a score are compared"
    return score
