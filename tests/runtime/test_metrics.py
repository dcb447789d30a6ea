"""The figures that Prometheus reads: their names, what they count, and that Ray's endpoint shows them."""

import json
import os
import re
import subprocess
import sys
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import pytest

from distsub.runtime import metrics

DASHBOARD = Path(__file__).resolve().parents[2] / "cluster" / "grafana.json"
EXPORTED = {f"ray_{name}" for name in metrics.GAUGES} | {f"ray_{name}_total" for name in metrics.COUNTERS}


def test_the_dashboard_draws_exactly_what_is_exported():
    queue = json.loads(DASHBOARD.read_text())
    drawn = {name for panel in queue["panels"] for target in panel["targets"] for name in NAME.findall(target["expr"])}
    assert drawn == EXPORTED
    asked = NAME.findall(json.dumps(queue["templating"]))
    assert asked and set(asked) <= EXPORTED
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in queue["panels"]]
    assert len({panel["id"] for panel in queue["panels"]}) == len(set(places)) == len(places)


NAME = re.compile(r"ray_distsub_\w+")


@pytest.mark.parametrize(
    ("brackets", "mean"),
    [([(10, 1000), (100, 1000)], 1.5), ([(None, 10), (10, None)], 0.0), ([(1000, 10)], 2.0), ([], 0.0)],
)
def test_the_mean_width_counts_brackets_with_two_ends(brackets, mean):
    assert metrics.mean_log10([SimpleNamespace(bracket=each) for each in brackets]) == pytest.approx(mean)


@pytest.mark.parametrize(
    ("result", "counted"),
    [
        (
            {"final": True, "reported": ["finished", 0.9, 0.5, None, 1.0, 640, 9, []]},
            {("distsub_tokens", "finished"): 640},
        ),
        (
            {"final": True, "reported": ["diverged", None, 0.5, None, 1.0, 64, 9, []]},
            {("distsub_tokens", "diverged"): 64},
        ),
        ({"final": False, "moved": True}, {("distsub_trials", "retried"): 1}),
        ({"final": False, "short": "out of memory"}, {("distsub_trials", "retried"): 1}),
        ({"final": False}, {("distsub_trials", "cancelled"): 1}),
    ],
)
def test_a_trial_is_counted_by_what_its_row_says(monkeypatch, result, counted):
    found = {}

    class Figure:
        def __init__(self, name, *_):
            self.name = name

        def set_default_tags(self, tags):
            pass

        def inc(self, amount, tags):
            found[self.name, tags["status"]] = amount

    monkeypatch.setattr(metrics.metrics, "Counter", Figure)
    monkeypatch.setattr(metrics.metrics, "Gauge", Figure)
    gauges = metrics.Gauges(SimpleNamespace(), "out")
    trial = SimpleNamespace(trial_id="a", last_result=result)
    gauges.on_trial_start(0, [], trial)
    gauges.on_trial_complete(0, [], trial)
    assert counted.items() <= found.items() and {status for _, status in found} == {status for _, status in counted}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_prometheus_and_status_see_a_sweep_while_it_runs(
    computed, environment, starts, small_sweep, tmp_path, distsub_run, monkeypatch, truth, head_of_one
):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(starts.site), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("RAY_metrics_report_interval_ms", "1000")
    environment["RAY_metrics_report_interval_ms"] = "1000"
    gate = tmp_path / "gate"  # figures reach the endpoint some seconds after they are set: searches are open until then
    starts.patch(more=f"while trial.d is not None and not os.path.exists({str(gate)!r}):\n    time.sleep(0.1)")
    ray_cluster = head_of_one()
    node = ray_cluster.head_node
    url = f"http://{node.node_ip_address}:{node.metrics_export_port}/metrics"
    run = distsub_run(small_sweep, tmp_path / "seen", environment | {"RAY_ADDRESS": ray_cluster.address})

    def seen():
        try:
            text = urllib.request.urlopen(url, timeout=5).read().decode()
        except OSError:
            return set()
        return {match for match in EXPORTED if re.search(rf"^{match}{{", text, re.MULTILINE)}

    run.until(lambda: seen() == EXPORTED, "every figure")
    text = urllib.request.urlopen(url, timeout=5).read().decode()
    assert re.search(r"^ray_distsub_searches_open{.*} 2\.0$", text, re.MULTILINE)
    assert re.search(r'^ray_distsub_trials_total{.*status="finished".*} [1-9]', text, re.MULTILINE)
    asked = [sys.executable, "-m", "distsub.cli", "status", str(run.out), "--format", "json"]
    told = json.loads(subprocess.run(asked, env=environment, capture_output=True, text=True, check=True).stdout)
    assert run.poll() is None and len(told) == 2 and {row["outcome"] for row in told} == {"open"}
    gate.touch()
    run.finish(truth)
