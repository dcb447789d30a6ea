"""Look at rows that a language model is to complete, before a sweep is written."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from distsub.data import dataset, notes, reading, tables
from distsub.data.tasks import resolve
from distsub.errors import ConfigError, DataError
from distsub.finetune import completions
from distsub.models import pretrained
from distsub.records import Budget, Task
from distsub.survey import labelled
from distsub.survey.labelled import Facts

_PAIRS = (("prompt", "completion"), ("prompt", "response"))
_CHATS = "messages"


def columns(source: Path, model: str, rows: Mapping[str, Any]) -> dict[str, str]:
    """Tell which columns make rows a completion task: those that are named, or what a language model can complete.

    Returns:
        prompt and completion, or messages; nothing where the rows are to be told apart by a label.

    Raises:
        DataError: The columns are those of completions, there is no label, and the model generates nothing.
        DistsubError: They cannot be read.
    """
    named = {key: rows[key] for key in ("prompt", "completion", "messages") if rows.get(key)}
    classes = [key for key in ("text", "label") if rows.get(key)]
    if named and classes:
        raise ConfigError(f"give --{classes[0]} (rows with labels) or --{next(iter(named))} (completions), not both")
    if named:
        if [*named] not in (["prompt", "completion"], ["messages"]):
            raise ConfigError("completions need both --prompt and --completion, or --messages alone")
        return named
    if classes:
        return {}
    try:
        _, files = labelled.place(source.expanduser().absolute(), rows.get("validation"), rows.get("holdout"))
        present = tables.sniff(files[0], given=labelled.writing(rows.get("keys") or {}, _CHATS)).columns
    except DataError:  # which the reader of rows with labels says better
        return {}
    lower = {column.lower(): column for column in present}
    pair = next((pair for pair in _PAIRS if all(name in lower for name in pair)), None)
    found = {"messages": _CHATS} if _CHATS in present else {}
    if pair is not None:
        found = {"prompt": lower[pair[0]], "completion": lower[pair[1]]}
    if not found or pretrained.is_language_model(pretrained.prepare(model).path):
        return found
    if any(name in lower for name in labelled.LABELS):
        return {}
    raise DataError(
        f"{source} holds completions (columns {', '.join(found.values())}), and {model} is no model that generates: "
        "give --model a decoder or an encoder-decoder, or --label for classes"
    )


def look(source: Path, model: str, found: Mapping[str, str], rows: Mapping[str, Any]) -> Facts:
    """Look at rows, whose columns `columns` gave, and a language model.

    Raises:
        DistsubError: They cannot be read or used, or the model not loaded.
    """
    where, files = labelled.place(source.expanduser().absolute(), rows.get("validation"), rows.get("holdout"))
    keys = rows.get("keys") or {}
    file = tables.sniff(files[0], list(found.values()), labelled.writing(keys, found.get("messages")))
    fields = {"kind": "completion", **found, **where, **labelled.written(file), **keys}
    task = resolve(labelled.task_name(source), **fields)
    splits = [task.train] + ([] if task.validation is None else [task.validation])
    read = reading.read(task, splits)
    empty = {column: sum(labelled.num_empty(table[column]) for table in read) for column in found.values()}
    task = task if "empty" in keys else replace(task, empty="drop" if any(empty.values()) else "refuse")
    loaded = dataset.load(task, Budget(steps=1))
    names = " and ".join(f'"{column}"' for column in found.values())
    guess = f"completions: column{'s' * (len(found) > 1)} {names}, by name (--text and --label make classes)"
    return Facts(
        task=task,
        origin=labelled.origin(file, len(files)),
        guessed=() if any(rows.get(key) for key in found) else (guess,),
        rows=sum(table.num_rows for table in read),
        empty_cells=tuple((column, number) for column, number in empty.items() if number),
        train=len(loaded.train),
        validation=len(loaded.validation),
        counts=(),
        **_model(model, task, loaded),
    )


def _model(model: str, task: Task, splits: dataset.Splits) -> dict[str, Any]:
    """Count tokens of rows and of completions by the model's own tokenizer, and the model's numbers."""
    split = splits.train
    prepared = pretrained.prepare(model)
    tokenizer = pretrained.tokenizer(prepared)
    built: Any = pretrained.build(prepared, 0, head_seed=0)
    apart = bool(built.config.is_encoder_decoder)
    examples = completions.tokenize(tokenizer, task, labelled.sample(split), 10**6, apart)
    sides = [(len(each["input_ids"]), len(each["labels"])) for each in examples]
    found = labelled.sizes(built, tokenizer, [max(side) if apart else sum(side) for side in sides])
    first = len(tokenizer("", return_attention_mask=False)["input_ids"])
    least = max(answer for _, answer in sides) + (0 if apart else first + 1)
    if least > found["max_positions"]:
        raise DataError(
            f"{task.name}: the longest completion has {max(answer for _, answer in sides)} tokens, {model} takes "
            f"{found['max_positions']} with its prompt; leave such rows out"
        )
    joined = "" if apart or task.is_chat else completions.joined(split)
    return found | {"notes": (*notes.notes(splits), *([joined] if joined else [])), "least": least}
