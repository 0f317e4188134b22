"""Server-side printing: the `Table` that `kubectl get` asks for, per built-in kind or by a CRD's printer columns."""

import datetime as dt
from collections.abc import Callable, Sequence
from typing import Any

from wattkeeper.embedded import jsonpath, selectors
from wattkeeper.embedded.resources import Column, Resource
from wattkeeper.embedded.values import Json, dig, metadata, now, parse_time

Cells = Callable[[Json], list[Any]]


def duration(seconds: float) -> str:
    """Return an age as kubectl writes it: two figures of the largest fitting units."""
    whole = int(seconds)
    if whole < -1:
        return "<invalid>"
    whole = max(whole, 0)
    minutes, hours, days = whole // 60, whole // 3600, whole // 86400
    pairs = (
        (whole < 120, f"{whole}s", 0, ""),
        (minutes < 10, f"{minutes}m", whole % 60, "s"),
        (hours < 3, f"{minutes}m", 0, ""),
        (hours < 8, f"{hours}h", minutes % 60, "m"),
        (hours < 48, f"{hours}h", 0, ""),
        (days < 8, f"{days}d", hours % 24, "h"),
        (days < 730, f"{days}d", 0, ""),
        (True, f"{days // 365}y", days % 365, "d"),
    )
    first, rest, unit = next((first, rest, unit) for fits, first, rest, unit in pairs if fits)
    return f"{first}{rest}{unit}" if rest else first


def age(stamp: str | None) -> str:
    """Return the age of a time stamp."""
    if not stamp:
        return "<unknown>"
    try:
        return duration((now() - parse_time(stamp)) / dt.timedelta(seconds=1))
    except ValueError:
        return "<unknown>"


def _age(obj: Json) -> str:
    return age(metadata(obj).get("creationTimestamp"))


def _pod(obj: Json) -> list[Any]:
    containers = dig(obj, "spec", "containers", default=[])
    statuses = dig(obj, "status", "containerStatuses", default=[])
    status = dig(obj, "status", "reason") or dig(obj, "status", "phase", default="Unknown")
    for item in statuses:
        reason = dig(item, "state", "waiting", "reason") or dig(item, "state", "terminated", "reason")
        status = reason or status
    if metadata(obj).get("deletionTimestamp"):
        status = "Terminating"
    ready = f"{sum(bool(item.get('ready')) for item in statuses)}/{len(containers)}"
    restarts = sum(int(item.get("restartCount", 0)) for item in statuses)
    where = dig(obj, "status", "podIP", default="<none>"), dig(obj, "spec", "nodeName", default="<none>")
    return [metadata(obj)["name"], ready, status, restarts, _age(obj), *where]


def _images(obj: Json) -> list[str]:
    containers = dig(obj, "spec", "template", "spec", "containers", default=[])
    return [
        ",".join(item.get("name", "") for item in containers),
        ",".join(item.get("image", "") for item in containers),
    ]


def _status(obj: Json, name: str) -> int:
    return int(dig(obj, "status", name, default=0))


def _deployment(obj: Json) -> list[Any]:
    ready = f"{_status(obj, 'readyReplicas')}/{dig(obj, 'spec', 'replicas', default=0)}"
    counts = [ready, _status(obj, "updatedReplicas"), _status(obj, "availableReplicas")]
    selector = selectors.selector_text(dig(obj, "spec", "selector"))
    return [metadata(obj)["name"], *counts, _age(obj), *_images(obj), selector]


def _replica_set(obj: Json) -> list[Any]:
    counts = [dig(obj, "spec", "replicas", default=0), _status(obj, "replicas"), _status(obj, "readyReplicas")]
    selector = selectors.selector_text(dig(obj, "spec", "selector"))
    return [metadata(obj)["name"], *counts, _age(obj), *_images(obj), selector]


def _stateful_set(obj: Json) -> list[Any]:
    ready = f"{_status(obj, 'readyReplicas')}/{dig(obj, 'spec', 'replicas', default=0)}"
    return [metadata(obj)["name"], ready, _age(obj), *_images(obj)]


def _service(obj: Json) -> list[Any]:
    spec = obj.get("spec") or {}
    ports = ",".join(f"{port.get('port')}/{port.get('protocol', 'TCP')}" for port in spec.get("ports") or [])
    selector = ",".join(f"{key}={value}" for key, value in sorted((spec.get("selector") or {}).items()))
    shown = [spec.get("type", ""), spec.get("clusterIP") or "<none>", "<none>", ports or "<none>"]
    return [metadata(obj)["name"], *shown, _age(obj), selector or "<none>"]


def _node(obj: Json) -> list[Any]:
    conditions = dig(obj, "status", "conditions", default=[])
    ready = next((item.get("status") for item in conditions if item.get("type") == "Ready"), None)
    status = {"True": "Ready", None: "Unknown"}.get(ready, "NotReady")
    if dig(obj, "spec", "unschedulable"):
        status += ",SchedulingDisabled"
    prefix = "node-role.kubernetes.io/"
    roles = sorted(key.removeprefix(prefix) for key in metadata(obj).get("labels") or {} if key.startswith(prefix))
    version = dig(obj, "status", "nodeInfo", "kubeletVersion", default="")
    return [metadata(obj)["name"], status, ",".join(roles) or "<none>", _age(obj), version]


def _event(obj: Json) -> list[Any]:
    seen = obj.get("lastTimestamp") or obj.get("eventTime") or metadata(obj).get("creationTimestamp")
    about = obj.get("involvedObject") or {}
    target = f"{str(about.get('kind', '')).lower()}/{about.get('name', '')}"
    return [age(seen), obj.get("type", ""), obj.get("reason", ""), target, str(obj.get("message", "")).strip()]


def _autoscaler(obj: Json) -> list[Any]:
    target = dig(obj, "spec", "scaleTargetRef", default={})
    low, high = dig(obj, "spec", "minReplicas", default="<unset>"), dig(obj, "spec", "maxReplicas", default="")
    reference = f"{target.get('kind', '')}/{target.get('name', '')}"
    return [
        metadata(obj)["name"],
        reference,
        "<unknown>",
        str(low),
        str(high),
        _status(obj, "currentReplicas"),
        _age(obj),
    ]


def _columns(text: str) -> list[Json]:
    """Return column definitions from names; a name in brackets shows with `-o wide` only."""
    result = []
    for name in text.split("|"):
        wide = name.startswith("(")
        kind = "integer" if name.strip("()") in ("Restarts", "Up-to-date", "Available", "Data") else "string"
        shown = name.strip("()")
        form = "name" if shown == "Name" else ""
        result.append({"name": shown, "type": kind, "format": form, "description": shown, "priority": int(wide)})
    return result


PRINTERS: dict[tuple[str, str], tuple[list[Json], Cells]] = {
    ("", "pods"): (_columns("Name|Ready|Status|Restarts|Age|(IP)|(Node)"), _pod),
    ("", "namespaces"): (
        _columns("Name|Status|Age"),
        lambda obj: [metadata(obj)["name"], dig(obj, "status", "phase", default=""), _age(obj)],
    ),
    ("", "nodes"): (_columns("Name|Status|Roles|Age|Version"), _node),
    ("", "services"): (_columns("Name|Type|Cluster-IP|External-IP|Port(s)|Age|(Selector)"), _service),
    ("", "configmaps"): (
        _columns("Name|Data|Age"),
        lambda obj: [
            metadata(obj)["name"],
            len(obj.get("data") or {}) + len(obj.get("binaryData") or {}),
            _age(obj),
        ],
    ),
    ("", "secrets"): (
        _columns("Name|Type|Data|Age"),
        lambda obj: [metadata(obj)["name"], obj.get("type", ""), len(obj.get("data") or {}), _age(obj)],
    ),
    ("", "events"): (_columns("Last Seen|Type|Reason|Object|Message"), _event),
    ("apps", "deployments"): (
        _columns("Name|Ready|Up-to-date|Available|Age|(Containers)|(Images)|(Selector)"),
        _deployment,
    ),
    ("apps", "replicasets"): (
        _columns("Name|Desired|Current|Ready|Age|(Containers)|(Images)|(Selector)"),
        _replica_set,
    ),
    ("apps", "statefulsets"): (_columns("Name|Ready|Age|(Containers)|(Images)"), _stateful_set),
    ("autoscaling", "horizontalpodautoscalers"): (
        _columns("Name|Reference|Targets|MinPods|MaxPods|Replicas|Age"),
        _autoscaler,
    ),
    ("coordination.k8s.io", "leases"): (
        _columns("Name|Holder|Age"),
        lambda obj: [metadata(obj)["name"], dig(obj, "spec", "holderIdentity", default=""), _age(obj)],
    ),
    ("apiextensions.k8s.io", "customresourcedefinitions"): (
        _columns("Name|Created At"),
        lambda obj: [metadata(obj)["name"], metadata(obj).get("creationTimestamp", "")],
    ),
}
_PLAIN: tuple[list[Json], Cells] = (_columns("Name|Age"), lambda obj: [metadata(obj)["name"], _age(obj)])


def _custom_cell(obj: Json, column: Column) -> Any:
    found = jsonpath.find(obj, column.json_path)
    if not found:
        return None if column.type != "date" else "<unknown>"
    if column.type == "date":
        return age(str(found[0]))
    if len(found) > 1:
        return " ".join(jsonpath.text(item) for item in found)
    value = found[0]
    if column.type in ("integer", "number") and isinstance(value, int | float):
        return value
    if column.type == "boolean" and isinstance(value, bool):
        return value
    return jsonpath.text(value)


def _custom(resource: Resource) -> tuple[list[Json], Cells]:
    columns = resource.columns or (
        Column(name="Age", type="date", json_path=".metadata.creationTimestamp", description="Age"),
    )
    definitions = _columns("Name") + [
        {
            "name": column.name,
            "type": column.type,
            "format": column.format,
            "description": column.description,
            "priority": column.priority,
        }
        for column in columns
    ]
    return definitions, lambda obj: [metadata(obj)["name"], *(_custom_cell(obj, column) for column in columns)]


def table(resource: Resource, objects: Sequence[Json], *, version: str, include: str, headless: bool = False) -> Json:
    """Return the `Table` of some objects (in stored form).

    `version` is the list's or the object's resource version; `include` is the query's includeObject (`Object`,
    `Metadata` or `None`); `headless` leaves the column definitions out (later events of a watch).
    """
    definitions, cells = _custom(resource) if resource.custom else PRINTERS.get(resource.storage, _PLAIN)
    rows = []
    for obj in objects:
        row: Json = {"cells": cells(obj)}
        if include != "None":
            row["object"] = resource.shown(obj) if include == "Object" else partial(obj)
        rows.append(row)
    return {
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": {"resourceVersion": version},
        "columnDefinitions": [] if headless else definitions,
        "rows": rows,
    }


def partial(obj: Json) -> Json:
    """Return the object's metadata alone, as `PartialObjectMetadata`."""
    return {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": obj.get("metadata")}
