"""A model card of an adapter, made from the rows of the results that it came out of."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distsub.addresses import is_hub_id
from distsub.records import Observation, Task, label, sign
from distsub.report.answer import said_of


def card(
    repository: str,
    observation: Observation,
    others: Sequence[Observation],
    d90: Mapping[str, Any] | None,
    fit: Mapping[str, Any] | None = None,
) -> str:
    """Write the README.md of an adapter.

    Args:
        repository: "owner/name".
        observation: The row of its trial.
        others: Rows of the same condition, for the curve.
        d90: The condition's row of D90, where it has one.
        fit: What `distsub fit` wrote of it, if it did.
    """
    trial, task = observation.trial, observation.trial.task
    base = trial.model.name
    is_path = Path(base).is_absolute()
    shown = Path(base).name if is_path else base
    pipeline = "text-generation" if task.is_completion else "text-classification"
    about: dict[str, Any] = {"library_name": "distsub", "tags": ["distsub", pipeline]}
    if is_hub_id(base):
        about["base_model"] = base
    front = "\n".join(f"{key}: {json.dumps(value)}" for key, value in about.items())
    score = f"{observation.score:.4f}" if observation.score is not None else "no score"
    given = f', base="WHERE {shown} LIES"' if is_path else ""
    few = f"{observation.num_trained:,}" if observation.num_trained else "few"
    of = f" of {observation.num_params_model:,}" if observation.num_params_model else ""
    lines = [
        f"# {repository.partition('/')[2]}",
        "",
        f"**{few} trained numbers{of}**: `{shown}` fine-tuned on {task.name} by {label(trial.method)}, to "
        f"{task.metric} {score} on {observation.num_examples:,} rows that were evaluated during the search.",
        "",
        "## Use it",
        "",
        "```python",
        "import distsub  # pip install distsub",
        "",
        f'model = distsub.load("{repository}"{given})',
        f"model.predict({_example(task)})",
        "```",
        "",
        "The base model is found by its name and checked by a hash of its weights.",
        "",
        *_curve(observation, others, d90),
        "## How it was trained",
        "",
        *_table(_facts(observation)),
        "",
        "The score was looked at by the search that chose d and eta: it is too good by some.",
    ]
    if fit and fit.get("unseen_score") is not None:
        count, unseen = fit["unseen_examples"], f"{task.metric} {fit['unseen_score']:.4f}"
        lines += ["", f"On {count:,} rows that neither training nor search looked at: **{unseen}**."]
    return f"---\n{front}\n---\n\n" + "\n".join(lines) + "\n"


def _example(task: Task) -> str:
    if task.is_completion:
        return '["a prompt"]'
    return '["a text"]' if len(task.text) == 1 else '[("one text", "another")]'


def _curve(observation: Observation, others: Sequence[Observation], d90: Mapping[str, Any] | None) -> list[str]:
    """Show what fewer and more numbers reach."""
    up, best = sign(observation.trial.task.metric), dict[int, dict[Any, float]]()
    for row in others:
        if row.trial.d and row.score is not None:
            seeds = best.setdefault(row.trial.d, {})
            known = seeds.get(row.trial.seeds)
            seeds[row.trial.seeds] = row.score if known is None else max(known, row.score, key=lambda one: up * one)
    if not best:
        return []
    lines = ["## How few numbers it takes", ""]
    if d90 is not None:
        full = d90["baseline_score"]
        words = f", which is {full:.4f} here" if full is not None else ""
        lines += [f"d90, the numbers for 90% of full fine-tuning{words}: **{said_of(d90)}**.", ""]
    rows = [(f"{d:,}", f"{sum(best[d].values()) / len(best[d]):.4f}", len(best[d])) for d in sorted(best)]
    return [*lines, *_table(rows, ("d", f"{observation.trial.task.metric}, best step size", "seeds")), ""]


def _facts(observation: Observation) -> list[tuple[str, Any]]:
    trial, budget = observation.trial, observation.trial.budget
    known = dict(observation.provenance)
    rates = [("d", trial.d), ("eta", trial.eta), ("learning rate", trial.learning_rate), ("seed", trial.seeds.text)]
    spent = [("steps", budget.steps), ("batch size", budget.batch_size), ("max_length", budget.max_length)]
    versions = ", ".join(f"{name} {known[name]}" for name in ("distsub", "torch", "transformers") if name in known)
    rest = [("precision", known.get("precision")), ("versions", versions), ("trial", trial.id)]
    return [(name, value) for name, value in (*rates, *spent, *rest) if value not in (None, "")]


def _table(rows: Sequence[Sequence[Any]], head: Sequence[str] = ("what", "value")) -> list[str]:
    return [f"| {' | '.join(map(str, line))} |" for line in (head, ["---"] * len(head), *rows)]
