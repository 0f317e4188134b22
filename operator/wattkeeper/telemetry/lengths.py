"""Token lengths from histogram buckets.

A bucket says how many requests fell between two bounds, not where. Each bucket becomes a few equally likely lengths
inside its bounds; one exponent for the whole distribution moves them towards the lower or the upper bounds until the
mean is the one that the histogram's sum states. So the mean, which sets the load, is exact wherever the buckets allow
it, and every bucket keeps its share.
"""

import math

import numpy as np

from wattkeeper.domain.histogram import Histogram
from wattkeeper.domain.workload import FloatArray, LengthDistribution

POINTS_PER_BUCKET = 3
OPEN_BUCKET_RATIO = 2.0
"""The open last bucket is read as reaching to twice the largest finite bound, as the next bucket of a 1-2-5 series."""
_POSITIONS = (np.arange(POINTS_PER_BUCKET) + 0.5) / POINTS_PER_BUCKET
_LOG_EXPONENTS = np.linspace(-math.log(40.0), math.log(40.0), 2001)
_MEAN_POSITIONS = np.power(_POSITIONS[:, None], np.exp(_LOG_EXPONENTS)).mean(axis=0)
"""Falls as the exponent grows: larger exponents pull every point towards the lower bound of its bucket."""


def length_distribution(histogram: Histogram) -> LengthDistribution | None:
    """Lengths in tokens that agree with `histogram` in every bucket and, where possible, in the mean.

    None where nothing was observed, or where the only bucket is the open one (then nothing is known of lengths but
    their mean, and the mean alone is returned as a fixed length where the sum gives one).
    """
    count = histogram.count
    if not math.isfinite(count) or count <= 0:
        return None
    mean = histogram.mean
    mean = mean if mean is not None and math.isfinite(mean) and mean > 0 else None
    if len(histogram.upper_bounds) == 1:
        return None if mean is None else LengthDistribution.fixed(max(1.0, mean))
    finite = np.maximum(np.array(histogram.upper_bounds[:-1]), 1.0)
    upper = np.append(finite, OPEN_BUCKET_RATIO * finite[-1])
    lower = np.append(1.0, upper[:-1])
    shares = np.diff(np.maximum.accumulate(np.array([0.0, *histogram.cumulative]))) / count
    used = shares > 1e-9
    lower, upper, shares = lower[used], upper[used], shares[used] / shares[used].sum()

    exponent, room = 1.0, float(shares @ (upper - lower))
    if mean is not None and room > 0.0:
        # The mean is shares @ lower + (shares @ width) * (mean of positions ** exponent).
        exponent = _exponent((mean - float(shares @ lower)) / room)
    points = lower[:, None] + (upper - lower)[:, None] * np.power(_POSITIONS, exponent)
    return _merged(points, shares)


def _exponent(wanted: float) -> float:
    """The exponent at which the positions have the mean `wanted`; the nearest end of the range where none has."""
    return float(np.exp(np.interp(-wanted, -_MEAN_POSITIONS, _LOG_EXPONENTS)))


def _merged(points: FloatArray, shares: FloatArray) -> LengthDistribution:
    """Ascending lengths, each once, with weights that sum to one."""
    weights = np.repeat(shares / points.shape[1], points.shape[1])
    tokens, index = np.unique(np.maximum(points.ravel(), 1.0), return_inverse=True)
    summed = np.bincount(index.ravel(), weights=weights) / weights.sum()
    return LengthDistribution(tokens=tuple(map(float, tokens)), weights=tuple(map(float, summed)))
