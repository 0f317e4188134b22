"""Structural schemas (the OpenAPI v3 part that Kubernetes takes): defaults, pruning, validation.

CEL rules (`x-kubernetes-validations`) are stored and not evaluated: only a real API server enforces them.
"""

import re
from collections.abc import Iterator
from typing import Any

from wattkeeper.embedded.errors import Cause
from wattkeeper.embedded.values import Json, clone

PRESERVE = "x-kubernetes-preserve-unknown-fields"
INT_OR_STRING = "x-kubernetes-int-or-string"
EMBEDDED = "x-kubernetes-embedded-resource"

_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "boolean": (bool,),
    "integer": (int,),
    "number": (int, float),
}


def child(schema: Json, key: str) -> Json:
    """Return the schema of one key of a map; empty where the key is not described."""
    found = (schema.get("properties") or {}).get(key)
    if isinstance(found, dict):
        return found
    extra = schema.get("additionalProperties")
    return extra if isinstance(extra, dict) else {}


def items(schema: Json) -> Json:
    """Return the schema of a list's items; empty where not described."""
    found = schema.get("items")
    return found if isinstance(found, dict) else {}


def fill_defaults(value: Any, schema: Json) -> None:
    """Set the schema's defaults in place where a key is missing (or null and not nullable)."""
    if isinstance(value, dict):
        for key, part in (schema.get("properties") or {}).items():
            if "default" in part and (key not in value or (value[key] is None and not part.get("nullable"))):
                value[key] = clone(part["default"])
        for key, item in value.items():
            fill_defaults(item, child(schema, key))
    elif isinstance(value, list):
        part = items(schema)
        for item in value:
            fill_defaults(item, part)


def drop_nulls(value: Any, schema: Json | None = None) -> None:
    """Remove null keys in place; with a schema only those that may not be null but have a default."""
    if isinstance(value, dict):
        for key in [key for key, item in value.items() if item is None]:
            part = child(schema, key) if schema is not None else {}
            if schema is None or ("default" in part and not part.get("nullable")):
                del value[key]
        for key, item in value.items():
            drop_nulls(item, None if schema is None else child(schema, key))
    elif isinstance(value, list):
        for item in value:
            drop_nulls(item, None if schema is None else items(schema))


def prune(value: Any, schema: Json, path: str = "", *, top: bool = True, kept: bool = False) -> Iterator[str]:
    """Remove what the schema does not know, in place; yields the dotted path of each removed field.

    `x-kubernetes-preserve-unknown-fields` keeps unknown keys of its map and of the undescribed maps below it;
    apiVersion, kind and metadata of an object (top or embedded) always stay.
    """
    if isinstance(value, dict):
        kept = bool(schema.get(PRESERVE)) or (kept and not schema.get("properties"))
        described = schema.get("properties") or {}
        extra = schema.get("additionalProperties")
        own = ("apiVersion", "kind", "metadata") if top or schema.get(EMBEDDED) else ()
        for key in list(value):
            where = f"{path}.{key}" if path else key
            if key in own:
                continue
            if key in described:
                yield from prune(value[key], described[key], where, top=False, kept=kept)
            elif isinstance(extra, dict):
                yield from prune(value[key], extra, where, top=False, kept=kept)
            elif not kept and not extra:
                del value[key]
                yield where
    elif isinstance(value, list):
        part = items(schema)
        for index, item in enumerate(value):
            yield from prune(item, part, f"{path}[{index}]", top=False, kept=kept)


def _shown(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value).lower() if isinstance(value, bool) else str(value)


def _type_name(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    for name in ("object", "array", "string", "integer", "number"):
        if isinstance(value, _TYPES[name]):
            return name
    return type(value).__name__


def _fits(value: Any, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    if kind == "integer" and isinstance(value, float):
        return value.is_integer()
    return isinstance(value, _TYPES.get(kind, (object,)))


def _bad(path: str, value: Any, message: str) -> Cause:
    shown = "" if isinstance(value, dict | list) else f"{_shown(value)}: "
    return Cause(field=path or "<nil>", message=f"Invalid value: {shown}{path} in body {message}")


def _check_type(value: Any, schema: Json, path: str) -> Iterator[Cause]:
    kind = schema.get("type")
    if schema.get(INT_OR_STRING):
        if isinstance(value, bool) or not isinstance(value, int | str):
            yield _bad(path, value, f'must be of type integer or string: "{_type_name(value)}"')
    elif kind and not _fits(value, kind):
        shown = f'"{_type_name(value)}"'
        message = f"Invalid value: {shown}: {path} in body must be of type {kind}: {shown}"
        yield Cause(field=path or "<nil>", message=message, reason="FieldValueTypeInvalid")


def _check_number(value: float, schema: Json, path: str) -> Iterator[Cause]:
    low, high, step = schema.get("minimum"), schema.get("maximum"), schema.get("multipleOf")
    if low is not None and (value < low or (schema.get("exclusiveMinimum") and value == low)):
        word = "greater than" if schema.get("exclusiveMinimum") else "greater than or equal to"
        yield _bad(path, value, f"should be {word} {low}")
    if high is not None and (value > high or (schema.get("exclusiveMaximum") and value == high)):
        word = "less than" if schema.get("exclusiveMaximum") else "less than or equal to"
        yield _bad(path, value, f"should be {word} {high}")
    if step and value % step:
        yield _bad(path, value, f"should be a multiple of {step}")


def _check_text(value: str, schema: Json, path: str) -> Iterator[Cause]:
    if "minLength" in schema and len(value) < schema["minLength"]:
        yield _bad(path, value, f"should be at least {schema['minLength']} chars long")
    if "maxLength" in schema and len(value) > schema["maxLength"]:
        message = f"Too long: may not be more than {schema['maxLength']} bytes"
        yield Cause(field=path, message=message, reason="FieldValueTooLong")
    if "pattern" in schema and not re.search(schema["pattern"], value):
        yield _bad(path, value, f"should match '{schema['pattern']}'")


def _check_list(value: list[Any], schema: Json, path: str) -> Iterator[Cause]:
    if "minItems" in schema and len(value) < schema["minItems"]:
        yield _bad(path, value, f"should have at least {schema['minItems']} items")
    if "maxItems" in schema and len(value) > schema["maxItems"]:
        message = f"Too many: {len(value)}: must have at most {schema['maxItems']} items"
        yield Cause(field=path, message=message, reason="FieldValueTooMany")
    kind, part = schema.get("x-kubernetes-list-type"), items(schema)
    seen: list[Any] = []
    for index, item in enumerate(value):
        identity = item
        if kind == "map" and isinstance(item, dict):
            identity = [item.get(key) for key in schema.get("x-kubernetes-list-map-keys", [])]
        if kind in ("map", "set") and identity in seen:
            message = f"Duplicate value: {_shown(identity)}"
            yield Cause(field=f"{path}[{index}]", message=message, reason="FieldValueDuplicate")
        seen.append(identity)
        yield from validate(item, part, f"{path}[{index}]")


def _check_map(value: Json, schema: Json, path: str) -> Iterator[Cause]:
    for key in schema.get("required") or []:
        if key not in value:
            where = f"{path}.{key}" if path else key
            yield Cause(field=where, message="Required value", reason="FieldValueRequired")
    if "minProperties" in schema and len(value) < schema["minProperties"]:
        yield _bad(path, value, f"should have at least {schema['minProperties']} properties")
    if "maxProperties" in schema and len(value) > schema["maxProperties"]:
        message = f"Too many: {len(value)}: must have at most {schema['maxProperties']} items"
        yield Cause(field=path, message=message, reason="FieldValueTooMany")
    for key, item in value.items():
        yield from validate(item, child(schema, key), f"{path}.{key}" if path else key)


def validate(value: Any, schema: Json, path: str = "") -> Iterator[Cause]:
    """Yield each way in which the value breaks its schema, worded as a real API server words it."""
    if not schema or (value is None and schema.get("nullable")):
        return
    wrong = list(_check_type(value, schema, path))
    yield from wrong
    if wrong:
        return
    if "enum" in schema and value not in schema["enum"]:
        options = ", ".join(_shown(option) for option in schema["enum"])
        message = f"Unsupported value: {_shown(value)}: supported values: {options}"
        yield Cause(field=path, message=message, reason="FieldValueNotSupported")
    if isinstance(value, str):
        yield from _check_text(value, schema, path)
    elif isinstance(value, dict):
        yield from _check_map(value, schema, path)
    elif isinstance(value, list):
        yield from _check_list(value, schema, path)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield from _check_number(value, schema, path)
    yield from _check_combined(value, schema, path)


def _check_combined(value: Any, schema: Json, path: str) -> Iterator[Cause]:
    for part in schema.get("allOf") or []:
        yield from validate(value, part, path)
    any_of, one_of, none_of = schema.get("anyOf"), schema.get("oneOf"), schema.get("not")
    fits = [not list(validate(value, part, path)) for part in (any_of or one_of or [])]
    if any_of and not any(fits):
        yield _bad(path, value, "must validate at least one schema (anyOf)")
    if one_of and sum(fits) != 1:
        yield _bad(path, value, "must validate one and only one schema (oneOf)")
    if none_of and not list(validate(value, none_of, path)):
        yield _bad(path, value, "must not validate the schema (not)")
