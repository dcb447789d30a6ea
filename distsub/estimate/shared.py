"""What two trials share of their sampling errors: they are scored on the same examples."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from distsub.estimate.settings import SETTINGS

_KNOTS = np.linspace(0.0, 1.0, 7)


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
        near = np.exp(-0.5 * ((_KNOTS - min(max(gain, 0.0), 1.0)) / SETTINGS.near_gain) ** 2)
        inner, outer, cross = self.usual
        # The majority class at one end, the easy examples at the other.
        usual = ((1.0 - gain) + inner * gain, outer, cross * math.sqrt(max(gain, 0.0)))
        found = []
        subspace, baseline = np.append(near, 0.0), np.append(0.0 * near, 1.0)
        groups = ((subspace, subspace), (baseline, baseline), (subspace, baseline))
        for (left, right), prior in zip(groups, usual, strict=True):
            count = float(left @ self.pairs @ right)
            found.append(
                (float(left @ self.total @ right) + SETTINGS.prior_pairs * prior) / (count + SETTINGS.prior_pairs)
            )
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
    usable = [i for i, row in enumerate(answers) if row is not None and len(row) == length and row.std() > 0]
    if not usable:
        return Shared(np.zeros((size, size)), np.zeros((size, size)), np.asarray(variances), usual)
    matrix = np.stack([row / row.std() for i in usable if (row := answers[i]) is not None])
    base = np.asarray(is_baseline)[usable]
    load = np.column_stack([_hats(np.asarray(gains)[usable]) * ~base[:, None], base])
    sums, mass, alone = load.T @ matrix, load.sum(0), load.T @ load
    return Shared(sums @ sums.T / length - alone, np.outer(mass, mass) - alone, np.asarray(variances), usual)


def knot_scores(chance: float, full: float) -> list[float]:
    """Return the scores whose sampling variances `shared` asks for."""
    return [chance + gain * (full - chance) for gain in (*_KNOTS, 1.0)]


def _hats(gains: np.ndarray) -> np.ndarray:
    """Return how much each gain belongs to each knot; [gains, knots]."""
    return np.maximum(1.0 - np.abs(np.clip(gains, 0.0, 1.0)[:, None] - _KNOTS) / _KNOTS[1], 0.0)
