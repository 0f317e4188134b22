"""What traffic to play, as one line of text: WHAT[:OPTION=VALUE,...].

WHAT is a file, a name that `wattkeeper traces list` prints, or a generator (`GENERATORS`). Options are those of
`TraceSpec`; times take s, m, h or d (`from=1d,until=36h`), numbers alone are seconds.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from wattkeeper.traces.trace import TraceError
from wattkeeper.traces.windows import Gaps

GENERATORS: Mapping[str, Mapping[str, float | None]] = {
    "poisson": {"rate": None},
    "gamma": {"rate": None},
    "mmpp": {"rate": None, "peak": 4.0, "floor": 0.0, "on": 30.0},
    "diurnal": {"trough": None, "peak": None, "peak_hour": 14.0},
    "flash": {"base": None, "peak": None, "at": None, "rise": 60.0, "hold": 300.0, "decay": 300.0},
}
"""Parameters of each generator with their defaults; None: must be given. Rates per second; on, at, rise, hold, decay
are times."""
_TIMES = frozenset({"on", "at", "rise", "hold", "decay"})
_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_OPTIONS = re.compile(r":(?=[a-z_]+=)")
_DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)([smhd]?)")


@dataclass(frozen=True, kw_only=True)
class TraceSpec:
    """One line of text, taken apart."""

    what: str
    """A file, the name of a public trace, or a generator."""
    seed: int = 0
    start_seconds: float = 0.0
    """`from`: where in the traffic to begin."""
    end_seconds: float | None = None
    """`until`: where in the traffic to end; None: at its end."""
    span_seconds: float | None = None
    """`for`: how long to play; recorded traffic that is shorter is repeated. Generators need it or `until`."""
    scale: float = 1.0
    """Times the rate."""
    cv: float | None = None
    """Coefficient of variation of the gaps where arrivals are drawn; None: as recorded, else 1 (Poisson)."""
    noise: float = 0.0
    """Standard deviation of the logarithm of the rate from minute to minute, where arrivals are drawn from rates."""
    lengths: str | None = None
    """Where lengths are drawn: file or name, or PROMPT/OUTPUT in tokens, each perhaps with a CV: 1155~1.1/211~0.8."""
    hit: float = 0.0
    """Share of prompt tokens that the prefix cache holds, where lengths are drawn."""
    gaps: Gaps = Gaps.BRIDGE
    """What to assume where nothing was recorded."""
    parameters: Mapping[str, float] = field(default_factory=dict)
    """Of a generator."""
    text: str = ""
    """As it was written."""

    @property
    def generated(self) -> bool:
        """Whether this is one of GENERATORS."""
        return self.what in GENERATORS

    @staticmethod
    def parse(text: str) -> "TraceSpec":
        """Take a line apart. Raises TraceError: an unknown option, a value that is none, a parameter that lacks."""
        what, *rest = _OPTIONS.split(text.strip(), maxsplit=1)
        known = GENERATORS.get(what, {})
        given: dict[str, str] = {}
        for part in rest[0].split(",") if rest else ():
            name, mark, value = part.partition("=")
            if not mark or not value or name in given:
                raise TraceError(f"{text!r}: {part!r} is not NAME=VALUE, or comes twice")
            if name not in known and name not in _SHARED:
                allowed = ", ".join(sorted({*known, *_SHARED}))
                raise TraceError(f"{text!r}: {what} has no option {name!r}; known are {allowed}")
            given[name] = value
        parameters = {}
        for name, default in known.items():
            if name not in given and default is None:
                raise TraceError(f"{text!r}: {what} needs {name}=, for example {name}=2")
            read = _seconds if name in _TIMES else _number
            parameters[name] = float(default or 0.0) if name not in given else read(text, name, given[name])
        found = TraceSpec(
            what=what,
            seed=int(_number(text, "seed", given.get("seed", "0"))),
            start_seconds=_seconds(text, "from", given.get("from", "0")),
            end_seconds=_seconds(text, "until", given["until"]) if "until" in given else None,
            span_seconds=_seconds(text, "for", given["for"]) if "for" in given else None,
            scale=_number(text, "scale", given.get("scale", "1")),
            cv=_number(text, "cv", given["cv"]) if "cv" in given else None,
            noise=_number(text, "noise", given.get("noise", "0")),
            lengths=given.get("lengths"),
            hit=_number(text, "hit", given.get("hit", "0")),
            gaps=_gaps(text, given.get("gaps", Gaps.BRIDGE.value)),
            parameters=parameters,
            text=text,
        )
        found._check()
        return found

    def _check(self) -> None:
        end = self.end_seconds
        if end is not None and end <= self.start_seconds:
            raise TraceError(f"{self.text!r}: until must be after from")
        if self.span_seconds is not None and not self.span_seconds > 0:
            raise TraceError(f"{self.text!r}: for must be more than zero")
        if not self.scale > 0 or (self.cv is not None and not 0.1 <= self.cv <= 50.0):
            raise TraceError(f"{self.text!r}: scale must be more than zero, cv within 0.1 and 50")
        if self.hit > 1.0 or self.noise > 2.0:
            raise TraceError(f"{self.text!r}: hit may be 1 at most, noise 2")
        if self.generated and end is None and self.span_seconds is None:
            raise TraceError(f"{self.text!r}: say how long, for example for=24h")


_SHARED = frozenset({"seed", "from", "until", "for", "scale", "cv", "noise", "lengths", "hit", "gaps"})


def _number(text: str, name: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or number < 0:
        raise TraceError(f"{text!r}: {name} is {value!r}, expected a number from zero up")
    return number


def _seconds(text: str, name: str, value: str) -> float:
    match = _DURATION.fullmatch(value)
    if match is None:
        raise TraceError(f"{text!r}: {name} is {value!r}, expected a time such as 90, 15m, 24h or 7d")
    return float(match[1]) * _UNITS[match[2]]


def _gaps(text: str, value: str) -> Gaps:
    try:
        return Gaps(value)
    except ValueError:
        known = ", ".join(each.value for each in Gaps)
        raise TraceError(f"{text!r}: gaps is {value!r}, expected one of {known}") from None
