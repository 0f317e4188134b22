"""The one place that calls the Kubernetes API to read single objects and to write. Objects are plain dicts.

Every failure becomes a domain error that says which object and what to do. Throttling and server errors are retried a
bounded number of times with the server's own Retry-After; conflicts are not retried here, because a decision that was
made on an old object has to be made again.
"""

import json
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import urllib3
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException

from wattkeeper.api.base import GROUP, VERSION
from wattkeeper.domain.errors import WattkeeperError

Object = dict[str, Any]

FIELD_MANAGER = "wattkeeper"
MERGE_PATCH = "application/merge-patch+json"
JSON_PATCH = "application/json-patch+json"

_MANAGED = [("fieldManager", FIELD_MANAGER)]
_CONNECT_SECONDS = 5.0
_READ_SECONDS = 20.0
_WATCH_READ_SECONDS = 330.0
_RETRIES = 3
WRITERS = 8
"""Writes that are under way at once."""
_REST_SECONDS = 5.0
_log = logging.getLogger(__name__)


class KubeError(WattkeeperError):
    """The API server refused or could not be reached."""


class KubeConflictError(KubeError):
    """Somebody else wrote the object first; look again and decide again."""


class KubeNotFoundError(KubeError):
    """The object is gone."""


class KubeForbiddenError(KubeError):
    """RBAC does not allow the call."""


class KubeInvalidError(KubeError):
    """The API server found the object invalid."""


_ERRORS: dict[int, type[KubeError]] = {
    403: KubeForbiddenError,
    404: KubeNotFoundError,
    409: KubeConflictError,
    422: KubeInvalidError,
}


def load_client(kubeconfig: str | None, context: str | None = None) -> client.ApiClient:
    """A client from a kubeconfig file, or from the pod's ServiceAccount where none is given.

    Raises KubeError where neither works.
    """
    configuration = client.Configuration()
    try:
        if kubeconfig:
            config.load_kube_config(config_file=kubeconfig, context=context, client_configuration=configuration)
        else:
            try:
                config.load_incluster_config(client_configuration=configuration)
            except config.ConfigException:
                config.load_kube_config(context=context, client_configuration=configuration)
    except (config.ConfigException, OSError) as error:
        raise KubeError(f"no access to a cluster: {error}. Give --kubeconfig, or run inside a pod") from error
    # The client counts processors here; what matters is how many writers and Kopf's handlers wait at once.
    configuration.connection_pool_maxsize = 2 * WRITERS
    configuration.retries = urllib3.Retry(total=0, connect=0, read=0, redirect=0)
    return client.ApiClient(configuration)


@dataclass(kw_only=True)
class Kube:
    """Reads and writes; counts its requests by verb and code."""

    api: client.ApiClient
    sleep: Callable[[float], None] = time.sleep
    requests: dict[tuple[str, int], int] = field(default_factory=dict)
    on_request: Callable[[str, int], None] | None = None
    """Told of every request: verb and code, 0 where none came."""
    monotonic: Callable[[], float] = time.monotonic
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _unreachable_until: float = float("-inf")

    def get(self, path: str) -> Object:
        """One object by its API path."""
        return self._call("GET", path)

    def patch(
        self,
        path: str,
        body: Object | list[Object],
        *,
        content_type: str = MERGE_PATCH,
        resource_version: str | None = None,
    ) -> Object:
        """Patch an object; with `resource_version` only if it is still the current one (else KubeConflictError).

        A JSON patch (a list of operations) carries its own `test` of the version: its failure is a conflict, too.
        """
        if isinstance(body, list):
            try:
                return self._call("PATCH", path, body, content_type=content_type, query=_MANAGED)
            except KubeInvalidError as error:
                if body and body[0]["op"] == "test" and "test" in str(error).lower():
                    raise KubeConflictError(str(error)) from error
                raise
        if resource_version is not None:
            body = {**body, "metadata": {**body.get("metadata", {}), "resourceVersion": resource_version}}
        return self._call("PATCH", path, body, content_type=content_type, query=_MANAGED)

    def create(self, path: str, body: Object) -> Object:
        """Create an object in the collection at `path`."""
        return self._call("POST", path, body, query=_MANAGED)

    def list_function(self, path: str) -> Callable[..., Any]:
        """A list function as the client's informer wants it, for any collection, yielding plain dicts."""

        def list_objects(**options: Any) -> Any:
            """List or watch a collection.

            :return: object
            """
            watch = bool(options.pop("watch", False))
            options.pop("_preload_content", None)
            names = {"resource_version": "resourceVersion", "timeout_seconds": "timeoutSeconds"}
            query = [(names[name], str(value)) for name, value in options.items() if value is not None]
            if watch:
                query += [("watch", "true"), ("allowWatchBookmarks", "true")]
                stream = self._raw("GET", path, None, query=query, timeout=(_CONNECT_SECONDS, _WATCH_READ_SECONDS))
                self._count("WATCH", stream.status)
                return stream.response
            found = self._call("GET", path, query=query)
            version = found.get("metadata", {}).get("resourceVersion")
            return SimpleNamespace(items=found.get("items") or [], metadata=SimpleNamespace(resource_version=version))

        return list_objects

    def _call(
        self,
        method: str,
        path: str,
        body: Object | list[Object] | None = None,
        *,
        content_type: str = "application/json",
        query: list[tuple[str, str]] | None = None,
    ) -> Object:
        if self.monotonic() < self._unreachable_until:
            raise KubeError(f"{method} {path}: not tried, the API server could not be reached a moment ago")
        for attempt in range(_RETRIES + 1):
            last = attempt == _RETRIES
            try:
                response = self._raw(method, path, body, content_type=content_type, query=query)
                payload = response.read()
            except (urllib3.exceptions.HTTPError, OSError) as error:
                self._count(method, 0)
                if last:
                    # Or a pass over a thousand services would wait a thousand times for a server that is down.
                    self._unreachable_until = self.monotonic() + _REST_SECONDS
                    raise KubeError(f"{method} {path}: the API server cannot be reached: {error}") from error
                self.sleep(0.2 * 2**attempt)
                continue
            self._count(method, response.status)
            if 200 <= response.status < 300:
                return _parsed(method, path, payload)
            if (response.status == 429 or response.status >= 500) and not last:
                self.sleep(_retry_after(response) or 0.2 * 2**attempt)
                continue
            raise _error(method, path, response.status, payload)
        raise AssertionError("the last attempt returns or raises")

    def _raw(
        self,
        method: str,
        path: str,
        body: Object | list[Object] | None,
        *,
        content_type: str = "application/json",
        query: list[tuple[str, str]] | None = None,
        timeout: tuple[float, float] = (_CONNECT_SECONDS, _READ_SECONDS),
    ) -> Any:
        headers = {"Accept": "application/json"}
        if body is not None:
            headers["Content-Type"] = content_type
        serialized = self.api.param_serialize(
            method, path, query_params=query or [], header_params=headers, body=body, auth_settings=["BearerToken"]
        )
        try:
            return self.api.call_api(*serialized, _request_timeout=timeout)
        except ApiException as error:
            if error.status:
                body_text = str(error.body or "")
                return SimpleNamespace(status=error.status, headers=error.headers or {}, read=body_text.encode)
            raise urllib3.exceptions.HTTPError(error.reason) from error

    def _count(self, method: str, code: int) -> None:
        with self._lock:
            self.requests[method, code] = self.requests.get((method, code), 0) + 1
        if self.on_request is not None:
            self.on_request(method, code)


def _parsed(method: str, path: str, payload: bytes) -> Object:
    try:
        result: Object = json.loads(payload)
    except ValueError as error:
        raise KubeError(
            f"{method} {path}: the answer is not JSON: is there a proxy in front of the API server?"
        ) from error
    return result


def _retry_after(response: Any) -> float | None:
    try:
        return min(float(response.headers.get("Retry-After", "")), 10.0)
    except ValueError:
        return None


def _error(method: str, path: str, status: int, payload: bytes) -> KubeError:
    try:
        message = json.loads(payload).get("message", "")
    except (ValueError, AttributeError):
        message = payload[:200].decode(errors="replace")
    hint = ""
    if status == 403:
        hint = "; grant the right in the operator's ClusterRole (manifests/base/rbac.yaml)"
    return _ERRORS.get(status, KubeError)(f"{method} {path}: {status} {message}{hint}")


def path_of(
    plural: str, *, group: str, version: str, namespace: str | None, name: str | None = None, sub: str = ""
) -> str:
    """API path of a collection or, with `name`, of an object."""
    base = f"/apis/{group}/{version}" if group else f"/api/{version}"
    scope = f"/namespaces/{namespace}" if namespace else ""
    return f"{base}{scope}/{plural}" + (f"/{name}" if name else "") + (f"/{sub}" if sub else "")


def service_path(namespace: str, name: str, sub: str = "") -> str:
    """Path of an InferenceService."""
    return path_of("inferenceservices", group=GROUP, version=VERSION, namespace=namespace, name=name, sub=sub)


def node_power_cap_path(name: str | None = None) -> str:
    """Path of a NodePowerCap, or of all."""
    return path_of("nodepowercaps", group=GROUP, version=VERSION, namespace=None, name=name)


def workload_path(kind: str, namespace: str, name: str, sub: str = "") -> str:
    """Path of a Deployment or StatefulSet."""
    return path_of(f"{kind.lower()}s", group="apps", version="v1", namespace=namespace, name=name, sub=sub)
