"""Turning a CustomResourceDefinition into the resources it defines."""

import re

from wattkeeper.embedded.builtin_schemas import METADATA, STRING
from wattkeeper.embedded.resources import Column, Resource, ScalePaths
from wattkeeper.embedded.values import Json, dig, now, put, time_text

KEY = ("apiextensions.k8s.io", "customresourcedefinitions")


def _path(text: str | None) -> tuple[str, ...] | None:
    return tuple(text.lstrip(".").split(".")) if text else None


def _scale(version: Json) -> ScalePaths | None:
    scale = dig(version, "subresources", "scale")
    if scale is None:
        return None
    return ScalePaths(
        spec_replicas=_path(scale.get("specReplicasPath")) or ("spec", "replicas"),
        status_replicas=_path(scale.get("statusReplicasPath")) or ("status", "replicas"),
        selector=_path(scale.get("labelSelectorPath")),
    )


def _schema(version: Json) -> Json:
    """Return the version's schema with what every object has beside it."""
    schema = dig(version, "schema", "openAPIV3Schema", default={})
    properties = {
        "apiVersion": STRING,
        "kind": STRING,
        **(schema.get("properties") or {}),
    }
    properties["metadata"] = METADATA
    return {**schema, "type": "object", "properties": properties}


def _columns(version: Json) -> tuple[Column, ...]:
    return tuple(
        Column(
            name=item["name"],
            type=item.get("type", "string"),
            json_path=item["jsonPath"],
            format=item.get("format", ""),
            description=item.get("description", ""),
            priority=item.get("priority", 0),
        )
        for item in version.get("additionalPrinterColumns") or []
    )


def version_order(version: str) -> tuple[int, int, int, str]:
    """Return the sort key of API versions: v2 before v1 before v1beta1 before v1alpha1 before anything else."""
    match = re.fullmatch(r"v(\d+)(?:(alpha|beta)(\d+))?", version)
    if match is None:
        return (3, 0, 0, version)
    stage = {None: 0, "beta": 1, "alpha": 2}[match[2]]
    return (stage, -int(match[1]), -int(match[3] or 0), version)


def resources(definition: Json) -> list[Resource]:
    """Return the served resources of a definition, the preferred version first."""
    spec = definition["spec"]
    names = spec["names"]
    result = [
        Resource(
            group=spec["group"],
            version=version["name"],
            plural=names["plural"],
            kind=names["kind"],
            singular=names.get("singular") or names["kind"].lower(),
            namespaced=spec["scope"] == "Namespaced",
            schema=_schema(version),
            short_names=tuple(names.get("shortNames") or ()),
            categories=tuple(names.get("categories") or ()),
            status=dig(version, "subresources", "status") is not None,
            scale=_scale(version),
            columns=_columns(version),
            custom=True,
            generation="all",
            unconditional_update=False,
            storage=(spec["group"], names["plural"]),
            selectable=tuple(item["jsonPath"].lstrip(".") for item in version.get("selectableFields") or []),
        )
        for version in spec["versions"]
        if version.get("served")
    ]
    return sorted(result, key=lambda resource: version_order(resource.version))


def established(definition: Json) -> Json:
    """Return the status of an accepted definition (names taken, served)."""
    conditions = dig(definition, "status", "conditions", default=[])
    times = {item["type"]: item["lastTransitionTime"] for item in conditions}
    stamp = time_text(now())
    status: Json = {
        "acceptedNames": definition["spec"]["names"],
        "storedVersions": [version["name"] for version in definition["spec"]["versions"] if version.get("storage")],
        "conditions": [
            {
                "type": kind,
                "status": "True",
                "reason": reason,
                "message": message,
                "lastTransitionTime": times.get(kind, stamp),
            }
            for kind, reason, message in (
                ("NamesAccepted", "NoConflicts", "no conflicts found"),
                ("Established", "InitialNamesAccepted", "the initial names have been accepted"),
            )
        ],
    }
    result = {**definition}
    put(result, ("status",), status)
    return result
