"""Cuts a history into steady windows; pure.

A history is a row of intervals. Windows are grown from the left: the first stretch of at least `least_seconds` and
`least_intervals` that is steady is taken, and prolonged for as long as it stays so, up to `most_seconds`. Each interval
is in exactly one window, or is left out for exactly one reason.

Steady is what moves little as a whole. Over a window, for each level (such as the batch):

    spread = standard deviation / mean             drift = |least-squares slope| x length / mean

The spread is bounded. So is the drift, unless it is within twice its own standard error for independent values, which
is `spread x sqrt(12 / N)`: at a light load, chance alone tilts short windows. Power bends little with the load (about
50 W per e-fold of the batch on a card of 400 W): the mean watts of a window whose batch spreads by 50 % are 1.6 % off
the watts at its mean batch, so the bounds can be wide where traffic is bursty.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wattkeeper.domain.workload import FloatArray

SETTLING = "settling after an interruption"
UNSTEADY = "not steady"
SHORT = "too short for a window"


@dataclass(frozen=True, kw_only=True)
class Level:
    """What must stay about the same, (N,) per interval; NaN says nothing."""

    name: str
    values: FloatArray
    most_spread: float
    most_drift: float


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Of windows."""

    least_seconds: float = 300.0
    least_intervals: int = 8
    most_seconds: float = 900.0
    settle_seconds: float = 60.0
    """Left out after each interruption."""


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """Intervals `start` to before `stop`, and why they are in no window."""

    start: int
    stop: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class Cut:
    """Windows as (start, stop) in order, and everything else."""

    windows: tuple[tuple[int, int], ...]
    left_out: tuple[LeftOut, ...]


def cut(
    seconds: FloatArray, levels: Sequence[Level], broken: Sequence[str | None], *, lengths: Lengths | None = None
) -> Cut:
    """Steady windows of N intervals.

    `seconds` (N,) are the lengths of the intervals; `broken` (N,) says why an interval can be in no window, None where
    it can. An interruption is a stretch of broken intervals; the beginning of the history is none.
    """
    chosen = lengths or Lengths()
    windows: list[tuple[int, int]] = []
    reasons: list[str | None] = list(broken)
    usable = np.array([reason is None for reason in broken], dtype=np.bool_)
    sums = [_Sums(level, seconds, usable) for level in levels]
    ends = np.concatenate(([0.0], np.cumsum(seconds)))
    for free, group in itertools.groupby(range(len(seconds)), key=lambda index: broken[index] is None):
        members = list(group)
        start, stop = members[0], members[-1] + 1
        if not free:
            continue
        if start > 0:
            while start < stop and ends[start + 1] - ends[members[0]] <= chosen.settle_seconds:
                reasons[start] = SETTLING
                start += 1
        windows += _windows(sums, ends, start, stop, chosen, reasons)
    return Cut(windows=tuple(windows), left_out=tuple(_stretches(windows, reasons)))


class _Sums:
    """Prefix sums of one level, by which any window is judged in constant time."""

    def __init__(self, level: Level, seconds: FloatArray, usable: npt.NDArray[np.bool_]) -> None:
        self._level = level
        known = usable & np.isfinite(level.values)
        weight = np.where(known, seconds, 0.0)
        values = np.where(known, level.values, 0.0)
        total = float(weight.sum())
        scale = float(weight @ values) / total if total > 0.0 else 0.0
        # About the mean of all, so that squares do not cancel.
        value = np.where(known, values / (scale or 1.0) - 1.0, 0.0)
        middle = np.cumsum(seconds) - seconds / 2.0
        columns = (weight, weight * middle, weight * middle**2, weight * middle * value, weight * value)
        self._sums = np.vstack([np.concatenate(([0.0], np.cumsum(each))) for each in (*columns, weight * value**2)])

    def steady(self, start: int, stop: int) -> bool:
        """Whether intervals `start` to before `stop` pass both bounds."""
        weight, time, time2, product, value, value2 = self._sums[:, stop] - self._sums[:, start]
        if weight <= 0.0:
            return True
        mean = 1.0 + value / weight
        if mean <= 0.0:
            return False
        variance = max(value2 / weight - (value / weight) ** 2, 0.0)
        spread = math.sqrt(variance) / mean
        if spread > self._level.most_spread:
            return False
        moment = time2 / weight - (time / weight) ** 2
        slope = (product / weight - time * value / weight**2) / moment if moment > 0 else 0.0
        drift = abs(slope) * weight / mean
        return bool(drift <= max(self._level.most_drift, 2.0 * spread * math.sqrt(12.0 / (stop - start))))


def _windows(
    sums: Sequence[_Sums], ends: FloatArray, start: int, stop: int, lengths: Lengths, reasons: list[str | None]
) -> list[tuple[int, int]]:
    """Windows of one stretch without interruption; gives reasons to what is in none."""
    found = []
    while start < stop:
        end = _first_end(ends, start, lengths)
        if end > stop:
            break
        if not all(each.steady(start, end) for each in sums):
            reasons[start] = UNSTEADY
            start += 1
            continue
        while (
            end < stop
            and ends[end + 1] - ends[start] <= lengths.most_seconds
            and all(each.steady(start, end + 1) for each in sums)
        ):
            end += 1
        found.append((start, end))
        start = end
    reasons[start:stop] = [SHORT] * (stop - start)
    return found


def _first_end(ends: FloatArray, start: int, lengths: Lengths) -> int:
    """The end of the shortest window from `start`; beyond the history where there is none."""
    by_time = int(np.searchsorted(ends, ends[start] + lengths.least_seconds - 1e-6))
    return max(by_time, start + lengths.least_intervals)


def _stretches(windows: Sequence[tuple[int, int]], reasons: Sequence[str | None]) -> list[LeftOut]:
    """What is in no window, neighbours of one reason together."""
    inside = {index for start, stop in windows for index in range(start, stop)}
    found = []
    for reason, group in itertools.groupby(
        range(len(reasons)), key=lambda index: None if index in inside else reasons[index]
    ):
        members = list(group)
        if reason is not None:
            found.append(LeftOut(start=members[0], stop=members[-1] + 1, reason=reason))
    return found
