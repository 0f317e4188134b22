"""Distribution tails: small vectorised forms that a percentile can be solved from."""

from collections.abc import Callable

import numpy as np

from wattkeeper.domain.workload import FloatArray

_BISECTIONS = 12


def normal_tail(score: FloatArray) -> FloatArray:
    """Probability that a standard normal exceeds `score` (logistic form of Bowling et al., within 1.5e-4)."""
    clipped = np.clip(score, -8.0, 8.0)
    return np.asarray(1.0 / (1.0 + np.exp(clipped * (1.5976 + 0.07056 * clipped * clipped))))


def gamma_tail(value: FloatArray, mean: FloatArray, variance: FloatArray) -> FloatArray:
    """Probability that a gamma variable of this mean and variance exceeds `value` (Wilson-Hilferty cube root)."""
    relative = np.maximum(variance, 1e-12) / np.square(mean)
    score = (np.cbrt(np.maximum(value, 0.0) / mean) - 1.0 + relative / 9.0) * 3.0 / np.sqrt(relative)
    return normal_tail(score)


def gamma_quantile(score: FloatArray, mean: FloatArray, variance: FloatArray) -> FloatArray:
    """The gamma value at a standard normal score (Wilson-Hilferty); never negative."""
    relative = variance / np.square(mean)
    root = 1.0 - relative / 9.0 + score * np.sqrt(relative) / 3.0
    return np.asarray(mean * np.maximum(root, 0.0) ** 3)


def inflated_exponential(
    mean: FloatArray, second_moment: FloatArray, *, exceedance: float
) -> tuple[FloatArray, FloatArray]:
    """(probability of not being zero, mean of the exponential then) that match two moments.

    For a given mean, the quantile with probability `exceedance` above it grows with the variance up to a probability of
    e * exceedance and falls beyond (rarer, larger values leave the quantile alone). The probability stays on the safe
    side of that point, so that more variance never looks better; nor does it exceed one.
    """
    safe = np.maximum(mean, 1e-15)
    chance = np.clip(2.0 * np.square(safe) / np.maximum(second_moment, 1e-30), min(np.e * exceedance, 1.0), 1.0)
    return chance, safe / chance


def percentile(
    tail: Callable[[FloatArray], FloatArray], *, low: FloatArray, high: FloatArray, exceedance: float
) -> FloatArray:
    """The value that `tail` (non-increasing) exceeds with probability `exceedance`, from above; arrays of shape (N,).

    Bisection on the logarithm between `low` and `high` (0 < low <= high); the relative resolution is
    log(high / low) / 2^12.
    """
    bottom, top = np.log(low), np.log(np.maximum(high, low))
    for _ in range(_BISECTIONS):
        middle = 0.5 * (bottom + top)
        above = tail(np.exp(middle)) > exceedance
        bottom = np.where(above, middle, bottom)
        top = np.where(above, top, middle)
    return np.exp(top)
