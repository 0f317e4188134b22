"""The option strings of `vllm serve` by version, and how its parser resolves what a user typed.

vLLM's parser is argparse with two habits of its own (vllm/utils/argparse_utils.py): underscores in a `--name` count as
dashes up to the first dot, and `-O2` is an optimisation level. Argparse itself accepts any unambiguous prefix of a long
option, and the last of repeated options wins. `serve_flags.tsv` holds the option strings read from vLLM's source
distributions; an option is taken as possible in a version when a neighbouring version that was read has it.
"""

import re
from dataclasses import dataclass
from functools import cache
from importlib import resources

Version = tuple[int, int]
"""(major, minor) of a vLLM release."""


@dataclass(frozen=True, kw_only=True)
class Option:
    """One option string of `vllm serve`."""

    name: str
    kind: str
    """`value`, `bool` (has a --no- twin) or `switch`."""
    action: str
    """The first name of the setting; aliases share it."""
    first: tuple[int, ...]
    last: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Match:
    """What a typed option means."""

    action: str
    kind: str
    negated: bool = False


@dataclass(frozen=True)
class _Table:
    samples: tuple[tuple[int, ...], ...]
    options: tuple[Option, ...]


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))


@cache
def _table() -> _Table:
    text = resources.files(__package__).joinpath("serve_flags.tsv").read_text(encoding="utf-8")
    rows = [line.split("\t") for line in text.splitlines() if line and not line.startswith("#")]
    samples = tuple(_numbers(version) for version in rows[0][1].split())
    options = tuple(
        Option(name=name, kind=kind, action=action, first=_numbers(first), last=_numbers(last))
        for name, kind, action, first, last in rows[2:]
    )
    return _Table(samples, options)


def _neighbours(version: Version | None) -> tuple[tuple[int, ...], ...]:
    """The read versions that tell what `version` has: those of its minor release, else the two around it."""
    samples = _table().samples
    if version is None:
        return samples
    same = tuple(sample for sample in samples if sample[:2] == version)
    if same:
        return same
    below = [sample for sample in samples if sample[:2] < version]
    above = [sample for sample in samples if sample[:2] > version]
    return tuple(below[-1:] + above[:1])


def options(version: Version | None) -> tuple[Option, ...]:
    """Every option string that vLLM of this version may have; None: any version that was read."""
    return _options(_neighbours(version))


@cache
def _options(samples: tuple[tuple[int, ...], ...]) -> tuple[Option, ...]:
    return tuple(
        option for option in _table().options if any(option.first <= sample <= option.last for sample in samples)
    )


@cache
def _strings(samples: tuple[tuple[int, ...], ...]) -> dict[str, Match]:
    strings: dict[str, Match] = {}
    for option in _options(samples):
        strings[option.name] = Match(action=option.action, kind=option.kind)
        if option.kind == "bool" and option.name.startswith("--"):
            twin = "--no-" + option.name.removeprefix("--")
            strings[twin] = Match(action=option.action, kind=option.kind, negated=True)
    return strings


def availability(name: str, version: Version | None) -> bool | None:
    """True: vLLM of this version has the option; False: it has not; None: the read versions do not tell."""
    samples = _neighbours(version)
    hits = [
        any(option.name == name and option.first <= sample <= option.last for option in _table().options)
        for sample in samples
    ]
    if all(hits):
        return True
    return None if any(hits) else False


def first_version(name: str) -> str:
    """The first read version that has the option, as text."""
    return ".".join(str(part) for part in min(option.first for option in _table().options if option.name == name))


def normalise(name: str) -> str:
    """An option name as vLLM's parser sees it: underscores before the first dot become dashes."""
    if not name.startswith("--"):
        return name
    head, dot, rest = name.partition(".")
    return head.replace("_", "-") + dot + rest


def resolve(name: str, version: Version | None, *, with_value: bool = False) -> tuple[Match, ...]:
    """All meanings that argparse may give to a typed option name; empty: unknown, more than one: ambiguous.

    `with_value` tells that the value was glued on with `=`: argparse then completes long names only.
    """
    strings = _strings(_neighbours(version))
    name = normalise(name)
    if name in strings:
        return (strings[name],)
    if name in ("-", "--", "") or (with_value and not name.startswith("--")):
        return ()
    found: list[Match] = []
    for string, match in strings.items():
        if string.startswith(name) and string.startswith("--") == name.startswith("--") and match not in found:
            found.append(match)
    return tuple(found)


_IMAGE = re.compile(r"(?:^|/)(?P<name>[^/:@]+)(?::(?P<tag>[^@/]+))?(?:@[^/]*)?$")
_TAG = re.compile(r"^v?0\.(?P<minor>\d{1,3})(?:\.\d+)?(?:[.+_-].*)?$")


def version_of_image(image: str | None) -> Version | None:
    """The vLLM version that an image reference tells; None where it does not.

    Only images named `vllm` or `vllm-...` number themselves like vLLM; other stacks that carry vLLM (llm-d, LMCache)
    have versions of their own.
    """
    if not image or "lmcache/" in image:
        return None
    found = _IMAGE.search(image)
    if found is None or found["tag"] is None or not re.match(r"vllm(?:$|-)", found["name"]):
        return None
    tag = _TAG.match(found["tag"])
    return (0, int(tag["minor"])) if tag else None
