"""What scores say about the curves that made them: a posterior with all sources of noise, and draws from it.

    score of a subspace trial   its curve (`distsub.estimate.curves`) + residual, heavy-tailed (Student t); or, with a
                                small probability, the floor: the training failed
    place                       middle + random effects of the projection, head and data seed
    score of a baseline         its level + random effect of its seeds + residual
    residual                    of the training, and of the evaluation set as far as it is the trial's own

A trial known to be below the threshold only enters as that. What another evaluation set would do to all trials alike is
`shared.Shared`. The posterior is drawn by importance sampling: a multivariate t around the mode, then around what
that showed, until the draws are worth enough. No random state: the same rows give the same draws.
"""

import math
from functools import lru_cache
from itertools import pairwise

import numpy as np

from distsub.estimate.curves import (
    BASELINE,
    FLOOR,
    FULL,
    MIDDLE,
    PARAMETERS,
    PENALTY,
    RESIDUAL,
    SHIFT,
    Draws,
    Handicaps,
    Noise,
    Scores,
    rise,
    shape,
)
from distsub.estimate.settings import SETTINGS

_CACHED = 15_000  # numbers in an array that stays in a processor's cache: twice as fast


class _Model:
    """The log posterior of many parameter vectors at once.

    A vector is the shared parameters (`PARAMETERS`, those of eta where there are several), the shortfalls of all
    learning rates but the first, and the place of each group of seeds.
    """

    def __init__(self, scores: Scores, noise: Noise) -> None:
        from scipy.special import log_ndtr

        self.scores, self.noise, self._log_ndtr = scores, noise, log_ndtr
        self.k = len(scores.x)
        low, high = scores.range
        center = math.fsum(scores.x) / self.k
        self.handicaps = Handicaps(scores.etas, center, scores.range)
        middle = ((low + high) / 2, (high - low) / 2 + 1.5)
        names = PARAMETERS if len(scores.etas) > 1 else PARAMETERS[:PENALTY]
        priors = [middle if name == "middle" else getattr(noise, name) for name in names]
        rates, places = len(scores.rates) - 1, len(scores.relation)
        self.shared = len(names)
        self.shortfalls = slice(self.shared, self.shared + rates)
        self.places = slice(self.shared + rates, None)
        self.center = np.array([mean for mean, _ in priors] + [0.0] * rates + [middle[0]] * places)
        self.spread = np.array([sd for _, sd in priors] + [noise.shortfall] * rates + [middle[1]] * places)
        self.steps = _steps(scores.rates, noise.shortfall)
        self.precision = np.linalg.inv(scores.relation) if places else np.zeros((0, 0))
        self.members = scores.group[:, None] == np.arange(scores.group.max(initial=-1) + 1)
        self.loose = scores.place < 0

    def density(self, theta: np.ndarray) -> np.ndarray:
        """Return the log posterior, up to a constant, of every row of theta."""
        size = max(_CACHED // len(self.scores.y), 16)
        return np.concatenate([self._density(theta[i : i + size]) for i in range(0, len(theta), size)])

    def _density(self, theta: np.ndarray) -> np.ndarray:
        k = self.k
        standard = (theta[:, : self.shared] - self.center[: self.shared]) / self.spread[: self.shared]
        value = -0.5 * (standard**2).sum(1)
        value -= 1.5 * np.log1p(0.5 * (theta[:, self.shortfalls] @ self.steps) ** 2).sum(1)
        off = theta[:, self.places] - theta[:, [MIDDLE]]
        value -= 0.5 * np.exp(-2 * theta[:, SHIFT]) * ((off @ self.precision) * off).sum(1)
        value -= off.shape[1] * theta[:, SHIFT]
        mean, variance = self.moments(theta)
        trained, failed = self._subspace(theta, mean[:, :k], variance[:, :k])
        value += _either(trained, failed).sum(1)
        inverse, miss = 1.0 / variance[:, k:], self.scores.y[k:] - mean[:, k:]
        common = np.exp(2 * theta[:, [BASELINE]])
        mass = 1.0 + common * (inverse @ self.members)
        pull = (inverse * miss) @ self.members
        value -= 0.5 * ((inverse * miss**2).sum(1) - np.log(inverse).sum(1))
        value -= 0.5 * (np.log(mass) - common * pull**2 / mass).sum(1)
        return np.where(np.isfinite(value), value, -np.inf)

    def moments(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and variance of every row, given places; [draws, rows]."""
        scores, k = self.scores, self.k
        parts = tuple(part[:, None] for part in shape(theta))
        mean = np.empty((len(theta), len(scores.y)))
        variance = scores.own + np.exp(2 * theta[:, [RESIDUAL]])
        # The last column is for seeds with too few rows: they are somewhere around the middle.
        places = np.concatenate([theta[:, self.places], theta[:, [MIDDLE]]], axis=1)
        handicap = self.handicaps.all(theta, scores.x[None])
        lowest = handicap.min(0)
        own = np.where(scores.eta < 0, lowest, handicap[scores.eta, :, np.arange(k)].T)
        at = scores.x - places[:, scores.place]
        mean[:, :k] = rise(parts, at - own)
        # What lies far from the threshold must not decide where the curve crosses it.
        variance[:, :k] += (self.noise.bend * (mean[:, :k] - scores.bar)) ** 2
        if self.loose.any():
            moved = rise(parts, at - own + np.exp(theta[:, [SHIFT]]))
            variance[:, :k] += self.loose * (moved - mean[:, :k]) ** 2
        if len(scores.etas) > 1:  # the curve of an inferior eta is less sure to have this shape
            variance[:, :k] += (self.noise.misfit * (rise(parts, at - lowest) - mean[:, :k])) ** 2
        mean[:, k:] = theta[:, [FULL]] - self._all_shortfalls(theta)[:, scores.rate]
        return mean, variance

    def failed(self, theta: np.ndarray) -> np.ndarray:
        """Return the probability of every subspace trial to have failed to train."""
        mean, variance = self.moments(theta)
        trained, failed = self._subspace(theta, mean[:, : self.k], variance[:, : self.k])
        return np.exp(failed - _either(trained, failed))

    def _subspace(self, theta: np.ndarray, mean: np.ndarray, variance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the log likelihood of every subspace trial as one that trained and as one that failed."""
        scores, share = self.scores, self.noise.failure
        y, below = scores.y[: self.k], scores.below
        trained = -0.5 * np.log(variance) - 0.5 * (SETTINGS.residual_df + 1) * np.log(
            1.0 + (y - mean) ** 2 / (SETTINGS.residual_df * variance)
        )
        spread = scores.own[: self.k] + SETTINGS.failed_gain**2
        failed = -0.5 * np.log(spread) - 0.5 * (y - theta[:, [FLOOR]]) ** 2 / spread
        if below.any():
            trained[:, below] = self._log_ndtr((y - mean)[:, below] / np.sqrt(variance[:, below]))
            failed[:, below] = 0.0
        return trained + math.log1p(-share), failed + math.log(share)

    def _all_shortfalls(self, theta: np.ndarray) -> np.ndarray:
        return np.concatenate([np.zeros((len(theta), 1)), theta[:, self.shortfalls]], axis=1)

    def finish(self, theta: np.ndarray, weight: np.ndarray, effective: float) -> Draws:
        """Turn parameter vectors into curves."""
        likely = np.argsort(-weight)[:200]
        failed = weight[likely] / weight[likely].sum() @ self.failed(theta[likely])
        shared = np.zeros((len(theta), len(PARAMETERS)))
        shared[:, : self.shared] = theta[:, : self.shared]
        return Draws(shared, self._all_shortfalls(theta), weight, self.handicaps, failed, effective)

    def information(self, theta: np.ndarray) -> np.ndarray:
        """Return roughly the negative Hessian at one vector, never indefinite: Fisher's information and the prior."""
        k, below = self.k, self.scores.below
        steps = 1e-4 * np.minimum(self.spread, 1.0)
        mean, variance = self.moments(np.concatenate([theta[None], theta + np.diag(steps)]))
        slopes = (mean[1:] - mean[0]) / steps[:, None]
        swells = np.log(variance[1:] / variance[0]) / steps[:, None]
        inverse, trust = 1.0 / variance[0], np.ones(len(variance[0]))
        trust[:k] = 1.0 - self.failed(theta[None])[0]
        trust[:k][below] *= 0.3
        inverse *= trust
        inverse[:k] *= (SETTINGS.residual_df + 1) / (SETTINGS.residual_df + 3)
        found = (slopes * inverse) @ slopes.T + 0.4 * (swells * trust) @ swells.T
        common = math.exp(2 * theta[BASELINE])
        lost = (slopes[:, k:] * inverse[k:]) @ self.members
        mass = 1.0 + common * (inverse[k:] @ self.members)
        found -= (lost * common / mass) @ lost.T
        found[BASELINE, BASELINE] += (((mass - 1) / mass) ** 2).sum()
        prior = 1.0 / self.spread**2
        prior[self.shared :] = 0.0
        found += np.diag(prior)
        arms = self.shortfalls
        found[arms, arms] += (self.steps * 1.5 / (1.0 + 0.5 * (theta[arms] @ self.steps) ** 2)) @ self.steps.T
        precision = self.precision * math.exp(-2 * theta[SHIFT])
        found[self.places, self.places] += precision
        found[self.places, MIDDLE] -= precision.sum(1)
        found[MIDDLE, self.places] -= precision.sum(1)
        found[MIDDLE, MIDDLE] += precision.sum()
        found[SHIFT, SHIFT] += max(len(precision) - 1.0, 0.0)
        return found


def _either(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return log(exp(a) + exp(b)), faster than NumPy's."""
    return np.maximum(a, b) + np.log(1.0 + np.exp(-np.abs(a - b)))


def _steps(arms: np.ndarray, scale: float) -> np.ndarray:
    """Return the matrix that takes the arms' losses, the first's being 0, to scaled differences of neighbours."""
    order = np.argsort(arms)
    matrix = np.zeros((len(arms), len(arms) - 1))
    for column, (i, j) in enumerate(pairwise(order)):
        size = scale * math.sqrt(arms[j] - arms[i])
        matrix[j, column], matrix[i, column] = 1.0 / size, -1.0 / size
    return matrix[1:]


def draw(scores: Scores, noise: Noise) -> Draws:
    """Draw curves from the posterior, round by round until they are worth enough.

    Every round draws from a t distribution that has the mean and covariance of all rounds before; every draw is weighed
    by the posterior against the mixture of all of them.
    Source: Cornuet, Marin, Mira, Robert 2012, Adaptive multiple importance sampling.

    Args:
        scores: The rows; at least one subspace trial. Without a baseline its level is what was believed beforehand.
        noise: What is believed beforehand.
    """
    model = _Model(scores, noise)
    mean = _mode(model)
    covariance = rough = np.linalg.inv(model.information(mean))
    size = len(mean)
    theta, target, proposals = np.zeros((0, size)), np.zeros(0), []
    while True:
        proposals.append((mean, np.linalg.cholesky(covariance)))
        fresh = mean + _base(size, len(proposals)) @ proposals[-1][1].T
        theta, target = np.concatenate([theta, fresh]), np.concatenate([target, model.density(fresh)])
        log_weight = target - _mixture(theta, proposals)
        weight = _weights(log_weight)
        effective = _kish(weight)
        if len(proposals) > 1 and (effective >= SETTINGS.wanted_draws or len(proposals) == SETTINGS.rounds):
            # A draw far out in a thin tail of the proposals must not stand for everything.
            weight = np.minimum(weight, 1.0 / math.sqrt(len(weight)))
            relevant = weight > 1e-3 * weight.max()  # the others, most of the first rounds, only cost time
            return model.finish(theta[relevant], weight[relevant] / weight[relevant].sum(), effective)
        # Where a few draws have all the weight, the next round takes its place and width from many all the same.
        heat = 1.0
        while _kish(weight) < 6 * size and heat > 0.01:
            heat *= 0.7
            weight = _weights(heat * log_weight)
        mean = weight @ theta
        around = theta - mean
        covariance = (around.T * weight) @ around + 0.01 * rough


def _mixture(theta: np.ndarray, proposals: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Return the log density of draws in the mixture of all proposals, up to a constant."""
    size = theta.shape[1]
    found = np.full(len(theta), -1e300)
    for mean, root in proposals:
        square = (((theta - mean) @ np.linalg.inv(root).T) ** 2).sum(1)
        density = (
            -0.5 * (SETTINGS.proposal_df + size) * np.log1p(square / SETTINGS.proposal_df) - np.log(np.diag(root)).sum()
        )
        found = _either(found, density)
    return found


def _weights(log_weight: np.ndarray) -> np.ndarray:
    weight = np.exp(log_weight - log_weight.max())
    return weight / weight.sum()


def _kish(weight: np.ndarray) -> float:
    """Return how many independent draws weighted ones are worth."""
    return 1.0 / float((weight**2).sum())


def _mode(model: _Model) -> np.ndarray:
    """Climb to the mode by Fisher scoring, from the best of some curves that differ in where they rise."""
    low, high = model.scores.range
    starts = np.repeat(model.center[None], 15, axis=0)
    starts[:, MIDDLE] = np.linspace(low - 1.0, high + 1.0, len(starts))
    starts[:, model.places] = starts[:, [MIDDLE]]
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
def _base(size: int, stream: int) -> np.ndarray:
    """Return standard multivariate t draws, the same ones always; each with its mirror image."""
    random = np.random.Generator(np.random.Philox(key=2**64 * stream + size))
    normal = random.standard_normal((SETTINGS.draws // 2, size))
    half = normal / np.sqrt(random.chisquare(SETTINGS.proposal_df, (SETTINGS.draws // 2, 1)) / SETTINGS.proposal_df)
    return np.concatenate([half, -half])


@lru_cache(maxsize=16)
def standard_normal(size: int) -> np.ndarray:
    """Return normal quantiles in an order that has nothing to do with the draws'."""
    from scipy.special import ndtri

    random = np.random.Generator(np.random.Philox(key=size))
    return random.permutation(ndtri((np.arange(size) + 0.5) / size))
