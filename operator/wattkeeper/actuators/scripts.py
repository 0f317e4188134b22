"""Finds the engine's command in a start script and tells what may be edited in it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from wattkeeper.actuators.arguments import UNKNOWN
from wattkeeper.actuators.edits import Site
from wattkeeper.actuators.shell import Command, Kind, Part, ShellError, Word, commands
from wattkeeper.actuators.text import Environment, Mapped, Piece
from wattkeeper.domain.errors import PatchRefusedError

__all__ = ["EXTRA_ARGUMENTS", "Engine", "Reader", "ShellError", "engine_start", "is_program", "is_wrapper", "program"]

EXTRA_ARGUMENTS = "VLLM_ADDITIONAL_ARGS"
"""The variable through which KServe's LLMInferenceService hands more arguments to vLLM."""

_WRAPPERS = frozenset(
    {"command", "chrt", "ddtrace-run", "dumb-init", "env", "exec", "gosu", "ionice", "nice", "nohup", "nsys", "numactl"}
    | {"opentelemetry-instrument", "setsid", "stdbuf", "taskset", "time", "timeout", "tini", "uv"}
)
_RESERVED = frozenset({"!", "{", "do", "elif", "else", "if", "then", "time", "until", "while"})
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*\+?=")
_PYTHON = re.compile(r"python(?:\d(?:\.\d+)?)?")
_API_SERVER = "vllm.entrypoints.openai.api_server"
_MODULES_WITH_SERVE = frozenset({"vllm", "vllm.entrypoints.cli.main"})
_SET_IN_SCRIPT = re.compile(r"(?:^|[\s;&|(])(?:([A-Za-z_]\w*)\+?=|(?:for|read|unset)\s+(?:-\w+\s+)*([A-Za-z_]\w*))")
_CONTINUATION = re.compile(r"[ \t]*\\\n[ \t]*")
_SPACE = re.compile(r"[ \t\n]+")


def program(word: str) -> str:
    """The name of a program without its folder."""
    return word.rsplit("/", 1)[-1]


def is_wrapper(word: str) -> bool:
    """True for programs that run the command they are given (`env`, `tini`, `numactl` ...)."""
    return program(word) in _WRAPPERS


def is_program(word: str) -> bool:
    """True for words that start some program, and so are no model name."""
    name = program(word)
    shells = {"sh", "bash", "dash", "ash", "zsh", "ksh", "busybox"}
    return is_wrapper(word) or name in shells | {"ray", "torchrun", "sleep"} or bool(_PYTHON.fullmatch(name))


def engine_start(words: Sequence[str]) -> int | None:
    """The position of vLLM's first argument in one command; None where the command does not start vLLM.

    Raises PatchRefusedError where vLLM appears in it, but behind a program that is not known to pass arguments on.
    """
    first = next((at for at, word in enumerate(words) if word not in _RESERVED and not _ASSIGNMENT.match(word)), None)
    if first is None:
        return None
    starts = [start for at in range(first, len(words)) if (start := _engine_at(words, at)) is not None]
    if not starts:
        return None
    if len(starts) > 1:
        raise _several()
    if _engine_at(words, first) is None and not is_wrapper(words[first]):
        raise PatchRefusedError(
            "UnknownLauncher", f"vLLM is started through {words[first]!r}, which is not known to pass arguments on"
        )
    return starts[0]


def _engine_at(words: Sequence[str], at: int) -> int | None:
    name = program(words[at])
    if name == "vllm" and words[at + 1 : at + 2] == ["serve"]:
        return at + 2
    if not _PYTHON.fullmatch(name):
        return None
    flag = next((index for index in range(at + 1, len(words)) if not words[index].startswith("-")), len(words)) - 1
    if flag <= at or not words[flag].endswith("m"):
        return None
    module = words[flag + 1 : flag + 2]
    if module == [_API_SERVER]:
        return flag + 2
    if module and module[0] in _MODULES_WITH_SERVE and words[flag + 2 : flag + 3] == ["serve"]:
        return flag + 3
    return None


def _several() -> PatchRefusedError:
    return PatchRefusedError(
        "SeveralEngines", "the start script runs `vllm serve` more than once; it is not clear which one to change"
    )


@dataclass(frozen=True, kw_only=True)
class Engine:
    """The engine's command in a script."""

    tokens: tuple[tuple[str, Site | None], ...]
    replaces_shell: bool
    """True where `exec` puts vLLM in the shell's place."""
    alone: bool
    """True where the script holds no other command."""
    takes_arguments: bool
    """True where `$@` hands the elements after the script on to vLLM."""
    append_at: int | None = None
    """Place in the expanded script after the last argument."""
    separator: str = " "
    append_variable: int | None = None
    """Entry of the variable that takes more arguments; -1 where it is to be made."""
    append_arguments: bool = False
    refusal: tuple[str, str] | None = None
    warnings: tuple[str, ...] = ()


class Reader:
    """Reads one script. `arguments` are the elements after `$0`, each with its place."""

    def __init__(self, *, script: Mapped, names: Environment, arguments: Sequence[tuple[Mapped, Site]]) -> None:
        self.script = script
        self.text = script.text
        self.names = names
        self.arguments = arguments
        self.assigned = {found[1] or found[2] for found in _SET_IN_SCRIPT.finditer(self.text)}

    def engine(self) -> Engine:
        """The one engine command. Raises ShellError or PatchRefusedError."""
        found: list[tuple[Command, int | None]] = []
        all_commands = commands(self.text)
        for command in all_commands:
            words = [word.literal or UNKNOWN for word in command.words]
            if words[:1] == ["eval"]:
                if self._evaluated(command) is not None:
                    found.append((command, None))
                continue
            start = engine_start(words)
            if start is not None:
                found.append((command, start))
        if len(found) > 1:
            raise _several()
        if not found:
            raise PatchRefusedError(
                "UnknownLauncher",
                "the start script has no plain `vllm serve` command"
                + (" (vllm is named inside quotes or a nested shell)" if "vllm" in self.text else ""),
            )
        command, start = found[0]
        alone = len(all_commands) == 1
        if start is None:
            return self._from_eval(command, alone=alone)
        return self._from_command(command, start, alone=alone)

    # -- a plain command ---------------------------------------------------------------------------------------

    def _from_command(self, command: Command, start: int, *, alone: bool) -> Engine:
        arguments = command.words[start:]
        tokens: list[tuple[str, Site | None]] = []
        for word in arguments:
            tokens.extend(self._fields(word))
        stop = next((word for word in arguments if word.literal == "--"), None)
        last = command.words[-1]
        hands_on = any(part.kind is Kind.ARGUMENTS for word in arguments for part in word.parts)
        gaps = [self.text[word.gap : word.start] for word in arguments]
        separator = next((gap for gap in reversed(gaps) if _CONTINUATION.fullmatch(gap)), " ")
        return Engine(
            tokens=tuple(tokens),
            replaces_shell=command.words[0].literal == "exec",
            alone=alone,
            takes_arguments=hands_on,
            append_at=last.end if stop is None else stop.gap,
            separator=separator,
            append_arguments=hands_on and all(part.kind is Kind.ARGUMENTS for part in last.parts if part.text),
            refusal=_refusal(command, arguments),
        )

    def _fields(self, word: Word) -> list[tuple[str, Site | None]]:
        """The arguments that one word becomes, each with its place where it is the word's only one."""
        real = [part for part in word.parts if part.text or part.kind is not Kind.LITERAL]
        if len(real) == 1 and real[0].kind is Kind.ARGUMENTS:
            return self._handed_on(quoted=real[0].quoted)
        fields: list[str] = []
        current: str | None = None
        for part in word.parts:
            text = self._value(part)
            if part.quoted or part.kind is not Kind.VARIABLE:
                current = (current or "") + text
                continue
            pieces = _SPACE.split(text)
            current = (current or "") + pieces[0] if pieces[0] or current is not None else None
            for piece in pieces[1:]:
                if current is not None:
                    fields.append(current)
                current = piece or None
        if current is not None:
            fields.append(current)
        if len(fields) != 1:
            return [(field, None) for field in fields]
        return [(fields[0], _site(self.script, word))]

    def _handed_on(self, *, quoted: bool) -> list[tuple[str, Site | None]]:
        fields: list[tuple[str, Site | None]] = []
        for mapped, site in self.arguments:
            pieces = [mapped.text] if quoted else [piece for piece in _SPACE.split(mapped.text) if piece]
            fields.extend((piece, site if len(pieces) == 1 else None) for piece in pieces)
        return fields

    def _value(self, part: Part) -> str:
        if part.kind is Kind.LITERAL:
            return part.text
        if part.kind is Kind.ARGUMENTS:
            return " ".join(mapped.text for mapped, _ in self.arguments)
        if part.kind is Kind.VARIABLE and part.text not in self.assigned:
            variable = self.names.variables.get(part.text)
            if variable is not None and variable.value is not None:
                return variable.value.text
        return UNKNOWN

    # -- eval --------------------------------------------------------------------------------------------------

    def _evaluated(self, command: Command) -> Mapped | None:
        """The text that an eval runs, where it starts vLLM."""
        words = [Mapped.join([self._mapped_value(part) for part in word.parts]) for word in command.words[1:]]
        text = Mapped.join(words, " ")
        inner = commands(text.text)
        starts = [engine_start([word.literal or UNKNOWN for word in one.words]) for one in inner]
        return text if any(start is not None for start in starts) else None

    def _mapped_value(self, part: Part) -> Mapped:
        if part.kind is Kind.ARGUMENTS:
            return Mapped.join([mapped for mapped, _ in self.arguments], " ")
        if part.kind is Kind.VARIABLE and part.text == EXTRA_ARGUMENTS and part.text not in self.assigned:
            variable = self.names.variables.get(part.text)
            if variable is None and not self.names.open_ended:
                return Mapped()
            if variable is not None and variable.value is not None:
                return variable.value
        return Mapped((Piece(self._value(part)),))

    def _from_eval(self, command: Command, *, alone: bool) -> Engine:
        text = self._evaluated(command)
        inner = commands(text.text) if text is not None else []
        found = [
            (one, start)
            for one in inner
            if (start := engine_start([word.literal or UNKNOWN for word in one.words])) is not None
        ]
        if text is None or len(found) != 1:
            raise _several()
        one, start = found[0]
        tokens = tuple(
            ("".join(UNKNOWN if part.kind is not Kind.LITERAL else part.text for part in word.parts), _site(text, word))
            for word in one.words[start:]
        )
        parts = [part for word in command.words for part in word.parts]
        hands_on = any(part.kind is Kind.ARGUMENTS for part in parts)
        variable = self.names.variables.get(EXTRA_ARGUMENTS)
        by_variable = any(part.kind is Kind.VARIABLE and part.text == EXTRA_ARGUMENTS for part in parts) and (
            not self.names.open_ended if variable is None else variable.value is not None
        )
        place = None
        if by_variable:
            place = -1 if variable is None else variable.index
        return Engine(
            tokens=tokens,
            replaces_shell=one.words[0].literal == "exec",
            alone=alone,
            takes_arguments=hands_on,
            append_variable=place,
            append_arguments=hands_on and place is None,
            refusal=None
            if by_variable or hands_on
            else (
                "EvalNotEditable",
                f"the script's eval takes neither {EXTRA_ARGUMENTS} nor $@: no place for arguments",
            ),
        )


def _site(text: Mapped, word: Word) -> Site | None:
    """Where a word stands in the manifest, with the gap before it; None where it is not one run of typed text."""
    own = text.span(word.start, word.end)
    if own is None:
        return None
    first, length = own
    gap = text.span(word.gap, word.start) if word.gap < word.start else None
    start = first.offset
    if gap is not None and gap[0].field == first.field and gap[0].index == first.index:
        start = gap[0].offset
    return Site(field=first.field, index=first.index, start=start, end=first.offset + length)


def _refusal(command: Command, arguments: Sequence[Word]) -> tuple[str, str] | None:
    if command.here_document:
        return ("HereDocument", "the `vllm serve` command reads a here-document; move it out of the command")
    if command.substitution or any(part.kind is Kind.COMMAND for word in arguments for part in word.parts):
        return (
            "CommandSubstitution",
            "the `vllm serve` command holds $(...) or backquotes, so its arguments are known only when it runs; "
            "put the value into an environment variable",
        )
    return None
