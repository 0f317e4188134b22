"""Answers of Prometheus become pod readings: by pod, NaN left out, histograms put together from their buckets."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from wattkeeper.domain.histogram import Histogram
from wattkeeper.domain.observation import EngineCounters, GpuReading, KvCacheInfo, PodReading
from wattkeeper.telemetry import aliases
from wattkeeper.telemetry.engine import Series, engine_counters
from wattkeeper.telemetry.promql import PART, SUM_BUCKET, TIME_PART
from wattkeeper.telemetry.source import PodKey

SCALAR_FIELDS = {
    aliases.RUNNING: "running",
    aliases.WAITING: "waiting",
    aliases.KV_USAGE: "kv_usage",
    aliases.FINISHED: "finished_per_second",
    "finished_total": "finished_requests",
    "growth": "in_system_growth_per_second",
    aliases.PROMPT_TOKENS: "prompt_tokens_per_second",
    aliases.GENERATION_TOKENS: "generation_tokens_per_second",
    aliases.PREEMPTIONS: "preemptions_per_second",
    aliases.PREFIX_QUERIES: "prefix_queries_per_second",
    aliases.PREFIX_HITS: "prefix_hits_per_second",
}
"""Fields of a `PodReading` that are one number, by query name."""
HISTOGRAM_FIELDS = {
    aliases.TTFT: "ttft_seconds",
    aliases.TPOT: "tpot_seconds",
    aliases.PROMPT_LENGTH: "prompt_tokens",
    aliases.OUTPUT_LENGTH: "output_tokens",
}
"""Fields of a `PodReading` that are histograms, by query name."""
_GPU_FIELDS: tuple[tuple[str, Callable[[GpuReading, float], GpuReading]], ...] = (
    (aliases.GPU_CLOCK, lambda gpu, value: replace(gpu, sm_clock_mhz=value)),
    (aliases.GPU_LIMIT, lambda gpu, value: replace(gpu, power_limit_watts=value)),
    (aliases.GPU_USE, lambda gpu, per_cent: replace(gpu, utilisation=0.01 * per_cent)),
    (aliases.GPU_TEMPERATURE, lambda gpu, value: replace(gpu, temperature_celsius=value)),
)
"""Query, and a reading with what it says."""


class Sample(NamedTuple):
    """One element of an instant vector. A tuple, as a large fleet has a hundred thousand of them per collection."""

    labels: Mapping[str, str]
    time_seconds: float
    """When Prometheus evaluated the query, by its own clock."""
    value: float


Answers = Mapping[str, list[Sample]]
"""Finite samples by query name; a query that failed is absent."""


def pod_readings(
    answers: Answers,
    gpus_by_pod: Mapping[PodKey, tuple[GpuReading, ...]],
    *,
    prefixes: Sequence[str] = aliases.DEFAULT_PREFIXES,
) -> tuple[dict[PodKey, PodReading], list[str]]:
    """Readings of all pods that have an age, and what was odd.

    Ages come from Prometheus' own clock on both sides, so a skewed clock here does no harm.
    """
    errors: list[str] = []
    ages = _ages(answers["age"], errors)
    scalars = {
        field: _scalars(answers[name], signed=name == "growth")
        for name, field in SCALAR_FIELDS.items()
        if name in answers
    }
    histograms = {field: _histograms(answers[name]) for name, field in HISTOGRAM_FIELDS.items() if name in answers}
    caches = _caches(answers.get(aliases.CACHE_INFO, []))
    engines = _engines(answers.get("counters", []), prefixes)
    pods = {
        key: PodReading(
            namespace=key[0],
            pod=key[1],
            age_seconds=age,
            kv_cache=caches.get(key),
            gpus=gpus_by_pod.get(key, ()),
            engine=engines.get(key),
            **{field: values.get(key) for field, values in scalars.items()},  # type: ignore[arg-type]
            **{field: found.get(key) for field, found in histograms.items()},  # type: ignore[arg-type]
        )
        for key, age in ages.items()
    }
    return pods, errors


def gpu_readings(
    answers: Answers, *, max_age_seconds: float
) -> tuple[dict[str, GpuReading], dict[PodKey, tuple[GpuReading, ...]], list[str]]:
    """All GPUs by UUID, the GPUs of each pod, and what was odd.

    Watts older than `max_age_seconds` are None. So are the watts of a MIG slice: they are those of the whole card.
    """
    errors: list[str] = []
    ages = {_identity(sample.labels): sample.time_seconds - sample.value for sample in answers.get("gpu_age", [])}
    gpus: dict[str, GpuReading] = {}
    owners: dict[str, PodKey] = {}
    stale = 0
    for sample in answers.get(aliases.GPU_POWER, []):
        uuid = aliases.label(sample.labels, aliases.UUID_LABELS)
        age = ages.get(_identity(sample.labels))
        if uuid is None or age is None:
            continue
        mig = aliases.label(sample.labels, aliases.MIG_LABELS)
        fresh = age <= max_age_seconds
        stale += not fresh
        name = uuid if mig is None else f"{uuid}/{mig}"
        reading = GpuReading(
            uuid=name,
            node=aliases.label(sample.labels, aliases.NODE_LABELS) or "",
            power_watts=sample.value if fresh and mig is None else None,
            model=aliases.label(sample.labels, aliases.MODEL_LABELS),
        )
        key = aliases.pod_key(sample.labels)
        # Two jobs may scrape one exporter: the one that names a workload's pod explicitly wins.
        if name not in gpus or (_explicit(sample.labels) and key is not None):
            gpus[name] = reading
            if key is not None:
                owners[name] = key
    if stale:
        errors.append(f"power of {stale} GPUs is older than {max_age_seconds:.0f} s and left out")
    for query, told in _GPU_FIELDS:
        for sample in answers.get(query, []):
            uuid = aliases.label(sample.labels, aliases.UUID_LABELS)
            if uuid in gpus:
                gpus[uuid] = told(gpus[uuid], sample.value)
    for sample in answers.get("kepler_node", []):
        uuid = aliases.label(sample.labels, aliases.UUID_LABELS)
        if uuid is not None and uuid not in gpus:
            node = aliases.label(sample.labels, aliases.NODE_LABELS) or ""
            gpus[uuid] = GpuReading(uuid=uuid, node=node, power_watts=sample.value)
    by_pod: defaultdict[PodKey, list[GpuReading]] = defaultdict(list)
    for uuid, key in owners.items():
        by_pod[key].append(gpus[uuid])
    for key, watts in _scalars(answers.get("kepler_pod", [])).items():
        if key not in by_pod:
            by_pod[key].append(GpuReading(uuid=f"kepler:{key[0]}/{key[1]}", node="", power_watts=watts))
    return gpus, {key: tuple(readings) for key, readings in by_pod.items()}, errors


def histogram(buckets: Mapping[float, float], total: float | None) -> Histogram | None:
    """A histogram from cumulative values by upper bound; None where the +Inf bucket or the sum is missing.

    Rates of buckets are extrapolated one by one and may step down by a rounding error: they are made to ascend.
    """
    if math.inf not in buckets or total is None:
        return None
    bounds = sorted(buckets)
    cumulative, highest = [], 0.0
    for bound in bounds:
        highest = max(highest, buckets[bound])
        cumulative.append(highest)
    return Histogram(upper_bounds=tuple(bounds), cumulative=tuple(cumulative), total=total)


def cache_info(labels: Mapping[str, str]) -> KvCacheInfo:
    """What `cache_config_info` says in its labels; "None" and absent labels are None."""
    return KvCacheInfo(
        num_gpu_blocks=_integer(labels.get("num_gpu_blocks")),
        block_size=_integer(labels.get("block_size")),
        size_tokens=_integer(labels.get("kv_cache_size_tokens")),
        cache_dtype=labels.get("cache_dtype") or None,
    )


def add_caches(first: KvCacheInfo | None, second: KvCacheInfo) -> KvCacheInfo:
    """The caches of two engines of one pod as one; a figure that one of them lacks is None."""
    if first is None:
        return second
    return KvCacheInfo(
        num_gpu_blocks=_sum(first.num_gpu_blocks, second.num_gpu_blocks),
        block_size=first.block_size if first.block_size == second.block_size else None,
        size_tokens=_sum(first.size_tokens, second.size_tokens),
        cache_dtype=first.cache_dtype,
    )


def _ages(samples: Iterable[Sample], errors: list[str]) -> dict[PodKey, float]:
    ages: dict[PodKey, float] = {}
    unlabelled = 0
    for sample in samples:
        key = aliases.pod_key(sample.labels)
        if key is None:
            unlabelled += 1
            continue
        age = max(0.0, sample.time_seconds - sample.value)
        ages[key] = min(age, ages.get(key, math.inf))
    if unlabelled:
        errors.append(
            f"{unlabelled} engine series carry no pod and namespace label and cannot be used: "
            "scrape pods with a PodMonitor, or relabel __meta_kubernetes_pod_name to pod"
        )
    return ages


def _scalars(samples: Iterable[Sample], *, signed: bool = False) -> dict[PodKey, float]:
    """By pod; where two label schemes name the same pod the larger value stands. Negative values are no reading."""
    values: dict[PodKey, float] = {}
    for sample in samples:
        key = aliases.pod_key(sample.labels)
        if key is not None and (signed or sample.value >= 0.0):
            values[key] = max(sample.value, values.get(key, -math.inf))
    return values


def _histograms(samples: Iterable[Sample]) -> dict[PodKey, Histogram]:
    buckets: defaultdict[PodKey, dict[float, float]] = defaultdict(dict)
    totals: dict[PodKey, float] = {}
    for sample in samples:
        key = aliases.pod_key(sample.labels)
        le = sample.labels.get("le")
        if key is None or le is None:
            continue
        if le == SUM_BUCKET:
            totals[key] = max(sample.value, totals.get(key, 0.0))
        else:
            bound = float(le)
            buckets[key][bound] = max(sample.value, buckets[key].get(bound, 0.0))
    found = {key: histogram(shown, totals.get(key)) for key, shown in buckets.items()}
    return {key: made for key, made in found.items() if made is not None}


def _engines(samples: Iterable[Sample], prefixes: Sequence[str]) -> dict[PodKey, EngineCounters]:
    """Counters of the pods whose time of scrape is known."""
    series: defaultdict[PodKey, Series] = defaultdict(dict)
    times: dict[PodKey, float] = {}
    for sample in samples:
        key = aliases.pod_key(sample.labels)
        if key is None:
            continue
        if sample.labels.get(PART) == TIME_PART:
            times[key] = sample.value
        else:
            series[key].setdefault(sample.labels.get("__name__", ""), []).append((sample.labels, sample.value))
    found = {
        key: engine_counters(shown, prefixes, time_seconds=times[key]) for key, shown in series.items() if key in times
    }
    return {key: made for key, made in found.items() if made is not None}


def _caches(samples: Iterable[Sample]) -> dict[PodKey, KvCacheInfo]:
    by_engine: dict[tuple[PodKey, str], KvCacheInfo] = {}
    for sample in samples:
        key = aliases.pod_key(sample.labels)
        if key is not None:
            by_engine[key, sample.labels.get("engine", "")] = cache_info(sample.labels)
    caches: dict[PodKey, KvCacheInfo] = {}
    for (key, _), info in by_engine.items():
        caches[key] = add_caches(caches.get(key), info)
    return caches


def _explicit(labels: Mapping[str, str]) -> bool:
    """True where the exporter itself named the pod, so that it cannot be the exporter's own."""
    return any(labels.get(name) for name in aliases.POD_LABELS if name != "pod")


def _identity(labels: Mapping[str, str]) -> frozenset[tuple[str, str]]:
    return frozenset(labels.items())


def _integer(text: str | None) -> int | None:
    try:
        return int(float(text)) if text else None
    except (ValueError, OverflowError):
        return None


def _sum(first: int | None, second: int | None) -> int | None:
    return None if first is None or second is None else first + second
