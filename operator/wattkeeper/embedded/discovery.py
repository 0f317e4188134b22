"""Discovery documents (`/api`, `/apis`, group and version lists, `/version`) and a sparse OpenAPI v3."""

from collections.abc import Iterable, Sequence

from wattkeeper.embedded.crds import version_order
from wattkeeper.embedded.resources import VERBS, Resource
from wattkeeper.embedded.values import Json

OPENAPI_V2 = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"
VERSION: Json = {
    "major": "1",
    "minor": "36",
    "gitVersion": "v1.36.0+wattkeeper-embedded",
    "gitCommit": "",
    "gitTreeState": "clean",
    "buildDate": "1970-01-01T00:00:00Z",
    "goVersion": "none",
    "compiler": "none",
    "platform": "python",
}


def _entry(name: str, resource: Resource, kind: str, verbs: Iterable[str], group: str = "", version: str = "") -> Json:
    entry: Json = {
        "name": name,
        "singularName": "" if "/" in name else resource.singular,
        "namespaced": resource.namespaced,
        "kind": kind,
        "verbs": list(verbs),
    }
    if version:
        entry["version"] = version
        if group:
            entry["group"] = group
    return entry


def _entries(resource: Resource) -> Iterable[Json]:
    main = _entry(resource.plural, resource, resource.kind, VERBS)
    if resource.short_names:
        main["shortNames"] = list(resource.short_names)
    if resource.categories:
        main["categories"] = list(resource.categories)
    yield main
    if resource.status:
        yield _entry(f"{resource.plural}/status", resource, resource.kind, ("get", "patch", "update"))
    if resource.scale is not None:
        verbs = ("get", "patch", "update")
        yield _entry(f"{resource.plural}/scale", resource, "Scale", verbs, "autoscaling", "v1")
    for name, group, version, kind in resource.subresources:
        yield _entry(f"{resource.plural}/{name}", resource, kind, ("create",), group, version)


def resource_list(resources: Sequence[Resource], group_version: str) -> Json:
    """Return the `APIResourceList` of one group and version."""
    return {
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": group_version,
        "resources": [entry for resource in resources for entry in _entries(resource)],
    }


def group(name: str, versions: Iterable[str]) -> Json:
    """Return one `APIGroup`."""
    ordered = [
        {"groupVersion": f"{name}/{version}", "version": version}
        for version in sorted(set(versions), key=version_order)
    ]
    return {
        "kind": "APIGroup",
        "apiVersion": "v1",
        "name": name,
        "versions": ordered,
        "preferredVersion": ordered[0],
    }


def groups(resources: Sequence[Resource]) -> list[Json]:
    """Return all named groups."""
    names = dict.fromkeys(resource.group for resource in resources if resource.group)
    return [group(name, [item.version for item in resources if item.group == name]) for name in names]


def openapi_index(resources: Sequence[Resource]) -> Json:
    """Return the list of OpenAPI v3 documents, one per group and version."""
    names = dict.fromkeys(_root(resource) for resource in resources)
    return {"paths": {name: {"serverRelativeURL": f"/openapi/v3/{name}"} for name in names}}


def _root(resource: Resource) -> str:
    return f"apis/{resource.api_version}" if resource.group else f"api/{resource.version}"


def _component(resource: Resource) -> str:
    parts = [*reversed(resource.group.split(".")), resource.version, resource.kind]
    return ".".join(part for part in parts if part)


def openapi(resources: Sequence[Resource], root: str) -> Json | None:
    """Return the OpenAPI v3 document of one group and version, or None where it is not served.

    It holds what kubectl reads: the schemas for `explain`, and the fieldValidation parameter of patches, which tells
    kubectl that the server validates.
    """
    found = [resource for resource in resources if _root(resource) == root]
    if not found:
        return None
    parameters = [
        {"name": name, "in": "query", "schema": {"type": "string"}}
        for name in ("dryRun", "fieldManager", "fieldValidation", "force")
    ]
    paths: Json = {}
    components: Json = {}
    for resource in found:
        gvk = {"group": resource.group, "version": resource.version, "kind": resource.kind}
        scope = "/namespaces/{namespace}" if resource.namespaced else ""
        operation = {
            "x-kubernetes-action": "patch",
            "x-kubernetes-group-version-kind": gvk,
            "parameters": parameters,
            "responses": {"200": {"description": "OK"}},
        }
        read = {
            "x-kubernetes-action": "get",
            "x-kubernetes-group-version-kind": gvk,
            "responses": {
                "200": {
                    "description": "OK",
                    "content": {
                        "application/json": {"schema": {"$ref": f"#/components/schemas/{_component(resource)}"}}
                    },
                }
            },
        }
        paths[f"/{root}{scope}/{resource.plural}/{{name}}"] = {"get": read, "patch": operation}
        schema = resource.schema
        typed = {"apiVersion": {"type": "string"}, "kind": {"type": "string"}}
        components[_component(resource)] = {
            **schema,
            "properties": {**typed, **(schema.get("properties") or {})},
            "x-kubernetes-group-version-kind": [gvk],
        }
    return {
        "openapi": "3.0.0",
        "info": {"title": "Wattkeeper embedded API", "version": VERSION["gitVersion"]},
        "paths": paths,
        "components": {"schemas": components},
    }
