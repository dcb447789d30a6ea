"""The commands that use what came out: predict with an adapter, and export what other programs read."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from distsub.cli.options import As, Backend, Format, Plain
from distsub.cli.shell import open_results, open_sweep, say, show, show_facts, stop_if_interrupted, summarize, write
from distsub.errors import ConfigError


class To(StrEnum):
    """What an adapter is exported to."""

    transformers = "transformers"
    peft = "peft"


class Weights(StrEnum):
    """Precision of merged weights."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"
    float64 = "float64"


Adapter = Annotated[str, typer.Argument(help="An adapter's directory: a path, or s3://, gs://, hdfs://.")]
Base = Annotated[str | None, typer.Option(help="Where its base model lies, if not where the adapter says.")]
Results = Annotated[str | None, typer.Option(help="Results with the trajectories of a learned subspace.")]
Device = Annotated[str, typer.Option(help='Where the model runs: "cpu" or "cuda".')]
Text = Annotated[str | None, typer.Option(help="Text column; two (subject,body) make pairs. Default: as in training.")]
Label = Annotated[str | None, typer.Option(help="Label column. Default: as in training.")]
Separator = Annotated[str | None, typer.Option(help="Of CSV. Default: it is found.")]
Encoding = Annotated[str | None, typer.Option(help="Of text files. Default: UTF-8.")]


def _columns(text: str | None) -> tuple[str, ...]:
    return tuple(text.split(",")) if text else ()


def predict(
    adapter: Adapter,
    data: Annotated[str, typer.Argument(help="Rows: CSV, TSV, JSON lines, Parquet or Arrow; a path or an address.")],
    out: Annotated[str | None, typer.Option(help="File to write: .csv, .jsonl or .parquet. Default: print.")] = None,
    text: Text = None,
    label: Label = None,
    keep: Annotated[list[str] | None, typer.Option(help="Another column to keep beside the text; repeat.")] = None,
    no_score: Annotated[bool, typer.Option("--no-score", help="Do not score, even where there are labels.")] = False,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Most tokens of a generated answer.")] = None,
    base: Base = None,
    results: Results = None,
    device: Device = "cpu",
    separator: Separator = None,
    encoding: Encoding = None,
    format: As = Format.table,
) -> None:
    """Predict the rows of a file with a saved adapter, and score that where the file has the labels.

    Example: distsub predict results/tickets/adapters/0123456789abcdef new.csv --out predicted.csv
    """
    from distsub.adapters import prediction, predictor
    from distsub.data import tables, tasks
    from distsub.report import table_files

    place = table_files.check_place(out) if out is not None else None
    if no_score and label:
        raise ConfigError(f"--no-score and --label {label} contradict each other; give one")
    tasks.check_writing(separator, None, encoding, "--")
    loaded = predictor.load(adapter, base, results, device)
    writing = tables.Writing(separator, None, encoding)
    rows = prediction.read(loaded, data, _columns(text), label, keep or (), writing)
    found = prediction.predict(loaded, rows, not no_score, max_new_tokens)
    if place is None:
        show(found.table, format)
    else:
        table_files.write(found.table, *place)
        say(f"wrote {found.table.num_rows} rows to {out}")
    for note in found.notes:
        say(f"note: {note}")
    if found.metrics:
        scores = ", ".join(f"{name} {value:.4f}" for name, value in found.metrics.items())
        say(f"{scores} on {found.scored} rows")


def export(
    what: Annotated[str, typer.Argument(help="An adapter's directory, or with --optuna a results directory.")],
    directory: Annotated[str | None, typer.Argument(help="With --to: the directory to write.")] = None,
    to: Annotated[To | None, typer.Option(help="Write an adapter for transformers or for PEFT.")] = None,
    dtype: Annotated[Weights | None, typer.Option(help="transformers: precision. Default: the base's.")] = None,
    rank: Annotated[int | None, typer.Option(min=1, help="peft: rank of each layer's update. Default: 8.")] = None,
    drop: Annotated[bool, typer.Option("--drop", help="peft: leave out what its format cannot hold.")] = False,
    data: Annotated[str | None, typer.Option(help="Rows to score on, before and after.")] = None,
    text: Text = None,
    label: Label = None,
    base: Base = None,
    results: Results = None,
    optuna: Annotated[
        Path | None, typer.Option(readable=False, help="Write all rows of results to this SQLite file.")
    ] = None,
    format: As = Format.table,
) -> None:
    """Export an adapter for transformers or PEFT, or the rows of results for optuna-dashboard.

    Example: distsub export results/tickets/adapters/0123456789abcdef --to transformers tickets-model

    Example: distsub export results/quickstart --optuna study.db
    """
    if (to is None) == (optuna is None):
        raise ConfigError(
            "give one: --to transformers DIRECTORY or --to peft DIRECTORY for an adapter, --optuna FILE for results"
        )
    if optuna is not None:
        given = {"a directory": directory, "--dtype": dtype, "--rank": rank, "--drop": drop, "--data": data}
        if wrong := [name for name, value in given.items() if value]:
            raise ConfigError(f"{wrong[0]} is of --to transformers or --to peft; --optuna writes one file of all rows")
        import pyarrow as pa

        from distsub.results.export import to_optuna

        studies = to_optuna(open_results(what).read(answers=False), optuna)
        show(pa.Table.from_pylist([{"study": name, "trials": count} for name, count in studies.items()]), format)
        return
    assert to is not None, "one of both is given"
    if directory is None:
        raise ConfigError(f"--to {to.value} needs a directory: distsub export {what} --to {to.value} DIRECTORY")
    from distsub.adapters import exports

    options = {"dtype": dtype and dtype.value, "rank": rank, "drop": drop}
    rows = {"data": data, "text": _columns(text), "label": label}
    show_facts(exports.export(what, to.value, directory, **options, **rows, base=base, results=results), format)


def fit(
    sweep_file: Annotated[Path | None, typer.Argument(readable=False, help="Sweep file, with --out.")] = None,
    out: Annotated[str | None, typer.Option("--out", help="Results of the sweep file; rows there are taken.")] = None,
    source: Annotated[str | None, typer.Option("--from", help="Results of a sweep that was run.")] = None,
    d: Annotated[int | None, typer.Option(min=1, help="Default: the upper end of d90's interval.")] = None,
    task: Annotated[str | None, typer.Option(help="Where the sweep has several.")] = None,
    model: Annotated[str | None, typer.Option(help="Where the sweep has several: the end of its address.")] = None,
    method: Annotated[str | None, typer.Option(help="Such as did or LORA. Default: that of the smallest d.")] = None,
    backend: Annotated[Backend, typer.Option(help="Where trainings run.")] = Backend.inline,
    plain: Plain = False,
    format: As = Format.table,
) -> None:
    """Take away the model at d90: train it over all seeds, keep the best adapter, score it on rows not looked at.

    Example: distsub fit --from results/tickets
    """
    from distsub.api import summary_of
    from distsub.runtime import fitting, launch

    if (source is None) == (sweep_file is None) or (sweep_file is None) != (out is None):
        raise ConfigError("give a sweep file with --out RESULTS, or --from RESULTS")
    if sweep_file is not None and out is not None:
        sweep, store = open_sweep(sweep_file, out)
        summary = summary_of(sweep, store)
    else:
        store = open_results(source or "")
        summary, sweep = summarize(store)
    choice = fitting.choose(sweep, store, summary, d, task, model, method)
    address, code = out or source or "", 0
    if {trial.id for trial in choice.trials} - store.trial_ids({"finished", "diverged"}):
        there = address if "://" in address else None
        fitting.ask(store, choice)
        code = launch.run(sweep, store, backend.value, plain, out=there, trials=choice.trials)
    stop_if_interrupted(code)
    show_facts(fitting.take(sweep, store, choice, address), format)
    raise typer.Exit(code)


def certify(
    adapter: Adapter,
    data: Annotated[str, typer.Argument(help="Rows with labels, as many as there are; those of the training may be.")],
    text: Text = None,
    label: Label = None,
    base: Base = None,
    delta: Annotated[float, typer.Option(help="Chance that the bound fails, over the draw of the rows.")] = 0.05,
    steps: Annotated[int, typer.Option(min=0, help="Steps of training that know of the rounding, on these rows.")] = 0,
    seed: Annotated[int, typer.Option(help="With --steps: of the order of rows.")] = 0,
    out: Annotated[str | None, typer.Option(help="Save the model that the bound is of, as an adapter.")] = None,
    device: Device = "cpu",
    format: As = Format.table,
) -> None:
    """Bound a classifier's error on unseen rows from how few bits describe it.

    Example: distsub certify results/tickets/adapters/0123456789abcdef tickets.csv --steps 100
    """
    from distsub.adapters import certificate

    rows = {"text": _columns(text), "label": label}
    training = {"steps": steps, "seed": seed, "out": out}
    facts = certificate.certify(adapter, data, **rows, base=base, delta=delta, device=device, **training)
    show_facts(facts, format)


def push(
    adapter: Annotated[str, typer.Argument(help="An adapter of results: OUT/adapters/ID or OUT/fitted/ID.")],
    repository: Annotated[str, typer.Argument(help="On the hub: owner/name; made if it is not there.")],
    private: Annotated[bool, typer.Option("--private", help="Make it private.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the card and send nothing.")] = False,
) -> None:
    """Push an adapter to the hub, with a card made from the results that it came out of.

    Example: distsub push results/tickets/adapters/0123456789abcdef somebody/tickets
    """
    from distsub import paths
    from distsub.adapters import hub, loading
    from distsub.api import Results as MeasuredResults

    hub.check_repository(repository)
    out, folder, trial_id = ["", "", *adapter.rstrip("/").rsplit("/", 2)][-3:]
    if folder not in (paths.ADAPTERS, paths.FITTED) or not out:
        raise ConfigError(f"{adapter} is no adapter of results, whose rows the card is made of: give OUT/adapters/ID")
    text = MeasuredResults(open_results(out)).card(trial_id, repository)
    with loading.local(adapter) as here:
        loading.read_config(here)  # a row has a card, but its adapter may not be there
        write(text if dry_run else f"pushed to {hub.push(here, repository, text, private)}")
