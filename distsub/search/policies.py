"""Which trial is worth running next, as frozen records with pure functions; the loop stands elsewhere.

A policy folds observations into `Evidence` and says what it would run now. It never remembers what it said:
what is in flight and no longer proposed can be cancelled, whatever finished early just enters the fold.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

from distsub.errors import ConfigError
from distsub.search.adaptive import Adaptive
from distsub.search.confirm import finding, most, worth
from distsub.search.evidence import Evidence
from distsub.search.outcome import Finding
from distsub.search.spec import Search
from distsub.trial import Observation, Trial


class Policy(Protocol):
    """What a search does next; stateless itself.

    One that also sets `learns = True` has each search told what the same search found under the seeds before its own.
    One that also has `matters(state, trial)` lets trials run on that it would not begin any more: at most as many as
    a d has tries, for which its `max_trials` must have room.
    """

    def init(self, search: Search) -> Evidence:
        """Return the state before any observation."""
        ...

    def propose(self, state: Evidence, slots: int) -> tuple[Trial, ...]:
        """Return what should be in flight if this search had `slots` slots, most valuable first.

        Trials that may already be running are among them; observed ones are not. Empty when the search is over.
        """
        ...

    def observe(self, state: Evidence, observation: Observation) -> Evidence:
        """Return the state with one more observation, in any order; the same object when it says nothing new."""
        ...

    def outcome(self, state: Evidence) -> Finding:
        """Return what is known; running exactly while there is something to propose."""
        ...

    def max_trials(self, search: Search) -> int:
        """Return the number of trials, baseline included, that is never exceeded."""
        ...


@dataclass(frozen=True)
class Grid:
    """Every d times every eta, as in the paper; assumes nothing and notices a score that is not monotone in d.

    d90 is the smallest d that passes, provided that no larger one fails. Where a d is given fewer etas, and Optuna says
    which, one d comes after the other, since each is to learn from those before it. Ways of training in layers are
    compared by their scores, not by d90 alone, so they run where the baseline is at chance too.
    Source: Aghajanyan et al. 2020, Sec. 3.
    """

    def init(self, search: Search) -> Evidence:
        """Return the state before any observation."""
        return Evidence(search)

    def propose(self, state: Evidence, slots: int) -> tuple[Trial, ...]:
        """Return the first `slots` trials without result: the baseline, then d by d."""
        compared = state.search.method.variant is not None
        return tuple(islice(worth(state, self._probes, at_chance=compared), slots))

    def observe(self, state: Evidence, observation: Observation) -> Evidence:
        """Return the state with one more observation."""
        return state.add(observation)

    def outcome(self, state: Evidence) -> Finding:
        """Return what is known; final once every trial has a result."""
        return finding(state, ended=not self.propose(state, 1))

    def max_trials(self, search: Search) -> int:
        """Return the baseline's trials plus dims times tries, and what confirming takes."""
        return most(search, len(search.dims) * search.num_tries)

    def _probes(self, state: Evidence) -> Iterator[Trial]:
        one_by_one = state.search.eta_choice == "optuna" and state.search.num_tries < len(state.search.etas)
        for d in state.search.dims:
            missing = tuple(state.missing_at(d))
            yield from missing
            if missing and one_by_one:
                return


@dataclass(frozen=True)
class Bisection:
    """Halve the bracket; assumes that a d passes whenever a smaller one does (the score is monotone in d).

    Where that fails the answer is one of several crossings and nothing here can tell; only rows from elsewhere
    (a grid run in the same results) can reveal it, and then the outcome is not_monotone.

    The ends are virtual: position -1 counts as failed, position n as passed, neither is ever run. So n + 1
    gaps are told apart by at most ceil(log2(n + 1)) values of d. A d passes at its first passing eta and fails
    after all its tries. With more slots than tries the rest stay idle: it does not speculate.
    """

    def init(self, search: Search) -> Evidence:
        """Return the state before any observation."""
        return Evidence(search)

    def propose(self, state: Evidence, slots: int) -> tuple[Trial, ...]:
        """Return the open baseline, then the open etas of the d that is probed now, at most `slots` in all.

        The first d does not depend on the threshold, so slots that the baseline leaves free start on it.
        """
        return tuple(islice(worth(state, self._probes), slots))

    def observe(self, state: Evidence, observation: Observation) -> Evidence:
        """Return the state with one more observation."""
        return state.add(observation)

    def outcome(self, state: Evidence) -> Finding:
        """Return what is known; final once the bracket is one step, or a trial in error bars the way."""
        return finding(state, ended=not self.propose(state, 1))

    def max_trials(self, search: Search) -> int:
        """Return the baseline's trials plus ceil(log2(n + 1)) times tries, and what confirming takes."""
        return most(search, len(search.dims).bit_length() * search.num_tries)

    def _probes(self, state: Evidence) -> Iterator[Trial]:
        position = self._probe(state)
        if position is not None:
            yield from state.missing_at(state.search.dims[position])

    def _probe(self, state: Evidence) -> int | None:
        """Return the position to decide next, None when there is none.

        Walks the fixed tree of midpoints instead of halving what the evidence leaves open: rows that happen to
        be known shorten the walk but do not divert it, so a resumed search asks for the trials of the first run.
        """
        low, high = -1, len(state.search.dims)
        if state.thresholds is None:
            return (low + high) // 2
        failed, passed = state.span(state.thresholds.relative)
        while high - low > 1:
            middle = (low + high) // 2
            if middle <= failed:
                low = middle
            elif middle >= passed:
                high = middle
            else:
                return middle
        return None


POLICIES: dict[str, Callable[[], Policy]] = {"adaptive": Adaptive, "bisection": Bisection, "grid": Grid}
"""The policies that a sweep file may name; a new one is one more entry."""


def make_policy(name: str) -> Policy:
    """Return the policy of that name.

    Raises:
        ConfigError: There is none.
    """
    if name not in POLICIES:
        raise ConfigError(f"policy = {name!r} is unknown: give one of {', '.join(POLICIES)}")
    return POLICIES[name]()
