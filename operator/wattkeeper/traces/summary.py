"""What a trace looks like: rate, burstiness at several windows, lengths, prefix hits, and a picture."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wattkeeper.domain.workload import FloatArray
from wattkeeper.replica import arrivals
from wattkeeper.traces.prefixes import PrefixTrace
from wattkeeper.traces.trace import IntArray, Trace

WINDOWS_SECONDS = (1.0, 10.0, 60.0, 600.0)
PERCENTILES = (50, 90, 99)
CACHE_BLOCKS = (1_000, 10_000, 50_000)
_PICTURE_BINS = 144
_PICTURE_SHARES = 1001


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Of one trace."""

    requests: int
    span_seconds: float
    requests_per_second: float
    peak_requests_per_second: float
    """Of whole minutes; of the whole where it is shorter than two."""
    longest_silence_seconds: float
    """Between two requests."""
    dispersion: tuple[float, ...]
    """Index (variance over mean of counts) at WINDOWS_SECONDS; nan where fewer than two windows fit; 1 is Poisson."""
    prompt_tokens: tuple[float, ...]
    """Mean, then PERCENTILES."""
    output_tokens: tuple[float, ...]
    prefix_hit_ratio: float
    """Share of all prompt tokens, in a cache that forgets nothing."""
    prefix_hits_by_cache: tuple[tuple[int, float], ...]
    """(blocks of the cache, share); empty where no blocks are known."""
    repairs: tuple[str, ...]


def summarise(trace: Trace) -> Summary:
    """Of a trace with at least one request."""
    times, prompts = trace.times_seconds, float(trace.prompt_tokens.sum())
    minutes = np.bincount((times / 60.0).astype(np.int64))[: max(1, int(trace.span_seconds / 60.0))]
    mean = len(trace) / trace.span_seconds
    by_cache: tuple[tuple[int, float], ...] = ()
    if isinstance(trace, PrefixTrace):
        by_cache = tuple((size, float(trace.cached_under(size).sum()) / prompts) for size in CACHE_BLOCKS)
    return Summary(
        requests=len(trace),
        span_seconds=trace.span_seconds,
        requests_per_second=mean,
        peak_requests_per_second=float(minutes.max()) / 60.0 if trace.span_seconds >= 120.0 else mean,
        longest_silence_seconds=float(np.diff(times).max()) if len(times) > 1 else 0.0,
        dispersion=tuple(map(float, arrivals.dispersion(times, WINDOWS_SECONDS))),
        prompt_tokens=_lengths(trace.prompt_tokens),
        output_tokens=_lengths(trace.output_tokens),
        prefix_hit_ratio=float(trace.cached_tokens.sum()) / prompts,
        prefix_hits_by_cache=by_cache,
        repairs=trace.repairs,
    )


def lines(found: Summary) -> list[str]:
    """For people."""
    texts = [
        f"requests     {found.requests} in {found.span_seconds:.0f} s",
        f"rate         {found.requests_per_second:.4g}/s, busiest minute {found.peak_requests_per_second:.4g}/s, "
        f"longest silence {found.longest_silence_seconds:.4g} s",
        "dispersion   "
        + ", ".join(
            f"{value:.3g} at {window:g} s"
            for window, value in zip(WINDOWS_SECONDS, found.dispersion, strict=True)
            if np.isfinite(value)
        ),
    ]
    for name, values in (("prompt", found.prompt_tokens), ("output", found.output_tokens)):
        parts = ", ".join(f"p{q} {value:.0f}" for q, value in zip(PERCENTILES, values[1:], strict=True))
        texts.append(f"{name:<13}mean {values[0]:.1f} tokens, {parts}")
    texts.append(f"prefix hits  {found.prefix_hit_ratio:.1%} of prompt tokens at best")
    texts += [f"             {share:.1%} with a cache of {size} blocks" for size, share in found.prefix_hits_by_cache]
    return [*texts, *(f"repaired     {text}" for text in found.repairs)]


def draw(trace: Trace, path: Path, *, title: str) -> None:
    """A small picture (PNG): requests per second over time, and lengths."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(2, 1))
    edges: FloatArray = np.linspace(0.0, trace.span_seconds, _PICTURE_BINS + 1)
    counts, _ = np.histogram(trace.times_seconds, edges)
    left.step(edges[:-1] / 3600.0, counts / np.diff(edges), where="post", linewidth=1)
    left.set(title=title, xlabel="hours", ylabel="requests per second", ylim=(0, None))
    for name, tokens in (("prompt", trace.prompt_tokens), ("output", trace.output_tokens)):
        shares = np.linspace(0.0, 1.0, _PICTURE_SHARES)
        right.plot(np.quantile(tokens, shares, method="inverted_cdf"), shares, label=name)
    right.set(xscale="log", xlabel="tokens", ylabel="share at or below", ylim=(0, 1))
    right.legend(loc="lower right")
    figure.savefig(path, dpi=110)


def _lengths(tokens: IntArray) -> tuple[float, ...]:
    return (float(tokens.mean()), *map(float, np.percentile(tokens, PERCENTILES)))
