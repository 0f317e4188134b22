"""Counters and histograms that one vLLM engine keeps, with the bucket bounds of vLLM V1.

An observation is only noted; notes become counts, many at once, when somebody reads or they grow too many.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from wattkeeper.twin.request import FRONT_END_SECONDS, Request

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
REQUEST_N_BOUNDS = (1.0, 2.0, 5.0, 10.0, 20.0)


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


MOST_NOTES = 8192
"""Finished requests whose latencies wait to be counted at most."""


class BucketCounts:
    """A histogram that only grows: `counts` per bucket (the last one is open), and the sum of what was observed.

    Hot loops append to `values` and `times` (how often each), or to `ramps`, themselves.
    """

    __slots__ = ("_bounds", "_counts", "_total", "bounds", "ramps", "times", "values")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.values: list[float] = []
        self.times: list[int] = []
        self.ramps: list[tuple[float, float, int, int]] = []
        """(first, increment, steps, weight): `first + j * increment` for j = 0 .. steps - 1, each `weight` times."""
        self._bounds = np.array(bounds)
        self._counts = np.zeros(len(bounds) + 1, dtype=np.int64)
        self._total = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Count `value` the given number of times."""
        self.values.append(value)
        self.times.append(times)

    def observe_all(self, values: list[float]) -> None:
        """Count many values once each."""
        found = np.array(values, dtype=np.float64)
        self._counts += np.bincount(np.searchsorted(self._bounds, found), minlength=len(self._counts))
        self._total += float(found.sum())

    @property
    def counts(self) -> list[int]:
        """Per bucket, not cumulative."""
        self._settle()
        counts: list[int] = self._counts.tolist()
        return counts

    @property
    def total(self) -> float:
        """Sum of all observed values."""
        self._settle()
        return self._total

    @property
    def count(self) -> int:
        """Number of observations."""
        self._settle()
        return int(self._counts.sum())

    def cumulative(self) -> Iterator[int]:
        """Observations at or below each bound, then all of them."""
        self._settle()
        yield from np.cumsum(self._counts).tolist()

    def _settle(self) -> None:
        if self.values:
            values, times = np.array(self.values), np.array(self.times)
            self._add(np.searchsorted(self._bounds, values), times)
            self._total += float(values @ times)
            self.values.clear()
            self.times.clear()
        if self.ramps:
            first, increment, steps, weight = np.array(self.ramps).T
            low = np.searchsorted(self._bounds, first)
            high = np.searchsorted(self._bounds, first + increment * (steps - 1.0))
            self._add(low[low == high], (steps * weight)[low == high])
            for index in np.flatnonzero(low != high).tolist():
                ramp = first[index] + increment[index] * np.arange(steps[index])
                self._add(np.searchsorted(self._bounds, ramp), np.full(len(ramp), weight[index]))
            self._total += float(weight @ (steps * first + increment * (steps * (steps - 1.0) / 2.0)))
            self.ramps.clear()

    def _add(self, buckets: npt.NDArray[np.int64], times: npt.NDArray[np.float64]) -> None:
        weights = np.bincount(buckets, weights=times, minlength=len(self._counts))
        self._counts += np.rint(weights).astype(np.int64)


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
        self.finished = {"stop": 0, "length": 0, "abort": 0, "error": 0, "repetition": 0}
        self.done: list[Request] = []
        """Finished requests that are in no histogram yet."""

    def settle(self) -> None:
        """Count what waits to be counted; whoever reads a histogram of finished requests calls this first."""
        done = self.done
        if not done:
            return
        self.e2e_seconds.observe_all([r.last_token - r.arrival + FRONT_END_SECONDS for r in done])
        self.queue_seconds.observe_all([r.scheduled - r.arrival for r in done])
        self.prefill_seconds.observe_all([r.first_token - r.scheduled for r in done])
        self.decode_seconds.observe_all([r.last_token - r.first_token for r in done])
        self.inference_seconds.observe_all([r.last_token - r.scheduled for r in done])
        self.time_per_output_token_seconds.observe_all([r.tpot_seconds for r in done])
        self.prompt_lengths.observe_all([r.prompt for r in done])
        self.generation_lengths.observe_all([r.output for r in done])
        self.prefill_computed_lengths.observe_all([r.prompt - r.cached for r in done])
        self.request_preemptions.observe_all([r.preemptions for r in done])
        done.clear()
