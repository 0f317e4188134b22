"""Looks at made-up fleets."""

from collections.abc import Sequence

from wattkeeper.domain.histogram import Histogram
from wattkeeper.domain.observation import PodReading
from wattkeeper.rivals.types import Look
from wattkeeper.telemetry.source import PodKey, Snapshot

Value = float | None


def key(index: int) -> PodKey:
    return ("llm", f"pod-{index}")


def reading(
    index: int,
    *,
    waiting: Value = None,
    running: Value = None,
    kv_usage: Value = None,
    finished: Value = None,
    growth: Value = None,
    prompt: float = 1000.0,
    output: float = 200.0,
    age_seconds: float = 5.0,
) -> PodReading:
    return PodReading(
        namespace="llm",
        pod=f"pod-{index}",
        age_seconds=age_seconds,
        waiting=waiting,
        running=running,
        kv_usage=kv_usage,
        finished_per_second=finished,
        in_system_growth_per_second=growth,
        prompt_tokens=mean_of(prompt) if finished else None,
        output_tokens=mean_of(output) if finished else None,
    )


def mean_of(value: float) -> Histogram:
    return Histogram(upper_bounds=(1e9, float("inf")), cumulative=(10.0, 10.0), total=10.0 * value)


def look(
    time_seconds: float,
    readings: Sequence[PodReading] | None,
    *,
    ready: int,
    starting: int = 0,
    draining: int = 0,
    desired: int | None = None,
    collected_seconds: float | None = None,
) -> Look:
    """`ready` pods first, then starting, then draining ones, numbered through; None: nothing was ever collected."""
    pods = [key(index) for index in range(ready + starting + draining)]
    snapshot = None
    if readings is not None:
        snapshot = Snapshot(
            time_seconds=1e9 + (time_seconds if collected_seconds is None else collected_seconds),
            pods={("llm", each.pod): each for each in readings},
        )
    return Look(
        time_seconds=time_seconds,
        snapshot=snapshot,
        desired_replicas=ready + starting if desired is None else desired,
        ready_pods=tuple(pods[:ready]),
        starting_pods=tuple(pods[ready : ready + starting]),
        draining_pods=tuple(pods[ready + starting :]),
    )


def waiting(*values: Value) -> list[PodReading]:
    return [reading(index, waiting=value) for index, value in enumerate(values)]
