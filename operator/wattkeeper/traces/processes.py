"""Sources of arrivals to compose: each gives ascending times in [0, span) from a seed.

Poisson, gamma and the two-state Markov-modulated process come from `replica.arrivals`; rates that change (a day, a
flash crowd, any recorded series) thin them: a process at the peak rate keeps each arrival with the probability of the
rate over the peak. Thinning makes burst processes less bursty where the rate is low, as if a share of all users were
there.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from wattkeeper.domain.workload import FloatArray, LengthDistribution
from wattkeeper.replica import arrivals
from wattkeeper.traces.trace import RateSeries, Trace

_THINNING = 21
"""Random stream, apart from those of `replica`."""


class Process(Protocol):
    """Arrivals over a span."""

    def times(self, span_seconds: float, *, seed: int) -> FloatArray:
        """Ascending, in [0, span)."""
        ...


@dataclass(frozen=True, kw_only=True)
class Poisson:
    """Memoryless, at `rate` requests per second."""

    rate: float

    def times(self, span_seconds: float, *, seed: int) -> FloatArray:
        """Ascending, in [0, span)."""
        return _until(arrivals.poisson(rate=self.rate, count=_count(self.rate, span_seconds), seed=seed), span_seconds)


@dataclass(frozen=True, kw_only=True)
class Gamma:
    """Gaps of a gamma distribution."""

    rate: float
    coefficient_of_variation: float

    def times(self, span_seconds: float, *, seed: int) -> FloatArray:
        """Ascending, in [0, span)."""
        cv = self.coefficient_of_variation
        count = _count(self.rate, span_seconds, cv)
        return _until(arrivals.gamma(rate=self.rate, count=count, coefficient_of_variation=cv, seed=seed), span_seconds)


@dataclass(frozen=True, kw_only=True)
class Mmpp:
    """A Markov-modulated Poisson process of two states: `peak` times the mean for `on_seconds`, else `floor` times."""

    rate: float
    peak: float = 4.0
    floor: float = 0.0
    on_seconds: float = 30.0

    def times(self, span_seconds: float, *, seed: int) -> FloatArray:
        """Ascending, in [0, span)."""
        # As many as if the peak lasted.
        found = arrivals.on_off(
            rate=self.rate,
            count=_count(self.rate * self.peak, span_seconds),
            seed=seed,
            peak=self.peak,
            floor=self.floor,
            on_seconds=self.on_seconds,
        )
        return _until(found, span_seconds)


@dataclass(frozen=True, kw_only=True)
class Thinned:
    """A process at the peak rate of `series`, thinned to it. Beyond its end the last rate goes on."""

    process: Process
    """Its mean rate must be the peak of the series."""
    series: RateSeries

    def times(self, span_seconds: float, *, seed: int) -> FloatArray:
        """Ascending, in [0, span)."""
        found = self.process.times(span_seconds, seed=seed)
        rates = np.interp(found, self.series.times_seconds, self.series.requests_per_second)
        draws = np.random.default_rng((seed, _THINNING)).random(len(found))
        return np.asarray(found[draws * self.series.peak < rates])


@dataclass(frozen=True, kw_only=True)
class Sum:
    """Several independent processes at once."""

    parts: Sequence[Process]

    def times(self, span_seconds: float, *, seed: int) -> FloatArray:
        """Ascending, in [0, span)."""
        seeds = np.random.default_rng((seed, len(self.parts))).integers(2**31, size=len(self.parts)).tolist()
        found = [part.times(span_seconds, seed=each) for part, each in zip(self.parts, seeds, strict=True)]
        return np.sort(np.concatenate(found)) if found else np.zeros(0)


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


def requests(
    process: Process,
    *,
    span_seconds: float,
    prompt: LengthDistribution,
    output: LengthDistribution,
    seed: int,
    prefix_hit_ratio: float = 0.0,
) -> Trace:
    """Arrivals of a process with independent lengths, reproducible from the seed."""
    times = process.times(span_seconds, seed=seed)
    made = arrivals.requests(times, prompt=prompt, output=output, seed=seed, prefix_hit_ratio=prefix_hit_ratio)
    hits = np.zeros(len(times), dtype=np.int64) if made.hit_tokens is None else made.hit_tokens
    return Trace(
        times_seconds=times,
        prompt_tokens=made.prompt_tokens,
        output_tokens=made.output_tokens,
        cached_tokens=np.minimum(hits, made.prompt_tokens),
        span_seconds=span_seconds,
    )


def _count(rate: float, span_seconds: float, cv: float = 1.0) -> int:
    """Enough to fill the span but for once in a billion."""
    expected = rate * span_seconds
    return math.ceil(expected + 7.0 * max(cv, 1.0) * math.sqrt(expected) + 20.0 * max(cv, 1.0) ** 2)


def _until(times: FloatArray, span_seconds: float) -> FloatArray:
    return np.asarray(times[times < span_seconds])
