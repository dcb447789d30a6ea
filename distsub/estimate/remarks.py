"""What a reader must know of the rows of an estimate, a sentence each."""

import math
from collections import Counter
from collections.abc import Sequence

from distsub.estimate.rows import Row, Rows, best_of_seeds, mean, sampling_variance
from distsub.records import sign


def remarks(rows: Rows) -> tuple[str, ...]:
    """Tell what is missing or was set aside, and where the baseline is not good enough."""
    warnings: list[str] = []
    if rows.num_seeds == 1:
        warnings.append(
            f"one seed: how much {rows.rule.name(rows.metric)} varies over seeds is not measured, the interval takes"
            " the spread seen on other tasks; run at least 3"
        )
    failed, tried = rows.failed_full
    if failed:
        warnings.append(f"{failed} of {tried} full fine-tunings failed to train and are left out")
    if rows.dropped_rates:
        names = ", ".join(f"{rate:g}" for rate in rows.dropped_rates)
        warnings.append(f"most full fine-tunings at learning rate {names} failed to train: all of them are left out")
    if rows.baseline:
        warnings += _of_baseline(rows)
    if rows.dropped:
        names = ", ".join(f"{eta:g}" for eta in rows.dropped)
        if rows.etas:
            warnings.append(f"eta {names} diverged more often than not and is no candidate")
        else:
            warnings.append(f"every subspace training diverged (eta {names}): lower the etas")
    return (*warnings, *rows.warnings)


def _of_baseline(rows: Rows) -> list[str]:
    warnings = []
    if len(best_of_seeds(rows.baseline)) == 1:
        warnings.append("one baseline seed: the spread of full fine-tuning is assumed, not measured; run at least 3")
    full, chance, up = rows.full, rows.floor, sign(rows.metric)
    if math.isinf(chance):
        return warnings
    error = math.sqrt(mean([sampling_variance(row, rows.metric) for row in rows.baseline]))
    if full <= chance:
        than = "above" if up > 0 else "below"
        warnings.append(
            f"the baseline {up * full:.3f} is not {than} chance {up * chance:.3f}: there is nothing to reach; "
            "give it more steps or rows, or other learning rates of the baseline"
        )
    elif full - chance < 2 * error:
        warnings.append(
            f"the baseline {up * full:.3f} is {'above' if up > 0 else 'below'} chance {up * chance:.3f} by less than"
            f" two standard errors ({error:.3f}):"
            " evaluate more examples or train longer"
        )
    return warnings


def falls(rows: Rows, failed: Sequence[bool]) -> tuple[str, ...]:
    """Tell where scores fall with d by more than noise explains: best of the etas, seed by seed.

    A search leaves a d once it has passed, with etas untried: it has fallen only from a score that one of its own etas
    has at the smaller d.

    Args:
        rows: From `prepare`.
        failed: Which of the subspace trainings failed to train; a d at which several did and none trained is no
            accident and counts.
    """
    worst, where = 0.0, None
    tried = Counter(row.d for row in rows.subspace)
    lost = Counter(row.d for row, has_failed in zip(rows.subspace, failed, strict=True) if has_failed)
    trained = [
        row
        for row, has_failed in zip(rows.subspace, failed, strict=True)
        if not has_failed or 1 < lost[row.d] == tried[row.d]
    ]
    arms = {(row.seeds, row.d, row.arm) for row in rows.subspace}
    for seeds in dict.fromkeys(row.seeds for row in trained):
        best: dict[float, Row] = {}
        for row in trained:
            if row.seeds == seeds:
                best[row.d or 0] = max(best.get(row.d or 0, row), row, key=lambda r: r.score or 0.0)
        top: Row | None = None
        for d in sorted(best):
            row = best[d]
            if top is not None and (seeds, row.d, top.arm) in arms:
                # Cautious: training noise taken as large as that of the evaluation set, and no pairing.
                spread = math.sqrt(2 * (sampling_variance(top, rows.metric) + sampling_variance(row, rows.metric)))
                if not spread:
                    continue
                z = ((top.score or 0.0) - (row.score or 0.0)) / spread
                worst, where = max((worst, where), (z, (top.d, d)), key=lambda pair: pair[0])
            if top is None or (row.score or 0.0) > (top.score or 0.0):
                top = row
    if where is None or worst < 3.5:
        return ()
    return (f"not monotone: the score falls from d = {where[0]:g} to d = {where[1]:g} by more than noise explains",)
