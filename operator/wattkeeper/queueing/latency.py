"""Percentiles of TTFT and TPOT of one replica below its capacity: a tagged request and two-moment waits.

TTFT = rest of the running iteration + wait for prompts ahead + own prefill, in as many iterations as its chunks take,
with other prompts of the same iterations + wait for a slot. The waits are Allen-Cunneen two-moment forms
cs2 + I over 2 (1 - load) with I the index of dispersion of arrivals; the percentile integrates over prompt length,
phase of the running iteration and occupancy at fixed sample points, and over the waits in closed form.

TPOT of an answer of k steps = step time at the occupancy it lives through + other prompts' prefill in between, over k.
The occupancy averages out over a life of D seconds with relaxation time tau: with x = D / tau the variance of its mean
falls by 2 (x - 1 + exp(-x)) / x^2. Prefill in between is the delay busy period of a compound process: mean
rp k s / (1 - rp), variance lam (Var P + I E[P]^2) k s / (1 - rp)^3.
"""

from dataclasses import dataclass

import numpy as np

from wattkeeper.domain.workload import FloatArray
from wattkeeper.queueing import tails
from wattkeeper.queueing.bursts import Bursts
from wattkeeper.queueing.capacity import Coefficients, Limits
from wattkeeper.queueing.occupancy import Occupancy
from wattkeeper.queueing.traits import Nodes, Traits

_LEAST_SLACK = 0.01
_LARGEST_EXPONENT = 300.0
_NEVER = 1e-9


@dataclass(frozen=True, kw_only=True)
class Replica:
    """All that latency needs of one replica of each candidate; arrays of shape (N,)."""

    traits: Traits
    limit: Limits
    times: Coefficients
    load: Occupancy
    rate: FloatArray
    utilisation: FloatArray
    bursts: Bursts
    budget: FloatArray

    @property
    def slack(self) -> FloatArray:
        """Free share of the capacity, kept away from zero."""
        return np.maximum(1.0 - self.utilisation, _LEAST_SLACK)


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Occupancy that arrivals meet, in decoding sequences; arrays of shape (N,)."""

    mean: FloatArray
    variance: FloatArray


def spread(replica: Replica) -> Spread:
    """Mean and variance of the decoders that an arrival meets, itself not counted."""
    load, times, rate = replica.load, replica.times, replica.rate
    free = 1.0 - load.prefill_share
    stalls = np.square(rate / free) * times.prefill_variance + np.square(load.prefill_share / free)
    index = replica.bursts.at(2.0 * load.relaxation)
    z = np.maximum(0.5 * (index / np.square(free) + stalls + 1.0), 1.0)
    variance = z * np.maximum(load.decoders, 1e-9) * load.decode_step / times.fixed
    return Spread(mean=load.decoders + 0.5 * (z - 1.0), variance=variance)


@dataclass(frozen=True, kw_only=True)
class Waits:
    """Waits before a prompt is computed, as zero-inflated exponentials; arrays of shape (N,), means in seconds."""

    prefill_chance: FloatArray
    prefill_seconds: FloatArray
    """Behind and beside other prompts."""
    slot_chance: FloatArray
    slot_seconds: FloatArray
    """Until a resident request ends."""


def waits(replica: Replica, met: Spread, percentile: float) -> Waits:
    """The waits whose tails fit best at the percentile (0..100)."""
    exceedance = 1.0 - percentile / 100.0
    prefill_chance, prefill_seconds = _prefill_wait(replica, met, exceedance)
    slot_chance, slot_seconds = _slot_wait(replica, met, exceedance)
    return Waits(
        prefill_chance=prefill_chance,
        prefill_seconds=prefill_seconds,
        slot_chance=slot_chance,
        slot_seconds=slot_seconds,
    )


def ttft_seconds(replica: Replica, nodes: Nodes, percentile: float, *, met: Spread, waiting: Waits) -> FloatArray:
    """TTFT at the percentile (0..100); shape (N,)."""
    times, load, rate = replica.times, replica.load, replica.rate
    most = replica.limit.seats[:, None]
    decoders = tails.gamma_quantile(
        nodes.normal, np.maximum(met.mean, 1e-9)[:, None], np.maximum(met.variance, 1e-12)[:, None]
    )
    decoders = np.minimum(decoders, most)
    step = times.fixed[:, None] + times.per_decode[:, None] * decoders
    room = np.maximum(replica.budget[:, None] - decoders, 0.05 * replica.budget[:, None])
    own = times.per_token[:, None] * nodes.computed + times.per_product[:, None] * nodes.products
    chunks = np.ceil(nodes.computed / room)
    running = 1.0 - np.exp(-(load.decoders + rate * (times.prefill_mean + times.fixed)))
    shared = step / (1.0 - load.prefill_share)[:, None]
    alone = shared * (running[:, None] * nodes.residual + chunks) + own

    exceedance = 1.0 - percentile / 100.0
    chance, scale = waiting.prefill_chance, waiting.prefill_seconds
    slot_chance, slot_scale = waiting.slot_chance, waiting.slot_seconds
    # Sorted along the samples, the tail at a value needs two running sums: of the weights of samples that are
    # later even without a wait, and of the discounted weights of those that a wait makes later.
    alone_order = np.argsort(alone, axis=1)
    alone = np.take_along_axis(alone, alone_order, axis=1)
    weight = np.take_along_axis(nodes.weight, alone_order, axis=1)
    scale = np.maximum(scale, alone[:, -1] / _LARGEST_EXPONENT)
    slot_scale = np.maximum(slot_scale, alone[:, -1] / _LARGEST_EXPONENT)
    first, second = _mixture(chance, scale, slot_chance, slot_scale)
    later = 1.0 - _running_sum(weight)
    queueing = first[:, None] * _running_sum(weight * np.exp(alone / scale[:, None]))
    any_slot_wait = bool((slot_chance > _NEVER).any())
    slot_waiting = (
        second[:, None] * _running_sum(weight * np.exp(alone / slot_scale[:, None])) if any_slot_wait else later
    )
    rows = np.arange(len(rate))

    def tail(value: FloatArray) -> FloatArray:
        reached = np.count_nonzero(alone <= value[:, None], axis=1)
        found = later[rows, reached] + queueing[rows, reached] * np.exp(-value / scale)
        if any_slot_wait:
            found = found + slot_waiting[rows, reached] * np.exp(-value / slot_scale)
        return np.asarray(found)

    longest = np.maximum(scale, np.where(slot_chance > _NEVER, slot_scale, 0.0))
    high = alone[:, -1] + longest * (np.log(2.0 / exceedance) + 1.0)
    return tails.percentile(tail, low=alone[:, 0], high=high, exceedance=exceedance)


def _running_sum(values: FloatArray) -> FloatArray:
    """Sums of the first 0, 1, ... K columns; shape (N, K + 1)."""
    sums = np.zeros((values.shape[0], values.shape[1] + 1))
    np.cumsum(values, axis=1, out=sums[:, 1:])
    return sums


def _prefill_wait(replica: Replica, met: Spread, exceedance: float) -> tuple[FloatArray, FloatArray]:
    """Wait behind and beside other prompts: (chance, mean then).

    Three parts: the queue for prefill, mates of the same burst (ahead and behind), and strangers that arrive during the
    running iteration and share the next one.
    """
    times, traits, rate = replica.times, replica.traits, replica.rate
    step = times.fixed + times.per_decode * met.mean
    room = np.maximum(replica.budget - met.mean, 0.05 * replica.budget)
    per_token = step / room
    service = times.prefill_mean + per_token * traits.computed_mean
    variance = times.prefill_variance + np.square(per_token) * traits.computed_variance
    load = np.minimum(rate * service, 0.999)
    slack = np.maximum(1.0 - load, replica.slack)
    wait = replica.bursts.wait(
        rate=rate, service=service, service_variance=variance, slack=slack, exceedance=exceedance
    ) / np.maximum(load, 1e-9)
    mates = 0.5 * np.maximum(replica.bursts.at(2.0 * step) - 1.0, 0.0) * service
    queued = load * wait + mates
    queued_squared = 2.0 * load * np.square(wait) + 2.0 * load * wait * mates + 2.0 * np.square(mates)
    strangers = rate * step
    beside = strangers * times.prefill_mean
    beside_squared = strangers * times.prefill_squared + np.square(beside)
    mean = queued + beside
    second = queued_squared + 2.0 * queued * beside + beside_squared
    return tails.inflated_exponential(mean, second, exceedance=exceedance)


def _slot_wait(replica: Replica, met: Spread, exceedance: float) -> tuple[FloatArray, FloatArray]:
    """Wait for one of the resident requests to end: (chance, mean then)."""
    limit, times, traits = replica.limit, replica.times, replica.traits
    per_slot = np.maximum(traits.steps_mean, 1.0) / limit.slot_iterations
    full_step = times.fixed + times.per_decode * limit.slots * per_slot
    service = limit.slot_iterations * full_step / limit.slots + times.prefill_mean
    spread_steps = traits.steps_variance * np.square(full_step / limit.slots) + times.prefill_variance
    scale = replica.bursts.wait(
        rate=replica.rate,
        service=service,
        service_variance=spread_steps,
        slack=replica.slack,
        exceedance=exceedance,
    ) / np.clip(replica.utilisation, 1e-9, 1.0)
    full = limit.slots * per_slot
    chance = tails.gamma_tail(full, np.maximum(met.mean, 1e-6), np.maximum(met.variance, 1e-9))
    return np.where(met.mean < 0.01 * full, 0.0, chance), scale


def _mixture(
    chance: FloatArray, scale: FloatArray, other_chance: FloatArray, other_scale: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Weights of exp(-x/scale) and exp(-x/other_scale) in the tail of the sum of two zero-inflated exponentials."""
    gap = scale - other_scale
    gap = np.where(np.abs(gap) < 1e-3 * scale, 1e-3 * scale, gap)
    both = chance * other_chance / gap
    return chance * (1.0 - other_chance) + both * scale, other_chance * (1.0 - chance) - both * other_scale


def tpot_seconds(
    replica: Replica, outputs: tuple[FloatArray, FloatArray], percentile: float, *, met: Spread
) -> FloatArray:
    """TPOT (mean time per output token of a request) at the percentile (0..100); shape (N,)."""
    steps, weight = outputs
    times, load, traits, rate = replica.times, replica.load, replica.traits, replica.rate
    fixed, slope = times.fixed[:, None], times.per_decode[:, None]
    free = (1.0 - load.prefill_share)[:, None]
    shift = fixed + slope
    life = steps * load.decode_step[:, None] / free
    x = np.maximum(life / load.relaxation[:, None], 1e-6)
    decay = np.exp(-x)
    kept = (1.0 - decay) / x
    variance_kept = np.maximum(2.0 * (x - 1.0 + decay) / np.square(x), 0.0)
    decoders = load.decoders[:, None] + (met.mean - load.decoders)[:, None] * kept
    step = shift + slope * decoders
    mates = 0.5 * np.maximum(replica.bursts.at(2.0 * load.decode_step) - 1.0, 0.0)
    backlog = ((mates + load.prefill_share) * times.prefill_mean)[:, None]
    mean = (step + backlog / steps) / free
    life_mean = np.maximum(traits.steps_mean, 1.0) * load.decode_step / (1.0 - load.prefill_share)
    jump = times.prefill_variance + replica.bursts.at(life_mean) * np.square(times.prefill_mean)
    inserted = (rate * jump)[:, None] * step / steps / free**3
    variance = np.square(slope) * met.variance[:, None] * variance_kept / np.square(free) + inserted
    excess = np.maximum(mean - shift, 1e-3 * shift)

    chance, scale = tails.inflated_exponential(
        excess, variance + np.square(excess), exceedance=1.0 - percentile / 100.0
    )
    regular = variance < np.square(excess)
    relative = np.maximum(variance, 1e-12) / np.square(excess)
    width = 3.0 / np.sqrt(relative)
    offset = 1.0 - relative / 9.0
    # However many prompts queue, an iteration computes no more of them than its token budget.
    most = replica.limit.seats * np.maximum(traits.steps_mean, 1.0) / replica.limit.slot_iterations
    crowd = np.minimum(most, met.mean + 3.0 * np.sqrt(met.variance))
    ceiling = (
        times.fixed
        + times.per_decode * crowd
        + times.per_token * replica.budget
        + times.per_product * replica.budget * (traits.prompt_mean + 0.5 * replica.budget)
    )

    def tail(value: FloatArray) -> FloatArray:
        over = np.maximum(value[:, None] - shift, 0.0)
        smooth = tails.normal_tail((np.cbrt(over / excess) - offset) * width)
        rough = chance * np.exp(-over / scale)
        return np.asarray((np.where(regular, smooth, rough) * weight).sum(axis=1))

    high = (shift + 10.0 * excess + 10.0 * np.sqrt(variance) * np.log(1.0 / (1.0 - percentile / 100.0))).max(axis=1)
    low = shift[:, 0]
    found = tails.percentile(tail, low=low, high=high, exceedance=1.0 - percentile / 100.0)
    return np.minimum(found, ceiling)
