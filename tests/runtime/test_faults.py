"""Faults on real Ray processes: after each, the table is that of the undisturbed run, times aside.

`pytest tests/runtime/test_faults.py -m slow -s` prints how long each took to recover: from the fault to the next row,
or, where trials run on beside it, to the new start of what was lost. docs/reliability.md keeps the figures.
"""

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def say(fault, seconds):
    print(f"\n{fault}: recovered after {seconds:.1f} s")


def both_busy(run, starts, rig):
    """Wait until both nodes have begun a trial; give the trial that each runs."""
    nodes = [node.node_id for node in rig.nodes]
    run.until(lambda: {node for _, node, *_ in starts.read()} >= set(nodes), "use of both nodes")
    return {node: trial for _, node, _, trial in starts.read()}


def again(run, starts, trial, times):
    """Wait until a trial has begun so many times; give the seconds."""
    return run.until(lambda: sum(t == trial for *_, t in starts.read()) >= times, f"start {times} of {trial}")


@pytest.fixture
def two(rig, starts):
    """A rig of two nodes on which a training lasts long enough to be hit."""
    starts.patch(delay=2.0)
    rig.nodes = [rig.add(), rig.add()]
    return rig


def test_the_hard_loss_of_a_node(two, starts, small_sweep, tmp_path, truth, distsub_run):
    run = distsub_run(small_sweep, tmp_path / "lost", two.environment)
    lost = both_busy(run, starts, two)[two.nodes[0].node_id]
    two.cluster.remove_node(two.nodes[0], allow_graceful=False)
    say("node lost", again(run, starts, lost, 2))
    run.finish(truth)
