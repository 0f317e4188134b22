"""Two times: the wall clock, and the clock that decisions run on, which a simulation may speed up.

Ages of measurements, expiry of caps and time stamps in the API are wall time. Rates, forecasts, stabilisation windows
and roll-out intervals are decision time, so that a simulated day at speed-up 300 is decided as a day is.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime


@dataclass(frozen=True, kw_only=True)
class Clock:
    """`speed_up` seconds of decision time pass in one second of wall time."""

    speed_up: float = 1.0
    wall: Callable[[], float] = time.time
    """Unix seconds."""
    origin_seconds: float = field(default_factory=time.time)

    def now(self) -> float:
        """Decision time in seconds; equal to the wall time at the origin."""
        return self.decision_time(self.wall())

    def decision_time(self, wall_seconds: float) -> float:
        """The decision time of a wall time."""
        return self.origin_seconds + (wall_seconds - self.origin_seconds) * self.speed_up

    def wall_time(self, decision_seconds: float) -> float:
        """The wall time of a decision time."""
        return self.origin_seconds + (decision_seconds - self.origin_seconds) / self.speed_up


def to_rfc3339(wall_seconds: float) -> str:
    """Write a time stamp as Kubernetes does, to the second."""
    return datetime.fromtimestamp(wall_seconds, tz=UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def from_rfc3339(text: str | None) -> float | None:
    """Unix seconds of a time stamp; None where it is absent or not one."""
    if not text:
        return None
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError:
        return None
    return (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp()
