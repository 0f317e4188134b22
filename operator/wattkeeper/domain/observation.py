"""What was measured of a service, with its age and its gaps. Missing is None, never zero; idle is a real zero."""

import enum
from dataclasses import dataclass, field

from wattkeeper.domain.arrivals import ArrivalRecord
from wattkeeper.domain.histogram import Histogram
from wattkeeper.domain.workload import Workload


class MetricsState(enum.Enum):
    """How far the measured series of a service can be trusted."""

    FRESH = "Fresh"
    PARTIAL = "Partial"
    """Some pods have no fresh series: they are left out and margins widen."""
    STALE = "Stale"
    ABSENT = "Absent"
    UNREACHABLE = "Unreachable"

    @property
    def usable(self) -> bool:
        """True where a decision towards less capacity or less power may rest on it."""
        return self in (MetricsState.FRESH, MetricsState.PARTIAL)


@dataclass(frozen=True, kw_only=True)
class GpuReading:
    """One GPU as the power exporter shows it."""

    uuid: str
    node: str
    power_watts: float | None = None
    sm_clock_mhz: float | None = None
    model: str | None = None
    power_limit_watts: float | None = None
    utilisation: float | None = None
    """Share of time in which a kernel ran, 0..1."""
    temperature_celsius: float | None = None


@dataclass(frozen=True, kw_only=True)
class KvCacheInfo:
    """From `vllm:cache_config_info`: what the running engine really allocated."""

    num_gpu_blocks: int | None = None
    block_size: int | None = None
    size_tokens: int | None = None
    cache_dtype: str | None = None


@dataclass(frozen=True, kw_only=True)
class EngineCounters:
    """What the engines of one pod have counted since they started, and their gauges, all of one scrape.

    Only numbers of one scrape may be compared with those of another: readings that were asked for one after the other
    may have a scrape between them. None: not served by this version.
    """

    time_seconds: float
    """Unix time of the scrape."""
    running: float | None = None
    waiting: float | None = None
    kv_usage: float | None = None
    """Share of KV blocks in use, 0..1, mean over the engines."""
    finished_requests: float | None = None
    prompt_tokens: float | None = None
    """Of prompts whose prefill is done, prefix-cache hits included."""
    cached_prompt_tokens: float | None = None
    """Of these, from the prefix cache."""
    generation_tokens: float | None = None
    preemptions: float | None = None
    inter_token_seconds_sum: float | None = None
    inter_token_count: float | None = None
    """One per decoding sequence and step."""
    iteration_tokens_sum: float | None = None
    iteration_count: float | None = None
    """Steps; mean over the engines, whose steps run side by side."""


@dataclass(frozen=True, kw_only=True)
class PodReading:
    """One vLLM pod over the last window. Rates are per second; None = series absent or not fresh."""

    namespace: str
    pod: str
    age_seconds: float
    """Age of the oldest series that this reading rests on."""
    running: float | None = None
    waiting: float | None = None
    kv_usage: float | None = None
    finished_per_second: float | None = None
    prompt_tokens_per_second: float | None = None
    generation_tokens_per_second: float | None = None
    finished_requests: float | None = None
    """The counter itself (requests since the engine started), for arrival counts between two readings."""
    in_system_growth_per_second: float | None = None
    """Change of running + waiting; finished_per_second plus this is the arrival rate."""
    preemptions_per_second: float | None = None
    prefix_queries_per_second: float | None = None
    prefix_hits_per_second: float | None = None
    ttft_seconds: Histogram | None = None
    tpot_seconds: Histogram | None = None
    """Per-request time per output token where vLLM serves it, else inter-token latency."""
    prompt_tokens: Histogram | None = None
    """Lengths are read over a longer window than rates: they change slowly and need many requests."""
    output_tokens: Histogram | None = None
    kv_cache: KvCacheInfo | None = None
    gpus: tuple[GpuReading, ...] = ()
    engine: EngineCounters | None = None
    """Counters themselves, for what happened between two scrapes; None where they were not read."""


@dataclass(frozen=True, kw_only=True)
class ServiceObservation:
    """All ready pods of one service together, as the planner sees them."""

    time_seconds: float
    """Unix time of the snapshot."""
    state: MetricsState
    message: str = ""
    """What is missing and since when, for the MetricsAvailable condition."""
    pods_expected: int = 0
    pods_reporting: int = 0
    used_pods: int | None = None
    """Of the pods watched for some minutes, those to which the router sends work; None while too little was seen."""
    unused_pods: int | None = None
    """Of the same, those to which it sends next to nothing."""
    age_seconds: float | None = None
    workload: Workload | None = None
    """None where lengths were never seen; an idle service keeps the lengths last seen, with rate zero."""
    arrivals: ArrivalRecord | None = None
    """Recently recorded arrivals, for replays; None where nothing was recorded."""
    running: float | None = None
    waiting: float | None = None
    kv_usage_max: float | None = None
    kv_usage_mean: float | None = None
    preemptions_per_second: float | None = None
    ttft_seconds: float | None = None
    """At the SLO's percentile over the window; None while idle."""
    tpot_seconds: float | None = None
    ttft_at_least_seconds: float | None = None
    """Lower edge of the bucket in which `ttft_seconds` was interpolated; what a comparison with a model may rest on."""
    tpot_at_least_seconds: float | None = None
    ttft_attainment: float | None = None
    """Share of requests within the TTFT target over the window; None while idle."""
    tpot_attainment: float | None = None
    output_tokens_per_second: float | None = None
    power_watts: float | None = None
    """Sum over the GPUs of all reporting pods; None unless every reporting pod has power."""
    joules_per_token: float | None = None
    kv_cache: KvCacheInfo | None = None
    gpus: tuple[GpuReading, ...] = ()
    gpus_by_pod: dict[str, tuple[GpuReading, ...]] = field(default_factory=dict)

    @property
    def idle(self) -> bool:
        """True where it is measured, not assumed, that no request runs, waits or arrives."""
        return (
            self.state.usable
            and self.workload is not None
            and self.workload.requests_per_second == 0.0
            and not self.running
            and not self.waiting
        )
