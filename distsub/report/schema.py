"""The Arrow schemas of the two tables that are computed from the rows: searches and d90."""

import pyarrow as pa

from distsub.results.schema import METHOD_COLUMNS

_TEXT, _INT, _FLOAT = pa.string(), pa.int64(), pa.float64()

_CONDITION = [(name, _TEXT) for name in ("task", "model", "label", *METHOD_COLUMNS)]
_GOAL = [
    *((name, _TEXT) for name in ("threshold_rule", "chance_rule")),
    *((name, _FLOAT) for name in ("baseline_score", "chance", "threshold", "threshold_chance_corrected")),
]
_COUNTS = [
    *((name, _INT) for name in ("trials", "num_params", "num_params_model", "num_trained_head", "num_scales")),
    ("wall_s", _FLOAT),
]

SEARCHES = pa.schema(
    [
        ("search", _TEXT),
        ("setup_id", _TEXT),
        ("condition_id", _TEXT),
        *_CONDITION,
        ("projection_seed", _INT),
        ("head_seed", _INT),
        ("data_seed", _INT),
        ("outcome", _TEXT),
        ("first_passing_d", _INT),
        ("bracket_low", _INT),
        ("bracket_high", _INT),
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
        ("d90", _FLOAT),
        ("d90_low", _FLOAT),
        ("d90_high", _FLOAT),
        ("d90_outcome", _TEXT),
        ("d90_text", _TEXT),
        ("d90_chance_corrected_text", _TEXT),
        ("first_passing_d", pa.list_(_INT)),
        ("failed_full", _FLOAT),
        ("failed_subspace", _FLOAT),
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
with its 95% band.
"""
