"""Burstiness of arrivals: the index of dispersion of counts, from the counters of successive snapshots.

Arrivals of a pod between two scrapes are exact: growth of its finished-request counter plus change of what is running
and waiting. Counts of bins give the index D = var/mean (1 = Poisson). The variance is taken from differences of
neighbouring bins (the Allan variance), so that a slow ramp or the daily swing does not count as burstiness: for rates
r = c/L of bins of length L, E[(r2 - r1)^2] = D * rate * (1/L1 + 1/L2). Bins are as long as scrapes are apart, seconds
rather than one second; for positively correlated arrivals D grows with the bin, so this errs on the safe side. A bin
that is much longer than its neighbour spans a gap in the measurements and is not compared with it.
"""

import itertools
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from wattkeeper.domain.arrivals import Dispersion
from wattkeeper.domain.observation import PodReading
from wattkeeper.telemetry.source import Snapshot

_MIN_DIFFERENCES = 8
_MAX_BINS = 120
_MAX_DISPERSION = 100.0
_MAX_LENGTH_RATIO = 2.0
_MIN_ARRIVALS = 20.0
"""Below this many arrivals in all bins nothing can be told."""


@dataclass(frozen=True, kw_only=True)
class _Mark:
    """Where a pod's arrival count stood."""

    time_seconds: float
    finished: float
    in_system: float


class DispersionEstimator:
    """Index of dispersion of the arrivals of one service; feed it every snapshot. Memory is bounded.

    `bin_seconds` is the least length of a bin; pods scraped less often make bins longer.
    """

    def __init__(self, *, bin_seconds: float = 5.0) -> None:
        if bin_seconds <= 0:
            raise ValueError(f"bins must have a positive length, not {bin_seconds} s")
        self._bin_seconds = bin_seconds
        self._marks: dict[str, _Mark] = {}
        self._bins: deque[tuple[float, float] | None] = deque(maxlen=_MAX_BINS)
        """(arrivals, seconds) of each bin; None where the count started afresh."""

    def update(self, *, namespace: str, pods: Iterable[str], snapshot: Snapshot) -> None:
        """Take a snapshot in. A bin closes once every pod has a new reading; a restart or a new pod starts afresh."""
        marks = {
            pod: mark
            for pod in pods
            if (reading := snapshot.pods.get((namespace, pod))) is not None
            and (mark := _mark(reading, snapshot.time_seconds)) is not None
        }
        if marks.keys() != self._marks.keys() or any(
            mark.finished < self._marks[pod].finished for pod, mark in marks.items()
        ):
            self._marks = marks
            self._bins.append(None)
            return
        if not marks:
            return
        spans = [mark.time_seconds - self._marks[pod].time_seconds for pod, mark in marks.items()]
        if min(spans) < 0.9 * self._bin_seconds:
            return
        length = sum(spans) / len(spans)
        arrivals = (
            (mark.finished + mark.in_system - self._marks[pod].finished - self._marks[pod].in_system) * length / span
            for (pod, mark), span in zip(marks.items(), spans, strict=True)
        )
        self._bins.append((max(0.0, sum(arrivals)), length))
        self._marks = marks

    @property
    def value(self) -> Dispersion | None:
        """The index of dispersion at the bins' length, at least 1; None while too little was seen to tell."""
        bins = list(self._bins)
        pairs = [
            (first, second)
            for first, second in itertools.pairwise(bins)
            if first is not None
            and second is not None
            and max(first[1], second[1]) <= _MAX_LENGTH_RATIO * min(first[1], second[1])
        ]
        if len(pairs) < _MIN_DIFFERENCES or sum(found[0] for found in bins if found is not None) < _MIN_ARRIVALS:
            return None
        squares = sum((c2 / l2 - c1 / l1) ** 2 for (c1, l1), (c2, l2) in pairs)
        expected = sum((c1 + c2) / (l1 + l2) * (1 / l1 + 1 / l2) for (c1, l1), (c2, l2) in pairs)
        if expected <= 0:
            return None
        return Dispersion.flat(min(_MAX_DISPERSION, max(1.0, squares / expected)))


def _mark(reading: PodReading, snapshot_seconds: float) -> _Mark | None:
    if reading.finished_requests is None or reading.running is None or reading.waiting is None:
        return None
    return _Mark(
        time_seconds=snapshot_seconds - reading.age_seconds,
        finished=reading.finished_requests,
        in_system=reading.running + reading.waiting,
    )
