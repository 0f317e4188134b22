"""Cumulative histograms as Prometheus serves them, and what can honestly be read from them.

Quantiles interpolate linearly inside a bucket, as PromQL's `histogram_quantile` does; what lies in the last, open
bucket is reported as the largest finite bound, and `quantile` says so through `Quantile.beyond_last_bound`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Quantile:
    """A quantile read from buckets."""

    value: float
    at_least: float
    """Lower edge of the bucket that holds the quantile: what is certain, where `value` is interpolated."""
    beyond_last_bound: bool
    """True where the value lies in the open last bucket: the truth is larger than `value`."""


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """Cumulative counts (or rates of them) at or below each upper bound.

    `upper_bounds` (in the unit of the measured quantity) ascend and end with +inf; `cumulative` (counts, or counts per
    second) has the same length and never decreases. `total` is the sum of the observed values in the same weighting, so
    that `total / count` is the mean.
    """

    upper_bounds: tuple[float, ...]
    cumulative: tuple[float, ...]
    total: float

    def __post_init__(self) -> None:
        if not self.upper_bounds or not math.isinf(self.upper_bounds[-1]):
            raise ValueError("a histogram needs bucket bounds that end with +Inf")
        if len(self.upper_bounds) != len(self.cumulative):
            raise ValueError(f"{len(self.upper_bounds)} bounds do not match {len(self.cumulative)} counts")
        if any(b <= a for a, b in zip(self.upper_bounds, self.upper_bounds[1:], strict=False)):
            raise ValueError("bucket bounds must ascend")

    @property
    def count(self) -> float:
        """Number (or rate) of all observations."""
        return self.cumulative[-1]

    @property
    def mean(self) -> float | None:
        """Mean of the observed values; None where there were none."""
        return self.total / self.count if self.count > 0 else None

    def fraction_at_most(self, value: float) -> float | None:
        """Share of observations at or below `value`, interpolated inside its bucket; None where there were none."""
        if self.count <= 0:
            return None
        bounds = np.array([0.0, *self.upper_bounds[:-1]])
        counts = np.array([0.0, *self.cumulative[:-1]])
        return float(np.interp(value, bounds, counts)) / self.count

    def quantile(self, q: float) -> Quantile | None:
        """The q-quantile (0 < q < 1); None where nothing was observed."""
        if self.count <= 0:
            return None
        rank = q * self.count
        lower = below = 0.0
        for bound, cumulative in zip(self.upper_bounds, self.cumulative, strict=True):
            if cumulative >= rank and cumulative > below:
                if math.isinf(bound):
                    break
                value = lower + (bound - lower) * (rank - below) / (cumulative - below)
                return Quantile(value=value, at_least=lower, beyond_last_bound=False)
            if not math.isinf(bound):
                lower, below = bound, cumulative
        return Quantile(value=lower, at_least=lower, beyond_last_bound=True)

    @staticmethod
    def merge(parts: Sequence["Histogram"]) -> "Histogram | None":
        """Sum of histograms; where bounds differ only the bounds common to all are kept (no count is invented)."""
        if not parts:
            return None
        common = set(parts[0].upper_bounds)
        for part in parts[1:]:
            common &= set(part.upper_bounds)
        bounds = tuple(sorted(common))
        cumulative = [0.0] * len(bounds)
        for part in parts:
            at = dict(zip(part.upper_bounds, part.cumulative, strict=True))
            for index, bound in enumerate(bounds):
                cumulative[index] += at[bound]
        return Histogram(upper_bounds=bounds, cumulative=tuple(cumulative), total=sum(part.total for part in parts))
