"""Field ownership: `managedFields` of every writer, and server-side apply.

Follows the rules of Kubernetes' structured merge: a writer owns the leaves it added or changed; a change takes a leaf
from its former owners; an apply owns exactly what it names, gives up (and removes) what it no longer names and nobody
else owns, and is refused where it would change what another manager owns, unless forced.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from wattkeeper.embedded import errors, fieldset
from wattkeeper.embedded import schema as schemas
from wattkeeper.embedded.errors import ApiError
from wattkeeper.embedded.fieldset import FieldSet
from wattkeeper.embedded.values import Json, clone


@dataclass(frozen=True, kw_only=True)
class Writer:
    """Who writes: manager name, `Apply` or `Update`, API version, subresource ("" for the object itself)."""

    manager: str
    operation: str
    api_version: str
    subresource: str = ""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One element of `managedFields`."""

    writer: Writer
    time: str
    fields: FieldSet = field(default=fieldset.EMPTY)


def read(managed: Sequence[Json] | None) -> list[Entry]:
    """Read `metadata.managedFields`."""
    return [
        Entry(
            writer=Writer(
                manager=item.get("manager", ""),
                operation=item.get("operation", "Update"),
                api_version=item.get("apiVersion", ""),
                subresource=item.get("subresource", ""),
            ),
            time=item.get("time", ""),
            fields=fieldset.decode(item.get("fieldsV1") or {}),
        )
        for item in managed or []
    ]


def write(entries: Iterable[Entry]) -> list[Json]:
    """Return the entries as `metadata.managedFields`, leaving out those that own nothing."""
    result = []
    for entry in entries:
        if not entry.fields:
            continue
        item: Json = {
            "manager": entry.writer.manager,
            "operation": entry.writer.operation,
            "apiVersion": entry.writer.api_version,
            "time": entry.time,
            "fieldsType": "FieldsV1",
            "fieldsV1": fieldset.encode(entry.fields),
        }
        if entry.writer.subresource:
            item["subresource"] = entry.writer.subresource
        result.append(item)
    return result


def _settled(
    entries: Sequence[Entry], writer: Writer, own: FieldSet, taken: FieldSet, removed: FieldSet, time: str
) -> list[Entry]:
    """Give `own` to the writer, take `taken` from the others, drop `removed` from all."""
    result, seen = [], False
    for entry in entries:
        if entry.writer == writer:
            seen = True
            result.append(entry if entry.fields == own else replace(entry, fields=own, time=time))
        else:
            kept = entry.fields - taken - removed
            result.append(entry if kept == entry.fields else replace(entry, fields=kept))
    if not seen:
        result.append(Entry(writer=writer, time=time, fields=own))
    return result


def after_update(*, old: Json, new: Json, schema: Json, writer: Writer, time: str) -> list[Json]:
    """Return `managedFields` after a create, put or patch took `old` ({} on create) to `new`."""
    difference = fieldset.compare(old, new, schema)
    managed = (old.get("metadata") or {}).get("managedFields")
    touched = difference.added | difference.changed
    if not touched and not difference.removed:
        return clone(managed or [])
    entries = read(managed)
    mine = next((entry.fields for entry in entries if entry.writer == writer), fieldset.EMPTY)
    own = (mine | touched) - difference.removed
    return write(_settled(entries, writer, own, touched, difference.removed, time))


@dataclass(frozen=True, kw_only=True)
class Applied:
    """Outcome of a server-side apply before defaults: the merged object and whom the leaves belong to."""

    obj: Json
    entries: list[Entry]


def apply(*, live: Json, config: Json, schema: Json, writer: Writer, force: bool, time: str) -> Applied:
    """Merge an applied configuration into the live object ({} where there is none).

    Raises ApiError 409 with one cause per leaf where another manager owns what would change, unless `force`.
    """
    entries = read((live.get("metadata") or {}).get("managedFields"))
    named = fieldset.of(config, schema)
    before = next((entry.fields for entry in entries if entry.writer == writer), fieldset.EMPTY)
    merged = merge(live, config, schema)
    others = frozenset().union(*(entry.fields for entry in entries if entry.writer != writer))
    given_up = before - named
    for path in sorted(given_up, key=len):
        kept = any(other[: len(path)] == path for other in (others | named))
        if not kept and not _is_item_key(path):
            _discard(merged, path, schema)
    difference = fieldset.compare(live, merged, schema)
    touched = difference.added | difference.changed
    conflicts = [
        (entry.writer, path) for entry in entries if entry.writer != writer for path in sorted(entry.fields & touched)
    ]
    if conflicts and not force:
        raise _conflict(conflicts)
    return Applied(obj=merged, entries=_settled(entries, writer, named, touched, difference.removed, time))


def _conflict(conflicts: Sequence[tuple[Writer, fieldset.Path]]) -> ApiError:
    def who(writer: Writer) -> str:
        via = f' with subresource "{writer.subresource}"' if writer.subresource else ""
        return f'"{writer.manager}"{via}' + ("" if writer.operation == "Apply" else f" using {writer.api_version}")

    managers = sorted({who(writer) for writer, _ in conflicts})
    plural = "conflict" if len(conflicts) == 1 else f"{len(conflicts)} conflicts"
    listed = ", ".join(
        f"conflict with {manager}: "
        + ", ".join(fieldset.shown(path) for writer, path in conflicts if who(writer) == manager)
        for manager in managers
    )
    count = "1 conflict" if plural == "conflict" else plural
    message = f"Apply failed with {count}: {listed}"
    causes = [
        {
            "reason": "FieldManagerConflict",
            "message": f"conflict with {who(writer)}",
            "field": fieldset.shown(path),
        }
        for writer, path in conflicts
    ]
    return ApiError(409, "Conflict", message, {"causes": causes})


def merge(live: Any, config: Any, schema: Json) -> Any:
    """Return the live value with an applied one merged in: maps by key, keyed lists by item, all else replaced."""
    if isinstance(config, dict) and isinstance(live, dict) and schema.get("x-kubernetes-map-type") != "atomic":
        result = dict(live)
        for key, value in config.items():
            result[key] = merge(live[key], value, schemas.child(schema, key)) if key in live else clone(value)
        return result
    if isinstance(config, list) and isinstance(live, list):
        if not config and schema.get("x-kubernetes-list-type") in ("map", "set"):
            return live
        keys = [fieldset.item_key(item, schema) for item in config]
        if None in keys:
            return clone(config)
        part = schemas.items(schema)
        news = dict(zip(keys, config, strict=True))
        olds = {fieldset.item_key(item, schema): item for item in live}
        result_list = [merge(item, news[key], part) if key in news else item for key, item in olds.items()]
        return result_list + [clone(item) for key, item in news.items() if key not in olds]
    return clone(config)


def _is_item_key(path: fieldset.Path) -> bool:
    """Tell whether a leaf is what tells its list item apart: it goes with the item only."""
    return len(path) > 1 and path[-2][0] == "k" and path[-1][2:] in json.loads(path[-2][2:])


def _discard(obj: Json, path: fieldset.Path, schema: Json) -> None:
    """Remove one leaf or list item in place, copying nothing shared: parents on the way are rebuilt."""
    node: Any = obj
    for position, element in enumerate(path):
        last = position == len(path) - 1
        kind, _, rest = element.partition(":")
        if kind == "f":
            if not isinstance(node, dict) or rest not in node:
                return
            if last:
                del node[rest]
                return
            node[rest] = _shallow(node[rest])
            node, schema = node[rest], schemas.child(schema, rest)
        else:
            wanted = element if kind == "k" else f"v:{json.dumps(json.loads(rest), separators=(',', ':'))}"
            index = _position(node, wanted, schema)
            if index is None:
                return
            if last:
                del node[index]
                return
            node[index] = _shallow(node[index])
            node, schema = node[index], schemas.items(schema)


def _shallow(value: Any) -> Any:
    return dict(value) if isinstance(value, dict) else list(value) if isinstance(value, list) else value


def _position(node: Any, wanted: str, schema: Json) -> int | None:
    if not isinstance(node, list):
        return None
    return next((i for i, item in enumerate(node) if fieldset.item_key(item, schema) == wanted), None)


def required_manager(manager: str | None) -> str:
    """Return the field manager of an apply; raises ApiError 422 where the request names none."""
    if manager:
        return manager
    causes = [errors.Cause(field="fieldManager", message="Required value: is required for apply patch")]
    raise errors.invalid("meta.k8s.io", "PatchOptions", "", causes)
