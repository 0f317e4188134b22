"""Replicas that the router leaves without work: learnt from what pods get, and then neither asked for nor kept.

A router that follows prefixes, sessions or adapters may send all requests to a few replicas, however many there are:
the SLO is missed on those, and a planner that adds replicas adds forever. So replicas seen without work bound the
count. Later one more is tried at a time, after a pause that doubles with each vain try; one that gets work lifts the
bound, and a rate well beyond that of the time ends it.
"""

from dataclasses import replace

from wattkeeper.domain.observation import ServiceObservation
from wattkeeper.planner.types import Barren, PlannerSettings, PlanRequest


def learn(
    before: Barren | None,
    seen: ServiceObservation,
    *,
    planned_rate: float | None,
    now_seconds: float,
    settings: PlannerSettings,
) -> Barren | None:
    """What is known after an observation; without news, what was known.

    Replicas that start are not judged, and not needed either where older ones have no work.
    """
    if not seen.used_pods or planned_rate is None or not seen.state.usable or _bursty(seen, settings):
        return before
    known = before or Barren()
    if not seen.unused_pods:
        if seen.used_pods != seen.pods_reporting:
            return before
        grown = known.used_replicas is not None and seen.used_pods > max(known.used_replicas, known.even_replicas)
        fresh = _seen(known, seen.used_pods, planned_rate, now_seconds, settings.barren_hold_seconds)
        return replace(fresh if grown else known, even_replicas=seen.used_pods)
    hold = settings.barren_hold_seconds
    if known.used_replicas is not None:
        vain = now_seconds - known.seen_seconds >= known.hold_seconds
        hold = min(known.hold_seconds * (2.0 if vain else 1.0), settings.barren_hold_longest_seconds)
    return _seen(known, seen.used_pods, planned_rate, now_seconds, hold)


def _bursty(seen: ServiceObservation, settings: PlannerSettings) -> bool:
    """True where arrivals come in bursts: a pod without work for minutes may be needed for the next one."""
    return seen.workload is not None and float(seen.workload.dispersion.at(1.0)) > settings.bursty_dispersion


def _seen(known: Barren, used: int, planned_rate: float, now_seconds: float, hold_seconds: float) -> Barren:
    return replace(
        known,
        used_replicas=used,
        planned_requests_per_second=planned_rate,
        seen_seconds=now_seconds,
        hold_seconds=hold_seconds,
    )


def most_replicas(request: PlanRequest, settings: PlannerSettings) -> int | None:
    """The most replicas that the router uses, and one for a try where it is time; None where nothing is known."""
    known = request.memory.barren
    if known is None or known.used_replicas is None or _bursty(request.observation, settings):
        return None
    elapsed = request.now_seconds - known.seen_seconds
    grown = (request.planned_rate or 0.0) > settings.barren_rate_ratio * known.planned_requests_per_second
    if grown or elapsed >= settings.barren_forget_seconds:
        return None
    return max(known.used_replicas, known.even_replicas) + (elapsed >= known.hold_seconds)


def note(request: PlanRequest, settings: PlannerSettings) -> str:
    """What a plan's message adds where the router bounds the replicas; empty where it does not."""
    most, known = most_replicas(request, settings), request.memory.barren
    lever = request.levers.replicas
    if most is None or known is None or lever is None or most >= lever.maximum:
        return ""
    left = known.seen_seconds + known.hold_seconds - request.now_seconds
    more = f"one more is not tried for {left / 60:.0f} min" if left > 0 else "one more is tried"
    return f"the router left all but {known.used_replicas} replicas without work; {more}"
