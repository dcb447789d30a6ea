"""A made-up model and task whose true d90 is known: what estimators and policies are judged against.

Deterministic: what a trial scores follows from the curve's seed and the trial alone, so it may be asked for in
any order, by any number of policies, and gives the same observation each time.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from distsub.records import Observation, Seeds, Trial, digest, label
from distsub.search.rule import Rule

_WAVES = 24
_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(41)
_WEIGHTS = _WEIGHTS / _WEIGHTS.sum()


def _logistic(z: float | np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-np.clip(z, -500.0, 500.0)))


SHAPES = {
    "logistic": _logistic,
    # A fast start and a slow end, and the other way round.
    "gompertz": lambda z: np.exp(-np.exp(-z)),
    "early": lambda z: 1.0 - np.exp(-np.exp(np.minimum(z, 50.0))),
    # Logistic in d itself, not in its logarithm.
    "linear": lambda z: (_logistic(3.0 * (np.exp(np.minimum(z, 50.0)) - 1.0)) - _logistic(-3.0)) / _logistic(3.0),
    # Two straight lines: steep to 55%, then flat.
    "kink": lambda z: np.clip(0.55 + np.where(z < 0, 0.35, 0.09) * z, 0.0, 1.0),
    # Three steps.
    "stairs": lambda z: (_logistic(8.0 * (z + 2.0)) + _logistic(8.0 * z) + _logistic(8.0 * (z - 2.0))) / 3.0,
    # Two rises with a flat between them.
    "double": lambda z: 0.5 * (_logistic(2.0 * (z + 2.5)) + _logistic(2.0 * (z - 2.5))),
}
"""How a score rises from 0 to 1 with effective log d, in units of 1 / slope."""


@dataclass(frozen=True)
class Curve:
    """Score of a trial as a function of d, eta, learning rate and seeds, with every source of noise.

    Without noise a subspace scores floor + (plateau - floor) * rise(log d - middle - penalty(d, eta)). A seed moves
    the curve along log d (so it matters where the curve is steep), in part by the same amount at every d, as
    nested subspaces and common random numbers do; every training adds its own residual; and the score is a share
    of `num_examples` answers. Towards d = 0 those of the majority class are right; further up the easy ones, the same
    for all trials (paired).

    Attributes:
        seed: Draws everything that is random.
        floor: Score towards d = 0; also the expected share of the majority class, so of chance.
        theta_0: Expected score of the untouched model.
        plateau: Score towards d = infinity.
        full: Expected score of full fine-tuning at its best learning rate.
        middle: log d where the rise is half way ("logistic"), or near it.
        slope: Steepness of the rise per unit of log d.
        shape: How it rises, one of `SHAPES`.
        eta_best: Best eta at log d = middle.
        eta_drift: Change of log(best eta) per unit of log d, within 2.5 of the middle.
        eta_penalty: Loss in log d per squared distance in log eta.
        eta_limit: Trainings with a larger eta diverge.
        limit_growth: How fast that limit grows with d: as (d / exp(middle)) to this power.
        eta_cliff: Trainings with a larger eta end without error and have learned nothing.
        rate_best: Best learning rate of full fine-tuning.
        rate_penalty: Loss in score per squared distance in log learning rate.
        projection_sd: Of the shift in log d, due to the projection seed.
        head_sd: The same, due to the head seed.
        data_sd: The same, due to the data seed.
        common: Share of a seed's variance that is the same at every d.
        baseline_sd: Of the score of full fine-tuning over its seeds.
        residual_sd: Of the score of one training, over what its seeds explain.
        residual_growth: Power of d with which that grows, from 0.2 to 5 times.
        full_failures: Share of full fine-tunings that fail to train: they stay at the floor.
        seed_failures: Share of seeds all of whose full fine-tunings fail.
        subspace_failures: Share of subspace trainings that fail.
        num_examples: Size of the evaluation set.
        agreement: Correlation of two trials' latent answers to the same example.
        seconds_per_step: Of training.
        num_params: D.
    """

    seed: int = 0
    floor: float = 0.684
    theta_0: float = 0.5
    plateau: float = 0.84
    full: float = 0.84
    middle: float = math.log(300.0)
    slope: float = 1.0
    shape: str = "logistic"
    eta_best: float = 0.3
    eta_drift: float = 0.0
    eta_penalty: float = 0.3
    eta_limit: float = math.inf
    limit_growth: float = 0.0
    eta_cliff: float = math.inf
    rate_best: float = 2e-5
    rate_penalty: float = 0.01
    projection_sd: float = 0.2
    head_sd: float = 0.15
    data_sd: float = 0.15
    common: float = 0.7
    baseline_sd: float = 0.008
    residual_sd: float = 0.006
    residual_growth: float = 0.0
    full_failures: float = 0.0
    seed_failures: float = 0.0
    subspace_failures: float = 0.0
    num_examples: int = 408
    agreement: float = 0.7
    seconds_per_step: float = 0.1
    num_params: int = 22_713_216

    @property
    def shift_sd(self) -> float:
        """Standard deviation of the shift in log d over all three seeds."""
        return math.sqrt(self.projection_sd**2 + self.head_sd**2 + self.data_sd**2)

    def penalty(self, d: float, eta: float) -> float:
        """Return what an eta costs at d, as a loss in log d."""
        offset = min(max(math.log(d) - self.middle, -2.5), 2.5)
        best = math.log(self.eta_best) + self.eta_drift * offset
        return self.eta_penalty * (math.log(eta) - best) ** 2

    def diverges(self, d: float, eta: float) -> bool:
        """Return whether a training ends without a score."""
        return eta > self.eta_limit * math.exp(self.limit_growth * (math.log(d) - self.middle))

    def score(self, d: float, eta: float, seeds: Seeds) -> float:
        """Return the score over infinitely many examples, for given seeds, without the residual."""
        if eta > self.eta_cliff:
            return self.floor
        x = math.log(d)
        shift = sum(
            sd * _effect(self.seed, kind, seed, self.common, x)
            for kind, sd, seed in (
                ("projection", self.projection_sd, seeds.projection),
                ("head", self.head_sd, seeds.head),
                ("data", self.data_sd, seeds.data),
            )
        )
        return float(self._level(x - self.penalty(d, eta) + shift))

    def expected(self, d: float, eta: float) -> float:
        """Return the score over infinitely many examples and seeds, of trainings that do not fail."""
        if eta > self.eta_cliff or self.diverges(d, eta):
            return self.floor
        shifts = math.log(d) - self.penalty(d, eta) + self.shift_sd * _NODES
        return float(_WEIGHTS @ self._level(shifts))

    def expected_full(self, rates: Sequence[float]) -> float:
        """Return the expected score of full fine-tuning at the best of its learning rates."""
        return max(self._full(rate) for rate in rates)

    def crossing(
        self,
        etas: Sequence[float],
        rates: Sequence[float],
        fraction: float | None = None,
        chance_corrected: bool = False,
        rule: Rule | None = None,
    ) -> float:
        """Return the true d_at(fraction): where the expected score at the best eta reaches the true threshold.

        Args:
            etas: Of the subspace trainings.
            rates: Of full fine-tuning; none are needed for a rule that is a value.
            fraction: Share of full fine-tuning's score.
            chance_corrected: Whether it is a share of the gain over chance.
            rule: What has to be reached, in the place of a fraction; 0.9 of full fine-tuning if neither is given.

        Returns:
            0.0 or infinity where every d or none reaches it.
        """
        rule = rule or Rule(0.9 if fraction is None else fraction)
        if rule.fraction is None:
            bar = rule.value or 0.0
        else:
            full, zero = self.expected_full(rates), self.floor if chance_corrected else 0.0
            bar = zero + rule.fraction * (full - zero)
        low, high = self.middle - 15.0, self.middle + 15.0

        def best(x: float) -> float:
            return max((self.expected(math.exp(x), eta) for eta in etas), default=-math.inf)

        if best(high) < bar:
            return math.inf
        if best(low) >= bar:
            return 0.0
        while high - low > 1e-6:
            x = (low + high) / 2
            low, high = (low, x) if best(x) >= bar else (x, high)
        return math.exp(high)

    def observe(self, trial: Trial, arrays: bool = True) -> Observation:
        """Return what the trial gives.

        Args:
            trial: Full fine-tuning, or a subspace trial of any method.
            arrays: Whether to give every example's answer; the score is the same without.
        """
        own = _generator(self.seed, _name(trial))
        if trial.is_theta_0:
            level, fails, spread = self.theta_0, False, 0.0
        elif trial.d is None or trial.eta is None:
            means = (
                _effect(self.seed, f"full {kind}", seed, 1.0, 0.0)
                for kind, seed in (("head", trial.seeds.head), ("data", trial.seeds.data))
            )
            level = self._full(trial.learning_rate) + self.baseline_sd * sum(means) / math.sqrt(2)
            fails = self._fails(trial)
            spread = self.residual_sd
        elif self.diverges(trial.d, trial.eta):
            return Observation(trial, "diverged", chance=self.chance, steps=1, wall_s=self.seconds_per_step)
        else:
            level = self.score(trial.d, trial.eta, trial.seeds)
            fails = self._fails(trial)
            growth = math.exp(self.residual_growth * (math.log(trial.d) - self.middle))
            spread = self.residual_sd * min(max(growth, 0.2), 5.0)
        level = self.floor if fails else level
        level = min(max(level + spread * own.standard_normal(), 0.005), 0.995)
        correct = self._answers(level, own)
        predicted, target = (), ()
        if arrays:
            target = tuple(self._target.tolist())
            predicted = tuple(np.where(correct, self._target, 1.0 - self._target).tolist())
        score = float(correct.mean())
        steps = trial.budget.steps
        return Observation(
            trial,
            "finished",
            score=score,
            chance=self.chance,
            metrics=(("accuracy", score),),
            curve=self._history(trial, level, score, own),
            predicted=predicted,
            target=target,
            num_examples=self.num_examples,
            steps=steps,
            wall_s=max(steps, 1) * self.seconds_per_step,
            num_params=self.num_params,
            num_trained=0 if trial.is_theta_0 else trial.d or self.num_params,
        )

    def _fails(self, trial: Trial) -> bool:
        """Return whether a training is one of those that fail, drawn apart from everything else."""
        share = self.full_failures if trial.is_baseline else self.subspace_failures
        if share and _generator(self.seed, "failure", _name(trial)).random() < share:
            return True
        if not trial.is_baseline or not self.seed_failures:
            return False
        return _generator(self.seed, "failing seed", trial.seeds.head).random() < self.seed_failures

    @property
    def chance(self) -> float:
        """Share of the majority class in the evaluation set, which is a draw from all examples."""
        share = float(self._target.mean())
        return max(share, 1.0 - share)

    @cached_property
    def _latent(self) -> np.ndarray:
        """How hard each example is: for one who knows the class shares only, and for one who can read."""
        return _generator(self.seed, "examples").standard_normal((2, self.num_examples))

    @cached_property
    def _target(self) -> np.ndarray:
        return (self._latent[0] < _probit(self.floor)).astype(float)

    def _answers(self, level: float, own: np.random.Generator) -> np.ndarray:
        """Draw which examples are right: each with probability `level`, the hard ones hard for every trial."""
        skill = min(max((level - self.floor) / (self.plateau - self.floor), 0.0), 1.0)
        luck = own.standard_normal(self.num_examples)
        known = math.sqrt(self.agreement) * self._latent[1] + math.sqrt(1.0 - self.agreement) * luck
        return math.sqrt(1.0 - skill) * self._latent[0] + math.sqrt(skill) * known < _probit(level)

    def _history(self, trial: Trial, level: float, score: float, own: np.random.Generator) -> tuple:
        """Draw (step, score) at every evaluation: an exponential approach of the last score from the floor."""
        steps, every = trial.budget.steps, trial.budget.eval_every
        at = list(range(every, steps, every)) if every else []
        noise = math.sqrt((1.0 - self.agreement) * level * (1.0 - level) / self.num_examples)
        done = [(1 - math.exp(-4 * step / steps)) / (1 - math.exp(-4)) for step in at]
        early = [self.floor + (score - self.floor) * share + noise * own.standard_normal() for share in done]
        return (*((s, min(max(value, 0.0), 1.0)) for s, value in zip(at, early, strict=True)), (steps, score))

    def _full(self, rate: float) -> float:
        return self.full - self.rate_penalty * math.log(rate / self.rate_best) ** 2

    def _level(self, x: float | np.ndarray) -> np.ndarray:
        """Return the noiseless score at effective log d."""
        z = np.clip(self.slope * (np.asarray(x) - self.middle), -500.0, 500.0)
        if self.shape not in SHAPES:
            raise ValueError(f"shape = {self.shape!r}: give one of {', '.join(SHAPES)}")
        rise = SHAPES[self.shape](z)
        return self.floor + (self.plateau - self.floor) * rise


def _name(trial: Trial) -> str:
    """Name a trial by what a made-up world knows of it: how records are written leaves worlds and figures alone."""
    seeds = (trial.seeds.projection, trial.seeds.head, trial.seeds.data)
    known = (trial.model.name, trial.task.name, label(trial.method), trial.learning_rate, trial.budget.steps)
    return digest(repr((*known, seeds, trial.d, trial.eta)))


def _generator(seed: int, *key: object) -> np.random.Generator:
    """Return a generator that follows from its key alone."""
    digest = hashlib.blake2b(repr((seed, *key)).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest)))


@lru_cache(maxsize=4096)
def _waves(root: int, kind: str, seed: int) -> tuple[float, np.ndarray, np.ndarray]:
    own = _generator(root, kind, seed)
    return own.standard_normal(), own.standard_normal(_WAVES), own.uniform(0.0, 2 * math.pi, _WAVES)


def _effect(root: int, kind: str, seed: int, common: float, x: float) -> float:
    """Return one seed's effect at log d = x, of unit variance: one part the same at every d, one that wanders."""
    constant, speed, phase = _waves(root, kind, seed)
    wander = math.sqrt(2.0 / _WAVES) * float(np.cos(speed * x + phase).sum())
    return math.sqrt(common) * constant + math.sqrt(1.0 - common) * wander


def _probit(p: float) -> float:
    from scipy.special import ndtri  # brings SciPy, which planning is quicker without

    return float(ndtri(p))
