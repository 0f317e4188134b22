"""Requests of a trace in batches, without an object per request."""

import itertools
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from wattkeeper.traces.prefixes import PrefixTrace
from wattkeeper.traces.trace import Arrival, Trace

_CHUNK = 4096
_INFINITY = float("inf")


@dataclass(kw_only=True)
class Batch:
    """Columns of equal length; times in seconds since the trace began."""

    times_seconds: list[float] = field(default_factory=list)
    prompt_tokens: list[int] = field(default_factory=list)
    output_tokens: list[int] = field(default_factory=list)
    cached_tokens: list[int] = field(default_factory=list)
    blocks: list[Sequence[int]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.times_seconds)


class ArrivalQueue:
    """What has not arrived yet, in order of time. Of a trace only a small part at a time is turned into lists."""

    def __init__(self, source: Trace | Iterator[Arrival]) -> None:
        plain = isinstance(source, Trace) and not isinstance(source, PrefixTrace)
        arrivals = source.arrivals() if isinstance(source, Trace) else source
        self._chunks = _slices(source) if plain and isinstance(source, Trace) else _gathered(arrivals)
        self._chunk = Batch()
        self._at = 0
        self.next_seconds = _INFINITY
        """Time of the next request; infinite at the end."""
        self._refill()

    def take_until(self, end_seconds: float) -> Batch:
        """All requests before a time; they are gone from the queue then."""
        found = Batch()
        while self.next_seconds < end_seconds:
            chunk, start = self._chunk, self._at
            self._at = end = bisect_left(chunk.times_seconds, end_seconds, start)
            found.times_seconds += chunk.times_seconds[start:end]
            found.prompt_tokens += chunk.prompt_tokens[start:end]
            found.output_tokens += chunk.output_tokens[start:end]
            found.cached_tokens += chunk.cached_tokens[start:end]
            found.blocks += chunk.blocks[start:end]
            if end < len(chunk):
                self.next_seconds = chunk.times_seconds[end]
            else:
                self._refill()
        return found

    def _refill(self) -> None:
        self._chunk, self._at = next(self._chunks, Batch()), 0
        self.next_seconds = self._chunk.times_seconds[0] if len(self._chunk) else _INFINITY


def _slices(trace: Trace) -> Iterator[Batch]:
    for start in range(0, len(trace), _CHUNK):
        part = slice(start, start + _CHUNK)
        times: list[float] = trace.times_seconds[part].tolist()
        yield Batch(
            times_seconds=times,
            prompt_tokens=trace.prompt_tokens[part].tolist(),
            output_tokens=trace.output_tokens[part].tolist(),
            cached_tokens=trace.cached_tokens[part].tolist(),
            blocks=[()] * len(times),
        )


def _gathered(arrivals: Iterator[Arrival]) -> Iterator[Batch]:
    while rows := list(itertools.islice(arrivals, _CHUNK)):
        times, prompts, outputs, cached, blocks = map(list, zip(*rows, strict=True))
        yield Batch(
            times_seconds=times, prompt_tokens=prompts, output_tokens=outputs, cached_tokens=cached, blocks=blocks
        )
