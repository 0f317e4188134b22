"""Quantities in the forms Kubernetes users type, as pydantic types whose value is a plain number in the base unit.

`500ms` -> 0.5 seconds, `350W` -> 350.0 watts, `1980MHz` -> 1980.0 MHz, `20Gi` -> 21474836480 bytes. On the wire they
stay strings with a rule, so that the API server rejects a wrong form before the operator sees it.
"""

import re
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

_DURATION_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_BYTE_UNITS = {
    "": 1,
    "k": 10**3,
    "M": 10**6,
    "G": 10**9,
    "T": 10**12,
    "Ki": 2**10,
    "Mi": 2**20,
    "Gi": 2**30,
    "Ti": 2**40,
}

DURATION_PATTERN = r"^([0-9]+(\.[0-9]+)?(ms|s|m|h))+$"
POWER_PATTERN = r"^[1-9][0-9]{1,4}W$"
CLOCK_PATTERN = r"^[1-9][0-9]{2,4}MHz$"
BYTES_PATTERN = r"^[1-9][0-9]*(k|M|G|T|Ki|Mi|Gi|Ti)?$"

DURATION_FORM = "not a duration: write for example 500ms, 30s, 10m or 1h30m"
POWER_FORM = "not a power: write whole watts, for example 350W"
CLOCK_FORM = "not a clock: write whole megahertz, for example 1980MHz"
BYTES_FORM = "not an amount of memory: write for example 20Gi or 500M"


def parse_duration_seconds(text: str) -> float:
    """Seconds of `500ms`, `30s`, `1h30m`. Raises ValueError on any other form."""
    if not re.match(DURATION_PATTERN, text):
        raise ValueError(f"{text!r} is {DURATION_FORM}")
    return sum(float(value) * _DURATION_UNITS[unit] for value, unit in re.findall(r"([0-9.]+)(ms|s|m|h)", text))


def parse_watts(text: str) -> float:
    """Watts of `350W`. Raises ValueError on any other form."""
    if not re.match(POWER_PATTERN, text):
        raise ValueError(f"{text!r} is {POWER_FORM}")
    return float(text.removesuffix("W"))


def parse_mhz(text: str) -> float:
    """MHz of `1980MHz`. Raises ValueError on any other form."""
    if not re.match(CLOCK_PATTERN, text):
        raise ValueError(f"{text!r} is {CLOCK_FORM}")
    return float(text.removesuffix("MHz"))


def parse_bytes(text: str) -> int:
    """Bytes of `20Gi` or `500M`. Raises ValueError on any other form."""
    match = re.match(r"^([1-9][0-9]*)([A-Za-z]*)$", text)
    if not re.match(BYTES_PATTERN, text) or match is None:
        raise ValueError(f"{text!r} is {BYTES_FORM}")
    return int(match[1]) * _BYTE_UNITS[match[2]]


def format_duration(seconds: float) -> str:
    """Write seconds to the millisecond in the largest fitting unit: 0.5 -> `500ms`, 90 -> `90s`, 3600 -> `1h`."""
    if seconds >= 1 and abs(seconds - round(seconds)) < 5e-4:
        whole = round(seconds)
        for unit, size in (("h", 3600), ("m", 60)):
            if whole % size == 0:
                return f"{whole // size}{unit}"
        return f"{whole}s"
    return f"{round(seconds * 1000)}ms"


def format_bytes(count: int) -> str:
    """Write bytes with the largest binary unit that divides them: 21474836480 -> `20Gi`."""
    for unit in ("Ti", "Gi", "Mi", "Ki"):
        if count and count % _BYTE_UNITS[unit] == 0:
            return f"{count // _BYTE_UNITS[unit]}{unit}"
    return str(count)


def _reader(parse: Callable[[str], float]) -> Callable[[Any], Any]:
    def read(value: Any) -> Any:
        return parse(value) if isinstance(value, str) else value

    return read


def _schema(pattern: str, message: str) -> dict[str, Any]:
    """A string that the API server checks with a sentence, which a schema pattern cannot say."""
    rule = f"self.matches(r'{pattern}')"
    return {"type": "string", "maxLength": 24, "x-kubernetes-validations": [{"rule": rule, "message": message}]}


Duration = Annotated[
    float,
    BeforeValidator(_reader(parse_duration_seconds)),
    PlainSerializer(format_duration),
    WithJsonSchema(_schema(DURATION_PATTERN, DURATION_FORM)),
]
"""Seconds; written like `500ms`, `30m`."""

Power = Annotated[
    float,
    BeforeValidator(_reader(parse_watts)),
    PlainSerializer(lambda watts: f"{watts:.0f}W"),
    WithJsonSchema(_schema(POWER_PATTERN, POWER_FORM)),
]
"""Watts per GPU; written like `350W`."""

Clock = Annotated[
    float,
    BeforeValidator(_reader(parse_mhz)),
    PlainSerializer(lambda mhz: f"{mhz:.0f}MHz"),
    WithJsonSchema(_schema(CLOCK_PATTERN, CLOCK_FORM)),
]
"""Megahertz; written like `1980MHz`."""

Bytes = Annotated[
    int,
    BeforeValidator(_reader(parse_bytes)),
    PlainSerializer(format_bytes),
    WithJsonSchema(_schema(BYTES_PATTERN, BYTES_FORM)),
]
"""Bytes; written like `20Gi`."""
