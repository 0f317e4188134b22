"""What a metrics source is, and the picture of the whole fleet that it returns.

A snapshot is taken for all namespaces at once, so its cost does not grow with the number of services. Which pods belong
to which service is decided afterwards, by `telemetry.observe`.
"""

from dataclasses import dataclass, field
from typing import Protocol

from wattkeeper.domain.observation import GpuReading, PodReading

PodKey = tuple[str, str]
"""(namespace, pod)."""


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """One look at the fleet. Ages inside are relative to `time_seconds` (Unix time)."""

    time_seconds: float
    pods: dict[PodKey, PodReading]
    errors: tuple[str, ...] = ()
    """What could not be read, one line each; the rest of the snapshot stands."""
    gpus: dict[str, GpuReading] = field(default_factory=dict)
    """All GPUs by UUID, also those that the exporter maps to no pod."""


class MetricsSource(Protocol):
    """Where measurements come from."""

    def collect(self, now_seconds: float) -> Snapshot:
        """Read the whole fleet once. Raises TelemetryError where nothing of use could be read."""
        ...
