"""What the workload stand-ins share: short access to the registry, owners, conditions, pods' states."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from wattkeeper.embedded.errors import ApiError
from wattkeeper.embedded.options import DeleteOptions, WriteOptions
from wattkeeper.embedded.registry import Registry
from wattkeeper.embedded.resources import Resource
from wattkeeper.embedded.values import Json, clone, dig, metadata, now, time_text

KINDS = {
    "Node": ("", "v1", "nodes"),
    "Pod": ("", "v1", "pods"),
    "Deployment": ("apps", "v1", "deployments"),
    "ReplicaSet": ("apps", "v1", "replicasets"),
    "StatefulSet": ("apps", "v1", "statefulsets"),
}


class Cluster:
    """The registry by kind names; every write is made under a manager's name and survives a vanished object."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self.resources: dict[str, Resource] = {kind: registry.resource(*key) for kind, key in KINDS.items()}

    def get(self, kind: str, namespace: str, name: str) -> Json | None:
        """Return an object, or None where there is none."""
        return self.registry.store.get(self.resources[kind].storage, namespace, name)

    def objects(self, kind: str, namespace: str | None = None) -> list[Json]:
        """Return the objects of a kind."""
        with self.registry.store.lock:
            return self.registry.store.objects(self.resources[kind].storage, namespace)

    def owned(self, kind: str, owner: Json) -> list[Json]:
        """Return the objects that an owner controls."""
        uid = metadata(owner)["uid"]
        found = self.objects(kind, metadata(owner)["namespace"])
        return [obj for obj in found if (controller(obj) or {}).get("uid") == uid]

    def create(self, kind: str, body: Json, *, manager: str) -> Json | None:
        """Create an object; None where its name is taken or its namespace is going."""
        namespace = metadata(body).get("namespace", "")
        try:
            return self.registry.create(self.resources[kind], namespace, body, WriteOptions(manager=manager))
        except ApiError as error:
            if error.code in (403, 404, 409):
                return None
            raise

    def update(self, kind: str, obj: Json, *, manager: str, subresource: str = "") -> None:
        """Write an object that the caller read and cloned; a vanished or meanwhile changed one is left alone."""
        meta = metadata(obj)
        options = WriteOptions(manager=manager)
        try:
            self.registry.update(
                self.resources[kind],
                meta.get("namespace", ""),
                meta["name"],
                obj,
                options,
                subresource=subresource,
            )
        except ApiError as error:
            if error.code not in (404, 409):
                raise

    def set_status(self, kind: str, obj: Json, status: Json, *, manager: str) -> None:
        """Write a status where it differs from what the object has."""
        if obj.get("status") != status:
            self.update(kind, {**obj, "status": clone(status)}, manager=manager, subresource="status")

    def delete(self, kind: str, obj: Json, *, grace_seconds: int | None = None) -> None:
        """Delete an object unless it is gone."""
        meta = metadata(obj)
        options = DeleteOptions(uid=meta["uid"], grace_seconds=grace_seconds)
        try:
            self.registry.delete(self.resources[kind], meta.get("namespace", ""), meta["name"], options)
        except ApiError as error:
            if error.code not in (404, 409):
                raise

    def bind(self, pod: Json, node: str) -> None:
        """Assign a pod to a node."""
        with self.registry.store.lock:
            current = self.get("Pod", metadata(pod)["namespace"], metadata(pod)["name"])
            if current is None or metadata(current)["uid"] != metadata(pod)["uid"]:
                return
            new = clone(current)
            new["spec"]["nodeName"] = node
            options = WriteOptions(manager="kube-scheduler")
            bound = self.registry.update_through(self.resources["Pod"], current, new, options, subresource="binding")
            status = {**bound["status"], "conditions": conditions(bound, "PodScheduled", "True")}
            self.set_status("Pod", bound, status, manager="kube-scheduler")


def controller(obj: Json) -> Json | None:
    """Return the owner reference of an object's controller."""
    references = metadata(obj).get("ownerReferences") or []
    return next((reference for reference in references if reference.get("controller")), None)


def owner_reference(owner: Json) -> Json:
    """Return the reference that makes `owner` the controller of an object."""
    return {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": metadata(owner)["name"],
        "uid": metadata(owner)["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }


def conditions(obj: Json, kind: str, status: str, reason: str = "", message: str = "") -> list[Json]:
    """Return the object's conditions with one set; its transition time changes only with its status."""
    found: Sequence[Json] = dig(obj, "status", "conditions", default=[])
    old = next((item for item in found if item.get("type") == kind), None)
    new: Json = {"type": kind, "status": status}
    if reason:
        new["reason"] = reason
    if message:
        new["message"] = message
    kept = old is not None and old.get("status") == status
    new["lastTransitionTime"] = old["lastTransitionTime"] if old is not None and kept else time_text(now())
    if old is None:
        return [*found, new]
    return [new if item is old else item for item in found]


def condition(obj: Json, kind: str) -> Json | None:
    """Return one condition of an object."""
    return next((item for item in dig(obj, "status", "conditions", default=[]) if item.get("type") == kind), None)


def is_active(pod: Json) -> bool:
    """Tell whether a pod counts as a replica: not deleted, not finished."""
    return not metadata(pod).get("deletionTimestamp") and dig(pod, "status", "phase") not in ("Succeeded", "Failed")


def is_ready(pod: Json) -> bool:
    """Tell whether a pod is Ready."""
    return (condition(pod, "Ready") or {}).get("status") == "True"


def template_hash(template: Json) -> str:
    """Return ten letters that change with a pod template."""
    digest = hashlib.sha256(json.dumps(template, sort_keys=True).encode()).hexdigest()
    return digest[:10].translate(str.maketrans("01235679ae", "bcdfghjklm"))


def portion(value: Any, total: int, *, up: bool) -> int:
    """Return maxSurge or maxUnavailable as pods: a number, or a percentage of the total rounded up or down."""
    text = str(value)
    if not text.endswith("%"):
        return int(text)
    share = int(text[:-1]) * total
    return -(-share // 100) if up else share // 100
