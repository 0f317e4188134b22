"""Kubernetes objects in memory, and the API calls that the operator makes on them, in process and without HTTP.

The operator's own `Kube` and `ClusterCache` work on it: writes come in as the requests they are (merge patch, JSON
patch, scale and status subresources, preconditions by resourceVersion), reads are those of a watch that is never late.
"""

import json
from collections import Counter
from types import SimpleNamespace
from typing import Any

from wattkeeper.controller.kube import Object
from wattkeeper.embedded import errors, merging

_Key = tuple[str, str]


class Shelf:
    """All objects of one kind by namespace ("" where it has none) and name. A write replaces the whole object."""

    def __init__(self) -> None:
        self.version = 0
        self._objects: dict[_Key, Object] = {}

    def objects(self) -> list[Object]:
        """All of them."""
        return list(self._objects.values())

    def get(self, namespace: str | None, name: str) -> Object | None:
        """One of them."""
        return self._objects.get((namespace or "", name))

    def put(self, body: Object) -> Object:
        """Store an object under the next resourceVersion. It is the shelf's from now on."""
        self.version += 1
        meta = body["metadata"]
        meta["resourceVersion"] = str(self.version)
        self._objects[meta.get("namespace") or "", meta["name"]] = body
        return body

    def remove(self, namespace: str, name: str) -> None:
        """Take an object out."""
        self.version += 1
        del self._objects[namespace, name]


class Objects:
    """Shelves by plural name, and the requests on them; counts what was created of kinds that are not kept (events)."""

    def __init__(self, *plurals: str) -> None:
        self.shelves = {plural: Shelf() for plural in plurals}
        self.events: Counter[tuple[str, str]] = Counter()
        """(type, reason) of the events that were written."""

    def request(self, method: str, path: str, body: Any) -> tuple[int, Object]:
        """Status code and answer of one API request."""
        try:
            return 200, self._answer(method, path, body)
        except errors.ApiError as error:
            return error.code, error.status()

    def _answer(self, method: str, path: str, body: Any) -> Object:
        plural, namespace, name, sub = _parsed(path)
        if method == "POST" and plural == "events":
            self.events[body["type"], body["reason"]] += 1
            return dict(body)
        shelf = self.shelves.get(plural)
        if shelf is None:
            raise errors.no_resource()
        if method == "POST":
            return shelf.put(dict(body))
        found = shelf.get(namespace, name)
        if found is None:
            raise errors.not_found("", plural, name)
        if method == "GET":
            return _scale(found) if sub == "scale" else found
        return self._patched(shelf, found, body, sub)

    def _patched(self, shelf: Shelf, old: Object, body: Any, sub: str) -> Object:
        if isinstance(body, list):
            new: Object = merging.json_patch(old, body)
        else:
            asked = body.get("metadata", {}).get("resourceVersion")
            if asked not in (None, old["metadata"]["resourceVersion"]):
                raise errors.conflict("", "", old["metadata"]["name"], errors.STALE)
            parts = ("status",) if sub == "status" else ("metadata", "spec")
            new = merging.json_merge(old, {part: body[part] for part in parts if part in body})
        new["metadata"] = dict(new["metadata"])
        if new.get("spec") != old.get("spec"):
            new["metadata"]["generation"] = old["metadata"].get("generation", 0) + 1
        return shelf.put(new)


class InProcessApi:
    """What `Kube` needs of the official client, answered by `Objects`."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects

    def param_serialize(self, method: str, path: str, *, body: Any = None, **_: Any) -> tuple[str, str, Any]:
        """A request, ready for `call_api`."""
        return method, path, body

    def call_api(self, method: str, path: str, body: Any, *, _request_timeout: Any = None) -> SimpleNamespace:
        """The answer, as a response that can be read."""
        code, answer = self._objects.request(method, path.partition("?")[0], body)
        return SimpleNamespace(status=code, headers={}, read=lambda: json.dumps(answer).encode())


def _parsed(path: str) -> tuple[str, str, str, str]:
    """(plural, namespace, name, subresource) of an API path."""
    parts = path.strip("/").split("/")
    parts = parts[2:] if parts[0] == "api" else parts[3:]
    namespace = ""
    if parts[0] == "namespaces" and len(parts) > 2:
        namespace, parts = parts[1], parts[2:]
    plural, name, sub = (*parts, "", "")[:3]
    return plural, namespace, name, sub


def _scale(workload: Object) -> Object:
    """The scale view of a workload."""
    return {"metadata": workload["metadata"], "spec": {"replicas": workload["spec"].get("replicas", 1)}}
