"""What other policies would have cost and found on trials that were already run."""

from collections.abc import Iterable, Sequence

import pyarrow as pa

from distsub.errors import ConfigError
from distsub.records import Observation
from distsub.runtime.simulated import ONE_SLOT, Ledger, Machines, Recorded, Source, simulate
from distsub.search import Search, TrialQueue, make_policy

REPLAY = pa.schema(
    [
        ("policy", pa.string()),
        ("search", pa.string()),
        ("outcome", pa.string()),
        ("first_passing_d", pa.int64()),
        ("bracket_low", pa.int64()),
        ("bracket_high", pa.int64()),
        ("trials", pa.int64()),
        ("steps", pa.int64()),
        ("missing", pa.int64()),
        ("wall_s", pa.float64()),
        ("busy_s", pa.float64()),
    ]
)
"""One row per policy and search, and one per policy with search "all".

Of a search: `trials` and `steps` that it observed, full fine-tuning included, shared ones counted in each. Of all: each
once, plus the steps that cancelled, crashed and preempted trials made. `missing` counts trials that were asked for and
not recorded; they count as errors, so a search with any did not get what it wanted.
"""


def replay(
    searches: Sequence[Search],
    observations: Iterable[Observation],
    policies: Sequence[str] = ("bisection", "grid"),
    machines: Machines = ONE_SLOT,
) -> pa.Table:
    """Run policies, named as in a sweep file, on recorded trials and a virtual clock; the table is `REPLAY`'s.

    Raises:
        ConfigError: A policy is unknown, or nothing is recorded of these searches.
    """
    rows = [row for row in observations if row.status != "error"]
    if not any(search.owns(row.trial) for search in searches for row in rows):
        raise ConfigError("no recorded trial belongs to these searches: give the results directory of their sweep")
    tables = []
    for name in policies:
        source = Recorded(rows)
        queue, ledger = play(searches, name, source, machines)
        tables.append(_table(name, queue, ledger, source.missing))
    return pa.concat_tables(tables)


def play(
    searches: Sequence[Search],
    policy: str,
    source: Source,
    machines: Machines = ONE_SLOT,
) -> tuple[TrialQueue, Ledger]:
    """Run one policy to its end; return what it found and what that took."""
    queue = TrialQueue(searches, make_policy(policy))
    return queue, simulate(queue, source, machines)


def _table(name: str, queue: TrialQueue, ledger: Ledger, missing: set[str]) -> pa.Table:
    records = []
    for search, finding in zip(queue.searches, queue.findings(), strict=True):
        low, high = finding.bracket
        own = [row for row in ledger.rows if search.owns(row.trial)]
        records.append(
            {
                "policy": name,
                "search": search.name,
                "outcome": finding.outcome.name,
                "first_passing_d": finding.d,
                "bracket_low": low,
                "bracket_high": high,
                "trials": sum(row.trial.id not in missing for row in own),
                "steps": sum(row.steps for row in own),
                "missing": sum(row.trial.id in missing for row in own),
                "wall_s": None,
                "busy_s": sum(row.wall_s for row in own),
            }
        )
    total = {
        "policy": name,
        "search": "all",
        "trials": len({row.trial.id for row in ledger.rows} - missing),
        "steps": round(ledger.steps),
        "missing": len(missing),
        "wall_s": ledger.wall_s,
        "busy_s": ledger.busy_s,
    }
    return pa.Table.from_pylist([*records, total], schema=REPLAY)
