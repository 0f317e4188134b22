"""Who else writes the target: autoscalers, and field managers that changed a field after us.

Kubernetes records in metadata.managedFields which manager last set each field (Server-Side Apply, "Field management");
autoscalers write spec.replicas through the scale subresource. What is found here is respected, never fought.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

REPLICAS = ("spec", "replicas")
_BY_HAND = ("kubectl", "k9s", "lens", "freelens", "headlamp", "rancher", "dashboard", "oc")
"""Managers of people: a count set by hand before adoption is a starting point, not an autoscaler."""


@dataclass(frozen=True, kw_only=True)
class Conflict:
    """Somebody else owns what would be written."""

    reason: str
    message: str
    by: str
    """Kind/name of the scaler, or the field manager."""


@dataclass(frozen=True, kw_only=True)
class FieldOwner:
    """One manager that holds a field."""

    manager: str
    operation: str
    subresource: str
    time_seconds: float | None
    """Unix time of its last change; None where the object does not tell."""


def foreign_scaler(
    target: Mapping[str, Any], hpas: Sequence[Mapping[str, Any]], scaled_objects: Sequence[Mapping[str, Any]]
) -> Conflict | None:
    """The KEDA ScaledObject or HorizontalPodAutoscaler that scales `target`; None: nobody does.

    All arguments are API objects as dicts; those of other namespaces are ignored. An HPA that KEDA made is reported as
    the ScaledObject.
    """
    for scaled in scaled_objects:
        if _points_at(scaled, target):
            name = _name(scaled)
            paused = (scaled.get("metadata") or {}).get("annotations") or {}
            idle = any(key.startswith("autoscaling.keda.sh/paused") for key in paused)
            return Conflict(
                reason="TargetManagedByKEDA",
                message=f"ScaledObject {name} scales {_title(target)}{' (paused now)' if idle else ''}; set "
                "levers.replicas.control: External to let KEDA act on the recommended count, or delete it",
                by=f"ScaledObject/{name}",
            )
    for hpa in hpas:
        if _points_at(hpa, target):
            name = _name(hpa)
            owner = next(
                (one for one in _metadata(hpa).get("ownerReferences") or () if one.get("kind") == "ScaledObject"), None
            )
            if owner is not None:
                return Conflict(
                    reason="TargetManagedByKEDA",
                    message=f"ScaledObject {owner.get('name')} scales {_title(target)} through HPA {name}; set "
                    "levers.replicas.control: External, or delete the ScaledObject",
                    by=f"ScaledObject/{owner.get('name')}",
                )
            return Conflict(
                reason="TargetManagedByHPA",
                message=f"HorizontalPodAutoscaler {name} scales {_title(target)}; set levers.replicas.control: "
                "External to let it act on the recommended count, or delete it",
                by=f"HorizontalPodAutoscaler/{name}",
            )
    return None


def field_owners(managed_fields: Sequence[Mapping[str, Any]], path: Sequence[str]) -> tuple[FieldOwner, ...]:
    """Every manager that holds the field, oldest change first (status writes are left out).

    `path` is a sequence of field names; an element such as `{"name": "vllm"}` as JSON text picks a list entry by key.
    """
    owners = [
        FieldOwner(
            manager=str(entry.get("manager") or ""),
            operation=str(entry.get("operation") or ""),
            subresource=str(entry.get("subresource") or ""),
            time_seconds=_seconds(entry.get("time")),
        )
        for entry in managed_fields
        if entry.get("subresource") != "status" and _holds(entry.get("fieldsV1") or {}, path)
    ]
    return tuple(sorted(owners, key=lambda owner: owner.time_seconds or 0.0))


def field_owner(managed_fields: Sequence[Mapping[str, Any]], path: Sequence[str]) -> str | None:
    """The manager that changed the field last; None where nobody is recorded."""
    owners = field_owners(managed_fields, path)
    return owners[-1].manager if owners else None


def foreign_writer(
    managed_fields: Sequence[Mapping[str, Any]],
    path: Sequence[str],
    *,
    ours: str,
    last_write_seconds: float | None,
) -> Conflict | None:
    """The manager that took the field from us; None: it is ours, or still as its creator left it.

    `ours` is our field manager. `last_write_seconds` (Unix) is when we last wrote the field; None: never. Before our
    first write only a program that writes through the scale subresource counts, because that is how autoscalers write;
    whoever created the object, or set a count by hand, is no conflict. Afterwards any other manager that changed the
    field later than we did is one, people included.
    """
    owners = field_owners(managed_fields, path)
    own = [owner for owner in owners if owner.manager == ours]
    others = [owner for owner in owners if owner.manager != ours]
    if not others:
        return None
    last = others[-1]
    if own:
        taken = (last.time_seconds or 0.0) > (own[-1].time_seconds or 0.0)
    elif last_write_seconds is not None:
        taken = last.time_seconds is None or last.time_seconds >= int(last_write_seconds)
    else:
        taken = last.subresource == "scale" and not last.manager.lower().startswith(_BY_HAND)
    if not taken:
        return None
    where = ".".join(part for part in path if not part.startswith("{"))
    how = " through the scale subresource" if last.subresource == "scale" else ""
    return Conflict(
        reason="FieldOwnedByOther",
        message=f"{last.manager} set {where}{how}; it is left alone until that manager gives the field up",
        by=last.manager,
    )


def container_field(container: str, name: str, *, pod_path: Sequence[str] = ("spec", "template", "spec")) -> list[str]:
    """The path of one field of one container, for `field_owners`."""
    return [*pod_path, "containers", json.dumps({"name": container}), name]


def _holds(fields: Mapping[str, Any], path: Sequence[str]) -> bool:
    node: Any = fields
    for part in path:
        if not isinstance(node, Mapping):
            return False
        if part.startswith("{"):
            key = json.loads(part)
            node = next(
                (below for name, below in node.items() if name.startswith("k:") and json.loads(name[2:]) == key), None
            )
        else:
            node = node.get(f"f:{part}")
        if node is None:
            return False
    return True


def _seconds(time: Any) -> float | None:
    try:
        return datetime.fromisoformat(str(time)).timestamp()
    except ValueError:
        return None


def _metadata(body: Mapping[str, Any]) -> Mapping[str, Any]:
    return body.get("metadata") or {}


def _name(body: Mapping[str, Any]) -> str:
    return str(_metadata(body).get("name"))


def _title(target: Mapping[str, Any]) -> str:
    return f"{target.get('kind')} {_name(target)}"


def _points_at(scaler: Mapping[str, Any], target: Mapping[str, Any]) -> bool:
    metadata = _metadata(scaler)
    if metadata.get("deletionTimestamp") or metadata.get("namespace") != _metadata(target).get("namespace"):
        return False
    reference = (scaler.get("spec") or {}).get("scaleTargetRef") or {}
    group = str(reference.get("apiVersion") or "apps/v1").rpartition("/")[0]
    return (
        reference.get("name") == _name(target)
        and str(reference.get("kind") or "Deployment") == target.get("kind")
        and group == str(target.get("apiVersion") or "apps/v1").rpartition("/")[0]
    )
