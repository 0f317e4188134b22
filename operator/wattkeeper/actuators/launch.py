"""Finds the `vllm serve` command in a container: its arguments as vLLM gets them, and where each may be edited.

Handled: the image's entry point with args; everything in command, or command and args; `sh -c` and `bash -c` scripts;
`python -m vllm.entrypoints.openai.api_server`; scripts that hand on `"$@"`; and scripts that end in
`eval "exec vllm serve ... ${VLLM_ADDITIONAL_ARGS} $@"`, as KServe's LLMInferenceService writes them.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from wattkeeper.actuators import scripts
from wattkeeper.actuators.edits import Append, Site
from wattkeeper.actuators.text import Environment, Mapped, Origin, environment, expand
from wattkeeper.domain.errors import PatchRefusedError

SHELLS = frozenset({"sh", "bash", "dash", "ash", "zsh", "ksh"})
_SCRIPT_FILE = re.compile(r"\.(?:sh|py|bash)$")


@dataclass(frozen=True, kw_only=True)
class Token:
    """One argument as vLLM gets it. `site` is None where it cannot be removed on its own."""

    text: str
    site: Site | None


@dataclass(frozen=True, kw_only=True)
class Launch:
    """The engine's command line in one container."""

    tokens: tuple[Token, ...]
    append: Append | None
    """Where new arguments go so that they win; None where `refusal` says why there is no such place."""
    refusal: tuple[str, str] | None = None
    """Reason and message where the arguments can be read but not edited."""
    warnings: tuple[str, ...] = ()
    assumed: bool = False
    """True where only the absence of a command suggests that the image's entry point is vLLM's."""

    @property
    def texts(self) -> tuple[str, ...]:
        """The arguments alone."""
        return tuple(token.text for token in self.tokens)


@dataclass(frozen=True)
class _Element:
    """One element of command or args."""

    field: str
    index: int
    mapped: Mapped
    raw: str

    @property
    def whole(self) -> Site:
        return Site(field=self.field, index=self.index)


def find(container: Mapping[str, Any]) -> Launch:
    """The engine's command line of this container.

    Raises PatchRefusedError (UnknownLauncher, SeveralEngines, UnreadableScript) where it cannot be found for certain.
    """
    names = environment(container)
    command = _elements(container, "command", names)
    args = _elements(container, "args", names)
    argv = [*command, *args]
    texts = [element.mapped.text for element in argv]
    start = scripts.engine_start(texts)
    if start is not None:
        return _from_list(argv, start, tail="args" if args or len(command) < start else "command")
    shell = _shell_script(texts)
    if shell is not None:
        return _from_script(argv, shell, names)
    if command or (texts and (scripts.is_program(texts[0]) or _SCRIPT_FILE.search(texts[0]))):
        raise PatchRefusedError(
            "UnknownLauncher",
            f"the container starts {' '.join(texts[:4])!r}, which is not a `vllm serve` command that can be read; "
            "start vLLM with `vllm serve`, or set the arguments yourself (mode Recommend)",
        )
    begin = 1 if texts[:1] == ["serve"] else 0
    launch = _from_list(argv, begin, tail="args")
    image = str(container.get("image") or "")
    if "vllm" in image.rsplit("/", 1)[-1]:
        return launch
    note = f"the entry point of image {image or '(none)'} is taken to be `vllm serve`: the container sets no command"
    return replace(launch, warnings=(*launch.warnings, note), assumed=True)


def is_engine(container: Mapping[str, Any]) -> bool:
    """True where command, args or the image's name say that this container runs vLLM."""
    try:
        return not find(container).assumed
    except PatchRefusedError as refused:
        return refused.reason != "UnknownLauncher"


def _elements(container: Mapping[str, Any], name: str, names: Environment) -> list[_Element]:
    values = [str(value) for value in container.get(name) or ()]
    return [
        _Element(name, index, expand(value, Origin(name, index, 0), names), value) for index, value in enumerate(values)
    ]


def _from_list(argv: Sequence[_Element], start: int, *, tail: str) -> Launch:
    arguments = argv[start:]
    tokens = tuple(Token(text=element.mapped.text, site=element.whole) for element in arguments)
    stop = next((element for element in arguments if element.mapped.text == "--"), None)
    if stop is not None:
        return Launch(tokens=tokens, append=Append(field=stop.field, index=stop.index))
    last = max((element.index + 1 for element in argv if element.field == tail), default=0)
    return Launch(tokens=tokens, append=Append(field=tail, index=last))


def _shell_script(texts: Sequence[str]) -> tuple[str, int] | None:
    """(name of the shell, position of its script) of a `sh -c SCRIPT` argv."""
    at = next((index for index, text in enumerate(texts) if scripts.program(text) in SHELLS), None)
    if at is None or (at > 0 and not scripts.is_wrapper(texts[0]) and scripts.program(texts[0]) != "busybox"):
        return None
    name = scripts.program(texts[at])
    at += 1
    has_script = False
    while at < len(texts) and texts[at][:1] in ("-", "+") and texts[at] not in ("-", "--"):
        option = texts[at]
        if not option.startswith("--"):
            has_script = has_script or ("c" in option[1:] and option[0] == "-")
            at += option.count("o")
        at += 1
    if not has_script:
        return None
    at += 1 if texts[at : at + 1] == ["--"] else 0
    return (name, at) if at < len(texts) else None


def _from_script(argv: Sequence[_Element], shell: tuple[str, int], names: Environment) -> Launch:
    name, at = shell
    element = argv[at]
    arguments = [(one.mapped, one.whole) for one in argv[at + 2 :]]
    reader = scripts.Reader(script=element.mapped, names=names, arguments=arguments)
    try:
        engine = reader.engine()
    except scripts.ShellError as error:
        raise PatchRefusedError(
            "UnreadableScript", f"the start script cannot be read: {error}; check its quotes"
        ) from error
    warnings = list(engine.warnings)
    if not engine.replaces_shell and not (name == "bash" and engine.alone):
        warnings.append(
            f"the start script runs vLLM without `exec`: {name} may stay process 1 and keep SIGTERM from vLLM"
        )
    after = argv[at + 1 :]
    if not engine.takes_arguments and len(after) > 1:
        warnings.append("the elements after the script are not handed on to vLLM: the script does not use $@")
    tokens = tuple(Token(text=text, site=site) for text, site in engine.tokens)
    append: Append | None = None
    refusal = engine.refusal
    if engine.append_variable is not None:
        append = Append(field="env", index=engine.append_variable, name=scripts.EXTRA_ARGUMENTS)
    elif engine.append_arguments and after:
        tail = "command" if after[-1].field == "command" and len(after) > 1 else "args"
        append = Append(field=tail, index=sum(1 for one in argv if one.field == tail))
    elif engine.append_at is not None:
        position = _raw_position(element, engine.append_at)
        append = Append(field=element.field, index=element.index, position=position, separator=engine.separator)
    elif refusal is None:
        refusal = (
            "NoPlaceForArguments",
            "the script uses $@ but no element after it stands for $0; add `--` after the script",
        )
    return Launch(tokens=tokens, append=append, refusal=refusal, warnings=tuple(warnings))


def _raw_position(element: _Element, offset: int) -> int:
    """The place in the manifest's string of a place in its expansion (the end of a word)."""
    at = 0
    position = 0
    for index, piece in enumerate(element.mapped.pieces):
        if at >= offset:
            break
        if piece.origin is not None:
            position = piece.origin.offset + min(offset - at, len(piece.text))
        else:
            later = (other.origin.offset for other in element.mapped.pieces[index + 1 :] if other.origin is not None)
            position = next(later, len(element.raw))
        at += len(piece.text)
    return position
