"""The commands that use what came out: a saved adapter."""

from typing import Annotated

import typer

from distsub.cli.options import As, Format
from distsub.cli.shell import say, show
from distsub.errors import ConfigError

Adapter = Annotated[str, typer.Argument(help="An adapter's directory: a path, or s3://, gs://, hdfs://.")]
Base = Annotated[str | None, typer.Option(help="Where its base model lies, if not where the adapter says.")]
Results = Annotated[str | None, typer.Option(help="Results with the trajectories of a learned subspace.")]
Device = Annotated[str, typer.Option(help='Where the model runs: "cpu" or "cuda".')]
Text = Annotated[str | None, typer.Option(help="Text column; two (subject,body) make pairs. Default: as in training.")]
Label = Annotated[str | None, typer.Option(help="Label column, to score. Default: as in training, if it is there.")]
Separator = Annotated[str | None, typer.Option(help="Of CSV. Default: it is found.")]
Encoding = Annotated[str | None, typer.Option(help="Of text files. Default: UTF-8.")]


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
    from distsub.finetune import prediction, predictor, tables
    from distsub.report import table_files

    place = table_files.check_place(out) if out is not None else None
    if no_score and label:
        raise ConfigError(f"--no-score and --label {label} contradict each other; give one")
    loaded = predictor.load(adapter, base, results, device)
    writing = tables.Writing(separator, None, encoding)
    rows = prediction.read(loaded, data, tuple(text.split(",")) if text else (), label, keep or (), writing)
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
