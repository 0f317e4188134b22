"""What traffic is made of: requests in order of arrival, a rate over time, and pairs of lengths to draw from."""

import hashlib
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from wattkeeper.domain.errors import DataFileError

COPY_JITTER_SECONDS = 5.0
_CHUNK = 4096

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


class TraceError(DataFileError):
    """A trace file cannot be used; the message names the file, the line and what was expected."""


class Arrival(NamedTuple):
    """One request: seconds since the trace began, and tokens; `cached_tokens` of the prompt may be in the cache."""

    time_seconds: float
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int
    blocks: tuple[int, ...] = ()
    """Ids of the prompt's prefix blocks, where the trace knows them."""


@dataclass(frozen=True, kw_only=True)
class RateSeries:
    """Requests per second at ascending seconds from zero on; linear in between, constant after the end."""

    times_seconds: tuple[float, ...]
    requests_per_second: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.times_seconds) < 2 or len(self.times_seconds) != len(self.requests_per_second):
            raise ValueError("a rate series needs at least two points, and as many rates as times")
        if any(b <= a for a, b in itertools.pairwise(self.times_seconds)) or min(self.requests_per_second) < 0:
            raise ValueError("times of a rate series must ascend and rates must not be negative")

    @property
    def peak(self) -> float:
        """Largest rate."""
        return max(self.requests_per_second)

    @property
    def mean(self) -> float:
        """Mean rate over the span."""
        area = np.trapezoid(np.asarray(self.requests_per_second), np.asarray(self.times_seconds))
        return float(area) / (self.times_seconds[-1] - self.times_seconds[0])

    def at(self, time_seconds: float) -> float:
        """Rate at a time."""
        return float(np.interp(time_seconds, self.times_seconds, self.requests_per_second))

    def scaled(self, factor: float) -> "RateSeries":
        """The same shape at `factor` times the rate."""
        return RateSeries(
            times_seconds=self.times_seconds,
            requests_per_second=tuple(factor * rate for rate in self.requests_per_second),
        )


@dataclass(frozen=True, kw_only=True)
class Trace:
    """Requests in order of arrival; all arrays have shape (N,), times in seconds since the beginning."""

    times_seconds: FloatArray
    prompt_tokens: IntArray
    output_tokens: IntArray
    cached_tokens: IntArray
    span_seconds: float
    repairs: tuple[str, ...] = ()
    """What a loader had to put right, with counts."""

    def __len__(self) -> int:
        return len(self.times_seconds)

    def sha256(self) -> str:
        """Hex digest of what is played: equal traffic has an equal one, wherever it comes from."""
        digest = hashlib.sha256(f"{self.span_seconds!r}".encode())
        for column in self._columns():
            digest.update(np.ascontiguousarray(column).data)
        return digest.hexdigest()

    def _columns(self) -> Iterator[FloatArray | IntArray]:
        yield from (self.times_seconds, self.prompt_tokens, self.output_tokens, self.cached_tokens)

    def arrivals(self) -> Iterator[Arrival]:
        """The requests one by one."""
        for start in range(0, len(self), _CHUNK):
            part = slice(start, start + _CHUNK)
            yield from map(
                Arrival,
                self.times_seconds[part].tolist(),
                self.prompt_tokens[part].tolist(),
                self.output_tokens[part].tolist(),
                self.cached_tokens[part].tolist(),
            )

    def pick(
        self,
        times: FloatArray,
        index: IntArray,
        span_seconds: float,
        copy: IntArray | None = None,
    ) -> "Trace":
        """Requests `index` at other times, sorted. `copy` numbers repetitions of one request."""
        del copy  # for subclasses whose requests carry more than lengths
        order = np.argsort(times, kind="stable")
        index = index[order]
        return Trace(
            times_seconds=times[order],
            prompt_tokens=self.prompt_tokens[index],
            output_tokens=self.output_tokens[index],
            cached_tokens=self.cached_tokens[index],
            span_seconds=span_seconds,
            repairs=self.repairs,
        )

    def until(self, seconds: float) -> "Trace":
        """Only the requests that arrive before `seconds`."""
        return self.between(0.0, seconds)

    def between(self, start_seconds: float, end_seconds: float) -> "Trace":
        """Only the requests of that part; times count from its beginning. Raises TraceError beyond the end."""
        if not start_seconds < min(end_seconds, self.span_seconds):
            raise TraceError(
                f"nothing lies from {start_seconds:g} to {end_seconds:g} s: the trace ends at {self.span_seconds:g} s"
            )
        first, last = np.searchsorted(self.times_seconds, (start_seconds, end_seconds)).tolist()
        return self.pick(
            self.times_seconds[first:last] - start_seconds,
            np.arange(first, last),
            min(end_seconds, self.span_seconds) - start_seconds,
        )

    def busiest(self, seconds: float, *, step_seconds: float = 600.0) -> "Trace":
        """The stretch of this length with the most requests, beginning on a multiple of `step_seconds`."""
        starts = np.arange(0.0, max(1.0, self.span_seconds - seconds + 1.0), step_seconds)
        edges = np.searchsorted(self.times_seconds, np.concatenate((starts, starts + seconds)))
        best = float(starts[int(np.argmax(edges[len(starts) :] - edges[: len(starts)]))])
        return self.between(best, best + seconds)

    def repeated(self, seconds: float) -> "Trace":
        """Played again and again until `seconds` are filled."""
        times = max(1, int(np.ceil(seconds / self.span_seconds)))
        index = np.tile(np.arange(len(self)), times)
        copy = np.repeat(np.arange(times), len(self))
        moved = self.times_seconds[index] + copy * self.span_seconds
        kept = moved < seconds
        span = min(seconds, times * self.span_seconds)
        return self.pick(moved[kept], index[kept], span, copy[kept])

    def scaled(self, factor: float, *, seed: int = 0) -> "Trace":
        """`factor` times the requests: thinned below 1, above it copied with a normal shift of 5 s so copies spread."""
        rng = np.random.default_rng(seed)
        count, whole = len(self), int(factor)
        index = np.concatenate((np.tile(np.arange(count), whole), np.flatnonzero(rng.random(count) < factor - whole)))
        shift = np.zeros(len(index))
        shift[count:] = rng.normal(0.0, COPY_JITTER_SECONDS, max(0, len(index) - count))
        times = np.clip(self.times_seconds[index] + shift, 0.0, np.nextafter(self.span_seconds, 0.0))
        return self.pick(times, index, self.span_seconds, np.arange(len(index)) // max(1, count))


def joined(parts: Iterable[Trace], *, span_seconds: float, repairs: tuple[str, ...] = ()) -> Trace:
    """Parts whose times count from one beginning, as one trace. Prefix blocks are not kept."""
    found = list(parts)
    times, *tokens = (
        np.concatenate([np.asarray(getattr(part, name)) for part in found] or [np.zeros(0)])
        for name in ("times_seconds", "prompt_tokens", "output_tokens", "cached_tokens")
    )
    prompts, outputs, cached = (each.astype(np.int64, copy=False) for each in tokens)
    return Trace(
        times_seconds=times,
        prompt_tokens=prompts,
        output_tokens=outputs,
        cached_tokens=cached,
        span_seconds=span_seconds,
        repairs=repairs,
    )


class Drawable(Protocol):
    """Lengths to draw from."""

    def draw(self, count: int, *, seed: int) -> tuple[IntArray, IntArray]:
        """Prompt and output tokens of `count` requests."""
        ...


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Prompt and output tokens, one pair per request to draw from; arrays of shape (K,)."""

    name: str
    prompt_tokens: IntArray
    output_tokens: IntArray
    repairs: tuple[str, ...] = ()
    """What a reader had to mend, with counts."""

    def draw(self, count: int, *, seed: int) -> tuple[IntArray, IntArray]:
        """`count` pairs with replacement."""
        at = np.random.default_rng((seed, 77)).integers(len(self.prompt_tokens), size=count)
        return self.prompt_tokens[at], self.output_tokens[at]
