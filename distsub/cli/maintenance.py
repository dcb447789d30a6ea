"""The commands that look after results and machines."""

from typing import Annotated

import typer

from distsub.api import sweep_of
from distsub.cli.options import As, Format, Out
from distsub.cli.shell import open_results, show, with_notices


def replay(
    out: Out,
    policy: Annotated[list[str] | None, typer.Option(help="A search policy; repeat for several. Default: all.")] = None,
    slots: Annotated[int, typer.Option(min=1, help="Trials at once.")] = 1,
    format: As = Format.table,
) -> None:
    """Simulate search policies on recorded trials: what would they have cost and found?

    Example: distsub replay results/grid --policy grid --policy bisection --slots 8
    """
    from distsub.runtime.replay import replay as play
    from distsub.runtime.simulated import Machines
    from distsub.search import POLICIES

    store = open_results(out)
    show(play(sweep_of(store).searches(), store.read(), policy or list(POLICIES), Machines(slots=slots)), format)


def compact(out: Out, format: As = Format.table) -> None:
    """Merge many row files into a few large ones, which load faster. Safe while a sweep runs.

    Example: distsub compact results/quickstart
    """
    from distsub.results import compact as merge

    store = open_results(out)
    show(with_notices(store, merge(store)), format)


def doctor(format: As = Format.table) -> None:
    """Check this installation: versions, cores, devices, demo files, scratch directory."""
    from distsub.runtime import launch

    table, healthy = launch.doctor()
    show(table, format)
    raise typer.Exit(0 if healthy else 1)
