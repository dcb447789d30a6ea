"""Many rows at once: which search each belongs to, and what each search then knows.

The same as observing them one by one, at a fraction of the time: rows come grouped by everything of their trial but
d and eta, so a trial is looked at once per group rather than once per row.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import starmap
from typing import NamedTuple

from distsub.search.evidence import Evidence, Result
from distsub.search.spec import Lineage, Search, confirmed_by, lineage
from distsub.trial import Observation, Status, Trial


class Brief(NamedTuple):
    """What the searches need of a row, its arrays left where they are.

    Attributes:
        trial_id: Of the trial.
        d: Its subspace dimension, None for full fine-tuning.
        eta: Its relative step, None for full fine-tuning.
        status: As in the row, and so are the others.
        confirms: Of a confirmation the full fine-tuning that it confirms, "" when it confirms a subspace trial; None
            of any other trial. No column of a row.
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
    goal: float | None = None
    confirms: str | None = None


COLUMNS = Brief._fields[:-1]
"""Those of Brief that a row has."""

Series = tuple[Trial, Sequence[tuple]]
"""A trial, of which d and eta do not count, and the rows of all that differ in them only, in the order of COLUMNS."""


_reduce = lru_cache(maxsize=10_000)(Result.reduce)
"""Scores are counts over the same evaluation set: few of them differ."""


def brief(observation: Observation) -> Series:
    """Reduce one observation to a series of one row."""
    trial, o = observation.trial, observation
    row = (trial.id, trial.d, trial.eta, o.status, o.score, o.chance, o.wall_s, o.num_params, o.num_scales, o.goal)
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
        original = confirmed_by(trial)  # follows from the seeds, which all rows of a series share
        for kin in filter(None, (trial, original)):
            again = kin is original
            if probes:
                told = [row._replace(confirms="") for row in probes] if again else probes
                for index in interested.get(lineage(kin), []):
                    search = searches[index]
                    if _listens(search, original, again) and (not again or search.num_tries > 1):
                        positions, etas = search.positions, search.etas
                        found[index] += [row for row in told if row.d in positions and row.eta in etas]
            for row in full:
                name = replace(kin, eta=row.eta).id if again else row.trial_id
                for index in interested.get(name, []):
                    search = searches[index]
                    if _listens(search, original, again) and (not again or len(search.baseline_groups[kin.seeds]) > 1):
                        found[index].append(row._replace(confirms=name) if again else row)
    return found


def _listens(search: Search, original: Trial | None, again: bool) -> bool:
    """Tell whether a search takes rows as they are, or again as confirmations of what they confirm if they do."""
    # One that confirms takes fresh seeds for a confirmation and for nothing else.
    return original is None or search.confirm == again


def evidence(search: Search, rows: Iterable[Brief]) -> Evidence:
    """Fold a search's share of the rows into what it knows."""
    baselines: tuple[dict[str, Result], dict[str, Result]] = ({}, {})
    probes: tuple[dict[int, dict[float, Result]], dict[int, dict[float, Result]]] = ({}, {})
    for row in rows:
        again = row.confirms is not None
        result = _reduce(row.status, row.score, row.chance, row.goal)
        if row.d is None or row.eta is None:
            known: dict = baselines[again]
            key: object = row.confirms or row.trial_id
        else:
            known, key = probes[again].setdefault(row.d, {}), row.eta
        known[key] = known[key].merge(result) if key in known else result
    return Evidence(search, baselines[0], probes[0], (), baselines[1], probes[1])
