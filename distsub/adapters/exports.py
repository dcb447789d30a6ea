"""Write an adapter in a format of others, and score it before and after."""

import os
from collections.abc import Sequence
from typing import Any, Literal

from distsub.adapters import exporting, exporting_peft, loading, prediction
from distsub.adapters.predictor import Predictor
from distsub.errors import ConfigError


def export(
    adapter: str | os.PathLike[str],
    to: Literal["transformers", "peft"],
    directory: str | os.PathLike[str],
    *,
    dtype: str | None = None,
    rank: int | None = None,
    drop: bool = False,
    data: str | None = None,
    text: Sequence[str] = (),
    label: str | None = None,
    base: str | None = None,
    results: str | None = None,
) -> dict[str, Any]:
    """Export an adapter, as merged weights or for PEFT, and say what was written, and its score on rows of `data`.

    `dtype` is as of `exporting.to_transformers`; `rank`, 8 by default, and `drop` as of `exporting_peft.to_peft`;
    `text` and `label` as of `prediction.read`; `base` and `results` as of `load`.

    Raises:
        ConfigError: An option is of the other format.
        DistsubError: As of `load`, `prediction.read` and the format's own function.
    """
    if to == "transformers" and (rank is not None or drop):
        raise ConfigError("--rank and --drop are of --to peft; --to transformers holds the whole update")
    if to == "peft" and dtype is not None:
        raise ConfigError("--dtype is of --to transformers; PEFT puts float32 beside the base model as it is")
    opened = loading.open_adapter(adapter, results, base)
    rows, before, scored = None, {}, 0
    if data is not None:
        predictor = Predictor(opened)
        rows = prediction.read(predictor, data, text, label)
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
