"""Many rows at once: which search each belongs to, and what each search then knows.

The same as observing them one by one, at a fraction of the time: rows come grouped by everything of their trial but
d and eta, so a trial is looked at once per group rather than once per row.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
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


Series = tuple[Trial, Sequence[tuple]]
"""One of the trials that differ in d and eta only, and their rows in the order of Brief's fields."""


def brief(observation: Observation) -> Series:
    """Reduce one observation to a series of one row."""
    trial, o = observation.trial, observation
    row = (trial.id, trial.d, trial.eta, o.status, o.score, o.chance, o.wall_s, o.num_params, o.num_scales)
    return trial, [row]


def shares(searches: Sequence[Search], series: Iterable[Series]) -> list[list[Brief]]:
    """Give each search its rows: its own trials' and the baseline's, in the order of the searches."""
    found: list[list[Brief]] = [[] for _ in searches]
    interested: dict[str | Lineage, list[int]] = {}
    for index, search in enumerate(searches):
        for key in (*search.baseline_ids, search.lineage):
            interested.setdefault(key, []).append(index)
    for trial, rows in series:
        kin = interested.get(lineage(trial), ())
        for row in map(Brief._make, rows):
            if row.d is None:
                for index in interested.get(row.trial_id, ()):
                    found[index].append(row)
                continue
            for index in kin:
                if row.d in searches[index].positions and row.eta in searches[index].etas:
                    found[index].append(row)
    return found


def evidence(search: Search, rows: Iterable[Brief]) -> Evidence:
    """Fold a search's share of the rows into what it knows."""
    baseline: dict[str, Result] = {}
    probes: dict[int, dict[float, Result]] = {}
    for row in rows:
        result = Result.reduce(row.status, row.score, row.chance)
        if row.d is None or row.eta is None:
            known = baseline.get(row.trial_id)
            baseline[row.trial_id] = known.merge(result) if known else result
        else:
            at_d = probes.setdefault(row.d, {})
            known = at_d.get(row.eta)
            at_d[row.eta] = known.merge(result) if known else result
    return replace(Evidence(search), baseline=baseline, probes=probes)
