"""The Arrow schemas of the tables that analyses of learned updates leave beside the rows."""

import pyarrow as pa

from distsub.results.schema import columns

_TEXT, _INT, _FLOAT = pa.string(), pa.int64(), pa.float64()
_NAME = pa.dictionary(pa.int32(), pa.string())

UPDATE_FIELDS = (
    pa.field("update", _NAME, nullable=False),
    pa.field("kind", _NAME, nullable=False),
    *columns(_NAME, "task", "model", "method", "projection"),
    *columns(_INT, "d", "projection_seed", "head_seed", "data_seed"),
)
"""Which learned update a row is of.

`update` is the trial whose adapter moved the weights, or the trajectory whose last checkpoint did; `kind` says which:
"adapter" (P theta) or "trajectory" (theta_T - theta_0). `method` is the way of training, as in the observations, or
the method's name where that has none.
"""

OUTLIERS = pa.schema(
    [
        *UPDATE_FIELDS,
        *columns(_NAME, "layer", "tensor", "component"),
        *columns(_INT, "row", "column", "position"),
        *columns(_FLOAT, "value", "weight", "layer_sigmas", "tensor_sigmas"),
    ]
)
"""One row per outlier: an entry at least k sigma from the mean of its layer or of its tensor.

`row` is the output index of a weight matrix and `column` its input index (null for vectors), `position` the place in
the flattened tensor, `weight` theta_0 there.
"""

OUTLIER_SUMMARIES = pa.schema(
    [
        *UPDATE_FIELDS,
        ("k", _FLOAT),
        *columns(_NAME, "layer", "tensor", "component"),
        *columns(_INT, "rows", "columns", "size"),
        *columns(_FLOAT, "mean", "sigma", "norm"),
        ("outliers", _INT),
        *columns(_FLOAT, "expected_outliers", "excess_kurtosis", "max_sigmas", "expected_max_sigmas", "max_p"),
        ("layer_outliers", _INT),
    ]
)
"""One row per update and tensor, and one per update and layer (tensor is null), outliers or not.

`outliers` counts by the row's own sigma, the tensor's or the layer's; `layer_outliers` counts those of the layer's
sigma that lie in the tensor. The expected values are those of a Gaussian of the same size, and max_p is the probability
that one has an entry as large as max_sigmas. What cannot be said of an update that is 0 everywhere is null.
"""

PROFILES = pa.schema(
    [
        *UPDATE_FIELDS,
        *columns(_NAME, "layer", "tensor"),
        *columns(_INT, "start", "stop"),
        *columns(_FLOAT, "low", "high"),
    ]
)
"""The shape of an update along a layer: its smallest and largest entry in each stretch of positions, in sigma.

The layer's tensors lie end to end, each cut into stretches of its own; sigma is the layer's, counted from its mean.
"""

RECURRENCE = pa.schema(
    [
        *columns(_NAME, "across", "kind", "model", "method", "projection"),
        ("d", _INT),
        *columns(_NAME, "task", "layer", "tensor", "axis"),
        *columns(_INT, "units", "indices", "outliers"),
        *columns(_FLOAT, "statistic", "statistic_expected", "p", "p_adjusted"),
        ("permutations", _INT),
        ("top", pa.list_(pa.struct([("index", _INT), ("units", _INT), ("share", _FLOAT), ("p", _FLOAT)]))),
    ]
)
"""One row per question whether outliers come back to the same index, across tasks, seeds or layers."""

SPECTRA = pa.schema(
    [
        pa.field("trajectory", _NAME, nullable=False),
        *columns(_NAME, "task", "model"),
        *columns(_INT, "head_seed", "data_seed"),
        *columns(_NAME, "mode", "layer"),
        *columns(_INT, "checkpoints", "rank"),
        *columns(_FLOAT, "singular_value", "explained", "cumulative"),
    ]
)
"""One row per trajectory, layer and singular value, largest first (rank 1)."""

ANGLES = pa.schema(
    [
        *columns(_NAME, "model", "layer", "source", "target", "source_trajectory", "target_trajectory", "mode"),
        *columns(_INT, "size", "dims"),
        ("angles", pa.list_(_FLOAT)),
        *columns(_FLOAT, "overlap", "expected_overlap"),
    ]
)
"""One row per layer and pair of trajectories: the principal angles between their subspaces, in radians, rising.

`overlap` is the mean squared cosine, 1 for the same subspace; `expected_overlap` that of random ones of the same sizes.
"""

MODES = pa.schema(
    [
        *columns(_TEXT, "model", "task", "method", "source", "training", "projection"),
        *columns(_INT, "d", "steps"),
        ("metric", _TEXT),
        *columns(_FLOAT, "chance", "rate"),
        *columns(_INT, "rates", "seeds"),
        *columns(_FLOAT, "score", "score_low", "score_high"),
        ("scores", pa.list_(_FLOAT)),
        *columns(_FLOAT, "full", "difference", "difference_low", "difference_high", "t_p", "random", "recovered"),
        ("reason", _TEXT),
    ]
)
"""One row per task, way of training and d: its score over seeds, and its difference from full fine-tuning's.

`rate` is the learning rate or eta with the best mean score of the `rates` tried, the same for all seeds. The intervals
are 95% t intervals over seeds, that of the difference paired by head and data seed; null with fewer than two seeds.
`random` is the score of a random subspace of the same d that was trained alike, and `recovered` is (score - random) /
(full - random): 0 is no better than random, 1 as good as full fine-tuning; where it means nothing it is null, and
`reason` says why. `source` and `training` are those of TRANSFER, null for ways that are no entry of that matrix.
"""

TRANSFER = pa.schema(
    [
        *columns(_TEXT, "model", "source", "target", "training"),
        ("d", _INT),
        ("metric", _TEXT),
        *columns(_FLOAT, "score", "score_low", "score_high"),
        ("scores", pa.list_(_FLOAT)),
        ("seeds", _INT),
        *columns(_FLOAT, "full", "random", "chance", "recovered"),
        ("reason", _TEXT),
    ]
)
"""One row per source and target task: the target's score in the source's subspace.

Rows of MODES whose subspace is made of one task's trajectory, the target's own among them; every column as there.
"""

MASKS = pa.schema(
    [
        pa.field("mask", _TEXT, nullable=False),
        *columns(_TEXT, "kind", "update", "method", "task", "model"),
        *columns(_INT, "d", "head_seed", "data_seed"),
        ("scope", _TEXT),
        ("k", _FLOAT),
        *columns(_INT, "positions", "unmatched", "norm_positions"),
        ("weight_magnitude", _FLOAT),
    ]
)
"""One row per mask of weights to disable: which update's outliers it is of, and how well a control matches them.

`kind` is "outliers", "random", "tensor" or "magnitude"; `unmatched` outliers had no free entry left in their tensor;
`norm_positions` of the positions lie in LayerNorms; `weight_magnitude` is the mean of |theta_0| over the positions.
"""

ABLATIONS = pa.schema(
    [
        *columns(_TEXT, "task", "model", "method"),
        ("d", _INT),
        ("scope", _TEXT),
        ("k", _FLOAT),
        *columns(_TEXT, "edit", "mask"),
        ("seeds", _INT),
        ("positions", pa.list_(_INT)),
        ("metric", _TEXT),
        *columns(_FLOAT, "chance", "score", "score_low", "score_high"),
        ("scores", pa.list_(_FLOAT)),
        ("versus", _TEXT),
        *columns(_FLOAT, "difference", "difference_low", "difference_high", "t_p", "examples_low", "examples_high"),
        ("mcnemar_p", pa.list_(_FLOAT)),
    ]
)
"""One row per task, way of training whose outliers are disabled, edit, kind of mask and kind it is compared with.

Scores are paired by seed: `difference` is score minus that of `versus`, over the seeds that have both; its low and
high are the 95% t interval over seeds and t_p the paired t test's, null with fewer than two seeds; examples_low and
_high the 95% bootstrap interval over examples with the seeds as they are; mcnemar_p the exact test of each seed, null
for regression.
"""

TABLES: dict[str, pa.Schema] = {
    "outliers": OUTLIERS,
    "outlier_summaries": OUTLIER_SUMMARIES,
    "profiles": PROFILES,
    "recurrence": RECURRENCE,
    "spectra": SPECTRA,
    "angles": ANGLES,
    "modes": MODES,
    "transfer": TRANSFER,
    "masks": MASKS,
    "ablations": ABLATIONS,
}
"""The analyses by the name of their view and folder."""
