"""The HTTP face: paths and verbs of the Kubernetes API onto the registry."""

import json
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from wattkeeper.embedded import discovery, errors, negotiation, scaling, selectors, tables, watching
from wattkeeper.embedded.errors import ApiError
from wattkeeper.embedded.options import DeleteOptions
from wattkeeper.embedded.ownership import required_manager
from wattkeeper.embedded.registry import APPLY, PATCH_TYPES, Registry
from wattkeeper.embedded.resources import Resource
from wattkeeper.embedded.selectors import Predicate
from wattkeeper.embedded.values import Json, clone, dig, metadata, put

_LOG = logging.getLogger(__name__)
_DEFAULT_WATCH_SECONDS = 1800.0


@dataclass(frozen=True, kw_only=True)
class Target:
    """What a path names: a resource, and maybe a namespace, an object, a subresource."""

    resource: Resource
    namespace: str | None
    name: str
    subresource: str


def _answer(obj: Any, *, code: int = 200, warnings: list[str] | None = None) -> web.Response:
    response = web.Response(
        body=json.dumps(obj, separators=(",", ":")).encode(), status=code, content_type="application/json"
    )
    for warning in warnings or []:
        escaped = warning.replace("\\", "\\\\").replace('"', '\\"')
        response.headers.add("Warning", f'299 - "{escaped}"')
    return response


class Face:
    """Request handlers over one registry."""

    def __init__(self, registry: Registry, wakers: watching.Wakers) -> None:
        self._registry = registry
        self._wakers = wakers

    def application(self) -> web.Application:
        """Return the aiohttp application."""
        app = web.Application(client_max_size=8 * 2**20)
        app.router.add_route("*", "/{path:.*}", self._guard(self._dispatch))
        return app

    def _guard(
        self, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def guarded(request: web.Request) -> web.StreamResponse:
            try:
                return await handler(request)
            except ApiError as error:
                return _answer(error.status(), code=error.code)
            except (ConnectionError, web.HTTPException):
                raise
            except Exception as error:
                _LOG.exception("%s %s failed", request.method, request.path_qs)
                status = ApiError(500, "InternalError", f"Internal error occurred: {type(error).__name__}: {error}")
                return _answer(status.status(), code=500)

        return guarded

    async def _dispatch(self, request: web.Request) -> web.StreamResponse:
        parts = [part for part in request.path.split("/") if part]
        if parts and parts[0] in ("api", "apis"):
            depth = 2 if parts[0] == "api" else 3
            if len(parts) > depth:
                group = "" if parts[0] == "api" else parts[1]
                return await self._serve(request, self._target(group, parts[depth - 1], parts[depth:]))
        if request.method != "GET":
            raise errors.method_not_allowed()
        return self._document(parts)

    # Documents

    def _document(self, parts: list[str]) -> web.Response:
        match parts:
            case ["healthz" | "livez" | "readyz", *_]:
                return web.Response(text="ok")
            case ["version"]:
                return _answer(discovery.VERSION)
            case ["openapi", "v2"]:
                # An empty document in protobuf is no bytes at all; kubectl then leaves all validation to the server.
                return web.Response(body=b"", headers={"Content-Type": discovery.OPENAPI_V2})
            case ["openapi", "v3"]:
                return _answer(discovery.openapi_index(self._registry.resources()))
            case ["openapi", "v3", *rest]:
                found = discovery.openapi(self._registry.resources(), "/".join(rest))
                if found is None:
                    raise errors.no_resource()
                return _answer(found)
            case ["api" | "apis", *_]:
                return self._discovery(parts)
            case []:
                return _answer({"paths": ["/api", "/apis", "/healthz", "/openapi/v3", "/version"]})
        raise errors.no_resource()

    def _discovery(self, parts: list[str]) -> web.Response:
        resources = self._registry.resources()
        match parts:
            case ["api"]:
                return _answer({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []})
            case ["apis"]:
                return _answer({"kind": "APIGroupList", "apiVersion": "v1", "groups": discovery.groups(resources)})
            case ["apis", name]:
                versions = [resource.version for resource in resources if resource.group == name]
                if not versions:
                    raise errors.no_resource()
                return _answer(discovery.group(name, versions))
        api_version = "/".join(parts[1:])
        found = [resource for resource in resources if resource.api_version == api_version]
        if not found:
            raise errors.no_resource()
        return _answer(discovery.resource_list(found, api_version))

    # Resources

    def _target(self, group: str, version: str, parts: list[str]) -> Target:
        namespace: str | None = None
        is_namespace_itself = group == "" and (len(parts) <= 2 or parts[2] in ("status", "finalize"))
        if parts[0] == "namespaces" and not is_namespace_itself and len(parts) > 2:
            namespace, parts = parts[1], parts[2:]
        resource = self._registry.resource(group, version, parts[0])
        if (namespace is not None and not resource.namespaced) or len(parts) > 3:
            raise errors.no_resource()
        name = parts[1] if len(parts) > 1 else ""
        if name and resource.namespaced and namespace is None:
            raise errors.no_resource()
        return Target(resource=resource, namespace=namespace, name=name, subresource=parts[2] if len(parts) > 2 else "")

    async def _serve(self, request: web.Request, target: Target) -> web.StreamResponse:
        if target.subresource == "scale":
            return await self._scale(request, target)
        if target.subresource and target.subresource != "status":
            return await self._action(request, target)
        if target.subresource == "status" and not target.resource.status:
            raise errors.no_resource()
        if target.name:
            return await self._object(request, target)
        return await self._collection(request, target)

    def _accept(self, resource: Resource, query: Any) -> Predicate | None:
        tests: list[Predicate] = []
        if query.get("labelSelector"):
            tests.append(selectors.labels(query["labelSelector"]))
        if query.get("fieldSelector"):
            custom = {name: tuple(name.split(".")) for name in resource.selectable}
            tests.append(selectors.fields(query["fieldSelector"], custom=custom))
        if not tests:
            return None
        return lambda obj: all(test(obj) for test in tests)

    def _shaped(self, resource: Resource, obj: Json, form: negotiation.Form) -> Json:
        if form.kind == "Table":
            version = metadata(obj).get("resourceVersion", "")
            return tables.table(resource, [obj], version=version, include=form.include)
        return tables.partial(obj) if form.kind else obj

    async def _collection(self, request: web.Request, target: Target) -> web.StreamResponse:
        resource, query = target.resource, request.query
        if request.method == "GET":
            if query.get("watch", "").lower() in ("true", "1"):
                return await self._watch(request, target)
            return self._list(target, query, negotiation.form(request.headers.get("Accept", ""), query))
        given = negotiation.body(await request.read(), request.content_type)
        if request.method == "POST":
            if resource.namespaced and target.namespace is None:
                raise errors.method_not_allowed()
            if not isinstance(given, dict):
                raise errors.bad_request("the body must be an object")
            options = negotiation.write_options(query, request.headers.get("User-Agent", ""))
            obj = self._registry.create(resource, target.namespace or "", given, options)
            form = negotiation.form(request.headers.get("Accept", ""), query)
            return _answer(self._shaped(resource, obj, form), code=201, warnings=options.warnings)
        if request.method == "DELETE":
            options_ = negotiation.delete_options(query, given)
            gone = self._registry.delete_collection(resource, target.namespace, self._accept(resource, query), options_)
            return _answer(
                {"kind": resource.list_kind, "apiVersion": resource.api_version, "metadata": {}, "items": gone}
            )
        raise errors.method_not_allowed()

    def _list(self, target: Target, query: Any, form: negotiation.Form) -> web.Response:
        resource = target.resource
        if query.get("continue"):
            raise ApiError(410, "Expired", "The provided continue parameter is too old: lists here come in one piece")
        found, version = self._registry.find(resource, target.namespace, self._accept(resource, query))
        meta = {"resourceVersion": str(version)}
        if form.kind == "Table":
            return _answer(tables.table(resource, found, version=str(version), include=form.include))
        if form.kind:
            items = [tables.partial(obj) for obj in found]
            kind = "PartialObjectMetadataList"
            return _answer({"kind": kind, "apiVersion": "meta.k8s.io/v1", "metadata": meta, "items": items})
        return _answer(
            {"kind": resource.list_kind, "apiVersion": resource.api_version, "metadata": meta, "items": found}
        )

    async def _watch(self, request: web.Request, target: Target) -> web.StreamResponse:
        query = request.query
        since = watching.parse_version(query.get("resourceVersion"))
        initial = query.get("sendInitialEvents", "").lower() == "true"
        watch = watching.Watch(
            resource=target.resource,
            namespace=target.namespace,
            accept=self._accept(target.resource, query),
            since=None if initial else since,
            form=negotiation.form(request.headers.get("Accept", ""), query),
            timeout_seconds=float(query.get("timeoutSeconds") or _DEFAULT_WATCH_SECONDS),
            bookmarks=query.get("allowWatchBookmarks", "").lower() == "true",
            initial_end=initial,
        )
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        response.enable_chunked_encoding()
        await response.prepare(request)
        try:
            async for chunk in watching.stream(self._registry, self._wakers, watch):
                if chunk:
                    await response.write(chunk)
            await response.write_eof()
        except ConnectionError:
            _LOG.debug("a watcher of %s went away", target.resource.plural)
        return response

    async def _object(self, request: web.Request, target: Target) -> web.StreamResponse:
        resource, namespace, name = target.resource, target.namespace or "", target.name
        form = negotiation.form(request.headers.get("Accept", ""), request.query)
        if request.method == "GET":
            return _answer(self._shaped(resource, self._registry.get(resource, namespace, name), form))
        given = negotiation.body(await request.read(), request.content_type)
        if request.method == "DELETE" and not target.subresource:
            return self._delete(target, negotiation.delete_options(request.query, given))
        options = negotiation.write_options(request.query, request.headers.get("User-Agent", ""))
        if request.method == "PUT":
            if not isinstance(given, dict):
                raise errors.bad_request("the body must be an object")
            obj = self._registry.update(resource, namespace, name, given, options, subresource=target.subresource)
            return _answer(self._shaped(resource, obj, form), warnings=options.warnings)
        if request.method != "PATCH":
            raise errors.method_not_allowed()
        kind = self._patch_type(request)
        existed = self._registry.store.get(resource.storage, namespace, name) is not None
        obj = self._registry.patch(resource, namespace, name, kind, given, options, subresource=target.subresource)
        return _answer(self._shaped(resource, obj, form), code=200 if existed else 201, warnings=options.warnings)

    def _patch_type(self, request: web.Request) -> str:
        if request.content_type not in PATCH_TYPES:
            raise errors.not_acceptable_media(
                "the body of the request was in an unknown format - accepted media types include: "
                + ", ".join(PATCH_TYPES)
            )
        if request.content_type == APPLY:
            required_manager(request.query.get("fieldManager"))
        return request.content_type

    def _delete(self, target: Target, options: DeleteOptions) -> web.Response:
        resource = target.resource
        obj, gone = self._registry.delete(resource, target.namespace or "", target.name, options)
        if not gone or resource.storage in (("", "pods"), ("", "services")):
            return _answer(obj)
        details = {"name": target.name, "group": resource.group, "kind": resource.plural, "uid": metadata(obj)["uid"]}
        return _answer({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details})

    async def _scale(self, request: web.Request, target: Target) -> web.StreamResponse:
        resource, namespace, name = target.resource, target.namespace or "", target.name
        if request.method == "GET":
            return _answer(scaling.scale_of(resource, self._registry.stored(resource, namespace, name)))
        if request.method not in ("PUT", "PATCH"):
            raise errors.method_not_allowed()
        given = negotiation.body(await request.read(), request.content_type)
        options = negotiation.write_options(request.query, request.headers.get("User-Agent", ""))
        kind = self._patch_type(request) if request.method == "PATCH" else None
        return _answer(scaling.write(self._registry, resource, namespace, name, kind, given, options))

    async def _action(self, request: web.Request, target: Target) -> web.StreamResponse:
        resource, namespace, name = target.resource, target.namespace or "", target.name
        if target.subresource not in {item[0] for item in resource.subresources} or request.method != "POST":
            raise errors.not_served(f"{resource.plural}/{target.subresource}")
        given = negotiation.body(await request.read(), request.content_type)
        options = negotiation.write_options(request.query, request.headers.get("User-Agent", ""))
        if target.subresource == "eviction":
            self._registry.delete(
                resource, namespace, name, negotiation.delete_options({}, dig(given, "deleteOptions"))
            )
        else:
            with self._registry.store.lock:
                old = self._registry.stored(resource, namespace, name)
                if dig(old, "spec", "nodeName"):
                    why = f"pod {name} is already assigned to node {old['spec']['nodeName']}"
                    raise errors.conflict("", "pods/binding", name, why)
                new = clone(old)
                put(new, ("spec", "nodeName"), dig(given, "target", "name"))
                self._registry.update_through(resource, old, new, options, subresource="binding")
        return _answer({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}, code=201)
