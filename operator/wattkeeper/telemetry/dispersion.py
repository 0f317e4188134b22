"""Burstiness of arrivals: the index of dispersion of counts, from the counters of successive snapshots.

Arrivals of a pod between two scrapes are exact: growth of its finished-request counter plus change of what is running
and waiting. Counts of bins of equal length give the index D = var/mean (1 = Poisson). The variance is taken from
differences of neighbouring bins, E[(c2 - c1)^2] / 2 (the Allan variance), so that a slow ramp or the daily swing does
not count as burstiness. Bins are as long as scrapes are apart, seconds rather than one second; for positively
correlated arrivals D grows with the bin, so this errs on the safe side.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from wattkeeper.domain.observation import PodReading
from wattkeeper.telemetry.source import Snapshot

_MIN_DIFFERENCES = 8
_MAX_BINS = 120
_MAX_DISPERSION = 100.0
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
        self._counts: deque[float | None] = deque(maxlen=_MAX_BINS)

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
            self._counts.append(None)
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
        self._counts.append(max(0.0, sum(arrivals)))
        self._marks = marks

    @property
    def value(self) -> float | None:
        """The index of dispersion, at least 1; None while too little was seen to tell."""
        counts = [count for count in self._counts if count is not None]
        pairs = [
            (first, second)
            for first, second in zip(self._counts, list(self._counts)[1:], strict=False)
            if first is not None and second is not None
        ]
        if len(pairs) < _MIN_DIFFERENCES or sum(counts) < _MIN_ARRIVALS:
            return None
        variance = sum((second - first) ** 2 for first, second in pairs) / (2 * len(pairs))
        mean = sum(first + second for first, second in pairs) / (2 * len(pairs))
        return min(_MAX_DISPERSION, max(1.0, variance / mean)) if mean > 0 else None


def _mark(reading: PodReading, snapshot_seconds: float) -> _Mark | None:
    if reading.finished_requests is None or reading.running is None or reading.waiting is None:
        return None
    return _Mark(
        time_seconds=snapshot_seconds - reading.age_seconds,
        finished=reading.finished_requests,
        in_system=reading.running + reading.waiting,
    )
