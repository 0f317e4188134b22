"""Requests drawn window by window, each with its own rate, burstiness and lengths.

What history and ServeGen hold. Arrivals of a window are a stationary renewal process of gamma gaps at its mean rate;
the index of dispersion over many requests is the square of the coefficient of variation. Memory holds a window.
"""

import enum
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from wattkeeper.domain.workload import FloatArray, LengthDistribution
from wattkeeper.replica import arrivals
from wattkeeper.traces.trace import Trace

LEAST_CV, MOST_CV = 0.2, 50.0
_ARRIVALS, _PROMPTS, _OUTPUTS = 7919, 104_729, 1_299_709


class Gaps(enum.Enum):
    """What a replay assumes where nothing was recorded."""

    BRIDGE = "bridge"
    """The rate led straight from before to after."""
    EMPTY = "empty"
    """Nothing came."""
    SKIP = "skip"
    """That time is left out: after comes right behind before."""

    @property
    def done(self) -> str:
        """For notes."""
        return {Gaps.BRIDGE: "bridged", Gaps.EMPTY: "taken as empty", Gaps.SKIP: "skipped"}[self]


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """One window to draw from."""

    requests_per_second: float
    coefficient_of_variation: float
    prompt: LengthDistribution
    output: LengthDistribution
    prefix_hit_ratio: float = 0.0


def draw(
    stretches: Sequence[Stretch | None],
    *,
    window_seconds: float,
    seed: int,
    scale: float = 1.0,
    start_seconds: float = 0.0,
    end_seconds: float | None = None,
) -> Iterator[Trace]:
    """Requests of one window after the other, in [start, end); None is a window in which nothing came.

    Times count from `start_seconds`; the span of each part is where its window ends. The requests of a moment are the
    same whatever part is asked for.
    """
    whole = len(stretches) * window_seconds
    end = whole if end_seconds is None else min(end_seconds, whole)
    first = int(start_seconds // window_seconds)
    for index in range(first, min(len(stretches), int(np.ceil(end / window_seconds)))):
        stretch, begin = stretches[index], index * window_seconds
        times, prompts, outputs, cached = np.zeros(0), *(np.zeros(0, dtype=np.int64) for _ in range(3))
        if stretch is not None and scale * stretch.requests_per_second > 0.0:
            own = seed + _ARRIVALS * index
            rate = scale * stretch.requests_per_second
            times = begin + renewal(rate, stretch.coefficient_of_variation, window_seconds, seed=own)
            prompts = arrivals.lengths(stretch.prompt, count=len(times), seed=own + _PROMPTS)
            outputs = arrivals.lengths(stretch.output, count=len(times), seed=own + _OUTPUTS)
            kept = (times >= start_seconds) & (times < end)
            times, prompts, outputs = times[kept] - start_seconds, prompts[kept], outputs[kept]
            cached = np.floor(prompts * stretch.prefix_hit_ratio).astype(np.int64)
        yield Trace(
            times_seconds=times,
            prompt_tokens=prompts,
            output_tokens=outputs,
            cached_tokens=cached,
            span_seconds=min(begin + window_seconds, end) - start_seconds,
        )


def renewal(rate: float, cv: float, seconds: float, *, seed: int) -> FloatArray:
    """Gamma gaps at `rate` from a random moment on: what lies in [0, seconds).

    The process has run for a while before, so that the mean rate holds in every window; the more the burstier.
    """
    cv = min(max(cv, LEAST_CV), MOST_CV)
    lead = 20.0 * (1.0 + cv * cv) / rate
    count = int(rate * (seconds + lead) + 6.0 * cv * np.sqrt(rate * (seconds + lead)) + 20)
    found = arrivals.gamma(rate=rate, count=count, coefficient_of_variation=cv, seed=seed) - lead
    return np.asarray(found[(found >= 0.0) & (found < seconds)])
