"""The two tables that are computed from the rows: one row per search, and d90 per condition."""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import pyarrow as pa
from pyarrow import compute as pc

from distsub import paths
from distsub.estimate.interval import Estimate
from distsub.records import Observation, Setup, condition_labels, sign
from distsub.report.schema import D90, SEARCHES
from distsub.results import METHOD_COLUMNS, RECORD, SetupReader, Store, from_row, method_columns
from distsub.search import Evidence, Finding, Limit, Search, make_policy, share

D90_COLUMNS = (
    "task", "model", "label", "projection", "d90_text", "first_passing_d", "baseline_score", "threshold",
    "chance", "num_params", "num_params_model", "num_scales", "trials",
)  # fmt: skip
"""What `distsub run` and `distsub report` show at the end; `distsub query` has the rest."""

ADAPTERS = pa.schema(
    [
        *((name, pa.string()) for name in ("task", "model", "label")),
        ("d", pa.int64()),
        ("score", pa.float64()),
        ("threshold", pa.float64()),
        ("bytes", pa.int64()),
        ("trial_id", pa.string()),
        ("path", pa.string()),
    ]
)
"""One saved adapter that passes; bytes are those of its files."""

MEASURED = frozenset({"found", "below_range", "above_range"})
"""Outcomes of an estimate that has an interval."""

INTERVAL = ("d90", "d90_low", "d90_high")

CURVE_POINTS = 41
"""Points at which the fitted score is tabulated, evenly in log d."""

_PARAMS = ("num_params", "num_params_model")

_COMMON = [name for name in D90.names if name in SEARCHES.names]
"""What the searches of a condition have in common, and sums or lists of them replace."""


class Summary:
    """A results directory's computed tables, each made when it is first asked for."""

    def __init__(self, searches: Sequence[Search], policy: str, store: Store, limit: Limit | None = None) -> None:
        self._given = (searches, policy, limit)
        self._store = store

    @cached_property
    def _shared(self) -> list[list[Observation]]:
        return share(self._given[0], self._rows)

    @cached_property
    def _rows(self) -> list[Observation]:
        return self._store.scores()

    def unrelated(self, beside: Collection[str] = ()) -> list[tuple[Setup, int]]:
        """Count the rows that no search asks for, which no d90 is made of, by setup.

        Args:
            beside: Ids of trials that a sweep asks for beside its searches. Full fine-tunings with disabled weights
                belong to an analysis, and are left out too.
        """
        own = {id(row) for each in self._shared for row in each}  # the very objects: a trial's id is a hash
        others = (row.trial for row in self._rows if id(row) not in own)
        return list(Counter(each.setup for each in others if not each.ablation and each.id not in beside).items())

    @cached_property
    def searches(self) -> pa.Table:
        """One row per search, in the schema SEARCHES; reads a few columns only."""
        searches, policy, limit = self._given
        if limit is None:
            decide = make_policy(policy)
            found = [decide.outcome(Evidence.of(*each)) for each in zip(searches, self._shared, strict=True)]
        else:  # only a queue that has every row knows whether it ended the sweep
            found = findings(searches, policy, self._rows, limit)
        return searches_table(searches, found, self._shared)

    @property
    def texts(self) -> dict[Search, str]:
        """The estimate in words that each search has part in, "" where there is none."""
        return {
            self._given[0][index]: found.text if found.outcome.name in MEASURED else ""
            for members, found in self.estimates
            for index in members
        }

    @cached_property
    def smallest(self) -> pa.Table:
        """The smallest saved adapter that passes, for each task and model, in the schema ADAPTERS."""
        return smallest_adapters(self.searches, self._shared, self._store)

    @cached_property
    def estimates(self) -> list[tuple[list[int], Estimate]]:
        """One estimate per condition, with the positions of the searches that have part in it.

        Reads rows with their answers.
        """
        groups: dict[str, list[int]] = {}
        for index, search in enumerate(self._given[0]):
            groups.setdefault(search.condition.id, []).append(index)
        table, found = self._store.table(RECORD), []
        for members in groups.values():
            ids = dict.fromkeys(row.trial.id for index in members for row in self._shared[index])
            found.append((members, _estimate([self._given[0][i] for i in members], _observations(table, ids))))
        return found

    @cached_property
    def d90(self) -> pa.Table:
        """One row per condition, in the schema D90."""
        return d90_table(self.searches, self.estimates)


def findings(
    searches: Sequence[Search], policy: str, observations: Iterable[Observation], limit: Limit | None = None
) -> list[Finding]:
    """Fold the rows into what each search knows, in the order of the searches."""
    from distsub.search import TrialQueue

    queue = TrialQueue(searches, make_policy(policy), limit)
    for observation in observations:
        queue.observe(observation)
    queue.next(frozenset(), 1)  # closes what the limit no longer allows
    return list(queue.findings())


def searches_table(
    searches: Sequence[Search], found: Sequence[Finding], shared: Sequence[Sequence[Observation]]
) -> pa.Table:
    """Compute one row per search in the schema SEARCHES.

    Args:
        searches: The searches.
        found: What each knows.
        shared: The rows of each, from `share`.
    """
    rows, labels = [], condition_labels(search.condition for search in searches)
    for search, finding, own in zip(searches, found, shared, strict=True):
        thresholds = finding.thresholds
        subspace = [row for row in own if row.trial.d is not None]
        rows.append(
            {
                "search": search.name,
                "setup_id": search.setup.id,
                "condition_id": search.condition.id,
                "task": search.task.name,
                "model": search.model.name,
                "label": labels[search.condition],
                **{name: value for name, value in method_columns(search.method).items() if name in METHOD_COLUMNS},
                "projection_seed": search.seeds.projection,
                "head_seed": search.seeds.head,
                "data_seed": search.seeds.data,
                "outcome": finding.outcome.name,
                "first_passing_d": finding.d,
                "bracket_low": finding.bracket[0],
                "bracket_high": finding.bracket[1],
                "threshold_rule": search.rule.text(search.task.metric),
                "chance_rule": search.rule.chance,
                "baseline_score": thresholds and thresholds.full,
                "chance": thresholds and thresholds.chance,
                "threshold": thresholds and thresholds.score,
                "threshold_chance_corrected": thresholds and thresholds.chance_corrected,
                "best_score": finding.best_score,
                "trials": finding.num_trials,
                **{name: max((getattr(row, name) for row in subspace), default=0) or None for name in _PARAMS},
                "num_trained_head": max((row.num_trained_head for row in subspace if row.num_params), default=None),
                "num_scales": max((row.num_scales for row in subspace if row.num_params), default=None),
                "wall_s": sum(row.wall_s for row in own),
            }
        )
    return pa.Table.from_pylist(rows, schema=SEARCHES)


def d90_table(table: pa.Table, estimates: Sequence[tuple[list[int], Estimate]]) -> pa.Table:
    """Compute one row per condition over its seeds, in the schema D90.

    Args:
        table: The searches' rows from `searches_table`.
        estimates: From `Summary.estimates`.
    """
    searches = table.to_pylist()
    rows = []
    for members, estimate in estimates:
        found = [searches[index] for index in members]
        rows.append(
            {name: found[0][name] for name in _COMMON}
            | {
                "first_passing_d": [m["first_passing_d"] for m in found],
                "searches": len(found),
                "outcomes": list(Counter(m["outcome"] for m in found).items()),
                "trials": sum(m["trials"] for m in found),
                "wall_s": sum(m["wall_s"] for m in found),
            }
            | _columns(estimate)
        )
    return pa.Table.from_pylist(rows, schema=D90)


def smallest_adapters(table: pa.Table, shared: Sequence[Sequence[Observation]], store: Store) -> pa.Table:
    """Find the saved adapter of the smallest d that passes, for each task and model; of equals, the best score.

    An adapter passes when its trial's score reaches the threshold of its search; where that lies below what guessing
    scores, the threshold that is corrected for chance, where there is one.

    Args:
        table: The searches' rows from `searches_table`.
        shared: The rows of each search, from `share`, in the same order.
        store: Where the adapters lie.
    """
    passed: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for search, own in zip(table.to_pylist(), shared, strict=True):
        if search["threshold"] is None:
            continue
        up = sign(own[0].trial.task.metric) if own else 1.0
        guessing_passes = search["chance"] is not None and up * search["threshold"] <= up * search["chance"]
        bar = (guessing_passes and search["threshold_chance_corrected"]) or search["threshold"]
        about = {name: search[name] for name in ("task", "model", "label")} | {"threshold": bar}
        for row in own:
            if row.trial.d is not None and row.score is not None and up * row.score >= up * bar:
                found = about | {"d": row.trial.d, "score": row.score, "trial_id": row.trial.id, "up": up}
                passed.setdefault((search["task"], search["model"]), []).append(found)
    kept = set(store.files.folders(paths.ADAPTERS)) if passed else set()
    rows = []
    for candidates in passed.values():
        for row in sorted(candidates, key=lambda row: (row["d"], -row.pop("up") * row["score"], row["trial_id"])):
            folder = paths.adapter(row["trial_id"])
            sizes = store.files.sizes(folder) if row["trial_id"] in kept else {}
            if {"adapter_config.json", "adapter_model.safetensors"} <= sizes.keys():
                rows.append(row | {"bytes": sum(sizes.values()), "path": f"{store.uri.rstrip('/')}/{folder}"})
                break
    return pa.Table.from_pylist(rows, schema=ADAPTERS)


def _observations(table: pa.Table, ids: Collection[str]) -> list[Observation]:
    """Rebuild the observations of some trials, those of one estimate at a time: their arrays are large."""
    mask = pc.call_function("is_in", [table["trial_id"]], pc.SetLookupOptions(pa.array(list(ids), pa.string())))
    own = table.filter(mask)
    reader = SetupReader()  # an estimate is of values: where they lie is of no account
    return [from_row(row, reader) for row in own.to_pylist()]


ALIKE = {
    "weights_sha256": "weights",
    "dataset_sha256": "rows",
    "precision": "precision",
    "device": "kind of device",
}
"""Of where a row comes from, what the trainings of one estimate should have in common, and what to call it."""


def mixed(observations: Iterable[Observation]) -> list[str]:
    """List the ways in which the trainings of one estimate differ."""
    counts: dict[str, Counter[str]] = {key: Counter() for key in ALIKE}
    for observation in observations:
        for key, value in observation.provenance:
            if key in counts:
                counts[key][value.split(":")[0][:12]] += 1
    warnings = []
    for key, found in counts.items():
        if len(found) > 1:
            given = ", ".join(f"{value} in {number}" for value, number in sorted(found.items()))
            warnings.append(
                f"its trainings differ in {ALIKE[key]}: {given}; a part of the difference in score may be that"
            )
    return warnings


def _estimate(searches: Sequence[Search], observations: Sequence[Observation]) -> Estimate:
    """Estimate d90 with its interval from all rows of searches that differ in seeds only."""
    from distsub.estimate.d90 import fit  # brings SciPy

    found = fit(searches, observations).d_at()
    return replace(found, warnings=(*found.warnings, *mixed(observations)))


def _columns(estimate: Estimate) -> dict[str, Any]:
    fitted = estimate.curves
    assert fitted is not None, "an estimate carries its curves"
    smallest, largest = fitted.range
    dims = [smallest * (largest / smallest) ** (i / (CURVE_POINTS - 1)) for i in range(CURVE_POINTS)]
    band = fitted.band(dims)
    return {
        "d90": estimate.d,
        "d90_low": estimate.low,
        "d90_high": estimate.high,
        "d90_outcome": estimate.outcome.name,
        "d90_text": estimate.text,
        "d90_chance_corrected_text": None if fitted.rule.fraction is None else fitted.d_at(chance_corrected=True).text,
        "failed_full": fitted.failed_full,
        "failed_subspace": fitted.failed_subspace,
        "warnings": list(estimate.warnings),
        "fit": [
            {"d": d, "low": low, "middle": middle, "high": high}
            for d, (low, middle, high) in zip(dims, band, strict=bool(band))
        ],
    }
