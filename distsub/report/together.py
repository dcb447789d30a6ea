"""The rows and tables of several results directories, as those of one report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from distsub.records import Observation
from distsub.report.summary import Summary


@dataclass(frozen=True)
class Part:
    """What one results directory holds.

    Attributes:
        name: Its sweep's.
        observations: All rows.
        summary: What was computed from them.
        others: More tables by their headings.
    """

    name: str
    observations: Sequence[Observation]
    summary: Summary
    others: Mapping[str, pa.Table]


def together(parts: Sequence[Part]) -> dict[str, Any]:
    """Give what `page.write_report` takes beside the place: a trial that several have counts once.

    Where there are several, labels and headings name the sweep.
    """
    many = len(parts) > 1
    others = {
        f"{heading}, {part.name}" if many else heading: table
        for part in parts
        for heading, table in part.others.items()
    }
    named = (lambda table, name: _labelled(table, name)) if many else (lambda table, name: table)
    return {
        "observations": list({row.trial.id: row for part in parts for row in part.observations}.values()),
        "searches": pa.concat_tables([named(part.summary.searches, part.name) for part in parts]),
        "d90": pa.concat_tables([named(part.summary.d90, part.name) for part in parts]),
        "adapters": pa.concat_tables([part.summary.smallest for part in parts]),
        "others": others,
        "title": ", ".join(dict.fromkeys(part.name for part in parts)),
    }


def _labelled(table: pa.Table, name: str) -> pa.Table:
    labels = pa.array([f"{label} ({name})" for label in table["label"].to_pylist()], pa.string())
    return table.set_column(table.schema.get_field_index("label"), "label", labels)
