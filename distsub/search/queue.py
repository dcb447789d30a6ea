"""All searches of a sweep behind one counter: which trial next, and what each search learns from a result.

The only mutable thing in this room. A decision touches the searches that a result concerns and a heap with one
live entry per search, so its cost does not grow with their number.
"""

import heapq
from collections.abc import Hashable, Iterable, KeysView, Set
from dataclasses import replace

from distsub.errors import ConfigError
from distsub.records import Observation, Trial
from distsub.search.evidence import Evidence
from distsub.search.outcome import Finding, Outcome
from distsub.search.policies import Policy
from distsub.search.settings import SETTINGS
from distsub.search.spec import Search, all_references, by_key, eta_tries, key
from distsub.search.spending import Limit, Spending

_NOTHING: dict[str, dict[int, None]] = {}


class TrialQueue:
    """Multiplexes searches under one policy.

    Order of trials: baselines of all searches first, since each unlocks every search that shares it and shows early
    what cannot be measured. Then by rank in each search's own list, first choices of all before the second of any:
    extra etas only shorten one search while others stand idle, and a search that still waits for its baseline ranks
    lower by as much. Among equals the order of the sweep, so that answers come one by one and a sweep that is cut
    short has whole answers rather than many half-open brackets.

    A trial that several searches ask for runs once and all observe it.

    Where the policy learns, earlier seeds of a search (searches before it in the sweep that differ in the seeds only)
    share what they know with it. Until they are over it has lower priority, so that with few slots one seed is done
    after the other and each begins where the last one ended. What is known depends on the rows alone: the same rows,
    read back, give the same queue.

    Controls are single trials beside the searches, which decide nothing: they run where no search has a first choice
    left for a slot.

    A limit ends the sweep: no trial is offered that it cannot afford, and once its hours are gone nothing is wanted.
    """

    def __init__(
        self,
        searches: Iterable[Search],
        policy: Policy,
        limit: Limit | None = None,
        controls: Iterable[Trial] = (),
    ) -> None:
        """Set up the searches with nothing observed.

        Args:
            searches: What is to be measured.
            policy: How each is searched.
            limit: What all trials together may spend; None is no limit.
            controls: Trials that are wanted beside the searches.

        Raises:
            ConfigError: The same search is given twice.
        """
        self.searches = tuple(searches)
        self.policy = policy
        self._spending, self._blocked = Spending(limit), False
        seen: set[Search] = set()
        for search in self.searches:
            if search in seen:
                raise ConfigError(f"search {search.name} ({search.id}) is given twice: give each search once")
            seen.add(search)
        self._states: list[Evidence] = [Evidence(search) for search in self.searches]
        self._interested = by_key(self.searches)
        self._later: list[list[int]] = [[] for _ in self.searches]
        self._waits: list[int] = [0] * len(self.searches)  # earlier seeds that are still open
        self._over = [False] * len(self.searches)
        if policy.learns:
            alike: dict[Hashable, list[int]] = {}
            for index, search in enumerate(self.searches):
                members = alike.setdefault(same_but_seeds(search), [])
                for earlier in members[-SETTINGS.earlier :]:
                    self._later[earlier].append(index)
                self._waits[index] = min(len(members), SETTINGS.earlier)
                members.append(index)
        # How many trials each search is asked for: at first the baseline and one d. Wider only when slots are idle,
        # since with many searches the far ends of their wish lists are never reached; never narrower, since a lost
        # node must not withdraw what runs elsewhere.
        self._width = max((len(search.references) + search.num_tries for search in self.searches), default=1)
        self._stale: dict[int, None] = dict.fromkeys(range(len(self.searches)))
        self._proposed: list[tuple[Trial, ...]] = [() for _ in self.searches]
        self._controls = {trial.id: trial for trial in controls}
        self._all_controls = frozenset(self._controls)
        # trial id -> the searches that want it, in sweep order; of a control none
        self._claims: dict[str, dict[int, None]] = {trial_id: {} for trial_id in self._controls}
        # (is a probe, rank and lower priority, search, version, rank): best one first
        self._heap: list[tuple[bool, int, int, int, int]] = []
        self._version = [0] * len(self.searches)
        self._taken: set[str] = set()  # trials handed out or seen running
        self._observed: set[str] = set()

    def observe(self, observation: Observation) -> None:
        """Give a result to every search that asks for the trial; rows of other trials and known rows change nothing.

        A trial stopped because it is no longer wanted has no observation: do not report it.
        """
        self._spending.ended(observation)
        trial = observation.trial
        if trial.id in self._all_controls:
            self._observed.add(trial.id)
            if self._controls.pop(trial.id, None):
                del self._claims[trial.id]
            return
        interested = self._interested.get(key(trial.setup), ())
        if any(self.searches[index].owns(trial) for index in interested):  # not of a d that only a wider sweep asks for
            self._observed.add(trial.id)
        for index in interested:
            state = self._states[index].add(observation)
            if state is not self._states[index]:
                self._states[index] = state
                self._stale[index] = None

    def spend(self, observation: Observation) -> None:
        """Count what a row cost that no search observes, as an error that is tried again."""
        self._spending.ended(observation)

    def next(self, running: Set[str], slots: int) -> Trial | None:
        """Return the trial to start now, None if there is none, no slot is free or the limit does not allow it.

        Answers the same until the trial appears in `running` or is observed; one that leaves `running` without an
        observation is offered again.

        Args:
            running: Ids of the trials in flight, those about to be cancelled included.
            slots: How many trials may be in flight in all.
        """
        self._refresh()
        self._spending.saw(running)
        for lost in self._taken - running:
            self._taken.discard(lost)
            for index in self._claims.get(lost, ()):
                self._enter(index)
        if len(running) >= slots:
            return None
        trial = self._first(running) or self._control(running)
        while trial is None and self._width < slots:
            self._widen()
            trial = self._first(running)
        self._blocked = trial is not None and not self._spending.allows(trial)
        return None if self._blocked else trial

    def wanted(self) -> KeysView[str]:
        """Return a view of the ids worth running as of now; what runs and is not in it may be cancelled.

        Ask with `in`, once per running trial: subtracting the view from a set walks over all of it.
        """
        self._refresh()
        return _NOTHING.keys() if self._spending.is_spent else self._claims.keys()

    @property
    def finished(self) -> bool:
        """Whether no search wants another trial, or the limit allows none; of which `next` has the last word."""
        return not self.wanted() or (self._blocked and not self._spending.running)

    @property
    def is_spent(self) -> bool:
        """Whether it was the limit that ended the sweep, as far as `next` was asked."""
        return bool(self._claims) and self.finished

    def findings(self, *, spent: bool | None = None) -> tuple[Finding, ...]:
        """Return what each search knows, in the order of `searches`.

        Args:
            spent: Whether the budget is gone: what is open is then marked budget_spent. None asks the limit.
        """
        spent = self.is_spent if spent is None else spent
        findings = [self.policy.outcome(state) for state in self._states]
        if spent:
            findings = [
                replace(each, outcome=Outcome.budget_spent) if each.outcome is Outcome.open else each
                for each in findings
            ]
        return tuple(findings)

    def max_trials(self) -> int:
        """Return the number of trials that the sweep never exceeds, each shared baseline counted once."""
        probes = sum(self.policy.max_trials(search) - search.num_references for search in self.searches)
        shared = sum(number for _, number in all_references(self.searches) + eta_tries(self.searches))
        return probes + shared + len(self._all_controls)

    @property
    def num_observed(self) -> int:
        """How many of the trials that the sweep asks for have a result."""
        return len(self._observed)

    def most_left(self) -> tuple[int, int]:
        """Return how many more full fine-tunings, and how many more others, it may take at most; asks every search."""
        self._refresh()
        baselines: set[str] = set()
        unnamed: dict[Hashable, int] = {}  # full fine-tunings whose learning rate is not known yet
        untried: dict[Search, int] = {}  # searches whose etas are not known yet, and tries that were made
        probes = len(self._controls)
        for index, state in enumerate(self._states):
            if not self._proposed[index]:
                continue
            asked = state.asked
            baselines |= state.search.reference_ids - self._observed
            if state.rates is not None and state.rates.kept is None:
                unnamed[asked.reference_ids] = asked.num_baseline - len(state.rates.values)
            if state.etas is not None and state.etas.kept is None:
                untried[asked] = len(state.etas.values) - sum(1 for _ in state.missing_tries())
            known = sum(map(len, state.results.values()))
            probes += max(1, self.policy.max_trials(asked) - asked.num_references - known)
        made = {search.try_at(1.0).id: number for search, number in untried.items()}
        probes += sum(max(0, number - made[one.id]) for one, number in eta_tries(untried))
        full = len(baselines) + sum(unnamed.values())
        allowed = self._spending.trials_left
        if allowed is None:
            return full, probes
        first = min(full, allowed)
        return first, min(probes, allowed - first)

    def _first(self, running: Set[str]) -> Trial | None:
        """Return the best trial that is not running, and move the searches whose first choices are running on."""
        while self._heap:
            _, _, index, version, rank = self._heap[0]
            if version != self._version[index]:
                heapq.heappop(self._heap)
                continue
            trial = self._proposed[index][rank]
            self._taken.add(trial.id)
            if trial.id not in running:
                return trial
            self._enter(index, rank + 1)
        return None

    def _control(self, running: Set[str]) -> Trial | None:
        """Return the first control that neither has a result nor runs."""
        return next((trial for trial_id, trial in self._controls.items() if trial_id not in running), None)

    def _enter(self, index: int, rank: int = 0) -> None:
        """Put a search on the heap with its proposal of that rank, if there is one; its older entry lapses."""
        self._version[index] += 1
        if rank < len(self._proposed[index]):
            is_probe = not self._proposed[index][rank].is_reference
            order = rank + SETTINGS.patience * self._waits[index]
            heapq.heappush(self._heap, (is_probe, order, index, self._version[index], rank))

    def _widen(self) -> None:
        """Ask for twice as many trials, of the searches that may have more than they were asked for."""
        more = (index for index, trials in enumerate(self._proposed) if len(trials) == self._width)
        self._stale.update(dict.fromkeys(more))
        self._width *= 2
        self._refresh()

    def _refresh(self) -> None:
        """Ask again every search that learned something since it was last asked, once however much that was."""
        while self._stale:
            index = next(iter(self._stale))
            del self._stale[index]
            before = {trial.id for trial in self._proposed[index]}
            self._proposed[index] = self.policy.propose(self._states[index], self._width)
            after = {trial.id for trial in self._proposed[index]}
            for dropped in before - after:
                del self._claims[dropped][index]
                if not self._claims[dropped]:
                    del self._claims[dropped]
            for added in after - before:
                self._claims.setdefault(added, {})[index] = None
            self._enter(index)
            if self._later[index]:
                self._share(index, over=not after)

    def _share(self, index: int, over: bool) -> None:
        """Tell the later seeds what a search knows, and whether they still have to wait for it."""
        for later in self._later[index]:
            if over != self._over[index]:
                self._waits[later] += -1 if over else 1
                self._stale[later] = None
            state = self._states[later].learn(self._states[index])
            if state is not self._states[later]:
                self._states[later] = state
                self._stale[later] = None
        self._over[index] = over


def same_but_seeds(search: Search) -> Hashable:
    """Return all of a search but its seeds."""
    return (search.condition.id, search.reference_ids, search.dims, search.etas, search.rule, search.tries)
