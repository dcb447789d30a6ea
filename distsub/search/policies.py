"""Which trial is worth running next, as frozen records with pure functions; the loop stands elsewhere.

A policy folds observations into `Evidence` and says what it would run now. It never remembers what it said:
what is in flight and no longer proposed can be cancelled, whatever finished early just enters the fold.
"""

import statistics
from abc import ABC, abstractmethod
from bisect import bisect_left, bisect_right
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import ClassVar

from distsub.errors import ConfigError
from distsub.records import Subspace, Trial
from distsub.search.evidence import Evidence
from distsub.search.outcome import Finding, Outcome
from distsub.search.settings import SETTINGS
from distsub.search.spec import Search


class Policy(ABC):
    """What a search does next; stateless itself.

    Attributes:
        learns: Whether each search is told what the same search found under the seeds before its own.
    """

    learns: ClassVar[bool] = False

    @abstractmethod
    def propose(self, state: Evidence, slots: int) -> tuple[Trial, ...]:
        """Return what should be in flight if this search had `slots` slots, most valuable first.

        Trials that may already be running are among them; observed ones are not. Empty when the search is over.
        """

    @abstractmethod
    def max_trials(self, search: Search) -> int:
        """Return the number of trials that is never exceeded: the baseline is included, tries of etas are not."""

    def outcome(self, state: Evidence) -> Finding:
        """Return what is known; final once nothing is proposed."""
        return state.finding(ended=not self.propose(state, 1))


@dataclass(frozen=True)
class Grid(Policy):
    """Every d times every eta, as in the paper; assumes nothing and notices a score that is not monotone in d.

    Ways of training in layers are compared by their scores, not by d90 alone, so they run where the baseline is at
    chance too. Source: Aghajanyan et al. 2020, Sec. 3.
    """

    def propose(self, state: Evidence, slots: int) -> tuple[Trial, ...]:
        """Return the first `slots` trials without result: the baseline, then d by d."""
        method = state.search.method
        is_compared = isinstance(method, Subspace) and (method.scope == "layer" or method.span is not None)
        if state.obstacle is not None and not (is_compared and state.obstacle is Outcome.baseline_at_chance):
            return ()
        etas, tries = state.search.etas, state.search.num_tries
        dims = state.search.dims if state.has_etas else ()
        probes = (trial for d in dims for trial in state.missing_at(d, etas[:tries]))
        return tuple(islice(chain(state.missing_baseline(), state.missing_tries(), probes), slots))

    def max_trials(self, search: Search) -> int:
        """Return the baseline's trials plus dims times tries."""
        return search.num_references + len(search.dims) * search.num_tries


@dataclass(frozen=True)
class Bisection(Policy):
    """Halve the bracket on one eta; assumes that a d passes whenever a smaller one does (the score is monotone in d).

    The ends are virtual: position -1 counts as failed, position n as passed. Between them

     1. the favourite eta is trained alone: the one that passed at the smallest d, before any pass the one that was
        best most often under earlier seeds. Where it fails, the d counts as failed for it alone;
     2. once it has no d left to try, the d just below the smallest pass is given all its etas. If one passes, that is
        the favourite from then on; if all fail, the search is over.

    It goes out from the median of the earlier seeds' answers, or from where another eta's bracket was closed. Further
    slots are given what is needed next after a pass or a fail, both alike: k slots cut the bracket into k + 1 parts;
    and while no two etas have been compared at one d, the other etas of the same d. A result that comes in cuts the
    bracket anew. What is asked for follows from the rows alone, so a search that is resumed goes on as the first run.
    """

    learns = True

    def max_trials(self, search: Search) -> int:
        """Return the baseline's trials plus 3 x ceil(log2(n + 1)) x tries, or dims x tries if fewer.

        A third of it is what halving takes where every d is given all its tries. As soon as no more is left than
        that, this is done.
        """
        dims = min(SETTINGS.reach * len(search.dims).bit_length(), len(search.dims))
        return search.num_references + dims * search.num_tries

    def propose(self, state: Evidence, slots: int) -> tuple[Trial, ...]:
        """Return the open baseline, then the trials that are needed next, at most `slots` in all."""
        if state.obstacle is not None:
            return ()
        probes = self._probes(state) if state.has_etas else ()
        return tuple(islice(chain(state.missing_baseline(), state.missing_tries(), probes), slots))

    def _probes(self, state: Evidence) -> Iterator[Trial]:
        search, tries = state.search, state.search.num_tries
        low, high = state.span
        free = [x for x in range(low + 1, high) if x not in state.barred]
        if not free:
            return
        etas, most = _by_merit(state), self.max_trials(search) - len(search.references)
        spare = most - sum(map(len, state.results.values())) - len(free).bit_length() * tries
        if spare < 1:
            yield from state.missing_at(search.dims[free[len(free) // 2]], etas)
            return
        failed = max((x for x in state.positions_of(etas[0], passed=False) if x < high), default=-1)
        expected, compared = _expected(state, etas[0]), any(each.wins for each in (state, *state.earlier))
        room = max(0, spare - (high - failed).bit_length() - tries)
        parts: deque[tuple[int, int] | int] = deque([(max(low, failed), high)])
        given: set[str] = set()
        while parts and room >= 0:
            part, wanted = parts.popleft(), list[Trial]()
            if isinstance(part, int):
                wanted = list(state.missing_at(search.dims[part], etas))
            elif inside := free[bisect_right(free, part[0]) : bisect_left(free, part[1])]:
                x = next((x for x in expected if x in inside), inside[len(inside) // 2])
                parts += ((part[0], x), (x, part[1]), *(() if compared else (x,)))
                wanted = [search.trials_at(search.dims[x])[search.etas.index(etas[0])]]
            elif below := free[: bisect_left(free, part[1])]:
                wanted = list(state.missing_at(search.dims[below[-1]], etas))[:spare]
            # What is known already is here as long as there is no threshold to judge it by.
            wanted = [t for t in wanted if t.id not in given and t.eta not in state.results.get(t.d or 0, ())]
            given.update(trial.id for trial in wanted)
            room -= len(wanted)
            yield from wanted


def _by_merit(state: Evidence) -> list[float]:
    """Order the etas: by the smallest d that each passed here, then by how often it was the best, under any seeds.

    Before anything is known from the middle of the list outwards: it is meant to contain the best one.
    """
    etas, wins = state.search.etas, Counter(chain.from_iterable(each.wins for each in (state, *state.earlier)))
    smallest = {eta: min(state.positions_of(eta, passed=True), default=len(state.search.dims)) for eta in etas}
    return sorted(etas, key=lambda eta: (smallest[eta], -wins[eta], abs(2 * etas.index(eta) - len(etas) + 1)))


def _expected(state: Evidence, favourite: float) -> list[int]:
    """Return the positions to try before halving: out from where the answer is expected, one step size after another.

    That is where another eta's bracket was closed, else the median answer of the earlier seeds.
    """
    others = (state.positions_of(eta, passed=True) for eta in state.search.etas if eta != favourite)
    centre = min(chain.from_iterable(others), default=0) - 1
    if centre < 0:
        answers = [high for low, high in (each.span for each in state.earlier) if high == low + 1]
        if not answers:
            return []
        centre = statistics.median_low(answers)
    return [centre + step for size in SETTINGS.steps for step in (-size, size)]


POLICIES: dict[str, Callable[[], Policy]] = {"bisection": Bisection, "grid": Grid}
"""The policies that a sweep file may name; a new one is one more entry."""


def make_policy(name: str) -> Policy:
    """Return the policy of that name.

    Raises:
        ConfigError: There is none.
    """
    if name not in POLICIES:
        gone = " (it was removed: bisection has taken its place)" if name == "adaptive" else ""
        raise ConfigError(f"policy = {name!r} is unknown{gone}: give one of {', '.join(POLICIES)}")
    return POLICIES[name]()
