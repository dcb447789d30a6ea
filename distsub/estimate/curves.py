"""Curves of score against log d, in units of gain: 0 is chance, 1 about the score of full fine-tuning.

    score of a subspace trial   floor + (top - floor) * rise(slope * (log d - handicap(eta, d) - place(seeds)))
    handicap                    penalty * u^2 + (tilt + drift * (log d - middle of the rows)) * u
    u                           log(eta / reference)
    score of a baseline         full - shortfall(learning rate)

rise is Richards' curve (a logistic with a free asymmetry), so scores never fall with d but for noise. The handicap is
quadratic in log eta; the eta where it is smallest, the best one, moves linearly with log d.
"""

import math
from dataclasses import dataclass

import numpy as np

from distsub.estimate.settings import SETTINGS


@dataclass(frozen=True)
class Noise:
    """What is believed about a curve and its noise before any row: (mean, standard deviation) each.

    In units of gain and of log d, scales as logarithms. The values are measured on real rows by
    `benchmarks/noise.py`; the last digit means nothing.

    Attributes:
        slope: log of four times the steepness half way up, per unit of log d.
        asymmetry: log of Richards' exponent.
        floor: Score towards d = 0.
        top: log of (top - floor) / (full - floor), the score towards d = infinity.
        full: Expected score of full fine-tuning at the learning rate with the most rows.
        residual: log of the standard deviation of one training given its seeds.
        shift: log of the standard deviation over seeds of the place in log d.
        baseline: log of the standard deviation over seeds of the baseline's score.
        penalty: log of the loss in log d of an eta a factor e from the best one.
        tilt: Slope of the handicap at the reference eta, the one that was best most often: 0 if it is the best of all.
        drift: Change of that slope per unit of log d; the best eta moves by -drift / (2 penalty).
        shortfall: Scale of the difference in gain of neighbouring learning rates a factor e apart (Student t, 2
            degrees of freedom, so that there may be a cliff); it grows with the square root of their distance.
        shares: Of the projection, head and data seed in the variance of the shift.
        failure: Share of subspace trainings that fail to train and end near the floor.
        bend: Error of the curve's shape, as a share of the distance in gain from the threshold.
        misfit: Error of the curve of an inferior eta, as a share of its distance from the best one's.
        paired: Correlation of the sampling errors of two good subspace trials, two baselines, one of each; as good
            as a few pairs of rows that carry their answers.
    """

    slope: tuple[float, float] = (math.log(1.2), 0.8)
    asymmetry: tuple[float, float] = (0.0, 0.7)
    floor: tuple[float, float] = (0.0, 0.08)
    top: tuple[float, float] = (-0.05, 0.2)
    full: tuple[float, float] = (1.0, 0.5)
    residual: tuple[float, float] = (math.log(0.03), 0.6)
    shift: tuple[float, float] = (math.log(0.35), 0.5)
    baseline: tuple[float, float] = (math.log(0.03), 0.7)
    penalty: tuple[float, float] = (math.log(0.3), 0.8)
    tilt: tuple[float, float] = (0.0, 1.0)
    drift: tuple[float, float] = (0.0, 0.1)
    shortfall: float = 0.06
    shares: tuple[float, float, float] = (0.4, 0.3, 0.3)
    failure: float = 0.03
    bend: float = 0.15
    misfit: float = 0.3
    paired: tuple[float, float, float] = (0.5, 0.5, 0.4)


@dataclass(frozen=True)
class Scores:
    """The rows of one curve as arrays: subspace trials first, then baselines.

    Attributes:
        x: log d of the subspace trials.
        y: Gain of all rows.
        own: Variance of the sampling error that is the trial's own.
        below: Which subspace trials are known to be below their y only.
        eta: Index of the eta of the subspace trials; -1 is whichever is best.
        etas: log of the etas, increasing, relative to the one that was best most often.
        place: Index of the place of each subspace trial; -1 where its seeds have too few rows for one.
        relation: Correlation of the places; [places, places].
        rate: Index of the baselines' learning rates.
        rates: log of the learning rates; the others are compared with the first.
        group: Index of the baselines' seeds.
        bar: The gain that the question is about.
        range: log of the smallest and the largest d that could be tried.
    """

    x: np.ndarray
    y: np.ndarray
    own: np.ndarray
    below: np.ndarray
    eta: np.ndarray
    etas: np.ndarray
    place: np.ndarray
    relation: np.ndarray
    rate: np.ndarray
    rates: np.ndarray
    group: np.ndarray
    bar: float
    range: tuple[float, float]


PARAMETERS = (
    *("slope", "asymmetry", "floor", "top", "full", "residual", "shift", "baseline"),
    *("middle", "penalty", "tilt", "drift"),
)
"""What all trials share; `middle` is where an average seed's curve is half way up at the reference eta."""

SLOPE, ASYMMETRY, FLOOR, TOP, FULL, RESIDUAL, SHIFT, BASELINE, MIDDLE, PENALTY, TILT, DRIFT = range(12)

_STEP = math.sqrt(3.0)  # Gauss-Hermite with three nodes: the mean over a normal shift


@dataclass(frozen=True)
class Handicaps:
    """What an eta costs at a d, as a loss in log d.

    Attributes:
        etas: log of the etas, relative to the reference.
        center: log d at which `tilt` holds.
        range: Beyond it the best eta stays.
    """

    etas: np.ndarray
    center: float
    range: tuple[float, float]

    def all(self, theta: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Return the handicap of every eta, less than 0 where it is better than the reference.

        Args:
            theta: Shared parameters; [draws, 12].
            x: log d; [draws or 1, points].

        Returns:
            Losses in log d; [etas, draws, points].
        """
        if len(self.etas) == 1:
            return np.zeros((1, len(theta), x.shape[1]))
        offset = np.clip(x, *self.range) - self.center
        tilt = theta[:, [TILT]] + theta[:, [DRIFT]] * offset
        far = self.etas[:, None, None]
        return (np.exp(theta[:, [PENALTY]]) * far + tilt) * far


@dataclass(frozen=True)
class Draws:
    """Weighted draws of curves.

    Attributes:
        theta: The shared parameters; [draws, 12].
        shortfall: Of every learning rate; [draws, rates].
        weight: Sums to one.
        handicaps: What etas cost.
        failed: Probability of every subspace trial to be one that failed to train.
        effective: Number of independent draws that the weighted ones are worth.
    """

    theta: np.ndarray
    shortfall: np.ndarray
    weight: np.ndarray
    handicaps: Handicaps
    failed: np.ndarray
    effective: float

    @property
    def rate(self) -> int:
        """Index of the learning rate with the best expected score."""
        return int(np.argmin(self.weight @ self.shortfall))

    def eta(self, x: float) -> int:
        """Return the index of the eta with the best expected score at log d = x."""
        return int(np.argmin(self.handicaps.all(self.theta, np.array([[x]]))[:, :, 0] @ self.weight))

    def full(self) -> np.ndarray:
        """Return the expected gain of full fine-tuning at its best learning rate, per draw."""
        return self.theta[:, FULL] - self.shortfall[:, self.rate]

    def level(self, x: np.ndarray) -> np.ndarray:
        """Return the expected gain over seeds at the best eta, at log d = x: [draws or 1, points]."""
        parts = tuple(part[:, None] for part in shape(self.theta))
        at = x - self.handicaps.all(self.theta, x).min(0) - self.theta[:, [MIDDLE]]
        step = _STEP * np.exp(self.theta[:, [SHIFT]])
        return (4 * rise(parts, at) + rise(parts, at - step) + rise(parts, at + step)) / 6

    def crossing(self, bars: np.ndarray) -> np.ndarray:
        """Return log d where each draw's expected gain reaches its bars; -inf and inf where that is outside the range.

        Args:
            bars: Gains to reach; [draws, any number].
        """
        x = np.linspace(*self.handicaps.range, SETTINGS.curve_points)
        levels = np.maximum.accumulate(self.level(x[None]), axis=1)
        found, draw = np.empty(bars.shape), np.arange(len(bars))
        for column, bar in zip(found.T, bars.T, strict=True):
            after = (levels < bar[:, None]).sum(1)
            right = np.clip(after, 1, SETTINGS.curve_points - 1)
            low, high = levels[draw, right - 1], levels[draw, right]
            share = np.clip((bar - low) / np.maximum(high - low, 1e-12), 0.0, 1.0)
            inside = x[right - 1] + share * (x[1] - x[0])
            column[:] = np.where(after == 0, -np.inf, np.where(after == SETTINGS.curve_points, np.inf, inside))
        return found


def shape(theta: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return floor, top, exponent, speed, offset: the curve is half way up at 0, as steep as `slope` says."""
    floor = theta[:, FLOOR]
    top = floor + np.exp(theta[:, TOP]) * np.maximum(theta[:, FULL] - floor, 1e-3)
    exponent = np.exp(np.clip(theta[:, ASYMMETRY], -4.0, 4.0))
    half = 0.5 ** (1.0 / exponent)
    speed = np.exp(theta[:, SLOPE]) / (2.0 * exponent * (1.0 - half))
    return floor, top, exponent, speed, np.log(half) - np.log1p(-half)


def rise(parts: tuple[np.ndarray, ...], x: np.ndarray) -> np.ndarray:
    """Return the gain at effective log d = x from the middle, of curves with these parts."""
    floor, top, exponent, speed, offset = parts
    z = np.clip(speed * x + offset, -500.0, 500.0)
    return floor + (top - floor) * np.exp(-exponent * np.log(1.0 + np.exp(-z)))  # twice as fast as a power
