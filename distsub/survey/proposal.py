"""From what was seen of data and model to a sweep file: pure, and readable as one choice after the other."""

import json
import math
import os
import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from distsub.data.tasks import check_writing
from distsub.errors import ConfigError, DataError, nearest
from distsub.records import Empty, Task

if TYPE_CHECKING:
    from distsub.survey.labelled import Facts

BATCH, EPOCHS, STEPS = 32, 3, (100, 1000)
"""Rows a step, passes over the training rows, and the fewest and most steps that come of them."""
EVALUATED = 2000
"""Evaluation rows beyond which a fixed draw is enough: a share is then known to 0.01."""
UNEVEN = 3.0
"""Largest class over smallest, from which accuracy would be about the largest."""

KEYS: dict[str, type] = {
    **{"num_labels": int, "labels": list},
    **dict.fromkeys(("empty", "separator", "quote", "encoding"), str),
}
"""Keys of a task that messages about rows advise, and that a person can set before there is a sweep file."""

BY_SET = "distsub init takes such a key by --set 'KEY = VALUE'"
"""What messages about such a key advise."""

_A = {int: "a whole number", list: 'a list, such as ["no", "yes"]', str: 'a text, such as "utf-8"'}

_STANDARDISE = "standardise = true                        # or the first steps would go to the values' mean"

_REASONS = {
    "macro_f1": ", since classes are uneven",
    "nll": ": loss per token of a completion; exact_match compares answers (docs/decoders.md)",
}


@dataclass(frozen=True)
class Proposal:
    """What a sweep file needs to know beyond the rows."""

    metric: str
    max_length: int
    steps: int
    eval_examples: int | None
    high: int


def propose(facts: "Facts") -> Proposal:
    """Choose the metric, the length and the budget."""
    sizes = [count for _, count in facts.counts] or [1]
    uneven = facts.task.num_labels != 1 and max(sizes) >= UNEVEN * max(min(sizes), 1)
    usual = "macro_f1" if uneven else "accuracy"
    metric = "nll" if facts.task.is_completion else "pearson" if facts.task.num_labels == 1 else usual
    steps = min(max(math.ceil(EPOCHS * facts.train / BATCH), STEPS[0]), STEPS[1])
    return Proposal(
        metric=metric,
        max_length=min(max(8 * math.ceil(max(facts.lengths[1], facts.least) / 8), 8), facts.max_positions),
        steps=steps,
        eval_examples=EVALUATED if facts.validation > EVALUATED else None,
        high=max(min(10000, facts.num_params // 20), 1),
    )


def toml(facts: "Facts", proposal: Proposal, model: str, directory: Path) -> str:
    """Write the sweep file; paths in it are relative to the directory where it will lie."""
    budget = {"steps": proposal.steps, "batch_size": BATCH, "max_length": proposal.max_length}
    if proposal.eval_examples:
        budget["eval_examples"] = proposal.eval_examples
    return _TEMPLATE.format(
        name=quoted(facts.task.name),
        model=model_entry(model, directory),
        tasks="",
        table=_task(facts, proposal, directory) + "\n\n",
        low=min(100, max(proposal.high // 4, 1)),
        high=proposal.high,
        budget="\n".join(f"{key} = {value}" for key, value in budget.items()),
    )


def sweep(
    model: str, directory: Path, task: str | None, source: Path | None, rows: dict[str, Any]
) -> tuple[str, list[str]]:
    """Give a sweep file, that will lie in a directory, for a built-in task or own rows, and what was seen of them.

    `rows` are the options given of own rows: text, label, validation, holdout, prompt, completion, messages, set.

    Raises:
        DistsubError: They cannot be used.
    """
    if source is None:
        if given := [name for name, value in rows.items() if value is not None]:
            raise ConfigError(f"--{given[0]} says something of own rows; give --data too")
        return known(model, task or "rotten_tomatoes", directory), []
    if task is not None:
        raise ConfigError("give --task (a built-in one) or --data (own rows), not both")
    holdout = rows.get("holdout")
    if holdout is not None and not (0 < holdout < 1 or (holdout >= 1 and holdout.is_integer())):
        raise ConfigError(f"--holdout {holdout:g}; allowed: a share such as 0.2, or a whole number of rows")
    from distsub.survey import completions  # loads torch, as a built-in task does not
    from distsub.survey.labelled import survey

    share = int(holdout) if holdout and holdout >= 1 else holdout
    rows = rows | {"holdout": share, "keys": keys_of(rows.get("set") or ())}
    try:
        if columns := completions.columns(source, model, rows):
            facts = completions.look(source, model, columns, rows)
        else:
            given = [rows.get(name) for name in ("text", "label", "validation", "holdout", "keys")]
            facts = survey(source, model, *given)
    except DataError as error:
        if not re.search(rf"\b({'|'.join(KEYS)}) = ", str(error)):
            raise
        raise DataError(f"{error} ({BY_SET})") from None
    proposal = propose(facts)
    return toml(facts, proposal, model, directory), describe(facts, proposal)


def keys_of(given: Iterable[str]) -> dict[str, Any]:
    """Read keys of a task as a person sets them, a line of a sweep file each.

    Raises:
        ConfigError: One is none of `KEYS`, or its value is none for it.
    """
    found: dict[str, Any] = {}
    for line in given:
        try:
            table = tomllib.loads(line)
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"--set {line}: {error}; write it as in a sweep file: --set 'num_labels = 3'") from None
        for key, value in table.items():
            if key not in KEYS:
                raise ConfigError(f"--set {line}: no key {key} to set here; {nearest(key, KEYS)}")
            if type(value) is not KEYS[key]:
                raise ConfigError(f"--set {line}: {key} should be {_A[KEYS[key]]}")
            if key == "empty" and value not in get_args(Empty):
                raise ConfigError(f"--set {line}: empty should be one of {', '.join(get_args(Empty))}")
            found[key] = tuple(map(str, value)) if isinstance(value, list) else value
    check_writing(found.get("separator"), found.get("quote"), found.get("encoding"), "--set ")
    return found


def known(model: str, task: str, directory: Path) -> str:
    """Write a sweep file for a task that is known by name."""
    budget = f"steps = 200\nbatch_size = {BATCH}\nmax_length = 128"
    tasks = f"tasks = [{quoted(task)}]\n"
    entry = model_entry(model, directory)
    return _TEMPLATE.format(name='"first"', model=entry, tasks=tasks, table="", low=100, high=10000, budget=budget)


def model_entry(model: str, directory: Path) -> str:
    """Write a model as a sweep file in a directory names it: a local folder by its path from there."""
    if not Path(model).expanduser().is_dir():
        return quoted(model)
    return f"{{ path = {quoted(_path(model, directory))} }}"


def describe(facts: "Facts", proposal: Proposal) -> list[str]:
    """Say what was seen and chosen, a line each."""
    task = facts.task
    shown = ", ".join(f"{name} {count:g}" for name, count in facts.counts[:12])
    kind = "values from smallest to largest" if task.num_labels == 1 else f"{task.num_labels} classes"
    labels = f"labels   {kind}: {shown}" + (", ..." if len(facts.counts) > 12 else "")
    cells = ", ".join(f"{column} {count}" for column, count in facts.empty_cells)
    fate = {"drop": "their rows are left out", "keep": "kept, since every pair has some text", "refuse": ""}[task.empty]
    median, most, longest = facts.lengths
    lines = [
        f"file     {facts.origin}",
        *(f"chosen   {each}" for each in facts.guessed),
        f"rows     {facts.rows}: {facts.train} to train on, {facts.validation} to evaluate on"
        + (" (held out)" if task.validation is None else ""),
        "" if task.is_completion else labels,
        f"empty    {cells}; {fate}" if cells else "",
        *(f"note     {each.removeprefix(task.name + ': ')}" for each in facts.notes),
        f"tokens   median {median}, 98% up to {most}, longest {longest}; max_length = {proposal.max_length} of "
        f"{facts.max_positions} that the model takes" + ("; a longer prompt loses its beginning" * task.is_completion),
        f"metric   {proposal.metric}{_REASONS.get(proposal.metric, '')}",
        f"budget   {proposal.steps} steps of {BATCH} rows: {proposal.steps * BATCH / facts.train:.1f} passes",
    ]
    if len(task.text) == 2:
        lines.insert(2, f"text     {task.text[0]} and {task.text[1]} as a pair, joined by the tokenizer")
    return [line for line in lines if line]


def quoted(text: str) -> str:
    """Write a TOML string."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _path(path: str, directory: Path) -> str:
    """Give a path as it starts at a directory; absolute where it would begin with a home."""
    full = os.path.abspath(Path(path).expanduser())
    found = os.path.relpath(full, directory)
    return full if found.startswith("~") else found


def _task(facts: "Facts", proposal: Proposal, directory: Path) -> str:
    task = facts.task
    values: dict[str, Any] = {
        "name": task.name,
        "path": _path(task.source, directory),
        **_columns(task),
        "metric": proposal.metric,
    }
    values |= {key: getattr(task, key) for key in ("separator", "quote", "encoding") if getattr(task, key, None)}
    if task.empty != "refuse":
        values["empty"] = task.empty
    if task.train != "train":
        values["train"] = task.train
    values |= {"holdout": task.holdout} if task.validation is None else {"validation": task.validation}
    lines = [f"{key} = {_value(value)}" for key, value in values.items()]
    return "\n".join(["[[tasks]]", *lines, *[_STANDARDISE] * (task.num_labels == 1)])


def _columns(task: Task) -> dict[str, Any]:
    if task.is_chat:
        return {"kind": "completion", "messages": task.label}
    if task.is_completion:
        return {"kind": "completion", "prompt": task.text[0], "completion": task.label}
    text = task.text[0] if len(task.text) == 1 else list(task.text)
    classes = {"labels": list(task.labels)} if task.labels else {"num_labels": task.num_labels}
    return {"text": text, "label": task.label, **classes}


def _value(value: Any) -> str:
    if isinstance(value, list):
        items = [quoted(each) for each in value]
        flat = f"[{', '.join(items)}]"
        return flat if len(flat) <= 100 else "[\n" + "".join(f"    {each},\n" for each in items) + "]"
    return quoted(value) if isinstance(value, str) else str(value)


_TEMPLATE = """\
# How few numbers does it take to fine-tune this model on this task?
# Every key: docs/sweep-file.md. Check before spending: distsub plan THIS_FILE

name = {name}
models = [{model}]
{tasks}methods = ["said", "did"]                 # Aghajanyan et al. 2020, Eq. 3 and Eq. 1
seeds = 2
policy = "bisection"
dims = {{ low = {low}, high = {high}, ratio = 1.5 }}

{table}[search]
etas = [0.1, 0.3, 1.0]                    # subspace step sizes, relative to full fine-tuning; docs/d90.md
learning_rate = 5e-5                      # the learning rate of full fine-tuning that eta scales

[baseline]
learning_rates = [5e-5, 1e-4]             # full fine-tuning tries these; its best score sets the threshold

[budget]                                  # of every single training
{budget}

[resources]
cpus_per_trial = 1
gpus_per_trial = 0
"""
