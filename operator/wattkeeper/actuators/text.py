"""Text with a memory: what the kubelet and the shell make of a manifest string, and where each character came from.

The kubelet replaces `$(NAME)` in command and args by the container's environment and `$$` by `$` before anything runs
(Kubernetes: "Define a Command and Arguments for a Container"); unknown names stay as typed.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from wattkeeper.actuators.arguments import UNKNOWN

LATE_NAMES = frozenset({"LWS_GROUP_SIZE", "LWS_LEADER_ADDRESS", "LWS_WORKER_INDEX", "LWS_NAME", "LWS_GROUP_INDEX"})
"""Environment names that LeaderWorkerSet adds when the pod is made: known to exist, not what they hold."""

_REFERENCE = re.compile(r"\$\$|\$\(([A-Za-z_][A-Za-z0-9_.-]*)\)")


@dataclass(frozen=True)
class Origin:
    """A place in the container: `field` is command, args or env, `index` the element, `offset` the character."""

    field: str
    index: int
    offset: int


@dataclass(frozen=True)
class Piece:
    """A run of characters; with an origin, character i of it is character `origin.offset + i` of the manifest."""

    text: str
    origin: Origin | None = None


@dataclass(frozen=True)
class Mapped:
    """A text made of pieces."""

    pieces: tuple[Piece, ...] = ()

    @property
    def text(self) -> str:
        """The text alone."""
        return "".join(piece.text for piece in self.pieces)

    def slice(self, start: int, end: int) -> "Mapped":
        """The characters from `start` to `end`, origins kept."""
        kept: list[Piece] = []
        at = 0
        for piece in self.pieces:
            low, high = max(start - at, 0), min(end - at, len(piece.text))
            if low < high:
                origin = piece.origin
                moved = None if origin is None else Origin(origin.field, origin.index, origin.offset + low)
                kept.append(Piece(piece.text[low:high], moved))
            at += len(piece.text)
        return Mapped(tuple(kept))

    def span(self, start: int, end: int) -> tuple[Origin, int] | None:
        """Where the characters from `start` to `end` stand in the manifest: (first, length); None: not as one run."""
        pieces = self.slice(start, end).pieces
        first = pieces[0].origin if pieces else None
        if first is None:
            return None
        length = 0
        for piece in pieces:
            if piece.origin != Origin(first.field, first.index, first.offset + length):
                return None
            length += len(piece.text)
        return first, length

    def without_origins(self) -> "Mapped":
        """The same text as something that cannot be edited."""
        return Mapped((Piece(self.text),))

    @staticmethod
    def join(parts: Sequence["Mapped"], separator: str = "") -> "Mapped":
        """One text after the other, with a separator between."""
        pieces: list[Piece] = []
        for index, part in enumerate(parts):
            if index and separator:
                pieces.append(Piece(separator))
            pieces.extend(part.pieces)
        return Mapped(tuple(pieces))


@dataclass(frozen=True)
class Variable:
    """One environment variable of the container: `value` is None where the manifest does not hold it."""

    index: int
    value: Mapped | None


@dataclass(frozen=True)
class Environment:
    """What the manifest tells of the container's environment."""

    variables: Mapping[str, Variable] = field(default_factory=dict)
    open_ended: bool = False
    """True where envFrom adds names that the manifest does not list."""

    def reference(self, name: str) -> Mapped | None:
        """What the kubelet puts for $(name); None where it leaves the text as typed."""
        variable = self.variables.get(name)
        if variable is not None:
            return Mapped((Piece(UNKNOWN),)) if variable.value is None else variable.value.without_origins()
        if name in LATE_NAMES or (self.open_ended and name.isupper()):
            return Mapped((Piece(UNKNOWN),))
        return None


def environment(container: Mapping[str, Any]) -> Environment:
    """The container's environment; a later entry of one name wins, and values may refer to earlier names."""
    variables: dict[str, Variable] = {}
    open_ended = bool(container.get("envFrom"))
    for index, entry in enumerate(container.get("env") or ()):
        known = Environment(variables, open_ended)
        if entry.get("valueFrom") is not None:
            value = None
        else:
            value = expand(str(entry.get("value") or ""), Origin("env", index, 0), known)
        variables[str(entry.get("name"))] = Variable(index, value)
    return Environment(variables, open_ended)


def expand(raw: str, origin: Origin | None, names: Environment) -> Mapped:
    """What the kubelet makes of one string of command, args or env."""
    pieces: list[Piece] = []
    at = 0

    def literal(start: int, end: int) -> None:
        if start < end:
            where = None if origin is None else Origin(origin.field, origin.index, origin.offset + start)
            pieces.append(Piece(raw[start:end], where))

    for found in _REFERENCE.finditer(raw):
        name = found[1]
        value = names.reference(name) if name is not None else Mapped((Piece("$"),))
        if value is None:
            continue
        literal(at, found.start())
        pieces.extend(value.pieces)
        at = found.end()
    literal(at, len(raw))
    return Mapped(tuple(pieces))
