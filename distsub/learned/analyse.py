"""From a results directory to its analyses: read updates and rows, compute, write the tables."""

from collections.abc import Iterable, Sequence
from typing import Any, get_args

import numpy as np
import pyarrow as pa
from pyarrow import compute
from pyarrow import parquet as pq

from distsub import paths
from distsub.errors import AdapterError, ConfigError, DataError, OutputError, TrajectoryError, first_line, nearest
from distsub.finetune import ablate, trajectory
from distsub.learned import masks as masking
from distsub.learned.ablation import OUTLIERS as OUTLIER_MASK
from distsub.learned.ablation import ablations_table
from distsub.learned.modes import modes_table
from distsub.learned.outliers import NORMS, K, component_of, find, profile
from distsub.learned.recurrence import recurrence_table
from distsub.learned.schema import MASKS, OUTLIERS, TABLES
from distsub.learned.store import read_analysis, write_part
from distsub.learned.transfer import MODE, geometry_tables, layer_geometry, transfer_table
from distsub.learned.updates import Recorded, Say, Update, base_of, blocks, learned_updates, recorded, root_of
from distsub.records import Ablation, Edit, Full, Model, Observation, Recording, Trial
from distsub.results import Store
from distsub.subspace import layout

MODE_COLUMNS = (
    "task", "method", "d", "metric", "chance", "seeds", "score", "score_low", "score_high", "full", "difference",
    "difference_low", "difference_high", "recovered", "reason",
)  # fmt: skip
"""What `distsub transfer` shows of a way of training."""

ABLATION_COLUMNS = (
    "task", "method", "edit", "mask", "versus", "seeds", "metric", "score", "chance", "difference", "difference_low",
    "difference_high", "examples_low", "examples_high",
)  # fmt: skip
"""What `distsub ablate` shows of an ablation."""

SEEDS = 2
"""Trajectories per task between which angles are measured: the pairs grow with the square of their number."""


def find_outliers(
    store: Store,
    observations: Sequence[Observation],
    *,
    k: float = K,
    every_d: bool = False,
    say: Say = print,
    asked: Iterable[Recording] = (),
) -> list[Update]:
    """Find the outliers of at least k sigma of every learned update, and write their tables.

    An update that was looked through before with the same k is not read again.

    Args:
        store: The results.
        observations: Its rows.
        k: How many sigma.
        every_d: Look at every d, not at the largest alone.
        say: Prints a line per update, also of those left out: they cannot be read, or are not finite.
        asked: Trajectories that may be there beside those that rows name.

    Raises:
        ConfigError: There is no update.
    """
    updates = learned_updates(store, observations, every_d, say, asked)
    if not updates:
        raise ConfigError(
            f"{store.uri} holds no learned update: neither adapters/ of its trials nor trajectories/; run the sweep "
            "without --no-adapters first"
        )
    summaries = read_analysis(store.files, "outlier_summaries").select(["update", "k"])
    known = dict(zip(*(column.to_pylist() for column in summaries.columns), strict=True))
    usable: list[Update] = []
    for update in updates:
        about = update.about
        name = f"{about['task']} {about['method']} d={about['d']} s{about['data_seed']}"
        if known.get(update.id) == k:
            say(f"known    {name}")
            usable.append(update)
            continue
        try:
            parts = _look_through(update, k)
        except (TrajectoryError, AdapterError, DataError) as error:
            say(f"skipped  {name}: {error}")
            continue
        for table, pieces in parts.items():
            write_part(store.files, table, update.id, pa.concat_tables(pieces))
        say(f"outliers {name}: {sum(piece.num_rows for piece in parts['outliers'])}")
        usable.append(update)
    return usable


def _look_through(update: Update, k: float) -> dict[str, list[pa.Table]]:
    """Find an update's outliers layer by layer; the summaries, which say that it is known, come last."""
    about = update.about | {"k": k}
    parts: dict[str, list[pa.Table]] = {"outliers": [], "profiles": [], "outlier_summaries": []}
    for layer in update.layers():
        if not all(np.isfinite(values).all() for values in layer.update.values()):
            raise DataError(f"{layer.name} moved by numbers that are not finite")
        outliers, summaries = find(layer.name, layer.update, layer.theta_0, k)
        tables = {"outliers": outliers, "profiles": profile(layer.name, layer.update), "outlier_summaries": summaries}
        for name, table in tables.items():
            parts[name].append(_with(table, about, TABLES[name]))
    return parts


def find_recurrence(
    store: Store, updates: Sequence[Update], *, scope: str = "layer", permutations: int = 999
) -> pa.Table:
    """Test whether outliers of the updates of `find_outliers` come back to the same indices, and write the table.

    Args:
        store: The results.
        updates: From `find_outliers`; outliers of others, perhaps with another k, are not mixed in.
        scope: Whose sigma counts, "layer" or "tensor".
        permutations: Of every test.
    """
    outliers, summaries = (_of(updates, read_analysis(store.files, name)) for name in ("outliers", "outlier_summaries"))
    table = recurrence_table(outliers, summaries, scope=scope, permutations=permutations)
    write_part(store.files, "recurrence", f"recurrence-{scope}", table)
    return table


def outlier_listing(store: Store, updates: Sequence[Update]) -> pa.Table:
    """List, for every update and layer, whether there are more outliers than a Gaussian has, and larger ones."""
    summaries = _of(updates, read_analysis(store.files, "outlier_summaries"))
    columns = ("task", "method", "d", "data_seed", "layer", "outliers", "expected_outliers", "excess_kurtosis")
    whole = summaries.filter(summaries["tensor"].is_null())
    return whole.select([*columns, "max_sigmas", "expected_max_sigmas", "max_p"])


def edits_of(names: Sequence[str]) -> tuple[Edit, ...]:
    """Check names of edits.

    Raises:
        ConfigError: One is unknown.
    """
    known: tuple[Edit, ...] = get_args(Edit)
    for name in names:
        if name not in known:
            raise ConfigError(f'--edit "{name}" is unknown; {nearest(name, known)}')
    return tuple(edit for edit in known if edit in names)


def make_masks(
    store: Store, updates: Sequence[Update], *, of: Sequence[str], scope: str = "layer", k: float = K
) -> pa.Table:
    """Make the masks of some updates' outliers and their controls, and write them.

    Args:
        store: The results.
        updates: From `find_outliers`.
        of: Ways of training whose updates' outliers are disabled, such as "intrinsic"; "full" is theta_T - theta_0.
        scope: Whose sigma counts, "layer" or "tensor".
        k: How many sigma.

    Returns:
        Rows of MASKS; none for an update without outliers.

    Raises:
        ConfigError: No update was trained in one of these ways beside a full fine-tuning of the same seeds.
        OutputError: A mask cannot be written.
    """
    chosen = [each for each in updates if each.full is not None and each.about["method"] in of]
    if missing := sorted(set(of) - {each.about["method"] for each in chosen}):
        known = sorted({str(each.about["method"]) for each in updates if each.full is not None})
        raise ConfigError(
            f"{store.uri} holds no update of {', '.join(missing)} made of one recorded fine-tuning; "
            f"there are: {', '.join(known) or 'none'}"
        )
    root, tables = root_of(store), []
    for update in chosen:
        outliers = pq.read_table(root / "outliers" / f"{update.id}.parquet").cast(OUTLIERS)
        theta_0 = {layer.name: layer.theta_0 for layer in update.layers()}
        if not (mask := masking.outlier_positions(outliers, scope, k)):
            continue  # nothing to disable; the summaries say so
        kinds = {OUTLIER_MASK: mask}
        for number, (kind, match) in enumerate(masking.CONTROLS.items()):
            kinds[kind] = match(mask, theta_0, np.random.default_rng([update.about["data_seed"], number]))
        rows = [_write_mask(store, update, kind, at, mask, theta_0) for kind, at in kinds.items()]
        rows = [row | {"scope": scope, "k": k} for row in rows]
        tables.append(pa.Table.from_pylist(rows, schema=MASKS))
        write_part(store.files, "masks", f"{update.id}-{scope}", tables[-1])
    return pa.concat_tables([MASKS.empty_table(), *tables])


def _write_mask(
    store: Store,
    update: Update,
    kind: str,
    positions: masking.Positions,
    mask: masking.Positions,
    theta_0: masking.Layers,
) -> dict[str, Any]:
    """Write one mask under its name, and describe it."""
    name = ablate.mask_id(positions)
    try:
        store.files.make(paths.MASKS)
        store.files.put(paths.mask(name), ablate.to_bytes(positions), replace=False)
    except (OSError, pa.ArrowException) as error:
        raise OutputError(f"cannot write mask {name} to {store.uri} ({first_line(error)})") from error
    flat = {tensor: values.ravel() for tensors in theta_0.values() for tensor, values in tensors.items()}
    magnitudes = [np.abs(flat[tensor][at]) for tensor, at in positions.items()]
    count = sum(at.size for at in positions.values())
    about = update.about
    return {
        "mask": name,
        "kind": kind,
        "update": update.id,
        **{key: about[key] for key in ("method", "task", "model", "d", "head_seed", "data_seed")},
        "positions": count,
        "unmatched": sum(at.size for at in mask.values()) - count,
        "norm_positions": sum(at.size for tensor, at in positions.items() if component_of(tensor) == NORMS),
        "weight_magnitude": float(np.concatenate(magnitudes).mean()) if count else None,
    }


def ablation_trials(updates: Sequence[Update], masks: pa.Table, edits: Sequence[Edit]) -> list[Trial]:
    """List the fine-tunings with weights disabled, by rows of MASKS, and those that they are compared with."""
    full = {update.id: update.full for update in updates}
    trials: dict[Trial, None] = {}
    for row in masks.to_pylist():
        whole = full[row["update"]]
        assert whole is not None, "masks are made of updates that name a full fine-tuning"
        trials[whole] = None
        for edit in edits:
            trials[whole.vary(method=Full(Ablation(edit, row["mask"])))] = None
    return list(trials)


def compare_ablations(store: Store, observations: Sequence[Observation]) -> pa.Table:
    """Compare the ablated fine-tunings that have run, and write the table."""
    table = ablations_table(observations, read_analysis(store.files, "masks"))
    write_part(store.files, "ablations", "ablations", table)
    return table


def compare_modes(store: Store, observations: Sequence[Observation]) -> tuple[pa.Table, pa.Table]:
    """Compare the ways of training and arrange them by source and target, and write both tables."""
    modes = modes_table(observations)
    transfer = transfer_table(modes)
    write_part(store.files, "modes", "modes", modes)
    write_part(store.files, "transfer", "transfer", transfer)
    return modes, transfer


def measure_geometry(
    store: Store,
    observations: Sequence[Observation],
    *,
    d: int | None = None,
    seeds: int = SEEDS,
    say: Say = print,
    asked: Iterable[Recording] = (),
) -> tuple[pa.Table, pa.Table]:
    """Measure the spectra of the recorded trajectories and the angles between them, and write both tables.

    Args:
        store: The results.
        observations: Its rows, which name the trajectories.
        d: Compare the leading d directions; None takes all.
        seeds: Trajectories per model and task, those of the first seeds.
        say: Prints a line per layer.
        asked: Trajectories that may be there beside those that rows name.

    Returns:
        Rows of SPECTRA and of ANGLES; none where no trajectory was recorded.
    """
    root = root_of(store)
    by_model: dict[Model, dict[str, list[Recorded]]] = {}
    for each in recorded(root, observations, asked, say):
        by_model.setdefault(each.model, {}).setdefault(each.task, []).append(each)
    spectra, angles, about = [], [], {}
    for tasks in by_model.values():
        chosen = [each for task in sorted(tasks) for each in sorted(tasks[task], key=_by_seed)[:seeds]]
        for each in chosen:
            seeds_of = {f"{kind}_seed": each.seeds and getattr(each.seeds, kind) for kind in ("head", "data")}
            about[each.path.name] = {"task": each.task, "model": each.model.name} | seeds_of
        trajectories = {each.path.name: trajectory.load(each.path) for each in chosen}
        checkpoints = {name: each.updates for name, each in trajectories.items()}
        labels = trajectories[chosen[0].path.name].meta["num_labels"]
        for layer, entries in blocks(layout.entries(base_of(chosen[0], labels, store.files))):
            of_layer = layer_geometry(checkpoints, layer, [entry.name for entry in entries], d)
            spectra += of_layer[0]
            angles += of_layer[1]
            say(f"angles   {layer}: {len(of_layer[1])} pairs")
    tables = geometry_tables(spectra, angles, about)
    for name, table in zip(("spectra", "angles"), tables, strict=True):
        write_part(store.files, name, f"{name}-{MODE}", table)
    return tables


def _of(updates: Sequence[Update], table: pa.Table) -> pa.Table:
    """Keep the rows of some updates."""
    ids = pa.array([update.id for update in updates], pa.string())
    return table.filter(compute.field("update").cast(pa.string()).isin(ids))


def _by_seed(each: Recorded) -> tuple[Any, ...]:
    return (each.seeds.head, each.seeds.data, each.path.name) if each.seeds else (0, 0, each.path.name)


def _with(table: pa.Table, about: dict[str, Any], schema: pa.Schema) -> pa.Table:
    """Add what all rows share, and what is not known as nulls, in the order of a schema."""
    for name in set(schema.names) - set(table.column_names):
        table = table.append_column(name, pa.array([about.get(name)] * table.num_rows, schema.field(name).type))
    return table.select(schema.names).cast(schema)
