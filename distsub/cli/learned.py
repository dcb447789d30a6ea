"""The commands of learned subspaces: record trajectories, compare ways of training, find outliers, ablate them."""

from typing import Annotated

import typer

from distsub.api import sweep_of
from distsub.cli.options import As, Backend, Dtype, Format, NewOut, Out, Plain, Scope, SweepFile
from distsub.cli.shell import list_figures, open_results, open_sweep, say, show, stop_if_interrupted, with_notices

Sigmas = Annotated[float, typer.Option(min=0.1, help="An outlier is at least this many sigma from the mean.")]
SigmaOf = Annotated[Scope, typer.Option(help="Compute sigma over the layer or over the tensor.")]
Snapshots = Annotated[Dtype, typer.Option(help="Precision in which the differences from BASE are kept.")]
EveryD = Annotated[bool, typer.Option("--every-d", help="Read the updates of every d, not only of the largest.")]


trajectories = typer.Typer(
    no_args_is_help=True,
    help="Record full fine-tunings, or import checkpoints, of which learned subspaces are made.",
)
"""The commands of `distsub trajectory`."""


@trajectories.command()
def record(sweep_file: SweepFile, out: NewOut, format: As = Format.table) -> None:
    """Record the full fine-tunings of which learned subspaces are made. The same command again resumes.

    Example: distsub trajectory record mine.toml --out results/mine
    """
    sweep, store = open_sweep(sweep_file, out)
    from distsub.runtime import recording

    recordings = []
    for each, is_new in recording.record_all(sweep, store):
        say(f"{'recorded' if is_new else 'known   '} {each.id} {each.trial.task.name}")
        recordings.append(each)
    show(recording.listing(tuple(recordings), store), format)


@trajectories.command("import")
def import_(
    base: Annotated[str, typer.Argument(help="The model that training began from, as a sweep's models; ORG/NAME@REV.")],
    checkpoints: Annotated[list[str], typer.Argument(help="Folders of transformers checkpoints, or ORG/NAME@REV.")],
    out: Annotated[str, typer.Option("--out", help="Folder of the trajectory, which is not there yet.")],
    dtype: Snapshots = Dtype.bfloat16,
    format: As = Format.table,
) -> None:
    """Make a trajectory of checkpoints from elsewhere, for a method's trajectory key.

    Example: distsub trajectory import org/base checkpoint-*/ --out imported
    """
    from distsub.finetune import importing

    found = importing.import_checkpoints(base, checkpoints, out, dtype.value)
    show(importing.listing(found), format)
    if left_out := found.meta["left_out"]:
        say(f"note: without {', '.join(left_out)}, whose start {base} does not say; subspaces of layers need it not")
    say(f'name it in a sweep file: methods = [{{ name = "intrinsic", trajectory = "{out}" }}]')


def transfer(
    out: Out,
    d: Annotated[int | None, typer.Option(min=1, help="Compare the leading d directions. Default: all.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Trajectories per task to measure angles between.")] = 2,
    format: As = Format.table,
) -> None:
    """Compare ways of training, scores by source and target task, and angles between subspaces.

    Example: distsub transfer results/z23-transfer --format csv
    """
    from distsub.learned import analyse, figures

    store = open_results(out)
    rows = store.read()
    modes, scores = analyse.compare_modes(store, rows)
    analyse.measure_geometry(store, rows, d=d, seeds=seeds, say=say, asked=sweep_of(store).recordings())
    if format is Format.table:
        show(with_notices(store, modes).select(list(analyse.MODE_COLUMNS)), format)
    show(scores, format)
    list_figures(figures.draw(store, ("modes", "dims", "transfer", "angles", "spectra")))


def outliers(
    out: Out,
    k: Sigmas = 3.0,
    scope: SigmaOf = Scope.layer,
    every_d: EveryD = False,
    permutations: Annotated[int, typer.Option(min=19, help="Permutations in each recurrence test.")] = 999,
    format: As = Format.table,
) -> None:
    """Find outliers in learned updates and test whether they recur. Trains nothing.

    Example: distsub outliers results/z23
    """
    from distsub.learned import analyse, figures

    store = open_results(out)
    updates = analyse.find_outliers(
        store, store.read(), k=k, every_d=every_d, say=say, asked=sweep_of(store).recordings()
    )
    analyse.find_recurrence(store, updates, scope=scope.value, permutations=permutations)
    show(analyse.outlier_listing(store, updates), format)
    list_figures(figures.draw(store, ("spikes", "components")))


def ablate(
    out: Out,
    edit: Annotated[list[str], typer.Option(help='What to do to the weights: "zero", "hold" or "reset"; repeat.')],
    of: Annotated[list[str] | None, typer.Option(help='Whose outliers: "intrinsic" (default), "full"; repeat.')] = None,
    k: Sigmas = 3.0,
    scope: SigmaOf = Scope.layer,
    every_d: EveryD = False,
    backend: Annotated[Backend, typer.Option(help="Where the fine-tunings run.")] = Backend.tune,
    plain: Plain = False,
    format: As = Format.table,
) -> None:
    """Fine-tune with outliers and controls disabled, and compare the scores. The same command again resumes.

    Example: distsub ablate results/z23 --edit zero --edit reset --of intrinsic
    """
    from distsub.learned import analyse, figures
    from distsub.runtime import launch

    store = open_results(out)
    edits = analyse.edits_of(edit)
    sweep = sweep_of(store)
    updates = analyse.find_outliers(store, store.read(), k=k, every_d=every_d, say=say, asked=sweep.recordings())
    masks = analyse.make_masks(store, updates, of=of or ["intrinsic"], scope=scope.value, k=k)
    code = launch.run(sweep, store, backend.value, plain, trials=analyse.ablation_trials(updates, masks, edits))
    stop_if_interrupted(code)
    ablations = analyse.compare_ablations(store, store.read())
    show(ablations.select(list(analyse.ABLATION_COLUMNS)) if format is Format.table else ablations, format)
    list_figures(figures.draw(store, ("ablation",)))
    raise typer.Exit(code)
