"""Pod readings of one service become one `ServiceObservation`.

Rules: what is missing is left out and said so, never read as zero; counters that are present and flat are a real zero;
a pod counts as reporting when its running, waiting and finished-request series are fresh. Arrivals are completions plus
the growth of what is in the system (conservation of requests): completions alone under-read demand exactly when
replicas saturate.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

from wattkeeper.domain.arrivals import POISSON, ArrivalRecord, Dispersion
from wattkeeper.domain.histogram import Histogram
from wattkeeper.domain.observation import GpuReading, KvCacheInfo, MetricsState, PodReading, ServiceObservation
from wattkeeper.domain.plan import LatencyTarget, Slo
from wattkeeper.domain.workload import LengthDistribution, Workload
from wattkeeper.telemetry.lengths import length_distribution
from wattkeeper.telemetry.source import Snapshot

_NAMED_PODS = 3
"""Pods named in a message before the rest is counted."""


def observe(
    *,
    pods: Sequence[str],
    namespace: str,
    snapshot: Snapshot | None,
    snapshot_error: str | None,
    now_seconds: float,
    max_age_seconds: float,
    slo: Slo,
    last_workload: Workload | None,
    dispersion: Dispersion | None = None,
    arrivals: ArrivalRecord | None = None,
    longest_tokens: int | None = None,
    gpus_per_pod: int | None = None,
    gpus_by_pod: Mapping[str, Sequence[GpuReading]] | None = None,
) -> ServiceObservation:
    """Observation of the ready pods `pods` of one service.

    `snapshot_error` is why the latest collection failed (None: it did not). `last_workload` is the workload last
    observed: its lengths stand in while idle, and its rate bounds what is assumed of pods that do not report.
    `dispersion` and `arrivals` come from a `DispersionEstimator`. No prompt and no answer is longer than
    `longest_tokens`. A pod has power only where `gpus_per_pod` of its GPUs
    (all that it shows, where that is not given) have watts; `gpus_by_pod` (the node agent's own readings) fills in for
    pods whose GPUs the snapshot does not know.
    """
    if snapshot is None:
        return _nothing(pods, now_seconds, snapshot_error)
    behind_seconds = max(0.0, now_seconds - snapshot.time_seconds)
    known = {pod: reading for pod in pods if (reading := snapshot.pods.get((namespace, pod))) is not None}
    ages = {pod: reading.age_seconds + behind_seconds for pod, reading in known.items()}
    fresh = {pod: reading for pod, reading in known.items() if ages[pod] <= max_age_seconds}
    reporting = {pod: reading for pod, reading in fresh.items() if _reports(reading)}

    state = _state(pods=pods, known=known, fresh=fresh, reporting=reporting, failing=snapshot_error is not None)
    message = _message(state, pods=pods, ages=ages, fresh=fresh, reporting=reporting, error=snapshot_error)
    if not reporting:
        return ServiceObservation(
            time_seconds=snapshot.time_seconds,
            state=state,
            message=message,
            pods_expected=len(pods),
            age_seconds=min(ages.values(), default=None),
        )

    readings = list(reporting.values())
    ttft = _merge(reading.ttft_seconds for reading in readings)
    tpot = _merge(reading.tpot_seconds for reading in readings)
    ttft_seconds, ttft_at_least_seconds = _at_percentile(ttft, slo.ttft)
    tpot_seconds, tpot_at_least_seconds = _at_percentile(tpot, slo.tpot)
    gpus = {pod: reading.gpus or tuple((gpus_by_pod or {}).get(pod, ())) for pod, reading in reporting.items()}
    power_watts = _power(gpus, gpus_per_pod)
    output_rate = _sum_all(readings, lambda reading: reading.generation_tokens_per_second)
    usages = [reading.kv_usage for reading in readings if reading.kv_usage is not None]
    return ServiceObservation(
        time_seconds=snapshot.time_seconds,
        state=state,
        message=message,
        pods_expected=len(pods),
        pods_reporting=len(reporting),
        age_seconds=max(ages[pod] for pod in reporting),
        workload=_workload(
            readings, expected=len(pods), last=last_workload, dispersion=dispersion, longest_tokens=longest_tokens
        ),
        arrivals=arrivals,
        running=_sum_known(fresh.values(), lambda reading: reading.running),
        waiting=_sum_known(fresh.values(), lambda reading: reading.waiting),
        kv_usage_max=max(usages, default=None),
        kv_usage_mean=sum(usages) / len(usages) if usages else None,
        preemptions_per_second=_sum_known(readings, lambda reading: reading.preemptions_per_second),
        ttft_seconds=ttft_seconds,
        tpot_seconds=tpot_seconds,
        ttft_at_least_seconds=ttft_at_least_seconds,
        tpot_at_least_seconds=tpot_at_least_seconds,
        ttft_attainment=_attainment(ttft, slo.ttft),
        tpot_attainment=_attainment(tpot, slo.tpot),
        output_tokens_per_second=output_rate,
        power_watts=power_watts,
        joules_per_token=power_watts / output_rate if power_watts is not None and output_rate else None,
        kv_cache=_smallest_cache(reading.kv_cache for reading in readings),
        gpus=tuple({gpu.uuid: gpu for shown in gpus.values() for gpu in shown}.values()),
        gpus_by_pod=gpus,
    )


def _nothing(pods: Sequence[str], now_seconds: float, error: str | None) -> ServiceObservation:
    """No snapshot was ever taken."""
    if error is None:
        state, message = MetricsState.ABSENT, "no metrics were collected yet"
    else:
        state, message = MetricsState.UNREACHABLE, f"no metrics since the start: {error}"
    return ServiceObservation(time_seconds=now_seconds, state=state, message=message, pods_expected=len(pods))


def _reports(reading: PodReading) -> bool:
    return reading.running is not None and reading.waiting is not None and reading.finished_per_second is not None


def _state(
    *,
    pods: Sequence[str],
    known: Mapping[str, PodReading],
    fresh: Mapping[str, PodReading],
    reporting: Mapping[str, PodReading],
    failing: bool,
) -> MetricsState:
    if reporting:
        return MetricsState.FRESH if len(reporting) == len(set(pods)) else MetricsState.PARTIAL
    if known and not fresh:
        return MetricsState.UNREACHABLE if failing else MetricsState.STALE
    return MetricsState.UNREACHABLE if failing and pods and not known else MetricsState.ABSENT


def _message(
    state: MetricsState,
    *,
    pods: Sequence[str],
    ages: Mapping[str, float],
    fresh: Mapping[str, PodReading],
    reporting: Mapping[str, PodReading],
    error: str | None,
) -> str:
    """What is missing, of which pods, since when; empty where all is well."""
    parts = []
    if not pods:
        parts.append("no ready pods to measure")
    unseen = [pod for pod in pods if pod not in ages]
    stale = [pod for pod in pods if pod in ages and pod not in fresh]
    silent = [pod for pod in fresh if pod not in reporting]
    if unseen:
        parts.append(f"no series of {_names(unseen)}: is the pod scraped, and do its series carry its pod label?")
    if stale:
        oldest = max(ages[pod] for pod in stale)
        parts.append(f"series of {_names(stale)} are stale, the oldest by {oldest:.0f} s")
    if silent:
        parts.append(f"running, waiting or finished-request series of {_names(silent)} are not there yet")
    if error is not None:
        parts.append(f"last collection failed: {error}")
    elif state is MetricsState.ABSENT and not parts:
        parts.append("no series")
    return "; ".join(parts)


def _names(pods: Sequence[str]) -> str:
    shown = ", ".join(pods[:_NAMED_PODS])
    return shown if len(pods) <= _NAMED_PODS else f"{shown} and {len(pods) - _NAMED_PODS} more"


def _workload(
    readings: Sequence[PodReading],
    *,
    expected: int,
    last: Workload | None,
    dispersion: Dispersion | None,
    longest_tokens: int | None,
) -> Workload | None:
    prompts = _merge(reading.prompt_tokens for reading in readings)
    outputs = _merge(reading.output_tokens for reading in readings)
    prompt = _lengths(prompts, longest_tokens) or (last.prompt if last else None)
    output = _lengths(outputs, longest_tokens) or (last.output if last else None)
    if prompt is None or output is None:
        return None
    rate = sum(_arrivals_per_second(reading) for reading in readings)
    if len(readings) < expected and last is not None:
        # Pods that do not report still serve. Assume of them what the others do, but never beyond the rate last seen:
        # a pod that just became ready reports nothing yet and must not look like new demand.
        rate = min(rate * expected / len(readings), max(rate, last.requests_per_second))
    return Workload(
        requests_per_second=rate,
        prompt=prompt,
        output=output,
        dispersion=dispersion or (last.dispersion if last else POISSON),
        prefix_hit_ratio=_prefix_hit_ratio(readings, last),
    )


def _lengths(histogram: Histogram | None, longest_tokens: int | None) -> LengthDistribution | None:
    """None where the histogram says nothing: then the lengths last seen stand in."""
    found = None if histogram is None else length_distribution(histogram, longest_tokens=longest_tokens)
    return found if isinstance(found, LengthDistribution) else None


def _arrivals_per_second(reading: PodReading) -> float:
    """Completions plus growth of the requests in the system; a drain faster than completions (aborts) counts zero."""
    return max(0.0, (reading.finished_per_second or 0.0) + (reading.in_system_growth_per_second or 0.0))


def _prefix_hit_ratio(readings: Sequence[PodReading], last: Workload | None) -> float:
    counted = [
        (reading.prefix_queries_per_second, reading.prefix_hits_per_second)
        for reading in readings
        if reading.prefix_queries_per_second is not None and reading.prefix_hits_per_second is not None
    ]
    queries = sum(pair[0] for pair in counted)
    if queries <= 0.0:
        # Nothing asked in the window: the ratio is undefined, not zero, so the one last seen stands.
        return last.prefix_hit_ratio if last is not None else 0.0
    return min(1.0, max(0.0, sum(pair[1] for pair in counted) / queries))


def _merge(parts: Iterable[Histogram | None]) -> Histogram | None:
    return Histogram.merge([part for part in parts if part is not None])


def _at_percentile(histogram: Histogram | None, target: LatencyTarget | None) -> tuple[float | None, float | None]:
    """The percentile of the target and the lower edge of its bucket; None, None where nothing was observed."""
    quantile = histogram.quantile(target.percentile / 100.0) if histogram is not None and target is not None else None
    return (None, None) if quantile is None else (quantile.value, quantile.at_least)


def _attainment(histogram: Histogram | None, target: LatencyTarget | None) -> float | None:
    if histogram is None or target is None:
        return None
    share = histogram.fraction_at_most(target.seconds)
    return None if share is None else min(1.0, share)


def _sum_known(readings: Iterable[PodReading], value: Callable[[PodReading], float | None]) -> float | None:
    """Sum over the readings that have the value; None where none has."""
    values = [found for reading in readings if (found := value(reading)) is not None]
    return sum(values) if values else None


def _sum_all(readings: Iterable[PodReading], value: Callable[[PodReading], float | None]) -> float | None:
    """Sum over all readings; None where one lacks the value."""
    values = [value(reading) for reading in readings]
    return None if None in values else sum(found for found in values if found is not None)


def _power(gpus: Mapping[str, Sequence[GpuReading]], gpus_per_pod: int | None) -> float | None:
    """Watts of all GPUs of all pods, each GPU once; None where one pod or one GPU has none."""
    watts: dict[str, float] = {}
    for shown in gpus.values():
        if not shown or (gpus_per_pod is not None and len(shown) < gpus_per_pod):
            return None
        for gpu in shown:
            if gpu.power_watts is None:
                return None
            watts[gpu.uuid] = gpu.power_watts
    return sum(watts.values()) if watts else None


def _smallest_cache(caches: Iterable[KvCacheInfo | None]) -> KvCacheInfo | None:
    """The pod with the least room speaks for the service: it fills first."""

    def tokens(cache: KvCacheInfo) -> float:
        if cache.size_tokens is not None:
            return float(cache.size_tokens)
        if cache.num_gpu_blocks is not None and cache.block_size is not None:
            return float(cache.num_gpu_blocks * cache.block_size)
        return float("inf")

    return min((cache for cache in caches if cache is not None), key=tokens, default=None)
