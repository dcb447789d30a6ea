"""The Arrow schemas of the two tables that are computed from the rows: searches and d90."""

import pyarrow as pa

from distsub.results.schema import METHOD_COLUMNS, columns

_TEXT, _INT, _FLOAT = pa.string(), pa.int64(), pa.float64()

_CONDITION = columns(_TEXT, "task", "model", "label", *METHOD_COLUMNS)
_GOAL = [
    *columns(_TEXT, "threshold_rule", "chance_rule"),
    *columns(_FLOAT, "baseline_score", "chance", "threshold", "threshold_chance_corrected"),
]
_COUNTS = [
    *columns(_INT, "trials", "num_params", "num_params_model", "num_trained_head", "num_scales"),
    ("wall_s", _FLOAT),
]

SEARCHES = pa.schema(
    [
        *columns(_TEXT, "search", "setup_id", "condition_id"),
        *_CONDITION,
        *columns(_INT, "projection_seed", "head_seed", "data_seed"),
        ("outcome", _TEXT),
        *columns(_INT, "first_passing_d", "bracket_low", "bracket_high"),
        *_GOAL,
        ("best_score", _FLOAT),
        *_COUNTS,
    ]
)
"""One row per search: a setup (a condition with its seeds) and a grid.

first_passing_d is null unless the outcome is "found". The bracket is open at its lower end: bracket_low is the largest
d known to fail, bracket_high the smallest known to pass; null where nothing failed or nothing passed. label tells the
methods of the sweep apart, for people. threshold_rule says what the threshold is ("0.9 x full", "accuracy >= 0.8"),
chance_rule whether chance is the "majority" class or "theta_0", the untouched model.
"""

D90 = pa.schema(
    [
        ("condition_id", _TEXT),
        *_CONDITION,
        *columns(_FLOAT, "d90", "d90_low", "d90_high"),
        *columns(_TEXT, "d90_outcome", "d90_text", "d90_chance_corrected_text"),
        ("first_passing_d", pa.list_(_INT)),
        *columns(_FLOAT, "failed_full", "failed_subspace"),
        ("warnings", pa.list_(_TEXT)),
        ("fit", pa.list_(pa.struct([("d", _FLOAT), ("low", _FLOAT), ("middle", _FLOAT), ("high", _FLOAT)]))),
        ("searches", _INT),
        ("outcomes", pa.map_(_TEXT, _INT)),
        *_GOAL,
        *_COUNTS,
    ]
)
"""One row per condition (model, task, method, learning rate, budget) over all its seeds.

d90 is the median, d90_low and d90_high the 95% interval of the d at which the expected score of trainings that train
crosses the threshold, from all rows of all seeds. d90 is null unless d90_outcome is "found", an end of the interval
where it lies beyond the range; d90_text says it all in words. first_passing_d lists what each search found (null where
it found none), in the order of the searches' seeds. failed_full and failed_subspace are the shares of the trainings
that failed to train and are left out (a subspace training that diverged counts). Where threshold_rule is a score to
reach, d90 is the d at which it is reached, and what follows from full fine-tuning is null. fit is the expected score
with its 95% band. trials and wall_s count every training once, also a baseline's that several searches share.
"""
