"""Requests made up from a rate over time and distributions of lengths."""

import math

import numpy as np

from wattkeeper.domain.workload import LengthDistribution
from wattkeeper.traces.trace import FloatArray, IntArray, RateSeries, Trace


def diurnal(*, trough: float, peak: float, hours: float = 24.0, peak_hour: float = 14.0) -> RateSeries:
    """A day as a raised cosine between trough and peak requests per second."""
    times = np.arange(0.0, hours * 3600.0 + 1.0, 600.0)
    shape = (1 + np.cos((times / 3600.0 - peak_hour) * 2 * np.pi / 24.0)) / 2
    rates = trough + (peak - trough) * shape
    return RateSeries(times_seconds=tuple(map(float, times)), requests_per_second=tuple(map(float, rates)))


def flash_crowd(
    *, base: float, peak: float, at_seconds: float, rise_seconds: float, hold_seconds: float, decay_seconds: float
) -> RateSeries:
    """A steady rate that rises in a straight line, holds, and falls back exponentially (to a hundredth of the rise)."""
    if not (0.0 <= base <= peak and at_seconds > 0.0 and min(rise_seconds, hold_seconds, decay_seconds) > 0.0):
        raise ValueError("a flash crowd needs 0 <= base <= peak and positive times")
    top = at_seconds + rise_seconds
    fall = np.linspace(0.0, decay_seconds * math.log(100.0), 24)
    levels = base + (peak - base) * np.exp(-fall / decay_seconds)
    levels[-1] = base
    times = [0.0, at_seconds, top, *(top + hold_seconds + fall).tolist()]
    return RateSeries(times_seconds=tuple(times), requests_per_second=(base, base, peak, *map(float, levels)))


def generate(
    series: RateSeries,
    *,
    prompt: LengthDistribution,
    output: LengthDistribution,
    seed: int,
    gap_cv: float = 1.0,
    prefix_hit_ratio: float = 0.0,
    seconds: float | None = None,
) -> Trace:
    """Requests at the rates of `series`: a gamma renewal process (`gap_cv` 1 = Poisson) under time rescaling.

    Lengths are drawn independently. `seconds` cuts or prolongs the series (the last rate goes on).
    """
    rng = np.random.default_rng(seed)
    span = seconds if seconds is not None else series.times_seconds[-1]
    times = arrival_times(series, gap_cv=gap_cv, span_seconds=span, rng=rng)
    prompts = _draw(rng, prompt, len(times))
    return Trace(
        times_seconds=times,
        prompt_tokens=prompts,
        output_tokens=_draw(rng, output, len(times)),
        cached_tokens=np.floor(prompts * prefix_hit_ratio).astype(np.int64),
        span_seconds=span,
    )


def _draw(rng: np.random.Generator, lengths: LengthDistribution, count: int) -> IntArray:
    drawn = rng.choice(np.asarray(lengths.tokens), size=count, p=np.asarray(lengths.weights) / sum(lengths.weights))
    tokens: IntArray = np.maximum(1, np.rint(drawn)).astype(np.int64)
    return tokens


def arrival_times(series: RateSeries, *, gap_cv: float, span_seconds: float, rng: np.random.Generator) -> FloatArray:
    """Ascending times in [0, span) of a gamma renewal process (coefficient of variation `gap_cv`) at these rates."""
    grid = np.union1d(np.asarray(series.times_seconds), np.arange(0.0, span_seconds, 60.0))
    grid = np.append(grid[grid < span_seconds], span_seconds)
    rates = np.interp(grid, series.times_seconds, series.requests_per_second)
    expected = np.concatenate(([0.0], np.cumsum(np.diff(grid) * (rates[1:] + rates[:-1]) / 2)))
    shape = 1.0 / gap_cv**2
    work = np.cumsum(
        rng.gamma(shape, 1.0 / shape, max(1, int(expected[-1] + 10 * gap_cv * np.sqrt(expected[-1]) + 10)))
    )
    work = work[work < expected[-1]]
    # A flat stretch (rate zero) has no inverse: a tiny slope keeps the map strictly increasing.
    return np.asarray(np.interp(work, expected + np.arange(len(expected)) * 1e-9, grid))
