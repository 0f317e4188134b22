"""Token lengths from histogram buckets.

A bucket says how many requests fell between two bounds, not where. Between the bounds the share of requests at or below
a length is interpolated over the logarithm of the length by a monotone cubic (Fritsch and Butland's slopes), so that
the density runs on from bucket to bucket and falls within the buckets of a tail. Each bucket becomes a few equally
likely lengths; one exponent for all of them then moves them towards the lower or the upper bounds until the mean is the
one that the histogram's sum states. So the mean, which sets the load, is exact wherever the buckets allow it, and every
bucket keeps its share. Lengths are whole: the bucket up to 5 after the one up to 2 holds 3, 4 and 5.

The open last bucket reaches to the longest length possible where that is known, else as far as its mean asks for.
"""

import enum
import functools
import math

import numpy as np

from wattkeeper.domain.histogram import Histogram
from wattkeeper.domain.workload import FloatArray, LengthDistribution

POINTS_PER_BUCKET = 6
OPEN_BUCKET_RATIO = 2.0
"""Where nothing tells its end, the open bucket reaches to twice the largest finite bound, as the next of 1-2-5 ..."""
LARGEST_OPEN_RATIO = 100.0
"""... and, where the mean asks for more, to at most this many times: a sum that asks for more is wrong."""
_OPEN_MEANS = 3.0
"""An open bucket that is read from its mean reaches to so many times of it, as a tail does."""
_POSITIONS = (np.arange(POINTS_PER_BUCKET) + 0.5) / POINTS_PER_BUCKET
_WITHIN = np.linspace(0.0, 1.0, 17)
"""Where between two bounds the cubic is evaluated."""
_MOST_LOG_EXPONENT = math.log(40.0)
_NEWTON_STEPS = 40
_LEAST_SHARE = 1e-9
_TOLERATED_FALL = 0.01
"""Share of all observations by which counts may fall from bound to bound: rates are extrapolated one by one."""


class LengthsProblem(enum.Enum):
    """Why a histogram says nothing about lengths."""

    EMPTY = "Empty"
    """Nothing was observed."""
    NOT_FINITE = "NotFinite"
    """Counts that are no numbers."""
    NOT_ASCENDING = "NotAscending"
    """Cumulative counts that fall: these are no buckets of one histogram."""
    NO_MEAN = "NoMean"
    """One bucket, and no usable sum."""


@functools.lru_cache(maxsize=2048)
def length_distribution(
    histogram: Histogram, *, longest_tokens: int | None = None
) -> LengthDistribution | LengthsProblem:
    """Lengths in tokens that agree with `histogram` in every bucket and, where possible, in the mean.

    `longest_tokens`: no request is longer (vLLM's max_model_len). Of a single bucket only the mean is known, which is
    returned as a fixed length.
    """
    cumulative = np.array(histogram.cumulative)
    if not np.isfinite(cumulative).all():
        return LengthsProblem.NOT_FINITE
    count = histogram.count
    if count <= 0:
        return LengthsProblem.EMPTY
    ascending = np.maximum.accumulate(np.maximum(cumulative, 0.0))
    if float((ascending - cumulative).max()) > _TOLERATED_FALL * count:
        return LengthsProblem.NOT_ASCENDING
    mean = histogram.mean
    mean = max(1.0, mean) if mean is not None and math.isfinite(mean) and mean > 0 else None
    if mean is not None and longest_tokens is not None:
        mean = min(mean, float(longest_tokens))
    if len(cumulative) == 1:
        return LengthsProblem.NO_MEAN if mean is None else LengthDistribution.fixed(mean)
    below = np.minimum(ascending / ascending[-1], 1.0)
    shares = np.diff(below, prepend=0.0)
    lower, upper, knots = _bounds(histogram, shares, mean, longest_tokens)
    points = _interpolated(knots, np.append(0.0, below), shares)
    used = shares > _LEAST_SHARE
    lower, upper, shares = lower[used], upper[used], shares[used] / shares[used].sum()
    width = upper - lower
    # Between half a token below the shortest and half a token above the longest; so never at an end, where no exponent
    # would move it.
    positions = np.clip((points[used] - lower[:, None] + 0.5) / (width[:, None] + 1.0), 1e-3, 1.0 - 1e-3)
    if mean is not None:
        positions = _with_mean(positions, shares * width, mean - float(shares @ lower))
    return _merged(lower[:, None] + width[:, None] * positions, shares)


def _bounds(
    histogram: Histogram, shares: FloatArray, mean: float | None, longest_tokens: int | None
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Shortest and longest length of each bucket, and where the shares at or below are known (one more than buckets).

    A length stands for all between half a token below and above it.
    """
    whole = np.floor(np.array(histogram.upper_bounds[:-1]))
    finite = np.maximum(whole, 1.0)
    end = OPEN_BUCKET_RATIO * finite[-1]
    if shares[-1] > _LEAST_SHARE and mean is not None:
        middles = 0.5 * (np.append(1.0, finite[:-1]) + finite)
        tail_mean = (mean - float(shares[:-1] @ middles)) / shares[-1]
        end = min(max(end, _OPEN_MEANS * tail_mean), LARGEST_OPEN_RATIO * finite[-1])
    upper = np.append(finite, end)
    lower = np.minimum(np.maximum(np.append(1.0, whole + 1.0), 1.0), upper)
    if longest_tokens is not None:
        # What was counted beyond the longest length is taken as it is: then the length was known wrong.
        upper = np.maximum(np.minimum(upper, float(longest_tokens)), lower)
    knots = np.maximum.accumulate(np.append(0.5, upper + 0.5))
    return lower, upper, knots


def _interpolated(knots: FloatArray, below: FloatArray, shares: FloatArray) -> FloatArray:
    """Equally likely lengths of each bucket, shape (buckets, POINTS_PER_BUCKET)."""
    logs = np.log(knots)
    step = np.maximum(np.diff(logs), 1e-9)
    density = shares / step
    slope = np.zeros(len(logs))
    left, right = density[:-1], density[1:]
    first, second = 2.0 * step[1:] + step[:-1], step[1:] + 2.0 * step[:-1]
    both = np.minimum(left, right) > _LEAST_SHARE
    slope[1:-1][both] = (first + second)[both] / (first[both] / left[both] + second[both] / right[both])
    t = _WITHIN
    within = (
        below[:-1, None] * (2 * t**3 - 3 * t**2 + 1)
        + below[1:, None] * (3 * t**2 - 2 * t**3)
        + (step * slope[:-1])[:, None] * (t**3 - 2 * t**2 + t)
        + (step * slope[1:])[:, None] * (t**3 - t**2)
    )
    at = logs[:-1, None] + step[:, None] * t
    wanted = below[:-1, None] + shares[:, None] * _POSITIONS
    curve = np.maximum.accumulate(within.ravel())
    return np.asarray(np.exp(np.interp(wanted.ravel(), curve, at.ravel())).reshape(wanted.shape))


def _with_mean(positions: FloatArray, room: FloatArray, wanted: float) -> FloatArray:
    """Positions to the power at which `room @ their means` is `wanted`; the nearest end of the range where none is."""
    logs = np.log(np.maximum(positions, 1e-12))

    def excess(log_exponent: float) -> tuple[float, float]:
        exponent = math.exp(log_exponent)
        powers = np.exp(exponent * logs)
        return float(room @ powers.mean(axis=1)) - wanted, exponent * float(room @ (powers * logs).mean(axis=1))

    low, high, at = -_MOST_LOG_EXPONENT, _MOST_LOG_EXPONENT, 0.0
    for _ in range(_NEWTON_STEPS):
        value, slope = excess(at)
        low, high = (at, high) if value > 0.0 else (low, at)
        newton = at - value / slope if slope < 0.0 else math.inf
        after = newton if low < newton < high else 0.5 * (low + high)
        if abs(after - at) < 1e-10:
            break
        at = after
    return np.asarray(np.exp(math.exp(at) * logs))


def _merged(points: FloatArray, shares: FloatArray) -> LengthDistribution:
    """Ascending lengths, each once, with weights that sum to one."""
    weights = np.repeat(shares / points.shape[1], points.shape[1])
    tokens, index = np.unique(np.maximum(points.ravel(), 1.0), return_inverse=True)
    summed = np.bincount(index.ravel(), weights=weights) / weights.sum()
    return LengthDistribution(tokens=tuple(map(float, tokens)), weights=tuple(map(float, summed)))
