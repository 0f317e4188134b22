"""The Kubernetes objects of the made-up fleet: simulated GPU nodes, vLLM Deployments, and their InferenceServices."""

import itertools
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from wattkeeper.api.base import GROUP, VERSION
from wattkeeper.controller.kube import Kube, Object, path_of
from wattkeeper.domain.errors import WattkeeperError
from wattkeeper.telemetry.synthetic import SyntheticService

GPU = "nvidia.com/gpu"
PRODUCT = "NVIDIA-H100-80GB-HBM3"
GPUS_PER_NODE = 8
SPARE = 1.5
"""Cards per card that the fleet begins with: room for replicas that the operator adds."""
SIMULATED = "kwok.x-k8s.io/node"
"""Annotation of nodes whose kubelet kwok plays."""
_MODELS = (
    "meta-llama/Llama-3.1-8B-Instruct",
    "Qwen/Qwen3-8B",
    "mistralai/Mistral-7B-Instruct-v0.3",
    "Qwen/Qwen2.5-14B-Instruct",
)
_WRITERS = 8
"""Concurrent requests while the fleet is made."""


def node_names(services: int, pods_per_service: int) -> list[str]:
    """Names of as many nodes as the fleet needs."""
    return [f"bench-{index}" for index in range(math.ceil(SPARE * services * pods_per_service / GPUS_PER_NODE))]


def node(name: str) -> Object:
    """A node with eight cards."""
    resources = {"cpu": "192", "memory": "2Ti", "pods": "110", GPU: str(GPUS_PER_NODE)}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "annotations": {SIMULATED: "fake"},
            "labels": {"kubernetes.io/hostname": name, f"{GPU}.product": PRODUCT, f"{GPU}.count": str(GPUS_PER_NODE)},
        },
        "status": {
            "capacity": resources,
            "allocatable": resources,
            "conditions": [{"type": "Ready", "status": "True", "reason": "Simulated"}],
        },
    }


def power_caps(name: str) -> Object:
    """The empty NodePowerCap of a node, as its agent makes it."""
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "NodePowerCap",
        "metadata": {"name": name},
        "spec": {"caps": []},
    }


def deployment(service: SyntheticService, model: str) -> Object:
    """A vLLM server as a user would run it."""
    labels = {"app": service.name}
    container = {
        "name": "vllm",
        "image": "vllm/vllm-openai:v0.15.1",
        "args": [f"--model={model}", "--max-model-len=16384", "--max-num-seqs=256"],
        "resources": {"limits": {GPU: str(service.gpus_per_pod)}},
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": service.name, "namespace": service.namespace, "labels": labels},
        "spec": {
            "replicas": len(service.pods),
            "selector": {"matchLabels": labels},
            "strategy": {"rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}},
            "template": {
                "metadata": {"labels": labels},
                "spec": {"nodeSelector": {f"{GPU}.product": PRODUCT}, "containers": [container]},
            },
        },
    }


def inference_service(service: SyntheticService, model: str) -> Object:
    """An InferenceService in mode Enforce with the replica and the power lever."""
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "InferenceService",
        "metadata": {"name": service.name, "namespace": service.namespace},
        "spec": {
            "model": model,
            "targetRef": {"name": service.name},
            "slo": {"ttft": {"target": "2s"}, "tpot": {"target": "100ms"}},
            "mode": "Enforce",
            "levers": {
                "replicas": {"min": len(service.pods), "max": 2 * len(service.pods)},
                "powerCap": {"min": "350W", "max": "700W"},
            },
        },
    }


def make(kube: Kube, services: Sequence[SyntheticService]) -> list[str]:
    """Create everything, and return the names of the nodes. Raises KubeError."""
    nodes = node_names(len(services), len(services[0].pods))
    namespaces = sorted({service.namespace for service in services})
    with ThreadPoolExecutor(_WRITERS) as pool:
        for batch in _batches(namespaces, nodes, services):
            list(pool.map(lambda item: kube.create(*item), batch))
    return nodes


def _batches(
    namespaces: Sequence[str], nodes: Sequence[str], services: Sequence[SyntheticService]
) -> Iterator[list[tuple[str, Object]]]:
    """(path, object) to be created, what others need first."""
    yield [("/api/v1/namespaces", {"metadata": {"name": name}}) for name in namespaces]
    yield [("/api/v1/nodes", node(name)) for name in nodes]
    caps = path_of("nodepowercaps", group=GROUP, version=VERSION, namespace=None)
    yield [(caps, power_caps(name)) for name in nodes]
    models = list(itertools.islice(itertools.cycle(_MODELS), len(services)))
    yield [
        (path_of("deployments", group="apps", version="v1", namespace=item.namespace), deployment(item, model))
        for item, model in zip(services, models, strict=True)
    ]
    yield [
        (
            path_of("inferenceservices", group=GROUP, version=VERSION, namespace=item.namespace),
            inference_service(item, model),
        )
        for item, model in zip(services, models, strict=True)
    ]


def check_nodes(kube: Kube) -> None:
    """Refuse a cluster that somebody uses: one with nodes that are not simulated. Raises WattkeeperError."""
    real = [
        item["metadata"]["name"]
        for item in kube.get("/api/v1/nodes")["items"]
        if SIMULATED not in (item["metadata"].get("annotations") or {})
    ]
    if real:
        raise WattkeeperError(
            f"the benchmark creates thousands of objects and this cluster has real nodes ({real[0]}): "
            "give a kubeconfig of one made for it (`make bench-scale` does)"
        )


def check_empty(kube: Kube) -> None:
    """Refuse a cluster that has InferenceServices. Raises WattkeeperError."""
    path = path_of("inferenceservices", group=GROUP, version=VERSION, namespace=None)
    if kube.get(f"{path}?limit=1")["items"]:
        raise WattkeeperError("this cluster has InferenceServices already: give a kubeconfig of an empty one")
