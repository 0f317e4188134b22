"""Burstiness of arrivals at several windows, and the counts it is read from, from the counters of successive snapshots.

Arrivals of a pod between two scrapes are exact: growth of its finished-request counter plus change of what is running
and waiting. So a service becomes a record of counted bins, as long as scrapes are apart. Where a pod comes, goes or
restarts, what it counted before is not known: that bin takes the pod's arrivals since its engine started (no more than
twice what the others had), stays in the record, and does not count for burstiness.

From counts N1, N2 of neighbouring windows of length T (one to 64 bins, overlapping) comes the Allan index

    A(T) = E[(N2 - N1)^2] / E[N1 + N2],        after the mean trend of N2 - N1 was taken out,

which ramps and the daily swing do not enter. With the index of dispersion I(T) = Var N(T) / E N(T) it is
A(T) = 2 I(T) - I(2T): where burstiness grows with the window, A alone says too little. So the index is put together
from the longest window down, I(T) = (A(T) + I(2T)) / 2, with I constant beyond the longest window: what is slower than
that is the forecast's business.

Few windows of a length say little: such an A is drawn towards that of the next shorter window and never below it. Where
a request fell within its bin is not known, so below the shortest window its value holds, as if all that is bursty there
were batches: the safe assumption. (vLLM's queue-time histogram would tell more only while the queue is empty without
bursts, which its lowest bucket of 0.3 s does not show.)
"""

import itertools
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from wattkeeper.domain.arrivals import ArrivalRecord, Dispersion
from wattkeeper.domain.observation import PodReading
from wattkeeper.domain.workload import FloatArray
from wattkeeper.telemetry.source import Snapshot

RECORD_SECONDS = 1800.0
"""How far back arrivals are kept."""
_MAX_BINS = 400
_LATEST_BINS = 31
_BINS_BETWEEN = 6
"""Bins between two looks at burstiness, which changes slowly."""
_MULTIPLES = (1, 2, 4, 8, 16, 32, 64)
_LEAST_PAIRS = 2.0
"""Independent pairs of windows of one length from which anything is read."""
_WELL_KNOWN_PAIRS = 16.0
"""From so many the index may also fall with the window."""
_SHRINK_PAIRS = 8.0
"""So many pairs weigh as much as the shorter window's value."""
_MIN_DIFFERENCES = 8
_MIN_ARRIVALS = 20.0
"""Below this many arrivals in all bins nothing can be told."""
MAX_DISPERSION = 500.0
"""Recorded traffic (Azure 2023 code) reaches 195 at 160 s; more is a counter gone wrong."""
_MAX_LENGTH_RATIO = 2.0
"""A bin that is longer than another by more spans a gap in the measurements and is not compared with it."""


@dataclass(frozen=True, kw_only=True)
class _Mark:
    """Where a pod's arrival count stood."""

    time_seconds: float
    finished: float
    in_system: float

    @property
    def arrived(self) -> float:
        return self.finished + self.in_system


@dataclass(frozen=True, kw_only=True)
class _Bin:
    begin_seconds: float
    end_seconds: float
    seconds: float
    arrivals: float
    joined: bool
    """False where no bin lies directly before it: the count started afresh."""
    exact: bool
    """False where a pod came, went or restarted meanwhile."""


class DispersionEstimator:
    """Counted arrivals of one service and their burstiness; feed it every snapshot. Memory is bounded.

    `bin_seconds` is the least length of a bin; pods scraped less often make bins longer.
    """

    def __init__(self, *, bin_seconds: float = 5.0) -> None:
        if bin_seconds <= 0:
            raise ValueError(f"bins must have a positive length, not {bin_seconds} s")
        self._bin_seconds = bin_seconds
        self._marks: dict[str, _Mark] = {}
        self._bins: deque[_Bin] = deque(maxlen=_MAX_BINS)
        self._fresh = True
        self._value: Dispersion | None = None
        self._bins_since = 0

    def update(self, *, namespace: str, pods: Iterable[str], snapshot: Snapshot) -> None:
        """Take a snapshot in. A bin closes once every pod that was there before has a new reading."""
        marks = {
            pod: mark
            for pod in pods
            if (reading := snapshot.pods.get((namespace, pod))) is not None
            and (mark := _mark(reading, snapshot.time_seconds)) is not None
        }
        stayed = [
            pod for pod, mark in marks.items() if pod in self._marks and mark.finished >= self._marks[pod].finished
        ]
        if not stayed:
            self._marks, self._fresh = marks, True
            return
        spans = {pod: marks[pod].time_seconds - self._marks[pod].time_seconds for pod in stayed}
        if min(spans.values()) < 0.9 * self._bin_seconds:
            return
        length = sum(spans.values()) / len(spans)
        counted = [(marks[pod].arrived - self._marks[pod].arrived) * length / span for pod, span in spans.items()]
        most = 2.0 * max(sum(counted), 0.0) / len(counted)
        counted += [min(mark.arrived, most) for pod, mark in marks.items() if pod not in spans]
        end = sum(marks[pod].time_seconds for pod in stayed) / len(stayed)
        # Bins follow one another to the last digit.
        begin = end - length if self._fresh or not self._bins else self._bins[-1].end_seconds
        if end > begin:
            made = _Bin(
                begin_seconds=begin,
                end_seconds=end,
                seconds=end - begin,
                arrivals=max(0.0, sum(counted)),
                joined=not self._fresh,
                exact=len(stayed) == len(marks) == len(self._marks),
            )
            self._bins.append(made)
            self._bins_since += 1
        while self._bins and self._bins[0].end_seconds < end - RECORD_SECONDS:
            self._bins.popleft()
        self._marks, self._fresh = marks, False

    @property
    def value(self) -> Dispersion | None:
        """The index of dispersion, at least 1 at every window; None while too little was seen to tell."""
        if self._bins_since >= _BINS_BETWEEN or (self._value is None and self._bins_since):
            self._value = _dispersion([_counts(run) for run in self._runs()])
            self._bins_since = 0
        return self._value

    @property
    def record(self) -> ArrivalRecord | None:
        """The latest bins that follow one another without a break, in the snapshots' time; None where there are none.

        It ends with the latest reading; bins are at most twice as long as the median one.
        """
        if self._fresh or not self._bins:
            return None
        longest = self._longest_seconds()
        edges, counts = [self._bins[-1].end_seconds], []
        for found in reversed(self._bins):
            if found.seconds > longest:
                break
            edges.append(found.begin_seconds)
            counts.append(found.arrivals)
            if not found.joined:
                break
        return ArrivalRecord(edges_seconds=tuple(reversed(edges)), counts=tuple(reversed(counts))) if counts else None

    def _longest_seconds(self) -> float:
        """Longest bin that spans no gap. The median is that of the latest bins."""
        latest = sorted(found.seconds for found in itertools.islice(reversed(self._bins), _LATEST_BINS))
        return _MAX_LENGTH_RATIO * latest[len(latest) // 2]

    def _runs(self) -> list[list[_Bin]]:
        """Exact bins in stretches without breaks; one much longer than usual spans a gap."""
        if not self._bins:
            return []
        longest = self._longest_seconds()
        runs: list[list[_Bin]] = [[]]
        for found in self._bins:
            fits = found.exact and found.seconds <= longest
            if not found.joined or not fits:
                runs.append([])
            if fits:
                runs[-1].append(found)
        return [run for run in runs if run]


@dataclass(frozen=True, kw_only=True)
class _Counts:
    """A stretch of bins as running sums; arrays of shape (bins + 1,)."""

    arrivals: FloatArray
    seconds: FloatArray


def _counts(bins: Iterable[_Bin]) -> _Counts:
    bins = list(bins)
    return _Counts(
        arrivals=np.cumsum([0.0, *(found.arrivals for found in bins)]),
        seconds=np.cumsum([0.0, *(found.seconds for found in bins)]),
    )


def _dispersion(runs: list[_Counts]) -> Dispersion | None:
    bins = sum(len(run.arrivals) - 1 for run in runs)
    arrivals = sum(float(run.arrivals[-1]) for run in runs)
    if bins - len(runs) < _MIN_DIFFERENCES or arrivals < _MIN_ARRIVALS:
        return None
    bin_seconds = sum(float(run.seconds[-1]) for run in runs) / bins
    windows: list[float] = []
    allan: list[float] = []
    before = 1.0
    for multiple in _MULTIPLES:
        found = _allan_index(runs, multiple)
        if found is None:
            break
        index, pairs = found
        drawn = before + (index - before) * pairs / (pairs + _SHRINK_PAIRS) if windows else index
        before = drawn if pairs >= _WELL_KNOWN_PAIRS else max(drawn, before)
        windows.append(multiple * bin_seconds)
        allan.append(before)
    if not windows:
        return None
    index = allan[-1]
    indices = []
    for value in reversed(allan):
        index = 0.5 * (value + index)
        indices.append(min(max(index, 1.0), MAX_DISPERSION))
    return Dispersion(windows_seconds=tuple(windows), index=tuple(reversed(indices)))


def _allan_index(runs: Iterable[_Counts], multiple: int) -> tuple[float, float] | None:
    """(A, independent pairs it rests on) for windows of so many bins; None where there are too few.

    Bins differ a little in length, so rates are compared: E[(r2 - r1)^2] = A rate (1 / l1 + 1 / l2).
    """
    parts = list(_pairs(runs, multiple))
    pairs = sum(len(steps) / multiple for steps, _ in parts)
    if pairs < _LEAST_PAIRS:
        return None
    steps = np.concatenate([part for part, _ in parts])
    expected = np.concatenate([part for _, part in parts])
    if expected.sum() <= 0.0:
        return None
    trend = steps.mean()
    # Differences telescope, so the trend costs little of the freedom.
    freedom = 1.0 - 1.0 / max(pairs + 1.0, 2.0) ** 2
    return float(np.square(steps - trend).sum() / expected.sum() / freedom), pairs


def _pairs(runs: Iterable[_Counts], multiple: int) -> Iterator[tuple[FloatArray, FloatArray]]:
    """Differences of the rates of neighbouring windows, and their expected squares for Poisson arrivals."""
    for run in runs:
        if len(run.arrivals) <= 2 * multiple:
            continue
        n, length = (sums[multiple:] - sums[:-multiple] for sums in (run.arrivals, run.seconds))
        first, second = slice(None, -multiple), slice(multiple, None)
        steps = n[second] / length[second] - n[first] / length[first]
        rate = (n[first] + n[second]) / (length[first] + length[second])
        yield steps, rate * (1.0 / length[first] + 1.0 / length[second])


def _mark(reading: PodReading, snapshot_seconds: float) -> _Mark | None:
    """From counters of one scrape where there are, else from readings that were asked for one after the other."""
    engine = reading.engine
    if engine is not None and None not in (engine.finished_requests, engine.running, engine.waiting):
        time_seconds, finished = engine.time_seconds, engine.finished_requests
        running, waiting = engine.running, engine.waiting
    else:
        time_seconds, finished = snapshot_seconds - reading.age_seconds, reading.finished_requests
        running, waiting = reading.running, reading.waiting
    if finished is None or running is None or waiting is None:
        return None
    return _Mark(time_seconds=time_seconds, finished=finished, in_system=running + waiting)
