"""The commands of learned subspaces: record trajectories, find outliers, compare ways of training."""

from typing import Annotated

import typer

from distsub.api import sweep_of
from distsub.cli.options import As, Backend, Format, Out, Scope, SweepFile
from distsub.cli.shell import Stopped, open_results, open_sweep, pictures, say, show, told
from distsub.runtime.drain import INTERRUPTED, TERMINATED


def trajectory(
    sweep_file: SweepFile,
    out: Annotated[str, typer.Option(help="Results directory: a path, or s3://, gs://, hdfs://.")],
    format: As = Format.table,
) -> None:
    """Record the full fine-tunings that a sweep's learned subspaces are made of; the same command again resumes.

    Example: distsub trajectory mine.toml --out results/mine
    """
    sweep, store = open_sweep(sweep_file, out)
    from distsub.runtime import recording

    found = []
    for each, now in recording.record_all(sweep, store):
        say(f"{'recorded' if now else 'known   '} {each.id} {each.trial.task.name}")
        found.append(each)
    show(recording.listing(tuple(found), store), format)


def outliers(
    out: Out,
    k: Annotated[float, typer.Option(min=0.1, help="How many sigma make an outlier.")] = 3.0,
    scope: Annotated[Scope, typer.Option(help="Whose sigma: the layer's or the tensor's.")] = Scope.layer,
    every_d: Annotated[bool, typer.Option("--every-d", help="Look at every d, not at the largest alone.")] = False,
    disable: Annotated[
        list[str] | None,
        typer.Option(help='Fine-tune with outliers and controls disabled: "zero", "hold" or "reset"; repeat.'),
    ] = None,
    of: Annotated[list[str] | None, typer.Option(help='Whose outliers: "intrinsic", or "full"; repeat.')] = None,
    permutations: Annotated[int, typer.Option(min=19, help="Of every test of recurrence.")] = 999,
    backend: Annotated[Backend, typer.Option(help="Where those fine-tunings run.")] = Backend.tune,
    plain: Annotated[bool, typer.Option("--plain", help="Lines instead of the live table.")] = False,
    format: As = Format.table,
) -> None:
    """Find the outliers of learned updates, test whether they recur, and what disabling them costs.

    Example: distsub outliers results/z23 --disable zero --disable reset --of intrinsic
    """
    from distsub.learned import analyse
    from distsub.runtime import launch

    store, code = open_results(out), 0
    edits = analyse.edits_of(disable or [])
    sweep = sweep_of(store)
    updates = analyse.find_outliers(store, store.read(), k=k, every_d=every_d, say=say, asked=sweep.recordings())
    analyse.find_recurrence(store, updates, scope=scope.value, permutations=permutations)
    if edits:
        masks = analyse.make_masks(store, updates, of=of or ["intrinsic"], scope=scope.value, k=k)
        trials = analyse.ablation_trials(updates, masks, edits)
        code = launch.run(sweep, store, backend.value, plain, trials=trials)
        if code in (INTERRUPTED, TERMINATED):
            raise Stopped(code)
    ablations = analyse.compare_ablations(store, store.read())
    show(analyse.outlier_listing(store, updates), format)
    if ablations.num_rows and format is Format.table:
        show(ablations.select(list(analyse.ABLATION_COLUMNS)), format)
    pictures(analyse.draw(store, ("spikes", "components", "ablation")))
    raise typer.Exit(code)


def transfer(
    out: Out,
    d: Annotated[int | None, typer.Option(min=1, help="Compare the leading d directions; all otherwise.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Trajectories per task whose angles are measured.")] = 2,
    format: As = Format.table,
) -> None:
    """Compare ways of training, arrange scores by source and target task, and measure angles between their subspaces.

    Example: distsub transfer results/z23-transfer --format csv
    """
    from distsub.learned import analyse

    store = open_results(out)
    rows = store.read()
    modes, scores = analyse.compare_modes(store, rows)
    analyse.measure_geometry(store, rows, d=d, seeds=seeds, say=say, asked=sweep_of(store).recordings())
    if format is Format.table:
        show(told(store, modes).select(list(analyse.MODE_COLUMNS)), format)
    show(scores, format)
    pictures(analyse.draw(store, ("modes", "dims", "transfer", "angles", "spectra")))
