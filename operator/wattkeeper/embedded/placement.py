"""A stand-in for the scheduler: pods onto nodes with room, spread over the least used ones."""

from collections.abc import Iterable

from wattkeeper.embedded import quantity
from wattkeeper.embedded.cluster import Cluster, condition, conditions, is_ready
from wattkeeper.embedded.values import Json, dig, metadata

GPU = "nvidia.com/gpu"
_MANAGER = "kube-scheduler"


def requests(pod: Json) -> dict[str, float]:
    """Return what a pod asks for: the sum over its containers."""
    total: dict[str, float] = {}
    for container in dig(pod, "spec", "containers", default=[]):
        for name, amount in dig(container, "resources", "requests", default={}).items():
            total[name] = total.get(name, 0.0) + quantity.parse(amount)
    return total


def _tolerates(pod: Json, taint: Json) -> bool:
    for toleration in dig(pod, "spec", "tolerations", default=[]):
        effect, key = toleration.get("effect"), toleration.get("key")
        if effect not in (None, "", taint.get("effect")) or key not in (None, "", taint.get("key")):
            continue
        if toleration.get("operator") == "Exists" or toleration.get("value", "") == taint.get("value", ""):
            return True
    return False


def _takes(node: Json, pod: Json) -> bool:
    if dig(node, "spec", "unschedulable") or metadata(node).get("deletionTimestamp") or not is_ready(node):
        return False
    labels = metadata(node).get("labels") or {}
    if any(labels.get(key) != value for key, value in dig(pod, "spec", "nodeSelector", default={}).items()):
        return False
    taints = dig(node, "spec", "taints", default=[])
    return all(taint.get("effect") == "PreferNoSchedule" or _tolerates(pod, taint) for taint in taints)


def _used(pods: Iterable[Json]) -> dict[str, dict[str, float]]:
    """Return what is in use by node; a pod that is being deleted keeps its share until it is gone."""
    used: dict[str, dict[str, float]] = {}
    for pod in pods:
        node = dig(pod, "spec", "nodeName")
        if node and dig(pod, "status", "phase") not in ("Succeeded", "Failed"):
            of_node = used.setdefault(node, {})
            for name, amount in requests(pod).items():
                of_node[name] = of_node.get(name, 0.0) + amount
    return used


def _room(node: Json, used: dict[str, float], needs: dict[str, float]) -> bool:
    offered = dig(node, "status", "allocatable", default={})
    for name, amount in needs.items():
        if name not in offered:
            if "/" in name and amount > 0:
                return False
            continue
        if used.get(name, 0.0) + amount > quantity.parse(offered[name]) + 1e-9:
            return False
    return True


def place(cluster: Cluster) -> None:
    """Bind every waiting pod that fits somewhere, oldest first; the others are marked Unschedulable."""
    pods = cluster.objects("Pod")
    waiting = [
        pod
        for pod in pods
        if not dig(pod, "spec", "nodeName")
        and not metadata(pod).get("deletionTimestamp")
        and dig(pod, "spec", "schedulerName", default="default-scheduler") == "default-scheduler"
    ]
    if not waiting:
        return
    nodes, used = cluster.objects("Node"), _used(pods)
    for pod in sorted(waiting, key=lambda item: int(metadata(item)["resourceVersion"])):
        needs = requests(pod)
        fits = [
            node for node in nodes if _takes(node, pod) and _room(node, used.get(metadata(node)["name"], {}), needs)
        ]
        if fits:
            chosen = min(fits, key=lambda node: (_share(node, used), metadata(node)["name"]))
            name = metadata(chosen)["name"]
            cluster.bind(pod, name)
            of_node = used.setdefault(name, {})
            for key, amount in needs.items():
                of_node[key] = of_node.get(key, 0.0) + amount
        elif (condition(pod, "PodScheduled") or {}).get("reason") != "Unschedulable":
            text = f"0/{len(nodes)} nodes are available: none that the pod may use has {_shown(needs)} free."
            found = conditions(pod, "PodScheduled", "False", "Unschedulable", text)
            cluster.set_status("Pod", pod, {**pod["status"], "conditions": found}, manager=_MANAGER)


def _share(node: Json, used: dict[str, dict[str, float]]) -> float:
    """Return the used share of a node's GPUs."""
    offered = quantity.parse(dig(node, "status", "allocatable", default={}).get(GPU, "0"))
    return used.get(metadata(node)["name"], {}).get(GPU, 0.0) / offered if offered else 0.0


def _shown(needs: dict[str, float]) -> str:
    return ", ".join(f"{amount:g} {name}" for name, amount in sorted(needs.items())) or "room"
