"""GPUs of nodes, as their labels and allocatable resources tell."""

from collections.abc import Iterable

from wattkeeper.actuators import engine_args
from wattkeeper.controller import cache as cluster
from wattkeeper.controller.kube import Object

_GPU_LABELS = ("nvidia.com/gpu.product", "amd.com/gpu.product-name")


def allocatable_gpus(node: Object) -> int:
    """GPUs that a node gives to pods; 0 where it has none."""
    allocatable = (node.get("status") or {}).get("allocatable") or {}
    return next((int(allocatable[name]) for name in engine_args.GPU_RESOURCES if name in allocatable), 0)


def product_of(node: Object) -> str | None:
    """Name of a node's GPU as its vendor labels it."""
    labels = node["metadata"].get("labels") or {}
    return next((labels[name] for name in _GPU_LABELS if name in labels), None)


def nodes_of(pods: Iterable[Object], cache: cluster.ClusterCache) -> Iterable[Object]:
    """Nodes of pods, as far as the cache has them."""
    for pod in pods:
        node = cache.get(cluster.NODES, None, pod["spec"].get("nodeName") or "")
        if node is not None:
            yield node


def accelerator_of(pod_spec: Object, pods: Iterable[Object], cache: cluster.ClusterCache) -> str | None:
    """The GPU that a pod template asks for by node selector, else that of the first node its pods are on."""
    selector = pod_spec.get("nodeSelector") or {}
    for name in _GPU_LABELS:
        if name in selector:
            return str(selector[name])
    return next((product for node in nodes_of(pods, cache) if (product := product_of(node)) is not None), None)
