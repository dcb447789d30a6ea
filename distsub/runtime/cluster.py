"""The Ray cluster under a sweep: count its slots, warn of trials that fit no node, drain in time."""

import contextlib
import json
import time
from collections.abc import Callable, Mapping
from typing import Any

from distsub.runtime.connect import has_own_cluster  # isort: skip  # sets Ray's environment before Ray is imported

import ray
from ray import tune
from ray._private.state import state

from distsub.config.sweep import Resources
from distsub.errors import ConfigError


class DriverOnly:
    """Pickles to nothing: the first base of what Tune pickles (searcher, scheduler, callbacks).

    Nothing restores a run from that: the rows are the state. A terminal or a lock that one reaches cannot be pickled.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        return DriverOnly, ()


PATIENCE_S = 30.0
"""Seconds without a node that fits a trial before a warning; nodes that are starting are waited for silently."""

YOUNG_S = 15.0
"""Seconds in which a cluster that runs no trial now may still show that it grows."""

IDLE_S = 15.0
"""Seconds that a process without a trial may hold its node while there is nothing to start."""


def fits(node: Mapping[str, float], resources: Resources) -> int:
    """Count the trials that a node runs at once; `node` is what it has, as Ray names it: "CPU", "GPU"."""
    asked = {"CPU": resources.cpus_per_trial, "GPU": resources.gpus_per_trial}
    return min(int(node.get(name, 0.0) / amount + 1e-9) for name, amount in asked.items() if amount)


def nodes() -> list[dict[str, float]]:
    """List what each live node has, leaving out those that are about to go."""
    leaving = state.get_draining_nodes()
    return [node["Resources"] for node in ray.nodes() if node["Alive"] and node["NodeID"] not in leaving]


def grows() -> bool:
    """Tell whether an autoscaler with node types of its own looks after this cluster.

    Autoscaler v2 reports a state to the head; v1 names each node's type, which is "node_<id>" where a cluster was
    merely started by hand and nothing can be added.
    """
    from ray.experimental.internal_kv import _internal_kv_get

    if _status().autoscaling_state.autoscaler_state_version:
        return True
    report = json.loads(_internal_kv_get(b"__autoscaling_status") or b"{}").get("autoscaler_report") or {}
    return any(not name.startswith("node_") for name in (report.get("node_type_mapping") or {}).values())


def _status() -> Any:
    """Read what Ray and autoscaler v2 know of the cluster; the latter's part is empty where there is none."""
    from ray._raylet import GcsClient  # type: ignore[attr-defined]  # compiled
    from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply  # type: ignore[attr-defined]  # generated

    reply = GetClusterStatusReply()
    address = ray.get_runtime_context().gcs_address
    reply.ParseFromString(GcsClient(address).get_cluster_status(timeout_s=10))
    return reply


def slots(resources: Resources, demand: int) -> int:
    """Count how many trials are to be in flight; `demand` is how many the sweep would run without running ahead.

    What the sweep says; else what the cluster runs at once now, and with an autoscaler as many as the sweep can use. As
    many trials are handed to Ray at once, each with its request, so an autoscaler sees the whole demand from the first
    second and adds what it may.

    Raises:
        ConfigError: No node can run one, and none will come.
    """
    now, short, growing = _settled(resources)
    if short is not None and not growing and (has_own_cluster() or resources.max_concurrent_trials is None):
        hint = "" if has_own_cluster() else ", or set max_concurrent_trials if nodes will join later"
        table = "[resources]" if short == resources else "[resources.baseline]"
        raise ConfigError(f"{_shortage(nodes(), short)}; lower {table}{hint}")
    return resources.max_concurrent_trials or (max(now, demand, 1) if growing else now)


def _settled(resources: Resources) -> tuple[int, Resources | None, bool]:
    """Wait until a young cluster, whose head and autoscaler say nothing for some seconds, has a node for each trial.

    Returns how many trials it runs at once now, what no node can run, and whether the cluster grows.
    """
    end = time.monotonic() + YOUNG_S
    while True:
        have = nodes()
        now, short = sum(fits(node, resources) for node in have), unmet(have, resources)
        growing = not has_own_cluster() and grows()  # a cluster of our own has all it will ever have
        if short is None or growing or has_own_cluster() or time.monotonic() > end:
            return now, short, growing
        time.sleep(1.0)


def unmet(have: list[dict[str, float]], resources: Resources) -> Resources | None:
    """Give which of what trials ask for no node has; None where there is one for each."""
    return next((each for each in resources.each() if not any(fits(node, each) for node in have)), None)


def _shortage(have: list[dict[str, float]], resources: Resources) -> str:
    most = {name: max((node.get(name, 0.0) for node in have), default=0.0) for name in ("CPU", "GPU")}
    return (
        f"a trial asks for {resources.cpus_per_trial:g} CPUs and {resources.gpus_per_trial:g} GPUs on one node; of "
        f"{len(have)} nodes here none has more than {most['CPU']:g} and {most['GPU']:g}"
    )


def drains() -> bool:
    """Tell, in a process of the cluster, whether its node is about to go (a spot notice, or scaling down)."""
    with contextlib.suppress(Exception):  # a head that does not answer must not end a trial
        return ray.get_runtime_context().get_node_id() in state.get_draining_nodes()
    return False


def release_idle(controller: Any) -> None:
    """End the processes that Tune keeps warm for a next trial, so that their nodes can go."""
    with contextlib.suppress(AttributeError):  # not Tune's public interface: without it, a node is held a while longer
        getattr(controller, "_tune_controller", controller)._cleanup_cached_actors(force_all=True)


class Watch(DriverOnly, tune.Callback):
    """Warns once, within a minute, that no node fits a trial and none is starting."""

    def __init__(self, resources: Resources, say: Callable[[str], None]) -> None:
        self._resources, self._say = resources, say
        self._since = time.monotonic()
        self._again = 0.0
        self._has_warned = False

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Check every five seconds until the warning is printed or a node fits."""
        now = time.monotonic()
        if self._has_warned or now < self._again:
            return
        self._again = now + 5.0
        with contextlib.suppress(Exception):  # an exception in a callback would end the whole run
            have = nodes()
            short = unmet(have, self._resources)
            if short is None:
                self._since = now
            elif now - self._since >= PATIENCE_S and not _coming(short):
                self._has_warned = True
                advice = "lower [resources] or add such a node; the sweep continues when one joins"
                self._say(f"waiting  {_shortage(have, short)}, and none is starting; {advice}")


def _coming(resources: Resources) -> bool:
    """Tell whether autoscaler v2 means to meet at least one of the requests like ours; False without one."""
    status = _status()
    if not status.autoscaling_state.autoscaler_state_version:
        return False
    asked = {"CPU": resources.cpus_per_trial, "GPU": resources.gpus_per_trial}
    wanted = {name: amount for name, amount in asked.items() if amount}

    def count(gangs: Any) -> int:
        return sum(dict(request.resources_bundle) == wanted for gang in gangs for request in gang.requests)

    refused = count(status.autoscaling_state.infeasible_gang_resource_requests)
    return refused == 0 or refused < count(status.cluster_resource_state.pending_gang_resource_requests)
