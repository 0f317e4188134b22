"""How many requests a replica holds, and the clock at which it runs them.

With rates per replica, rp the share of time that prefill takes and b the time that one decoder adds to a step, the
number of decoders is a birth-death chain with death rate n (1 - rp) / (k (d0 + b n)). For Poisson arrivals it is
negative binomial: with a = lam k d0 / (1 - rp) and r = lam k b / (1 - rp) its mean is (a + r) / (1 - r) and its
variance (a + r) / (1 - r)^2. Burstier arrivals and the stalls of other prompts' prefill widen it by a factor z.
A power cap lowers the clock, which lengthens steps, which raises the occupancy: solved on a grid of clocks.
"""

from dataclasses import dataclass

import numpy as np

from wattkeeper.domain.workload import FloatArray
from wattkeeper.physics import power, step
from wattkeeper.physics.profile import ServingProfile
from wattkeeper.queueing.capacity import Coefficients, Limits, coefficients
from wattkeeper.queueing.traits import Traits
from wattkeeper.queueing.types import IndexArray

_FULLEST = 0.98
"""Share of its capacity at which an overloaded replica's mean activity is taken, to keep it finite."""


@dataclass(frozen=True, kw_only=True)
class Occupancy:
    """Load of one replica of each candidate; arrays of shape (N,)."""

    prefill_share: FloatArray
    """rp: share of time that prefill takes, 0..1."""
    decoders: FloatArray
    """Mean decoding sequences at a random time."""
    decode_step: FloatArray
    """Iteration time without prefill at the mean occupancy, in seconds."""
    relaxation: FloatArray
    """Seconds in which the occupancy forgets its state."""


def occupancy(traits: Traits, limit: Limits, times: Coefficients, rate: FloatArray) -> Occupancy:
    """Mean occupancy of one replica at `rate` requests per second, which must be below its capacity."""
    steps = traits.steps_mean
    prefill_share = np.minimum(rate * times.prefill_mean, 0.999)
    free = 1.0 - prefill_share
    decode_share = np.minimum(rate * steps * times.per_decode / free, 0.999)
    room = 1.0 - decode_share
    # Of the seats, not of what KV memory holds: more memory must not look worse for letting more requests run at once.
    most = limit.seats * steps / limit.slot_iterations
    decoders = np.minimum((rate * steps * times.fixed / free + decode_share) / room, most)
    decoders = np.where(steps > 0.0, decoders, 0.0)
    return Occupancy(
        prefill_share=prefill_share,
        decoders=decoders,
        decode_step=times.fixed + times.per_decode * decoders,
        relaxation=np.maximum(steps, 1.0) * times.fixed / (free * np.square(room)),
    )


@dataclass(frozen=True, kw_only=True)
class Activity:
    """Mean composition of an iteration while the replica iterates; arrays of shape (N,)."""

    busy: FloatArray
    step_seconds: FloatArray
    batch: FloatArray
    kv_tokens: FloatArray
    prefill_tokens: FloatArray
    products: FloatArray


def activity(
    traits: Traits, times: Coefficients, load: Occupancy, rate: FloatArray, dispersion: FloatArray
) -> Activity:
    """The mean iteration of a replica that serves `rate` requests per second.

    A replica is idle when it holds no request: with the mean number of requests in it, prefilling ones included, that
    has the probability of an M/G/infinity queue. Geometric batches of mean size (dispersion + 1) / 2 come together and
    leave apart: the exponent 0.6 for what they hold less of the time is fitted to simulated runs.
    """
    resident = load.decoders + rate * (times.prefill_mean + load.decode_step)
    busy = np.maximum(-np.expm1(-resident / (0.5 * (dispersion + 1.0)) ** 0.6), 1e-9)
    busy = np.minimum(np.maximum(busy, load.prefill_share / 0.95), 1.0)
    prefill_busy = np.minimum(load.prefill_share / busy, 0.99)
    batch = load.decoders / busy
    seconds = (times.fixed + times.per_decode * batch) / (1.0 - prefill_busy)
    per_step = rate * seconds / busy
    return Activity(
        busy=busy,
        step_seconds=seconds,
        batch=batch,
        kv_tokens=batch * traits.context_mean,
        prefill_tokens=per_step * traits.computed_mean,
        products=per_step * traits.products_mean,
    )


def saturated_clock(
    profile: ServingProfile, traits: Traits, limit: Limits, *, power_cap_watts: FloatArray, clock_ratio: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """(clock ratio, factor on all times) of a saturated replica under lock and cap; arrays of shape (N,).

    The factor exceeds 1 where even the smallest clock draws more than the cap, so that the card must idle in between.
    """
    batch = limit.per_iteration * traits.steps_mean
    work = {
        "prefill_tokens": limit.per_iteration * traits.computed_mean,
        "decode_sequences": batch,
        "kv_tokens": batch * traits.context_mean,
    }
    products = limit.per_iteration * traits.products_mean
    ratio = power.clock_under_cap(
        profile, power_cap_watts=power_cap_watts, attention_products=products, clock_ratio=clock_ratio, **work
    )

    def drawn(clock: FloatArray) -> tuple[FloatArray, FloatArray]:
        seconds = step.step_seconds(profile.iteration, attention_products=products, clock_ratio=clock, **work)
        return seconds, power.step_joules(profile, step_seconds=seconds, clock_ratio=clock, **work) / seconds

    def full_watts() -> FloatArray:
        return drawn(np.ones_like(ratio))[1]

    seconds, watts = drawn(ratio)
    caution = power.caution_factor(profile, full_watts)
    joules = power.cautious_watts(profile, watts, factor=caution, clock_ratio=ratio) * seconds
    held = power.held_step_seconds(profile, power_cap_watts=power_cap_watts, joules=joules, step_seconds=seconds)
    # Bisection ends a hair below the cap; a factor within rounding of one means the clock alone meets it.
    factor = held / seconds
    return ratio, np.where(factor < 1.0 + 1e-6, 1.0, factor)


def loaded_clock(
    profile: ServingProfile,
    traits: Traits,
    limit: Limits,
    *,
    rate: FloatArray,
    dispersion: FloatArray,
    power_cap_watts: FloatArray,
    clock_ratio: FloatArray,
) -> FloatArray:
    """The clock ratio at which the mean iteration at `rate` draws at most the cap; at most `clock_ratio`."""
    cap = power.effective_cap_watts(profile, power_cap_watts)

    def estimate(ratio: FloatArray, at: IndexArray | slice) -> FloatArray:
        asked = traits.take(at)
        times = coefficients(profile.iteration, asked, ratio)
        load = occupancy(asked, limit.take(at), times, rate[at])
        mean = activity(asked, times, load, rate[at], dispersion[at])
        joules = power.step_joules(
            profile,
            prefill_tokens=mean.prefill_tokens,
            decode_sequences=mean.batch,
            kv_tokens=mean.kv_tokens,
            step_seconds=mean.step_seconds,
            clock_ratio=ratio,
        )
        return np.asarray(joules / mean.step_seconds)

    every = slice(None)
    factor = np.broadcast_to(power.caution_factor(profile, lambda: estimate(np.ones_like(rate), every)), rate.shape)

    def excess(ratio: FloatArray, at: IndexArray | slice) -> FloatArray:
        watts = power.cautious_watts(profile, estimate(ratio, at), factor=factor[at], clock_ratio=ratio)
        return np.asarray(watts - cap[at])

    index = np.flatnonzero(excess(clock_ratio, every) > 0.0)
    if not len(index):
        return clock_ratio
    low = np.full(len(index), profile.gpu.min_clock_mhz / profile.gpu.max_clock_mhz)
    result = clock_ratio.copy()
    result[index] = power.highest_ratio(lambda ratio: excess(ratio, index), low=low, high=clock_ratio[index])
    return result


def finite_rate(rate: FloatArray, capacity: FloatArray) -> FloatArray:
    """`rate`, or the fullest load that still has a mean where the candidate is overloaded."""
    return np.minimum(rate, _FULLEST * capacity)
