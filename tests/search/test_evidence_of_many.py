"""Many rows at once give the same evidence as one by one."""

import math

from hypothesis import given
from hypothesis import strategies as st

from distsub.search import Evidence, share

SEEN = st.tuples(
    st.integers(0, 999),
    st.sampled_from(["finished", "diverged", "error"]),
    st.sampled_from([None, 0.1, 0.8, math.nan]),
    st.sampled_from([None, 0.5]),
)


@given(st.lists(SEEN, max_size=30))
def test_any_rows_in_any_order_fold_to_the_same(bench, seen):
    baseline = bench.baselines(rates=(1e-5, 3e-5))
    # Two seeds, a search that shares a setup on another grid, and one of a task that nobody asks for.
    searches = [bench.search(3, 2, seed, baseline=baseline) for seed in (0, 1)] + [bench.search(5, 1)]
    foreign = bench.search(9, 3, seed=7)
    trials = [*baseline, *(trial for each in (*searches, foreign) for d in each.dims for trial in each.trials_at(d))]
    rows = [bench.see(trials[number % len(trials)], score, status, chance) for number, status, score, chance in seen]
    shared = share(searches, rows)
    for search, own in zip(searches, shared, strict=True):
        expected = Evidence(search)
        for row in rows:
            expected = expected.add(row)
        assert Evidence.of(search, own) == expected
        assert sorted(row.trial.id for row in own) == sorted(row.trial.id for row in rows if search.owns(row.trial))
