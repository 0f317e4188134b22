"""Sparse schemas of the built-in kinds: defaults, merge keys and the checks that matter here.

They describe the parts that clients of this API rely on; fields not named are kept as they come. List keys follow the
published OpenAPI document of Kubernetes (`x-kubernetes-patch-merge-key`, `x-kubernetes-list-map-keys`).
"""

from typing import Any

from wattkeeper.embedded.values import Json

STRING: Json = {"type": "string"}
INTEGER: Json = {"type": "integer"}
BOOLEAN: Json = {"type": "boolean"}
INT_OR_STRING: Json = {"x-kubernetes-int-or-string": True}
STRING_MAP: Json = {"type": "object", "additionalProperties": {"type": "string"}}
ANY_MAP: Json = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
ATOMIC_MAP: Json = {**STRING_MAP, "x-kubernetes-map-type": "atomic"}


def obj(required: tuple[str, ...] = (), /, **properties: Json) -> Json:
    """Return the schema of a map with some described keys; other keys are kept."""
    result: Json = {"type": "object", "properties": properties, "x-kubernetes-preserve-unknown-fields": True}
    if required:
        result["required"] = list(required)
    return result


def keyed(item: Json, *keys: str, merge_key: str | None = None) -> Json:
    """Return the schema of a list of maps told apart by some of their keys."""
    return {
        "type": "array",
        "items": item,
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": list(keys),
        "x-kubernetes-patch-strategy": "merge",
        "x-kubernetes-patch-merge-key": merge_key or keys[0],
    }


def listed(item: Json) -> Json:
    """Return the schema of a list replaced as a whole."""
    return {"type": "array", "items": item, "x-kubernetes-list-type": "atomic"}


def unique(item: Json) -> Json:
    """Return the schema of a list that is a set."""
    return {"type": "array", "items": item, "x-kubernetes-list-type": "set", "x-kubernetes-patch-strategy": "merge"}


def default(part: Json, value: Any) -> Json:
    """Return the schema with a default."""
    return {**part, "default": value}


def least(low: int) -> Json:
    """Return the schema of an integer with a lower bound."""
    return {"type": "integer", "minimum": low}


OWNER_REFERENCE = {**obj(("apiVersion", "kind", "name", "uid")), "x-kubernetes-map-type": "atomic"}
METADATA = obj(
    labels=STRING_MAP,
    annotations=STRING_MAP,
    finalizers=unique(STRING),
    ownerReferences=keyed(obj(("apiVersion", "kind", "name", "uid")), "uid"),
)
CONDITIONS = keyed(obj(type=STRING, status=STRING), "type")
SELECTOR = {**obj(matchLabels=STRING_MAP, matchExpressions=listed(ANY_MAP)), "x-kubernetes-map-type": "atomic"}

PROBE = obj(
    timeoutSeconds=default(INTEGER, 1),
    periodSeconds=default(INTEGER, 10),
    successThreshold=default(INTEGER, 1),
    failureThreshold=default(INTEGER, 3),
    httpGet=obj(port=INT_OR_STRING, scheme=default(STRING, "HTTP"), path=default(STRING, "/")),
)
CONTAINER = obj(
    ("name",),
    name={**STRING, "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"},
    image=STRING,
    command=listed(STRING),
    args=listed(STRING),
    env=keyed(obj(("name",), name=STRING, value=STRING), "name"),
    envFrom=listed(ANY_MAP),
    ports=keyed(
        obj(containerPort={"type": "integer", "minimum": 1, "maximum": 65535}, protocol=default(STRING, "TCP")),
        "containerPort",
        "protocol",
    ),
    volumeMounts=keyed(obj(("name", "mountPath")), "mountPath"),
    volumeDevices=keyed(ANY_MAP, "devicePath"),
    resources=default(obj(limits=ANY_MAP, requests=ANY_MAP, claims=keyed(ANY_MAP, "name")), {}),
    livenessProbe=PROBE,
    readinessProbe=PROBE,
    startupProbe=PROBE,
    terminationMessagePath=default(STRING, "/dev/termination-log"),
    terminationMessagePolicy=default(STRING, "File"),
    imagePullPolicy={"type": "string", "enum": ["Always", "IfNotPresent", "Never"]},
)
POD_SPEC = obj(
    containers={**keyed(CONTAINER, "name"), "minItems": 1},
    initContainers=keyed(CONTAINER, "name"),
    volumes=keyed(obj(("name",)), "name"),
    imagePullSecrets=keyed(ANY_MAP, "name"),
    hostAliases=keyed(ANY_MAP, "ip"),
    tolerations=listed(ANY_MAP),
    nodeSelector=ATOMIC_MAP,
    topologySpreadConstraints=keyed(ANY_MAP, "topologyKey", "whenUnsatisfiable"),
    restartPolicy=default({"type": "string", "enum": ["Always", "OnFailure", "Never"]}, "Always"),
    terminationGracePeriodSeconds=default(INTEGER, 30),
    dnsPolicy=default(STRING, "ClusterFirst"),
    securityContext=default(ANY_MAP, {}),
    schedulerName=default(STRING, "default-scheduler"),
)
TEMPLATE = obj(metadata=METADATA, spec=POD_SPEC)
POD_STATUS = obj(conditions=CONDITIONS, podIPs=keyed(ANY_MAP, "ip"), hostIPs=listed(ANY_MAP))


def _kind(**parts: Json) -> Json:
    return obj(metadata=METADATA, **parts)


def _workload(**own: Json) -> Json:
    return _kind(
        spec=obj(
            ("selector", "template"),
            replicas=default(least(0), 1),
            selector=SELECTOR,
            template=TEMPLATE,
            minReadySeconds=least(0),
            revisionHistoryLimit=default(least(0), 10),
            **own,
        ),
        status=obj(conditions=CONDITIONS),
    )


POD = _kind(
    spec={
        **POD_SPEC,
        "required": ["containers"],
        "properties": {**POD_SPEC["properties"], "enableServiceLinks": default(BOOLEAN, True)},
    },
    status=POD_STATUS,
)
DEPLOYMENT = _workload(
    progressDeadlineSeconds=default(INTEGER, 600),
    strategy=default(
        obj(
            type=default({"type": "string", "enum": ["RollingUpdate", "Recreate"]}, "RollingUpdate"),
            rollingUpdate=obj(maxSurge=default(INT_OR_STRING, "25%"), maxUnavailable=default(INT_OR_STRING, "25%")),
        ),
        {},
    ),
    paused=BOOLEAN,
)
REPLICA_SET = _kind(
    spec=obj(("selector",), replicas=default(least(0), 1), selector=SELECTOR, template=TEMPLATE),
    status=obj(conditions=CONDITIONS),
)
STATEFUL_SET = _workload(
    serviceName=default(STRING, ""),
    podManagementPolicy=default({"type": "string", "enum": ["OrderedReady", "Parallel"]}, "OrderedReady"),
    updateStrategy=default(
        obj(type=default({"type": "string", "enum": ["RollingUpdate", "OnDelete"]}, "RollingUpdate")), {}
    ),
)
SERVICE = _kind(
    spec=obj(
        type=default(STRING, "ClusterIP"),
        sessionAffinity=default(STRING, "None"),
        internalTrafficPolicy=default(STRING, "Cluster"),
        selector=ATOMIC_MAP,
        ports=keyed(
            obj(
                ("port",),
                port={"type": "integer", "minimum": 1, "maximum": 65535},
                protocol=default(STRING, "TCP"),
                targetPort=INT_OR_STRING,
            ),
            "port",
            "protocol",
        ),
    ),
    status=default(obj(loadBalancer=default(ANY_MAP, {}), conditions=CONDITIONS), {}),
)
CONFIG_MAP = _kind(data=STRING_MAP, binaryData=STRING_MAP, immutable=BOOLEAN)
SECRET = _kind(data=STRING_MAP, stringData=STRING_MAP, type=default(STRING, "Opaque"), immutable=BOOLEAN)
SERVICE_ACCOUNT = _kind(secrets=keyed(ANY_MAP, "name"), imagePullSecrets=listed(ANY_MAP))
NAMESPACE = _kind(
    spec=default(obj(finalizers=listed(STRING)), {}), status=obj(phase=default(STRING, "Active"), conditions=CONDITIONS)
)
NODE = _kind(
    spec=obj(taints=listed(ANY_MAP), unschedulable=BOOLEAN, podCIDRs=unique(STRING)),
    status=obj(
        conditions=CONDITIONS,
        addresses=keyed(ANY_MAP, "type"),
        capacity=ANY_MAP,
        allocatable=ANY_MAP,
        nodeInfo=ANY_MAP,
    ),
)
EVENT = _kind(involvedObject=obj(), source=ANY_MAP, type=STRING)
LEASE = _kind(
    spec=obj(
        holderIdentity=STRING,
        leaseDurationSeconds=least(1),
        leaseTransitions=least(0),
        acquireTime=STRING,
        renewTime=STRING,
    )
)
_METRIC_TARGET = obj(type=STRING, averageUtilization=INTEGER)
AUTOSCALER = _kind(
    spec=obj(
        ("scaleTargetRef", "maxReplicas"),
        scaleTargetRef={**obj(("kind", "name")), "x-kubernetes-map-type": "atomic"},
        minReplicas=default(least(0), 1),
        maxReplicas=least(1),
        metrics=listed(obj(("type",), resource=obj(name=STRING, target=_METRIC_TARGET))),
    ),
    status=obj(conditions=CONDITIONS),
)
SCHEMA_PROPS: Json = {"type": "object", "x-kubernetes-preserve-unknown-fields": True, "x-kubernetes-map-type": "atomic"}
CRD = _kind(
    spec=obj(
        ("group", "names", "scope", "versions"),
        group=STRING,
        scope={"type": "string", "enum": ["Cluster", "Namespaced"]},
        names=obj(
            ("kind", "plural"),
            shortNames=listed(STRING),
            categories=listed(STRING),
            plural=STRING,
            kind=STRING,
        ),
        versions=listed(obj(("name", "served", "storage"), name=STRING, served=BOOLEAN, storage=BOOLEAN)),
        conversion=default(obj(strategy=default(STRING, "None")), {}),
    ),
    status=obj(conditions=CONDITIONS),
)
