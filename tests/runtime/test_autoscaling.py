"""A sweep on a cluster that grows and shrinks by itself, with Ray's fake node provider on this machine."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ray

HEAD = "f" * 51 + "00000"


class Growing:
    """A head without CPUs and an autoscaler (v2) that starts nodes of one CPU, four at most."""

    def __init__(self, folder, environment, free_port):
        port = free_port()
        self.address = f"{ray.util.get_node_ip_address()}:{port}"
        config = Path(folder) / "autoscaler.json"
        config.write_text(json.dumps(configuration(self.address)))
        identity = {"RAY_CLOUD_INSTANCE_ID": HEAD, "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD}
        patient = {"AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_raylet_start_wait_time_s": "120"}
        fake = {"RAY_FAKE_CLUSTER": "1", "RAY_enable_autoscaler_v2": "1"}
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"),
                *(f"--autoscaling-config={config}", f"--port={port}", f"--temp-dir={folder}", "--num-cpus=0"),
                *("--include-dashboard=false", "--object-store-memory=80000000", "--dashboard-agent-listen-port=0"),
                *("--min-worker-port=0", "--max-worker-port=0", f"--ray-client-server-port={free_port()}"),
            ],
            env=environment | identity | patient | fake,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self.environment = environment | {"RAY_ADDRESS": self.address}

    def nodes(self):
        """Count the live nodes beside the head; None while the head does not answer."""
        try:
            from ray._raylet import GcsClient

            infos = GcsClient(self.address).get_all_node_info(timeout=5).values()
            return sum(info.state == 0 for info in infos) - 1
        except Exception:
            return None

    def end(self):
        os.killpg(self._process.pid, signal.SIGKILL)  # the head, and the fake nodes that it has started
        self._process.wait()


def configuration(address):
    provider = {
        "type": "external",
        "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
        "head_node_id": HEAD,
        "launch_multiple": True,
        "gcs_address": address,
    }
    kinds = {
        "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "small": {
            "resources": {"CPU": 1, "object_store_memory": 80_000_000},
            "node_config": {},
            "min_workers": 0,
            "max_workers": 4,
        },
    }
    lists = ("cluster_synced_files", "initialization_commands", "setup_commands", "head_setup_commands")
    lists += ("worker_setup_commands", "head_start_ray_commands", "worker_start_ray_commands")
    lists += ("rsync_exclude", "rsync_filter")
    return {
        "cluster_name": "test",
        "max_workers": 4,
        "upscaling_speed": 100.0,
        "idle_timeout_minutes": 0.1,
        "provider": provider,
        "head_node_type": "ray.head.default",
        "available_node_types": kinds,
        "file_mounts_sync_continuously": False,
        **{key: {} for key in ("auth", "docker", "file_mounts")},
        **{key: [] for key in lists},
    }


@pytest.fixture
def growing(folder, environment, starts, free_port):
    environment["PYTHONPATH"] = os.pathsep.join([str(starts.site), os.environ.get("PYTHONPATH", "")])
    made = Growing(folder, environment, free_port)
    yield made
    made.end()


GATE = "while not os.path.exists({open!r}):\n    time.sleep(0.1)"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_cluster_grows_to_four_nodes_under_a_sweep_and_back(
    computed, growing, starts, tiny_sweep, tmp_path, distsub_run, with_resources
):
    """Twice; without a number it is handed all that its searches can use, of which the cluster runs what it may."""

    def until(condition, what, seconds):
        began = time.monotonic()
        while not condition():
            assert time.monotonic() - began < seconds, what
            time.sleep(0.2)
        return time.monotonic() - began

    def grows_and_shrinks(name, **most):
        gate, before = tmp_path / f"{name}, open", len(starts.read())
        starts.patch(more=GATE.format(open=str(gate)))  # a training lasts until each of four nodes has one
        with_resources(tiny_sweep, cpus_per_trial=1, **most)
        run = distsub_run(tiny_sweep, tmp_path / name, growing.environment)
        run.until(lambda: "connecting" in run.log(), "connection")
        print(f"\n{name}: four nodes after {run.until(lambda: growing.nodes() == 4, 'four nodes'):.0f} s")
        run.until(lambda: len({node for _, node, *_ in starts.read()[before:]}) == 4, "use of all four")
        gate.touch()
        run.finish(seconds=600)
        assert "waiting" not in run.log()
        assert len({node for _, node, *_ in starts.read()[before:]}) == 4
        back = until(lambda: growing.nodes() == 0, "nodes still there", 240)
        print(f"the head alone {back:.0f} s after the sweep's end")

    until(lambda: growing.nodes() == 0, "no head", 120)
    grows_and_shrinks("as many as asked", max_concurrent_trials=4)
    grows_and_shrinks("as many as may be")
