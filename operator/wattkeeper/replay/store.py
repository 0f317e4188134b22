"""The objects that the operator reads and writes, kept in this process: what an API server would answer, without one.

Only what the fleet loop uses is here. `StoreCache` stands for its watches, `StoreKube` for its requests; both are the
operator's own classes with the network taken out.
"""

import copy
import re
from typing import Any

from kubernetes import client

from wattkeeper.controller.cache import KINDS, ClusterCache, Kind
from wattkeeper.controller.kube import MERGE_PATCH, Kube, KubeConflictError, KubeInvalidError, KubeNotFoundError
from wattkeeper.embedded import merging
from wattkeeper.embedded.errors import ApiError

Object = dict[str, Any]
_PATH = re.compile(r"^/apis?/(?:[^/]+/)?[^/]+(?:/namespaces/([^/]+))?/([a-z]+)(?:/([^/?]+))?(?:/([a-z]+))?$")


class Store:
    """Objects by kind (plural), namespace and name; every write counts up the version."""

    def __init__(self) -> None:
        self._objects: dict[str, dict[tuple[str, str], Object]] = {}
        self.version = 0

    def put(self, plural: str, obj: Object) -> Object:
        """Keep an object as it is, with a new version."""
        self.version += 1
        meta = obj["metadata"]
        meta["resourceVersion"] = str(self.version)
        self._objects.setdefault(plural, {})[meta.get("namespace") or "", meta["name"]] = obj
        return obj

    def get(self, plural: str, namespace: str | None, name: str) -> Object | None:
        """One object, to be read only."""
        return self._objects.get(plural, {}).get((namespace or "", name))

    def every(self, plural: str) -> list[Object]:
        """All of a kind, to be read only."""
        return list(self._objects.get(plural, {}).values())

    def replace_all(self, plural: str, objects: list[Object]) -> None:
        """These objects and no others of a kind; those that did not change keep their version."""
        before = self._objects.get(plural, {})
        self._objects[plural] = {}
        for obj in objects:
            meta = obj["metadata"]
            key = (meta.get("namespace") or "", meta["name"])
            known = before.get(key)
            if known is not None and _bare(known) == _bare(obj):
                self._objects[plural][key] = known
            else:
                self.put(plural, obj)


def _bare(obj: Object) -> Object:
    return {**obj, "metadata": {key: value for key, value in obj["metadata"].items() if key != "resourceVersion"}}


class StoreCache(ClusterCache):
    """The operator's view of the cluster, straight from the store."""

    def __init__(self, store: Store, kube: Kube) -> None:
        super().__init__(kube=kube)
        self._store = store

    def start(self, *, timeout_seconds: float = 60.0) -> None:
        """Nothing to wait for."""

    def stop(self) -> None:
        """Nothing runs."""

    def watches(self, kind: Kind) -> bool:
        """All kinds but those that a cluster without add-ons lacks."""
        return kind in KINDS and (not kind.optional or kind.plural != "scaledobjects")

    def objects(self, kind: Kind) -> list[Object]:
        """All objects of a kind."""
        return self._store.every(kind.plural)

    def get(self, kind: Kind, namespace: str | None, name: str) -> Object | None:
        """One object."""
        return self._store.get(kind.plural, namespace, name)

    def pods(self, namespace: str, selector: Object) -> list[Object]:
        """Pods that the labels of a selector match."""
        wanted = (selector.get("matchLabels") or {}).items()
        return [
            pod
            for pod in self._store.every("pods")
            if pod["metadata"]["namespace"] == namespace and wanted <= (pod["metadata"].get("labels") or {}).items()
        ]


class StoreKube(Kube):
    """The operator's requests, answered by the store."""

    def __init__(self, store: Store) -> None:
        super().__init__(api=client.ApiClient(client.Configuration()))
        self._store = store

    def get(self, path: str) -> Object:
        """One object or collection by its API path."""
        namespace, plural, name, sub = _parse(path)
        if name is None:
            return {"items": copy.deepcopy(self._store.every(plural))}
        found = self._found(path, namespace, plural, name)
        if sub == "scale":
            return {"metadata": dict(found["metadata"]), "spec": {"replicas": found["spec"].get("replicas", 1)}}
        return copy.deepcopy(found)

    def patch(
        self,
        path: str,
        body: Object | list[Object],
        *,
        content_type: str = MERGE_PATCH,
        resource_version: str | None = None,
    ) -> Object:
        """Merge patch (a dict) or JSON patch (a list of operations)."""
        del content_type  # the body tells
        namespace, plural, name, sub = _parse(path)
        if name is None:
            raise KubeNotFoundError(f"PATCH {path}: names no object")
        found = self._found(path, namespace, plural, name)
        if resource_version is not None and resource_version != found["metadata"]["resourceVersion"]:
            raise KubeConflictError(f"PATCH {path}: the object was changed meanwhile")
        if isinstance(body, list):
            try:
                changed: Object = merging.json_patch(copy.deepcopy(found), body)
            except ApiError as error:
                wrong = KubeConflictError if body and body[0].get("op") == "test" else KubeInvalidError
                raise wrong(f"PATCH {path}: {error}") from error
        else:
            part = {"status": body.get("status")} if sub == "status" else body
            if sub == "scale":
                part = {"spec": {"replicas": body["spec"]["replicas"]}}
            changed = merging.json_merge(copy.deepcopy(found), part)
        if changed.get("spec") != found.get("spec"):
            changed["metadata"]["generation"] = found["metadata"].get("generation", 1) + 1
        return self._store.put(plural, changed)

    def create(self, path: str, body: Object) -> Object:
        """Create in a collection; events are dropped, nobody reads them here."""
        namespace, plural, _, _ = _parse(path)
        if plural == "events":
            return body
        name = body["metadata"]["name"]
        if self._store.get(plural, namespace, name) is not None:
            raise KubeConflictError(f"POST {path}: {name} is there already")
        return self._store.put(plural, copy.deepcopy(body))

    def _found(self, path: str, namespace: str | None, plural: str, name: str) -> Object:
        found = self._store.get(plural, namespace, name)
        if found is None:
            raise KubeNotFoundError(f"{path}: there is no such object")
        return found


def _parse(path: str) -> tuple[str | None, str, str | None, str | None]:
    match = _PATH.match(path.partition("?")[0])
    if match is None:
        raise KubeNotFoundError(f"{path}: no path of this store")
    return match.group(1), match.group(2), match.group(3), match.group(4)
