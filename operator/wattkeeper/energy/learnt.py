"""What live readings taught of one deployment: one running mean of the error per half doubling of the batch.

Each bin is a `Reading` for `energy.calibration`: its weight says how many ticks stand behind it, bounded so that a bin
follows a deployment that changes, and halved with every `HALF_LIFE_SECONDS` without a new reading. What goes on
surprising the posterior makes all bins forget: a power supply or an engine version that changed is as new at every
batch. The first reading is taken as it is; later ones are cut at a few standard deviations of what is expected.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from wattkeeper.energy.calibration import Calibration, CalibrationKernel, Reading, condition

MOST_WEIGHT = 8.0
"""Of a bin: at a tick of 15 s a memory of two minutes while it is measured."""
MOST_BINS = 16
BINS_PER_DOUBLING = 2
HALF_LIFE_SECONDS = 14 * 86_400.0
LEAST_WEIGHT = 0.05
"""A bin that weighs less is dropped, and a tick that weighs less is not taken in."""
CLIP_DEVIATIONS = 4.0
LARGEST_ERROR_LOG = math.log(4.0)
"""A reading further off than a factor of four is no model error but a wrong GPU, unit or pod: taken as that far off."""
_SURPRISE_WEIGHT = 0.3
_SURPRISING = 1.5
"""Mean surprise, in standard deviations, beyond which bins forget: 3.6 of its own under white noise."""
_FORGET = 0.7


@dataclass(frozen=True, kw_only=True)
class LearntBin:
    """Running means of what was measured around one batch."""

    batch: float
    error_log: float
    weight: float
    seconds: float
    """Wall time of the last reading."""

    @property
    def index(self) -> int:
        """Number of the half doubling that the batch lies in."""
        return _index(self.batch)


@dataclass(frozen=True, kw_only=True)
class LearntReadings:
    """Readings of one deployment, in order of the batch; at most `MOST_BINS` bins. Immutable."""

    bins: tuple[LearntBin, ...] = ()
    surprise: float = 0.0
    """Running mean of (error - expected) in standard deviations; not kept over a restart."""

    def take(self, reading: Reading, kernel: CalibrationKernel, *, now_seconds: float) -> "LearntReadings":
        """With one more tick. `reading.error_log` is of the uncalibrated prediction, `weight` at most about 1."""
        if reading.weight < LEAST_WEIGHT:
            return self
        mean, deviation = condition(kernel, self.readings(now_seconds), np.array([reading.batch]))
        expected, reach = float(mean[0]), math.hypot(float(deviation[0]), kernel.noise_sd_log)
        bounded = min(max(reading.error_log, -LARGEST_ERROR_LOG), LARGEST_ERROR_LOG)
        moved = min(max((bounded - expected) / max(reach, 1e-6), -CLIP_DEVIATIONS), CLIP_DEVIATIONS)
        surprise = self.surprise + _SURPRISE_WEIGHT * (moved - self.surprise) if self.bins else 0.0
        kept = self._aged(now_seconds, _FORGET if abs(surprise) > _SURPRISING else 1.0)
        place = _index(reading.batch)
        old = next((each for each in kept if each.index == place), None)
        error = expected + moved * reach
        added = _added(old, reading, error, now_seconds)
        others = [each for each in kept if each is not old]
        if len(others) >= MOST_BINS:
            others.remove(min(others, key=lambda each: each.weight))
        return LearntReadings(bins=tuple(sorted([*others, added], key=lambda each: each.batch)), surprise=surprise)

    def readings(self, now_seconds: float) -> tuple[Reading, ...]:
        """As calibration takes them, aged to now."""
        return tuple(
            Reading(batch=each.batch, error_log=each.error_log, weight=each.weight)
            for each in self._aged(now_seconds, 1.0)
        )

    def calibration(self, kernel: CalibrationKernel, *, now_seconds: float) -> Calibration | None:
        """What a model conditions on; None before the first reading."""
        readings = self.readings(now_seconds)
        return Calibration(kernel=kernel, readings=readings) if readings else None

    @staticmethod
    def of(bins: Sequence[LearntBin]) -> "LearntReadings":
        """From bins that were kept; those that make no sense or share a place are left out (the heavier stays)."""
        sane: dict[int, LearntBin] = {}
        for each in sorted(bins, key=lambda item: item.weight):
            numbers = (each.batch, each.error_log, each.weight, each.seconds)
            if not all(map(math.isfinite, numbers)) or each.batch <= 0.0 or each.weight <= 0.0:
                continue
            if abs(each.error_log) <= LARGEST_ERROR_LOG:
                sane[each.index] = replace(each, weight=min(each.weight, MOST_WEIGHT))
        heaviest = sorted(sane.values(), key=lambda item: -item.weight)[:MOST_BINS]
        return LearntReadings(bins=tuple(sorted(heaviest, key=lambda item: item.batch)))

    def _aged(self, now_seconds: float, share: float) -> list[LearntBin]:
        """Weights faded by age and by `share`; what weighs too little is gone."""
        aged = [
            replace(
                each,
                weight=share * each.weight * 0.5 ** (max(0.0, now_seconds - each.seconds) / HALF_LIFE_SECONDS),
            )
            for each in self.bins
        ]
        return [each for each in aged if each.weight >= LEAST_WEIGHT]


def _index(batch: float) -> int:
    return round(BINS_PER_DOUBLING * math.log2(batch))


def _added(old: LearntBin | None, reading: Reading, error_log: float, now_seconds: float) -> LearntBin:
    if old is None:
        return LearntBin(batch=reading.batch, error_log=error_log, weight=reading.weight, seconds=now_seconds)
    total = min(old.weight + reading.weight, MOST_WEIGHT)
    gain = min(reading.weight / total, 1.0)
    batch = old.batch * (reading.batch / old.batch) ** gain
    return LearntBin(
        # A mean of batches of one bin stays in it.
        batch=batch if _index(batch) == old.index else old.batch,
        error_log=old.error_log + gain * (error_log - old.error_log),
        weight=total,
        seconds=now_seconds,
    )
