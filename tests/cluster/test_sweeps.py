"""Every sweep that is shipped, and what `init` writes, runs on every cluster that is shipped for its kind."""

from pathlib import Path

import pytest
import yaml

from distsub.config import parse_sweep
from distsub.config.sweep import Resources
from distsub.runtime import cluster
from distsub.survey import proposal

ROOT = Path(__file__).resolve().parents[2]
SWEEPS = sorted((ROOT / "sweeps").glob("*.toml"))


def workers():
    """List the resources of each kind of worker, by file and kind."""
    found = {}
    for name in ("aws", "gcp"):
        given = yaml.safe_load((ROOT / "cluster" / f"{name}.yaml").read_text())
        for kind, node in given["available_node_types"].items():
            if kind != given["head_node_type"]:
                found[name, kind] = {key: float(value) for key, value in node["resources"].items()}
    documents = yaml.safe_load_all((ROOT / "cluster" / "kuberay.yaml").read_text())
    [job] = [each for each in documents if each["kind"] == "RayJob"]
    for group in job["spec"]["rayClusterSpec"]["workerGroupSpecs"]:
        [container] = group["template"]["spec"]["containers"]
        asked = container["resources"]["limits"]
        found["kuberay", group["groupName"]] = {"CPU": float(asked["cpu"]), "GPU": float(asked["nvidia.com/gpu"])}
    return found


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_a_shipped_sweep_fits_every_worker_and_leaves_the_number_to_the_autoscaler(path):
    resources = parse_sweep(path.read_text(), path.parent, str(path)).resources
    assert resources.max_concurrent_trials is None
    assert {kind: cluster.fits(node, resources) > 0 for kind, node in workers().items()} == dict.fromkeys(
        workers(), True
    )


def test_what_init_writes_fits_every_worker_and_a_core_of_this_machine(tiny_model, tiny_data, tmp_path):
    rows = {"text": "sentence", "label": "label", "validation": None, "holdout": None}
    text, _ = proposal.sweep(tiny_model, tmp_path, None, Path(tiny_data), rows)
    resources = parse_sweep(text, tmp_path).resources
    assert all(cluster.fits(node, resources) for node in [*workers().values(), {"CPU": 1.0}])


@pytest.mark.parametrize(
    ("now", "grows", "most", "slots"),
    [
        (2, False, None, 2),
        (2, True, None, 7),
        (9, True, None, 9),
        (0, True, None, 7),
        (2, True, 3, 3),
        (0, False, 3, 3),
    ],
)
def test_trials_in_flight_are_what_is_said_else_what_fits_else_what_may_come(monkeypatch, now, grows, most, slots):
    """On a cluster of somebody's; whether that grows is tried with Ray's autoscaler in tests/runtime."""
    monkeypatch.setenv("RAY_ADDRESS", "somewhere:6379")
    monkeypatch.setattr(cluster, "nodes", lambda: [{"CPU": float(now)}])
    monkeypatch.setattr(cluster, "grows", lambda: grows)
    monkeypatch.setattr(cluster, "YOUNG_S", 0.0)
    assert cluster.slots(Resources(max_concurrent_trials=most), demand=7) == slots
