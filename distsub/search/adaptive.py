"""The policy that spends least: one eta at a d where that says most, all its tries only where the answer rests on it.

A pass needs one eta and may end early; a fail needs all of them at full length. So the bracket is narrowed from
above by passes, while below a single failing eta only makes a larger d more likely (see `belief`); the d just under
the last pass is then given all its tries, and that alone is the fail that the answer rests on.
"""

import heapq
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import ClassVar

import numpy as np

from distsub.search.belief import best_etas, crossing, tried
from distsub.search.confirm import climbing, finding, most, worth
from distsub.search.evidence import Evidence
from distsub.search.outcome import Finding
from distsub.search.spec import Search
from distsub.trial import Observation, Trial

EXTRA = 4
"""Values of d, at all their tries, that a search may take beyond bisection's worst case, for choices that do not pay.

With 64 d this keeps the worst case below a fifth of the grid; more would make searches quicker on very many slots.
"""
LINGERING = 1
"""The same for trials that are no longer chosen but run on."""
FAR = 4.0
"""How far above the crossing, as a factor of d, a search looks for the height of the curve."""
LOOKS = 2
"""In how many searches that differ in their seeds only: one training may have been lucky."""
NEARLY = 0.9
"""Share of that distance from which on an elder's training does as well: crossings differ by some steps."""


@dataclass(frozen=True)
class Adaptive:
    """Probe where a trial tells most per step; assumes, like bisection, that the score is monotone in d.

    The next trial is the one with the highest mutual information between its verdict and the crossing, per expected
    cost. Once the smallest d that passed is the crossing with probability `sure`, the d below it is given all its
    tries. Trials that would be next if those before them passed or failed follow in the order of how probably they are
    needed, down to `speculation`: with idle slots this is (k+1)-section.

    Whatever the belief, a search never runs more than `max_trials`: as soon as a free choice could cost more than
    bisection has left, the middle of the bracket is given all its tries.

    Attributes:
        sure: Probability at which the d below the smallest pass is verified.
        speculation: Least probability of being needed at which a trial is worth an idle slot.
        pass_cost: Expected share of its budget that a passing trial takes.
    """

    sure: float = 0.5
    speculation: float = 0.2
    pass_cost: float = 0.8

    learns: ClassVar[bool] = True

    def init(self, search: Search) -> Evidence:
        """Return the state before any observation."""
        return Evidence(search)

    def observe(self, state: Evidence, observation: Observation) -> Evidence:
        """Return the state with one more observation."""
        return state.add(observation)

    def outcome(self, state: Evidence) -> Finding:
        """Return what is known; final once the bracket is one step, or trials in error bar the way."""
        is_closed = state.obstacle is not None or climbing(state) or (state.thresholds is not None and not _open(state))
        return finding(state, ended=is_closed and not self.propose(state, 1))

    def max_trials(self, search: Search) -> int:
        """Return the baseline's trials plus (ceil(log2(n + 1)) + 5) times tries, or dims times tries if fewer.

        And what confirming takes.
        """
        return most(search, min(_allowance(search), len(search.dims) * search.num_tries))

    def matters(self, state: Evidence, trial: Trial) -> bool:
        """Return whether a trial that was begun may still tell something: its d is within the bracket."""
        if trial.d is None or state.thresholds is None or state.obstacle is not None:
            return False
        at, known = state.search.positions[trial.d], state.results.get(trial.d, {})
        low, high = state.span(state.thresholds.relative)
        if climbing(state):
            high = min(high, low + 2)
        return low < at < high and trial.eta not in known and len(known) < state.search.num_tries

    def propose(self, state: Evidence, slots: int) -> tuple[Trial, ...]:
        """Return the open baseline, then the trials most probably needed, at most `slots` in all."""
        return tuple(islice(worth(state, self._probes, _missing), slots))

    def _probes(self, state: Evidence) -> Iterator[Trial]:
        field = _open(state)
        if field is None:
            yield from _look(state)
            return
        search, known = state.search, field.known
        best = best_etas(state)
        if field.spare < 1:
            yield from _missing(state, search.dims[field.middle])
            return
        judged = known if state.thresholds else {}  # without a threshold a score is neither pass nor fail
        needed = self._needed(state, crossing(state, best), field.low, field.high, judged, field.barred, best)
        given = {x: len(etas) for x, etas in known.items()}
        for x, j in islice(needed, field.spare):
            if j not in known.get(x, ()) and given.get(x, 0) < search.num_tries:
                given[x] = given.get(x, 0) + 1
                yield search.trials_at(search.dims[x])[j]

    def _needed(
        self,
        state: Evidence,
        belief: np.ndarray,
        low: int,
        high: int,
        known: Mapping[int, frozenset[int]],
        barred: frozenset[int],
        best: np.ndarray,
    ) -> Iterator[tuple[int, int]]:
        """Yield (position, eta index) by falling probability that the trial is needed, no pair twice."""
        given: set[tuple[int, int]] = set()
        futures = [(belief, low, high, known)]
        heap = [(-1.0, 0)]  # minus the probability of each future that is still to be looked at
        while heap:
            negative, index = heapq.heappop(heap)
            belief, low, high, known = futures[index]
            choice = self._choose(state, belief, low, high, known, barred, best)
            if choice is None:
                continue
            x, j, rate = choice
            if (x, j) not in given:
                given.add((x, j))
                yield x, j
            at_most = belief[: x + 1].sum()
            passes = at_most * rate
            etas = known.get(x, frozenset()) | {j}
            if -negative * passes >= self.speculation:
                futures.append((_cut(belief, low, x), low, x, known))
                heapq.heappush(heap, (negative * passes, len(futures) - 1))
            if -negative * (1 - passes) >= self.speculation:
                if len(etas) >= state.search.num_tries:
                    futures.append((_cut(belief, x, high), x, high, known))
                else:
                    weaker = belief.copy()
                    weaker[: x + 1] *= 1 - rate
                    futures.append((weaker / weaker.sum(), low, high, {**known, x: etas}))
                heapq.heappush(heap, (negative * (1 - passes), len(futures) - 1))

    def _choose(
        self,
        state: Evidence,
        belief: np.ndarray,
        low: int,
        high: int,
        known: Mapping[int, frozenset[int]],
        barred: frozenset[int],
        best: np.ndarray,
    ) -> tuple[int, int, float] | None:
        """Return the position and eta index to try next, and how probably it passes if that d passes at all."""
        if high - low <= 1:
            return None
        first = int(best.argmax())
        tries = state.search.num_tries
        rates = np.full(high - low - 1, _rate(best, frozenset(), first, tries))
        picks: dict[int, tuple[int, float]] = {}
        for x, etas in known.items():
            if low < x < high and x not in barred:
                j = max((j for j in range(len(best)) if j not in etas), key=lambda j: best[j])
                picks[x] = (j, _rate(best, etas, j, tries))
                rates[x - low - 1] = picks[x][1]
        last = high - 1
        if belief[high] >= self.sure and last not in barred:
            x = last
        else:
            reach = belief[low + 1 : high].cumsum()
            passes = reach * rates
            told = _entropy(passes) - reach * _entropy(rates)
            told /= 1 - (1 - self.pass_cost) * passes
            for x in barred:
                if low < x < high:
                    told[x - low - 1] = -1.0
            x = low + 1 + int(told.argmax())
            if x in barred:
                return None
        j, rate = picks.get(x, (first, float(rates[x - low - 1])))
        if state.search.eta_choice == "optuna":  # at this d only: to ask at every one would take longer than it may
            etas = known.get(x, frozenset())
            j = next(j for j in state.order_at(state.search.dims[x]) if j not in etas)
            rate = _rate(best, etas, j, tries)
        return x, j, rate


@dataclass(frozen=True)
class _Field:
    """What of a search is open.

    Attributes:
        low: Position of the largest d that failed, -1 for none.
        high: Position of the smallest d that passed, n for none.
        known: By position, the indices of the etas that have a result.
        barred: Positions that all their tries left undecided, for errors; they can only be walked around.
        middle: The position that bisection would take.
        spare: Trials that may be spent before bisection must take over to keep the promised maximum.
    """

    low: int
    high: int
    known: Mapping[int, frozenset[int]]
    barred: frozenset[int]
    middle: int
    spare: int


def _open(state: Evidence) -> _Field | None:
    """Return what is open, None if the search is over: bracket closed, or errors left too little to go on with."""
    search, marks = state.search, state.thresholds
    known, tries = tried(state), state.search.num_tries
    low, high = state.span(marks.relative) if marks else (-1, len(search.dims))
    inside = range(low + 1, high)
    barred = frozenset(x for x in inside if len(known.get(x, ())) >= tries) if marks else frozenset[int]()
    free = [x for x in inside if x not in barred]
    if not free:
        return None
    middle = free[len(free) // 2]
    left = _left(state)
    still = tries - len(known.get(middle, ())) + (len(free) // 2).bit_length() * tries
    if barred and still > left:
        return None
    spare = left - (len(free).bit_length() + LINGERING) * tries
    return _Field(low, high, known, barred, middle, spare)


def _look(state: Evidence) -> Iterator[Trial]:
    """Yield one training far above the crossing, at the best eta, where this search has none and elders have few.

    Nothing else tells how high the curve rises: near the crossing a low plateau that is reached soon and a high one
    that is reached late look the same, and the interval stays open upwards. It cannot change the verdict: at a d where
    nothing was tried one of several etas may fail. It is left out where the promised maximum has no room for it.
    """
    search, marks = state.search, state.thresholds
    if marks is None or search.num_tries < 2 or _left(state) < 1:
        return
    low, high = state.span(marks.relative)
    if not low + 1 == high < len(search.dims):
        return
    far = FAR * search.dims[high]
    above = next((d for d in search.dims if d >= far), None)
    own, *others = (any(d >= far * NEARLY for d in each.results) for each in (state, *state.elders))
    if above is not None and not own and sum(others) < LOOKS:
        yield search.trials_at(above)[int(best_etas(state).argmax())]


def _left(state: Evidence) -> int:
    """Return how many subspace trials a search may still take."""
    tries = state.search.num_tries
    return _allowance(state.search) - sum(min(len(etas), tries) for etas in state.results.values())


def _allowance(search: Search) -> int:
    """Return how many subspace trials a search may take."""
    return (len(search.dims).bit_length() + EXTRA + LINGERING) * search.num_tries


def _missing(state: Evidence, d: int) -> Iterator[Trial]:
    """Yield the trials that a d is still to be given, the most promising eta first."""
    if state.search.eta_choice == "optuna":
        return state.missing_at(d)
    known, trials = state.results.get(d, {}), state.search.trials_at(d)
    order = (trials[j] for j in np.argsort(-best_etas(state), kind="stable"))
    return islice((each for each in order if each.eta not in known), max(state.search.num_tries - len(known), 0))


def _rate(best: np.ndarray, etas: frozenset[int], j: int, tries: int) -> float:
    """Return the chance that eta j passes at a d that passes, where others have failed.

    At least somewhat likely for any eta: well above the crossing most of them pass.
    """
    left = sum(best[i] for i in range(len(best)) if i not in etas)
    share = float(best[j] / left) if left > 0 else 1.0
    return 0.3 + 0.65 * share if len(etas) + 1 < tries else 0.95


def _cut(belief: np.ndarray, low: int, high: int) -> np.ndarray:
    """Restrict a belief to the crossings low + 1 .. high."""
    cut = np.zeros_like(belief)
    cut[low + 1 : high + 1] = belief[low + 1 : high + 1]
    total = cut.sum()
    if total > 0:
        return cut / total
    cut[low + 1 : high + 1] = 1 / (high - low)
    return cut


def _entropy(p: np.ndarray) -> np.ndarray:
    p = p.clip(1e-12, 1 - 1e-12)
    return -(p * np.log(p) + (1 - p) * np.log1p(-p))
