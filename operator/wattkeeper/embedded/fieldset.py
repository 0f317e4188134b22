"""Sets of field paths and their `fieldsV1` form.

A path is a tuple of elements as `fieldsV1` spells them: `f:name` for a map key, `k:{"name":"x"}` for an item of a list
keyed by some of its fields, `v:"x"` for a member of a set. A set is a frozenset of paths of leaves; maps in between are
not listed, except list items, which are members themselves.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from wattkeeper.embedded import schema as schemas
from wattkeeper.embedded.values import Json

Path = tuple[str, ...]
FieldSet = frozenset[Path]

EMPTY: FieldSet = frozenset()
_UNTRACKED = frozenset(
    {
        "name",
        "namespace",
        "uid",
        "resourceVersion",
        "generation",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "managedFields",
        "selfLink",
        "generateName",
    }
)


def item_key(item: Any, described: Json) -> str | None:
    """Return the path element of one list item, or None where the list is replaced as a whole (atomic)."""
    kind = described.get("x-kubernetes-list-type")
    if kind == "set":
        return "v:" + json.dumps(item, separators=(",", ":"))
    if kind != "map" or not isinstance(item, dict):
        return None
    part = schemas.items(described)
    found = {}
    for key in sorted(described.get("x-kubernetes-list-map-keys") or []):
        if key in item:
            found[key] = item[key]
        elif "default" in schemas.child(part, key):
            found[key] = schemas.child(part, key)["default"]
    return "k:" + json.dumps(found, separators=(",", ":")) if found else None


def is_atomic(value: Any, described: Json) -> bool:
    """Tell whether a value is owned as one leaf: scalars, empty values, atomic maps, lists without keys."""
    if isinstance(value, dict):
        return not value or described.get("x-kubernetes-map-type") == "atomic"
    if isinstance(value, list):
        return not value or any(item_key(item, described) is None for item in value)
    return True


def _children(value: Any, described: Json) -> Iterator[tuple[str, Any, Json]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield f"f:{key}", item, schemas.child(described, key)
    else:
        part = schemas.items(described)
        for item in value:
            yield item_key(item, described) or "", item, part


def _leaves(value: Any, described: Json, path: Path) -> Iterator[Path]:
    if is_atomic(value, described):
        yield path
        return
    for element, item, part in _children(value, described):
        if element[0] != "f":
            yield (*path, element)
        if element[0] != "v":
            yield from _leaves(item, part, (*path, element))


def tracked(obj: Json) -> Json:
    """Return the object without what the server owns: type, identity, versions, managed fields."""
    result = {key: value for key, value in obj.items() if key not in ("apiVersion", "kind", "metadata")}
    meta = {key: value for key, value in (obj.get("metadata") or {}).items() if key not in _UNTRACKED}
    if meta:
        result["metadata"] = meta
    return result


def of(obj: Json, described: Json) -> FieldSet:
    """Return the set of all leaves of an object."""
    value = tracked(obj)
    return frozenset(_leaves(value, described, ())) if value else EMPTY


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Leaves that a new object adds, changes and lacks, against the old one."""

    added: FieldSet
    changed: FieldSet
    removed: FieldSet


def compare(old: Json, new: Json, described: Json) -> Difference:
    """Compare two objects leaf by leaf; equal parts are skipped without a walk."""
    added: set[Path] = set()
    changed: set[Path] = set()
    removed: set[Path] = set()

    def walk(before: Any, after: Any, part: Json, path: Path) -> None:
        if before == after and type(before) is type(after):
            return
        if is_atomic(before, part) or is_atomic(after, part) or type(before) is not type(after):
            olds, news = set(_leaves(before, part, path)), set(_leaves(after, part, path))
            changed.update(olds & news)
            added.update(news - olds)
            removed.update(olds - news)
            return
        olds_by = {element: (item, below) for element, item, below in _children(before, part)}
        for element, item, below in _children(after, part):
            here = (*path, element)
            if element in olds_by:
                walk(olds_by.pop(element)[0], item, below, here)
            else:
                added.update(_leaves(item, below, here))
                if element[0] != "f":
                    added.add(here)
        for element, (item, below) in olds_by.items():
            removed.update(_leaves(item, below, (*path, element)))
            if element[0] != "f":
                removed.add((*path, element))

    walk(tracked(old), tracked(new), described, ())
    return Difference(
        added=frozenset(added - {()}), changed=frozenset(changed - {()}), removed=frozenset(removed - {()})
    )


def encode(fields: FieldSet) -> Json:
    """Return the `fieldsV1` map of a set."""
    root: Json = {}
    for path in sorted(fields):
        node = root
        for element in path:
            node = node.setdefault(element, {})
        if path[-1][0] == "k":
            node["."] = {}
    return root


def decode(fields: Json) -> FieldSet:
    """Read a `fieldsV1` map."""
    found: set[Path] = set()

    def walk(node: Json, path: Path) -> None:
        for element, below in node.items():
            if element == ".":
                found.add(path)
            elif below:
                walk(below, (*path, element))
            else:
                found.add((*path, element))

    walk(fields or {}, ())
    return frozenset(found - {()})


def shown(path: Path) -> str:
    """Return a path as conflict messages show it: `.spec.containers[name="vllm"].args`."""
    text = ""
    for element in path:
        kind, _, rest = element.partition(":")
        if kind == "f":
            text += f".{rest}"
        elif kind == "k":
            pairs = ",".join(f"{key}={json.dumps(value)}" for key, value in json.loads(rest).items())
            text += f"[{pairs}]"
        else:
            text += f"[={rest}]"
    return text
