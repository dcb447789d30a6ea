"""What is trained again before a d90 is believed, shared by all policies.

The best of k scores is a lucky one: k etas at a d, k learning rates of full fine-tuning. So where there was a choice
its winner is trained once more under head and data seeds that no search uses, and that score decides alone. The
projection stays, since d90 is of this projection.

 1. The baseline: per seed the best learning rate again; the threshold is made from the mean of the second scores.
 2. The deciding pass. A policy narrows its bracket by passes as they come, provisionally. Once it is closed, the best
    eta of the smallest d that passed is confirmed. If that falls short, this eta has failed at this d: the other
    etas that it is given have their turn, and the next that passes is confirmed. Without one, or when `CHANCES` second
    scores fell short, the d has failed, and the next larger is tried.
 3. `CLIMB` steps of the grid above the first d that was confirmed or not, the search ends as not_confirmed.

From the first confirmation on the policy is not asked any more, so its own maximum of trials stays what it is.
"""

from collections.abc import Callable, Iterator

from distsub.search.evidence import CHANCES, Evidence
from distsub.search.outcome import Finding, Outcome
from distsub.search.spec import Search
from distsub.trial import Trial

CLIMB = 4
"""Steps of the grid from the first d that was to be confirmed to the last. Luck is worth one or two of 16%."""

Probes = Callable[[Evidence], Iterator[Trial]]
"""What a policy would run to close the bracket, most valuable first; nothing when it is closed."""

Missing = Callable[[Evidence, int], Iterator[Trial]]
"""The trials that a d is still to be given."""


def worth(
    state: Evidence, probes: Probes, missing: Missing = Evidence.missing_at, at_chance: bool = False
) -> Iterator[Trial]:
    """Yield the trials worth running, most valuable first: the baseline, the policy's own, then confirmations.

    Args:
        state: What is known.
        probes: What the policy would run.
        missing: In what order it would give a d the etas that are still to be tried there.
        at_chance: Run the policy's own, for their scores, also where the baseline is not above chance.
    """
    if state.obstacle is not None:
        if at_chance and state.obstacle is Outcome.baseline_at_chance:
            yield from probes(state)
        return
    yield from state.missing_baseline()
    if not climbing(state):
        first = True
        for trial in probes(state):
            first = False
            yield trial
        if not first:
            return
    yield from _confirmations(state, missing)


def finding(state: Evidence, ended: bool) -> Finding:
    """Sum up a search; `ended` tells that there is nothing more to run."""
    return state.finding(ended, unconfirmed=ended and _is_in_doubt(state))


def most(search: Search, probes: int) -> int:
    """Return the number of trials that is never exceeded, baseline included; the policy's own never exceed `probes`."""
    tries, dims = search.num_tries, min(CLIMB + 1, len(search.dims))
    if not _applies(search):
        return len(search.baseline_runs) + probes
    climbed = min(probes + dims * tries - 1, len(search.dims) * tries)
    return len(search.baseline_runs) + climbed + dims * CHANCES


def climbing(state: Evidence) -> bool:
    """Return whether what is left is to confirm, step by step upwards from the d that was confirmed first."""
    if not state.checks or state.thresholds is None:
        return False
    # Of rows read back some may be lost: as long as the d below is not known to fail, the policy has the word.
    low, _ = state.span(state.thresholds.relative)
    return low >= _start(state) - 1


def _applies(search: Search) -> bool:
    return search.confirm and search.num_tries > 1


def _start(state: Evidence) -> int:
    return min(state.search.positions[d] for d in state.checks)


def _candidate(state: Evidence) -> int | None:
    """Return the position that is d90 if it passes under fresh seeds; None while and where there is none."""
    marks, search = state.thresholds, state.search
    if marks is None or not _applies(search):
        return None
    low, high = state.span(marks.relative)
    if low > high:  # a larger d fell under fresh seeds, and what was seen of this one is lost
        return high if state.checks and not _is_confirmed(state, high, marks.relative) else None
    return low + 1 if low + 1 < len(search.dims) and (climbing(state) or high == low + 1) else None


def _is_confirmed(state: Evidence, at: int, threshold: float) -> bool:
    again = state.checks.get(state.search.dims[at], {})
    return any(state.reached(each, threshold) for each in again.values())


def _confirmations(state: Evidence, missing: Missing) -> Iterator[Trial]:
    """Yield what is to be run at the d in question: the confirmation of its best eta, or the etas not tried."""
    at, marks, search = _candidate(state), state.thresholds, state.search
    if at is None or marks is None or _is_in_doubt(state):
        return
    d = search.dims[at]
    again = state.checks.get(d, {})
    passing = {eta: each for eta, each in state.results.get(d, {}).items() if state.reached(each, marks.relative)}
    if not passing:
        yield from missing(state, d)
    elif again.keys().isdisjoint(passing) and len(again) < CHANCES:
        best = max(passing, key=lambda eta: (passing[eta].score or 0.0, -search.etas.index(eta)))
        yield search.confirmation(search.trials_at(d)[search.etas.index(best)])


def _is_in_doubt(state: Evidence) -> bool:
    """Return whether the d in question lies too far above the first that was to be confirmed."""
    at, marks = _candidate(state), state.thresholds
    if at is None or marks is None or not state.checks or at - _start(state) <= CLIMB:
        return False
    return not _is_confirmed(state, at, marks.relative)
