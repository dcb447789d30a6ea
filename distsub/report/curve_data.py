"""What a figure of curves is drawn from, as a table."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from distsub.records import Observation
from distsub.results.schema import columns, method_columns

CURVE = pa.schema(
    columns(pa.string(), "what", "label", "condition_id", "seeds", "status")
    + columns(pa.float64(), "d", "eta", "score", "low", "high")
)
"""A row for each trial, and for each point of a fitted curve."""


def curve_data(observations: Sequence[Observation], d90: pa.Table | None = None) -> pa.Table:
    """Give the data of a figure, in the schema CURVE."""
    conditions = {seen.trial.condition.id for seen in observations}
    rows: list[dict[str, Any]] = [
        {
            "what": "trial",
            "label": method_columns(seen.trial.method)["method"],
            "condition_id": seen.trial.condition.id,
            "seeds": seen.trial.seeds.text,
            "status": seen.status,
            "d": seen.trial.d,
            "eta": seen.trial.eta,
            "score": seen.score,
        }
        for seen in observations
    ]
    for row in d90.to_pylist() if d90 is not None else []:
        if row["condition_id"] in conditions:
            about = {"what": "fit", "label": row["label"], "condition_id": row["condition_id"]}
            rows += [
                {**about, "d": point["d"], "score": point["middle"], "low": point["low"], "high": point["high"]}
                for point in row["fit"] or []
            ]
    return pa.Table.from_pylist(rows, schema=CURVE)
