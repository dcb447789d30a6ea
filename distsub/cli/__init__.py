"""The command line: parse, call, print. No logic, and nothing heavy imported before it is needed."""

import errno
import sys
from typing import Any

import typer

from distsub.cli import adapters, learned, maintenance, measure
from distsub.cli.options import Version
from distsub.cli.shell import Stopped, say
from distsub.errors import DistsubError
from distsub.report import streams
from distsub.runtime.drain import INTERRUPTED

app = typer.Typer(
    name="distsub",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="How few numbers does it take to fine-tune this pretrained model on this task?",
    epilog="Exit codes: 0 done, 1 crash, 2 bad input, 3 a trial ended in an error, 4 limit reached, 130 interrupted, "
    "143 ended by SIGTERM.",
)

GROUPS = {
    "Measure": (
        *(measure.init, measure.plan, measure.run, measure.status),
        *(measure.query, measure.report, measure.inspect),
    ),
    "Adapters": (adapters.fit, adapters.predict, adapters.export, adapters.push, adapters.certify),
    "Learned subspaces": (learned.transfer, learned.outliers, learned.ablate),
    "Maintenance": (maintenance.replay, maintenance.compact, maintenance.doctor),
}
"""The commands as the help text lists them."""

for _group, _commands in GROUPS.items():
    for _command in _commands:
        app.command(rich_help_panel=_group)(_command)
app.add_typer(learned.trajectories, name="trajectory", rich_help_panel="Learned subspaces")


@app.callback()
def program(version: Version = False) -> None:
    """Read the options that come before a command."""


def main(arguments: list[str] | None = None) -> Any:
    """Run the command line. An error that the user can fix is one line on stderr and exit code 2."""
    streams.settle()
    given = sys.argv[1:] if arguments is None else arguments
    try:
        return app(arguments, standalone_mode=True)
    except DistsubError as error:
        for line in str(error).split("\n") if str(error) else [type(error).__name__]:
            say(f"distsub: {line}")
        sys.exit(2)
    except PermissionError as error:
        say(f"distsub: cannot use {error.filename} ({error.strerror}); give one that you may use")
        sys.exit(2)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        say(f"distsub: cannot write to {error.filename or 'standard output'} ({error.strerror}); make room there")
        streams.give_up_output()
        sys.exit(2)
    except (SystemExit, KeyboardInterrupt) as end:  # Typer turns the first interrupt into an exit
        if isinstance(end.__context__, BrokenPipeError) and (not given or "--help" in given):
            streams.give_up_output()
            sys.exit(0)  # the reader has left, as in `distsub --help | head`
        if isinstance(end, SystemExit) and not (end.code == INTERRUPTED or isinstance(end, Stopped)):
            raise
        import signal

        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C means the same
        if isinstance(end, Stopped):
            raise
        say("distsub: interrupted; finished trials are kept, the same command resumes")
        sys.exit(INTERRUPTED)
