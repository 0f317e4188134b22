"""Reads the command line of `vllm serve` as its parser does, with the position of every token of interest.

A token may hold `UNKNOWN` characters in place of text that only the running pod knows (a Secret, a shell variable that
the script sets); what depends on them reads as not known, never as a default.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from wattkeeper.actuators import flags

UNKNOWN = "\ue000"
"""Stands for text that cannot be known from the manifest."""

_NEGATIVE_NUMBER = re.compile(r"^-\d+$|^-\d*\.\d+$")
_HUMAN = re.compile(r"(\d+(?:\.\d+)?)([kKmMgGtT])")
_DECIMAL = {"k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}

Value = int | float | str | bool


def human_integer(text: str) -> int:
    """An integer as vLLM's parser reads it: 8k = 8000, 8K = 8192, 1.5k = 1500.

    Raises ValueError where vLLM refuses the text too (`2Gi`, `1.5K`).
    """
    text = text.strip()
    match = _HUMAN.fullmatch(text)
    if match is None:
        return int(text)
    number, suffix = match.groups()
    if suffix in _DECIMAL:
        return int(float(number) * _DECIMAL[suffix])
    return int(number) * _BINARY[suffix]


def _model_length(text: str) -> int | None:
    """`auto` and -1 let vLLM choose: not known here."""
    if text.strip().lower() in ("auto", "-1"):
        return None
    return human_integer(text)


def _fraction(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is not a finite number")
    return value


def _truth(text: str) -> bool:
    """`=true` and `=false`, which releases before 0.9 accept for some switches."""
    lowered = text.strip().lower()
    if lowered not in ("true", "false", "1", "0"):
        raise ValueError(f"{text} is neither true nor false")
    return lowered in ("true", "1")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One engine setting: its option and how its text is read."""

    option: str
    parse: Callable[[str], Value | None]


SETTINGS: dict[str, Setting] = {
    "max_num_seqs": Setting(option="--max-num-seqs", parse=int),
    "max_num_active_seqs": Setting(option="--max-num-active-seqs", parse=int),
    "max_num_batched_tokens": Setting(option="--max-num-batched-tokens", parse=human_integer),
    "max_model_len": Setting(option="--max-model-len", parse=_model_length),
    "gpu_memory_utilization": Setting(option="--gpu-memory-utilization", parse=_fraction),
    "kv_cache_memory_bytes": Setting(option="--kv-cache-memory-bytes", parse=human_integer),
    "kv_cache_dtype": Setting(option="--kv-cache-dtype", parse=str),
    "block_size": Setting(option="--block-size", parse=int),
    "enable_prefix_caching": Setting(option="--enable-prefix-caching", parse=_truth),
    "enable_chunked_prefill": Setting(option="--enable-chunked-prefill", parse=_truth),
    "tensor_parallel_size": Setting(option="--tensor-parallel-size", parse=int),
    "pipeline_parallel_size": Setting(option="--pipeline-parallel-size", parse=int),
    "data_parallel_size": Setting(option="--data-parallel-size", parse=int),
    "num_gpu_blocks_override": Setting(option="--num-gpu-blocks-override", parse=int),
    "scheduling_policy": Setting(option="--scheduling-policy", parse=str),
}
"""By field name of EngineSettings (the last two are no part of them: read for warnings, and to be shown)."""

_BY_OPTION = {setting.option: field for field, setting in SETTINGS.items()}


@dataclass(frozen=True, kw_only=True)
class Occurrence:
    """One place where the command line sets a setting."""

    field: str
    text: str | None
    """The value as typed; None for a bare switch or where the value is missing."""
    negated: bool
    tokens: tuple[int, ...]
    """Positions of the tokens that spell it: one for `--flag=value`, two for `--flag value`."""
    missing: bool = False
    """The option needs a value and none follows: vLLM would exit with status 2."""

    @property
    def known(self) -> bool:
        """False where the value depends on something outside the manifest."""
        return self.text is None or UNKNOWN not in self.text

    def value(self) -> Value | None:
        """The value vLLM would use. Raises ValueError where vLLM would refuse the text."""
        if self.text is None:
            return not self.negated
        if not self.known:
            return None
        return SETTINGS[self.field].parse(self.text)


@dataclass(frozen=True, kw_only=True)
class CommandLine:
    """What a command line says about the settings of interest."""

    occurrences: tuple[Occurrence, ...]
    ambiguous: tuple[tuple[str, tuple[str, ...]], ...]
    """Typed prefixes that may mean several settings, with the fields of interest among them."""
    config_file: bool
    """True where `--config FILE` adds settings that the manifest does not show (the command line wins over them)."""

    def of(self, field: str) -> tuple[Occurrence, ...]:
        """Every occurrence of one setting, in order; the last one wins."""
        return tuple(occurrence for occurrence in self.occurrences if occurrence.field == field)


def _option_like(word: str, version: flags.Version | None) -> bool:
    """True where argparse takes the token as an option and not as the value of the option before it."""
    if not word.startswith("-") or word == "-" or _NEGATIVE_NUMBER.match(word):
        return False
    name, equals, _ = word.partition("=")
    return " " not in word or bool(flags.resolve(name, version, with_value=bool(equals)))


def read(tokens: Sequence[str], version: flags.Version | None) -> CommandLine:
    """Read the tokens after `vllm serve`, as version `version` (None: unknown) of vLLM would."""
    occurrences: list[Occurrence] = []
    ambiguous: list[tuple[str, tuple[str, ...]]] = []
    config_file = False
    visible = _without_nested_keys(tokens)
    position = 0
    while position < len(visible):
        here = visible[position]
        word = tokens[here]
        position += 1
        if word == "--":
            break
        if not _option_like(word, version):
            continue
        name, equals, text = word.partition("=")
        matches = flags.resolve(name, version, with_value=bool(equals))
        config_file = config_file or any(match.action == "--config" for match in matches)
        fields = tuple(_BY_OPTION[match.action] for match in matches if match.action in _BY_OPTION)
        if not fields:
            continue
        if len(matches) > 1:
            ambiguous.append((name, fields))
            continue
        following = visible[position] if position < len(visible) else None
        occurrence = _occurrence(fields[0], matches[0], here, text if equals else None, following, tokens, version)
        position += len(occurrence.tokens) - 1
        occurrences.append(occurrence)
    return CommandLine(occurrences=tuple(occurrences), ambiguous=tuple(ambiguous), config_file=config_file)


def _without_nested_keys(tokens: Sequence[str]) -> list[int]:
    """The positions that argparse sees: vLLM takes `--config.key value` pairs out first, whatever the value."""
    visible: list[int] = []
    position = 0
    while position < len(tokens):
        name, equals, _ = tokens[position].partition("=")
        nested = name.startswith("-") and "." in name and not _NEGATIVE_NUMBER.match(name)
        if not nested:
            visible.append(position)
        position += 2 if nested and not equals else 1
    return visible


def _occurrence(
    field: str,
    match: flags.Match,
    here: int,
    glued: str | None,
    following: int | None,
    tokens: Sequence[str],
    version: flags.Version | None,
) -> Occurrence:
    if glued is not None or match.kind != "value":
        return Occurrence(field=field, text=glued, negated=match.negated, tokens=(here,))
    if following is None or tokens[following] == "--" or _option_like(tokens[following], version):
        return Occurrence(field=field, text=None, negated=False, tokens=(here,), missing=True)
    return Occurrence(field=field, text=tokens[following], negated=False, tokens=(here, following))


def canonical(field: str, value: Value) -> str:
    """The one spelling that is written: `--flag=value`, plain digits, accepted by every release that has the flag."""
    return f"{SETTINGS[field].option}={value!r}" if isinstance(value, float) else f"{SETTINGS[field].option}={value}"
