"""A stand-in for the StatefulSet controller: numbered pods, in order or in parallel, updated from the highest down."""

from wattkeeper.embedded.cluster import Cluster, is_ready, owner_reference, template_hash
from wattkeeper.embedded.values import Json, clone, dig, metadata

REVISION = "controller-revision-hash"
_MANAGER = "statefulset-controller"


def _ordinal(pod: Json, name: str) -> int | None:
    text = str(metadata(pod)["name"]).removeprefix(f"{name}-")
    return int(text) if text.isdigit() else None


def _make(cluster: Cluster, owner: Json, ordinal: int, revision: str) -> None:
    meta = metadata(owner)
    template = clone(owner["spec"]["template"])
    name = f"{meta['name']}-{ordinal}"
    labels = {
        **dig(template, "metadata", "labels", default={}),
        REVISION: revision,
        "apps.kubernetes.io/pod-index": str(ordinal),
        "statefulset.kubernetes.io/pod-name": name,
    }
    body = {
        "metadata": {
            **dig(template, "metadata", default={}),
            "name": name,
            "namespace": meta["namespace"],
            "labels": labels,
            "ownerReferences": [owner_reference(owner)],
        },
        "spec": {**template["spec"], "hostname": name},
    }
    cluster.create("Pod", body, manager=_MANAGER)


def keep(cluster: Cluster, owner: Json) -> None:
    """Take one StatefulSet a step on, and report."""
    meta = metadata(owner)
    if meta.get("deletionTimestamp"):
        return
    wanted = owner["spec"]["replicas"]
    revision = f"{meta['name']}-{template_hash(owner['spec']['template'])}"
    numbered = {_ordinal(pod, meta["name"]): pod for pod in cluster.owned("Pod", owner)}
    pods = {ordinal: pod for ordinal, pod in numbered.items() if ordinal is not None}
    parallel = owner["spec"].get("podManagementPolicy") == "Parallel"
    _size(cluster, owner, pods, wanted, revision, parallel=parallel)
    settled = all(ordinal in pods and is_ready(pods[ordinal]) for ordinal in range(wanted)) and len(pods) == wanted
    partition = dig(owner, "spec", "updateStrategy", "rollingUpdate", "partition", default=0)
    stale = [ordinal for ordinal, pod in pods.items() if metadata(pod)["labels"].get(REVISION) != revision]
    rolling = dig(owner, "spec", "updateStrategy", "type") == "RollingUpdate"
    due = [ordinal for ordinal in stale if partition <= ordinal < wanted]
    if due and rolling:
        # One at a time, the highest first; a stale pod that is not ready is replaced without waiting.
        broken = [ordinal for ordinal in due if not is_ready(pods[ordinal])]
        if (settled or broken) and not any(metadata(pod).get("deletionTimestamp") for pod in pods.values()):
            cluster.delete("Pod", pods[max(broken or due)])
    _report(cluster, owner, revision)


def _size(cluster: Cluster, owner: Json, pods: dict[int, Json], wanted: int, revision: str, *, parallel: bool) -> None:
    for ordinal in range(wanted):
        if ordinal not in pods:
            _make(cluster, owner, ordinal, revision)
            if not parallel:
                return
        elif not parallel and not is_ready(pods[ordinal]):
            return
    for ordinal in sorted((item for item in pods if item >= wanted), reverse=True):
        if not metadata(pods[ordinal]).get("deletionTimestamp"):
            cluster.delete("Pod", pods[ordinal])
        if not parallel:
            return


def _report(cluster: Cluster, owner: Json, revision: str) -> None:
    stored = cluster.get("StatefulSet", metadata(owner)["namespace"], metadata(owner)["name"])
    if stored is None:
        return
    pods = cluster.owned("Pod", owner)
    ready = sum(is_ready(pod) for pod in pods)
    updated = sum(metadata(pod)["labels"].get(REVISION) == revision for pod in pods)
    settled = updated == len(pods)
    before = dig(stored, "status", "currentRevision", default=revision)
    status: Json = {
        "observedGeneration": metadata(owner)["generation"],
        "replicas": len(pods),
        "currentRevision": revision if settled else before,
        "updateRevision": revision,
        "collisionCount": 0,
        "availableReplicas": ready,
    }
    if ready:
        status["readyReplicas"] = ready
    if updated:
        status["updatedReplicas"] = updated
    current = len(pods) if settled else len(pods) - updated
    if current:
        status["currentReplicas"] = current
    cluster.set_status("StatefulSet", stored, status, manager=_MANAGER)
