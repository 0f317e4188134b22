"""Metrics pages of vLLM as several versions serve them, as plain text: the reader must not check itself."""

from collections.abc import Mapping, Sequence

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)


def histogram(name: str, labels: str, values: Sequence[tuple[float, float]], bounds: Sequence[float]) -> list[str]:
    """`values` are (observed value, how often)."""
    comma = "," if labels else ""
    lines = [f"# HELP {name} Histogram.", f"# TYPE {name} histogram"]
    for bound in bounds:
        count = sum(times for value, times in values if value <= bound)
        lines.append(f'{name}_bucket{{le="{float(bound)}"{comma}{labels}}} {count}')
    count = sum(times for _, times in values)
    lines.append(f'{name}_bucket{{le="+Inf"{comma}{labels}}} {count}')
    lines.append(f"{name}_count{{{labels}}} {count}")
    lines.append(f"{name}_sum{{{labels}}} {sum(value * times for value, times in values)}")
    lines.append(f"{name}_created{{{labels}}} 1.7e+09")
    return lines


def engine(
    *,
    finished: float = 0.0,
    running: float = 0.0,
    waiting: float = 0.0,
    kv_usage: float | str = 0.25,
    profile: str = "current",
    engine: str = "0",
    prefix: str = "vllm:",
    extra_labels: str = "",
    prompt: float = 150.0,
    output: float = 30.0,
    ttft: float = 0.2,
    tpot: float = 0.03,
) -> str:
    """A page after `finished` requests of one size; profiles: current (0.15), both (0.10), legacy (0.8), sim."""
    labels = f'engine="{engine}",model_name="acme/model"' if profile != "sim" else 'model_name="acme/model"'
    labels += extra_labels
    reason = "finish_reason" if profile == "sim" else "finished_reason"
    lines = [
        "# HELP python_info Python platform information.",
        "# TYPE python_info gauge",
        'python_info{version="3"} 1',
    ]

    def single(name: str, value: float | str, more: str = "") -> None:
        lines.append(f"{prefix}{name}{{{labels}{more}}} {value}")

    single("num_requests_running", running)
    single("num_requests_waiting", waiting)
    old, new = profile in ("both", "legacy"), profile != "legacy"
    if new:
        single("kv_cache_usage_perc", kv_usage)
        single("prefix_cache_queries_total", finished * prompt)
        single("prefix_cache_hits_total", finished * prompt * 0.4)
    if old:
        single("gpu_cache_usage_perc", kv_usage)
        single("gpu_prefix_cache_queries_total", finished * prompt)
        single("gpu_prefix_cache_hits_total", finished * prompt * 0.4)
    single("prompt_tokens_total", finished * prompt)
    single("generation_tokens_total", finished * output)
    single("request_success_total", finished * 0.75, f',{reason}="stop"')
    single("request_success_total", finished * 0.25, f',{reason}="length"')
    if profile != "sim":
        single("num_preemptions_total", finished * 0.1)
    lines.append(
        f"{prefix}cache_config_info{{"
        + ("" if profile == "sim" else f'engine="{engine}",cache_dtype="auto",kv_cache_size_tokens="16000",')
        + 'block_size="16",num_gpu_blocks="1000"} 1.0'
    )
    lines += histogram(f"{prefix}time_to_first_token_seconds", labels, [(ttft, finished)], SECONDS)
    names = {
        "current": ["inter_token_latency_seconds", "request_time_per_output_token_seconds"],
        "sim": ["time_per_output_token_seconds", "request_time_per_output_token_seconds"],
        "both": ["time_per_output_token_seconds", "inter_token_latency_seconds"],
        "legacy": ["time_per_output_token_seconds"],
    }[profile]
    for name in names:
        # Between-token histograms count tokens, per-request ones count requests: only the counts differ here.
        times = finished if name.startswith("request") else finished * output
        lines += histogram(f"{prefix}{name}", labels, [(tpot, times)], SECONDS)
    lines += histogram(f"{prefix}request_prompt_tokens", labels, [(prompt, finished)], TOKENS)
    lines += histogram(f"{prefix}request_generation_tokens", labels, [(output, finished)], TOKENS)
    return "\n".join(lines) + "\n"


def dcgm(gpus: Sequence[Mapping[str, str | float]]) -> str:
    """A dcgm-exporter page; each GPU: uuid, watts, and optionally pod, namespace, mig, limit, use, celsius, host."""
    lines = ["# HELP DCGM_FI_DEV_POWER_USAGE Power draw (in W).", "# TYPE DCGM_FI_DEV_POWER_USAGE gauge"]
    for gpu in gpus:
        labels = (
            f'gpu="0",UUID="{gpu["uuid"]}",modelName="NVIDIA H100 80GB HBM3",{gpu.get("host", "Hostname")}="node-1"'
        )
        if "mig" in gpu:
            labels += f',GPU_I_ID="{gpu["mig"]}"'
        if "pod" in gpu:
            labels += f',namespace="{gpu["namespace"]}",pod="{gpu["pod"]}",container="vllm"'
        lines.append(f"DCGM_FI_DEV_POWER_USAGE{{{labels}}} {gpu['watts']}")
        lines.append(f"DCGM_FI_DEV_SM_CLOCK{{{labels}}} 1755")
        for name, series in (("use", "DCGM_FI_DEV_GPU_UTIL"), ("celsius", "DCGM_FI_DEV_GPU_TEMP")):
            if name in gpu:
                lines.append(f"{series}{{{labels}}} {gpu[name]}")
        if "limit" in gpu:
            lines.append(f"DCGM_FI_DEV_ENFORCED_POWER_LIMIT{{{labels}}} {gpu['limit']}")
    return "\n".join(lines) + "\n"
