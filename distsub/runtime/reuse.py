"""Take from other results what a sweep would train again: the rows of its trials, and their adapters."""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa

from distsub import paths
from distsub.config.sweep import Sweep
from distsub.errors import OutputError, first_line
from distsub.records import TRUST, Trial, is_final
from distsub.results import Store
from distsub.results.compact import write_parts
from distsub.results.schema import setup_reader
from distsub.search.spec import by_key, key

_CONNECTIONS = 16


def take(sweep: Sweep, store: Store, others: Sequence[Store], adapters: bool = True) -> dict[str, int]:
    """Copy the rows that a sweep may ask for and does not have: of trainings that came to their end.

    A trial is told by all that decides its outcome, content of data and model included, so a row of the same id is the
    row that the sweep would make. Of several results that have a trial the first counts. The rows are written last: a
    process that finds one finds its adapter.

    Returns:
        How many came from each.

    Raises:
        OutputError: One cannot be read, or the store not be written.
    """
    if not others:
        return {}
    asked = _asked(sweep)
    taken: dict[str, int] = {}
    known = store.trial_ids(set(filter(is_final, TRUST)))
    for other in others:
        table, setup_of = other.table(), setup_reader(other.places)
        columns = (table[name].to_pylist() for name in ("trial_id", "status", "setup", "d", "eta"))
        wanted = [
            is_final(status) and trial_id not in known and asked(Trial(setup_of(text), d, eta))
            for trial_id, status, text, d, eta in zip(*columns, strict=True)
        ]
        found = table.filter(pa.array(wanted, pa.bool_()))
        ids = found["trial_id"].to_pylist()
        try:
            if adapters:
                _copy_adapters(other, store, ids)
            if ids:
                write_parts(store, found)
        except (OSError, pa.ArrowException) as error:
            raise OutputError(f"cannot copy rows from {other.uri} to {store.uri} ({first_line(error)})") from error
        known.update(ids)
        taken[other.uri] = len(ids)
    return taken


def _asked(sweep: Sweep) -> Callable[[Trial], bool]:
    """Give what tells whether a sweep may ask for a trial, in the time of a look into a dictionary for most."""
    controls = {trial.id for trial in sweep.controls()}
    searches = sweep.searches()
    interested = by_key(searches)

    def asked(trial: Trial) -> bool:
        return trial.id in controls or any(searches[i].owns(trial) for i in interested.get(key(trial.setup), ()))

    return asked


def _copy_adapters(other: Store, store: Store, ids: Iterable[str]) -> None:
    there, here = set(other.files.folders(paths.ADAPTERS)), set(store.files.folders(paths.ADAPTERS))

    def copy(trial_id: str) -> None:
        folder = paths.adapter(trial_id)
        store.files.make(folder)
        for name in other.files.names(folder):
            store.files.put(f"{folder}/{name}", other.files.read(f"{folder}/{name}"))

    with ThreadPoolExecutor(_CONNECTIONS) as pool:
        list(pool.map(copy, [trial_id for trial_id in ids if trial_id in there - here]))
