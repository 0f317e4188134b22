"""What the cluster looks like.

One watch per kind, kept in memory by the official client's informers, as plain dicts.
"""

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import urllib3
from kubernetes.client.exceptions import ApiException
from kubernetes.informer import SharedInformer

from wattkeeper.api.base import GROUP, VERSION
from wattkeeper.controller.kube import Kube, KubeError, KubeNotFoundError, Object, path_of

_log = logging.getLogger(__name__)
_RELIST_SECONDS = 300
_FIRST_DELAY_SECONDS, _LAST_DELAY_SECONDS = 1.0, 30.0


def _slim_pod(pod: Object) -> None:
    """Keep of a pod what is read of it: a cluster has many, and most of each is of no use here."""
    _keep(pod["metadata"], "name", "namespace", "uid", "resourceVersion", "labels", "deletionTimestamp")
    _keep(pod["spec"], "nodeName", "containers")
    for container in pod["spec"].get("containers") or ():
        _keep(container, "name", "resources")
    _keep(pod.get("status") or {}, "phase", "podIP", "conditions")


def _slim_node(node: Object) -> None:
    """Keep of a node what is read of it: the list of its images alone may be longer than all that."""
    _keep(node["metadata"], "name", "uid", "resourceVersion", "labels")
    _keep(node.get("spec") or {}, "unschedulable")
    _keep(node.get("status") or {}, "allocatable", "addresses")


def _keep(part: Object, *names: str) -> None:
    for name in part.keys() - set(names):
        del part[name]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind that is watched."""

    plural: str
    group: str
    version: str
    namespaced: bool = True
    optional: bool = False
    """True where the API may not be served (KEDA not installed) or not be readable (nodes, in a namespaced install)."""
    slim: Callable[[Object], None] | None = None
    """Drops from an object what nobody reads."""


SERVICES = Kind(plural="inferenceservices", group=GROUP, version=VERSION)
PROFILES = Kind(plural="modelprofiles", group=GROUP, version=VERSION)
POWER_CAPS = Kind(plural="nodepowercaps", group=GROUP, version=VERSION, namespaced=False, optional=True)
DEPLOYMENTS = Kind(plural="deployments", group="apps", version="v1")
STATEFUL_SETS = Kind(plural="statefulsets", group="apps", version="v1")
PODS = Kind(plural="pods", group="", version="v1", slim=_slim_pod)
NODES = Kind(plural="nodes", group="", version="v1", namespaced=False, optional=True, slim=_slim_node)
AUTOSCALERS = Kind(plural="horizontalpodautoscalers", group="autoscaling", version="v2")
SCALED_OBJECTS = Kind(plural="scaledobjects", group="keda.sh", version="v1alpha1", optional=True)

KINDS = (SERVICES, PROFILES, POWER_CAPS, DEPLOYMENTS, STATEFUL_SETS, PODS, NODES, AUTOSCALERS, SCALED_OBJECTS)


class Shelf(Protocol):
    """The objects of one kind, however they come."""

    @property
    def version(self) -> int:
        """Changes with every change of an object."""
        ...

    def objects(self) -> list[Object]:
        """All of them; not to be changed by callers."""
        ...

    def get(self, namespace: str | None, name: str) -> Object | None:
        """One of them."""
        ...


class _Watched:
    """The informers of one kind: one, or one per namespace."""

    def __init__(self, kube: Kube, kind: Kind, namespaces: Sequence[str]) -> None:
        scopes: Sequence[str | None] = namespaces if namespaces and kind.namespaced else (None,)
        self.version = 0
        self._slim = kind.slim
        self.stopping = threading.Event()
        self._listed = [threading.Event() for _ in scopes]
        self.informers = []
        for scope, listed in zip(scopes, self._listed, strict=True):
            path = path_of(kind.plural, group=kind.group, version=kind.version, namespace=scope)
            informer = SharedInformer(
                _patient(kube.list_function(path), listed, self.stopping, kind), resync_period=_RELIST_SECONDS
            )
            for event in ("ADDED", "MODIFIED", "DELETED"):
                informer.add_event_handler(event, self._changed)
            self.informers.append(informer)

    def _changed(self, body: Object) -> None:
        if self._slim is not None:
            self._slim(body)
        self.version += 1

    @property
    def synced(self) -> bool:
        return all(listed.is_set() for listed in self._listed)

    def objects(self) -> list[Object]:
        return [item for informer in self.informers for item in informer.cache.list()]

    def get(self, namespace: str | None, name: str) -> Object | None:
        key = f"{namespace}/{name}" if namespace else name
        for informer in self.informers:
            found: Object | None = informer.cache.get_by_key(key)
            if found is not None:
                return found
        return None


def _patient(list_function: Any, listed: threading.Event, stopping: threading.Event, kind: Kind) -> Any:
    """A list function that notes its first success, slims what it lists, and waits before it reports a failure.

    The informer itself reconnects at once, which would storm an API server that is down.
    """
    delay_seconds = _FIRST_DELAY_SECONDS

    def list_objects(**options: Any) -> Any:
        """List or watch a collection.

        :return: object
        """
        nonlocal delay_seconds
        try:
            result = list_function(**options)
        except (KubeError, urllib3.exceptions.HTTPError, OSError) as error:
            if not stopping.is_set():
                _log.warning("%s cannot be watched, trying again in %.0f s: %s", kind.plural, delay_seconds, error)
            stopping.wait(delay_seconds)
            delay_seconds = min(2 * delay_seconds, _LAST_DELAY_SECONDS)
            raise ApiException(status=0, reason=str(error)) from error
        delay_seconds = _FIRST_DELAY_SECONDS
        if not options.get("watch"):
            if kind.slim is not None:
                for item in result.items:
                    kind.slim(item)
            listed.set()
        return result

    return list_objects


@dataclass(kw_only=True)
class ClusterCache:
    """All watched kinds. Reading never calls the API."""

    kube: Kube
    namespaces: tuple[str, ...] = ()
    """Empty: all."""
    shelves: dict[Kind, Shelf] = field(default_factory=dict)
    """Filled by `start` with what is watched. A simulation puts its own objects here and starts nothing."""
    _watched: dict[Kind, _Watched] = field(default_factory=dict)
    _pod_index: dict[tuple[str, str, str], list[Object]] = field(default_factory=dict)
    _pod_version: int = -1

    def start(self, *, timeout_seconds: float = 60.0) -> None:
        """Start all watches and wait for the first lists.

        Raises KubeNotFoundError where our own CRDs are not installed, KubeError where a list does not come in time.
        """
        # The informer logs a trace for every connection that ends; what matters is logged by `_patient`.
        logging.getLogger("kubernetes.informer").setLevel(logging.CRITICAL)
        for kind in KINDS:
            if self._served(kind):
                self.shelves[kind] = self._watched[kind] = _Watched(self.kube, kind, self.namespaces)
                for informer in self._watched[kind].informers:
                    informer.start()
        deadline = time.monotonic() + timeout_seconds
        while waiting := [kind.plural for kind, watched in self._watched.items() if not watched.synced]:
            if time.monotonic() > deadline:
                raise KubeError(
                    f"no list of {', '.join(waiting)} within {timeout_seconds:.0f} s: check RBAC and network"
                )
            time.sleep(0.05)

    def _served(self, kind: Kind) -> bool:
        scope = self.namespaces[0] if self.namespaces and kind.namespaced else None
        path = path_of(kind.plural, group=kind.group, version=kind.version, namespace=scope)
        try:
            self.kube.get(f"{path}?limit=1")
        except KubeNotFoundError:
            if kind.group == GROUP:
                raise KubeNotFoundError(
                    f"the CustomResourceDefinition {kind.plural}.{kind.group} is not installed: "
                    "kubectl apply -f crds/ (or install the chart with crds.enabled=true)"
                ) from None
            _log.info("%s.%s is not served by this cluster: not watched", kind.plural, kind.group)
            return False
        except KubeError as error:
            if kind.optional:
                _log.warning("%s cannot be read and are not used: %s", kind.plural, error)
                return False
            raise
        return True

    def stop(self) -> None:
        """End all watches."""
        for watched in self._watched.values():
            watched.stopping.set()
        threads = [
            threading.Thread(target=informer.stop, daemon=True)
            for watched in self._watched.values()
            for informer in watched.informers
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=3)

    def watches(self, kind: Kind) -> bool:
        """True where the kind is served and readable."""
        return kind in self.shelves

    def objects(self, kind: Kind) -> list[Object]:
        """All objects of a kind; none where it is not watched."""
        shelf = self.shelves.get(kind)
        return shelf.objects() if shelf is not None else []

    def get(self, kind: Kind, namespace: str | None, name: str) -> Object | None:
        """One object; None where it does not exist."""
        shelf = self.shelves.get(kind)
        return shelf.get(namespace, name) if shelf is not None else None

    def pods(self, namespace: str, selector: Object) -> list[Object]:
        """Pods that a label selector matches."""
        labels = selector.get("matchLabels") or {}
        expressions = selector.get("matchExpressions") or []
        if not labels and not expressions:
            return []
        self._refresh_pod_index()
        buckets = [self._pod_index.get((namespace, key, value), []) for key, value in labels.items()]
        candidates = min(buckets, key=len) if buckets else self._pod_index.get((namespace, "", ""), [])
        return [pod for pod in candidates if _matches(pod["metadata"].get("labels") or {}, labels, expressions)]

    def _refresh_pod_index(self) -> None:
        shelf = self.shelves[PODS]
        version = shelf.version
        if version == self._pod_version:
            return
        index: dict[tuple[str, str, str], list[Object]] = defaultdict(list)
        for pod in shelf.objects():
            namespace = pod["metadata"]["namespace"]
            index[namespace, "", ""].append(pod)
            for key, value in (pod["metadata"].get("labels") or {}).items():
                index[namespace, key, value].append(pod)
        self._pod_index, self._pod_version = dict(index), version


def _matches(labels: dict[str, str], wanted: dict[str, str], expressions: Iterable[Object]) -> bool:
    if any(labels.get(key) != value for key, value in wanted.items()):
        return False
    for expression in expressions:
        key, values = expression["key"], expression.get("values") or []
        match expression["operator"]:
            case "In" if labels.get(key) not in values:
                return False
            case "NotIn" if key in labels and labels[key] in values:
                return False
            case "Exists" if key not in labels:
                return False
            case "DoesNotExist" if key in labels:
                return False
    return True
