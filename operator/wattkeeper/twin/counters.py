"""Counters and histograms that one vLLM engine keeps, with the bucket bounds of vLLM V1.

Counts are kept per bucket and summed up when they are served; observations come many at once.
"""

import copy
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

LATENCY_BOUNDS = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0,
    1920.0, 7680.0,
)  # fmt: skip
TTFT_BOUNDS = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0,
    640.0, 2560.0,
)  # fmt: skip
TOKEN_TIME_BOUNDS = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
)  # fmt: skip
ITERATION_TOKEN_BOUNDS = (
    1.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0,
)  # fmt: skip
PREEMPTION_BOUNDS = (1.0, 2.0, 3.0, 4.0, 5.0, 10.0, 20.0)


def length_bounds(maximum_tokens: int) -> tuple[float, ...]:
    """The 1-2-5 series up to the model's maximum length, as vLLM builds it."""
    bounds: list[float] = []
    decade = 1
    while True:
        for mantissa in (1, 2, 5):
            if mantissa * decade > maximum_tokens:
                return tuple(bounds)
            bounds.append(float(mantissa * decade))
        decade *= 10


class BucketCounts:
    """A histogram that only grows: `counts` per bucket (the last one is open), and the sum of what was observed."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, values: FloatArray, times: FloatArray | None = None) -> None:
        """Count values of shape (N,), each the given number of times (None: once)."""
        self._add(np.searchsorted(self.bounds, values), times)
        self.total += float(values.sum() if times is None else (values * times).sum())

    def observe_ramps(self, first: FloatArray, increment: FloatArray, steps: FloatArray, times: FloatArray) -> None:
        """Count `first + j * increment` for j = 0 .. steps - 1, each so many times; shapes (N,), none negative."""
        low = np.searchsorted(self.bounds, first)
        high = np.searchsorted(self.bounds, first + increment * (steps - 1.0))
        within = low == high
        self._add(low[within], (steps * times)[within])
        across = ~within
        if across.any():
            start, growth, number, weight = first[across], increment[across], steps[across], times[across]
            counted = np.zeros(len(start))
            for bucket in range(int(low[across].min()), int(high[across].max())):
                at_or_below = np.clip(np.floor((self.bounds[bucket] - start) / growth) + 1.0, 0.0, number)
                self.counts[bucket] += int((weight * (at_or_below - counted)).sum())
                counted = at_or_below
            self.counts[int(high[across].max())] += int((weight * (number - counted)).sum())
        self.total += float((times * (steps * first + increment * (steps * (steps - 1.0) / 2.0))).sum())

    def _add(self, buckets: npt.NDArray[np.intp], times: FloatArray | None) -> None:
        for bucket, more in enumerate(np.bincount(buckets, weights=times).tolist()):
            self.counts[bucket] += int(more)

    def plus(self, other: "BucketCounts", *, times: int = 1) -> "BucketCounts":
        """Both together; the other one counts so many times. Bounds must be equal."""
        found = BucketCounts(self.bounds)
        found.counts = [mine + times * theirs for mine, theirs in zip(self.counts, other.counts, strict=True)]
        found.total = self.total + times * other.total
        return found

    @property
    def count(self) -> int:
        """Number of observations."""
        return sum(self.counts)

    def cumulative(self) -> Iterator[int]:
        """Observations at or below each bound, then all of them."""
        running = 0
        for count in self.counts:
            running += count
            yield running


class EngineCounters:
    """What `/metrics` of one engine adds up since it started."""

    def __init__(self, max_model_len: int) -> None:
        lengths = length_bounds(max_model_len)
        self.ttft_seconds = BucketCounts(TTFT_BOUNDS)
        self.inter_token_seconds = BucketCounts(TOKEN_TIME_BOUNDS)
        self.time_per_output_token_seconds = BucketCounts(TOKEN_TIME_BOUNDS)
        self.e2e_seconds = BucketCounts(LATENCY_BOUNDS)
        self.queue_seconds = BucketCounts(LATENCY_BOUNDS)
        self.inference_seconds = BucketCounts(LATENCY_BOUNDS)
        self.prefill_seconds = BucketCounts(LATENCY_BOUNDS)
        self.decode_seconds = BucketCounts(LATENCY_BOUNDS)
        self.prompt_lengths = BucketCounts(lengths)
        self.generation_lengths = BucketCounts(lengths)
        self.prefill_computed_lengths = BucketCounts(lengths)
        self.request_preemptions = BucketCounts(PREEMPTION_BOUNDS)
        self.iteration_tokens = BucketCounts(ITERATION_TOKEN_BOUNDS)
        self.prompt_tokens = 0
        self.generation_tokens = 0
        self.cached_prompt_tokens = 0
        self.prefix_queries = 0
        self.prefix_hits = 0
        self.preemptions = 0
        self.admission_rejections = 0
        """Requests that found too many waiting."""
        self.finished = {"stop": 0, "length": 0, "abort": 0, "error": 0, "repetition": 0}

    def plus(self, other: "EngineCounters", *, times: int = 1) -> "EngineCounters":
        """Both together, each counter for itself; the other engine's count so many times. Same model length."""
        found = copy.copy(self)
        for name, mine in vars(self).items():
            theirs = getattr(other, name)
            if isinstance(mine, BucketCounts):
                setattr(found, name, mine.plus(theirs, times=times))
            elif isinstance(mine, dict):
                setattr(found, name, {key: value + times * theirs[key] for key, value in mine.items()})
            else:
                setattr(found, name, mine + times * theirs)
        return found
