"""Rates from successive scrapes of one pod, through restarts of its engine.

A counter that went down tells that the engine restarted: all of its counters began at zero again, and what was running
or waiting then is lost. Both are carried on, so that rates and arrivals stay right across a restart. A counter that was
absent in the scrape before began at zero.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from wattkeeper.domain.workload import FloatArray
from wattkeeper.telemetry import aliases
from wattkeeper.telemetry.exposition import EngineSample

Key = tuple[str, float | str]

_LENGTH_MARKS = 10
"""Marks kept over the longer window."""


@dataclass(frozen=True, kw_only=True)
class _Mark:
    time_seconds: float
    counted: FloatArray
    """Counters carried on across restarts, in the order of the history's keys."""
    in_system: float | None
    """Running + waiting + all that was lost in restarts."""


class CounterHistory:
    """The last scrapes of one pod. Bounded: one mark a scrape over the rate window, ten over the length window."""

    def __init__(self, *, rate_window_seconds: float, length_window_seconds: float) -> None:
        self._rate_window = rate_window_seconds
        self._length_window = length_window_seconds
        self._keys: tuple[Key, ...] = ()
        self._raw: FloatArray = np.zeros(0)
        self._lost = 0.0
        self._marks: deque[_Mark] = deque()
        self._length_marks: deque[_Mark] = deque()
        self.latest: EngineSample | None = None
        self.time_seconds = 0.0
        """When the latest sample was taken."""

    def add(self, sample: EngineSample, time_seconds: float) -> None:
        """Take a scrape in. One that is not later than the one before replaces nothing and is left out."""
        if self.latest is not None and time_seconds <= self.time_seconds:
            return
        if sample.keys != self._keys:
            self._rearrange(sample.keys)
        previous = self._marks[-1] if self._marks else None
        if previous is None:
            counted = sample.counters
        else:
            steps = sample.counters - self._raw
            if np.any(steps < -1e-9):
                steps = sample.counters
                self._lost += _in_system(self.latest) or 0.0
            counted = previous.counted + np.maximum(steps, 0.0)
        in_system = _in_system(sample)
        mark = _Mark(
            time_seconds=time_seconds,
            counted=counted,
            in_system=None if in_system is None else in_system + self._lost,
        )
        self._raw, self.latest, self.time_seconds = sample.counters, sample, time_seconds
        _push(self._marks, mark, self._rate_window)
        if (
            not self._length_marks
            or time_seconds - self._length_marks[-1].time_seconds >= self._length_window / _LENGTH_MARKS
        ):
            _push(self._length_marks, mark, self._length_window)

    def rates(self) -> Mapping[Key, float] | None:
        """Increase per second of all counters over the rate window; None before the second scrape."""
        return self._since(self._marks[0]) if self._marks else None

    def length_rates(self) -> Mapping[Key, float] | None:
        """The same over the length window."""
        return self._since(self._length_marks[0]) if self._length_marks else None

    def growth_per_second(self) -> float | None:
        """Change of running + waiting over the rate window, lost requests counted as still there."""
        if not self._marks:
            return None
        first, last = self._marks[0], self._marks[-1]
        if first.in_system is None or last.in_system is None or last.time_seconds <= first.time_seconds:
            return None
        return (last.in_system - first.in_system) / (last.time_seconds - first.time_seconds)

    def _since(self, first: _Mark) -> Mapping[Key, float] | None:
        last = self._marks[-1]
        span = last.time_seconds - first.time_seconds
        if span <= 0:
            return None
        return dict(zip(self._keys, ((last.counted - first.counted) / span).tolist(), strict=True))

    def _rearrange(self, keys: tuple[Key, ...]) -> None:
        """Bring everything remembered into the order of `keys`."""
        old = {key: index for index, key in enumerate(self._keys)}

        def arranged(values: FloatArray) -> FloatArray:
            return np.array([values[old[key]] if key in old else 0.0 for key in keys])

        def renewed(marks: deque[_Mark]) -> deque[_Mark]:
            return deque(
                _Mark(time_seconds=mark.time_seconds, counted=arranged(mark.counted), in_system=mark.in_system)
                for mark in marks
            )

        self._raw = arranged(self._raw)
        self._marks, self._length_marks = renewed(self._marks), renewed(self._length_marks)
        self._keys = keys


def _push(marks: deque[_Mark], mark: _Mark, window_seconds: float) -> None:
    """Append, and drop what is older than the window except the one mark that reaches back to its beginning."""
    marks.append(mark)
    while len(marks) > 2 and marks[1].time_seconds <= mark.time_seconds - window_seconds:
        marks.popleft()


def _in_system(sample: EngineSample | None) -> float | None:
    if sample is None or aliases.RUNNING not in sample.gauges or aliases.WAITING not in sample.gauges:
        return None
    return sample.gauges[aliases.RUNNING] + sample.gauges[aliases.WAITING]
