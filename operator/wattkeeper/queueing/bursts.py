"""Burstiness of the arrivals at one replica, at any window, and the waits that it makes.

Requests go to replicas about at random, so that what lies beyond Poisson falls with their number. The wait of a queue
whose arrivals have the index of dispersion I(x) at window x is bounded as in robust queueing (Whitt and You, "Using
robust queueing to expose the impact of dependence in single-server queues", Operations Research 66, 2018): with load r,
service S and e the logarithm of the exceedance,

    W(e) = max over x of  sqrt(2 e V(x) x) - (1 - r) x ,      V(x) = rate (Var S + I(x) E[S]^2)

For a constant index that is e V / (2 (1 - r)), the two-moment result; for one that grows with the window the maximum
picks the window that matters at this load and percentile.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wattkeeper.domain.arrivals import Dispersion
from wattkeeper.domain.workload import FloatArray
from wattkeeper.queueing.types import IndexArray

_LOG_LOW, _LOG_HIGH, _POINTS = np.log(1e-3), np.log(1e4), 40
_STEP = (_LOG_HIGH - _LOG_LOW) / (_POINTS - 1)
WINDOWS_SECONDS = np.exp(np.linspace(_LOG_LOW, _LOG_HIGH, _POINTS))
_REACH = 2.0 ** np.arange(-1.0, 11.0)


@dataclass(frozen=True, kw_only=True)
class Bursts:
    """Index of dispersion of each candidate's arrivals per replica at `WINDOWS_SECONDS`; shape (N, G)."""

    index: FloatArray
    finest_seconds: FloatArray
    """Shortest window at which the index was measured; below it the index is an assumption. Shape (N,)."""

    @staticmethod
    def of(dispersions: Sequence[Dispersion], of_row: IndexArray, replicas: FloatArray) -> "Bursts":
        """Of services, one row per candidate, split at random over each candidate's replicas."""
        table = np.stack([item.at(WINDOWS_SECONDS) for item in dispersions])
        finest = np.array([item.windows_seconds[0] for item in dispersions])
        share = 1.0 / np.maximum(replicas, 1.0)
        return Bursts(index=1.0 + (table[of_row] - 1.0) * share[:, None], finest_seconds=finest[of_row])

    def take(self, at: IndexArray) -> "Bursts":
        """Of the candidates that an index picks."""
        return Bursts(index=self.index[at], finest_seconds=self.finest_seconds[at])

    def at(self, windows_seconds: FloatArray) -> FloatArray:
        """The index at windows of each candidate's own, of shape (N,) or (N, K)."""
        place = np.clip((np.log(np.maximum(windows_seconds, 1e-12)) - _LOG_LOW) / _STEP, 0.0, _POINTS - 1.0)
        below = np.minimum(place.astype(np.intp), _POINTS - 2)
        part = place - below
        first = np.arange(len(self.index)).reshape(-1, *([1] * (place.ndim - 1))) * _POINTS + below
        flat = self.index.ravel()
        return np.asarray(flat[first] * (1.0 - part) + flat[first + 1] * part)

    def wait(
        self,
        *,
        rate: FloatArray,
        service: FloatArray,
        service_variance: FloatArray,
        slack: FloatArray,
        exceedance: float,
    ) -> FloatArray:
        """W / e at the exceedance (the share of arrivals that wait longer): the scale of the wait's tail; shape (N,).

        `slack` is the free share of the server, in (0, 1]; times are seconds.
        """
        e = max(float(np.log(1.0 / exceedance)), 0.05)
        squared = np.square(service)
        # The window that matters for Poisson arrivals; the maximum is sought from there on, mostly to longer ones.
        poisson = 0.5 * e * rate * (squared + service_variance) / np.square(slack)
        windows = poisson[:, None] * _REACH
        variance = squared[:, None] * self.at(windows) + service_variance[:, None]
        reach = np.sqrt(2.0 * e * rate[:, None] * variance * windows) - slack[:, None] * windows
        return np.asarray(np.maximum(reach.max(axis=1), 0.0) / e)
