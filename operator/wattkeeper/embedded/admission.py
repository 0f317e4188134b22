"""What every written object passes: type and name checks, defaults, pruning, validation, immutable metadata."""

import re
import secrets
import string
import uuid

from wattkeeper.embedded import errors, kinds, schema
from wattkeeper.embedded.errors import Cause
from wattkeeper.embedded.options import WriteOptions
from wattkeeper.embedded.resources import Resource
from wattkeeper.embedded.values import Json, metadata, now, time_text

_NAME = re.compile(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$")
_LABEL = re.compile(r"^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$")
_LETTERS = "".join(sorted(set(string.ascii_lowercase + string.digits) - set("aeiou013l")))


def suffix() -> str:
    """Return five random letters, as generateName adds them."""
    return "".join(secrets.choice(_LETTERS) for _ in range(5))


def check_type(resource: Resource, obj: Json) -> None:
    """Fill or check apiVersion and kind; raises ApiError 400."""
    if not isinstance(obj.setdefault("metadata", {}), dict):
        raise errors.bad_request("metadata must be a map")
    version, kind = obj.setdefault("apiVersion", resource.api_version), obj.setdefault("kind", resource.kind)
    if version != resource.api_version:
        raise errors.bad_request(
            f"the API version in the data ({version}) does not match the expected API version ({resource.api_version})"
        )
    if kind != resource.kind:
        raise errors.bad_request(
            f'{resource.kind} in version "{resource.version}" cannot be handled as a {resource.kind}: '
            f"the kind in the data is {kind}"
        )


def check_metadata(obj: Json) -> list[Cause]:
    """Return what is wrong with name, labels and annotations."""
    meta = metadata(obj)
    name = meta.get("name")
    causes = []
    if not isinstance(name, str) or not name:
        message = "Required value: name or generateName is required"
        causes.append(Cause(field="metadata.name", message=message, reason="FieldValueRequired"))
    elif len(name) > 253 or not _NAME.match(name):
        message = (
            f'Invalid value: "{name}": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric '
            "characters, '-' or '.', and must start and end with an alphanumeric character"
        )
        causes.append(Cause(field="metadata.name", message=message))
    for key, value in (meta.get("labels") or {}).items():
        if isinstance(value, str) and (len(value) > 63 or not _LABEL.match(value)):
            message = (
                f'Invalid value: "{value}": a valid label must be an empty string or consist of alphanumeric '
                f"characters, '-', '_' or '.' (label {key})"
            )
            causes.append(Cause(field="metadata.labels", message=message))
    return causes


def newborn(resource: Resource, obj: Json, namespace: str) -> None:
    """Set what the server owns in a new object's metadata."""
    meta = obj["metadata"]
    if meta.get("resourceVersion"):
        raise errors.bad_request("resourceVersion should not be set on objects to be created")
    for key in ("resourceVersion", "managedFields", "deletionTimestamp", "deletionGracePeriodSeconds", "selfLink"):
        meta.pop(key, None)
    if not meta.get("name") and meta.get("generateName"):
        meta["name"] = f"{meta['generateName']}{suffix()}"
    if resource.namespaced:
        meta["namespace"] = namespace
    meta["uid"] = str(uuid.uuid4())
    meta["creationTimestamp"] = time_text(now())
    meta.pop("generation", None)
    if resource.generation:
        meta["generation"] = 1
    if resource.status and not resource.keeps_status_on_create:
        obj.pop("status", None)


_KEPT = ("uid", "creationTimestamp", "generation", "deletionTimestamp", "deletionGracePeriodSeconds", "namespace")


def carry_over(resource: Resource, old: Json, new: Json) -> None:
    """Keep what no writer may change; raises ApiError 409 on another uid, 403 on new finalizers while deleting."""
    before, after = metadata(old), new["metadata"]
    name = before["name"]
    if after.get("uid") not in (None, "", before["uid"]):
        why = f"Precondition failed: UID in precondition: {after['uid']}, UID in object meta: {before['uid']}"
        raise errors.conflict(resource.group, resource.plural, name, why)
    if after.get("name") not in (None, name):
        raise errors.bad_request(
            f"the name of the object ({after['name']}) does not match the name on the URL ({name})"
        )
    after["name"] = name
    for key in _KEPT:
        if key in before:
            after[key] = before[key]
        else:
            after.pop(key, None)
    if before.get("deletionTimestamp"):
        fresh = [item for item in after.get("finalizers") or [] if item not in (before.get("finalizers") or [])]
        if fresh:
            message = f"Forbidden: no new finalizers can be added if the object is being deleted, found new {fresh}"
            cause = Cause(field="metadata.finalizers", message=message, reason="FieldValueForbidden")
            raise errors.invalid(resource.group, resource.kind, name, [cause])


def admit(resource: Resource, obj: Json, old: Json | None, options: WriteOptions) -> None:
    """Default, prune and validate in place; raises ApiError 400 (strict decoding) or 422."""
    described = resource.schema
    schema.drop_nulls(obj, described if resource.custom else None)
    if resource.custom:
        unknown = list(schema.prune(obj, described))
        if unknown and options.validation == "Strict":
            listed = ", ".join(f'unknown field "{path}"' for path in unknown)
            raise errors.bad_request(f"{resource.kind} in version {resource.version}: strict decoding error: {listed}")
        if options.validation == "Warn":
            options.warnings.extend(f'unknown field "{path}"' for path in unknown)
    schema.drop_nulls(obj["metadata"])
    for key in ("labels", "annotations", "finalizers", "ownerReferences"):
        if key in obj["metadata"] and not obj["metadata"][key]:
            del obj["metadata"][key]
    schema.fill_defaults(obj, described)
    causes = check_metadata(obj) + list(schema.validate(obj, described))
    prepare, check = kinds.PREPARE.get(resource.storage), kinds.CHECK.get(resource.storage)
    if not causes and prepare is not None:
        prepare(obj, old)
    if not causes and check is not None:
        causes = list(check(obj, old))
    if causes:
        raise errors.invalid(resource.group, resource.kind, metadata(obj).get("name") or "", causes)


def bump_generation(resource: Resource, old: Json, new: Json) -> None:
    """Raise metadata.generation where the writer changed what the resource counts."""
    if not resource.generation:
        return
    if resource.generation == "spec":
        changed = old.get("spec") != new.get("spec")
    else:
        skipped = {"metadata", "status"} if resource.status else {"metadata"}
        skipped.add("apiVersion")
        changed = {k: v for k, v in old.items() if k not in skipped} != {
            k: v for k, v in new.items() if k not in skipped
        }
    if resource.storage == ("apps", "deployments"):
        changed = changed or metadata(old).get("annotations") != metadata(new).get("annotations")
    if changed:
        new["metadata"]["generation"] = int(metadata(old).get("generation") or 0) + 1
