"""The guard chain: what is looked at before any optimisation. The first violation wins.

A guard that trips asks either to hold (what is known does not allow a decision) or to add capacity now (the SLO is at
risk). Each is a small function of the request and the settings that returns a `Trip` or None.
"""

import enum
from collections.abc import Callable
from dataclasses import dataclass

from wattkeeper.domain.plan import LatencyTarget, PlanReason
from wattkeeper.planner.types import PlannerSettings, PlanRequest


class Action(enum.Enum):
    """What a tripped guard asks for."""

    HOLD = "Hold"
    FULL_POWER = "FullPower"
    """Hold the replicas and the engine, lift caps and clock locks."""
    MORE_CAPACITY = "MoreCapacity"
    """Lift caps and clock locks, and add replicas."""


@dataclass(frozen=True, kw_only=True)
class Trip:
    """A violated guard."""

    reason: PlanReason
    message: str
    action: Action


Guard = Callable[[PlanRequest, PlannerSettings], Trip | None]


def first_trip(request: PlanRequest, settings: PlannerSettings) -> Trip | None:
    """The first guard of the chain that trips; None where the way is free for the optimisation."""
    for guard in CHAIN:
        trip = guard(request, settings)
        if trip is not None:
            return trip
    return None


def metrics_usable(request: PlanRequest, settings: PlannerSettings) -> Trip | None:
    """Without usable metrics: hold, and after their maximal age lift all limits. Never fewer replicas."""
    seen = request.observation
    if seen.state.usable:
        return None
    limit = settings.metrics_max_age_seconds
    if request.metrics_max_age_seconds is not None:
        limit = request.metrics_max_age_seconds
    why = f"metrics {seen.state.value.lower()}" + (f" ({seen.message})" if seen.message else "")
    if seen.age_seconds is not None and seen.age_seconds <= limit:
        return Trip(
            reason=PlanReason.HOLD_METRICS,
            message=f"Holding the last target: {why}; full power after {limit:.0f} s.",
            action=Action.HOLD,
        )
    age = "never seen" if seen.age_seconds is None else f"last seen {seen.age_seconds:.0f} s ago"
    return Trip(
        reason=PlanReason.FULL_POWER,
        message=f"Full power and no fewer replicas: {why}, {age} (limit {limit:.0f} s).",
        action=Action.FULL_POWER,
    )


def switched_off(request: PlanRequest, _settings: PlannerSettings) -> Trip | None:
    """Zero replicas were set by a person or another controller: that is their decision."""
    if request.current.replicas > 0:
        return None
    return Trip(
        reason=PlanReason.WARMING_UP,
        message="Holding: the workload is scaled to zero; scale it to one or more to have it planned.",
        action=Action.HOLD,
    )


def slo_met(request: PlanRequest, settings: PlannerSettings) -> Trip | None:
    """An observed percentile over its target, from enough requests to mean something."""
    seen = request.observation
    if seen.workload is None:
        return None
    requests = seen.workload.requests_per_second * settings.observation_window_seconds
    if requests < settings.guard_min_requests:
        return None
    broken = [
        text
        for text in (
            _broken("TTFT", request.slo.ttft, seen.ttft_seconds, settings.guard_slo_ratio),
            _broken("TPOT", request.slo.tpot, seen.tpot_seconds, settings.guard_slo_ratio),
        )
        if text
    ]
    if not broken:
        return None
    return Trip(
        reason=PlanReason.GUARD_SLO,
        message=f"Observed {' and '.join(broken)} over {requests:.0f} requests",
        action=Action.MORE_CAPACITY,
    )


def queue_short(request: PlanRequest, settings: PlannerSettings) -> Trip | None:
    """More waiting requests per replica than the threshold, and too many to work off within the TTFT target."""
    seen = request.observation
    if seen.waiting is None:
        return None
    per_replica = seen.waiting / max(1, request.ready_replicas)
    if per_replica <= settings.guard_waiting_per_replica:
        return None
    rate = 0.0 if seen.workload is None else seen.workload.requests_per_second
    wait = ""
    if request.slo.ttft is not None and rate > 0:
        seconds = seen.waiting / rate
        if seconds <= settings.guard_waiting_share_of_ttft * request.slo.ttft.seconds:
            return None
        wait = f", {_time(seconds)} of work at {rate:.3g} req/s"
    return Trip(
        reason=PlanReason.GUARD_QUEUE,
        message=f"{seen.waiting:.0f} requests wait, {per_replica:.1f} per ready replica{wait}",
        action=Action.MORE_CAPACITY,
    )


def kv_sufficient(request: PlanRequest, settings: PlannerSettings) -> Trip | None:
    """Preemptions: KV memory runs out and work is done twice."""
    seen = request.observation
    preempted = seen.preemptions_per_second
    if preempted is None:
        return None
    rate = 0.0 if seen.workload is None else seen.workload.requests_per_second
    if preempted <= settings.guard_preemptions_per_second * max(1, request.ready_replicas):
        return None
    if preempted <= settings.guard_preemptions_per_request * rate:
        return None
    usage = "" if seen.kv_usage_max is None else f" at {seen.kv_usage_max:.0%} KV use"
    return Trip(
        reason=PlanReason.GUARD_PREEMPTION,
        message=f"{preempted:.2g} preemptions/s at {rate:.3g} req/s{usage}",
        action=Action.MORE_CAPACITY,
    )


def workload_known(request: PlanRequest, _settings: PlannerSettings) -> Trip | None:
    """Nothing can be predicted before lengths and a rate were seen."""
    if request.observation.workload is not None and request.planned_rate is not None:
        return None
    missing = "request lengths" if request.observation.workload is None else "an arrival rate"
    return Trip(
        reason=PlanReason.WARMING_UP,
        message=f"Holding: {missing} not seen yet; the first finished requests tell.",
        action=Action.HOLD,
    )


CHAIN: tuple[Guard, ...] = (metrics_usable, switched_off, slo_met, queue_short, kv_sufficient, workload_known)


def _broken(name: str, target: LatencyTarget | None, value: float | None, ratio: float) -> str:
    """What is broken of one target; empty where it holds or nothing was observed."""
    if target is None or value is None or value <= target.seconds * ratio:
        return ""
    return f"{name} p{target.percentile:g} is {_time(value)}, target {_time(target.seconds)}"


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"
