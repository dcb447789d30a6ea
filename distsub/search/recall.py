"""Many rows at once: which search each belongs to, and what each search then knows.

The same as observing them one by one, at a fraction of the time: rows come grouped by their setup.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import starmap
from typing import NamedTuple

from distsub.records import Full, Observation, Setup, Status, Theta0
from distsub.search.evidence import Evidence, Result
from distsub.search.spec import Search, by_key, key


class Brief(NamedTuple):
    """What the searches need of a row, its arrays left where they are.

    Attributes:
        trial_id: Of the trial.
        d: Its subspace dimension, None for full fine-tuning.
        eta: Its relative step, None for full fine-tuning.
        status: As in the row, and so are the others.
    """

    trial_id: str
    d: int | None
    eta: float | None
    status: Status
    score: float | None
    chance: float | None
    wall_s: float
    num_params: int
    num_scales: int
    num_examples: int


COLUMNS = Brief._fields
"""The columns of a row that it is made of."""

Series = tuple[Setup, Sequence[tuple]]
"""A setup and the rows of its trials, in the order of COLUMNS."""


_reduce = lru_cache(maxsize=10_000)(Result.reduce)
"""Scores are counts over the same evaluation set: few of them differ."""


def brief(observation: Observation) -> Series:
    """Reduce one observation to a series of one row."""
    trial, o = observation.trial, observation
    row = (trial.id, trial.d, trial.eta, o.status, o.score, o.chance, o.wall_s, o.num_params, o.num_scales)
    row += (o.num_examples or len(o.predicted),)
    return trial.setup, [row]


def shares(searches: Sequence[Search], series: Iterable[Series]) -> list[list[Brief]]:
    """Give each search the rows that it owns: its own trials' and the baseline's, in the order of the searches."""
    found: list[list[Brief]] = [[] for _ in searches]
    interested = by_key(searches)
    for setup, rows in series:
        briefs = list(starmap(Brief, rows))
        for index in interested.get(key(setup), ()):
            found[index] += _own(searches[index], setup, briefs)
    return found


def _own(search: Search, setup: Setup, rows: list[Brief]) -> list[Brief]:
    """Pick the rows that a search asks for, or may, from a series that has one of its keys."""
    if isinstance(setup.method, Full | Theta0):
        if search.rate_range is not None and isinstance(setup.method, Full):
            return rows if setup.learning_rate in search.rate_range else []
        return [row for row in rows if row.trial_id in search.reference_ids]
    if search.eta_range is not None:
        return [row for row in rows if search.takes(setup.seeds, row.d, row.eta)]
    positions, etas = search.positions, search.etas
    return [row for row in rows if row.d in positions and row.eta in etas]


def evidence(search: Search, rows: Iterable[Brief]) -> Evidence:
    """Fold a search's share of the rows into what it knows."""
    baseline: dict[str, Result] = {}
    results: dict[int, dict[float, Result]] = {}
    tries: dict[float, Result] = {}
    elsewhere = search.eta_range is not None and search.seeds != search.first_seeds  # where the etas are tried
    for row in rows:
        result = _reduce(row.status, row.score, row.chance, row.num_examples)
        if row.d is None or row.eta is None:
            known: dict = baseline
            name: object = row.trial_id
        else:
            is_try = elsewhere and row.d == search.try_d and row.trial_id == search.try_at(row.eta).id
            known, name = tries if is_try else results.setdefault(row.d, {}), row.eta
        known[name] = known[name].merge(result) if name in known else result
    return Evidence(search, baseline, results, tries=tries)


def tuned(searches: Sequence[Search], observations: Sequence[Observation]) -> list[Search]:
    """Return searches with the learning rates and etas that the rows have come to, in the place of ranges."""
    if all(search.rate_range is None and search.eta_range is None for search in searches):
        return list(searches)
    own = shares(searches, map(brief, observations))
    return [evidence(search, rows).search for search, rows in zip(searches, own, strict=True)]
