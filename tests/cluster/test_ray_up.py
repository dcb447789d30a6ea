"""aws.yaml and gcp.yaml: taken by Ray's own validators, no key misspelt, spot before on-demand in Ray's scheduler."""

import copy
import re
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

ROOT = Path(__file__).resolve().parents[2]
FREE = {"file_mounts", "resources", "available_node_types"}  # what is below these names itself
FILES = ("aws", "gcp")
PINS = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Provider(Strict):
    """Ray takes any key here and passes on those that the provider knows."""

    type: Literal["aws", "gcp"]
    region: str
    availability_zone: str
    cache_stopped_nodes: bool | None = None
    project_id: str | None = None


class InitializeParams(Strict):
    diskSizeGb: int
    sourceImage: Annotated[str, StringConstraints(pattern=r"^projects/[\w-]+/global/images/family/[\w-]+$")]


class Disk(Strict):
    boot: Literal[True]
    autoDelete: Literal[True]
    type: Literal["PERSISTENT"]
    initializeParams: InitializeParams


class Item(Strict):
    key: Literal["install-nvidia-driver"]
    value: str


class Metadata(Strict):
    items: list[Item]


class Scheduling(Strict):
    provisioningModel: Literal["SPOT", "STANDARD"]
    instanceTerminationAction: Literal["DELETE"] | None = None
    onHostMaintenance: Literal["TERMINATE"]
    automaticRestart: bool | None = None


class ServiceAccount(Strict):
    email: str
    scopes: list[str]


class Instance(Strict):
    """The fields of compute.v1 instances.insert that gcp.yaml uses."""

    machineType: str
    disks: list[Disk]
    metadata: Metadata | None = None
    scheduling: Scheduling | None = None
    serviceAccounts: list[ServiceAccount] | None = None


def load(name: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / "cluster" / f"{name}.yaml").read_text())


@cache
def run_instances() -> Any:
    """The service's own description of the call, which comes with botocore."""
    session = pytest.importorskip("botocore.session").get_session()
    return session.get_service_model("ec2").operation_model("RunInstances").input_shape


def complaints_of_ec2(node_config: dict[str, Any]) -> str:
    from botocore.validate import ParamValidator

    return ParamValidator().validate({**node_config, "MinCount": 1, "MaxCount": 1}, run_instances()).generate_report()


def complaints(config: dict[str, Any]) -> str:
    """Say everything that is wrong with a ray up file; nothing when it is right."""
    from jsonschema import ValidationError as Refused
    from ray.autoscaler._private.util import prepare_config, validate_config

    found = []
    try:
        validate_config(prepare_config(copy.deepcopy(config)))
    except (Refused, AssertionError, KeyError, ValueError) as error:
        found.append(str(error))
    try:
        Provider(**config.get("provider", {}))
    except ValidationError as error:
        found.append(str(error))
    kind = config.get("provider", {}).get("type")
    for node in config.get("available_node_types", {}).values():
        if kind == "aws":
            found.append(complaints_of_ec2(node.get("node_config", {})))
        elif kind == "gcp":
            try:
                Instance(**node.get("node_config", {}))
            except ValidationError as error:
                found.append(str(error))
    return "\n".join(line for line in found if line)


def keys(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """List the path of every key that is somebody's vocabulary and not a name of ours."""
    found: list[tuple[Any, ...]] = []
    if isinstance(value, dict):
        for key, below in value.items():
            if not path or path[-1] not in FREE:
                found.append((*path, key))
            found += keys(below, (*path, key))
    elif isinstance(value, list):
        for index, below in enumerate(value):
            found += keys(below, (*path, index))
    return found


def misspelt(document: Any, path: tuple[Any, ...]) -> Any:
    """Copy a document with a letter added to the key at a path."""
    copied = copy.deepcopy(document)
    holder = copied
    for step in path[:-1]:
        holder = holder[step]
    holder[f"{path[-1]}x"] = holder.pop(path[-1])
    return copied


@pytest.mark.parametrize("name", FILES)
def test_the_file_is_what_ray_up_takes(name):
    assert complaints(load(name)) == ""


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("aws", ("idle_timeout_minutes",)),
        ("aws", ("provider", "cache_stopped_nodes")),
        ("aws", ("available_node_types", "spot", "priority")),
        ("aws", ("available_node_types", "spot", "node_config", "InstanceMarketOptions")),
        ("gcp", ("available_node_types", "spot", "node_config", "scheduling", "provisioningModel")),
    ],
)
def test_a_misspelt_key_is_found_and_named(name, path):
    assert f"{path[-1]}x" in complaints(misspelt(load(name), path))


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_any_misspelt_key_is_found_and_named(name):
    config = load(name)
    paths = keys(config)
    assert len(paths) > 60
    said = {path: complaints(misspelt(config, path)) for path in paths}
    assert all(said.values())
    # Ray stops at a few keys that it needs before it comes to the name: it says only that they are missing.
    unnamed = {path[-1] for path, text in said.items() if f"{path[-1]}x" not in text}
    assert unnamed <= {"cluster_name", "provider", "type", "image", "container_name", "head_node_type"}


@pytest.mark.parametrize("name", FILES)
def test_nodes_ask_for_the_token_and_the_job_port_stays_on_loopback(name):
    config = load(name)
    options = " ".join(config["docker"]["run_options"])
    token = "/home/ray/.ray/auth_token"
    assert "--env RAY_AUTH_MODE=token" in options and f"--env RAY_AUTH_TOKEN_PATH={token}" in options
    assert config["file_mounts"] == {token: "~/.ray/auth_token"}
    assert "--dashboard-host=127.0.0.1" in " ".join(config["head_start_ray_commands"])
    assert "--num-cpus=0" in " ".join(config["head_start_ray_commands"])


@pytest.mark.parametrize("name", FILES)
def test_ray_start_knows_every_option(name):
    from ray.scripts.scripts import start

    known = {option for parameter in start.params for option in parameter.opts}
    config = load(name)
    commands = " ".join(config["head_start_ray_commands"] + config["worker_start_ray_commands"])
    used = set(re.findall(r"--[\w-]+", commands))
    assert used and used <= known


@pytest.mark.parametrize("name", FILES)
def test_versions_are_pinned(name):
    config = load(name)
    installed = " ".join(config["head_setup_commands"])
    for package, version in re.findall(r"([\w-]+)==([\w.]+)", installed):
        assert PINS.get(package, version) == version
    assert installed.count("==") == 1
    assert re.search(r":\d+\.\d+\.\d+-gpu$", config["docker"]["image"])


@pytest.mark.parametrize("name", FILES)
def test_spot_machines_are_spot(name):
    nodes = load(name)["available_node_types"]
    if name == "aws":
        assert nodes["spot"]["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"
        assert "InstanceMarketOptions" not in nodes["on_demand"]["node_config"]
        assert all(node["node_config"]["MetadataOptions"]["HttpTokens"] == "required" for node in nodes.values())
    else:
        assert nodes["spot"]["node_config"]["scheduling"]["provisioningModel"] == "SPOT"
        assert nodes["on_demand"]["node_config"]["scheduling"]["provisioningModel"] == "STANDARD"
    assert all(node.get("min_workers", 0) == 0 for node in nodes.values()), "idle, only the head may cost"


def launches(config: dict[str, Any], gpus: int, availability: dict[str, float] | None = None) -> dict[str, int]:
    """Ask Ray's autoscaler (v2) which machines it would start for so many trials of one GPU."""
    from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
    from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
    from ray.autoscaler.v2.utils import ResourceRequestUtil

    read = AutoscalingConfig(config, skip_content_hash=True)
    demand = ResourceRequestUtil.group_by_count([ResourceRequestUtil.make({"GPU": 1, "CPU": 1})] * gpus)
    reply = ResourceDemandScheduler().schedule(
        SchedulingRequest(
            disable_launch_config_check=True,
            node_type_configs=read.get_node_type_configs(),
            max_num_nodes=read.get_max_num_nodes(),
            resource_requests=demand,
            recoverable_resource_availabilities=availability or {},
        )
    )
    return {launch.instance_type: launch.count for launch in reply.to_launch}


@pytest.mark.parametrize("name", FILES)
def test_the_autoscaler_prefers_spot(name):
    from ray.autoscaler._private.util import prepare_config

    config = prepare_config(load(name))
    assert launches(config, 3) == {"spot": 3}
    assert launches(config, 3, {"spot": 0.0}) == {"spot": 1, "on_demand": 2}
    fewer = copy.deepcopy(config)
    fewer["available_node_types"]["spot"]["max_workers"] = 1
    assert launches(fewer, 3) == {"spot": 1, "on_demand": 2}
