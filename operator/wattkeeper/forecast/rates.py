"""Arrival rates of one service over time, and the rates that a plan must carry.

Two rates leave this room. The *planned* rate answers within seconds: the largest rate of a short window, or the trend
carried on until a replica asked for now would serve, or the same time of the last day or week if that is higher, plus
the uncertainty of a measured Poisson-like rate, z(q) * sqrt(I * rate / window) with I the index of dispersion of
counts. The *stabilised* rate is at least that and at least the largest rate of a long window (30 min): what fewer
replicas must be able to carry; a history of a few samples has none. Seasons and trends only ever raise a forecast.
"""

import math
from dataclasses import dataclass, fields, replace
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class ForecastSettings:
    """Time constants of the forecast; every field with unit and default."""

    fast_window_seconds: float = 120.0
    """The planned rate is at least the largest rate of this window."""
    stabilise_window_seconds: float = 1800.0
    """The stabilised rate is at least the largest rate of this window."""
    min_history_seconds: float = 300.0
    """Before samples reach back this far there is no stabilised rate: a fresh start knows of no peaks."""
    trend_window_seconds: float = 600.0
    """A rise is fitted over this window; it counts as far as it exceeds its standard error."""
    trend_limit_ratio: float = 2.0
    """A trend may lift the forecast to at most this many times the largest rate of its window."""
    measurement_window_seconds: float = 60.0
    """Window over which one sample of the rate was measured: sets its noise."""
    season_seconds: float = 86400.0
    """Length of the season; used once that much history exists."""
    seasons_per_cycle: int = 7
    """Seasons in the longer cycle (days of a week), preferred once that much history exists."""
    season_limit_ratio: float = 2.0
    """Bound of the factor, either way, that fits the last season to the present level."""
    quantile: float = 0.95
    """Of the planned rate's measurement noise, 0..1."""

    def scaled(self, speed_up: float) -> "ForecastSettings":
        """These settings for time that runs `speed_up` times faster than the wall clock (a simulated day)."""
        if speed_up <= 0:
            raise ValueError(f"speed_up must be positive, not {speed_up}")
        seconds = {
            item.name: getattr(self, item.name) / speed_up for item in fields(self) if item.name.endswith("_seconds")
        }
        return replace(self, **seconds)


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Rates for one plan, requests per second of the service."""

    rate_now: float
    """The newest sample."""
    planned: float
    """For `PlanRequest.planned_rate`."""
    stabilised: float | None
    """For `PlanRequest.planned_rate_stabilised`; never below `planned`. None while the history is too short to tell."""


class _Slots:
    """A ring of time slots of equal length: mean and maximum of the samples that fell into each."""

    def __init__(self, *, slot_seconds: float, slots: int) -> None:
        self.slot_seconds = slot_seconds
        self._newest: int | None = None
        self._sum = np.zeros(slots, dtype=np.float32)
        self._max = np.zeros(slots, dtype=np.float32)
        self._count = np.zeros(slots, dtype=np.int32)

    def add(self, time_seconds: float, value: float) -> None:
        slot, size = math.floor(time_seconds / self.slot_seconds), len(self._sum)
        if self._newest is None:
            self._newest = slot
        if slot <= self._newest - size:
            return
        for skipped in range(max(self._newest + 1, slot - size + 1), slot + 1):
            at = skipped % size
            self._sum[at] = self._max[at] = self._count[at] = 0
        self._newest = max(self._newest, slot)
        at = slot % size
        self._sum[at] += value
        self._max[at] = max(float(self._max[at]), value)
        self._count[at] += 1

    def read(self, start_seconds: float, end_seconds: float) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Middle time, mean and maximum of the slots with samples that touch [start, end], oldest first."""
        if self._newest is None or end_seconds < start_seconds:
            return np.empty(0), np.empty(0), np.empty(0)
        size = len(self._sum)
        first = max(math.floor(start_seconds / self.slot_seconds), self._newest - size + 1)
        last = min(math.floor(end_seconds / self.slot_seconds), self._newest)
        slots = np.arange(first, last + 1)
        at = slots % size
        filled = self._count[at] > 0
        slots, at = slots[filled], at[filled]
        means = np.asarray(self._sum[at], dtype=np.float64) / self._count[at]
        middle = np.asarray(slots, dtype=np.float64) + 0.5
        return middle * self.slot_seconds, means, np.asarray(self._max[at], dtype=np.float64)


class RateHistory:
    """Time-stamped arrival rates of one service, bounded in memory (about 40 kB).

    Fine slots hold the last two stabilisation windows, coarse ones a little more than one cycle of seasons; samples
    within one slot keep their mean and their maximum. Not safe for use from several threads at once.
    """

    def __init__(self, settings: ForecastSettings | None = None) -> None:
        used = settings or ForecastSettings()
        self._fine = _Slots(slot_seconds=used.stabilise_window_seconds / 360, slots=722)
        per_season = 288
        self._coarse = _Slots(
            slot_seconds=used.season_seconds / per_season, slots=per_season * (used.seasons_per_cycle + 1)
        )
        self._latest: tuple[float, float] | None = None

    @property
    def latest(self) -> tuple[float, float] | None:
        """(time in Unix seconds, requests per second) of the newest sample; None where there is none."""
        return self._latest

    def append(self, time_seconds: float, requests_per_second: float) -> None:
        """Add a measured rate. Missing is not zero: leave gaps out.

        Raises ValueError where the rate or the time is not a finite number, or the rate is negative.
        """
        if not math.isfinite(time_seconds) or not math.isfinite(requests_per_second) or requests_per_second < 0:
            raise ValueError(
                f"a rate history takes finite, non-negative rates at finite times, not {requests_per_second} at "
                f"{time_seconds}; leave missing samples out"
            )
        if self._latest is None or time_seconds >= self._latest[0]:
            self._latest = (time_seconds, requests_per_second)
        self._fine.add(time_seconds, requests_per_second)
        self._coarse.add(time_seconds, requests_per_second)

    def recent(self, *, now_seconds: float, window_seconds: float) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Times, means and maxima of the fine slots of the last `window_seconds`, each (slots,)."""
        return self._fine.read(now_seconds - window_seconds, now_seconds)

    def past(self, *, start_seconds: float, end_seconds: float) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Times, means and maxima of the coarse slots that touch an interval, each (slots,)."""
        return self._coarse.read(start_seconds, end_seconds)


def forecast(
    history: RateHistory,
    *,
    now_seconds: float,
    horizon_seconds: float,
    quantile: float,
    settings: ForecastSettings | None = None,
) -> float | None:
    """Rate not to be exceeded until `horizon_seconds` ahead with probability `quantile`.

    Never below the largest rate of the stabilisation window; None where that window holds no sample.
    """
    used = replace(settings or ForecastSettings(), quantile=quantile, min_history_seconds=0.0)
    rates = plan_rates(history, now_seconds=now_seconds, startup_seconds=horizon_seconds, settings=used)
    return None if rates is None else rates.stabilised


def plan_rates(
    history: RateHistory,
    *,
    now_seconds: float,
    startup_seconds: float,
    dispersion: float = 1.0,
    settings: ForecastSettings | None = None,
) -> Forecast | None:
    """The rates for one plan; None where the stabilisation window holds no sample (nothing is assumed).

    `startup_seconds` is the horizon of a scale-up; `dispersion` the index of dispersion of counts (1 = Poisson).
    """
    used = settings or ForecastSettings()
    times, _, maxima = history.recent(now_seconds=now_seconds, window_seconds=used.stabilise_window_seconds)
    if history.latest is None or not len(maxima):
        return None
    _, _, fast = history.recent(now_seconds=now_seconds, window_seconds=used.fast_window_seconds)
    level = max(
        history.latest[1],
        float(fast.max()) if len(fast) else float(maxima.max()),
        _trend(history, now_seconds, startup_seconds, used),
        _season(history, now_seconds, startup_seconds, used),
    )
    z = max(0.0, NormalDist().inv_cdf(used.quantile))
    planned = level + z * math.sqrt(max(dispersion, 1.0) * level / used.measurement_window_seconds)
    known = times[0] <= now_seconds - used.min_history_seconds or used.min_history_seconds <= 0
    stabilised = max(planned, float(maxima.max())) if known else None
    return Forecast(rate_now=history.latest[1], planned=planned, stabilised=stabilised)


def _trend(history: RateHistory, now_seconds: float, horizon_seconds: float, settings: ForecastSettings) -> float:
    """Least-squares line through the recent means, carried on by its slope less one standard error (0 if not rising).

    Neighbouring samples overlap (each is a rate over the measurement window), so the standard error counts only as
    many samples as windows fit.
    """
    times, means, maxima = history.recent(now_seconds=now_seconds, window_seconds=settings.trend_window_seconds)
    if len(times) < 4:
        return 0.0
    offsets = times - now_seconds
    centred = offsets - offsets.mean()
    spread = float(centred @ centred)
    slope = float(centred @ means) / spread
    residuals = means - means.mean() - slope * centred
    independent = max(3.0, (times[-1] - times[0]) / settings.measurement_window_seconds)
    error = math.sqrt(float(residuals @ residuals) / spread / max(1.0, independent - 2))
    rising = slope - error
    if rising <= 0:
        return 0.0
    ahead = float(means.mean()) + slope * float(-offsets.mean()) + rising * horizon_seconds
    return min(ahead, settings.trend_limit_ratio * float(maxima.max()))


def _season(history: RateHistory, now_seconds: float, horizon_seconds: float, settings: ForecastSettings) -> float:
    """Largest rate of the last cycle, else season, at the times up to the horizon, fitted to the present level."""
    slot = settings.season_seconds / 288
    _, today, _ = history.past(start_seconds=now_seconds - 3 * slot, end_seconds=now_seconds)
    for seasons in (settings.seasons_per_cycle, 1):
        then = now_seconds - seasons * settings.season_seconds
        _, same, _ = history.past(start_seconds=then - 3 * slot, end_seconds=then)
        _, ahead, _ = history.past(start_seconds=then, end_seconds=then + horizon_seconds + slot)
        if not len(same) or not len(ahead) or not len(today) or same.mean() <= 0:
            continue
        limit = settings.season_limit_ratio
        factor = min(max(float(today.mean() / same.mean()), 1 / limit), limit)
        return factor * float(ahead.max())
    return 0.0
