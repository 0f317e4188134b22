"""The built-in resources that are served, and the well-known ones that are not (so that errors can say so)."""

from wattkeeper.embedded import builtin_schemas as schemas
from wattkeeper.embedded.resources import Resource, ScalePaths
from wattkeeper.embedded.values import Json, clone

_EVENT_NAMES = {
    "involvedObject": "regarding",
    "message": "note",
    "count": "deprecatedCount",
    "firstTimestamp": "deprecatedFirstTimestamp",
    "lastTimestamp": "deprecatedLastTimestamp",
    "source": "deprecatedSource",
    "reportingComponent": "reportingController",
}


def event_in(obj: Json) -> Json:
    """Return an events.k8s.io event as the core event that is stored."""
    names = {new: old for old, new in _EVENT_NAMES.items()}
    return {**{names.get(key, key): value for key, value in obj.items()}, "apiVersion": "v1"}


def event_out(obj: Json) -> Json:
    """Return a stored core event as an events.k8s.io event."""
    renamed = {_EVENT_NAMES.get(key, key): value for key, value in obj.items()}
    return {"eventTime": None, **renamed, "apiVersion": "events.k8s.io/v1"}


def _resource(api_version: str, plural: str, kind: str, schema: Json, short: str = "", **more: object) -> Resource:
    group, _, version = api_version.rpartition("/")
    defaults: dict[str, object] = {"storage": (group, plural), "namespaced": True, "singular": kind.lower()}
    return Resource(
        group=group,
        version=version,
        plural=plural,
        kind=kind,
        schema=clone(schema),
        short_names=tuple(short.split()),
        **{**defaults, **more},  # type: ignore[arg-type]
    )


_ALL = ("all",)
_SCALE = ScalePaths()

RESOURCES: tuple[Resource, ...] = (
    _resource("v1", "namespaces", "Namespace", schemas.NAMESPACE, "ns", namespaced=False, status=True),
    _resource("v1", "nodes", "Node", schemas.NODE, "no", namespaced=False, status=True, keeps_status_on_create=True),
    _resource(
        "v1",
        "pods",
        "Pod",
        schemas.POD,
        "po",
        status=True,
        categories=_ALL,
        generation="spec",
        subresources=(("binding", "", "v1", "Binding"), ("eviction", "policy", "v1", "Eviction")),
    ),
    _resource("v1", "services", "Service", schemas.SERVICE, "svc", status=True, categories=_ALL),
    _resource("v1", "configmaps", "ConfigMap", schemas.CONFIG_MAP, "cm"),
    _resource("v1", "secrets", "Secret", schemas.SECRET),
    _resource("v1", "serviceaccounts", "ServiceAccount", schemas.SERVICE_ACCOUNT, "sa"),
    _resource("v1", "events", "Event", schemas.EVENT, "ev"),
    _resource(
        "events.k8s.io/v1",
        "events",
        "Event",
        schemas.EVENT,
        "ev",
        storage=("", "events"),
        convert_in=event_in,
        convert_out=event_out,
    ),
    _resource(
        "apps/v1",
        "deployments",
        "Deployment",
        schemas.DEPLOYMENT,
        "deploy",
        status=True,
        scale=_SCALE,
        categories=_ALL,
        generation="spec",
    ),
    _resource(
        "apps/v1",
        "replicasets",
        "ReplicaSet",
        schemas.REPLICA_SET,
        "rs",
        status=True,
        scale=_SCALE,
        categories=_ALL,
        generation="spec",
    ),
    _resource(
        "apps/v1",
        "statefulsets",
        "StatefulSet",
        schemas.STATEFUL_SET,
        "sts",
        status=True,
        scale=_SCALE,
        categories=_ALL,
        generation="spec",
    ),
    _resource(
        "autoscaling/v2",
        "horizontalpodautoscalers",
        "HorizontalPodAutoscaler",
        schemas.AUTOSCALER,
        "hpa",
        status=True,
        categories=_ALL,
    ),
    _resource("coordination.k8s.io/v1", "leases", "Lease", schemas.LEASE, unconditional_update=False),
    _resource(
        "apiextensions.k8s.io/v1",
        "customresourcedefinitions",
        "CustomResourceDefinition",
        schemas.CRD,
        "crd crds",
        namespaced=False,
        status=True,
        categories=("api-extensions",),
        generation="spec",
        unconditional_update=False,
    ),
)

UNSERVED_GROUPS = frozenset(
    {
        "admissionregistration.k8s.io",
        "apiregistration.k8s.io",
        "apps",
        "authentication.k8s.io",
        "authorization.k8s.io",
        "autoscaling",
        "batch",
        "certificates.k8s.io",
        "coordination.k8s.io",
        "discovery.k8s.io",
        "flowcontrol.apiserver.k8s.io",
        "networking.k8s.io",
        "node.k8s.io",
        "policy",
        "rbac.authorization.k8s.io",
        "resource.k8s.io",
        "scheduling.k8s.io",
        "storage.k8s.io",
    }
)
"""Groups of Kubernetes itself: what is asked of them and not in RESOURCES answers 501 instead of 404."""
