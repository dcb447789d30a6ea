"""Write an adapter in a format of others, and score it before and after."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from distsub.adapters import exporting, exporting_peft, loading, prediction
from distsub.adapters.predictor import Predictor
from distsub.errors import ConfigError


@dataclass(frozen=True)
class Data:
    """Rows to score on.

    Attributes:
        source: A file, as `prediction.read` takes it.
        text: As of `prediction.read`.
        label: As of `prediction.read`.
    """

    source: str
    text: Sequence[str] = ()
    label: str | None = None


def export(
    adapter: str | os.PathLike[str],
    to: Literal["transformers", "peft"],
    directory: str | os.PathLike[str],
    *,
    dtype: str | None = None,
    rank: int | None = None,
    drop: bool = False,
    data: Data | None = None,
    base: str | None = None,
    results: str | None = None,
) -> dict[str, Any]:
    """Export an adapter, and say what was written.

    Args:
        adapter: A directory or an address, as `load` takes it.
        to: "transformers" (merged weights) or "peft".
        directory: Where to; it must not be there, or be empty.
        dtype: As of `exporting.to_transformers`.
        rank: As of `exporting_peft.to_peft`; None is 8.
        drop: As of `exporting_peft.to_peft`.
        data: Rows on which the adapter and what was written of it are scored.
        base: As of `load`.
        results: As of `load`.

    Raises:
        ConfigError: An option is of the other format.
        DistsubError: As of `load`, `prediction.read` and the format's own function.
    """
    if to == "transformers" and (rank is not None or drop):
        raise ConfigError("--rank and --drop are of --to peft; --to transformers holds the whole update")
    if to == "peft" and dtype is not None:
        raise ConfigError("--dtype is of --to transformers; PEFT puts float32 beside the base model as it is")
    opened = loading.open_adapter(adapter, results, base)
    before: dict[str, float] = {}
    rows, scored = None, 0
    if data is not None:
        predictor = Predictor(opened)
        rows = prediction.read(predictor, data.source, data.text, data.label)
        before, scored = prediction.score(predictor, rows)
        del predictor  # of a large model one copy is enough
    if to == "transformers":
        found = exporting.to_transformers(opened, directory, dtype)
    else:
        found = exporting_peft.to_peft(opened, directory, 8 if rank is None else rank, drop)
    if rows is None:
        return found.facts
    after, _ = prediction.score(Predictor(found.opened), rows)
    metric = next(iter(before))
    return found.facts | {f"{metric}_before": before[metric], f"{metric}_after": after[metric], "scored_rows": scored}
