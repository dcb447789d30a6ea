"""Where a search's crossing lies, as probabilities: what was observed at some d speaks about all the others.

The crossing c is the position of the smallest d that passes, 0..n for n dims (n: none passes). Three things inform
it: verdicts, which are hard; how far a score lies from the threshold, through a logistic rise in log d of unknown
steepness; and where the crossing lay under the seeds that were done before. Scores only ever weigh, so a wrong model
costs trials and never a wrong answer.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from distsub.search.evidence import Evidence, Result
from distsub.search.outcome import Thresholds

SLOPES = np.array([0.5, 1.0, 2.0, 4.0])
"""Candidates for the rise of logit(gain) per unit of log d: chance to full within 9, 4, 2 or 1 factors of e."""
SEED_SD = 0.35
"""Spread of the crossing between seeds in log d as assumed before two are known; measured spreads are 0.2 to 0.5."""
SEED_WEIGHT = 3.0
"""How many seeds that assumption is worth."""
MIXED_IN = 0.05
"""Share of the belief that stays spread over all positions, whatever other seeds say."""
SCORE_SD = 0.02
"""Noise of one score: 400 evaluated examples; a larger set only makes the belief too modest."""
GAIN_SD = 0.10
"""Misfit of the rise, as a share of the way from chance to full."""
RANKING_SD = 0.15
"""By how much of that way an eta must fall behind at one d to lose a factor e of being the best."""
BETTER = 0.2
"""By how much, on that scale, the best eta may be expected to beat those that were tried."""
FLAT = 0.05
"""Likelihood of any score under "something else is going on"."""


@dataclass(frozen=True)
class Axis:
    """The grid in log d: `at[x]` of position x and `crossing[c]`, half a step below position c."""

    at: np.ndarray
    crossing: np.ndarray
    width: np.ndarray

    @classmethod
    @lru_cache(maxsize=256)
    def of(cls, dims: tuple[int, ...]) -> "Axis":
        """Lay out a grid."""
        at = np.log(np.asarray(dims, dtype=float))
        step = float(np.diff(at).mean()) if len(at) > 1 else 0.15
        padded = np.concatenate([[at[0] - step], at, [at[-1] + step]])
        return cls(at, (padded[:-1] + padded[1:]) / 2, np.diff(padded))


def best_etas(state: Evidence) -> np.ndarray:
    """Return for each eta the probability that it is the best one, from this search and its elders.

    Etas are compared at the same d only, so that what is learned at one d serves the others. A d where one eta
    passed and the rest were spared counts a little for that eta.
    """
    etas = state.search.etas
    centred = np.abs(np.arange(len(etas)) - (len(etas) - 1) / 2)
    weight = -0.25 * centred  # a grid of etas is meant to contain the best one, so the middle comes first
    for evidence in (state, *state.elders):
        if evidence.thresholds is not None:
            weight = weight + _ranking(evidence)
    weight = np.exp(weight - weight.max())
    return weight / weight.sum()


def crossing(state: Evidence, best: np.ndarray) -> np.ndarray:
    """Return the probability of each crossing 0..n, from verdicts, scores and elders.

    Args:
        state: What is known; without thresholds the scores say nothing and only the elders count.
        best: Probability of each eta to be the best, from `best_etas`.
    """
    axis = Axis.of(state.search.dims)
    belief = _from_elders(state, axis)
    marks = state.thresholds
    if marks is not None:
        slopes = np.zeros(len(SLOPES))
        for elder in state.elders:
            where = located(elder, axis)
            if where is not None and elder.thresholds is not None:
                rise = _likelihoods(elder, elder.thresholds, best, axis, np.array([where]))
                slopes = slopes + sum((np.log(each[:, 0]) for each in rise), np.zeros(len(SLOPES)))
        joint = np.exp(slopes - slopes.max())[:, None] * belief[None, :]
        for likelihood in _likelihoods(state, marks, best, axis, axis.crossing):
            joint = joint * likelihood
        low, high = state.span(marks.relative)
        belief = joint.sum(axis=0)
        belief[: low + 1] = 0.0
        belief[high + 1 :] = 0.0
        if not belief.sum() > 0.0:
            belief[low + 1 : high + 1] = 1.0
    return belief / belief.sum()


def located(state: Evidence, axis: Axis) -> float | None:
    """Return the log d at which a search's crossing lies, as the middle of its bracket; None when it has none."""
    if state.thresholds is None:
        return None
    low, high = sorted(state.span(state.thresholds.relative))
    if high - low > 1 and low == -1 and high == len(axis.at):
        return None
    return float((axis.crossing[low + 1] + axis.crossing[high]) / 2)


def _from_elders(state: Evidence, axis: Axis) -> np.ndarray:
    """Predict the crossing from those of other seeds: Student's t, its spread learned with their number."""
    flat = np.ones(len(axis.crossing)) / len(axis.crossing)
    known = [where for elder in state.elders if (where := located(elder, axis)) is not None]
    if not known:
        return flat
    centre, count = float(np.mean(known)), len(known)
    spread = (SEED_WEIGHT * SEED_SD**2 + float(np.var(known)) * count) / (SEED_WEIGHT + count)
    spread = spread * (1 + 1 / count) + float(axis.width.mean()) ** 2 / 12
    freedom = SEED_WEIGHT + count - 1
    density = (1 + (axis.crossing - centre) ** 2 / spread / freedom) ** (-(freedom + 1) / 2) * axis.width
    return (1 - MIXED_IN) * density / density.sum() + MIXED_IN * flat


def _likelihoods(
    state: Evidence, marks: Thresholds, best: np.ndarray, axis: Axis, crossings: np.ndarray
) -> Iterator[np.ndarray]:
    """Yield, per d with a score, how well each (slope, crossing) explains it."""
    reach = marks.full - (marks.chance or 0.0)
    if reach <= 0:
        return
    bar = min(max((marks.relative - (marks.chance or 0.0)) / reach, 0.02), 0.98)
    tilt = np.log(bar / (1 - bar))
    sd = float(np.hypot(GAIN_SD, SCORE_SD / reach))
    index = {eta: j for j, eta in enumerate(state.search.etas)}
    for d, at_d in state.results.items():
        scored = {index[eta]: result for eta, result in at_d.items() if result.score is not None}
        if not scored:
            continue
        passed = state.passed(d, marks.relative)
        top = max(scored.values(), key=_score)
        gain = (_score(top) - (marks.chance or 0.0)) / reach
        at = axis.at[state.search.positions[d]]
        rise = 1 / (1 + np.exp(-(SLOPES[:, None] * (at - crossings)[None, :] + tilt)))
        missed = rise - gain
        fits = (1 + (missed / sd) ** 2 / 3) ** -2
        above = np.where(missed > 0, np.exp(-missed / BETTER), fits)
        if passed:
            # One that was stopped for passing was still on its way up.
            yield (above if top.status == "stopped" else fits) + FLAT
        else:
            # The best eta may be among those not tried, and would have scored somewhat more.
            covered = min(float(best[list(scored)].sum()), 0.97)
            beyond = np.where(crossings > at, 1.0, 0.05)[None, :]
            yield covered * fits * beyond + (1 - covered) * above + FLAT


def _ranking(state: Evidence) -> np.ndarray:
    """Return each eta's log-weight from how the etas of a search compare at equal d."""
    marks = state.thresholds
    etas = state.search.etas
    total = np.zeros(len(etas))
    if marks is None or len(etas) == 1:
        return total
    reach = max(marks.full - (marks.chance or 0.0), 0.05)
    sd = float(np.hypot(RANKING_SD, 1.4 * SCORE_SD / reach))
    index = {eta: j for j, eta in enumerate(etas)}
    for d, at_d in state.results.items():
        scores = {index[eta]: _score(result) for eta, result in at_d.items() if result.status != "error"}
        if not scores:
            continue
        top = max(scores.values())
        passed = state.passed(d, marks.relative)
        if len(scores) == 1 and not passed:
            if top == -np.inf:
                total[next(iter(scores))] -= 2.0
            continue
        row = np.full(len(etas), -0.5 if passed else -0.1)
        for j, score in scores.items():
            row[j] = max((score - top) / reach / sd, -3.0) if top > -np.inf else 0.0
        total = total + row
    return total


def _score(result: Result) -> float:
    return -np.inf if result.score is None else result.score


def tried(state: Evidence) -> Mapping[int, frozenset[int]]:
    """Return, by position, the indices of the etas that have any result, errors included."""
    index = {eta: j for j, eta in enumerate(state.search.etas)}
    return {
        state.search.positions[d]: frozenset(index[eta] for eta in at_d) for d, at_d in state.results.items() if at_d
    }
