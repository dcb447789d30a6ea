"""A fixed list of trials on the queue's interface."""

from distsub.records import Budget, Full, Model, Observation, Seeds, Setup, Task, Trial
from distsub.runtime.batch import Batch

TRIALS = [Trial(Setup(Model("m"), Task("t", "x", ("a",)), Full(), rate, Budget(1), Seeds())) for rate in (1.0, 2.0)]


def test_trials_are_handed_out_in_order_until_they_are_observed():
    batch = Batch([*TRIALS, TRIALS[0]])
    first, second = TRIALS
    assert batch.max_trials() == 2 and not batch.finished and batch.findings() == () and batch.searches == ()
    assert batch.next(set(), 2) == first and batch.next({first.id}, 2) == second
    assert batch.next({first.id}, 1) is None and batch.next({first.id, second.id}, 5) is None
    assert batch.next(set(), 2) == first  # a lost node
    batch.observe(Observation(first, "error"))
    batch.observe(Observation(first.vary(learning_rate=9.0), "finished"))
    assert set(batch.wanted()) == {second.id}
    batch.observe(Observation(second, "finished"))
    assert batch.finished and batch.next(set(), 2) is None and not batch.is_spent
