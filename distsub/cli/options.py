"""The options and arguments that commands share."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from distsub.report.streams import give_up_output


def _version(wanted: bool) -> None:
    if wanted:
        import distsub

        try:
            print(f"distsub {distsub.__version__}", flush=True)
        except BrokenPipeError:  # the reader has left
            give_up_output()
        raise typer.Exit


class Format(StrEnum):
    """How a listing is printed."""

    table = "table"
    json = "json"
    csv = "csv"


class Backend(StrEnum):
    """Where trials run."""

    tune = "tune"
    inline = "inline"


class Dtype(StrEnum):
    """In which precision checkpoints are kept."""

    bfloat16 = "bfloat16"
    float32 = "float32"


class Scope(StrEnum):
    """The entries over which sigma is computed."""

    layer = "layer"
    tensor = "tensor"


SweepFile = Annotated[Path, typer.Argument(readable=False, help="Sweep file (TOML), see docs/sweep-file.md.")]
Out = Annotated[str, typer.Argument(help="Results directory: a path, or s3://, gs://, hdfs://.")]
NewOut = Annotated[str, typer.Option("--out", help="Results directory: a path, or s3://, gs://, hdfs://.")]
Plain = Annotated[bool, typer.Option("--plain", help="Print lines instead of the live table.")]
As = Annotated[Format, typer.Option("--format", help="Output format.")]
Version = Annotated[
    bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
]
