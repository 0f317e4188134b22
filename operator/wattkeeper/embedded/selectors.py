"""Label and field selectors: parsing of the query text and matching of objects."""

import re
from collections.abc import Callable
from typing import Any

from wattkeeper.embedded import errors
from wattkeeper.embedded.values import Json, dig, metadata

Predicate = Callable[[Json], bool]
LabelTest = Callable[[dict[str, str]], bool]

_NAME = r"[A-Za-z0-9]([-A-Za-z0-9_./]*[A-Za-z0-9])?"
_SET = re.compile(rf"^(?P<key>{_NAME})\s+(?P<verb>in|notin)\s+\((?P<values>[^)]*)\)$")
_EQUAL = re.compile(rf"^(?P<key>{_NAME})\s*(?P<verb>==|=|!=)\s*(?P<value>[^=!]*)$")
_EXISTS = re.compile(rf"^(?P<not>!?)\s*(?P<key>{_NAME})$")
_ORDER = re.compile(rf"^(?P<key>{_NAME})\s*(?P<verb>[<>])\s*(?P<value>-?\d+)$")

FIELD_PATHS: dict[str, tuple[tuple[str, ...], Any]] = {
    "metadata.name": (("metadata", "name"), ""),
    "metadata.namespace": (("metadata", "namespace"), ""),
    "spec.nodeName": (("spec", "nodeName"), ""),
    "spec.schedulerName": (("spec", "schedulerName"), ""),
    "spec.serviceAccountName": (("spec", "serviceAccountName"), ""),
    "spec.restartPolicy": (("spec", "restartPolicy"), ""),
    "spec.unschedulable": (("spec", "unschedulable"), False),
    "status.phase": (("status", "phase"), ""),
    "status.podIP": (("status", "podIP"), ""),
    "status.replicas": (("status", "replicas"), 0),
    "type": (("type",), ""),
    "reason": (("reason",), ""),
    "source": (("source", "component"), ""),
    "reportingComponent": (("reportingComponent",), ""),
    "involvedObject.kind": (("involvedObject", "kind"), ""),
    "involvedObject.name": (("involvedObject", "name"), ""),
    "involvedObject.namespace": (("involvedObject", "namespace"), ""),
    "involvedObject.uid": (("involvedObject", "uid"), ""),
    "involvedObject.apiVersion": (("involvedObject", "apiVersion"), ""),
    "involvedObject.fieldPath": (("involvedObject", "fieldPath"), ""),
    "involvedObject.resourceVersion": (("involvedObject", "resourceVersion"), ""),
}


def _split(text: str) -> list[str]:
    """Split at commas outside parentheses."""
    return [part.strip() for part in re.split(r",(?![^()]*\))", text) if part.strip()]


def _label_test(part: str) -> LabelTest:
    if match := _SET.match(part):
        key, values = match["key"], {value.strip() for value in match["values"].split(",")}
        if match["verb"] == "in":
            return lambda labels: labels.get(key) in values
        return lambda labels: labels.get(key) not in values
    if match := _EQUAL.match(part):
        key, value = match["key"], match["value"].strip()
        if match["verb"] == "!=":
            return lambda labels: labels.get(key) != value
        return lambda labels: labels.get(key) == value
    if match := _EXISTS.match(part):
        key, absent = match["key"], bool(match["not"])
        return lambda labels: (key in labels) != absent
    if match := _ORDER.match(part):
        key, bound, sign = match["key"], int(match["value"]), 1 if match["verb"] == ">" else -1
        return lambda labels: labels.get(key, "").lstrip("-").isdigit() and sign * (int(labels[key]) - bound) > 0
    raise errors.bad_request(f'unable to parse requirement: "{part}" is no label requirement')


def labels(text: str) -> Predicate:
    """Parse `a=b,c!=d,e in (f,g),!h,i>3`; raises ApiError 400 on anything else."""
    tests = [_label_test(part) for part in _split(text)]
    return lambda obj: all(test(metadata(obj).get("labels") or {}) for test in tests)


def fields(text: str, *, custom: dict[str, tuple[str, ...]] | None = None) -> Predicate:
    """Parse `metadata.name=x,spec.nodeName!=y`; `custom` adds a CRD's selectable fields; raises ApiError 400."""
    known = {**FIELD_PATHS, **{name: (path, "") for name, path in (custom or {}).items()}}
    tests: list[tuple[tuple[str, ...], Any, str, bool]] = []
    for part in _split(text):
        match = re.match(r"^([^=!]+?)\s*(!=|==|=)\s*(.*)$", part)
        if match is None:
            raise errors.bad_request(f'invalid field selector: "{part}"; expected name=value')
        name, verb, value = match[1], match[2], match[3]
        if name not in known:
            raise errors.bad_request(f'Unable to find "{name}": field label not supported: {name}')
        path, default = known[name]
        tests.append((path, default, value, verb != "!="))

    def text_of(value: Any) -> str:
        return str(value).lower() if isinstance(value, bool) else str(value)

    return lambda obj: all(
        (text_of(dig(obj, *path, default=default)) == value) == wanted for path, default, value, wanted in tests
    )


def matches(selector: Json | None, found: dict[str, str]) -> bool:
    """Tell whether a `LabelSelector` object (matchLabels, matchExpressions) takes these labels; null takes none."""
    if selector is None:
        return False
    if any(found.get(key) != value for key, value in (selector.get("matchLabels") or {}).items()):
        return False
    for rule in selector.get("matchExpressions") or []:
        key, verb, values = rule.get("key"), rule.get("operator"), rule.get("values") or []
        inside = found.get(key) in values
        if verb not in ("In", "NotIn", "Exists", "DoesNotExist"):
            return False
        if (
            (verb == "In" and not inside)
            or (verb == "NotIn" and inside)
            or (verb == "Exists" and key not in found)
            or (verb == "DoesNotExist" and key in found)
        ):
            return False
    return True


def selector_text(selector: Json | None) -> str:
    """Return a `LabelSelector` object as query text."""
    if not selector:
        return ""
    parts = [f"{key}={value}" for key, value in sorted((selector.get("matchLabels") or {}).items())]
    for rule in selector.get("matchExpressions") or []:
        key, verb, values = rule.get("key"), rule.get("operator"), ",".join(rule.get("values") or [])
        forms = {"In": f"{key} in ({values})", "NotIn": f"{key} notin ({values})", "Exists": key}
        parts.append(forms.get(verb, f"!{key}"))
    return ",".join(parts)
