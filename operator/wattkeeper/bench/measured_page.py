"""A Markdown page whose tables come from the commands that stand above them.

A block of commands is followed by a pair of marks, between which what the commands found is put:

    <!-- measured NAME [picture ...] -->
    ...
    <!-- end -->
"""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from wattkeeper.domain.errors import DataFileError

_BLOCK = re.compile(
    r"^```bash\n(?P<commands>[^`]*)^```\n\n<!-- measured (?P<name>[a-z0-9-]+)(?P<pictures>(?: [a-z]+)*) -->\n"
    r"(?P<body>.*?)^<!-- end -->$",
    flags=re.MULTILINE | re.DOTALL,
)
_MARK = re.compile(r"^<!-- measured ", flags=re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Block:
    """Commands and where their answer goes."""

    name: str
    pictures: tuple[str, ...]
    """Kinds of pictures to show, by the end of their file names."""
    commands: tuple[tuple[str, ...], ...]
    """Arguments of `wattkeeper replay`, one tuple per command."""

    def labels(self) -> tuple[str, ...]:
        """What each command has that not all have; of options with a value, both."""
        parts = [_options(command) for command in self.commands]
        common = set.intersection(*map(set, parts))
        return tuple(", ".join(each for each in part if each not in common) or "none of these" for part in parts)


def blocks(text: str, *, page: str) -> tuple[Block, ...]:
    """All blocks of a page, in order.

    Raises DataFileError: there is none, a mark stands below no commands, commands are others, a name comes twice.
    """
    found = tuple(_block(match, page) for match in _BLOCK.finditer(text))
    if not found or len(found) != len(_MARK.findall(text)):
        raise DataFileError(
            f"{page}: {len(_MARK.findall(text))} marks `<!-- measured NAME -->`, of which {len(found)} stand below a "
            "block of bash and have an `<!-- end -->`; all of them must, and one at least"
        )
    names = [block.name for block in found]
    if len(set(names)) != len(names):
        raise DataFileError(f"{page}: each measured block needs a name of its own: {', '.join(names)}")
    return found


def filled(text: str, answers: Mapping[str, str]) -> str:
    """The page with what was found put in by name; other blocks stay as they are."""

    def put(match: "re.Match[str]") -> str:
        if match["name"] not in answers:
            return match[0]
        start = match.start("body") - match.start()
        return f"{match[0][:start]}\n{answers[match['name']]}\n\n<!-- end -->"

    return _BLOCK.sub(put, text)


def _block(match: "re.Match[str]", page: str) -> Block:
    lines = match["commands"].replace("\\\n", " ").splitlines()
    commands = [tuple(shlex.split(line)) for line in lines if line.strip()]
    for words in commands:
        if words[:2] != ("wattkeeper", "replay"):
            raise DataFileError(f"{page}: measured block {match['name']} has a command that is no `wattkeeper replay`")
    return Block(
        name=match["name"],
        pictures=tuple(match["pictures"].split()),
        commands=tuple(words[2:] for words in commands),
    )


def _options(command: Sequence[str]) -> list[str]:
    """Options with their values, in order."""
    found: list[str] = []
    for word in command:
        if found and found[-1].startswith("--") and " " not in found[-1] and not word.startswith("--"):
            found[-1] = f"{found[-1]} {word}"
        else:
            found.append(word)
    return found
