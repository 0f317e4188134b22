"""An hour of traffic for end-to-end runs, and what Prometheus says of it afterwards.

The hour is Azure's conversation trace of 2023 where its file is there, else a synthetic hour with lengths like those of
ShareGPT conversations. Energy and latencies are read with PromQL from the series that DCGM's exporter and vLLM serve,
so the same queries work on a production cluster.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import datetime as dt
import pathlib

import numpy as np

from e2e.cluster import prometheus
from wattkeeper.domain.workload import LengthDistribution
from wattkeeper.traces import formats, generate
from wattkeeper.traces.trace import RateSeries, Trace

AZURE_FILE = pathlib.Path("traces") / "azure-2023" / "AzureLLMInferenceTrace_conv.csv"
COPY_SHIFT_SECONDS = 60.0
"""Copies of a request are moved by a normal shift of this size, so that they do not arrive as one burst."""
TTFT_TARGET_SECONDS = 1.0
TPOT_TARGET_SECONDS = 0.05


def recorded(path: pathlib.Path, *, scale: int, seed: int = 1) -> Trace:
    """The recorded hour at `scale` times its rate."""
    loaded = formats.load(path)
    if not isinstance(loaded, Trace):
        raise TypeError(f"{path} holds rates; an hour of requests is needed")
    rng = np.random.default_rng(seed)
    index = np.tile(np.arange(len(loaded)), scale)
    shift = rng.normal(0.0, COPY_SHIFT_SECONDS, len(index))
    times = np.abs(loaded.times_seconds[index] + shift)
    last = np.nextafter(loaded.span_seconds, 0.0)
    times = np.where(times > last, 2 * last - times, times)
    order = np.argsort(times, kind="stable")
    return Trace(
        times_seconds=times[order],
        prompt_tokens=loaded.prompt_tokens[index][order],
        output_tokens=loaded.output_tokens[index][order],
        cached_tokens=loaded.cached_tokens[index][order],
        span_seconds=loaded.span_seconds,
    )


def synthetic(*, peak: float, seed: int = 1) -> Trace:
    """An hour with a swell and a lull; lengths like those of ShareGPT conversations, the history in the prompt."""
    shape = (0.65, 0.75, 0.85, 0.8, 0.95, 1.0, 0.95, 0.8, 0.65, 0.55, 0.5, 0.5)
    series = RateSeries(
        times_seconds=tuple(300.0 * index for index in range(len(shape))),
        requests_per_second=tuple(peak * part for part in shape),
    )
    return generate.generate(
        series, prompt=_lognormal(1100.0, 1.0), output=_lognormal(210.0, 0.9), seed=seed, seconds=3600.0
    )


def _lognormal(mean: float, sigma: float) -> LengthDistribution:
    drawn = np.random.default_rng(7).lognormal(np.log(mean) - sigma**2 / 2, sigma, 400).clip(4, 12000)
    values = tuple(sorted(float(round(each)) for each in drawn))
    return LengthDistribution(tokens=values, weights=(1.0 / len(values),) * len(values))


def dispersion(trace: Trace, *, bin_seconds: float = 5.0) -> float:
    """Index of dispersion of the arrival counts, as an operator that looks every 5 s measures it in real time."""
    counts, _ = np.histogram(trace.times_seconds, bins=np.arange(0.0, trace.span_seconds, bin_seconds))
    return float(max(1.0, np.mean(np.diff(counts) ** 2) / 2 / counts.mean()))


def write(trace: Trace, path: pathlib.Path) -> None:
    """As a file in Azure's format."""
    origin = dt.datetime(2023, 11, 16, tzinfo=dt.UTC)
    with path.open("w", encoding="utf-8") as file:
        file.write("TIMESTAMP,ContextTokens,GeneratedTokens\n")
        for arrival in trace.arrivals():
            stamp = origin + dt.timedelta(seconds=arrival.time_seconds)
            file.write(f"{stamp:%Y-%m-%d %H:%M:%S.%f},{arrival.prompt_tokens},{arrival.output_tokens}\n")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Account:
    """What a namespace's fleet used and delivered, from Prometheus alone."""

    energy_kwh: float
    """From DCGM's energy counters."""
    power_integral_kwh: float
    """The same from DCGM's power gauges."""
    requests: float
    output_tokens: float
    ttft_attainment: float
    tpot_attainment: float
    ttft_p95_seconds: float
    tpot_p95_seconds: float
    mean_replicas: float
    fewest_replicas: float
    most_replicas: float
    mean_limit_watts: float
    lowest_limit_watts: float
    lost: float

    @property
    def joules_per_token(self) -> float:
        """Energy per output token."""
        return 3.6e6 * self.energy_kwh / self.output_tokens


def account(
    source: prometheus.Prometheus, namespace: str, *, start: float, end: float, speed_up: float, scrape_seconds: float
) -> Account:
    """Account of a namespace's fleet from `start` to `end` (Unix times); the world runs `speed_up` times as fast."""
    window = f"[{round(end - start)}s]"

    def value(expression: str) -> float:
        found = source.value(expression, at=end)
        if found is None:
            raise LookupError(f"Prometheus has no series for `{expression}`")
        return found

    mine = f'namespace="{namespace}"'
    gpus = f'exported_namespace="{namespace}"'
    ttft, tpot = "vllm:time_to_first_token_seconds", "vllm:request_time_per_output_token_seconds"

    # Engines count from zero and are read every second, so a pod's largest count is what it served in its life.
    def total(name: str, more: str = "") -> str:
        return f"sum(max_over_time({name}{{{mine}{more}}}{window}))"

    def within(name: str, seconds: float) -> float:
        bucket = total(f"{name}_bucket", f',le="{seconds}"')
        return value(f"{bucket} / {total(f'{name}_count')}")

    def quantile(name: str) -> float:
        return value(f"histogram_quantile(0.95, sum by (le) (max_over_time({name}_bucket{{{mine}}}{window})))")

    replicas = f"count(vllm:num_requests_running{{{mine}}})"
    limit = f"DCGM_FI_DEV_ENFORCED_POWER_LIMIT{{{gpus}}}"
    over = f"{window[:-1]}:1s]"
    return Account(
        energy_kwh=value(f"sum(increase(DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION{{{gpus}}}{window})) / 3.6e9"),
        power_integral_kwh=value(f"sum(sum_over_time(DCGM_FI_DEV_POWER_USAGE{{{gpus}}}{window}))")
        * scrape_seconds
        * speed_up
        / 3.6e6,
        requests=value(total(f"{ttft}_count")),
        output_tokens=value(total("vllm:generation_tokens_total")),
        ttft_attainment=within(ttft, TTFT_TARGET_SECONDS),
        tpot_attainment=within(tpot, TPOT_TARGET_SECONDS),
        ttft_p95_seconds=quantile(ttft),
        tpot_p95_seconds=quantile(tpot),
        mean_replicas=value(f"avg_over_time({replicas}{over})"),
        fewest_replicas=value(f"min_over_time({replicas}{over})"),
        most_replicas=value(f"max_over_time({replicas}{over})"),
        mean_limit_watts=value(f"avg_over_time(avg({limit}){over})"),
        lowest_limit_watts=value(f"min_over_time(min({limit}){over})"),
        lost=value(f'wattkeeper_twin_requests_total{{service=~"{namespace}/.*",outcome="lost"}}'),
    )


def table(rows: collections.abc.Mapping[str, Account]) -> str:
    """The accounts side by side, one column each."""
    lines: list[tuple[str, collections.abc.Callable[[Account], str]]] = [
        ("energy, kWh (DCGM energy counters)", lambda a: f"{a.energy_kwh:.3f}"),
        ("energy, kWh (DCGM power x time)", lambda a: f"{a.power_integral_kwh:.3f}"),
        ("energy per output token, J", lambda a: f"{a.joules_per_token:.3f}"),
        (f"TTFT <= {TTFT_TARGET_SECONDS:g} s, share of requests", lambda a: f"{a.ttft_attainment:.4f}"),
        (f"TPOT <= {1000 * TPOT_TARGET_SECONDS:g} ms, share of requests", lambda a: f"{a.tpot_attainment:.4f}"),
        ("TTFT p95, ms", lambda a: f"{1000 * a.ttft_p95_seconds:.0f}"),
        ("TPOT p95, ms", lambda a: f"{1000 * a.tpot_p95_seconds:.1f}"),
        ("requests served", lambda a: f"{a.requests:.0f}"),
        ("requests lost", lambda a: f"{a.lost:.0f}"),
        (
            "replicas, mean (least to most)",
            lambda a: f"{a.mean_replicas:.2f} ({a.fewest_replicas:.0f}-{a.most_replicas:.0f})",
        ),
        ("power limit per GPU, W, mean (lowest)", lambda a: f"{a.mean_limit_watts:.0f} ({a.lowest_limit_watts:.0f})"),
    ]
    width = max(len(title) for title, _ in lines)
    columns = {name: max(12, len(name)) for name in rows}
    head = " " * width + "".join(f"  {name:>{columns[name]}}" for name in rows)
    body = [
        f"{title:<{width}}" + "".join(f"  {show(row):>{columns[name]}}" for name, row in rows.items())
        for title, show in lines
    ]
    return "\n".join([head, *body])
