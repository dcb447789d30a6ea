"""Many rows at once: which search each belongs to, and what each search then knows.

The same as observing them one by one, at a fraction of the time: rows come grouped by everything of their trial but
d and eta, so a trial is looked at once per group rather than once per row.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import starmap
from typing import NamedTuple

from distsub.search.evidence import Evidence, Result
from distsub.search.spec import Lineage, Search, lineage
from distsub.trial import Observation, Status, Trial


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

Series = tuple[Trial, Sequence[tuple]]
"""A trial, of which d and eta do not count, and the rows of all that differ in them only, in the order of COLUMNS."""


_reduce = lru_cache(maxsize=10_000)(Result.reduce)
"""Scores are counts over the same evaluation set: few of them differ."""


def brief(observation: Observation) -> Series:
    """Reduce one observation to a series of one row."""
    trial, o = observation.trial, observation
    row = (trial.id, trial.d, trial.eta, o.status, o.score, o.chance, o.wall_s, o.num_params, o.num_scales)
    row += (o.num_examples or len(o.predicted),)
    return trial, [row]


def shares(searches: Sequence[Search], series: Iterable[Series]) -> list[list[Brief]]:
    """Give each search the rows that it owns: its own trials' and the baseline's, in the order of the searches."""
    found: list[list[Brief]] = [[] for _ in searches]
    interested: dict[str | Lineage, list[int]] = {}
    for index, search in enumerate(searches):
        for key in (*search.baseline_ids, search.lineage):
            interested.setdefault(key, []).append(index)
    for trial, rows in series:
        briefs = list(starmap(Brief, rows))
        probes, full = [row for row in briefs if row.d is not None], [row for row in briefs if row.d is None]
        for index in interested.get(lineage(trial), []) if probes else ():
            positions, etas = searches[index].positions, searches[index].etas
            found[index] += [row for row in probes if row.d in positions and row.eta in etas]
        for row in full:
            for index in interested.get(row.trial_id, []):
                found[index].append(row)
    return found


def evidence(search: Search, rows: Iterable[Brief]) -> Evidence:
    """Fold a search's share of the rows into what it knows."""
    baseline: dict[str, Result] = {}
    results: dict[int, dict[float, Result]] = {}
    for row in rows:
        result = _reduce(row.status, row.score, row.chance, row.num_examples)
        if row.d is None or row.eta is None:
            known: dict = baseline
            key: object = row.trial_id
        else:
            known, key = results.setdefault(row.d, {}), row.eta
        known[key] = known[key].merge(result) if key in known else result
    return Evidence(search, baseline, results)
