"""What single built-in kinds need beyond their schema: conditional defaults, cross-field checks, immutable fields."""

import base64
import itertools
import re
from collections.abc import Callable, Iterator
from typing import Any

from wattkeeper.embedded import errors, selectors
from wattkeeper.embedded.errors import Cause
from wattkeeper.embedded.resources import StorageKey
from wattkeeper.embedded.values import Json, dig

Prepare = Callable[[Json, Json | None], None]
Check = Callable[[Json, Json | None], Iterator[Cause]]

_MICRO_TIME = re.compile(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}(Z|[+-]\d\d:\d\d)$")
_addresses = itertools.count(1)


def _pod_spec(spec: Json) -> None:
    for container in [*(spec.get("containers") or []), *(spec.get("initContainers") or [])]:
        if not isinstance(container, dict):
            continue
        image = str(container.get("image", ""))
        tag = image.rpartition("/")[2].partition(":")[2]
        pinned = (tag and tag != "latest") or "@" in image
        container.setdefault("imagePullPolicy", "IfNotPresent" if pinned else "Always")
        resources = container.get("resources") or {}
        for amounts in (resources.get("limits"), resources.get("requests")):
            if isinstance(amounts, dict):
                amounts.update({name: str(amount) for name, amount in amounts.items()})
        if isinstance(resources.get("limits"), dict):
            requests = resources.setdefault("requests", {})
            for name, amount in resources["limits"].items():
                requests.setdefault(name, amount)


def _pod(obj: Json, old: Json | None) -> None:
    spec = obj.get("spec") or {}
    _pod_spec(spec)
    if old is None:
        spec.setdefault("serviceAccountName", "default")
        obj["status"] = {"phase": "Pending", "qosClass": _qos(spec)}


def _qos(spec: Json) -> str:
    needs = [container.get("resources") or {} for container in spec.get("containers") or []]
    if not any(need.get("limits") or need.get("requests") for need in needs):
        return "BestEffort"
    full = all({"cpu", "memory"} <= set(n.get("limits") or {}) and n.get("limits") == n.get("requests") for n in needs)
    return "Guaranteed" if full else "Burstable"


def _workload(obj: Json, _old: Json | None) -> None:
    _pod_spec(dig(obj, "spec", "template", "spec", default={}))
    strategy = dig(obj, "spec", "strategy")
    if strategy is not None and strategy.get("type") == "RollingUpdate":
        rolling = strategy.setdefault("rollingUpdate", {})
        rolling.setdefault("maxUnavailable", "25%")
        rolling.setdefault("maxSurge", "25%")
    if obj.get("kind") == "StatefulSet" and dig(obj, "spec", "updateStrategy", "type") == "RollingUpdate":
        obj["spec"]["updateStrategy"].setdefault("rollingUpdate", {"partition": 0})


def _service(obj: Json, old: Json | None) -> None:
    spec = obj.setdefault("spec", {})
    known = dig(old, "spec", "clusterIP")
    if spec.get("type") != "ExternalName" and not spec.get("clusterIP"):
        serial = next(_addresses) if known is None else 0
        spec["clusterIP"] = known or f"10.96.{serial // 250 % 256}.{serial % 250 + 1}"
    if spec.get("clusterIP"):
        spec.setdefault("clusterIPs", [spec["clusterIP"]])
    for port in spec.get("ports") or []:
        port.setdefault("targetPort", port.get("port"))


def _secret(obj: Json, _old: Json | None) -> None:
    plain = obj.pop("stringData", None) or {}
    if plain:
        data = obj.setdefault("data", {})
        data.update({key: base64.b64encode(str(value).encode()).decode() for key, value in plain.items()})


def _namespace(obj: Json, old: Json | None) -> None:
    obj["metadata"].setdefault("labels", {})["kubernetes.io/metadata.name"] = obj["metadata"].get("name", "")
    if old is None:
        obj["spec"] = {"finalizers": ["kubernetes"]}
        obj["status"] = {"phase": "Active"}


def _definition(obj: Json, _old: Json | None) -> None:
    names = dig(obj, "spec", "names", default={})
    if "kind" in names:
        names.setdefault("singular", str(names["kind"]).lower())
        names.setdefault("listKind", f"{names['kind']}List")


def _lease(obj: Json, _old: Json | None) -> None:
    for key in ("acquireTime", "renewTime"):
        stamp = dig(obj, "spec", key)
        if stamp is not None and not _MICRO_TIME.match(str(stamp)):
            raise errors.bad_request(
                f'Lease in version "v1" cannot be handled as a Lease: parsing time "{stamp}" as '
                '"2006-01-02T15:04:05.000000Z07:00": microseconds are missing'
            )


PREPARE: dict[StorageKey, Prepare] = {
    ("", "pods"): _pod,
    ("", "services"): _service,
    ("", "secrets"): _secret,
    ("", "namespaces"): _namespace,
    ("coordination.k8s.io", "leases"): _lease,
    ("apps", "deployments"): _workload,
    ("apps", "replicasets"): _workload,
    ("apps", "statefulsets"): _workload,
    ("apiextensions.k8s.io", "customresourcedefinitions"): _definition,
}


def _immutable(path: str, value: Any) -> Cause:
    return Cause(field=path, message=f"Invalid value: {value}: field is immutable")


def _check_template(template: Json, where: str) -> Iterator[Cause]:
    containers = dig(template, "spec", "containers", default=[])
    if not containers:
        yield Cause(field=f"{where}.spec.containers", message="Required value", reason="FieldValueRequired")
    for index, container in enumerate(containers):
        if isinstance(container, dict) and not container.get("image"):
            field = f"{where}.spec.containers[{index}].image"
            yield Cause(field=field, message="Required value", reason="FieldValueRequired")


def _check_workload(obj: Json, old: Json | None) -> Iterator[Cause]:
    selector, template = dig(obj, "spec", "selector", default={}), dig(obj, "spec", "template", default={})
    if not selector.get("matchLabels") and not selector.get("matchExpressions"):
        message = "Invalid value: {}: empty selector is invalid for " + str(obj.get("kind", "")).lower()
        yield Cause(field="spec.selector", message=message)
    elif not selectors.matches(selector, dig(template, "metadata", "labels", default={})):
        labels = dig(template, "metadata", "labels", default={})
        message = f"Invalid value: {labels}: `selector` does not match template `labels`"
        yield Cause(field="spec.template.metadata.labels", message=message)
    yield from _check_template(template, "spec.template")
    if old is not None and dig(old, "spec", "selector") != selector:
        yield _immutable("spec.selector", selector)
    if old is not None and obj.get("kind") == "StatefulSet":
        free = ("replicas", "template", "updateStrategy", "minReadySeconds", "ordinals", "revisionHistoryLimit")
        before = {key: value for key, value in old["spec"].items() if key not in free}
        after = {key: value for key, value in obj["spec"].items() if key not in free}
        if before != after:
            message = (
                "Forbidden: updates to statefulset spec for fields other than 'replicas', 'template' are forbidden"
            )
            yield Cause(field="spec", message=message, reason="FieldValueForbidden")


def _frozen_pod_spec(spec: Json) -> Json:
    free = ("tolerations", "activeDeadlineSeconds", "terminationGracePeriodSeconds", "nodeName")
    result = {key: value for key, value in spec.items() if key not in free}
    for name in ("containers", "initContainers"):
        if name in result:
            result[name] = [{key: v for key, v in item.items() if key != "image"} for item in result[name]]
    return result


def _check_pod(obj: Json, old: Json | None) -> Iterator[Cause]:
    if old is None:
        yield from _check_template(obj, "")
    elif _frozen_pod_spec(obj["spec"]) != _frozen_pod_spec(old["spec"]):
        message = "Forbidden: pod updates may not change fields other than images, tolerations, activeDeadlineSeconds"
        yield Cause(field="spec", message=message, reason="FieldValueForbidden")


def _check_autoscaler(obj: Json, _old: Json | None) -> Iterator[Cause]:
    low, high = dig(obj, "spec", "minReplicas", default=1), dig(obj, "spec", "maxReplicas", default=1)
    if high < low:
        message = f"Invalid value: {high}: must be greater than or equal to `minReplicas`"
        yield Cause(field="spec.maxReplicas", message=message)


def _check_immutable_data(obj: Json, old: Json | None) -> Iterator[Cause]:
    if old is not None and old.get("immutable") and any(obj.get(k) != old.get(k) for k in ("data", "binaryData")):
        message = "Forbidden: field is immutable when `immutable` is set"
        yield Cause(field="data", message=message, reason="FieldValueForbidden")


def _check_definition(obj: Json, _old: Json | None) -> Iterator[Cause]:
    spec = obj["spec"]
    expected = f"{spec['names'].get('plural')}.{spec['group']}"
    if obj["metadata"].get("name") != expected:
        message = f'Invalid value: "{obj["metadata"].get("name")}": must be spec.names.plural+"."+spec.group'
        yield Cause(field="metadata.name", message=message)
    if sum(bool(version.get("storage")) for version in spec["versions"]) != 1:
        message = "Invalid value: must have exactly one version marked as storage version"
        yield Cause(field="spec.versions", message=message)
    for index, version in enumerate(spec["versions"]):
        if not isinstance(dig(version, "schema", "openAPIV3Schema"), dict):
            field = f"spec.versions[{index}].schema.openAPIV3Schema"
            yield Cause(field=field, message="Required value: schemas are required", reason="FieldValueRequired")
    if dig(spec, "conversion", "strategy", default="None") != "None":
        message = 'Unsupported value: the embedded API only converts with strategy "None"'
        yield Cause(field="spec.conversion.strategy", message=message, reason="FieldValueNotSupported")


CHECK: dict[StorageKey, Check] = {
    ("", "pods"): _check_pod,
    ("", "configmaps"): _check_immutable_data,
    ("", "secrets"): _check_immutable_data,
    ("apps", "deployments"): _check_workload,
    ("apps", "replicasets"): _check_workload,
    ("apps", "statefulsets"): _check_workload,
    ("autoscaling", "horizontalpodautoscalers"): _check_autoscaler,
    ("apiextensions.k8s.io", "customresourcedefinitions"): _check_definition,
}
