"""Command lines for people: diffs in status and in Recommend mode, without secrets."""

import difflib
from collections.abc import Sequence

from wattkeeper.actuators import flags
from wattkeeper.actuators.arguments import UNKNOWN

_SECRET = ("--api-key", "--hf-token")


def shown(texts: Sequence[str]) -> tuple[str, ...]:
    """The arguments as they may be shown: unknown text as `…`, secrets hidden."""
    result: list[str] = []
    hidden = False
    for text in texts:
        name, equals, _ = text.partition("=")
        if text.startswith("-"):
            hidden = flags.normalise(name) in _SECRET
            result.append(f"{name}=***" if hidden and equals else text.replace(UNKNOWN, "…"))
            hidden = hidden and not equals
        else:
            result.append("***" if hidden else text.replace(UNKNOWN, "…"))
    return tuple(result)


def argv_diff(before: Sequence[str], after: Sequence[str]) -> str:
    """Unified diff of two argument lists, one option with its values per line; empty where they are the same."""
    return "\n".join(
        difflib.unified_diff(_lines(before), _lines(after), "vllm serve (now)", "vllm serve (wanted)", lineterm="", n=1)
    )


def _lines(texts: Sequence[str]) -> list[str]:
    lines: list[str] = []
    for text in texts:
        if text.startswith("-") or not lines:
            lines.append(text)
        else:
            lines[-1] += " " + text
    return lines
