"""A fixed list of trials on the board's interface."""

from dataclasses import replace

from distsub.search.batch import Batch
from distsub.trial import Budget, Method, Observation, Seeds, Task, Trial

TRIALS = [
    Trial("m", Task("t", "x", ("a",)), Method("full"), None, rate, None, Seeds(), Budget(1)) for rate in (1.0, 2.0)
]


def test_trials_are_handed_out_in_order_until_they_are_observed():
    batch = Batch([*TRIALS, TRIALS[0]])
    first, second = TRIALS
    assert batch.max_trials() == 2 and not batch.finished and batch.findings() == () and batch.searches == ()
    assert batch.next(set(), 2) == first and batch.next({first.id}, 2) == second
    assert batch.next({first.id}, 1) is None and batch.next({first.id, second.id}, 5) is None
    assert batch.next(set(), 2) == first  # a lost node
    batch.observe(Observation(first, "error"))
    batch.observe(Observation(replace(first, learning_rate=9.0), "finished"))
    assert set(batch.wanted()) == {second.id}
    batch.observe(Observation(second, "finished"))
    assert batch.finished and batch.next(set(), 2) is None and not batch.is_spent
