"""Many rows at once: which search each belongs to, and what each search then knows.

The same as observing them one by one, at a fraction of the time: rows come grouped by everything of their trial but
d and eta, so a trial is looked at once per group rather than once per row.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
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
    confirms: str | None = None


COLUMNS = Brief._fields[:-1]
"""Those of Brief that a row has."""

Series = tuple[Trial, Sequence[tuple]]
"""One of the trials that differ in d and eta only, and their rows in the order of COLUMNS."""


def brief(observation: Observation) -> Series:
    """Reduce one observation to a series of one row."""
    trial, o = observation.trial, observation
    row = (trial.id, trial.d, trial.eta, o.status, o.score, o.chance, o.wall_s, o.num_params, o.num_scales)
    return trial, [row]


def shares(searches: Sequence[Search], series: Iterable[Series]) -> list[list[Brief]]:
    """Give each search the rows that it owns: its own trials' and the baseline's, in the order of the searches."""
    found: list[list[Brief]] = [[] for _ in searches]
    interested: dict[str | Lineage, list[int]] = {}
    for index, search in enumerate(searches):
        for key in (*search.baseline_ids, search.lineage):
            interested.setdefault(key, []).append(index)
    for trial, rows in series:
        original = confirmed_by(trial)  # follows from the seeds, which all rows of a series share
        for kin in filter(None, (trial, original)):
            again = kin is original
            alike = interested.get(lineage(kin), [])
            for values in rows:
                row = Brief(*values)
                name = "" if row.d is not None else replace(kin, eta=row.eta).id if again else row.trial_id
                row = row._replace(confirms=name) if again else row
                for index in interested.get(name, []) if name else alike:
                    search = searches[index]
                    # One that confirms takes fresh seeds for a confirmation and for nothing else.
                    if (original is None or search.confirm == again) and _asks(search, kin, row):
                        found[index].append(row)
    return found


def _asks(search: Search, kin: Trial, row: Brief) -> bool:
    """Tell whether a search of the row's lineage or baseline asks for it, as `Search.owns` does."""
    if row.d is None:
        return row.confirms is None or len(search.baseline_groups[kin.seeds]) > 1
    return row.d in search.positions and row.eta in search.etas and (row.confirms is None or search.num_tries > 1)


def evidence(search: Search, rows: Iterable[Brief]) -> Evidence:
    """Fold a search's share of the rows into what it knows."""
    baselines: tuple[dict[str, Result], dict[str, Result]] = ({}, {})
    probes: tuple[dict[int, dict[float, Result]], dict[int, dict[float, Result]]] = ({}, {})
    for row in rows:
        again = row.confirms is not None
        result = Result.reduce(row.status, row.score, row.chance)
        if row.d is None or row.eta is None:
            known: dict = baselines[again]
            key: object = row.confirms or row.trial_id
        else:
            known, key = probes[again].setdefault(row.d, {}), row.eta
        known[key] = known[key].merge(result) if key in known else result
    return Evidence(search, baselines[0], probes[0], (), baselines[1], probes[1])
