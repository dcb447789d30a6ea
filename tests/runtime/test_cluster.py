"""The cluster under a sweep, on real Ray processes: counted, refused, drained, let go."""

import os
import time

import pytest

from distsub.config.sweep import Resources
from distsub.runtime import cluster


@pytest.mark.parametrize(
    ("node", "resources", "count"),
    [
        ({"CPU": 4.0}, Resources(cpus_per_trial=1), 4),
        ({"CPU": 4.0}, Resources(cpus_per_trial=0.3), 13),
        ({"CPU": 4.0, "GPU": 1.0}, Resources(cpus_per_trial=1, gpus_per_trial=0.25), 4),
        ({"CPU": 4.0, "GPU": 1.0}, Resources(cpus_per_trial=3, gpus_per_trial=0.25), 1),
        ({"CPU": 4.0}, Resources(gpus_per_trial=1), 0),
        ({"CPU": 1.0}, Resources(cpus_per_trial=2), 0),
        ({}, Resources(), 0),
    ],
)
def test_a_node_fits_as_many_trials_as_its_scarcest_resource(node, resources, count):
    assert cluster.fits(node, resources) == count


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_draining_node_gets_no_new_trial(
    computed, with_resources, rig, starts, small_sweep, tmp_path, truth, distsub_run
):
    with_resources(small_sweep, retries=0)  # to leave a node in time is no failure of the trial
    gate = tmp_path / "gate"  # no training ends before both nodes have one and one of them is about to go
    starts.patch(delay=1.0, more=f"while not os.path.exists({str(gate)!r}):\n    time.sleep(0.1)")
    leaves, stays = rig.add(), rig.add()
    run = distsub_run(small_sweep, tmp_path / "drained", rig.environment)
    run.until(lambda: {node for _, node, *_ in starts.read()} == {leaves.node_id, stays.node_id}, "use of both nodes")
    rig.drain(leaves, seconds=600)
    noticed = time.time()
    gate.touch()
    run.finish(truth)
    late = [node for when, node, *_ in starts.read() if when > noticed + 0.2]
    assert len(late) >= 3 and set(late) == {stays.node_id}
    assert run.log().count("its node is about to go") in (0, 1)  # 0 when no process waited there


@pytest.mark.slow
def test_a_request_that_this_machine_never_meets_is_refused_at_once(
    with_resources, small_sweep, tmp_path, environment, distsub_run
):
    run = distsub_run(with_resources(small_sweep, cpus_per_trial=4096), tmp_path / "never", environment)
    assert run.wait(100) == 2
    assert "a trial asks for 4096 CPUs and 0 GPUs on one node; of 1 nodes here none has more than" in run.log()
    assert "Traceback" not in run.log() and run.rows() == 0


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_request_that_no_node_meets_is_said_within_a_minute_and_met_when_one_joins(
    computed, rig, small_sweep, tmp_path, truth, distsub_run, with_resources
):
    rig.add(num_cpus=1)
    wide = with_resources(small_sweep, cpus_per_trial=1.5, max_concurrent_trials=2)
    run = distsub_run(wide, tmp_path / "wide", rig.environment)
    run.until(lambda: "connecting" in run.log(), "connection")
    assert run.until(lambda: "waiting  a trial asks for 1.5 CPUs" in run.log(), "warning") < 60
    assert run.log().count("waiting") == 1 and run.rows() == 0
    rig.add(num_cpus=3)
    run.finish(truth)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_idle_process_lets_go_of_its_node_while_the_last_trial_runs(
    computed, rig, starts, small_sweep, tmp_path, truth, distsub_run
):
    gate = tmp_path / "gate"
    last = f"while (trial.d, trial.seeds.data) == (256, 0) and not os.path.exists({str(gate)!r}):\n    time.sleep(0.1)"
    starts.patch(more=last)
    rig.add(), rig.add()
    run = distsub_run(small_sweep, tmp_path / "tail", rig.environment)
    run.until(lambda: len({pid for *_, pid, _ in starts.read()}) == 2, "both processes")
    pids = {pid for *_, pid, _ in starts.read()}
    run.until(lambda: sum(os.path.exists(f"/proc/{pid}") for pid in pids) == 1, "end of the idle process")
    slow = next(pid for *_, pid, _ in starts.read() if os.path.exists(f"/proc/{pid}"))
    assert starts.read()[-1][2] == slow or run.rows() < len(truth)
    gate.touch()
    run.finish(truth)
