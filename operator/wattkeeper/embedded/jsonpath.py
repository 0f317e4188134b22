"""The part of kubectl's JSONPath that printer columns use: keys, indices, `[*]`, and `[?(@.key=="value")]`."""

import functools
import json
import re
from typing import Any

_STEP = re.compile(
    r"""\.(?P<key>[A-Za-z0-9_\-/]+)
      | \[\s*(?P<quote>['"])(?P<quoted>.*?)(?P=quote)\s*\]
      | \[\s*(?P<index>-?\d+)\s*\]
      | (?P<all>\[\*\]|\.\*)
      | \[\?\(\s*@\.(?P<field>[A-Za-z0-9_.\-]+)\s*(?P<verb>==|!=)\s*(?P<value>"[^"]*"|'[^']*'|[^)\s]+)\s*\)\]""",
    re.VERBOSE,
)


@functools.lru_cache(maxsize=1024)
def _steps(path: str) -> tuple[dict[str, str | None], ...]:
    text = path.strip().removeprefix("{").removesuffix("}").removeprefix("$").replace("\\.", "\x00")
    if text and text[0] not in ".[":
        text = f".{text}"
    steps, position = [], 0
    text = re.sub(r"\.([A-Za-z0-9_\-/]*\x00[A-Za-z0-9_\-/\x00]*)", lambda m: f"['{m[1].replace(chr(0), '.')}']", text)
    while position < len(text):
        match = _STEP.match(text, position)
        if match is None:
            raise ValueError(f"JSONPath {path!r} is not understood at {text[position:]!r}")
        steps.append(match.groupdict())
        position = match.end()
    return tuple(steps)


def _step(values: list[Any], step: dict[str, str | None]) -> list[Any]:
    key = step["key"] if step["key"] is not None else step["quoted"]
    if key is not None:
        return [value[key] for value in values if isinstance(value, dict) and key in value]
    lists = [list(value.values()) if isinstance(value, dict) else value for value in values]
    lists = [value for value in lists if isinstance(value, list)]
    if step["index"] is not None:
        index = int(step["index"])
        return [value[index] for value in lists if -len(value) <= index < len(value)]
    found = [item for value in lists for item in value]
    if step["field"] is None:
        return found
    raw = str(step["value"])
    wanted = raw[1:-1] if raw[0] in "\"'" else raw
    result = []
    for item in found:
        inner = find(item, step["field"])
        text = str(inner[0]).lower() if inner and isinstance(inner[0], bool) else str(inner[0]) if inner else None
        if (text == wanted) == (step["verb"] == "=="):
            result.append(item)
    return result


def find(value: Any, path: str) -> list[Any]:
    """Return all values at a path; raises ValueError on syntax that is not understood."""
    values = [value]
    for step in _steps(path):
        values = _step(values, step)
    return values


def text(value: Any) -> str:
    """Return a found value as a column shows it."""
    if isinstance(value, str):
        return value
    return json.dumps(value, separators=(",", ":"))
