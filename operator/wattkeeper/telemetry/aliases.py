"""Names of the series that are read, over the versions that are in the field.

Newest name first; per pod the first name that is there counts, so a version that serves an old and a new name is not
counted twice. Engine names are without their prefix ("vllm:" unless configured). vLLM names follow its V1 engine, 0.8
to 0.33; `finish_reason` and the absence of `engine` are llm-d-inference-sim; GPU names follow dcgm-exporter and Kepler.
docs/metrics-read.md lists them by version.
"""

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


class Kind(enum.Enum):
    """How the values of a metric are to be read."""

    GAUGE = "gauge"
    COUNTER = "counter"
    HISTOGRAM = "histogram"
    TOTALS = "totals"
    """A histogram of which only sum and count are read."""
    INFO = "info"
    """Always 1; the labels are the message."""


class Across(enum.Enum):
    """How the engines (data-parallel ranks) of one pod make one number."""

    SUM = "sum"
    MAX = "max"


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One quantity and its names. Counters are named as served (`_total`), histograms without `_bucket`/`_sum`."""

    names: tuple[str, ...]
    kind: Kind
    across: Across = Across.SUM
    split_labels: tuple[str, ...] = ()
    """Labels that divide one engine's number into parts, to be added up (for INFO: the labels that are read)."""


RUNNING = "running"
WAITING = "waiting"
KV_USAGE = "kv_usage"
FINISHED = "finished"
PROMPT_TOKENS = "prompt_tokens"
GENERATION_TOKENS = "generation_tokens"
PREEMPTIONS = "preemptions"
PREFIX_QUERIES = "prefix_queries"
PREFIX_HITS = "prefix_hits"
TTFT = "ttft"
TPOT = "tpot"
PROMPT_LENGTH = "prompt_length"
OUTPUT_LENGTH = "output_length"
CACHE_INFO = "cache_info"
ITERATION_TOKENS = "iteration_tokens"
GAPS = "gaps"
CACHED_TOKENS = "cached_tokens"

ENGINE_METRICS: Mapping[str, Metric] = {
    RUNNING: Metric(names=("num_requests_running",), kind=Kind.GAUGE),
    WAITING: Metric(names=("num_requests_waiting",), kind=Kind.GAUGE),
    KV_USAGE: Metric(names=("kv_cache_usage_perc", "gpu_cache_usage_perc"), kind=Kind.GAUGE, across=Across.MAX),
    FINISHED: Metric(
        names=("request_success_total", "request_success"),
        kind=Kind.COUNTER,
        split_labels=("finished_reason", "finish_reason"),
    ),
    PROMPT_TOKENS: Metric(names=("prompt_tokens_total", "prompt_tokens"), kind=Kind.COUNTER),
    GENERATION_TOKENS: Metric(names=("generation_tokens_total", "generation_tokens"), kind=Kind.COUNTER),
    PREEMPTIONS: Metric(names=("num_preemptions_total", "num_preemptions"), kind=Kind.COUNTER),
    PREFIX_QUERIES: Metric(
        names=(
            "prefix_cache_queries_total",
            "prefix_cache_queries",
            "gpu_prefix_cache_queries_total",
            "gpu_prefix_cache_queries",
        ),
        kind=Kind.COUNTER,
    ),
    PREFIX_HITS: Metric(
        names=("prefix_cache_hits_total", "prefix_cache_hits", "gpu_prefix_cache_hits_total", "gpu_prefix_cache_hits"),
        kind=Kind.COUNTER,
    ),
    TTFT: Metric(names=("time_to_first_token_seconds",), kind=Kind.HISTOGRAM),
    TPOT: Metric(
        names=(
            "request_time_per_output_token_seconds",
            "inter_token_latency_seconds",
            "time_per_output_token_seconds",
        ),
        kind=Kind.HISTOGRAM,
    ),
    PROMPT_LENGTH: Metric(names=("request_prompt_tokens",), kind=Kind.HISTOGRAM),
    OUTPUT_LENGTH: Metric(names=("request_generation_tokens",), kind=Kind.HISTOGRAM),
    CACHE_INFO: Metric(
        names=("cache_config_info",),
        kind=Kind.INFO,
        split_labels=("num_gpu_blocks", "block_size", "kv_cache_size_tokens", "cache_dtype"),
    ),
}

STEP_METRICS: Mapping[str, Metric] = {
    ITERATION_TOKENS: Metric(names=("iteration_tokens_total",), kind=Kind.TOTALS),
    GAPS: Metric(names=("inter_token_latency_seconds", "time_per_output_token_seconds"), kind=Kind.TOTALS),
    CACHED_TOKENS: Metric(names=("prompt_tokens_cached_total", "prompt_tokens_cached"), kind=Kind.COUNTER),
}
"""Read beside those above for what happened between two scrapes; without them nothing but the refit is lost."""

COUNTED = (RUNNING, WAITING, KV_USAGE, FINISHED, PROMPT_TOKENS, GENERATION_TOKENS, PREEMPTIONS, PREFIX_HITS)
"""Of the metrics above, those that are read for that as well."""

ENGINE_LABELS = ("engine", "model_name")
"""Labels that tell the engines of one pod apart."""

GPU_POWER = "gpu_power"
GPU_CLOCK = "gpu_clock"
GPU_LIMIT = "gpu_limit"
GPU_USE = "gpu_use"
GPU_TEMPERATURE = "gpu_temperature"

DCGM_METRICS: Mapping[str, Metric] = {
    GPU_POWER: Metric(names=("DCGM_FI_DEV_POWER_USAGE", "DCGM_FI_DEV_POWER_USAGE_INSTANT"), kind=Kind.GAUGE),
    GPU_CLOCK: Metric(names=("DCGM_FI_DEV_SM_CLOCK",), kind=Kind.GAUGE),
    GPU_LIMIT: Metric(names=("DCGM_FI_DEV_ENFORCED_POWER_LIMIT", "DCGM_FI_DEV_POWER_MGMT_LIMIT"), kind=Kind.GAUGE),
    GPU_USE: Metric(names=("DCGM_FI_DEV_GPU_UTIL",), kind=Kind.GAUGE),
    GPU_TEMPERATURE: Metric(names=("DCGM_FI_DEV_GPU_TEMP",), kind=Kind.GAUGE),
}

KEPLER_POD_WATTS = "kepler_pod_gpu_watts"
"""Kepler since its rewrite (0.10, experimental): power attributed to a pod."""
KEPLER_CONTAINER_JOULES = "kepler_container_gpu_joules_total"
"""Kepler up to 0.9, where it carries `pod_name`: energy attributed to a container."""
KEPLER_NODE_WATTS = "kepler_node_gpu_watts"
"""Kepler since its rewrite (0.10, experimental): power of one whole GPU."""

# With `honor_labels: false` Prometheus keeps what the exporter said as exported_*, and pod/namespace then name the
# exporter itself; so the most explicit label comes first.
POD_LABELS = ("exported_pod", "pod_name", "kubernetes_pod_name", "pod")
NAMESPACE_LABELS = (
    "exported_namespace",
    "pod_namespace",
    "container_namespace",
    "kubernetes_namespace",
    "namespace",
)
UUID_LABELS = ("UUID", "gpu_uuid", "uuid")
NODE_LABELS = ("Hostname", "hostname", "node_name", "exported_node", "node")
MODEL_LABELS = ("modelName", "gpu_name")
MIG_LABELS = ("GPU_I_ID",)

DEFAULT_PREFIXES = ("vllm:",)


def full_names(metric: Metric, prefixes: Sequence[str]) -> tuple[str, ...]:
    """All names of an engine metric in the order in which they are tried."""
    return tuple(prefix + name for name in metric.names for prefix in prefixes)


def sample_names(metric: Metric, prefixes: Sequence[str]) -> tuple[str, ...]:
    """Names of the samples that are read of an engine metric."""
    suffixes = {Kind.HISTOGRAM: ("_bucket", "_sum"), Kind.TOTALS: ("_sum", "_count")}.get(metric.kind, ("",))
    return tuple(name + suffix for name in full_names(metric, prefixes) for suffix in suffixes)


def label(labels: Mapping[str, str], names: Sequence[str]) -> str | None:
    """The first of the labels that is there and not empty."""
    for name in names:
        if value := labels.get(name):
            return value
    return None


def pod_key(labels: Mapping[str, str]) -> tuple[str, str] | None:
    """(namespace, pod) that a series is about; None where its labels do not say."""
    pod, namespace = label(labels, POD_LABELS), label(labels, NAMESPACE_LABELS)
    return None if pod is None or namespace is None else (namespace, pod)
