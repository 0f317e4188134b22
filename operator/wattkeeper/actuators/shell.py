"""Splits a POSIX shell script into simple commands and words, with the position of each.

It knows quotes, escapes, line continuations, comments, operators, redirections, here-documents and expansions, which
is what is needed to find one command and to edit its words without touching any other byte. It runs nothing. Grammar:
POSIX.1-2017, Shell Command Language, sections 2.2, 2.3, 2.6, 2.7, 2.10; `$'...'` and `<(...)` as in bash.
"""

import enum
import re
from dataclasses import dataclass, field

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_BRACED_NAME = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")
_OPERATORS = (";;&", ";;", ";&", "&&", "||", "|&", ";", "&", "|", "(", ")", "\n")
_REDIRECTION = re.compile(r"(?:\d+|\{[A-Za-z_]\w*\})?(?:<<<|<<-|<<|<>|<&|>>|>&|>\||<|>)|&>>|&>")


class ShellError(ValueError):
    """The text is not a script that can be read: quotes do not close, a here-document does not end."""


class Kind(enum.Enum):
    """What a part of a word is."""

    LITERAL = "literal"
    VARIABLE = "variable"
    """`$NAME` or `${NAME}`."""
    ARGUMENTS = "arguments"
    """`$@` or `$*`."""
    COMPUTED = "computed"
    """A value known only when the script runs: `${X:-y}`, `$((1+1))`, `$1`."""
    COMMAND = "command"
    """A command substitution or process substitution."""


@dataclass(frozen=True)
class Part:
    """Part of a word. `text` is the literal text, or the variable's name; `start` and `end` its place."""

    kind: Kind
    text: str
    quoted: bool
    start: int
    end: int


@dataclass(frozen=True)
class Word:
    """One word: from `start` to `end`; `gap` is where the lexeme before it ended."""

    gap: int
    start: int
    end: int
    parts: tuple[Part, ...]

    @property
    def literal(self) -> str | None:
        """The word as the program gets it; None where something in it is expanded."""
        if any(part.kind is not Kind.LITERAL for part in self.parts):
            return None
        return "".join(part.text for part in self.parts)


@dataclass
class Command:
    """A simple command: its words without redirections."""

    words: list[Word] = field(default_factory=list)
    here_document: bool = False
    substitution: bool = False
    """True where a redirection holds a command substitution."""


def commands(script: str) -> list[Command]:
    """All simple commands of the script in order. Raises ShellError where the text does not parse."""
    return _Lexer(script).run()


class _Lexer:
    def __init__(self, script: str) -> None:
        self.script = script
        self.at = 0
        self.gap = 0
        self.current = Command()
        self.done: list[Command] = []
        self.pending: list[tuple[str, bool]] = []
        """Here-documents announced on this line: delimiter, tabs stripped."""

    def run(self) -> list[Command]:
        while self.at < len(self.script):
            self._step()
        self._close()
        if self.pending:
            raise ShellError(f"the here-document {self.pending[0][0]!r} does not end")
        return self.done

    def _step(self) -> None:
        script = self.script
        char = script[self.at]
        if char in " \t\r":
            self.at += 1
        elif script.startswith("\\\n", self.at):
            self.at += 2
        elif char == "#":
            newline = script.find("\n", self.at)
            self.at = len(script) if newline < 0 else newline
        elif redirection := self._redirection():
            self._redirect(redirection)
        elif operator := next((op for op in _OPERATORS if script.startswith(op, self.at)), None):
            self.at += len(operator)
            self._close()
            self.gap = self.at
            if operator == "\n":
                self._skip_here_documents()
        else:
            word = self._word()
            self.current.words.append(word)
            self.gap = word.end

    def _close(self) -> None:
        if self.current.words or self.current.here_document:
            self.done.append(self.current)
        self.current = Command()

    def _redirection(self) -> str | None:
        if self.script.startswith(("<(", ">("), self.at):
            return None
        found = _REDIRECTION.match(self.script, self.at)
        return found[0] if found else None

    def _redirect(self, operator: str) -> None:
        self.at += len(operator)
        while self.script.startswith((" ", "\t", "\\\n"), self.at):
            self.at += 2 if self.script[self.at] == "\\" else 1
        if self.at >= len(self.script) or self.script[self.at] == "\n":
            raise ShellError(f"the redirection {operator!r} has no target")
        target = self._word()
        if operator.lstrip("0123456789").startswith("<<") and not operator.endswith("<<<"):
            self.current.here_document = True
            delimiter = "".join(part.text for part in target.parts)
            self.pending.append((delimiter, operator.endswith("-")))
        if any(part.kind is Kind.COMMAND for part in target.parts):
            self.current.substitution = True
        self.gap = target.end

    def _skip_here_documents(self) -> None:
        while self.pending:
            delimiter, tabs = self.pending.pop(0)
            while True:
                if self.at >= len(self.script):
                    raise ShellError(f"the here-document {delimiter!r} does not end")
                newline = self.script.find("\n", self.at)
                end = len(self.script) if newline < 0 else newline
                line = self.script[self.at : end]
                self.at = min(end + 1, len(self.script))
                if (line.lstrip("\t") if tabs else line) == delimiter:
                    break
        self.gap = self.at

    def _word(self) -> Word:
        start = self.at
        parts: list[Part] = []
        script = self.script
        while self.at < len(script):
            char = script[self.at]
            if script.startswith("\\\n", self.at):
                self.at += 2
            elif script.startswith(("<(", ">("), self.at):
                parts.append(self._substitution(self.at, 2, quoted=False))
            elif char in " \t\r\n;&|()<>":
                break
            elif char == "'":
                parts.append(self._single())
            elif char == '"' or script.startswith('$"', self.at):
                parts.extend(self._double())
            elif script.startswith("$'", self.at):
                parts.append(self._ansi())
            elif char == "\\":
                text = script[self.at + 1 : self.at + 2]
                if not text:
                    raise ShellError("the script ends in a backslash")
                parts.append(Part(Kind.LITERAL, text, True, self.at, self.at + 2))
                self.at += 2
            elif char in "$`":
                parts.append(self._expansion(quoted=False))
            else:
                parts.append(Part(Kind.LITERAL, char, False, self.at, self.at + 1))
                self.at += 1
        if self.at == start:
            raise ShellError(f"a word is missing at character {start}")
        return Word(self.gap, start, self.at, tuple(parts))

    def _single(self) -> Part:
        start = self.at
        end = self.script.find("'", start + 1)
        if end < 0:
            raise ShellError("a single quote does not close")
        self.at = end + 1
        return Part(Kind.LITERAL, self.script[start + 1 : end], True, start, self.at)

    def _ansi(self) -> Part:
        start = self.at
        self.at += 2
        text: list[str] = []
        escaped = False
        while self.at < len(self.script) and self.script[self.at] != "'":
            if self.script[self.at] == "\\":
                escaped = True
                self.at += 1
            text.append(self.script[self.at : self.at + 1])
            self.at += 1
        if self.at >= len(self.script):
            raise ShellError("a single quote does not close")
        self.at += 1
        return Part(Kind.COMPUTED if escaped else Kind.LITERAL, "".join(text), True, start, self.at)

    def _double(self) -> list[Part]:
        script = self.script
        opening = self.at
        self.at += 2 if script[self.at] == "$" else 1
        parts = [Part(Kind.LITERAL, "", True, opening, self.at)]
        while True:
            if self.at >= len(script):
                raise ShellError("a double quote does not close")
            char = script[self.at]
            if char == '"':
                self.at += 1
                return parts
            if char == "\\":
                following = script[self.at + 1 : self.at + 2]
                text = "" if following == "\n" else following if following in '$`"\\' else "\\" + following
                parts.append(Part(Kind.LITERAL, text, True, self.at, self.at + 2))
                self.at += 2
            elif char in "$`":
                parts.append(self._expansion(quoted=True))
            else:
                parts.append(Part(Kind.LITERAL, char, True, self.at, self.at + 1))
                self.at += 1

    def _expansion(self, *, quoted: bool) -> Part:
        """What begins with `$` or a backquote at the current place."""
        script, start = self.script, self.at
        if script[start] == "`":
            end = start + 1
            while end < len(script) and script[end] != "`":
                end += 2 if script[end] == "\\" else 1
            if end >= len(script):
                raise ShellError("a backquote does not close")
            self.at = end + 1
            return Part(Kind.COMMAND, script[start : self.at], quoted, start, self.at)
        if script.startswith("$((", start):
            return self._substitution(start, 3, quoted=quoted, kind=Kind.COMPUTED)
        if script.startswith("$(", start):
            return self._substitution(start, 2, quoted=quoted)
        if name := _BRACED_NAME.match(script, start + 1):
            self.at = name.end()
            return Part(Kind.VARIABLE, name[1], quoted, start, self.at)
        if script.startswith("${", start):
            return self._braces(start, quoted=quoted)
        if name := _NAME.match(script, start + 1):
            self.at = name.end()
            return Part(Kind.VARIABLE, name[0], quoted, start, self.at)
        following = script[start + 1 : start + 2]
        if following and following in "@*":
            self.at = start + 2
            return Part(Kind.ARGUMENTS, script[start : self.at], quoted, start, self.at)
        if following and (following.isdigit() or following in "#?$!-"):
            self.at = start + 2
            return Part(Kind.COMPUTED, script[start : self.at], quoted, start, self.at)
        self.at = start + 1
        return Part(Kind.LITERAL, "$", quoted, start, self.at)

    def _braces(self, start: int, *, quoted: bool) -> Part:
        inner = start + 2
        kind = Kind.COMPUTED
        while inner < len(self.script) and self.script[inner] != "}":
            char = self.script[inner]
            if char == "\\":
                inner += 2
            elif char in "\"'" and not (char == "'" and quoted):
                inner = self._skip_quotes(inner)
            elif self.script.startswith(("$(", "`"), inner):
                kind = Kind.COMMAND
                inner = self._matching(inner + 2) if char == "$" else self.script.find("`", inner + 1) + 1
                if inner == 0:
                    raise ShellError("a backquote does not close")
            elif self.script.startswith("${", inner):
                self.at = inner
                inner = self._braces(inner, quoted=quoted).end
            else:
                inner += 1
        if inner >= len(self.script):
            raise ShellError("a ${ does not close")
        self.at = inner + 1
        text = self.script[start : self.at]
        return Part(Kind.ARGUMENTS if text in ("${@}", "${*}") else kind, text, quoted, start, self.at)

    def _substitution(self, start: int, opening: int, *, quoted: bool, kind: Kind = Kind.COMMAND) -> Part:
        self.at = self._matching(start + opening)
        if opening == 3:
            if not self.script.startswith(")", self.at):
                kind = Kind.COMMAND  # `$( (...) ...)` written without the space
                self.at = self._matching(start + 2)
            else:
                self.at += 1
        text = self.script[start : self.at]
        if "$(" in text[2:] or "`" in text:
            kind = Kind.COMMAND
        return Part(kind, text, quoted, start, self.at)

    def _matching(self, at: int) -> int:
        """The place after the parenthesis that closes the one before `at`; quotes and nesting are respected."""
        depth = 1
        while at < len(self.script):
            char = self.script[at]
            if char == "\\":
                at += 2
            elif char in "\"'":
                at = self._skip_quotes(at)
            else:
                depth += {"(": 1, ")": -1}.get(char, 0)
                at += 1
                if depth == 0:
                    return at
        raise ShellError("a parenthesis does not close")

    def _skip_quotes(self, at: int) -> int:
        quote = self.script[at]
        at += 1
        while at < len(self.script) and self.script[at] != quote:
            if quote == '"' and self.script.startswith("$(", at):
                at = self._matching(at + 2)
            else:
                at += 2 if self.script[at] == "\\" and quote == '"' else 1
        if at >= len(self.script):
            raise ShellError("a quote does not close")
        return at + 1
