"""A stand-in for the Deployment and ReplicaSet controllers.

Rolling update as the real controller does it: never more than `replicas + maxSurge` pods that are not being deleted,
never fewer than `replicas - maxUnavailable` available ones by its own doing. `minReadySeconds` is taken as zero.
"""

from dataclasses import dataclass, field

from wattkeeper.embedded.cluster import (
    Cluster,
    condition,
    conditions,
    is_active,
    is_ready,
    owner_reference,
    portion,
    template_hash,
)
from wattkeeper.embedded.values import Json, clone, dig, metadata

HASH = "pod-template-hash"
REVISION = "deployment.kubernetes.io/revision"
DELETION_COST = "controller.kubernetes.io/pod-deletion-cost"
_COMPLETE, _STUCK, _MOVING = "NewReplicaSetAvailable", "ProgressDeadlineExceeded", "ReplicaSetUpdated"
_TEXTS = {_COMPLETE: "has successfully progressed", _STUCK: "has timed out progressing", _MOVING: "is progressing"}
_MANAGER = "deployment-controller"
_SET_MANAGER = "replicaset-controller"


@dataclass(kw_only=True)
class Progress:
    """When each Deployment last made progress (its own clock), to tell a roll-out that is stuck."""

    marks: dict[str, tuple[tuple[int, ...], float]] = field(default_factory=dict)


def _limits(deployment: Json) -> tuple[int, int]:
    """Return maxSurge and maxUnavailable in pods; both zero is taken as one unavailable, as the real one does."""
    replicas = deployment["spec"]["replicas"]
    rolling = dig(deployment, "spec", "strategy", "rollingUpdate", default={})
    surge = portion(rolling.get("maxSurge", "25%"), replicas, up=True)
    unavailable = portion(rolling.get("maxUnavailable", "25%"), replicas, up=False)
    return surge, unavailable or (1 if surge == 0 else 0)


def _revision(obj: Json) -> int:
    text = (metadata(obj).get("annotations") or {}).get(REVISION, "0")
    return int(text) if text.isdigit() else 0


def _make_set(cluster: Cluster, deployment: Json, key: str, revision: int) -> Json | None:
    template = clone(deployment["spec"]["template"])
    template.setdefault("metadata", {}).setdefault("labels", {})[HASH] = key
    selector = clone(deployment["spec"]["selector"])
    selector.setdefault("matchLabels", {})[HASH] = key
    meta = metadata(deployment)
    body = {
        "metadata": {
            "name": f"{meta['name']}-{key}",
            "namespace": meta["namespace"],
            "labels": template["metadata"]["labels"],
            "annotations": {REVISION: str(revision)},
            "ownerReferences": [owner_reference(deployment)],
        },
        "spec": {"replicas": 0, "selector": selector, "template": template},
    }
    return cluster.create("ReplicaSet", body, manager=_MANAGER)


def _annotate(cluster: Cluster, kind: str, obj: Json, revision: int) -> None:
    if _revision(obj) != revision:
        new = clone(obj)
        new["metadata"].setdefault("annotations", {})[REVISION] = str(revision)
        cluster.update(kind, new, manager=_MANAGER)


def _scale(cluster: Cluster, replica_set: Json, replicas: int) -> None:
    if replica_set["spec"]["replicas"] != replicas:
        new = clone(replica_set)
        new["spec"]["replicas"] = replicas
        cluster.update("ReplicaSet", new, manager=_MANAGER)


def _available(replica_set: Json) -> int:
    return int(dig(replica_set, "status", "availableReplicas", default=0))


def roll(cluster: Cluster, deployment: Json, *, time_seconds: float, progress: Progress, scale: float) -> float | None:
    """Take one Deployment a step on; returns when to look again at the latest (own clock), if at all."""
    if metadata(deployment).get("deletionTimestamp"):
        return None
    sets = cluster.owned("ReplicaSet", deployment)
    key = template_hash(deployment["spec"]["template"])
    current = next((item for item in sets if metadata(item)["labels"].get(HASH) == key), None)
    paused = bool(deployment["spec"].get("paused"))
    newest = max((_revision(item) for item in sets), default=0)
    if current is None and not paused:
        current = _make_set(cluster, deployment, key, newest + 1)
        if current is None:
            return None
    elif current is not None and _revision(current) != newest:
        newest += 1
        _annotate(cluster, "ReplicaSet", current, newest)
    if current is None:
        current = max(sets, key=_revision, default=None)
        if current is None:
            return None
    _follow(cluster, deployment, current, sets, paused=paused)
    fresh = [item for item in cluster.owned("ReplicaSet", deployment) if not metadata(item).get("deletionTimestamp")]
    current = next((item for item in fresh if metadata(item)["uid"] == metadata(current)["uid"]), current)
    _forget(cluster, deployment, [item for item in fresh if item is not current])
    stored = cluster.get("Deployment", metadata(deployment)["namespace"], metadata(deployment)["name"])
    if stored is None:
        return None
    _annotate(cluster, "Deployment", stored, _revision(current))
    return _report(cluster, deployment, current, fresh, time_seconds=time_seconds, progress=progress, scale=scale)


def _follow(cluster: Cluster, deployment: Json, current: Json, sets: list[Json], *, paused: bool) -> None:
    """Set the sizes of the ReplicaSets."""
    wanted = deployment["spec"]["replicas"]
    old = [item for item in sets if metadata(item)["uid"] != metadata(current)["uid"]]
    running = [item for item in old if item["spec"]["replicas"] or dig(item, "status", "replicas", default=0)]
    if paused or not running:
        _scale(cluster, current, wanted)
    elif dig(deployment, "spec", "strategy", "type") == "Recreate":
        for item in running:
            _scale(cluster, item, 0)
        if not any(cluster.owned("Pod", item) for item in running):
            _scale(cluster, current, wanted)
    else:
        _exchange(cluster, deployment, current, running)


def _exchange(cluster: Cluster, deployment: Json, current: Json, old: list[Json]) -> None:
    """Grow the new ReplicaSet and shrink the old ones within maxSurge and maxUnavailable."""
    wanted = deployment["spec"]["replicas"]
    surge, unavailable = _limits(deployment)
    have = current["spec"]["replicas"]
    total = have + sum(item["spec"]["replicas"] for item in old)
    if have > wanted:
        _scale(cluster, current, wanted)
    elif have < wanted and total < wanted + surge:
        _scale(cluster, current, have + min(wanted + surge - total, wanted - have))
    least = wanted - unavailable
    missing = max(have - _available(current), 0)
    room = total - least - missing
    sizes = {metadata(item)["uid"]: item["spec"]["replicas"] for item in old}
    ordered = sorted(old, key=_revision)
    for item in ordered:
        sick = min(max(item["spec"]["replicas"] - _available(item), 0), max(room, 0))
        sizes[metadata(item)["uid"]] -= sick
        room -= sick
    healthy = sum(min(_available(item), item["spec"]["replicas"]) for item in old) + min(_available(current), have)
    spare = min(healthy - least, room)
    for item in ordered:
        cut = min(sizes[metadata(item)["uid"]], max(spare, 0))
        sizes[metadata(item)["uid"]] -= cut
        spare -= cut
        _scale(cluster, item, sizes[metadata(item)["uid"]])


def _forget(cluster: Cluster, deployment: Json, old: list[Json]) -> None:
    idle = [
        item
        for item in sorted(old, key=_revision)
        if item["spec"]["replicas"] == 0 and not dig(item, "status", "replicas", default=0)
    ]
    surplus = len(idle) - deployment["spec"].get("revisionHistoryLimit", 10)
    for item in idle[: max(surplus, 0)]:
        cluster.delete("ReplicaSet", item)


def _report(
    cluster: Cluster,
    deployment: Json,
    current: Json,
    sets: list[Json],
    *,
    time_seconds: float,
    progress: Progress,
    scale: float,
) -> float | None:
    meta = metadata(deployment)
    stored = cluster.get("Deployment", meta["namespace"], meta["name"])
    if stored is None:
        return None
    wanted = deployment["spec"]["replicas"]
    counts = {
        name: sum(int(dig(item, "status", name, default=0)) for item in sets)
        for name in ("replicas", "readyReplicas", "availableReplicas")
    }
    updated = int(dig(current, "status", "replicas", default=0))
    status: Json = {"observedGeneration": meta["generation"], **counts, "updatedReplicas": updated}
    status["unavailableReplicas"] = max(wanted - counts["availableReplicas"], 0)
    complete = updated == wanted == counts["replicas"] == counts["availableReplicas"]

    mark = (meta["generation"], updated, counts["replicas"], counts["readyReplicas"])
    before = progress.marks.get(meta["uid"])
    if before is None or before[0] != mark:
        before = progress.marks[meta["uid"]] = (mark, time_seconds)
    deadline = before[1] + deployment["spec"].get("progressDeadlineSeconds", 600) * scale
    stuck = not complete and time_seconds >= deadline
    status["conditions"] = dig(stored, "status", "conditions", default=[])
    # A complete roll-out stays one while its pods come and go.
    settled = (condition(stored, "Progressing") or {}).get("reason") == _COMPLETE and updated == counts["replicas"]
    if not deployment["spec"].get("paused") and (complete or not settled):
        name = metadata(current)["name"]
        reason = _COMPLETE if complete else _STUCK if stuck else _MOVING
        value = "False" if reason == _STUCK else "True"
        status["conditions"] = conditions(
            {"status": status}, "Progressing", value, reason, f'ReplicaSet "{name}" {_TEXTS[reason]}.'
        )
    enough = counts["availableReplicas"] >= wanted - _limits(deployment)[1]
    status["conditions"] = conditions(
        {"status": status},
        "Available",
        "True" if enough else "False",
        "MinimumReplicasAvailable" if enough else "MinimumReplicasUnavailable",
        f"Deployment {'has' if enough else 'does not have'} minimum availability.",
    )
    status = {key: value for key, value in status.items() if value != 0 or key == "observedGeneration"}
    cluster.set_status("Deployment", stored, status, manager=_MANAGER)
    return None if complete or stuck else deadline


def _rank(pod: Json) -> tuple[bool, bool, float, str]:
    """Return the order in which pods are given up: not placed, not ready, cheap to delete, newest first."""
    meta = metadata(pod)
    cost = (meta.get("annotations") or {}).get(DELETION_COST, "0")
    placed = bool(dig(pod, "spec", "nodeName"))
    newest_first = "".join(chr(0x10FFFF - ord(letter)) for letter in meta["creationTimestamp"])
    return placed, is_ready(pod), float(cost), newest_first


def keep(cluster: Cluster, replica_set: Json) -> None:
    """Give one ReplicaSet as many pods as it wants, and report."""
    if metadata(replica_set).get("deletionTimestamp"):
        return
    pods = [pod for pod in cluster.owned("Pod", replica_set) if is_active(pod)]
    surplus = len(pods) - replica_set["spec"]["replicas"]
    for pod in sorted(pods, key=_rank)[: max(surplus, 0)]:
        cluster.delete("Pod", pod)
    template = dig(replica_set, "spec", "template", default={})
    for _ in range(max(-surplus, 0)):
        body = {
            "metadata": {
                **clone(dig(template, "metadata", default={})),
                "generateName": f"{metadata(replica_set)['name']}-",
                "namespace": metadata(replica_set)["namespace"],
                "ownerReferences": [owner_reference(replica_set)],
            },
            "spec": clone(template["spec"]),
        }
        cluster.create("Pod", body, manager=_SET_MANAGER)
    pods = [pod for pod in cluster.owned("Pod", replica_set) if is_active(pod)]
    ready = sum(is_ready(pod) for pod in pods)
    status: Json = {"replicas": len(pods), "observedGeneration": metadata(replica_set)["generation"]}
    if pods:
        status["fullyLabeledReplicas"] = len(pods)
    if ready:
        status |= {"readyReplicas": ready, "availableReplicas": ready}
    stored = cluster.get("ReplicaSet", metadata(replica_set)["namespace"], metadata(replica_set)["name"])
    if stored is not None:
        cluster.set_status("ReplicaSet", stored, status, manager=_SET_MANAGER)
