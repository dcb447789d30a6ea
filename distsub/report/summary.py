"""The two tables that are computed from the rows: one row per search, and d90 per condition."""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from typing import Any

import pyarrow as pa
from pyarrow import compute as pc

from distsub import paths
from distsub.estimate.interval import Estimate
from distsub.records import Observation, Setup, condition_labels, sign
from distsub.report.schema import D90, SEARCHES
from distsub.results import METHOD_COLUMNS, RECORD, Store, from_row, method_columns, setup_reader
from distsub.results.rows import scores
from distsub.results.schema import columns
from distsub.search import Evidence, Finding, Limit, Search, TrialQueue, make_policy, share

D90_COLUMNS = (
    "task", "model", "label", "projection", "d90_text", "first_passing_d", "baseline_score", "threshold",
    "chance", "num_params", "num_params_model", "num_scales", "trials",
)  # fmt: skip
"""What `distsub run` and `distsub report` show at the end; `distsub query` has the rest."""

ADAPTERS = pa.schema(
    [
        *columns(pa.string(), "task", "model", "label"),
        ("d", pa.int64()),
        *columns(pa.float64(), "score", "threshold"),
        ("bytes", pa.int64()),
        *columns(pa.string(), "trial_id", "path"),
    ]
)
"""One saved adapter that passes; bytes are those of its files."""

MEASURED = frozenset({"found", "below_range", "above_range"})
"""Outcomes of an estimate that has an interval."""

INTERVAL = ("d90", "d90_low", "d90_high")

_CURVE_POINTS = 41
"""Points at which the fitted score is tabulated, evenly in log d."""

_PARAMS = ("num_params", "num_params_model")

_COMMON = [name for name in D90.names if name in SEARCHES.names]
"""What the searches of a condition have in common, and sums or lists of them replace."""


class Summary:
    """A results directory's computed tables, each made when it is first asked for."""

    def __init__(self, searches: Sequence[Search], policy: str, store: Store, limit: Limit | None = None) -> None:
        self._searches, self._policy, self._limit, self._store = searches, policy, limit, store

    @cached_property
    def _rows(self) -> list[Observation]:
        return self._store.scores()

    @cached_property
    def _shared(self) -> list[list[Observation]]:
        """The rows of each search."""
        return share(self._searches, self._rows)

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
        policy = make_policy(self._policy)
        if self._limit is None:
            found = [policy.outcome(Evidence.of(*each)) for each in zip(self._searches, self._shared, strict=True)]
        else:  # only a queue that has every row knows whether it ended the sweep
            queue = TrialQueue(self._searches, policy, self._limit)
            for row in self._rows:
                queue.observe(row)
            queue.next(frozenset(), 1)  # closes what the limit no longer allows
            found = list(queue.findings())
        labels = condition_labels(search.condition for search in self._searches)
        rows = [
            _search_row(search, finding, own) | {"label": labels[search.condition]}
            for search, finding, own in zip(self._searches, found, self._shared, strict=True)
        ]
        return pa.Table.from_pylist(rows, schema=SEARCHES)

    @property
    def texts(self) -> dict[Search, str]:
        """The estimate in words that each search has part in, "" where there is none."""
        return {
            self._searches[index]: found.text if found.outcome.name in MEASURED else ""
            for members, found in self.estimates
            for index in members
        }

    @cached_property
    def smallest(self) -> pa.Table:
        """The saved adapter of the smallest d that passes, for each task and model, in the schema ADAPTERS.

        Of equals, the best score. An adapter passes when its trial's score reaches the threshold of its search; where
        that lies below what guessing scores, the threshold that is corrected for chance, where there is one.
        """
        files, passing = self._store.files, _passing(self.searches, self._shared)
        kept, rows = None, []
        for candidates in passing.values():
            for row in sorted(candidates, key=lambda row: (row["d"], -row.pop("up") * row["score"], row["trial_id"])):
                folder = paths.adapter(row["trial_id"])
                sizes = files.sizes(folder) if kept is None or row["trial_id"] in kept else {}
                if {"adapter_config.json", "adapter_model.safetensors"} <= sizes.keys():
                    place = f"{self._store.uri.rstrip('/')}/{folder}"
                    rows.append(row | {"bytes": sum(sizes.values()), "path": place})
                    break
                if kept is None:  # the first that was looked for is missing, and more may be: which are there?
                    kept = set(files.folders(paths.ADAPTERS))
        return pa.Table.from_pylist(rows, schema=ADAPTERS)

    @cached_property
    def estimates(self) -> list[tuple[list[int], Estimate]]:
        """One estimate per condition, with the positions of the searches that have part in it.

        Reads rows with their answers.
        """
        groups: dict[str, list[int]] = {}
        for index, search in enumerate(self._searches):
            groups.setdefault(search.condition.id, []).append(index)
        table, found = self._store.table(RECORD), []
        if "_rows" not in vars(self):
            self._rows = scores(table, self._store.places)  # once read is enough
        for members in groups.values():
            ids = dict.fromkeys(row.trial.id for index in members for row in self._shared[index])
            found.append((members, _estimate([self._searches[i] for i in members], _observations(table, ids))))
        return found

    @cached_property
    def d90(self) -> pa.Table:
        """One row per condition, in the schema D90."""
        estimates, rows = self.estimates, []  # first: they read what searches need too
        searches = self.searches.to_pylist()
        for members, estimate in estimates:
            own = [searches[index] for index in members]
            seen = {row.trial.id: row for index in members for row in self._shared[index]}  # seeds share a baseline
            rows.append(
                {name: own[0][name] for name in _COMMON}
                | {
                    "first_passing_d": [row["first_passing_d"] for row in own],
                    "searches": len(own),
                    "outcomes": list(Counter(row["outcome"] for row in own).items()),
                    "trials": len(seen),
                    "wall_s": sum(row.wall_s for row in seen.values()),
                }
                | _columns(estimate)
            )
        return pa.Table.from_pylist(rows, schema=D90)


def _search_row(search: Search, finding: Finding, own: Sequence[Observation]) -> dict[str, Any]:
    """Give a row of SEARCHES, without its label."""
    thresholds = finding.thresholds
    subspace = [row for row in own if row.trial.d is not None]
    return {
        "search": search.name,
        "setup_id": search.setup.id,
        "condition_id": search.condition.id,
        "task": search.task.name,
        "model": search.model.name,
        **{name: value for name, value in method_columns(search.method).items() if name in METHOD_COLUMNS},
        **{f"{name}_seed": seed for name, seed in asdict(search.seeds).items()},
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


def _passing(
    searches: pa.Table, shared: Sequence[Sequence[Observation]]
) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """List the trials that pass by task and model, with what ADAPTERS says of them and the metric's sign as "up"."""
    passing: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for search, own in zip(searches.to_pylist(), shared, strict=True):
        if search["threshold"] is None:
            continue
        up = sign(own[0].trial.task.metric) if own else 1.0
        guessing_passes = search["chance"] is not None and up * search["threshold"] <= up * search["chance"]
        bar = (guessing_passes and search["threshold_chance_corrected"]) or search["threshold"]
        about = {name: search[name] for name in ("task", "model", "label")} | {"threshold": bar, "up": up}
        for row in own:
            if row.trial.d is not None and row.score is not None and up * row.score >= up * bar:
                candidate = about | {"d": row.trial.d, "score": row.score, "trial_id": row.trial.id}
                passing.setdefault((search["task"], search["model"]), []).append(candidate)
    return passing


def _observations(table: pa.Table, ids: Collection[str]) -> list[Observation]:
    """Rebuild the observations of some trials, those of one estimate at a time: their arrays are large."""
    own = table.filter(pc.field("trial_id").isin(pa.array(list(ids), pa.string())))
    setup_of = setup_reader()  # an estimate is of values: where they lie is of no account
    return [from_row(row, setup_of) for row in own.to_pylist()]


_ALIKE = {"weights_sha256": "weights", "dataset_sha256": "rows", "precision": "precision", "device": "kind of device"}
"""Of where a row comes from, what the trainings of one estimate should have in common, and what to call it."""


def _mixed(observations: Iterable[Observation]) -> list[str]:
    """List the ways in which the trainings of one estimate differ."""
    counts: dict[str, Counter[str]] = {key: Counter() for key in _ALIKE}
    for observation in observations:
        for key, value in observation.provenance:
            if key in counts:
                counts[key][value.split(":")[0][:12]] += 1
    warnings = []
    for key, found in counts.items():
        if len(found) > 1:
            given = ", ".join(f"{value} in {number}" for value, number in sorted(found.items()))
            warnings.append(
                f"its trainings differ in {_ALIKE[key]}: {given}; a part of the difference in score may be that"
            )
    return warnings


def _estimate(searches: Sequence[Search], observations: Sequence[Observation]) -> Estimate:
    """Estimate d90 with its interval from all rows of searches that differ in seeds only."""
    from distsub.estimate.d90 import fit  # brings SciPy

    found = fit(searches, observations).d_at()
    return replace(found, warnings=(*found.warnings, *_mixed(observations)))


def _columns(estimate: Estimate) -> dict[str, Any]:
    fitted = estimate.curves
    assert fitted is not None, "an estimate carries its curves"
    smallest, largest = fitted.range
    dims = [smallest * (largest / smallest) ** (i / (_CURVE_POINTS - 1)) for i in range(_CURVE_POINTS)]
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
