"""A fleet that exists only as readings: for measuring how the rest behaves at a size that nobody has at hand.

The load model is the simplest one that hangs together: a daily swing per service, requests in the system by Little's
law, KV use in proportion to them, power between idle and full in proportion to the busy share. It is a function of seed
and time alone, so two runs agree. It is not a model of any engine; `wattkeeper.twin` is.
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

from wattkeeper.domain.histogram import Histogram
from wattkeeper.domain.observation import EngineCounters, GpuReading, KvCacheInfo, PodReading
from wattkeeper.telemetry.source import PodKey, Snapshot

_DAY_SECONDS = 86_400.0
_SECONDS_BOUNDS = (0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, math.inf)
_TOKEN_BOUNDS = (*(step * 10.0**decade for decade in range(5) for step in (1, 2, 5)), math.inf)
_FULL_RATE_PER_POD = 4.0
"""Requests per second at which a pod of this fleet is busy all the time."""
_STEP_SECONDS = 0.012
"""Of an engine with nothing to do."""


@dataclass(frozen=True, kw_only=True)
class SyntheticService:
    """One service of the fleet: who its pods are and what it is asked."""

    namespace: str
    name: str
    pods: tuple[str, ...]
    peak_requests_per_second: float
    phase: float
    """Where in the day its peak lies, in radians."""
    prompt_mean_tokens: float
    output_mean_tokens: float
    gpus_per_pod: int


class SyntheticSource:
    """A `MetricsSource` of `services` services with `pods_per_service` pods each, drawn from `seed`.

    `pods_of` gives the pods of a service where they come and go; the load is spread over those. `day_seconds` is the
    period of the swing.
    """

    def __init__(
        self,
        *,
        services: int,
        pods_per_service: int,
        seed: int = 0,
        gpus_per_pod: int = 1,
        day_seconds: float = _DAY_SECONDS,
        pods_of: Callable[[SyntheticService], Sequence[str]] = lambda service: service.pods,
    ) -> None:
        draw = random.Random(seed)
        self._day_seconds, self._pods_of = day_seconds, pods_of
        self.services = tuple(
            SyntheticService(
                namespace=f"team-{index % 20}",
                name=f"service-{index}",
                pods=tuple(f"service-{index}-{pod}" for pod in range(pods_per_service)),
                peak_requests_per_second=draw.uniform(0.2, 0.9) * _FULL_RATE_PER_POD * pods_per_service,
                phase=draw.uniform(0.0, 2 * math.pi),
                prompt_mean_tokens=draw.choice((200.0, 500.0, 1500.0, 4000.0)),
                output_mean_tokens=draw.choice((50.0, 150.0, 400.0)),
                gpus_per_pod=gpus_per_pod,
            )
            for index in range(services)
        )
        self._prompts = {service.name: _lognormal(service.prompt_mean_tokens, 1.0) for service in self.services}
        self._outputs = {service.name: _lognormal(service.output_mean_tokens, 0.8) for service in self.services}

    def collect(self, now_seconds: float) -> Snapshot:
        """The readings of the whole fleet at this time."""
        pods: dict[PodKey, PodReading] = {}
        for service in self.services:
            for reading in self._readings(service, now_seconds):
                pods[reading.namespace, reading.pod] = reading
        gpus = {gpu.uuid: gpu for reading in pods.values() for gpu in reading.gpus}
        return Snapshot(time_seconds=now_seconds, pods=pods, gpus=gpus)

    def _readings(self, service: SyntheticService, now_seconds: float) -> list[PodReading]:
        names = self._pods_of(service)
        if not names:
            return []
        pace = 2 * math.pi / self._day_seconds
        peak = service.peak_requests_per_second / len(names)
        rate = peak * (0.55 + 0.45 * math.cos(pace * now_seconds - service.phase))
        finished = peak * (0.55 * now_seconds + 0.45 / pace * math.sin(pace * now_seconds - service.phase))
        busy = min(0.98, rate / _FULL_RATE_PER_POD)
        tpot = _STEP_SECONDS / (1.0 - 0.8 * busy)
        ttft = 0.04 + 0.0001 * service.prompt_mean_tokens / (1.0 - busy)
        running = rate * (ttft + tpot * service.output_mean_tokens)
        requests = finished + peak * self._day_seconds
        answered = requests * service.output_mean_tokens
        tokens = running * (service.prompt_mean_tokens + 0.5 * service.output_mean_tokens)
        shared = {
            "age_seconds": 2.0,
            "running": round(running, 3),
            "waiting": 0.0 if busy < 0.9 else round(rate, 3),
            "kv_usage": min(1.0, tokens / 400_000.0),
            "finished_per_second": rate,
            "finished_requests": requests,
            "in_system_growth_per_second": 0.0,
            "prompt_tokens_per_second": rate * service.prompt_mean_tokens,
            "generation_tokens_per_second": rate * service.output_mean_tokens,
            "preemptions_per_second": 0.0,
            "prefix_queries_per_second": rate * service.prompt_mean_tokens,
            "prefix_hits_per_second": 0.3 * rate * service.prompt_mean_tokens,
            "ttft_seconds": _scaled(_SECONDS_BOUNDS, _cdf(_SECONDS_BOUNDS, ttft, 0.6), rate, ttft),
            "tpot_seconds": _scaled(_SECONDS_BOUNDS, _cdf(_SECONDS_BOUNDS, tpot, 0.2), rate, tpot),
            "prompt_tokens": _weighted(self._prompts[service.name], rate),
            "output_tokens": _weighted(self._outputs[service.name], rate),
            "kv_cache": KvCacheInfo(num_gpu_blocks=25_000, block_size=16, size_tokens=400_000, cache_dtype="auto"),
            "engine": EngineCounters(
                time_seconds=now_seconds - 2.0,
                running=round(running, 3),
                waiting=0.0 if busy < 0.9 else round(rate, 3),
                kv_usage=min(1.0, tokens / 400_000.0),
                finished_requests=requests,
                prompt_tokens=requests * service.prompt_mean_tokens,
                cached_prompt_tokens=0.3 * requests * service.prompt_mean_tokens,
                generation_tokens=answered,
                preemptions=0.0,
                inter_token_seconds_sum=answered * _STEP_SECONDS / (1.0 - 0.2 * 0.55 * peak),
                inter_token_count=answered,
                iteration_tokens_sum=answered + requests * service.prompt_mean_tokens,
                # Steps per second are (1 - 0.8 busy) / step time, and busy is rate / 4.
                iteration_count=(now_seconds - 0.8 / _FULL_RATE_PER_POD * finished) / _STEP_SECONDS,
            ),
        }
        return [
            PodReading(
                namespace=service.namespace,
                pod=pod,
                gpus=tuple(
                    GpuReading(
                        uuid=f"GPU-{pod}-{index}",
                        node=f"node-{sum(pod.encode()) % 512}",
                        power_watts=100.0 + 550.0 * busy,
                        sm_clock_mhz=1980.0,
                        power_limit_watts=700.0,
                        utilisation=busy,
                        temperature_celsius=40.0 + 30.0 * busy,
                    )
                    for index in range(service.gpus_per_pod)
                ),
                **shared,  # type: ignore[arg-type]
            )
            for pod in names
        ]


def _cdf(bounds: tuple[float, ...], mean: float, sigma: float) -> tuple[float, ...]:
    """Share of a lognormal with this mean at or below each bound."""
    normal = NormalDist(math.log(mean) - sigma**2 / 2, sigma)
    return tuple(1.0 if math.isinf(bound) else normal.cdf(math.log(bound)) for bound in bounds)


def _scaled(bounds: tuple[float, ...], shares: tuple[float, ...], rate: float, mean: float) -> Histogram:
    return Histogram(upper_bounds=bounds, cumulative=tuple(share * rate for share in shares), total=mean * rate)


def _lognormal(mean: float, sigma: float) -> Histogram:
    return _scaled(_TOKEN_BOUNDS, _cdf(_TOKEN_BOUNDS, mean, sigma), 1.0, mean)


def _weighted(histogram: Histogram, rate: float) -> Histogram:
    return _scaled(histogram.upper_bounds, histogram.cumulative, rate, histogram.total)
