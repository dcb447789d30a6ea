"""The Python API: open a results directory, or measure a d90."""

import html
import json
import os
import re
from collections.abc import Mapping
from functools import cached_property
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from distsub.errors import ConfigError, DistsubError, OutputError
from distsub.runtime.drain import INTERRUPTED, TERMINATED

if TYPE_CHECKING:
    import pyarrow as pa
    from matplotlib.figure import Figure

    from distsub.config.sweep import Sweep
    from distsub.estimate.interval import Estimate
    from distsub.report.summary import Summary
    from distsub.results import Store


class Results:
    """A results directory; a notebook shows it as a table of estimates.

    Rows are read when they are asked for, so that each call sees what a running sweep has written by then.

    Attributes:
        store: The directory.
    """

    def __init__(self, store: "Store") -> None:
        self.store = store

    @cached_property
    def sweep(self) -> "Sweep":
        """The sweep that was run."""
        return sweep_of(self.store)

    def d90(self) -> "dict[str, Estimate]":
        """Estimate d90 of every model, task and method, from all rows of all seeds.

        Returns:
            The estimates by name: the task, model and method in which they differ from each other.
        """
        from distsub.runtime.labels import Labels

        labels = Labels(self.sweep.searches())
        found = summary_of(self.sweep, self.store).estimates
        return {labels.name(members[0], seed=False): estimate for members, estimate in found}

    def curves(self) -> "pa.Table":
        """Tabulate the fitted score against d: task, model, label, d, low, middle, high (a 95% band)."""
        import pyarrow as pa

        from distsub.results.schema import columns

        names = ("task", "model", "label")
        rows = [
            {name: row[name] for name in names} | point
            for row in summary_of(self.sweep, self.store).d90.to_pylist()
            for point in row["fit"] or ()
        ]
        numbers = columns(pa.float64(), "d", "low", "middle", "high")
        return pa.Table.from_pylist(rows, schema=pa.schema(columns(pa.string(), *names) + numbers))

    def observations(self) -> "pa.Table":
        """Give all rows, one per training, as an Arrow table; `.to_pandas()` and `polars.from_arrow` take it on."""
        return self.store.located()

    def plot(self) -> "Figure":
        """Draw score against d: trainings, fitted curve, threshold and d90 with its interval, a panel per method."""
        from distsub.report.curves import draw_curves

        summary = summary_of(self.sweep, self.store)
        return draw_curves(self.store.read(), summary.searches, d90=summary.d90)

    def card(self, trial_id: str, repository: str) -> str:
        """Write the model card of a trial's adapter: how it was trained, its score, the curve and d90 of its condition.

        Args:
            trial_id: Of a row.
            repository: "owner/name" on the hub.

        Raises:
            ConfigError: No row is of that trial.
        """
        from distsub import paths
        from distsub.files import parse_json
        from distsub.report.card import card

        rows = self.store.read()
        row = next((row for row in rows if row.trial.id == trial_id), None)
        if row is None:
            raise ConfigError(f"{self.store.uri} has no row of trial {trial_id}")
        condition = row.trial.condition.id
        own = [other for other in rows if other.trial.condition.id == condition]
        d90 = summary_of(self.sweep, self.store).d90.to_pylist()
        about = paths.fit(trial_id)
        fit = parse_json(self.store.files.read(about)) if self.store.files.exists(about) else {}
        estimate = next((each for each in d90 if each["condition_id"] == condition), None)
        return card(repository, row, own, estimate, fit)

    def __repr__(self) -> str:
        """List the estimates, one a line."""
        lines = [f"{name}: {estimate.text}" for name, estimate in self.d90().items()]
        return "\n".join([f"Results({self.store.uri!r})", *(f"  {line}" for line in lines)])

    def _repr_html_(self) -> str:
        rows = []
        for name, found in self.d90().items():
            notes = "".join(f"<br><small>{html.escape(note)}</small>" for note in found.warnings)
            rows.append(f"<tr><td>{html.escape(name)}</td><td>{html.escape(found.text)}{notes}</td></tr>")
        return (
            f"<table><caption>{html.escape(self.sweep.name)}</caption><thead><tr><th>measured</th><th>d90</th></tr>"
            f"</thead><tbody>{''.join(rows)}</tbody></table>"
        )


def open(out: str | os.PathLike[str]) -> Results:
    """Open a results directory.

    Args:
        out: What `distsub run` was given with --out: a path, or an address such as s3://.

    Raises:
        OutputError: There is none, or it cannot be read.
    """
    from distsub.results import Store

    return Results(Store.open(out))


def measure(
    model: str | Mapping[str, Any],
    task: str | Mapping[str, Any],
    *,
    out: str | os.PathLike[str] | None = None,
    backend: Literal["inline", "tune"] = "inline",
    adapters: bool = True,
    **keys: Any,
) -> Results:
    """Measure a d90: run a sweep to its end, here or on Ray, and open what it found; the same call resumes.

    What is not given is what `distsub init` proposes for the model and the task.

    Args:
        model: A hub id, "package:NAME" or a directory; or a table as in `[[models]]`.
        task: A built-in task such as "sst2", a file or folder of own rows; or a table as in `[[tasks]]`.
        out: Results directory; None takes results/NAME-FINGERPRINT in the current directory.
        backend: "inline" trains one after the other in this process, "tune" on Ray.
        adapters: Whether to keep every finished trial's adapter.
        keys: Keys of the sweep file: `dims=[100, 1000]`, `methods=["did"]`, `seeds=3`, `budget={"steps": 300}`. A
            table adds to what is proposed, key by key.

    Raises:
        DistsubError: A key, the model or the data cannot be used; or a training ended in an error.
        KeyboardInterrupt: It was interrupted; finished trainings are kept.
    """
    from distsub.addresses import output_address
    from distsub.config import parse_sweep
    from distsub.preflight import checks
    from distsub.runtime import launch, placing

    here = Path.cwd()
    text = _toml(_proposal(model, task, here, keys))
    asked = parse_sweep(text, here, "measure")
    sweep = checks.check(asked, kept=placing.kept(asked, output_address(os.fspath(out)), here) if out else None)
    address = output_address(os.fspath(out) if out else f"results/{_slug(sweep.name)}-{sweep.fingerprint}")
    store = store_of(sweep, address, here)
    if backend == "tune":
        from distsub.runtime import connect

        connect.check()
    summary = summary_of(sweep, store)
    there = address if "://" in address else None
    code = launch.run(sweep, store, backend, adapters=adapters, out=there, final=lambda: summary.texts)
    if code in (INTERRUPTED, TERMINATED):
        raise KeyboardInterrupt(f"finished trainings are kept in {store.uri}; the same call resumes")
    if code == 3:
        failed = next((row.error for row in store.read(answers=False) if row.status == "error"), "no reason given")
        raise DistsubError(f"a training ended in an error ({failed}); the rest is kept in {store.uri}: distsub.open")
    return Results(store)


def store_of(sweep: "Sweep", out: str, directory: Path) -> "Store":
    """Make or open the results directory of a checked sweep, at an address from `output_address`."""
    from distsub.results import Store

    return Store.create(out, sweep.text, sweep.fingerprint, str(directory), sweep.places, sweep.record)


def summary_of(sweep: "Sweep", store: "Store") -> "Summary":
    """Summarize the results of a sweep."""
    from distsub.report.summary import Summary

    return Summary(sweep.searches(), sweep.policy, store, sweep.limit)


def sweep_of(store: "Store") -> "Sweep":
    """Read the sweep of a results directory, with the contents that its rows are of.

    Raises:
        OutputError: The directory's copy of the sweep file is missing or damaged.
    """
    from distsub.config import parse_sweep

    place = f"the sweep in {store.uri}/sweep.json"
    remedy = f"restore it with `distsub run` on the sweep file and --out {store.uri}"
    if not store.sweep_text:
        raise OutputError(f"{place} is missing or empty; {remedy}")
    try:
        return parse_sweep(store.sweep_text, store.directory, place).known(store.places)
    except ConfigError as error:
        raise OutputError(f"{str(error).splitlines()[0]}; {remedy}") from None


def _proposal(
    model: str | Mapping[str, Any], task: str | Mapping[str, Any], here: Path, keys: Mapping[str, Any]
) -> dict[str, Any]:
    """Give the sweep that `distsub init` proposes, with the keys given in the place of its own."""
    import tomllib

    from distsub.survey import proposal

    address = model if isinstance(model, str) else str(model.get("path") or model.get("name") or "")
    source = Path(task).expanduser() if isinstance(task, str) and Path(task).expanduser().exists() else None
    if isinstance(task, str):
        rows: dict[str, Any] = dict.fromkeys(("text", "label", "validation", "holdout"))
        try:
            written, _ = proposal.sweep(address, here, None if source else task, source, rows)
        except DistsubError as error:
            raise type(error)(_for_python(str(error), task)) from None
    else:  # a table says all that the rows are; the rest is as for any task
        written, _ = proposal.sweep(address, here, "rotten_tomatoes", None, {})
    sweep = tomllib.loads(written)
    if isinstance(task, str) and not source:
        sweep["name"] = task
    if not isinstance(task, str):
        sweep["tasks"] = [dict(task)]
        sweep["name"] = str(task.get("name", "sweep"))
    if not isinstance(model, str):
        sweep["models"] = [dict(model)]
    value = keys.get("threshold", {})
    if not isinstance(value, Mapping) or "value" in value:  # no full fine-tuning is trained, so none is proposed
        sweep.pop("baseline", None)
    for key, value in keys.items():
        both = isinstance(value, Mapping) and isinstance(sweep.get(key), dict) and key != "dims"
        sweep[key] = {**sweep[key], **value} if both else value
    return sweep


def _for_python(message: str, task: str) -> str:
    """Name what `measure` takes, in a message that names options of `distsub init`."""
    from distsub.survey import proposal

    said = message.replace(f" ({proposal.BY_SET})", "")
    said = re.sub(r"(?<!\S)--(model|data)\b", lambda found: {"data": "task"}.get(found[1], found[1]), said)
    keys = re.sub(r"(?<!\S)--(text|label|prompt|completion|messages|validation|holdout)\b", r'"\1"', said)
    if message == keys:
        return message
    table = f'{{"name": "{Path(task).stem}", "path": {json.dumps(task)}, "text": ..., "label": ..., "holdout": 0.2}}'
    return f"{keys}; measure takes such a key in a table of the rows: task={table}"


def _toml(value: Any, top: bool = True) -> str:
    """Write plain values as TOML, tables inline."""
    if isinstance(value, Mapping):
        pairs = [f"{json.dumps(key)} = {_toml(item, False)}" for key, item in value.items() if item is not None]
        return "\n".join(pairs) + "\n" if top else "{ " + ", ".join(pairs) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(item, False) for item in value) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Integral):
        return str(int(value))
    if isinstance(value, Real):
        return repr(float(value))
    if isinstance(value, str | os.PathLike):
        return json.dumps(os.fspath(value), ensure_ascii=False).replace("\x7f", "\\u007f")
    raise ConfigError(f"{value!r} cannot be written to a sweep file; give text, numbers, lists or tables")


def _slug(name: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in name).strip("-") or "sweep"
