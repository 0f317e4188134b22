"""Book of every request of a service: what arrived, what was finished and how fast, what was lost.

A request meets its SLO when its TTFT and its mean time per output token are both within the targets; a request that was
refused, lost with its pod, or never finished has missed it.
"""

from array import array
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wattkeeper.twin.request import Request

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class SloTargets:
    """Per-request targets in seconds; None = not a goal."""

    ttft_seconds: float | None = None
    tpot_seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class Attainment:
    """Counts over all requests. `arrived` is the sum of `finished`, `lost` and `unfinished`."""

    arrived: int
    finished: int
    lost: int
    met: int

    @property
    def unfinished(self) -> int:
        """Still waiting or running."""
        return self.arrived - self.finished - self.lost

    @property
    def share(self) -> float | None:
        """Share of all requests that met the SLO; None where none arrived."""
        return self.met / self.arrived if self.arrived else None


class Ledger:
    """Append-only record of one service."""

    def __init__(self, slo: SloTargets) -> None:
        self.slo = slo
        self.arrived = 0
        self.lost = 0
        self.lost_by_reason = {"no_ready_pod": 0, "too_long": 0, "queue_full": 0, "grace_over": 0, "pod_ended": 0}
        self.met = 0
        self.prompt_tokens = 0
        self.output_tokens = 0
        self.finished = 0
        """Requests that got their last token."""
        self._arrival, self._ttft, self._tpot = array("d"), array("d"), array("d")
        self._weights = array("i")
        self._weighted = False

    def finish(self, requests: Iterable[Request]) -> None:
        """Requests that got their last token."""
        inf = float("inf")
        ttft_goal = inf if self.slo.ttft_seconds is None else self.slo.ttft_seconds
        tpot_goal = inf if self.slo.tpot_seconds is None else self.slo.tpot_seconds
        for request in requests:
            ttft, tpot, weight = request.ttft_seconds, request.tpot_seconds, request.weight
            self._arrival.append(request.arrival)
            self._ttft.append(ttft)
            self._tpot.append(tpot)
            self._weights.append(weight)
            self._weighted |= weight != 1
            self.finished += weight
            if ttft <= ttft_goal and tpot <= tpot_goal:
                self.met += weight
            self.prompt_tokens += weight * request.prompt
            self.output_tokens += weight * request.output

    def lose(self, count: int, reason: str) -> None:
        """Requests that will never get an answer.

        Reasons: no pod was ready, the prompt is too long for the model, a pod's grace ended, or the pod died.
        """
        self.lost += count
        self.lost_by_reason[reason] += count

    def samples(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Arrival time, TTFT and TPOT of every finished request, each of shape (N,), in seconds.

        One that stands for several is there as often.
        """
        columns = np.array(self._arrival), np.array(self._ttft), np.array(self._tpot)
        if not self._weighted:
            return columns
        arrival, ttft, tpot = (np.repeat(column, np.array(self._weights)) for column in columns)
        return arrival, ttft, tpot

    def recent(self, count: int) -> tuple[FloatArray, FloatArray]:
        """TTFT and TPOT of the requests that finished last, in seconds."""
        return np.array(self._ttft[-count:]), np.array(self._tpot[-count:])

    def attainment(self) -> Attainment:
        """The counts so far."""
        return Attainment(arrived=self.arrived, finished=self.finished, lost=self.lost, met=self.met)

    def percentiles(
        self, *, bin_seconds: float, percentile: float, origin_seconds: float = 0.0
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Mid time of each bin of arrivals, and the percentile (0..100) of TTFT and TPOT in it."""
        arrival, ttft, tpot = self.samples()
        bins = np.floor((arrival - origin_seconds) / bin_seconds).astype(np.int64)
        rows = [
            ((each + 0.5) * bin_seconds, *(float(np.percentile(x[bins == each], percentile)) for x in (ttft, tpot)))
            for each in np.unique(bins)
        ]
        table = np.array(rows, dtype=np.float64).reshape(-1, 3)
        return table[:, 0], table[:, 1], table[:, 2]
