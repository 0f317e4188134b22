"""Prometheus text of one simulated vLLM pod and of the GPUs of one node, with the names and labels of the real ones.

Two profiles of vLLM: `current` (0.15 and later) and `legacy` (0.8 to 0.9.1), which had other names for KV usage, prefix
cache counters and the time between tokens. GPU text follows dcgm-exporter with Kubernetes mapping on: labels gpu, UUID,
device, modelName, Hostname, and pod, namespace, container where a pod holds the GPU.
"""

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from wattkeeper.twin.counters import BucketCounts
from wattkeeper.twin.replica import Replica


class VllmProfile(enum.Enum):
    """Which generation of metric names a pod serves."""

    CURRENT = "current"
    LEGACY = "legacy"


@dataclass(frozen=True, kw_only=True)
class GpuSample:
    """What dcgm-exporter would say of one GPU now; `pod` is None where no pod holds it."""

    index: int
    uuid: str
    node: str
    model_name: str
    power_watts: float
    energy_joules: float
    sm_clock_mhz: float
    utilisation: float
    """Share of time the card was busy, 0..1."""
    limit_watts: float
    namespace: str | None = None
    pod: str | None = None
    container: str | None = None


def escape(value: str) -> str:
    """A label value as the text format wants it."""
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _histogram(lines: list[str], name: str, text: str, labels: str, histogram: BucketCounts) -> None:
    lines.append(f"# HELP {name} {text}\n# TYPE {name} histogram")
    cumulative = list(histogram.cumulative())
    lines.extend(
        f'{name}_bucket{{{labels},le="{bound}"}} {count}.0'
        for bound, count in zip(histogram.bounds, cumulative, strict=False)
    )
    lines.append(f'{name}_bucket{{{labels},le="+Inf"}} {cumulative[-1]}.0')
    lines.append(f"{name}_count{{{labels}}} {cumulative[-1]}.0\n{name}_sum{{{labels}}} {histogram.total!r}")


def _single(lines: list[str], kind: str, name: str, text: str, samples: dict[str, float]) -> None:
    lines.append(f"# HELP {name} {text}\n# TYPE {name} {kind}")
    lines.extend(f"{name}{{{labels}}} {float(value)!r}" for labels, value in samples.items())


def vllm_text(replica: Replica, *, model_name: str, profile: VllmProfile = VllmProfile.CURRENT) -> str:
    """The `/metrics` page of one engine."""
    hw, c = replica.hardware, replica.counters
    legacy = profile is VllmProfile.LEGACY
    engine = 'engine="0"'
    labels = f'{engine},model_name="{escape(model_name)}"'
    lines: list[str] = []

    def gauge(name: str, text: str, value: float) -> None:
        _single(lines, "gauge", f"vllm:{name}", text, {labels: value})

    def counter(name: str, text: str, value: float) -> None:
        _single(lines, "counter", f"vllm:{name}_total", text, {labels: value})

    def histogram(name: str, text: str, counts: BucketCounts) -> None:
        _histogram(lines, f"vllm:{name}", text, labels, counts)

    gauge("num_requests_running", "Number of requests in model execution batches.", len(replica.running))
    gauge("num_requests_waiting", "Number of requests waiting to be processed.", len(replica.waiting))
    usage = "gpu_cache_usage_perc" if legacy else "kv_cache_usage_perc"
    gauge(usage, "KV-cache usage. 1 means 100 percent usage.", replica.kv_usage)
    config = {
        "block_size": hw.block_size,
        "cache_dtype": hw.cache_dtype,
        "enable_prefix_caching": hw.prefix_caching,
        "gpu_memory_utilization": hw.gpu_memory_utilization,
        "num_gpu_blocks": hw.num_gpu_blocks,
        "num_gpu_blocks_override": None,
    }
    if not legacy:
        config["kv_cache_size_tokens"] = hw.num_gpu_blocks * hw.block_size
    info = ",".join(f'{key}="{escape(str(value))}"' for key, value in sorted(config.items()))
    _single(
        lines, "gauge", "vllm:cache_config_info", "Information of the LLMEngine CacheConfig", {f"{info},{engine}": 1.0}
    )
    prefix = "gpu_prefix_cache" if legacy else "prefix_cache"
    counter(f"{prefix}_queries", "Prefix cache queries, in number of queried tokens.", c.prefix_queries)
    counter(f"{prefix}_hits", "Prefix cache hits, in number of cached tokens.", c.prefix_hits)
    counter("num_preemptions", "Cumulative number of preemptions from the engine.", c.preemptions)
    if hw.max_queued_requests is not None and not legacy:
        rejected = f'model_name="{escape(model_name)}",reason="max_num_queued_reqs"'
        _single(
            lines,
            "counter",
            "vllm:admission_rejections_total",
            "Requests rejected because too many waited.",
            {rejected: c.admission_rejections},
        )
    counter("prompt_tokens", "Number of prefill tokens processed.", c.prompt_tokens)
    counter("generation_tokens", "Number of generation tokens processed.", c.generation_tokens)
    if not legacy:
        counter("prompt_tokens_cached", "Prompt tokens served from a cache.", c.cached_prompt_tokens)
    reasons = ("stop", "length", "abort") if legacy else tuple(c.finished)
    _single(
        lines,
        "counter",
        "vllm:request_success_total",
        "Count of successfully processed requests.",
        {
            f'{engine},finished_reason="{reason}",model_name="{escape(model_name)}"': c.finished[reason]
            for reason in reasons
        },
    )
    histogram("iteration_tokens_total", "Histogram of number of tokens per engine_step.", c.iteration_tokens)
    histogram("time_to_first_token_seconds", "Histogram of time to first token in seconds.", c.ttft_seconds)
    itl = "time_per_output_token_seconds" if legacy else "inter_token_latency_seconds"
    histogram(itl, "Histogram of time between output tokens in seconds.", c.inter_token_seconds)
    if not legacy:
        histogram(
            "request_time_per_output_token_seconds",
            "Histogram of time per output token of finished requests in seconds.",
            c.time_per_output_token_seconds,
        )
        histogram("request_num_preemptions", "Histogram of preemptions per request.", c.request_preemptions)
        histogram(
            "request_prefill_kv_computed_tokens", "Prompt tokens computed per request.", c.prefill_computed_lengths
        )
    histogram("e2e_request_latency_seconds", "Histogram of e2e request latency in seconds.", c.e2e_seconds)
    histogram("request_queue_time_seconds", "Histogram of time spent in WAITING phase.", c.queue_seconds)
    histogram("request_inference_time_seconds", "Histogram of time spent in RUNNING phase.", c.inference_seconds)
    histogram("request_prefill_time_seconds", "Histogram of time spent in PREFILL phase.", c.prefill_seconds)
    histogram("request_decode_time_seconds", "Histogram of time spent in DECODE phase.", c.decode_seconds)
    histogram("request_prompt_tokens", "Number of prefill tokens processed.", c.prompt_lengths)
    histogram("request_generation_tokens", "Number of generation tokens processed.", c.generation_lengths)
    return "\n".join(lines) + "\n"


_DCGM: tuple[tuple[str, str, str, Callable[[GpuSample], float]], ...] = (
    ("DCGM_FI_DEV_SM_CLOCK", "gauge", "SM clock frequency (in MHz).", lambda g: round(g.sm_clock_mhz)),
    ("DCGM_FI_DEV_POWER_USAGE", "gauge", "Power draw (in W).", lambda g: round(g.power_watts, 3)),
    (
        "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION",
        "counter",
        "Total energy consumption since boot (in mJ).",
        lambda g: round(g.energy_joules * 1000),
    ),
    ("DCGM_FI_DEV_GPU_UTIL", "gauge", "GPU utilization (in %).", lambda g: round(g.utilisation * 100)),
    ("DCGM_FI_DEV_POWER_MGMT_LIMIT", "gauge", "Power management limit (in W).", lambda g: round(g.limit_watts, 3)),
    ("DCGM_FI_DEV_ENFORCED_POWER_LIMIT", "gauge", "Enforced power limit (in W).", lambda g: round(g.limit_watts, 3)),
)


def dcgm_text(gpus: Sequence[GpuSample]) -> str:
    """The `/metrics` page of one node's dcgm-exporter."""
    labels = []
    for gpu in gpus:
        values = {
            "gpu": str(gpu.index),
            "UUID": gpu.uuid,
            "pci_bus_id": f"00000000:{gpu.index + 1:02X}:00.0",
            "device": f"nvidia{gpu.index}",
            "modelName": gpu.model_name,
            "Hostname": gpu.node,
        }
        if gpu.pod is not None:
            values |= {"container": gpu.container or "", "namespace": gpu.namespace or "", "pod": gpu.pod}
        labels.append(",".join(f'{key}="{escape(value)}"' for key, value in values.items()))
    lines: list[str] = []
    for name, kind, text, read in _DCGM:
        _single(lines, kind, name, text, {label: read(gpu) for label, gpu in zip(labels, gpus, strict=True)})
    return "\n".join(lines) + "\n"
