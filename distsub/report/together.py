"""The rows and tables of several results directories, as those of one report, and where it lies."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from distsub.errors import ConfigError
from distsub.files import Files
from distsub.records import Observation
from distsub.records.labels import apart
from distsub.report.summary import Summary

_FOLDER = "report"
"""Where the page of one results directory lies in it."""


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


def place(outs: Sequence[str], to: str | None = None) -> str:
    """Say where the report of results directories is written.

    That of one is its `report`; that of several `report-with-OTHERS` in the first, which keeps its own page.

    Args:
        outs: Addresses of different directories.
        to: Where a person wants it.

    Raises:
        ConfigError: The report of several is wanted where that of one of them lies.
    """
    own = [_below(out, _FOLDER) for out in outs]
    if len(outs) == 1:
        return to or own[0]
    names = (Files.at(out).root.rpartition("/")[2] for out in outs[1:])
    several = _below(outs[0], "-".join([_FOLDER, "with", *names]))
    if to and Files.at(to).root in {Files.at(each).root for each in own}:
        raise ConfigError(
            f"--to {Files.at(to).uri} is where the report of one of these results alone lies; give another directory, "
            f"or leave --to out for {Files.at(several).uri}"
        )
    return to or several


def _below(out: str, name: str) -> str:
    """Address a folder in a results directory; options of an address stay at its end."""
    path, mark, options = out.partition("?") if "://" in out else (out, "", "")
    return f"{path.rstrip('/')}/{name}{mark}{options}"


def together(parts: Sequence[Part]) -> dict[str, Any]:
    """Give what `page.write_report` takes beside the place: a trial that several have counts once.

    Where there are several, labels and headings name the sweep, and number those of one name.
    """
    many, names = len(parts) > 1, apart({number: part.name for number, part in enumerate(parts)})
    named = [replace(part, name=names[number]) for number, part in enumerate(parts)]
    others = {
        f"{heading}, {part.name}" if many else heading: table
        for part in named
        for heading, table in part.others.items()
    }
    labelled = _labelled if many else lambda table, name: table
    return {
        "observations": list({row.trial.id: row for part in parts for row in part.observations}.values()),
        "searches": pa.concat_tables([labelled(part.summary.searches, part.name) for part in named]),
        "d90": pa.concat_tables([labelled(part.summary.d90, part.name) for part in named]),
        "adapters": pa.concat_tables([part.summary.smallest for part in parts]),
        "others": others,
        "title": ", ".join(part.name for part in named),
    }


def _labelled(table: pa.Table, name: str) -> pa.Table:
    labels = pa.array([f"{label} ({name})" for label in table["label"].to_pylist()], pa.string())
    return table.set_column(table.schema.get_field_index("label"), "label", labels)
