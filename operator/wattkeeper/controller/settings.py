"""Settings of the operator process. Every field says its unit and why its default is what it is."""

from dataclasses import dataclass, field

from wattkeeper.api.inference_service import MetricsSourceKind
from wattkeeper.domain.arrivals import Dispersion
from wattkeeper.forecast.rates import ForecastSettings
from wattkeeper.planner.types import PlannerSettings


@dataclass(frozen=True, kw_only=True)
class ReplaySettings:
    """How the stage works. Durations are wall time."""

    workers: int = 1
    """Processes; 0 leaves the stage out."""
    share: float = 0.35
    """Of the time that each worker may be busy."""
    requests: int = 5000
    """Counted in each replay."""
    queue: int = 256
    per_service: int = 4
    """Replays that may wait, in all and of one service."""
    timeout_seconds: float = 60.0
    """A worker that takes longer is replaced."""


@dataclass(frozen=True, kw_only=True)
class OperatorSettings:
    """How the operator runs. Durations are wall time unless they say otherwise."""

    namespaces: tuple[str, ...] = ()
    """Namespaces to keep; empty: all."""
    operator_namespace: str = "wattkeeper-system"
    """Where the Lease lives."""
    default_source: MetricsSourceKind = MetricsSourceKind.PROMETHEUS
    """For services that do not name a source."""
    tick_seconds: float = 15.0
    """Between two passes of the fleet loop."""
    cap_ttl_seconds: float = 180.0
    """Life of a power cap entry: a dead operator leaves no card capped for longer."""
    agent_max_age_seconds: float = 90.0
    """A node agent that has not reported for longer counts as absent."""
    observed_refresh_seconds: float = 60.0
    """Measured values in status are refreshed at most this often unless something else changes, and at the latest after
    twice as long; when in between differs, so that the writes of a fleet do not come at once."""
    default_startup_seconds: float = 120.0
    """From asking for a replica until it serves, until it has been measured (decision time)."""
    rollout_deadline_seconds: float = 1800.0
    """A roll-out that is not ready by then is taken back (decision time)."""
    rollout_watch_seconds: float = 600.0
    """After a roll-out the SLO is watched this long; if it breaks, the arguments go back (decision time)."""
    conflict_hold_seconds: float = 900.0
    """After somebody else changed the replicas, leave them alone for this long (decision time)."""
    argument_hold_seconds: float = 86400.0
    """After somebody else changed the engine arguments, leave them alone for this long (decision time)."""
    refusal_hold_seconds: float = 1800.0
    """After cards refused a limit, none is asked for again for this long (decision time)."""
    rollout_look_seconds: float = 300.0
    """In a large fleet, how often new engine arguments are looked at for one service (decision time)."""
    large_fleet_services: int = 100
    """Fleets above this size spread that work over the ticks."""
    speed_up: float = 1.0
    """Seconds of decision time per second of wall time; above 1 only in simulations."""
    dispersion: Dispersion | None = None
    """Index of dispersion of arrivals where it is known beforehand; None: measured. A simulation that is sped up must
    say it: there, a jitter of milliseconds between scrapes looks like bursts."""
    rate_window_seconds: float = 60.0
    """Window over which telemetry measures rates (wall time)."""
    replays: ReplaySettings = field(default_factory=ReplaySettings)
    """Replays of candidates before capacity is taken away."""
    planner: PlannerSettings = field(default_factory=PlannerSettings)
    forecast: ForecastSettings = field(default_factory=ForecastSettings)
