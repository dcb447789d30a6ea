"""Draw the figures of a results directory from its tables of learned updates."""

import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import pyarrow as pa

from distsub import paths
from distsub.learned import figures_of_scores, figures_of_updates
from distsub.learned.store import read_analysis
from distsub.report.drawing import literal
from distsub.results import Store

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURES: dict[str, Callable[[pa.Table], "Figure"]] = {
    "spikes": figures_of_updates.spikes_figure,
    "components": figures_of_updates.components_figure,
    "spectra": figures_of_updates.spectra_figure,
    "ablation": figures_of_scores.ablation_figure,
    "modes": figures_of_scores.modes_figure,
    "transfer": figures_of_scores.transfer_figure,
    "angles": figures_of_scores.angles_figure,
    "dims": figures_of_scores.dims_figure,
}


@literal
def png(name: str, table: pa.Table) -> bytes:
    """Draw one of FIGURES."""
    sink = io.BytesIO()
    FIGURES[name](table).savefig(sink, format="png")
    return sink.getvalue()


def draw(store: Store, names: Sequence[str]) -> list[str]:
    """Draw figures from the tables of a results directory.

    Args:
        store: The results.
        names: Of FIGURES.

    Returns:
        The paths of the pictures; none of a table without rows, no "dims" where no method has several d.
    """
    sources = {"spikes": "profiles", "components": "outlier_summaries", "ablation": "ablations", "dims": "modes"}
    drawn = []
    for name in names:
        table = read_analysis(store.files, sources.get(name, name))
        if not table.num_rows or (name == "dims" and not figures_of_scores.curves(table.to_pylist())):
            continue
        store.files.make(paths.FIGURES)
        store.files.put(f"{paths.FIGURES}/{name}.png", png(name, table))
        drawn.append(f"{store.uri.rstrip('/')}/figures/{name}.png")
    return drawn
