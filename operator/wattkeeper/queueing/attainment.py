"""Share of requests that meet a joint target of TTFT and TPOT, from the percentiles of the SLA check.

Each latency's tail is read off at fixed percentiles and interpolated on the logarithms of latency and of exceedance. Of
both together only bounds follow from the two: at most the smaller share, at least their sum less one. The lower bound
is what a promise may rest on.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from wattkeeper.domain.workload import FloatArray
from wattkeeper.queueing import sla
from wattkeeper.queueing.correction import Correction
from wattkeeper.queueing.types import SlaQuery

PERCENTILES = (50.0, 75.0, 90.0, 95.0, 98.0, 99.0, 99.5)


@dataclass(frozen=True, kw_only=True)
class Attainment:
    """Shares of requests, 0..1, of each candidate; arrays of shape (N,). 0 where a candidate is not stable."""

    ttft: FloatArray
    tpot: FloatArray

    @property
    def least(self) -> FloatArray:
        """Share that meets both, whatever the two have to do with each other."""
        return np.maximum(self.ttft + self.tpot - 1.0, 0.0)

    @property
    def most(self) -> FloatArray:
        """Share that meets both if the same requests miss both."""
        return np.minimum(self.ttft, self.tpot)


@dataclass(frozen=True, kw_only=True)
class Tails:
    """Latencies of candidates at `PERCENTILES`; arrays of shape (percentiles, N), inf where not stable."""

    ttft_seconds: FloatArray
    tpot_seconds: FloatArray

    def attainment(self, *, ttft_seconds: float, tpot_seconds: float) -> Attainment:
        """Against these targets; inf where there is none."""
        return Attainment(ttft=_share(self.ttft_seconds, ttft_seconds), tpot=_share(self.tpot_seconds, tpot_seconds))


def tails(queries: Sequence[SlaQuery], *, correction: Correction | None = None) -> list[Tails]:
    """Of all candidates of each query; the percentiles of the queries themselves do not matter."""
    asked = [
        replace(query, ttft_percentile=percentile, tpot_percentile=percentile)
        for percentile in PERCENTILES
        for query in queries
    ]
    found = sla.predict_fleet(asked, correction=correction)
    return [
        Tails(
            ttft_seconds=np.stack([level.ttft_seconds for level in found[index :: len(queries)]]),
            tpot_seconds=np.stack([level.tpot_seconds for level in found[index :: len(queries)]]),
        )
        for index in range(len(queries))
    ]


def _share(levels_seconds: FloatArray, target_seconds: float) -> FloatArray:
    """Share of requests at or below the target; `levels_seconds` has the shape (percentiles, N)."""
    log_exceedance = np.log1p(-np.array(PERCENTILES) / 100.0)
    result = np.zeros(levels_seconds.shape[1])
    if not target_seconds > 0.0:
        return result
    for at, column in enumerate(levels_seconds.T):
        if not np.isfinite(column).all():
            continue
        rising = np.log(np.maximum.accumulate(column))
        goal = np.log(target_seconds)
        if goal < rising[0]:
            # Below the median the tail says little: halves for every factor e below it.
            result[at] = 0.5 * float(np.exp(goal - rising[0]))
        else:
            result[at] = -np.expm1(float(np.interp(goal, rising, log_exceedance)))
    return result
