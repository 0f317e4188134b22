"""Arrival processes and request lengths to drive a replica with, reproducible from a seed.

Each generator returns `count` ascending arrival times in seconds with the stated mean rate in the long run; they differ
in burstiness, which `dispersion` measures. Draws for arrivals, lengths and prefix hits come from separate streams, so
one seed serves all three.
"""

import itertools
import math

import numpy as np
import numpy.typing as npt

from wattkeeper.domain.workload import FloatArray, LengthDistribution
from wattkeeper.replica.types import IntArray, Requests

_ARRIVALS, _PROMPTS, _OUTPUTS, _HITS = range(4)
_CYCLES = 1024


def poisson(*, rate: float, count: int, seed: int) -> FloatArray:
    """A Poisson process of `rate` requests per second."""
    _check(rate, count)
    return np.asarray(np.cumsum(_stream(seed, _ARRIVALS).exponential(1.0 / rate, count)))


def batches(*, rate: float, count: int, mean_size: float, seed: int) -> FloatArray:
    """Batches at Poisson instants, their sizes geometric: index of dispersion 2 * mean_size - 1 at every window."""
    _check(rate, count)
    if not mean_size >= 1.0:
        raise ValueError(f"mean_size must be at least 1, not {mean_size}")
    rng = _stream(seed, _ARRIVALS)
    sizes = rng.geometric(1.0 / mean_size, count)
    instants = np.cumsum(rng.exponential(mean_size / rate, count))
    needed = int(np.searchsorted(np.cumsum(sizes), count)) + 1
    return np.asarray(np.repeat(instants[:needed], sizes[:needed])[:count])


def gamma(*, rate: float, count: int, coefficient_of_variation: float, seed: int) -> FloatArray:
    """A renewal process with gamma gaps: index of dispersion CV squared at long windows; CV 1 is Poisson."""
    _check(rate, count)
    if not coefficient_of_variation > 0.0:
        raise ValueError(f"coefficient_of_variation must be positive, not {coefficient_of_variation}")
    shape = coefficient_of_variation**-2
    return np.asarray(np.cumsum(_stream(seed, _ARRIVALS).gamma(shape, 1.0 / (rate * shape), count)))


def on_off(
    *, rate: float, count: int, seed: int, peak: float = 4.0, floor: float = 0.0, on_seconds: float = 1.0
) -> FloatArray:
    """A Markov-modulated Poisson process of two states, each lasting an exponential time.

    `peak` times the mean rate for `on_seconds` on average, `floor` times it in between; how long that lasts follows
    from the mean.
    """
    _check(rate, count)
    if not (peak > 1.0 > floor >= 0.0 and on_seconds > 0.0):
        raise ValueError(f"on_off needs peak > 1 > floor >= 0 and on_seconds > 0, not {peak}, {floor}, {on_seconds}")
    if count == 0:
        return np.zeros(0)
    rng = _stream(seed, _ARRIVALS)
    off_seconds = on_seconds * (peak - 1.0) / (1.0 - floor)
    points = np.cumsum(rng.exponential(1.0, count))
    starts_off = rng.random() < off_seconds / (on_seconds + off_seconds)
    # Points of a unit-rate process are mapped through the inverse of the expected count, linear within each state.
    times, expected = [np.zeros(1)], [np.zeros(1)]
    while expected[-1][-1] < points[-1]:
        lasting = rng.exponential((on_seconds, off_seconds), (_CYCLES, 2))
        if starts_off and len(times) == 1:
            lasting[0, 0] = 0.0
        times.append(times[-1][-1] + np.cumsum(lasting))
        expected.append(expected[-1][-1] + np.cumsum(lasting * (peak * rate, floor * rate)))
    return np.asarray(np.interp(points, np.concatenate(expected), np.concatenate(times)))


def clusters(*, rate: float, count: int, mean_size: float, spread_seconds: float, seed: int) -> FloatArray:
    """Poisson clusters (Neyman-Scott): each of a geometric number of requests, each exponentially late.

    Like batches at windows much longer than `spread_seconds`, like Poisson at much shorter ones.
    """
    _check(rate, count)
    if not (mean_size >= 1.0 and spread_seconds > 0.0):
        raise ValueError(f"clusters need mean_size >= 1 and spread_seconds > 0, not {mean_size}, {spread_seconds}")
    lead, drawn = 20.0 * spread_seconds, 2 * count + _CYCLES
    while True:
        rng = _stream(seed, _ARRIVALS)
        sizes = rng.geometric(1.0 / mean_size, drawn)
        instants = np.cumsum(rng.exponential(mean_size / rate, len(sizes))) - lead
        late = rng.exponential(spread_seconds, int(sizes.sum()))
        times = np.sort(np.repeat(instants, sizes) + late)
        times = times[times >= 0.0]
        if len(times) >= count:
            return np.asarray(times[:count])
        drawn *= 2  # the lead took most of them


def wandering(*, rate: float, count: int, deviation: float, memory_seconds: float, seed: int) -> FloatArray:
    """A Poisson process whose rate wanders: its logarithm is an Ornstein-Uhlenbeck process (log-Gaussian Cox process).

    `deviation` is that of the logarithm, `memory_seconds` the time in which it forgets its state.
    """
    _check(rate, count)
    if not (deviation >= 0.0 and memory_seconds > 0.0):
        raise ValueError(f"wandering needs deviation >= 0 and memory_seconds > 0, not {deviation}, {memory_seconds}")
    rng = _stream(seed, _ARRIVALS)
    points = np.cumsum(rng.exponential(1.0, count))
    step = memory_seconds / 8.0
    decay = math.exp(-0.125)
    state = rng.standard_normal() * deviation
    times, expected = [np.zeros(1)], [np.zeros(1)]
    while count and expected[-1][-1] < points[-1]:
        noise = rng.standard_normal(_CYCLES) * (deviation * math.sqrt(1.0 - decay * decay))
        path = np.array(list(itertools.accumulate(noise.tolist(), lambda last, new: decay * last + new, initial=state)))
        state, path = float(path[-1]), path[1:]
        level = rate * np.exp(path - 0.5 * deviation**2)
        times.append(times[-1][-1] + step * np.arange(1, _CYCLES + 1))
        expected.append(expected[-1][-1] + np.cumsum(level * step))
    return np.asarray(np.interp(points, np.concatenate(expected), np.concatenate(times)))


def surges(
    *, rate: float, count: int, seed: int, every_seconds: float, share: float, spread_seconds: float
) -> FloatArray:
    """Poisson traffic and, at a fixed period, surges that bring the given share of all requests (scheduled jobs).

    A surge's requests come at exponential distances from its start, `spread_seconds` on average.
    """
    _check(rate, count)
    if not (every_seconds > 0.0 and 0.0 <= share < 1.0 and spread_seconds > 0.0):
        raise ValueError(f"surges need every_seconds, spread_seconds > 0, share in [0, 1): {every_seconds}, {share}")
    rng = _stream(seed, _ARRIVALS)
    span = 1.1 * count / rate + 2.0 * every_seconds
    base = np.cumsum(rng.exponential(1.0 / (rate * (1.0 - share)), count))
    starts = every_seconds * (rng.random() + np.arange(math.ceil(span / every_seconds)))
    sizes = rng.poisson(rate * share * every_seconds, len(starts))
    surge = np.repeat(starts, sizes) + rng.exponential(spread_seconds, int(sizes.sum()))
    return np.sort(np.concatenate([base, surge]))[:count]


def replay(
    recorded_seconds: npt.ArrayLike, *, count: int | None = None, rate: float | None = None, start: int = 0
) -> FloatArray:
    """Recorded arrival times, from the one with index `start` on, again and again until there are `count`.

    Where a `rate` is given time is stretched to it; otherwise it is left as recorded. The result starts at zero; the
    gap at the seam is the mean one.
    """
    recorded = np.asarray(recorded_seconds, dtype=np.float64)
    if recorded.ndim != 1 or len(recorded) < 2 or not np.isfinite(recorded).all() or (np.diff(recorded) < 0.0).any():
        raise ValueError("recorded arrivals must be at least two finite, ascending times")
    if recorded[-1] == recorded[0]:
        raise ValueError("recorded arrivals must not all be at the same time")
    count = len(recorded) if count is None else count
    _check(1.0 if rate is None else rate, count)
    mean_gap = (recorded[-1] - recorded[0]) / (len(recorded) - 1)
    turn, index = np.divmod(start % len(recorded) + np.arange(count), len(recorded))
    times = recorded[index] + turn * (mean_gap * len(recorded))
    times -= times[0] if count else 0.0
    return np.asarray(times if rate is None else times / (mean_gap * rate))


def dispersion(times_seconds: FloatArray, windows_seconds: npt.ArrayLike) -> FloatArray:
    """Index of dispersion of counts (variance over mean) at each window; nan where fewer than two windows fit.

    1 at every window is Poisson; what grows with the window is bursty at several time scales.
    """
    result = []
    for window in np.atleast_1d(np.asarray(windows_seconds, dtype=np.float64)):
        number = int((times_seconds[-1] - times_seconds[0]) / window) if len(times_seconds) else 0
        if number < 2:
            result.append(np.nan)
            continue
        # Windows may outnumber arrivals by far, so only those with any are counted one by one.
        place = np.floor((times_seconds - times_seconds[0]) / window)
        _, counts = np.unique(place[place < number], return_counts=True)
        mean = float(counts.sum()) / number
        variance = (float(np.square(counts).sum()) - number * mean * mean) / (number - 1)
        result.append(variance / mean)
    return np.array(result)


def lengths(distribution: LengthDistribution, *, count: int, seed: int) -> IntArray:
    """Independent token counts, at least one; fractions are rounded at random, to their mean."""
    return _lengths(distribution, count, _stream(seed, _PROMPTS))


def requests(
    arrival_seconds: FloatArray,
    *,
    prompt: LengthDistribution,
    output: LengthDistribution,
    seed: int,
    prefix_hit_ratio: float = 0.0,
    block_size: int = 16,
) -> Requests:
    """Requests at given times with independent prompt and output lengths.

    Of each prompt the share `prefix_hit_ratio` is in the prefix cache, in whole blocks of `block_size` tokens, rounded
    at random so that the share holds on average (prompts of about a block apart: their last token is never cached).
    """
    if not 0.0 <= prefix_hit_ratio <= 1.0:
        raise ValueError(f"prefix_hit_ratio must be in [0, 1], not {prefix_hit_ratio}")
    count = len(arrival_seconds)
    prompts = _lengths(prompt, count, _stream(seed, _PROMPTS))
    blocks = prefix_hit_ratio * prompts / block_size + _stream(seed, _HITS).random(count)
    return Requests(
        arrival_seconds=arrival_seconds,
        prompt_tokens=prompts,
        output_tokens=_lengths(output, count, _stream(seed, _OUTPUTS)),
        hit_tokens=blocks.astype(np.int64) * block_size if prefix_hit_ratio > 0.0 else None,
    )


def _lengths(distribution: LengthDistribution, count: int, rng: np.random.Generator) -> IntArray:
    weights = np.asarray(distribution.weights)
    drawn = rng.choice(np.asarray(distribution.tokens, dtype=np.float64), size=count, p=weights / weights.sum())
    return np.asarray(np.maximum(1.0, np.floor(drawn + rng.random(count))), dtype=np.int64)


def _stream(seed: int, purpose: int) -> np.random.Generator:
    return np.random.default_rng((seed, purpose))


def _check(rate: float, count: int) -> None:
    if not 0.0 < rate < np.inf:
        raise ValueError(f"rate must be positive and finite, not {rate}")
    if count < 0:
        raise ValueError(f"count must not be negative: {count}")
