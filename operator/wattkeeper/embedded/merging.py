"""The three client-computed patches: JSON merge (RFC 7386), JSON patch (RFC 6902), strategic merge."""

from collections.abc import Sequence
from typing import Any

from wattkeeper.embedded import errors, schema
from wattkeeper.embedded.values import Json, clone

_REJECTED = "the server rejected our request due to an error in our request"


def json_merge(target: Any, patch: Any) -> Any:
    """Return the target with a JSON merge patch applied: null deletes, maps merge, everything else replaces."""
    if not isinstance(patch, dict):
        return clone(patch)
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = json_merge(result.get(key), value)
    return result


def _pointer(text: str) -> list[str]:
    if text == "":
        return []
    if not text.startswith("/"):
        raise errors.bad_request(f'json patch: "{text}" is no JSON pointer')
    return [part.replace("~1", "/").replace("~0", "~") for part in text[1:].split("/")]


def _index(part: str, length: int) -> int:
    if not part.isdigit() or int(part) >= length:
        raise errors.unprocessable(_REJECTED)
    return int(part)


def _at(document: Any, path: Sequence[str]) -> Any:
    for part in path:
        if isinstance(document, dict) and part in document:
            document = document[part]
        elif isinstance(document, list):
            document = document[_index(part, len(document))]
        else:
            raise errors.unprocessable(_REJECTED)
    return document


def _add(document: Any, path: Sequence[str], value: Any) -> Any:
    if not path:
        return value
    parent, last = _at(document, path[:-1]), path[-1]
    if isinstance(parent, dict):
        parent[last] = value
    elif isinstance(parent, list):
        parent.insert(len(parent) if last == "-" else _index(last, len(parent) + 1), value)
    else:
        raise errors.unprocessable(_REJECTED)
    return document


def _remove(document: Any, path: Sequence[str]) -> None:
    _at(document, path)
    parent, last = _at(document, path[:-1]), path[-1] if path else ""
    if isinstance(parent, list):
        parent.pop(int(last))
    elif path:
        del parent[last]


def _operate(document: Any, operation: Json) -> Any:
    verb, path = operation.get("op"), _pointer(operation.get("path", ""))
    if verb == "add":
        return _add(document, path, clone(operation.get("value")))
    if verb == "remove":
        _remove(document, path)
    elif verb == "replace":
        if not path:
            return clone(operation.get("value"))
        _at(document, path)
        parent = _at(document, path[:-1])
        parent[int(path[-1]) if isinstance(parent, list) else path[-1]] = clone(operation.get("value"))
    elif verb in ("move", "copy"):
        source = _pointer(operation.get("from", ""))
        value = clone(_at(document, source))
        if verb == "move":
            _remove(document, source)
        return _add(document, path, value)
    elif verb == "test":
        if _at(document, path) != operation.get("value"):
            raise errors.unprocessable(_REJECTED)
    else:
        raise errors.bad_request(f'json patch: "{verb}" is no operation')
    return document


def json_patch(target: Json, operations: Any) -> Any:
    """Return the target with a list of JSON patch operations applied; raises ApiError 400 or 422, changing nothing."""
    if not isinstance(operations, list) or not all(isinstance(item, dict) for item in operations):
        raise errors.bad_request("json patch: the body must be a list of operations")
    document: Any = clone(target)
    for operation in operations:
        document = _operate(document, operation)
    return document


def strategic(target: Any, patch: Any, described: Json) -> Any:
    """Return the target with a strategic merge patch applied.

    Lists whose schema says `x-kubernetes-patch-strategy: merge` merge by `x-kubernetes-patch-merge-key` (or as sets);
    the directives `$patch`, `$retainKeys`, `$setElementOrder/…` and `$deleteFromPrimitiveList/…` are obeyed.
    """
    if not isinstance(patch, dict):
        return clone(patch)
    if patch.get("$patch") == "replace":
        return clone({key: value for key, value in patch.items() if key != "$patch"})
    if patch.get("$patch") == "delete":
        return {}
    result = dict(target) if isinstance(target, dict) else {}
    if "$retainKeys" in patch:
        result = {key: value for key, value in result.items() if key in patch["$retainKeys"]}
    for key, value in patch.items():
        if key.startswith("$deleteFromPrimitiveList/"):
            name = key.partition("/")[2]
            result[name] = [item for item in result.get(name) or [] if item not in value]
        elif key.startswith("$"):
            continue
        elif value is None:
            result.pop(key, None)
        else:
            part = schema.child(described, key)
            order = patch.get(f"$setElementOrder/{key}")
            if isinstance(value, list):
                result[key] = _merge_list(result.get(key), value, part, order)
            else:
                result[key] = strategic(result.get(key), value, part)
    for key, order in patch.items():
        name = key.partition("/")[2]
        if key.startswith("$setElementOrder/") and name not in patch and isinstance(result.get(name), list):
            result[name] = _ordered(result[name], order, schema.child(described, name))
    return result


def _merge_list(target: Any, patch: list[Any], described: Json, order: list[Any] | None) -> list[Any]:
    if described.get("x-kubernetes-patch-strategy") != "merge":
        return clone(patch)
    merge_key = described.get("x-kubernetes-patch-merge-key")
    result = list(target or [])
    if merge_key is None:
        result += [item for item in patch if item not in result]
        return _ordered(result, order, described) if order else result
    if any(isinstance(item, dict) and item.get("$patch") == "replace" for item in patch):
        return clone([item for item in patch if not (isinstance(item, dict) and item.get("$patch") == "replace")])
    for item in patch:
        if not isinstance(item, dict) or merge_key not in item:
            raise errors.bad_request(f"strategic merge: an item of the list lacks its merge key {merge_key}")
        found = next((i for i, old in enumerate(result) if old.get(merge_key) == item[merge_key]), None)
        if item.get("$patch") == "delete":
            result = [old for old in result if old.get(merge_key) != item[merge_key]]
        elif found is None:
            result.append(strategic({}, item, schema.items(described)))
        else:
            result[found] = strategic(result[found], item, schema.items(described))
    return _ordered(result, order, described) if order else result


def _ordered(found: list[Any], order: list[Any], described: Json) -> list[Any]:
    """Sort the listed items as asked; items not listed keep their place behind the one they followed."""
    merge_key = described.get("x-kubernetes-patch-merge-key")

    def identity(item: Any) -> Any:
        return item.get(merge_key) if merge_key and isinstance(item, dict) else item

    wanted = [identity(item) for item in order]
    listed = sorted((item for item in found if identity(item) in wanted), key=lambda item: wanted.index(identity(item)))
    places = iter(listed)
    return [next(places) if identity(item) in wanted else item for item in found]
