"""What a sweep will take, before anything is spent.

Counts of trials are exact at most and simulated in expectation; hours follow from the seconds that a step was seen to
take. Nothing here runs or times anything.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from distsub.records import Observation, Trial, sign
from distsub.search.policies import Grid, Policy
from distsub.search.queue import TrialQueue, same_but_seeds
from distsub.search.settings import SETTINGS
from distsub.search.spec import Search, all_references, eta_tries

if TYPE_CHECKING:
    from distsub.search.synthetic import Curve

Seconds = Callable[[Trial], float | None]
"""Seconds that a trial takes in one slot, start-up and evaluation included; None where that is not known."""


@dataclass(frozen=True)
class Cost:
    """What a number of trials takes.

    Attributes:
        trials: Number of trials; a mean where it is expected.
        steps: Training steps.
        hours: Slot-hours; None where the seconds of a trial are unknown.
        wall_hours: Hours on the given slots: hours / slots, or the longest chain of trials that wait for one another
            if that is longer.
        price: hours x price per slot-hour, or None.
    """

    trials: float
    steps: float
    hours: float | None
    wall_hours: float | None
    price: float | None


@dataclass(frozen=True)
class Plan:
    """What a sweep will take.

    Attributes:
        searches: Number of searches.
        baselines: Full fine-tunings and untouched models, each shared one once.
        most: Never exceeded, except for what crashes and preemptions make necessary again.
        expected: If the crossing is as likely anywhere in the range, with noise as measured on MRPC; what idle slots
            try in vain counts.
        first_batch: The trials that start at once.
        slots: Trials at once.
    """

    searches: int
    baselines: int
    most: Cost
    expected: Cost
    first_batch: tuple[Trial, ...]
    slots: int


def make_plan(
    searches: Sequence[Search],
    policy: Policy,
    slots: int = 1,
    seconds: Seconds | None = None,
    price_per_hour: float | None = None,
    controls: Sequence[Trial] = (),
) -> Plan:
    """Add up what a sweep will take.

    Args:
        searches: The sweep's searches.
        policy: How they are searched.
        slots: Trials at once.
        seconds: What a trial takes, as seconds_per_step x steps from a probe; None leaves hours out.
        price_per_hour: Of one slot.
        controls: Trials beside the searches.
    """
    alike: dict[Hashable, list[Search]] = {}
    for search in searches:
        alike.setdefault(same_but_seeds(search), []).append(search)
    baseline = sorted(all_references(searches), key=lambda each: each[0].id)
    most = [(trial, float(number)) for trial, number in (*baseline, *((trial, 1) for trial in controls))]
    expected = list(most)
    most += eta_tries(searches)
    chain_most = chain_expected = 0.0
    shapes: dict[Hashable, tuple[float, float]] = {}
    for members in alike.values():
        one, share = members[0], max(1, slots // len(alike))
        ranges = (one.rate_range, one.eta_range)
        shape = (one.task.metric, one.rule, one.dims, one.etas, one.tries, len(members), len(one.references), ranges)
        if shape not in shapes:
            shapes[shape] = _expect(members, policy, share)
        trials, rounds = shapes[shape]
        # Which trial stands for the others does not matter: the steps are the same and d costs next to nothing.
        middle = one.trials_at(one.dims[len(one.dims) // 2])[0]
        bound = policy.max_trials(one) - one.num_references
        most.append((middle, float(bound * len(members))))
        expected.append((middle, trials))
        if seconds is not None:
            each = seconds(middle) or 0.0
            wait = max((seconds(trial) or 0.0 for trial in one.references), default=0.0)
            wait *= 1 + (one.rate_range.rounds if one.rate_range else 0)
            # At worst one trial waits for another, seed by seed.
            chain_most = max(chain_most, wait + each * (bound + (one.eta_range.rounds if one.eta_range else 0)))
            chain_expected = max(chain_expected, wait + each * rounds)
    return Plan(
        searches=len(searches),
        baselines=sum(number for _, number in baseline),
        most=_cost(most, seconds, slots, chain_most, price_per_hour),
        expected=_cost(expected, seconds, slots, chain_expected, price_per_hour),
        first_batch=_batch(TrialQueue(searches, policy), slots),
        slots=slots,
    )


def seconds_per_trial(
    seconds_per_step: Callable[[Trial], float | None], startup_s: float = 0.0, eval_s: float = 0.0
) -> Seconds:
    """Turn seconds per step, as a probe measures them, into seconds per trial.

    Args:
        seconds_per_step: Of a trial's model and method; None where it was not measured.
        startup_s: Before the first step.
        eval_s: Of one evaluation.
    """

    def seconds(trial: Trial) -> float | None:
        step = seconds_per_step(trial)
        if step is None:
            return None
        steps, every = trial.budget.steps, trial.budget.eval_every
        return startup_s + steps * step + eval_s * (math.ceil(steps / every) if every else 1)

    return seconds


def _cost(
    parts: Sequence[tuple[Trial, float]], seconds: Seconds | None, slots: int, chain_s: float, price: float | None
) -> Cost:
    trials = math.fsum(number for _, number in parts)
    steps = math.fsum(number * trial.budget.steps for trial, number in parts)
    times = [(seconds(trial), number) for trial, number in parts] if seconds else [(None, 0.0)]
    known = [(each, number) for each, number in times if each is not None]
    if len(known) < len(times):
        return Cost(trials, steps, None, None, None)
    hours = math.fsum(each * number for each, number in known) / 3600
    wall = max(hours / max(slots, 1), chain_s / 3600)
    return Cost(trials, steps, hours, wall, None if price is None else hours * price)


def _batch(queue: TrialQueue, slots: int) -> tuple[Trial, ...]:
    """Return what starts at once on so many slots."""
    batch: dict[str, Trial] = {}
    while (trial := queue.next(batch.keys(), slots)) is not None:
        batch[trial.id] = trial
    return tuple(batch.values())


def _expect(members: Sequence[Search], policy: Policy, slots: int) -> tuple[float, float]:
    """Return the mean number of subspace trials of searches that differ in seeds, and of rounds until they end."""
    from distsub.search.synthetic import Curve

    one = members[0]
    bound = (policy.max_trials(one) - one.num_references) * len(members)
    bound += sum(number for _, number in eta_tries(members))
    if isinstance(policy, Grid):  # every trial there is, whatever comes out
        return float(bound), math.ceil(bound / slots)
    first, last = math.log(one.dims[0]), math.log(one.dims[-1])
    rates = sorted({trial.learning_rate for trial in one.baseline})
    curve = Curve(
        middle=0.0,
        eta_best=math.exp(math.fsum(map(math.log, one.etas)) / len(one.etas)),
        rate_best=rates[len(rates) // 2] if rates else one.learning_rate,
    )
    rule = one.rule if one.rule.value is None or sign(one.task.metric) > 0 else replace(one.rule, value=_BAR)
    if (bar := rule.value) is not None:  # as far from both ends of the curve as a d90 is
        full = bar + 0.3 * (1.0 - bar)
        curve = replace(curve, floor=max(bar - 0.85 * (full - bar), 0.01), full=full, plateau=full)
    crossing = curve.crossing(one.etas, rates, rule=rule)
    if not 0.0 < crossing < math.inf:  # a fraction so low that guessing reaches it, or out of reach: nothing to expect
        return float(bound), math.ceil(bound / slots)
    beyond = math.log(crossing)
    trials = rounds = 0
    for k in range(SETTINGS.worlds):
        place = first + (k + 0.5) / SETTINGS.worlds * (last - first)
        more = _play(members, policy, slots, replace(curve, seed=k, middle=place - beyond))
        trials, rounds = trials + more[0], rounds + more[1]
    return trials / SETTINGS.worlds, rounds / SETTINGS.worlds


def _play(members: Sequence[Search], policy: Policy, slots: int, curve: "Curve") -> tuple[int, int]:
    """Return the number of subspace trials and of rounds, each of as many trials at once as there are slots."""
    queue, trials, rounds = TrialQueue(members, policy), 0, 0
    while not queue.finished:
        batch = _batch(queue, slots)
        probes = sum(not trial.is_reference for trial in batch)
        trials, rounds = trials + probes, rounds + (probes > 0)
        for trial in batch:
            queue.observe(_as_loss(curve.observe(trial, arrays=False), members[0]))
    return trials, rounds


_BAR = 0.8
"""Where a curve of losses has the value that is asked for."""


def _as_loss(observation: Observation, search: Search) -> Observation:
    """Turn a synthetic score over, where the search is for a metric that is better when lower."""
    if sign(search.task.metric) > 0:
        return observation
    zero = 1.0 if search.rule.value is None else search.rule.value + _BAR
    score = observation.score if observation.score is None else zero - observation.score
    return replace(observation, score=score, chance=None)
