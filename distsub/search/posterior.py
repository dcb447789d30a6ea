"""What scores say about the curve that made them: a posterior over monotone curves, with all sources of noise.

Everything is in units of gain: 0 is chance, 1 about the score of full fine-tuning.

    score of a subspace trial   floor + (top - floor) * rise(slope * (log d - handicap(eta) - place(seeds))) + residual
    place                       middle + random effects of the projection, head and data seed
    score of a baseline         full - shortfall(learning rate) + random effect of its seeds + residual
    residual                    of the training, and of the evaluation set as far as it is the trial's own

rise is Richards' curve (a logistic with a free asymmetry), so scores never fall with d but for noise. A training that
was stopped enters as what is certain about it, its side of the threshold. These are the curves on one evaluation set;
what another one would do to all trials alike is `answers.Shared`.

The posterior is drawn by importance sampling: a multivariate t around the mode, twice. No random state: the same
rows give the same draws.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np

Density = Callable[[np.ndarray], np.ndarray]

DRAWS = 1000
_DEGREES = 8.0  # of freedom of the proposal: tails heavier than the posterior's
_TAILS = 8.0  # of freedom of the residual: one collapsed training in a dozen is no surprise


@dataclass(frozen=True)
class Noise:
    """What is believed about a curve and its noise before any row: (mean, standard deviation) each.

    In units of gain and of log d, scales as logarithms. The values are measured on real rows by
    `benchmarks/coverage.py --fit`; the last digit means nothing.

    Attributes:
        slope: log of four times the steepness half way up, per unit of log d.
        asymmetry: log of Richards' exponent.
        floor: Score towards d = 0.
        top: log of (top - floor) / (full - floor), the score towards d = infinity.
        residual: log of the standard deviation of one training given its seeds.
        shift: log of the standard deviation over seeds of the place in log d.
        baseline: log of the standard deviation over seeds of the baseline's score.
        handicap: Scale of the difference in log d of neighbouring etas a factor e apart (Student t, 2 degrees of
            freedom, so that there may be a cliff); it grows with the square root of their distance.
        shortfall: The same of learning rates in gain.
        shares: Of the projection, head and data seed in the variance of the shift.
        misfit: Error of the curve of an inferior eta, as a share of its distance from the best one's.
        paired: Correlation of the sampling errors of two good subspace trials, two baselines, one of each; as good
            as a few pairs of rows that carry their answers.
    """

    slope: tuple[float, float] = (math.log(1.0), 0.6)
    asymmetry: tuple[float, float] = (0.0, 0.7)
    floor: tuple[float, float] = (0.0, 0.08)
    top: tuple[float, float] = (-0.05, 0.2)
    residual: tuple[float, float] = (math.log(0.03), 0.6)
    shift: tuple[float, float] = (math.log(0.3), 0.5)
    baseline: tuple[float, float] = (math.log(0.03), 0.7)
    handicap: float = 0.8
    shortfall: float = 0.06
    shares: tuple[float, float, float] = (0.4, 0.3, 0.3)
    misfit: float = 0.3
    paired: tuple[float, float, float] = (0.5, 0.5, 0.4)


@dataclass(frozen=True)
class Scores:
    """The rows of one curve as arrays: subspace trials first, then baselines.

    Attributes:
        x: log d of the subspace trials.
        y: Gain of all rows.
        own: Variance of the sampling error that is the trial's own.
        side: 0 for a score; +1 for "its score would be at least y", -1 for "below y".
        arm: Index of the eta, for baselines of the learning rate.
        etas: log of the etas; the others are compared with the first.
        rates: log of the baseline's learning rates, likewise.
        group: Index of the seeds whose place a subspace trial takes; of its own seeds for baselines.
        kinship: Correlation of a subspace trial's place with that of its group: 1 if it has the same seeds.
        relation: Correlation of the places of the groups; [groups, groups].
        range: log of the smallest and the largest d that could be tried.
    """

    x: np.ndarray
    y: np.ndarray
    own: np.ndarray
    side: np.ndarray
    arm: np.ndarray
    etas: np.ndarray
    rates: np.ndarray
    group: np.ndarray
    kinship: np.ndarray
    relation: np.ndarray
    range: tuple[float, float]


_SLOPE, _ASYMMETRY, _FLOOR, _TOP, _FULL, _RESIDUAL, _SHIFT, _BASELINE, _FIRST = range(9)
_PRIORS = ("slope", "asymmetry", "floor", "top", "full", "residual", "shift", "baseline")
_STEP = math.sqrt(3.0)  # Gauss-Hermite with three nodes: the mean over a normal shift


@dataclass(frozen=True)
class Draws:
    """Weighted draws of curves.

    Attributes:
        theta: The parameters that curves share, by `_PRIORS`; [draws, 8].
        middle: Where an average seed's curve is half way up, at eta number 0.
        handicap: Of every eta; [draws, etas].
        shortfall: Of every learning rate; [draws, rates].
        weight: Sums to one.
    """

    theta: np.ndarray
    middle: np.ndarray
    handicap: np.ndarray
    shortfall: np.ndarray
    weight: np.ndarray

    @property
    def eta(self) -> int:
        """Index of the eta with the best expected score."""
        return int(np.argmin(self.weight @ self.handicap))

    @property
    def rate(self) -> int:
        """Index of the learning rate with the best expected score."""
        return int(np.argmin(self.weight @ self.shortfall))

    def full(self) -> np.ndarray:
        """Return the expected gain of full fine-tuning at its best learning rate, per draw."""
        return self.theta[:, _FULL] - self.shortfall[:, self.rate]

    def level(self, x: np.ndarray) -> np.ndarray:
        """Return the expected gain over seeds at the best eta, at log d = x; [draws, points]."""
        shape = tuple(part[:, None] for part in _shape(self.theta))
        at = x - (self.middle + self.handicap[:, self.eta])[:, None]
        step = _STEP * np.exp(self.theta[:, [_SHIFT]])
        return (4 * _curve(shape, at) + _curve(shape, at - step) + _curve(shape, at + step)) / 6

    def crossing(self, bar: np.ndarray) -> np.ndarray:
        """Return log d where each draw's expected gain reaches its bar; +-inf where it never or always does."""
        floor, top, *_ = _shape(self.theta)
        reach = 12.0 / np.exp(self.theta[:, _SLOPE]) + 3.0 * np.exp(self.theta[:, _SHIFT])
        center = self.middle + self.handicap[:, self.eta]
        low, high = center - reach, center + reach
        for _ in range(30):
            x = (low + high) / 2
            below = self.level(x[:, None])[:, 0] < bar
            low, high = np.where(below, x, low), np.where(below, high, x)
        return np.where(bar <= floor, -np.inf, np.where(bar >= top, np.inf, high))


def _shape(theta: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return floor, top, exponent, speed, offset: the curve is half way up at 0, as steep as `slope` says."""
    floor = theta[:, _FLOOR]
    top = floor + np.exp(theta[:, _TOP]) * np.maximum(theta[:, _FULL] - floor, 1e-3)
    exponent = np.exp(np.clip(theta[:, _ASYMMETRY], -4.0, 4.0))
    half = 0.5 ** (1.0 / exponent)
    speed = np.exp(theta[:, _SLOPE]) / (2.0 * exponent * (1.0 - half))
    return floor, top, exponent, speed, np.log(half) - np.log1p(-half)


def _curve(shape: tuple[np.ndarray, ...], x: np.ndarray) -> np.ndarray:
    floor, top, exponent, speed, offset = shape
    z = np.clip(speed * x + offset, -500.0, 500.0)
    return floor + (top - floor) * (1.0 + np.exp(-z)) ** -exponent


class _Model:
    """The log posterior of many parameter vectors at once.

    A vector is the shared parameters, the handicaps and shortfalls of all arms but the first, and the place of each
    group of seeds; the middle of the places is integrated out.
    """

    def __init__(self, scores: Scores, noise: Noise) -> None:
        from scipy.special import log_ndtr

        self.scores, self.noise, self._log_ndtr = scores, noise, log_ndtr
        self.k = len(scores.x)
        self.etas, self.rates = len(scores.etas), len(scores.rates)
        self.groups = len(scores.relation)
        arms = self.etas + self.rates - 2
        self._places = slice(_FIRST + arms, None)
        low, high = scores.range
        self.middle, self.middle_sd = (low + high) / 2, (high - low) / 2 + 1.5
        priors = [(1.0, 0.5) if name == "full" else getattr(noise, name) for name in _PRIORS]
        self.center = np.array([mean for mean, _ in priors] + [0.0] * arms + [self.middle] * self.groups)
        self.spread = np.array(
            [sd for _, sd in priors]
            + [noise.handicap] * (self.etas - 1)
            + [noise.shortfall] * (self.rates - 1)
            + [self.middle_sd] * self.groups
        )
        # From handicaps and shortfalls to differences of neighbours, each in units of its scale.
        self.steps = np.zeros((arms, arms))
        self.steps[: self.etas - 1, : self.etas - 1] = _steps(scores.etas, noise.handicap)
        self.steps[self.etas - 1 :, self.etas - 1 :] = _steps(scores.rates, noise.shortfall)
        self.members = scores.group[self.k :, None] == np.arange(scores.group[self.k :].max(initial=0) + 1)
        self.bound = scores.side[: self.k] != 0

    def parts(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return handicaps, shortfalls (the first of each is 0) and places."""
        none = np.zeros((len(theta), 1))
        split = _FIRST + self.etas - 1
        return (
            np.concatenate([none, theta[:, _FIRST:split]], axis=1),
            np.concatenate([none, theta[:, split : self._places.start]], axis=1),
            theta[:, self._places],
        )

    def density(self, theta: np.ndarray) -> np.ndarray:
        """Return the log posterior, up to a constant, of every row of theta."""
        standard = (theta - self.center) / self.spread
        arms = theta[:, _FIRST : self._places.start] @ self.steps
        value = -0.5 * (standard[:, :_FIRST] ** 2).sum(1) - 1.5 * np.log1p(0.5 * arms**2).sum(1)
        value = value + self._kin(theta)[0]
        mean, variance = self.moments(theta)
        miss = self.scores.y - mean
        own, odd = variance[:, : self.k], miss[:, : self.k]
        exact = -0.5 * np.log(own) - 0.5 * (_TAILS + 1) * np.log1p(odd**2 / (_TAILS * own))
        if self.bound.any():
            side = self.scores.side[: self.k][self.bound]
            exact[:, self.bound] = self._log_ndtr(-side * odd[:, self.bound] / np.sqrt(own[:, self.bound]))
        value = value + exact.sum(1)
        inverse, odd = 1.0 / variance[:, self.k :], miss[:, self.k :]
        common = np.exp(2 * theta[:, [_BASELINE]])
        mass = 1.0 + common * (inverse @ self.members)
        pull = (inverse * odd) @ self.members
        value = value - 0.5 * ((inverse * odd**2).sum(1) - np.log(inverse).sum(1))
        value = value - 0.5 * (np.log(mass) - common * pull**2 / mass).sum(1)
        return np.where(np.isfinite(value), value, -np.inf)

    def moments(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and variance of every row, given places; [draws, rows]."""
        scores, k = self.scores, self.k
        handicap, shortfall, places = self.parts(theta)
        shape = tuple(part[:, None] for part in _shape(theta))
        mean = np.empty((len(theta), len(scores.y)))
        variance = scores.own + np.exp(2 * theta[:, [_RESIDUAL]])
        place = places[:, scores.group[:k]]
        distant = scores.kinship < 1.0
        if distant.any():
            around = places.mean(1, keepdims=True)
            place = around + scores.kinship * (place - around)
        at = scores.x - place
        mean[:, :k] = _curve(shape, at - handicap[:, scores.arm[:k]])
        if distant.any():
            rest = np.exp(theta[:, [_SHIFT]]) * np.sqrt(1.0 - scores.kinship**2)
            moved = _curve(shape, at - handicap[:, scores.arm[:k]] + rest)
            variance[:, :k] += (moved - mean[:, :k]) ** 2
        if self.etas > 1:
            best = _curve(shape, at - handicap.min(1)[:, None])
            variance[:, :k] += (self.noise.misfit * (best - mean[:, :k])) ** 2
        mean[:, k:] = theta[:, [_FULL]] - shortfall[:, scores.arm[k:]]
        return mean, variance

    def _kin(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the log density of the places, and mean and variance of the middle given them."""
        places = theta[:, self._places] - self.middle
        variance = np.exp(2 * theta[:, _SHIFT])
        inverse = np.linalg.inv(self.scores.relation)
        ones = inverse.sum(0)
        # Places ~ N(middle, variance * relation), middle ~ N(0, middle_sd^2).
        precision = ones.sum() / variance + self.middle_sd**-2
        mean = (places @ ones) / variance / precision
        square = np.einsum("bi,ij,bj->b", places, inverse, places) / variance
        value = -0.5 * (square - precision * mean**2 + np.log(precision) + self.groups * np.log(variance))
        return value, self.middle + mean, 1.0 / precision

    def finish(self, theta: np.ndarray, weight: np.ndarray) -> Draws:
        """Turn parameter vectors into curves; the middle is drawn given the places."""
        handicap, shortfall, _ = self.parts(theta)
        _, mean, variance = self._kin(theta)
        middle = mean + np.sqrt(variance) * standard_normal(len(theta), 1)
        return Draws(theta[:, :_FIRST], middle, handicap, shortfall, weight)

    def information(self, theta: np.ndarray) -> np.ndarray:
        """Return roughly the negative Hessian at one vector, never indefinite: Fisher's information and the prior."""
        steps = 1e-4 * np.minimum(self.spread, 1.0)
        mean, variance = self.moments(np.concatenate([theta[None], theta + np.diag(steps)]))
        slopes = (mean[1:] - mean[0]) / steps[:, None]
        swells = np.log(variance[1:] / variance[0]) / steps[:, None]
        inverse = 1.0 / variance[0]
        inverse[: self.k] *= (_TAILS + 1) / (_TAILS + 3)
        inverse[: self.k][self.bound] *= 0.3
        found = (slopes * inverse) @ slopes.T + 0.4 * swells @ swells.T
        common = math.exp(2 * theta[_BASELINE])
        lost = (slopes[:, self.k :] * inverse[self.k :]) @ self.members
        mass = 1.0 + common * (inverse[self.k :] @ self.members)
        found -= (lost * common / mass) @ lost.T
        found[_BASELINE, _BASELINE] += 2.0 * (((mass - 1) / mass) ** 2).sum() * 0.5
        prior = 1.0 / self.spread**2
        arms = slice(_FIRST, self._places.start)
        prior[_FIRST:] = 0.0
        found += np.diag(prior)
        found[arms, arms] += (self.steps * 1.5 / (1.0 + 0.5 * (theta[arms] @ self.steps) ** 2)) @ self.steps.T
        inverse = np.linalg.inv(self.scores.relation) * math.exp(-2 * theta[_SHIFT])
        ones = inverse.sum(0)
        found[self._places, self._places] += inverse - np.outer(ones, ones) / (ones.sum() + self.middle_sd**-2)
        found[_SHIFT, _SHIFT] += 1.0 * (self.groups - 1)
        return found


def _steps(arms: np.ndarray, scale: float) -> np.ndarray:
    """Return the matrix that takes the arms' losses, the first's being 0, to scaled differences of neighbours."""
    order = np.argsort(arms)
    matrix = np.zeros((len(arms), len(arms) - 1))
    for column, (i, j) in enumerate(pairwise(order)):
        size = scale * math.sqrt(arms[j] - arms[i])
        matrix[j, column], matrix[i, column] = 1.0 / size, -1.0 / size
    return matrix[1:]


def draw(scores: Scores, noise: Noise) -> Draws:
    """Draw curves from the posterior.

    Args:
        scores: The rows; at least one subspace trial and one baseline.
        noise: What is believed beforehand.
    """
    model = _Model(scores, noise)
    mode = _mode(model)
    theta, weight = _sample(model.density, mode, np.linalg.inv(model.information(mode)))
    mean = weight @ theta
    around = theta - mean
    # The weights' own covariance where they carry one, the mode's where a few draws have it all.
    trust = min(1.0, 1.0 / (weight**2).sum() / (4.0 * theta.shape[1]))
    covariance = trust * (around.T * weight) @ around + (1.0 - 0.9 * trust) * np.linalg.inv(model.information(mean))
    return model.finish(*_sample(model.density, mean, covariance))


def _mode(model: _Model) -> np.ndarray:
    """Climb to the mode by Fisher scoring, from the best of some curves that differ in where they rise."""
    low, high = model.scores.range
    starts = np.repeat(model.center[None], 15, axis=0)
    starts[:, model._places] = np.linspace(low - 1.0, high + 1.0, len(starts))[:, None]
    point = starts[np.argmax(model.density(starts))]
    steps = 1e-4 * np.minimum(model.spread, 1.0)
    lengths = np.array([1.0, 0.5, 0.25, 0.1, 0.03, 0.01])
    for _ in range(40):
        value = model.density(np.concatenate([point[None], point + np.diag(steps), point - np.diag(steps)]))
        gradient = (value[1 : len(steps) + 1] - value[len(steps) + 1 :]) / (2 * steps)
        move = np.linalg.solve(model.information(point), gradient)
        if gradient @ move < 1e-2:
            break
        move *= min(1.0, 3.0 / np.abs(move / np.minimum(model.spread, 1.0)).max())
        tried = point + lengths[:, None] * move
        found = model.density(tried)
        best = int(np.argmax(found))
        if not found[best] > value[0]:
            break
        point = tried[best]
    return point


@lru_cache(maxsize=64)
def _base(size: int) -> np.ndarray:
    """Return standard multivariate t draws, the same ones always; each with its mirror image."""
    random = np.random.Generator(np.random.Philox(key=size))
    normal = random.standard_normal((DRAWS // 2, size))
    half = normal / np.sqrt(random.chisquare(_DEGREES, (DRAWS // 2, 1)) / _DEGREES)
    return np.concatenate([half, -half])


@lru_cache(maxsize=16)
def standard_normal(size: int, stream: int = 0) -> np.ndarray:
    """Return normal quantiles in an order that has nothing to do with the draws' nor with another stream's."""
    from scipy.special import ndtri

    random = np.random.Generator(np.random.Philox(key=2**64 * (stream + 1) + size))
    return random.permutation(ndtri((np.arange(size) + 0.5) / size))


def _sample(density: Density, mean: np.ndarray, covariance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Draw from a t distribution and weigh the draws by how likely they are."""
    base = _base(len(mean))
    draws = mean + base @ np.linalg.cholesky(covariance).T
    log_weight = density(draws) + 0.5 * (_DEGREES + len(mean)) * np.log1p((base**2).sum(1) / _DEGREES)
    weight = np.exp(log_weight - log_weight.max())
    weight /= weight.sum()
    # A draw far out in a thin tail of the proposal must not stand for everything.
    weight = np.minimum(weight, 1.0 / math.sqrt(len(weight)))
    return draws, weight / weight.sum()
