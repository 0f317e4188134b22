"""The API's verbs over the store, without HTTP: create, update, patch, delete, get, list.

All methods may be called from any thread; each is one transaction under the store's lock. Returned objects are shared
with the store and must not be changed by callers.
"""

from collections.abc import Sequence
from typing import Any

from wattkeeper.embedded import admission, builtin, crds, errors, garbage, merging, ownership, schema
from wattkeeper.embedded.options import DeleteOptions, WriteOptions
from wattkeeper.embedded.ownership import Writer
from wattkeeper.embedded.resources import Resource
from wattkeeper.embedded.selectors import Predicate
from wattkeeper.embedded.store import Store
from wattkeeper.embedded.values import Json, clone, metadata, now, time_text

APPLY = "application/apply-patch+yaml"
JSON_PATCH = "application/json-patch+json"
MERGE = "application/merge-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"
PATCH_TYPES = (APPLY, JSON_PATCH, MERGE, STRATEGIC)

NAMESPACES = ("", "namespaces")


class Registry:
    """Everything the API serves and the verbs on it."""

    def __init__(self, *, history: int = 2_000, namespaces: Sequence[str] = ("default", "kube-system")) -> None:
        self.store = Store(history=history)
        self._resources: dict[tuple[str, str, str], Resource] = {}
        for resource in builtin.RESOURCES:
            self._resources[resource.group, resource.version, resource.plural] = resource
        for name in namespaces:
            self.create(self.resource("", "v1", "namespaces"), "", {"metadata": {"name": name}}, WriteOptions())

    def resources(self) -> list[Resource]:
        """Return all served resources; of a custom kind the preferred version first."""
        with self.store.lock:
            return list(self._resources.values())

    def resource(self, group: str, version: str, plural: str) -> Resource:
        """Return a served resource; raises ApiError 404, or 501 for a part of Kubernetes that is left out."""
        with self.store.lock:
            found = self._resources.get((group, version, plural))
            if found is not None:
                return found
            if (group == "" and version == "v1") or group in builtin.UNSERVED_GROUPS:
                raise errors.not_served(f"{errors.qualified(group, plural)} ({group + '/' if group else ''}{version})")
            raise errors.no_resource()

    def by_storage(self, key: tuple[str, str]) -> Resource | None:
        """Return the (preferred) resource whose objects are stored under a key."""
        with self.store.lock:
            return next((resource for resource in self._resources.values() if resource.storage == key), None)

    # Reading

    def stored(self, resource: Resource, namespace: str, name: str) -> Json:
        """Return the object as stored; raises ApiError 404."""
        found = self.store.get(resource.storage, namespace if resource.namespaced else "", name)
        if found is None:
            raise errors.not_found(resource.group, resource.plural, name)
        return found

    def get(self, resource: Resource, namespace: str, name: str) -> Json:
        """Return an object in the resource's own version; raises ApiError 404."""
        with self.store.lock:
            return resource.shown(self.stored(resource, namespace, name))

    def find(
        self, resource: Resource, namespace: str | None = None, accept: Predicate | None = None
    ) -> tuple[list[Json], int]:
        """Return the objects of a namespace (None: of all) that a selector accepts, and the list's version."""
        with self.store.lock:
            found = self.store.objects(resource.storage, namespace if resource.namespaced else None)
            version = self.store.version
        return [resource.shown(obj) for obj in found if accept is None or accept(obj)], version

    # Writing

    def create(self, resource: Resource, namespace: str, body: Json, options: WriteOptions) -> Json:
        """Create an object; raises ApiError 400, 403, 404 (namespace), 409 (exists) or 422."""
        obj = clone(body)
        admission.check_type(resource, obj)
        given = metadata(obj).get("namespace")
        if resource.namespaced and given and given != namespace:
            raise errors.bad_request(
                f"the namespace of the provided object does not match the namespace sent on the request ({namespace})"
            )
        with self.store.lock:
            return resource.shown(self._insert(resource, namespace, obj, options, None))

    def _insert(
        self,
        resource: Resource,
        namespace: str,
        obj: Json,
        options: WriteOptions,
        entries: Sequence[ownership.Entry] | None,
    ) -> Json:
        if resource.convert_in is not None:
            obj = resource.convert_in(obj)
        if not resource.namespaced:
            obj["metadata"].pop("namespace", None)
        admission.newborn(resource, obj, namespace)
        if resource.namespaced:
            self._check_namespace(resource, namespace, metadata(obj).get("name") or "")
        admission.admit(resource, obj, None, options)
        name = obj["metadata"]["name"]
        if self.store.get(resource.storage, namespace if resource.namespaced else "", name) is not None:
            raise errors.already_exists(resource.group, resource.plural, name)
        if entries is None:
            writer = Writer(manager=options.manager, operation="Update", api_version=resource.api_version)
            managed = ownership.after_update(
                old={}, new=obj, schema=resource.schema, writer=writer, time=time_text(now())
            )
        else:
            managed = ownership.write(entries)
        if managed:
            obj["metadata"]["managedFields"] = managed
        return self._commit(resource, obj, options)

    def _check_namespace(self, resource: Resource, namespace: str, name: str) -> None:
        home = self.store.get(NAMESPACES, "", namespace)
        if home is None:
            raise errors.not_found("", "namespaces", namespace)
        if metadata(home).get("deletionTimestamp"):
            why = f"unable to create new content in namespace {namespace} because it is being terminated"
            raise errors.forbidden(resource.group, resource.plural, name, why)

    def _commit(self, resource: Resource, obj: Json, options: WriteOptions) -> Json:
        """Store an admitted object; a deleted one without finalizers goes, a definition becomes served."""
        if options.dry_run:
            return obj
        if resource.storage == crds.KEY:
            obj = crds.established(obj)
        stored = self.store.put(resource.storage, obj)
        if resource.storage == crds.KEY:
            self._define(stored)
        meta = metadata(stored)
        if meta.get("deletionTimestamp") and not meta.get("finalizers") and garbage.may_go(self, resource, stored):
            return self.remove(resource, stored)
        return stored

    def update(
        self,
        resource: Resource,
        namespace: str,
        name: str,
        body: Json,
        options: WriteOptions,
        *,
        subresource: str = "",
    ) -> Json:
        """Replace an object or its status; raises ApiError 400, 404, 409 (stale version) or 422."""
        new = clone(body)
        admission.check_type(resource, new)
        with self.store.lock:
            old = self.stored(resource, namespace, name)
            if not resource.unconditional_update and not metadata(new).get("resourceVersion"):
                message = "Invalid value: 0: must be specified for an update"
                cause = errors.Cause(field="metadata.resourceVersion", message=message)
                raise errors.invalid(resource.group, resource.kind, name, [cause])
            return resource.shown(self._replace(resource, old, new, options, subresource, None))

    def update_through(
        self, resource: Resource, old: Json, new: Json, options: WriteOptions, *, subresource: str
    ) -> Json:
        """Take a stored object to a new state under the name of a subresource such as scale."""
        with self.store.lock:
            return self._replace(resource, old, new, options, subresource, None)

    def patch(
        self,
        resource: Resource,
        namespace: str,
        name: str,
        kind: str,
        body: Any,
        options: WriteOptions,
        *,
        subresource: str = "",
    ) -> Json:
        """Patch an object or its status by one of PATCH_TYPES; an apply creates what is missing."""
        with self.store.lock:
            if kind == APPLY:
                return resource.shown(self._apply(resource, namespace, name, body, options, subresource))
            old = self.stored(resource, namespace, name)
            new = clone(patched(resource.shown(old), kind, body, resource))
            if not isinstance(new, dict):
                raise errors.bad_request("the patched object is no map")
            admission.check_type(resource, new)
            return resource.shown(self._replace(resource, old, new, options, subresource, None))

    def _apply(
        self, resource: Resource, namespace: str, name: str, body: Any, options: WriteOptions, subresource: str
    ) -> Json:
        if not isinstance(body, dict):
            raise errors.bad_request("an applied configuration must be a map")
        config = clone(body)
        admission.check_type(resource, config)
        if config["metadata"].get("managedFields"):
            raise errors.bad_request("metadata.managedFields must be nil")
        config["metadata"].setdefault("name", name)
        if resource.convert_in is not None:
            config = resource.convert_in(config)
        schema.drop_nulls(config)
        if subresource == "status":
            config = {
                key: value for key, value in config.items() if key in ("apiVersion", "kind", "metadata", "status")
            }
        elif resource.status:
            config.pop("status", None)
        live = self.store.get(resource.storage, namespace if resource.namespaced else "", name)
        if live is None and subresource:
            raise errors.not_found(resource.group, resource.plural, name)
        writer = Writer(
            manager=options.manager, operation="Apply", api_version=resource.api_version, subresource=subresource
        )
        applied = ownership.apply(
            live={} if live is None else live,
            config=config,
            schema=resource.schema,
            writer=writer,
            force=options.force,
            time=time_text(now()),
        )
        if live is None:
            return self._insert(resource, namespace, clone(applied.obj), options, applied.entries)
        return self._replace(resource, live, clone(applied.obj), options, subresource, applied.entries)

    def _replace(
        self,
        resource: Resource,
        old: Json,
        new: Json,
        options: WriteOptions,
        subresource: str,
        entries: Sequence[ownership.Entry] | None,
    ) -> Json:
        """Take the stored object to its new state; a write that changes nothing is none."""
        if resource.convert_in is not None and entries is None:
            new = resource.convert_in(new)
        before, after = metadata(old), new["metadata"]
        asked = after.get("resourceVersion")
        if asked not in (None, "", "0", before["resourceVersion"]):
            raise errors.conflict(resource.group, resource.plural, before["name"], errors.STALE)
        admission.carry_over(resource, old, new)
        if subresource == "status":
            new = {**clone(old), "apiVersion": new["apiVersion"], "status": new.get("status")}
            if new["status"] is None:
                del new["status"]
        elif resource.status:
            new.pop("status", None)
            if "status" in old:
                new["status"] = clone(old["status"])
        admission.admit(resource, new, old, options)
        if subresource != "status":
            admission.bump_generation(resource, old, new)
        self._settle_fields(resource, old, new, options, subresource, entries)
        new["metadata"]["resourceVersion"] = before["resourceVersion"]
        if {**new, "apiVersion": old["apiVersion"]} == old:
            return old
        return self._commit(resource, new, options)

    def _settle_fields(
        self,
        resource: Resource,
        old: Json,
        new: Json,
        options: WriteOptions,
        subresource: str,
        entries: Sequence[ownership.Entry] | None,
    ) -> None:
        if entries is not None:
            managed = ownership.write(entries)
        else:
            writer = Writer(
                manager=options.manager, operation="Update", api_version=resource.api_version, subresource=subresource
            )
            managed = ownership.after_update(
                old=old, new=new, schema=resource.schema, writer=writer, time=time_text(now())
            )
        new["metadata"].pop("managedFields", None)
        if managed:
            new["metadata"]["managedFields"] = managed

    # Deleting

    def delete(self, resource: Resource, namespace: str, name: str, options: DeleteOptions) -> tuple[Json, bool]:
        """Delete an object; returns its last state and whether it is gone (False: finalizers or grace hold it)."""
        with self.store.lock:
            old = self.stored(resource, namespace, name)
            meta = metadata(old)
            if options.uid not in (None, meta["uid"]) or options.resource_version not in (
                None,
                meta["resourceVersion"],
            ):
                why = "Precondition failed: the object is another one or was changed"
                raise errors.conflict(resource.group, resource.plural, name, why)
            if options.dry_run:
                return resource.shown(old), True
            last, gone = garbage.delete(self, resource, old, options)
            return resource.shown(last), gone

    def delete_collection(
        self, resource: Resource, namespace: str | None, accept: Predicate | None, options: DeleteOptions
    ) -> list[Json]:
        """Delete all objects that a selector accepts; returns their last states."""
        with self.store.lock:
            found = self.store.objects(resource.storage, namespace if resource.namespaced else None)
            result = []
            for obj in found:
                if accept is None or accept(obj):
                    meta = metadata(obj)
                    result.append(self.delete(resource, meta.get("namespace") or "", meta["name"], options)[0])
            return result

    def remove(self, resource: Resource, obj: Json) -> Json:
        """Take an object out for good, and then whatever hung on it."""
        last = self.store.remove(resource.storage, obj)
        if resource.storage == crds.KEY:
            self._undefine(obj)
        garbage.after_removal(self, last)
        return resource.shown(last)

    # Definitions

    def _define(self, definition: Json) -> None:
        self._forget(definition)
        for resource in crds.resources(definition):
            self._resources[resource.group, resource.version, resource.plural] = resource
            shelf = self.store.shelf(resource.storage)
            if definition["metadata"]["generation"] > 1 and resource.version in definition["status"]["storedVersions"]:
                shelf.objects = {name: _refit(obj, resource) for name, obj in shelf.objects.items()}

    def _undefine(self, definition: Json) -> None:
        self._forget(definition)
        spec = definition["spec"]
        self.store.drop((spec["group"], spec["names"]["plural"]))

    def _forget(self, definition: Json) -> None:
        storage = (definition["spec"]["group"], definition["spec"]["names"]["plural"])
        for key in [key for key, resource in self._resources.items() if resource.storage == storage]:
            del self._resources[key]


def _refit(obj: Json, resource: Resource) -> Json:
    """Return a stored object as a changed definition reads it: pruned and defaulted, its version unchanged."""
    new = clone(obj)
    list(schema.prune(new, resource.schema))
    schema.fill_defaults(new, resource.schema)
    return new


def patched(current: Json, kind: str, body: Any, resource: Resource) -> Any:
    """Return an object with a client-computed patch applied; raises ApiError 400, 415 or 422."""
    if kind == JSON_PATCH:
        return merging.json_patch(current, body)
    if not isinstance(body, dict):
        raise errors.bad_request("a merge patch must be a map")
    if kind == MERGE:
        return merging.json_merge(current, body)
    if kind == STRATEGIC and not resource.custom:
        return merging.strategic(current, body, resource.schema)
    taken = [item for item in PATCH_TYPES if not (item == STRATEGIC and resource.custom)]
    raise errors.not_acceptable_media(
        f"the body of the request was in an unknown format - accepted media types include: {', '.join(taken)}"
    )
