"""Energy and power of one iteration, and the clock that a power cap leaves.

A GPU that iterates draws a floor plus the dynamic energy of the step's work; 65 % of decode's and 90 % of prefill's
dynamic energy fall with the square of the core voltage, the floor with the voltage down to the idle power. The voltage
curve lies in the middle of measured ones (RTX PRO 6000 caps below it, B300 GEMM under caps above it); no public data
has one for Hopper, so it is an assumption. A cap lowers the clock until the power fits; where even the smallest clock
draws more, the step is stretched by idling.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from wattkeeper.domain.workload import FloatArray
from wattkeeper.physics import step
from wattkeeper.physics.profile import ServingProfile

DECODE_VOLTAGE_SHARE = 0.65
PREFILL_VOLTAGE_SHARE = 0.9
_CURVE_RATIO = np.array([0.4545, 0.6, 0.75, 1.0])
_CURVE_VOLTAGE_SQUARED = np.square([0.76, 0.80, 0.86, 1.0])
_GRID = 9


def voltage_squared(clock_ratio: npt.ArrayLike) -> FloatArray:
    """Core voltage squared relative to full clock; constant below 45 % of the largest clock (smallest voltage)."""
    return np.asarray(np.interp(np.asarray(clock_ratio, dtype=np.float64), _CURVE_RATIO, _CURVE_VOLTAGE_SQUARED))


def floor_watts(profile: ServingProfile, clock_ratio: npt.ArrayLike = 1.0) -> FloatArray:
    """Watts per GPU that an iterating GPU draws whatever the work; never below the idle power."""
    watts = profile.energy.static_watts * np.sqrt(voltage_squared(clock_ratio))
    return np.maximum(watts, min(profile.energy.idle_watts, profile.energy.static_watts))


def dynamic_joules(
    profile: ServingProfile,
    *,
    prefill_tokens: npt.ArrayLike,
    decode_sequences: npt.ArrayLike,
    kv_tokens: npt.ArrayLike,
    clock_ratio: npt.ArrayLike = 1.0,
) -> FloatArray:
    """Joules per GPU of one step above the floor; arguments broadcast."""
    energy = profile.energy
    ratio = np.asarray(clock_ratio, dtype=np.float64)
    ceiling = profile.iteration.prefill_clock_ceiling
    decode = 1.0 - DECODE_VOLTAGE_SHARE + DECODE_VOLTAGE_SHARE * voltage_squared(ratio)
    prefill_voltage = voltage_squared(np.minimum(ratio, ceiling)) / voltage_squared(ceiling)
    prefill = 1.0 - PREFILL_VOLTAGE_SHARE + PREFILL_VOLTAGE_SHARE * prefill_voltage
    decode_joules = (
        energy.e0_joules
        + energy.en_joules_per_decode * np.asarray(decode_sequences, dtype=np.float64)
        + energy.ekv_joules_per_kv_token * np.asarray(kv_tokens, dtype=np.float64)
    )
    prefill_joules = energy.et_joules_per_prefill_token * np.asarray(prefill_tokens, dtype=np.float64)
    return np.asarray(decode * decode_joules + prefill * prefill_joules)


def step_joules(
    profile: ServingProfile,
    *,
    prefill_tokens: npt.ArrayLike,
    decode_sequences: npt.ArrayLike,
    kv_tokens: npt.ArrayLike,
    step_seconds: npt.ArrayLike,
    clock_ratio: npt.ArrayLike = 1.0,
) -> FloatArray:
    """Joules per GPU of one step that takes `step_seconds`; arguments broadcast.

    The card's own limit is not applied here: use `clock_under_cap` for the clock, or `held_step_seconds` for the time.
    """
    dynamic = dynamic_joules(
        profile,
        prefill_tokens=prefill_tokens,
        decode_sequences=decode_sequences,
        kv_tokens=kv_tokens,
        clock_ratio=clock_ratio,
    )
    return np.asarray(floor_watts(profile, clock_ratio) * np.asarray(step_seconds, dtype=np.float64) + dynamic)


def effective_cap_watts(profile: ServingProfile, power_cap_watts: npt.ArrayLike) -> FloatArray:
    """The limit that holds: the cap (nan = none), within what the card accepts."""
    gpu = profile.gpu
    cap = np.asarray(power_cap_watts, dtype=np.float64)
    return np.asarray(np.clip(np.where(np.isnan(cap), gpu.tdp_watts, cap), gpu.min_cap_watts, gpu.tdp_watts))


def caution_factor(profile: ServingProfile, full_clock_watts: Callable[[], npt.ArrayLike]) -> FloatArray:
    """How many times the estimated dynamic watts a plan under limits counts on: `cap_caution`, at most the rating.

    `full_clock_watts` gives the estimate of the work at full clock, and is only asked where caution needs it.
    """
    if profile.cap_caution == 1.0:
        return np.ones(())
    dynamic = np.asarray(full_clock_watts(), dtype=np.float64) - profile.energy.static_watts
    room = profile.gpu.tdp_watts - profile.energy.static_watts
    most = np.maximum(room / np.maximum(dynamic, 1e-9), 1.0)
    return np.asarray(np.minimum(max(profile.cap_caution, 1.0), most))


def cautious_watts(
    profile: ServingProfile, watts: FloatArray, *, factor: FloatArray, clock_ratio: npt.ArrayLike
) -> FloatArray:
    """Estimated watts per GPU at a clock with `factor` times their dynamic part."""
    if profile.cap_caution == 1.0:
        return watts
    floor = floor_watts(profile, clock_ratio)
    return np.asarray(floor + factor * (watts - floor))


def clock_under_cap(
    profile: ServingProfile,
    *,
    power_cap_watts: npt.ArrayLike,
    prefill_tokens: npt.ArrayLike,
    decode_sequences: npt.ArrayLike,
    kv_tokens: npt.ArrayLike,
    attention_products: npt.ArrayLike = 0.0,
    clock_ratio: npt.ArrayLike = 1.0,
) -> FloatArray:
    """The clock ratio at which steps of this composition draw at most the cap, and at most `clock_ratio`.

    A profile that is not believed (`cap_caution`) draws more than it says. Never below the card's smallest clock, where
    power may still exceed the cap: then `held_step_seconds` applies.
    """
    work = {"prefill_tokens": prefill_tokens, "decode_sequences": decode_sequences, "kv_tokens": kv_tokens}
    cap = effective_cap_watts(profile, power_cap_watts)
    lowest = profile.gpu.min_clock_mhz / profile.gpu.max_clock_mhz
    high = np.maximum(np.asarray(clock_ratio, dtype=np.float64), lowest)

    def estimate(ratio: FloatArray) -> FloatArray:
        seconds = step.step_seconds(profile.iteration, attention_products=attention_products, clock_ratio=ratio, **work)
        joules = step_joules(profile, step_seconds=seconds, clock_ratio=ratio, **work)
        return np.asarray(joules / seconds)

    factor = caution_factor(profile, lambda: estimate(np.ones(())))

    def watts(ratio: FloatArray) -> FloatArray:
        return cautious_watts(profile, estimate(ratio), factor=factor, clock_ratio=ratio)

    cap, high, at_high = np.broadcast_arrays(cap, high, watts(high))
    fits = at_high <= cap
    if fits.all():
        return np.array(high)
    shape = high.shape
    found = highest_ratio(lambda ratio: watts(ratio) - cap, low=np.full(shape, lowest), high=np.array(high))
    return np.where(fits, high, found)


def highest_ratio(excess: Callable[[FloatArray], FloatArray], *, low: FloatArray, high: FloatArray) -> FloatArray:
    """The highest clock ratio in [low, high] at which `excess` (watts over a cap, rising with the clock) is at most 0.

    `low` where it is above 0 everywhere. `excess` is called with arrays of shape (G, ...) for bounds of shape (...): a
    grid costs numpy little more than a point does. Two grids and a chord leave an error far below a clock step.
    """
    weight = np.linspace(0.0, 1.0, _GRID).reshape(-1, *(1 for _ in low.shape))
    below = above = low
    for _ in range(2):
        ratio = low + (high - low) * weight
        over = excess(ratio)
        index = np.maximum(np.count_nonzero(over <= 0.0, axis=0) - 1, 0)[None]
        after = np.minimum(index + 1, _GRID - 1)
        low, high = (np.take_along_axis(ratio, at, axis=0)[0] for at in (index, after))
        below, above = (np.take_along_axis(over, at, axis=0)[0] for at in (index, after))
    rise = above - below
    share = np.where(rise > 0.0, -below / np.where(rise > 0.0, rise, 1.0), 0.0)
    return np.asarray(low + (high - low) * np.clip(share, 0.0, 1.0))


def held_step_seconds(
    profile: ServingProfile,
    *,
    power_cap_watts: npt.ArrayLike,
    joules: npt.ArrayLike,
    step_seconds: npt.ArrayLike,
) -> FloatArray:
    """Seconds of a step of `joules` per GPU after the card has held it back to its limit; never less than given.

    The extra time draws the floor, so the step ends when (joules + floor * extra) / (time + extra) meets the limit.
    """
    cap = effective_cap_watts(profile, power_cap_watts)
    seconds = np.asarray(step_seconds, dtype=np.float64)
    static = profile.energy.static_watts
    dynamic = np.asarray(joules, dtype=np.float64) - static * seconds
    room = np.maximum(cap - static, 0.02 * profile.gpu.tdp_watts)
    return np.maximum(seconds, dynamic / room)
