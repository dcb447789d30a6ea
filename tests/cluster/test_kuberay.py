"""kuberay.yaml against a schema of the keys that it uses: the server drops a misspelt one in silence.

The fields are those of KubeRay 1.7 (ray.io/v1) and of Kubernetes; Ray's own autoscaler reads the result.
"""

import copy
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError

ROOT = Path(__file__).resolve().parents[2]
FREE = {"labels", "annotations", "matchLabels", "nodeSelector"}  # names of ours or of a cloud
PINS = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)

Quantity = Annotated[str, StringConstraints(pattern=r"^\d+(m|Mi|Gi)?$")]
Labels = dict[str, str]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Meta(Strict):
    name: str | None = None
    labels: Labels = {}
    annotations: Labels = {}


class Amounts(Strict):
    cpu: Quantity | None = None
    memory: Quantity | None = None
    storage: Quantity | None = None
    gpu: Quantity | None = Field(None, alias="nvidia.com/gpu")


class Resources(Strict):
    requests: Amounts
    limits: Amounts | None = None


class Variable(Strict):
    name: Annotated[str, StringConstraints(pattern=r"^[A-Z_]+$")]
    value: str


class SecretReference(Strict):
    name: str
    optional: bool


class Source(Strict):
    secretRef: SecretReference


class Port(Strict):
    name: str
    containerPort: int


class Capabilities(Strict):
    drop: list[Literal["ALL"]]


class ContainerSecurity(Strict):
    allowPrivilegeEscalation: Literal[False]
    capabilities: Capabilities


class PodSecurity(Strict):
    runAsNonRoot: Literal[True]
    runAsUser: int
    fsGroup: int


class Mount(Strict):
    name: str
    mountPath: str
    readOnly: bool = False


class Container(Strict):
    name: str
    image: str
    env: list[Variable]
    envFrom: list[Source]
    ports: list[Port] = []
    resources: Resources
    securityContext: ContainerSecurity
    volumeMounts: list[Mount]


class Claim(Strict):
    claimName: str


class ConfigMap(Strict):
    name: str


class EmptyDir(Strict):
    medium: Literal["Memory"]
    sizeLimit: Quantity


class Volume(Strict):
    name: str
    persistentVolumeClaim: Claim | None = None
    configMap: ConfigMap | None = None
    emptyDir: EmptyDir | None = None


class Toleration(Strict):
    key: str
    operator: Literal["Exists"]
    effect: Literal["NoSchedule"]


class PodSpec(Strict):
    serviceAccountName: str
    automountServiceAccountToken: bool = True
    nodeSelector: Labels
    tolerations: list[Toleration] = []
    restartPolicy: Literal["Never"] | None = None
    terminationGracePeriodSeconds: int
    securityContext: PodSecurity
    containers: list[Container]
    volumes: list[Volume]


class Pod(Strict):
    metadata: Meta
    spec: PodSpec


class StartParams(Strict):
    num_cpus: str | None = Field(None, alias="num-cpus")
    dashboard_host: str | None = Field(None, alias="dashboard-host")


class HeadGroup(Strict):
    serviceType: Literal["ClusterIP"]  # any other would be reachable from outside
    rayStartParams: StartParams
    template: Pod


class WorkerGroup(Strict):
    groupName: str
    priority: int
    replicas: int
    minReplicas: int
    maxReplicas: int
    labels: Labels
    rayStartParams: StartParams
    template: Pod


class Autoscaler(Strict):
    version: Literal["v2"]
    upscalingMode: Literal["Default", "Conservative", "Aggressive"]
    idleTimeoutSeconds: int
    env: list[Variable]
    resources: Resources


class Auth(Strict):
    mode: Literal["token"]
    secretName: str


class RayCluster(Strict):
    rayVersion: str
    authOptions: Auth
    enableInTreeAutoscaling: Literal[True]
    autoscalerOptions: Autoscaler
    headGroupSpec: HeadGroup
    workerGroupSpecs: list[WorkerGroup]


class RayJobSpec(Strict):
    entrypoint: str
    submissionMode: Literal["K8sJobMode"]
    backoffLimit: int
    activeDeadlineSeconds: int
    shutdownAfterJobFinishes: Literal[True]
    ttlSecondsAfterFinished: int
    rayClusterSpec: RayCluster


class RayJob(Strict):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayJob"]
    metadata: Meta
    spec: RayJobSpec


class Account(Strict):
    apiVersion: Literal["v1"]
    kind: Literal["ServiceAccount"]
    metadata: Meta


class ClaimSpec(Strict):
    accessModes: list[Literal["ReadWriteMany"]]
    storageClassName: str
    resources: Resources


class VolumeClaim(Strict):
    apiVersion: Literal["v1"]
    kind: Literal["PersistentVolumeClaim"]
    metadata: Meta
    spec: ClaimSpec


class Selector(Strict):
    matchLabels: Labels = {}


class Peer(Strict):
    podSelector: Selector | None = None
    namespaceSelector: Selector | None = None


class Ingress(Strict):
    from_: list[Peer] = Field(alias="from")


class PolicySpec(Strict):
    podSelector: Selector
    policyTypes: list[Literal["Ingress"]]
    ingress: list[Ingress]


class Policy(Strict):
    apiVersion: Literal["networking.k8s.io/v1"]
    kind: Literal["NetworkPolicy"]
    metadata: Meta
    spec: PolicySpec


Document = TypeAdapter(Annotated[Account | VolumeClaim | Policy | RayJob, Field(discriminator="kind")])


@pytest.fixture(scope="module")
def documents():
    return list(yaml.safe_load_all((ROOT / "cluster/kuberay.yaml").read_text()))


@pytest.fixture(scope="module")
def job(documents):
    return Document.validate_python(documents[-1])


def keys(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """List the path of every key of Kubernetes' or KubeRay's vocabulary."""
    found: list[tuple[Any, ...]] = []
    if isinstance(value, dict):
        for key, below in value.items():
            found.append((*path, key))
            if key not in FREE:
                found += keys(below, (*path, key))
    elif isinstance(value, list):
        for index, below in enumerate(value):
            found += keys(below, (*path, index))
    return found


def test_every_document_fits_its_schema(documents):
    kinds = [type(Document.validate_python(document)) for document in documents]
    assert kinds == [Account, VolumeClaim, Policy, RayJob]


def test_any_misspelt_key_is_found_and_named(documents):
    paths = [(number, path) for number, document in enumerate(documents) for path in keys(document)]
    assert len(paths) > 150
    for number, path in paths:
        if path == ("kind",):
            continue
        document = copy.deepcopy(documents[number])
        holder = document
        for step in path[:-1]:
            holder = holder[step]
        holder[f"{path[-1]}x"] = holder.pop(path[-1])
        with pytest.raises(ValidationError, match=re.escape(f"{path[-1]}x")):
            Document.validate_python(document)


def test_what_it_refers_to_is_there(documents, job):
    named = {document["kind"]: document["metadata"]["name"] for document in documents}
    cluster = job.spec.rayClusterSpec
    head, workers = cluster.headGroupSpec.template, [group.template for group in cluster.workerGroupSpecs]
    for pod in (head, *workers):
        assert pod.spec.serviceAccountName == named["ServiceAccount"]
        assert pod.metadata.labels == documents[2]["spec"]["podSelector"]["matchLabels"]
        volumes = {volume.name: volume for volume in pod.spec.volumes}
        [container] = pod.spec.containers
        assert {mount.name for mount in container.volumeMounts} == set(volumes)
        assert volumes["models"].persistentVolumeClaim.claimName == named["PersistentVolumeClaim"]
        home = next(variable.value for variable in container.env if variable.name == "HF_HOME")
        assert any(home.startswith(mount.mountPath) for mount in container.volumeMounts)
        assert container.resources.requests == container.resources.limits
        assert pod.spec.terminationGracePeriodSeconds >= 90
    assert f"{head.spec.containers[0].volumeMounts[1].mountPath}/sweep.toml" in job.spec.entrypoint


def test_the_secrets_and_the_configmap_are_those_that_the_commands_make(job):
    comments = (ROOT / "cluster/kuberay.yaml").read_text().split("apiVersion")[0]
    cluster = job.spec.rayClusterSpec
    assert f"create secret generic {cluster.authOptions.secretName} --from-literal=auth_token=" in comments
    assert "create configmap distsub-sweep --from-file=sweep.toml=" in comments


def test_no_secret_is_in_the_file(documents):
    text = (ROOT / "cluster/kuberay.yaml").read_text()
    assert "kind: Secret" not in text and "stringData" not in text
    assert not any(variable.name.endswith(("KEY", "TOKEN", "SECRET")) for variable in variables(documents[-1]))


def variables(document):
    cluster = Document.validate_python(document).spec.rayClusterSpec
    pods = [cluster.headGroupSpec.template, *(group.template for group in cluster.workerGroupSpecs)]
    return [variable for pod in pods for variable in pod.spec.containers[0].env] + cluster.autoscalerOptions.env


def test_spot_comes_first_and_only_the_head_costs_when_idle(job):
    cluster = job.spec.rayClusterSpec
    spot, reserve = cluster.workerGroupSpecs
    assert (spot.groupName, reserve.groupName) == ("spot", "on-demand") and spot.priority > reserve.priority
    assert spot.template.spec.nodeSelector == {"karpenter.sh/capacity-type": "spot"}
    assert {group.minReplicas for group in cluster.workerGroupSpecs} == {0}
    assert cluster.headGroupSpec.rayStartParams.num_cpus == "0"
    # The two groups differ in nothing else.
    same = {"groupName": "", "priority": 0, "maxReplicas": 0, "labels": {}}
    spot, reserve = spot.model_copy(update=same, deep=True), reserve.model_copy(update=same, deep=True)
    spot.template.spec.nodeSelector = reserve.template.spec.nodeSelector = {}
    assert spot == reserve


def test_versions_are_the_pinned_ones(job):
    cluster = job.spec.rayClusterSpec
    assert cluster.rayVersion == PINS["ray"]
    images = re.findall(r"image: (\S+)", (ROOT / "cluster/kuberay.yaml").read_text())
    assert len(set(images)) == 1 and re.search(r":\d+\.\d+\.\d+-gpu$", images[0])


def test_the_autoscaler_reads_it_and_prefers_spot(documents):
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
    from ray.autoscaler._private.util import validate_config
    from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
    from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
    from ray.autoscaler.v2.utils import ResourceRequestUtil

    resource = {"metadata": {"name": "x", "namespace": "default"}, "spec": documents[-1]["spec"]["rayClusterSpec"]}
    config = _derive_autoscaling_config_from_ray_cr(resource)
    validate_config(config)
    read = AutoscalingConfig(config, skip_content_hash=True)

    def launches(gpus, availability=None):
        reply = ResourceDemandScheduler().schedule(
            SchedulingRequest(
                disable_launch_config_check=True,
                node_type_configs=read.get_node_type_configs(),
                max_num_nodes=read.get_max_num_nodes(),
                resource_requests=ResourceRequestUtil.group_by_count(
                    [ResourceRequestUtil.make({"GPU": 1, "CPU": 2})] * gpus
                ),
                recoverable_resource_availabilities=availability or {},
            )
        )
        return {launch.instance_type: launch.count for launch in reply.to_launch}

    assert launches(3) == {"spot": 3}
    assert launches(12) == {"spot": 8, "on-demand": 2}
    assert launches(2, {"spot": 0.0}) == {"on-demand": 2}, "a group that timed out waits behind the other"
