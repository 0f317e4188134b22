"""Arrivals of a service for replays: recorded counts at another rate, or a process with a given dispersion curve.

Recorded: time is kept and counts are thinned, or copies of the record superposed at random offsets, to the wanted rate;
so the index of dispersion beyond Poisson falls with thinning and stays under superposition. A straight trend over the
record is taken out first, since the wanted rate already says where it leads. Within a bin, when a request came is not
known: requests form geometric batches at uniform instants, as many as give the index at the shortest known window.

Made up: batches (the index at the shortest window) whose rate is the product of independent jump processes: gamma
distributed levels of mean 1 and variance v, each lasting an exponential time of mean tau. One of them adds

    2 rate v tau g(t / tau),   g(x) = 1 - (1 - exp(-x)) / x

to the index at a window t; v is fitted to the curve by least squares, not negative. All draws scale with time.
"""

import math

import numpy as np

from wattkeeper.domain.arrivals import ArrivalRecord, Dispersion
from wattkeeper.domain.workload import FloatArray
from wattkeeper.replica.types import IntArray

_LEAST_REQUESTS = 50.0
"""A record with fewer says nothing about bursts."""
_MOST_COPIES = 20.0
_TREND_BOUNDS = (0.5, 2.0)
"""The trend taken out stays within these multiples of the mean."""
_LARGEST_VARIANCE = 9.0
_SWEEPS = 200
_BATCHES, _OFFSETS, _THINNING, _PLACES, _LEVELS = range(10, 15)
"""Random streams, apart from those of `replica.arrivals`."""


def usable(record: ArrivalRecord | None, *, rate: float) -> bool:
    """True where a record holds enough requests to be brought to `rate` (requests per second)."""
    if record is None or sum(record.counts) < _LEAST_REQUESTS:
        return False
    return rate / record.requests_per_second <= _MOST_COPIES


def from_record(
    record: ArrivalRecord, *, rate: float, dispersion: Dispersion, start_seconds: float, span_seconds: float, seed: int
) -> FloatArray:
    """Ascending arrival times in [0, span) of a service at `rate`; time t is `start + t` of the record, over and over.

    `start_seconds` may be negative. Raises ValueError for a record that is not `usable`.
    """
    if not usable(record, rate=rate):
        raise ValueError(f"{sum(record.counts):.0f} recorded requests cannot be brought to {rate} per second")
    edges = np.asarray(record.edges_seconds, dtype=np.float64) - record.edges_seconds[0]
    lengths = np.diff(edges)
    counts = np.asarray(record.counts, dtype=np.float64)
    counts *= record.requests_per_second / _trend(edges, lengths, counts)
    factor = rate * float(edges[-1]) / float(counts.sum())
    first = math.floor(start_seconds / record.span_seconds)
    turns = math.ceil((start_seconds + span_seconds) / record.span_seconds) - first
    thinning, offsets = _stream(seed, _THINNING), _stream(seed, _OFFSETS)
    places = _stream(seed, _PLACES)
    shape = (turns, len(counts))
    times = []
    for copy in range(math.ceil(factor)):
        whole = np.floor(counts + thinning.random(shape)).astype(np.int64)
        kept = thinning.binomial(whole, min(factor - copy, 1.0))
        shift = offsets.random((turns, 1)) * record.span_seconds if copy else 0.0
        bins = np.arange(turns)[:, None] * record.span_seconds + edges[:-1]
        placed, turn = _placed(kept, bins, np.broadcast_to(lengths, shape), _batch_size(dispersion), places)
        if copy:
            begin = turn * record.span_seconds
            placed = begin + np.mod(placed - begin + np.broadcast_to(shift, shape)[turn, 0], record.span_seconds)
        times.append(placed)
    found = np.sort(np.concatenate(times)) + first * record.span_seconds - start_seconds
    return np.asarray(found[(found >= 0.0) & (found < span_seconds)])


def synthetic(*, rate: float, dispersion: Dispersion, span_seconds: float, seed: int) -> FloatArray:
    """Ascending arrival times in [0, span) of a service at `rate` whose dispersion follows the curve."""
    if not (0.0 < rate < math.inf and 0.0 < span_seconds < math.inf):
        raise ValueError(f"rate and span must be positive and finite, not {rate}/s over {span_seconds} s")
    size = _batch_size(dispersion)
    batches = _stream(seed, _BATCHES)
    levels = _levels(dispersion, rate)
    edges, expected = _integral(levels, span_seconds, seed)
    expected *= rate * span_seconds / size / expected[-1]
    most = expected[-1]
    gaps = batches.exponential(1.0, math.ceil(most + 6.0 * math.sqrt(most) + 20.0))
    points = np.cumsum(gaps)
    instants = np.interp(points[points < most], expected, edges)
    sizes = _stream(seed, _PLACES).geometric(1.0 / size, len(instants))
    return np.asarray(np.repeat(instants, sizes))


def _trend(edges: FloatArray, lengths: FloatArray, counts: FloatArray) -> FloatArray:
    """The straight line through the rates of the bins, in requests per second, kept near the mean."""
    rates, middles = counts / lengths, 0.5 * (edges[:-1] + edges[1:])
    mean = counts.sum() / lengths.sum()
    away = middles - np.average(middles, weights=lengths)
    squares = float((lengths * away**2).sum())
    slope = float((lengths * away * rates).sum()) / squares if squares > 0.0 else 0.0
    return np.asarray(np.clip(mean + slope * away, _TREND_BOUNDS[0] * mean, _TREND_BOUNDS[1] * mean))


def _batch_size(dispersion: Dispersion) -> float:
    """Mean size of geometric batches with the index of the shortest window."""
    return max(1.0, 0.5 * (dispersion.index[0] + 1.0))


def _placed(
    counts: IntArray, starts: FloatArray, lengths: FloatArray, size: float, rng: np.random.Generator
) -> tuple[FloatArray, IntArray]:
    """Times of `counts` requests in each bin, in batches of mean `size`, and the row of each one's bin."""
    at = np.repeat(np.arange(counts.size), counts.ravel())
    if not len(at):
        return np.zeros(0), np.zeros(0, dtype=np.int64)
    begins = rng.random(len(at)) < 1.0 / size
    begins[0] = True
    begins[1:] |= np.diff(at) > 0
    batch = np.cumsum(begins) - 1
    share = rng.random(batch[-1] + 1)[batch]
    return starts.ravel()[at] + share * lengths.ravel()[at], at // counts.shape[1]


def _levels(dispersion: Dispersion, rate: float) -> list[tuple[float, float]]:
    """(variance, mean seconds) of each jump process, by coordinate descent on the relative errors of the curve."""
    index = np.asarray(dispersion.index)
    windows = np.asarray(dispersion.windows_seconds)
    wanted = np.maximum(index - index[0], 0.0)
    slow = windows * rate >= 0.1
    if not slow[1:].any() or not wanted.any():
        return []
    windows, wanted, index = windows[slow], wanted[slow], index[slow]
    taus = windows / 3.0
    ratio = windows[:, None] / taus[None, :]
    shape = (1.0 + np.expm1(-ratio) / ratio) / index[:, None]
    aim, amplitude = wanted / index, np.zeros(len(taus))
    for _ in range(_SWEEPS):
        for k in range(len(taus)):
            rest = aim - shape @ amplitude + shape[:, k] * amplitude[k]
            amplitude[k] = max(0.0, float(shape[:, k] @ rest) / float(shape[:, k] @ shape[:, k]))
    variance = np.minimum(amplitude / (2.0 * rate * taus), _LARGEST_VARIANCE)
    return [(float(v), float(tau)) for v, tau in zip(variance, taus, strict=True) if v > 1e-6]


def _integral(levels: list[tuple[float, float]], span: float, seed: int) -> tuple[FloatArray, FloatArray]:
    """Instants from 0 to `span`, and the integral of the product of the jump processes up to each."""
    parts = []
    for number, (variance, tau) in enumerate(levels):
        rng = _stream(seed, _LEVELS, number)
        jumps = np.zeros(1)
        while jumps[-1] < span:
            more = rng.exponential(tau, max(16, math.ceil(1.1 * (span - jumps[-1]) / tau)))
            jumps = np.concatenate([jumps, jumps[-1] + np.cumsum(more)])
        parts.append((jumps, rng.gamma(1.0 / variance, variance, len(jumps))))
    edges = np.unique(np.concatenate([[0.0, span], *(jumps[jumps < span] for jumps, _ in parts)]))
    level = np.ones(len(edges) - 1)
    for jumps, values in parts:
        level *= values[np.searchsorted(jumps, edges[:-1], side="right") - 1]
    # A rate of exactly zero would make the integral flat, and its inverse ambiguous.
    level = np.maximum(level, 1e-9)
    return edges, np.concatenate([[0.0], np.cumsum(level * np.diff(edges))])


def _stream(seed: int, purpose: int, number: int = 0) -> np.random.Generator:
    return np.random.default_rng((seed, purpose, number))
