"""Removes and adds arguments in a container without touching any other byte of it."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Site:
    """Where one argument stands: a whole element of command or args, or a stretch of a string.

    `start` is where the gap before it begins, `end` where the argument ends; both None: the whole element.
    """

    field: str
    index: int
    start: int | None = None
    end: int | None = None


@dataclass(frozen=True, kw_only=True)
class Append:
    """Where new arguments go: before element `index` of a list, or at character `position` of one string.

    For env, `index` is the variable's entry, or -1 where the entry is to be made under `name`.
    """

    field: str
    index: int
    position: int | None = None
    separator: str = " "
    name: str = ""


def apply(
    container: Mapping[str, Any], *, drop: Iterable[Site], append: Append | None, arguments: Sequence[str]
) -> dict[str, Any]:
    """A copy of the container without the dropped arguments and with the new ones."""
    changed = copy.deepcopy(dict(container))
    whole: dict[str, set[int]] = {}
    cuts: dict[tuple[str, int], list[tuple[int, int, str]]] = {}
    for site in set(drop):
        if site.start is None or site.end is None:
            whole.setdefault(site.field, set()).add(site.index)
        else:
            cuts.setdefault((site.field, site.index), []).append((site.start, site.end, ""))
    if append is not None and arguments:
        if append.field == "env":
            _append_to_environment(changed, append, arguments, cuts)
        elif append.position is not None:
            text = "".join(append.separator + argument for argument in arguments)
            cuts.setdefault((append.field, append.index), []).append((append.position, append.position, text))
    for (field, index), edits in cuts.items():
        before = _get(changed, field, index)
        after = _cut(before, edits)
        if after == "" and field != "env":
            whole.setdefault(field, set()).add(index)
        _set(changed, field, index, after)
    for field in ("command", "args"):
        gone = whole.get(field, set())
        adds = append is not None and append.field == field and append.position is None and bool(arguments)
        if not gone and not adds:
            continue
        values = list(changed.get(field) or ())
        if adds and append is not None:
            values[append.index : append.index] = arguments
            gone = {index + len(arguments) if index >= append.index else index for index in gone}
        changed[field] = [value for index, value in enumerate(values) if index not in gone]
    return changed


def _append_to_environment(
    container: dict[str, Any],
    append: Append,
    arguments: Sequence[str],
    cuts: dict[tuple[str, int], list[tuple[int, int, str]]],
) -> None:
    if append.index < 0:
        container["env"] = [*(container.get("env") or ()), {"name": append.name, "value": " ".join(arguments)}]
        return
    end = len(_get(container, "env", append.index).rstrip())
    text = "".join(" " + argument for argument in arguments)
    cuts.setdefault(("env", append.index), []).append((end, end, text))


def _cut(text: str, edits: list[tuple[int, int, str]]) -> str:
    """Apply the edits from the right; what is left of a gap at the very start goes with what followed it."""
    for start, end, put in sorted(edits, reverse=True):
        text = text[:start] + put + text[end:]
    return text.lstrip() if any(start == 0 for start, _, _ in edits) else text


def _get(container: Mapping[str, Any], field: str, index: int) -> str:
    value = container[field][index]
    return str(value.get("value") or "") if field == "env" else str(value)


def _set(container: dict[str, Any], field: str, index: int, text: str) -> None:
    if field == "env":
        container["env"][index]["value"] = text
    else:
        container[field][index] = text
