"""Draw the figures of a results directory from its tables of learned updates."""

import io
from collections.abc import Callable, Sequence

from distsub import paths
from distsub.learned import figures_of_scores, figures_of_updates
from distsub.learned.store import read_analysis
from distsub.results import Store

FIGURES: dict[str, Callable[..., None]] = {
    "spikes": figures_of_updates.spikes_figure,
    "components": figures_of_updates.components_figure,
    "spectra": figures_of_updates.spectra_figure,
    "ablation": figures_of_scores.ablation_figure,
    "modes": figures_of_scores.modes_figure,
    "transfer": figures_of_scores.transfer_figure,
    "angles": figures_of_scores.angles_figure,
    "dims": figures_of_scores.dims_figure,
}


def draw(store: Store, names: Sequence[str]) -> list[str]:
    """Draw figures from the tables of a results directory.

    Args:
        store: The results.
        names: Of "spikes", "components", "ablation", "modes", "transfer", "angles", "dims", "spectra".

    Returns:
        The pictures' paths; none for a table without rows, no "dims" where no way of training has several d.
    """
    sources = {"spikes": "profiles", "components": "outlier_summaries", "ablation": "ablations", "dims": "modes"}
    drawn = []
    for name in names:
        table = read_analysis(store.files, sources.get(name, name))
        if not table.num_rows or (name == "dims" and not figures_of_scores.curves(table.to_pylist())):
            continue
        sink = io.BytesIO()
        FIGURES[name](table, sink)
        store.files.make(paths.FIGURES)
        store.files.put(f"{paths.FIGURES}/{name}.png", sink.getvalue())
        drawn.append(f"{store.uri.rstrip('/')}/figures/{name}.png")
    return drawn
