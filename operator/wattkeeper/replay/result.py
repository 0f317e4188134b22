"""What a replay found: one `Run` per policy and seed, and the report that holds them all. JSON there and back."""

import dataclasses
import json
import types
import typing
from dataclasses import dataclass, field
from typing import Any, Self

from wattkeeper.domain.errors import WattkeeperError

FORMAT = 1
QUANTILES = (0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999)
"""At which latencies are kept."""


class ReportError(WattkeeperError):
    """A report that cannot be read."""


@dataclass(frozen=True, kw_only=True)
class Course:
    """A run over time, one entry per interval: means over it, but pods, limits and clocks as they are at its end."""

    interval_seconds: float
    requests_per_second: tuple[float, ...]
    power_watts: tuple[float, ...]
    """Of the GPUs that pods hold."""
    desired: tuple[int, ...]
    ready: tuple[int, ...]
    starting: tuple[int, ...]
    cap_watts: tuple[float, ...]
    """Mean limit of the GPUs of ready pods."""
    clock_mhz: tuple[float, ...]
    waiting: tuple[int, ...]
    kv_usage: tuple[float, ...]
    """Mean over ready pods at the end of the interval, 0..1."""
    ttft_p95_seconds: tuple[float | None, ...]
    """Of the requests that arrived in the interval; None: none finished."""
    tpot_p95_seconds: tuple[float | None, ...]
    attainment: tuple[float | None, ...]
    """Of the requests that arrived in the interval; None: none came."""


@dataclass(frozen=True, kw_only=True)
class Energy:
    """Joules of all GPUs over the trace."""

    total: float
    """Of the GPUs that pods held."""
    idle: float
    """Of `total`: engines without a request."""
    startup: float
    """Of `total`: pods that start."""
    parked: float
    """Not in `total`: GPUs that no pod held, powered and empty."""


@dataclass(frozen=True, kw_only=True)
class Requests:
    """Counts over all requests of the trace. Attained is `met / arrived`: what was lost or unfinished has missed."""

    arrived: int
    finished: int
    met: int
    lost: dict[str, int]
    """By reason."""
    unfinished: int
    output_tokens: int

    @property
    def attainment(self) -> float:
        """Share of all requests within both targets; 1 where none came."""
        return self.met / self.arrived if self.arrived else 1.0


@dataclass(frozen=True, kw_only=True)
class Run:
    """One policy against the trace, once."""

    policy: str
    seed: int
    parameters: dict[str, float]
    energy: Energy
    requests: Requests
    ttft_seconds: tuple[float, ...]
    """At QUANTILES, of finished requests."""
    tpot_seconds: tuple[float, ...]
    bad_windows: float
    """Share of the ten-minute windows with requests in which attainment was below the goal."""
    gpu_seconds: float
    mean_replicas: float
    most_replicas: int
    scale_changes: int
    power_changes: int
    rollouts: int
    hourly_joules: tuple[float, ...]
    """Per hour of the trace, for intervals where there is one seed."""
    hourly_met: tuple[int, ...]
    hourly_arrived: tuple[int, ...]
    repairs: dict[str, int]
    """What the policy wanted and was not given, or was corrected, with counts."""
    notes: tuple[str, ...]
    wall_seconds: float
    course: Course

    def ttft(self, quantile: float) -> float:
        """TTFT at one of QUANTILES, in seconds; nan where nothing finished."""
        return self.ttft_seconds[QUANTILES.index(quantile)]

    def tpot(self, quantile: float) -> float:
        """TPOT at one of QUANTILES, in seconds; nan where nothing finished."""
        return self.tpot_seconds[QUANTILES.index(quantile)]

    @property
    def joules_per_token(self) -> float:
        """Energy of held GPUs per answered token."""
        return self.energy.total / max(1, self.requests.output_tokens)


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """How the parameters of one policy came about."""

    policy: str
    parameters: dict[str, float]
    met: bool
    tried: int


@dataclass(frozen=True, kw_only=True)
class Report:
    """All runs of a replay, and what they were run on."""

    title: str
    trace: dict[str, float | str]
    """Facts of the traffic, in words and numbers."""
    fleet: dict[str, float | str]
    ttft_target_seconds: float | None
    tpot_target_seconds: float | None
    goal: float
    """Attainment that is asked for."""
    tuned_on: str
    tunings: tuple[Tuning, ...]
    runs: tuple[Run, ...]
    warnings: tuple[str, ...] = ()
    settings: dict[str, float | str] = field(default_factory=dict)
    format: int = FORMAT

    def policies(self) -> tuple[str, ...]:
        """In their order."""
        return tuple(dict.fromkeys(run.policy for run in self.runs))

    def of(self, policy: str) -> tuple[Run, ...]:
        """The runs of one policy."""
        return tuple(run for run in self.runs if run.policy == policy)

    def to_json(self) -> str:
        """All of it; nan becomes null."""
        return json.dumps(_plain(self), indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read it again. Raises ReportError where it is not one, or of another version."""
        try:
            data = json.loads(text)
        except ValueError as error:
            raise ReportError(f"not a replay report: {error}") from error
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise ReportError(f"not a replay report of format {FORMAT}: run the replay again with this version")
        try:
            return typing.cast("Self", _typed(cls, data))
        except (KeyError, TypeError, ValueError) as error:
            raise ReportError(f"a replay report with a part missing or wrong: {error!r}") from error


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {each.name: _plain(getattr(value, each.name)) for each in dataclasses.fields(value)}
    if isinstance(value, tuple | list):
        return [_plain(each) for each in value]
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, float) and value != value:
        return None
    return value


def _typed(kind: Any, value: Any) -> Any:
    """`value` of JSON as the type says."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        hints = typing.get_type_hints(kind)
        return kind(**{each.name: _typed(hints[each.name], value[each.name]) for each in dataclasses.fields(kind)})
    if origin is tuple:
        return tuple(_typed(arguments[0], each) for each in value)
    if origin is dict:
        return dict(value)
    if origin in (types.UnionType, typing.Union):
        return value
    if kind is float:
        return float("nan") if value is None else float(value)
    if not isinstance(value, kind):
        raise TypeError(f"{value!r} is no {kind.__name__}")
    return value
