"""Published numbers beside measured ones: which can be compared, which agree, and why the others cannot."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from distsub.learned.modes import modes_table
from distsub.records import Observation, Random, Setup, Subspace, Task, label
from distsub.results.published import published_table
from distsub.results.schema import columns

_TEXT, _INT, _FLOAT = pa.string(), pa.int64(), pa.float64()

COMPARISON = pa.schema(
    [
        *columns(_TEXT, "quantity", "task", "model", "method"),
        ("d", _INT),
        *columns(_FLOAT, "measured", "measured_low", "measured_high"),
        ("published_model", _TEXT),
        ("published", _FLOAT),
        *columns(_TEXT, "verdict", "reason", "source"),
    ]
)
"""One row per measured number and published number of the same task and way of training.

`quantity` is "d90", or "score" in the published unit (hundred times ours), for d dimensions per layer. `verdict` is
"reproduced" (inside our 95% interval, or of a d90 within one grid step of ours), "differs", "open" (our interval does
not tell) or "not comparable"; `reason` says why it is one of the last three.
"""

STEP = 10 ** (4 / 63)
"""One step of the published grid of d, int(logspace(2, 6, 64))."""

_A20 = {
    "google-bert/bert-base-uncased": "bert-base",
    "google-bert/bert-large-uncased": "bert-large",
    "FacebookAI/roberta-base": "roberta-base",
    "FacebookAI/roberta-large": "roberta-large",
}
"""Where the models of Aghajanyan et al. are; that theirs are the uncased ones is assumed."""

_Z23 = {"google-bert/bert-base-cased": "bert-base-cased", "FacebookAI/roberta-base": "roberta-base"}

Subsets = Mapping[str, list[str]]
"""Why the rows of a setup, by its id, are not the paper's."""

_LABELS = {
    "freeze": "freeze embeddings trained",
    "random": "random zhang2023",
    "intrinsic": "intrinsic zhang2023",
    "unified": "unified zhang2023",
    "zeroshot": "zero_shot zhang2023",
}
"""What our listings call the ways of Zhang et al., trained as they do."""


def comparison(
    d90: pa.Table, observations: Sequence[Observation], tasks: Mapping[str, Task], ablations: pa.Table | None = None
) -> pa.Table:
    """Set published numbers beside the measured ones of the same task and way of training.

    Args:
        d90: Rows in the schema D90.
        observations: The rows that it rests on, and those of learned subspaces.
        tasks: The papers' tasks by name: rows of others are not comparable.
        ablations: Rows in the schema ABLATIONS.

    Returns:
        Rows of COMPARISON; none where no paper has such a number.
    """
    subsets = {each.trial.setup.id: _subset(each.trial.setup, tasks) for each in observations}
    rows = [*_dimensions(d90, observations, subsets), *_scores(observations, subsets)]
    rows += _disabled(ablations, observations, subsets)
    return pa.Table.from_pylist(rows, schema=COMPARISON)


def why_empty(observations: Sequence[Observation]) -> str:
    """Say in one line why the comparison of some rows is empty."""
    if not observations:
        return "there are no rows yet"
    ours = {each.trial.task.name for each in observations}
    wide = set(published_table("published_subspaces").column_names) - {"model", "mode", "dim", "avg", "source"}
    theirs = wide | {*published_table("published_d90")["task"].to_pylist()}
    if not ours & theirs:
        return f"the papers have no number for {', '.join(sorted(ours))}; they have {', '.join(sorted(theirs))}"
    methods = sorted({label(each.trial.method) for each in observations})
    return (
        f"the papers have no number for {', '.join(sorted(ours & theirs))} by {', '.join(methods)} at these d: they "
        "have a d90 of did and said (mrpc, qqp), and scores of full, freeze and subspaces of layers"
    )


def _dimensions(d90: pa.Table, observations: Iterable[Observation], subsets: Subsets) -> Iterator[dict[str, Any]]:
    """Join Table 1 of Aghajanyan et al."""
    setups = {each.trial.condition.id: each.trial.setup for each in observations}
    for row in d90.to_pylist():
        setup = setups.get(row["condition_id"])
        if setup is None or not isinstance(method := setup.method, Subspace) or method.scope != "model":
            continue
        if method.span is not None or not isinstance(method.projection, Random):
            continue
        name = "said" if method.scales else "did"
        differs = subsets[setup.id] + _other_subspace(method)
        if row["threshold_rule"] != "0.9 x full":
            differs.append(f"another threshold ({row['threshold_rule']})")
        low, middle, high = row["d90_low"], row["d90"], row["d90_high"]
        ours = {"quantity": "d90", "measured": middle, "measured_low": low, "measured_high": high}
        ours |= {"task": row["task"], "model": row["model"], "method": row["label"]}
        for theirs in _published("published_d90", setup, _A20, name):
            reasons = _model(setup, theirs["model"], _A20) + differs
            value = float(theirs["d90"])
            if reasons:
                verdict = "not comparable"
            elif middle is None:
                verdict, reasons = "open", [row["d90_text"]]
            elif max(middle / value, value / middle) <= STEP or (low or math.inf) <= value <= (high or 0.0):
                verdict = "reproduced"
            elif (low is None and value < middle) or (high is None and value > middle):
                verdict, reasons = "open", ["our interval is open there"]
            else:
                verdict, reasons = "differs", _unknown(method)
            yield ours | _said(theirs, value, verdict, reasons)


def _scores(observations: Sequence[Observation], subsets: Subsets) -> Iterator[dict[str, Any]]:
    """Join Tables 1, 2, 5 and 6 of Zhang et al."""
    kept = [each for each in observations if each.trial.ablation is None and not each.trial.is_theta_0]
    setups = {(*_named(each.trial.setup), each.trial.d, each.trial.budget.steps): each.trial.setup for each in kept}
    for row in modes_table(kept).to_pylist():
        setup = setups.get((row["model"], row["task"], row["method"], row["d"], row["steps"]))
        mode, _, training = row["method"].partition(" ")
        mode = mode.replace("zero_shot", "zeroshot")
        if setup is None or mode not in ("full", *_LABELS):
            continue
        usual = _LABELS.get(mode, mode)
        reasons = subsets[setup.id] + (
            [] if row["method"] == usual else [f"trained otherwise ({training or 'the head alone'})"]
        )
        ours = {"task": row["task"], "model": row["model"], "method": row["method"], "d": row["d"]}
        found: dict[Any, dict[str, Any]] = {}
        for view in ("published_subspaces", "published_unified", "published_dims"):
            for theirs in _published(view, setup, _Z23):
                if (theirs.get("mode", "intrinsic"), theirs["dim"]) == (mode, row["d"]):
                    found.setdefault((theirs["model"], theirs[row["task"]]), theirs)
        yield from (_score(ours, row, setup, theirs, reasons) for theirs in found.values())


def _disabled(
    ablations: pa.Table | None, observations: Iterable[Observation], subsets: Subsets
) -> Iterator[dict[str, Any]]:
    """Join Table 3 of Zhang et al.: fine-tuning in full with weights set to zero."""
    setups = {_named(each.trial.setup)[:2]: each.trial.setup for each in observations if each.trial.ablation}
    for row in ablations.to_pylist() if ablations is not None else []:
        setup = setups.get((row["model"], row["task"]))
        if setup is None or (row["edit"], row["versus"]) != ("zero", "none"):
            continue
        usual = row["method"] == _LABELS["intrinsic"] and row["mask"] in ("outliers", "random")
        reasons = subsets[setup.id] + ([] if usual else [f"other weights ({row['mask']} of {row['method']})"])
        ours = {"task": row["task"], "model": row["model"], "method": f"zero at {row['mask']} of {row['method']}"}
        for theirs in _published("published_outliers", setup, _Z23):
            if theirs["disabled"] == ("outliers" if row["mask"] == "outliers" else "random"):
                yield _score(ours, row, setup, theirs, reasons)


def _score(
    ours: Mapping[str, Any], row: Mapping[str, Any], setup: Setup, theirs: Mapping[str, Any], reasons: Sequence[str]
) -> dict[str, Any]:
    """Compare a score over seeds with a published one."""
    value = theirs[row["task"]]
    reasons = [*_model(setup, theirs["model"], _Z23), *reasons]
    low, high = row["score_low"], row["score_high"]
    if reasons:
        verdict = "not comparable"
    elif low is None:
        verdict, reasons = "open", ["one seed: no interval"]
    elif 100 * low <= value <= 100 * high:
        verdict = "reproduced"
    else:
        verdict, reasons = "differs", ["budget and learning rates may differ: the paper's are given in part"]
    numbers = {"measured": row["score"], "measured_low": low, "measured_high": high}
    scaled = {name: None if number is None else 100 * number for name, number in numbers.items()}
    return {"quantity": "score", **ours, **scaled} | _said(theirs, value, verdict, reasons)


def _published(
    view: str, setup: Setup, addresses: Mapping[str, str], method: str | None = None
) -> Iterator[dict[str, Any]]:
    """Yield the published rows of a task: of the setup's own model where the paper has it, of all others else."""
    own, task = addresses.get(setup.model.name), setup.task.name
    for row in published_table(view).to_pylist():
        wide = "task" not in row
        if (row.get(task) is None if wide else row["task"] != task) or own not in (None, row["model"]):
            continue
        if method is None or row["method"] == method:
            yield row


def _model(setup: Setup, published: str, addresses: Mapping[str, str]) -> list[str]:
    return [] if addresses.get(setup.model.name) == published else ["another model"]


def _subset(setup: Setup, tasks: Mapping[str, Task]) -> list[str]:
    """Say which rows or columns are not the task's."""
    task, budget = setup.task, setup.budget
    usual = tasks.get(task.name)
    places, reading = ("source", "config", "validation", "where", "holdout"), ("text", "label", "metric")
    found = []
    if usual is None or any(getattr(task, name) != getattr(usual, name) for name in reading):
        found.append("columns or a metric of its own")
    elif any(getattr(task, name) != getattr(usual, name) for name in places):
        found.append("rows from another place, which may not be the paper's")
    counts = {"training": budget.train_examples, "evaluation": budget.eval_examples}
    parts = [f"{count:,} of {what}" for what, count in counts.items() if count]
    return found + ([f"a subset ({', '.join(parts)})"] if parts else [])


def _other_subspace(method: Subspace) -> list[str]:
    """Say what of a method is not Equation 1 or 3 over all parameters, the head among them, by Fastfood."""
    usual = {"head": "in_subspace", "embeddings": "in_subspace", "modules": "all"}
    found = [f"{name} = {getattr(method, name)}" for name, value in usual.items() if getattr(method, name) != value]
    if not method.family.startswith("fastfood"):
        found.append(f"projection = {method.family}")
    return found


def _unknown(method: Subspace) -> list[str]:
    """Say what may explain a difference."""
    reasons = ["the paper's optimiser, steps and learning rates are not known"]
    if method.family != "fastfood_per_tensor":
        reasons.append("its released code normalises P per tensor")
    return reasons


def _said(theirs: Mapping[str, Any], value: float, verdict: str, reasons: Sequence[str]) -> dict[str, Any]:
    return {
        "published_model": theirs["model"],
        "published": value,
        "verdict": verdict,
        "reason": "; ".join(reasons) or None,
        "source": theirs["source"],
    }


def _named(setup: Setup) -> tuple[str, str, str]:
    return setup.model.name, setup.task.name, label(setup.method)
