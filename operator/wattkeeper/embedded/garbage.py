"""Deletion and what follows from it: grace, finalizers, dependents by owner references, contents of namespaces."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from wattkeeper.embedded import crds
from wattkeeper.embedded.options import DeleteOptions
from wattkeeper.embedded.resources import Resource
from wattkeeper.embedded.values import Json, clone, dig, metadata, now, time_text

if TYPE_CHECKING:
    from wattkeeper.embedded.registry import Registry

FOREGROUND = "foregroundDeletion"
_PODS = ("", "pods")
_NAMESPACES = ("", "namespaces")


def _marked(obj: Json, grace_seconds: int) -> Json:
    """Return the object with its deletion marked; its generation counts one up, as on any change of intent."""
    result = clone(obj)
    meta = result["metadata"]
    until = now() + dt.timedelta(seconds=grace_seconds)
    if "deletionTimestamp" not in meta and meta.get("generation"):
        meta["generation"] += 1
    meta["deletionTimestamp"] = time_text(until)
    meta["deletionGracePeriodSeconds"] = grace_seconds
    return result


def _grace_seconds(resource: Resource, obj: Json, options: DeleteOptions) -> int:
    if resource.storage != _PODS or not dig(obj, "spec", "nodeName"):
        return 0
    if dig(obj, "status", "phase") in ("Succeeded", "Failed"):
        return 0
    if options.grace_seconds is not None:
        return max(options.grace_seconds, 0)
    return int(dig(obj, "spec", "terminationGracePeriodSeconds", default=30))


def delete(registry: Registry, resource: Resource, obj: Json, options: DeleteOptions) -> tuple[Json, bool]:
    """Mark an object deleted, or remove it where nothing holds it; returns its last state and whether it is gone."""
    grace = _grace_seconds(resource, obj, options)
    marked_before = bool(metadata(obj).get("deletionTimestamp"))
    held = bool(metadata(obj).get("finalizers")) or grace > 0
    dependents = list(_dependents(registry, metadata(obj)["uid"]))
    if options.propagation == "Orphan":
        _orphan(registry, metadata(obj)["uid"])
    waits = options.propagation == "Foreground" and any(True for _ in dependents)
    contents = resource.storage in (_NAMESPACES, crds.KEY) and not may_go(registry, resource, obj)
    if not (held or waits or contents):
        return registry.remove(resource, obj), True
    earlier = dig(obj, "metadata", "deletionGracePeriodSeconds", default=0)
    if marked_before and not waits and grace >= earlier:
        return obj, False
    marked = _marked(obj, grace)
    if waits and FOREGROUND not in (marked["metadata"].get("finalizers") or []):
        marked["metadata"].setdefault("finalizers", []).append(FOREGROUND)
    if resource.storage == _NAMESPACES:
        marked["status"] = {**(marked.get("status") or {}), "phase": "Terminating"}
    stored = registry.store.put(resource.storage, marked)
    if waits:
        for owned, dependent in dependents:
            delete(registry, owned, dependent, options)
    if contents:
        _empty(registry, resource, stored, replace(options, propagation="Background", uid=None, resource_version=None))
    key = metadata(stored).get("namespace") or "", metadata(stored)["name"]
    last = registry.store.get(resource.storage, *key)
    return (stored, True) if last is None else (last, False)


def may_go(registry: Registry, resource: Resource, obj: Json) -> bool:
    """Tell whether nothing inside holds an object: a namespace's or a definition's contents, a pod's grace."""
    if resource.storage == _NAMESPACES:
        return not any(_inside(registry, metadata(obj)["name"]))
    if resource.storage == crds.KEY:
        return not registry.store.objects((obj["spec"]["group"], obj["spec"]["names"]["plural"]))
    if resource.storage == _PODS and metadata(obj).get("deletionTimestamp"):
        return not metadata(obj).get("deletionGracePeriodSeconds")
    return True


def _inside(registry: Registry, namespace: str) -> Iterator[tuple[Resource, Json]]:
    for key, obj in registry.store.every():
        if metadata(obj).get("namespace") == namespace:
            resource = registry.by_storage(key)
            if resource is not None:
                yield resource, obj


def _empty(registry: Registry, resource: Resource, obj: Json, options: DeleteOptions) -> None:
    if resource.storage == _NAMESPACES:
        found = list(_inside(registry, metadata(obj)["name"]))
    else:
        storage = (obj["spec"]["group"], obj["spec"]["names"]["plural"])
        owner = registry.by_storage(storage)
        found = [(owner, item) for item in registry.store.objects(storage)] if owner is not None else []
    for owned, item in found:
        _delete_current(registry, owned, item, options)


def _delete_current(registry: Registry, resource: Resource, obj: Json, options: DeleteOptions) -> None:
    """Delete an object unless an earlier deletion already took it along."""
    meta = metadata(obj)
    current = registry.store.get(resource.storage, meta.get("namespace") or "", meta["name"])
    if current is not None and metadata(current)["uid"] == meta["uid"]:
        delete(registry, resource, current, options)


def _dependents(registry: Registry, uid: str) -> Iterator[tuple[Resource, Json]]:
    for key, obj in registry.store.every():
        if any(owner.get("uid") == uid for owner in metadata(obj).get("ownerReferences") or []):
            resource = registry.by_storage(key)
            if resource is not None:
                yield resource, obj


def _drop_owner(registry: Registry, resource: Resource, obj: Json, uid: str) -> None:
    kept = [owner for owner in metadata(obj)["ownerReferences"] if owner.get("uid") != uid]
    meta = {key: value for key, value in metadata(obj).items() if key != "ownerReferences"}
    registry.store.put(resource.storage, {**obj, "metadata": {**meta, **({"ownerReferences": kept} if kept else {})}})


def _orphan(registry: Registry, uid: str) -> None:
    for resource, obj in list(_dependents(registry, uid)):
        _drop_owner(registry, resource, obj, uid)


def after_removal(registry: Registry, obj: Json) -> None:
    """Delete or release the removed object's dependents, and let go what only waited for it."""
    meta = metadata(obj)
    dependents = list(_dependents(registry, meta["uid"]))
    alive = {metadata(item)["uid"] for _, item in registry.store.every()} if dependents else set()
    for resource, dependent in dependents:
        owners = metadata(dependent)["ownerReferences"]
        if any(owner.get("uid") in alive for owner in owners):
            _drop_owner(registry, resource, dependent, meta["uid"])
        else:
            _delete_current(registry, resource, dependent, DeleteOptions())
    for owner in meta.get("ownerReferences") or []:
        _release_foreground(registry, owner.get("uid", ""))
    _release_holders(registry, obj)


def _release_foreground(registry: Registry, uid: str) -> None:
    if any(True for _ in _dependents(registry, uid)):
        return
    for key, owner in registry.store.every():
        meta = metadata(owner)
        if meta["uid"] == uid and FOREGROUND in (meta.get("finalizers") or []):
            resource = registry.by_storage(key)
            if resource is None:
                continue
            kept = [item for item in meta["finalizers"] if item != FOREGROUND]
            stored = registry.store.put(key, {**owner, "metadata": {**meta, "finalizers": kept}})
            if not kept and may_go(registry, resource, stored):
                registry.remove(resource, stored)


def _release_holders(registry: Registry, obj: Json) -> None:
    """Remove a deleted namespace or definition once its last object is gone."""
    namespace = metadata(obj).get("namespace")
    group = str(obj.get("apiVersion", "")).rpartition("/")[0]
    holders: list[tuple[tuple[str, str], Json | None]] = []
    if namespace:
        holders.append((_NAMESPACES, registry.store.get(_NAMESPACES, "", namespace)))
    holders += [
        (crds.KEY, definition)
        for definition in (registry.store.objects(crds.KEY) if group else [])
        if definition["spec"]["group"] == group and definition["spec"]["names"]["kind"] == obj.get("kind")
    ]
    for key, holder in holders:
        resource = registry.by_storage(key)
        if holder is None or resource is None or not metadata(holder).get("deletionTimestamp"):
            continue
        if not metadata(holder).get("finalizers") and may_go(registry, resource, holder):
            registry.remove(resource, holder)
