"""Requests drawn from a rate over time, in parts of bounded memory: days and weeks of millions of requests.

Arrivals are a gamma renewal process in operational time (the expected number of requests so far), mapped back to the
clock: a coefficient of variation of 1 is Poisson. Noise from minute to minute multiplies the rate by a lognormal of
mean one. Parts are blocks of a fixed number of draws, each from an own random stream, so the traffic is the same
whether it is asked for at once or in parts.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from wattkeeper.domain.workload import FloatArray, LengthDistribution
from wattkeeper.replica import arrivals
from wattkeeper.traces.trace import Drawable, IntArray, RateSeries, Trace

BLOCK_REQUESTS = 1 << 18
MINUTE_SECONDS = 60.0
_GAPS, _NOISE, _STATES = 101, 102, 103
_OUTPUT_SEED = 1_000_003


@dataclass(frozen=True, kw_only=True)
class Intensity:
    """Expected requests since the beginning at ascending times from zero on, linear in between; shape (K,) both."""

    times_seconds: FloatArray
    expected: FloatArray

    @property
    def span_seconds(self) -> float:
        """Where it ends."""
        return float(self.times_seconds[-1])


@dataclass(frozen=True, kw_only=True)
class Independent:
    """Prompt and answer lengths that know nothing of each other."""

    prompt: LengthDistribution
    output: LengthDistribution

    def draw(self, count: int, *, seed: int) -> tuple[IntArray, IntArray]:
        """Prompt and output tokens of `count` requests."""
        return (
            arrivals.lengths(self.prompt, count=count, seed=seed),
            arrivals.lengths(self.output, count=count, seed=seed + _OUTPUT_SEED),
        )


def intensity(
    series: RateSeries,
    *,
    start_seconds: float,
    end_seconds: float,
    scale: float = 1.0,
    noise: float = 0.0,
    seed: int = 0,
) -> Intensity:
    """Of a rate series between two times. Beyond its end the last rate goes on. `noise`: see the module."""
    minutes = np.arange(np.floor(start_seconds / MINUTE_SECONDS), np.ceil(end_seconds / MINUTE_SECONDS) + 1)
    grid = np.union1d(np.asarray(series.times_seconds), minutes * MINUTE_SECONDS)
    grid = np.concatenate(([start_seconds], grid[(grid > start_seconds) & (grid < end_seconds)], [end_seconds]))
    rates = np.interp(grid, series.times_seconds, series.requests_per_second)
    amounts = scale * np.diff(grid) * (rates[1:] + rates[:-1]) / 2
    if noise > 0.0:
        factors = np.random.default_rng((seed, _NOISE)).lognormal(-(noise**2) / 2, noise, int(minutes[-1]) + 1)
        amounts = amounts * factors[(grid[:-1] / MINUTE_SECONDS).astype(np.int64)]
    return Intensity(times_seconds=grid - start_seconds, expected=np.concatenate(([0.0], np.cumsum(amounts))))


def switching(
    *, rate: float, peak: float, floor: float, on_seconds: float, span_seconds: float, seed: int
) -> Intensity:
    """Two states that last exponential times: `peak` times the mean rate for `on_seconds` on average, or `floor` times.

    With it arrivals are a Markov-modulated Poisson process. Raises ValueError unless peak > 1 > floor.
    """
    if not (peak > 1.0 > floor >= 0.0 and on_seconds > 0.0):
        raise ValueError(f"mmpp needs peak > 1 > floor >= 0 and on > 0, not {peak:g}, {floor:g}, {on_seconds:g}")
    off_seconds = on_seconds * (peak - 1.0) / (1.0 - floor)
    rng = np.random.default_rng((seed, _STATES))
    cycles = int(span_seconds / (on_seconds + off_seconds) * 1.5) + 100
    lasting = rng.exponential((on_seconds, off_seconds), (cycles, 2))
    if rng.random() < off_seconds / (on_seconds + off_seconds):
        lasting[0, 0] = 0.0
    times = np.concatenate(([0.0], np.cumsum(lasting)))
    expected = np.concatenate(([0.0], np.cumsum(lasting * (peak * rate, floor * rate))))
    end = np.interp(span_seconds, times, expected)
    kept = times < span_seconds
    return Intensity(times_seconds=np.append(times[kept], span_seconds), expected=np.append(expected[kept], float(end)))


def draw(
    intensity: Intensity, *, lengths: Drawable, seed: int, cv: float = 1.0, prefix_hit_ratio: float = 0.0
) -> Iterator[Trace]:
    """Requests in parts of at most BLOCK_REQUESTS; times count from the beginning. The span of a part is its end."""
    shape = cv**-2
    # A flat stretch (rate zero) has no inverse: a tiny slope keeps the map strictly increasing.
    steps = intensity.expected + np.arange(len(intensity.expected)) * 1e-9
    end, reached, block = float(intensity.expected[-1]), 0.0, 0
    while reached < end:
        gaps = np.random.default_rng((seed, _GAPS, block)).gamma(shape, 1.0 / shape, BLOCK_REQUESTS)
        work = reached + np.cumsum(gaps)
        reached = float(work[-1])
        times = np.interp(work[work < end], steps, intensity.times_seconds)
        prompts, outputs = lengths.draw(len(times), seed=int(np.random.default_rng((seed, block)).integers(2**31)))
        last = reached >= end
        yield Trace(
            times_seconds=times,
            prompt_tokens=prompts,
            output_tokens=outputs,
            cached_tokens=np.floor(prompts * prefix_hit_ratio).astype(np.int64),
            span_seconds=intensity.span_seconds if last else float(times[-1]),
        )
        block += 1
