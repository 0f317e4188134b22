"""The scale subresource: an object's replicas as an autoscaling/v1 `Scale`."""

from typing import Any

from wattkeeper.embedded import errors, selectors
from wattkeeper.embedded.options import WriteOptions
from wattkeeper.embedded.registry import APPLY, Registry, patched
from wattkeeper.embedded.resources import Resource, ScalePaths
from wattkeeper.embedded.values import Json, clone, dig, metadata, put


def _paths(resource: Resource) -> ScalePaths:
    if resource.scale is None:
        raise errors.no_resource()
    return resource.scale


def scale_of(resource: Resource, obj: Json) -> Json:
    """Return the `Scale` of an object."""
    paths = _paths(resource)
    meta = metadata(obj)
    kept = ("name", "namespace", "uid", "resourceVersion", "creationTimestamp")
    status: Json = {"replicas": dig(obj, *paths.status_replicas, default=0)}
    selector = dig(obj, *paths.selector) if paths.selector else None
    text = selectors.selector_text(selector) if isinstance(selector, dict) else selector
    if text:
        status["selector"] = text
    replicas = dig(obj, *paths.spec_replicas)
    if replicas is None and resource.custom:
        where = ".".join(paths.spec_replicas)
        raise errors.ApiError(
            500, "InternalError", f"Internal error occurred: the spec replicas field .{where} is unset"
        )
    return {
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": {key: meta[key] for key in kept if key in meta},
        "spec": {"replicas": replicas or 0},
        "status": status,
    }


def write(
    registry: Registry,
    resource: Resource,
    namespace: str,
    name: str,
    kind: str | None,
    body: Any,
    options: WriteOptions,
) -> Json:
    """Put (`kind` None) or patch the `Scale`; the object keeps all but its replicas; raises ApiError 404, 409, 422."""
    paths = _paths(resource)
    with registry.store.lock:
        obj = registry.stored(resource, namespace, name)
        if kind is None:
            wanted = body
        elif kind == APPLY:
            raise errors.not_served("server-side apply on a scale subresource")
        else:
            current = clone(scale_of(resource, obj))
            wanted = patched(current, kind, body, resource)
        replicas = dig(wanted, "spec", "replicas", default=0)
        if not isinstance(replicas, int) or isinstance(replicas, bool) or replicas < 0:
            message = f"Invalid value: {replicas}: must be greater than or equal to 0"
            raise errors.invalid("autoscaling", "Scale", name, [errors.Cause(field="spec.replicas", message=message)])
        new = clone(resource.shown(obj))
        new["metadata"]["resourceVersion"] = dig(wanted, "metadata", "resourceVersion", default="")
        put(new, paths.spec_replicas, replicas)
        registry.update_through(resource, obj, new, options, subresource="scale")
        return scale_of(resource, registry.stored(resource, namespace, name) if not options.dry_run else new)
