"""Other published estimates of what a replica can serve, next to the fluid balance of `queueing.fluid`.

`full_memory_rate`: Nie, Si, Zhou, arXiv 2605.04595: mu = C / (b E[g]), with b the batch time at full KV memory and g
the KV tokens x iterations of a request whose prompt comes in chunks.
`admissions_per_iteration`, `limit_cycle_free`: Ao, Dong, Luo, Simchi-Levi, arXiv 2606.15555: a saturated engine that
admits whatever fits falls into cycles of evictions; admitting at most x* requests per iteration avoids them.
`batch_wait_bound`: Inoue, arXiv 1912.06322: mean wait where everything that waits is taken as one batch.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wattkeeper.domain.workload import FloatArray
from wattkeeper.physics.profile import IterationCoefficients
from wattkeeper.queueing.fluid import Limits, Times
from wattkeeper.queueing.mix import Load, Mix
from wattkeeper.queueing.thresholds import class_work
from wattkeeper.queueing.verdict import Cause


@dataclass(frozen=True, kw_only=True)
class Rate:
    """A rate that can be served, or why there is none (`cause`; the rate is then 0)."""

    cause: Cause
    requests_per_second: float = 0.0
    batch_seconds: float = math.inf
    """Iteration time at that rate."""


def chunked_kv_integral(mix: Mix, chunk_tokens: float) -> FloatArray:
    """g_j: sum over prefill chunks of min(k chunk, l) plus sum over decodes of l + i; shape (J,)."""
    chunk = min(chunk_tokens, float(mix.prompt_tokens.max(initial=1.0)))
    chunks = np.ceil(mix.prompt_tokens / chunk)
    return np.asarray(0.5 * chunk * chunks * (chunks - 1.0) + mix.kv_integral)


def full_memory_rate(
    mix: Mix,
    iteration: IterationCoefficients,
    *,
    kv_capacity_tokens: float,
    chunk_tokens: float = math.inf,
    batch_seconds: float | None = None,
) -> Rate:
    """The rate mu = C / (b E[g]) at which KV memory is just full.

    `batch_seconds` is b where it was measured; None takes it from the iteration model at that very load, which without
    chunks is the critical rate of `fluid.equilibrium` for KV memory alone.
    """
    load = Load.of(mix)
    cause: Cause = load.cause.item()
    if cause is not Cause.NONE:
        return Rate(cause=cause)
    times = Times.of(iteration)
    if not times.valid:
        return Rate(cause=Cause.COEFFICIENTS_INVALID)
    if not chunk_tokens >= 1.0 or not Limits.of(kv_capacity_tokens=kv_capacity_tokens).valid:
        return Rate(cause=Cause.LIMITS_CONTRADICT)
    if load.longest_tokens > kv_capacity_tokens:
        return Rate(cause=Cause.REQUEST_EXCEEDS_KV)
    if batch_seconds is not None and not (0.0 < batch_seconds < math.inf):
        return Rate(cause=Cause.COEFFICIENTS_INVALID)
    weight = mix.rates_per_second / load.requests
    integral = float(weight @ chunked_kv_integral(mix, chunk_tokens))
    per_iteration = kv_capacity_tokens / integral
    if batch_seconds is None:
        batch_seconds = float(times.fixed + per_iteration * (weight @ class_work(mix, times)))
    return Rate(cause=Cause.NONE, requests_per_second=per_iteration / batch_seconds, batch_seconds=batch_seconds)


def steady_admissions(
    *, kv_capacity_tokens: npt.ArrayLike, prompt_tokens: npt.ArrayLike, decode_steps: npt.ArrayLike
) -> FloatArray:
    """x* = M / sum_{j=0}^{l'-1} (l + 1 + j): admissions per iteration that just fill the KV memory for good.

    Below one: one admission every 1 / x* iterations. 0 where an argument is not positive.
    """
    memory, prompt, steps = (
        np.asarray(each, dtype=np.float64) for each in (kv_capacity_tokens, prompt_tokens, decode_steps)
    )
    life = steps * (prompt + 1.0) + 0.5 * steps * (steps - 1.0)
    good = (memory > 0) & (prompt > 0) & (steps > 0) & np.isfinite(life)
    return np.divide(memory, life, out=np.zeros(np.broadcast_shapes(memory.shape, life.shape)), where=good)


def admissions_per_iteration(
    *,
    waiting: npt.ArrayLike,
    free_kv_tokens: npt.ArrayLike,
    kv_capacity_tokens: npt.ArrayLike,
    prompt_tokens: npt.ArrayLike,
    decode_steps: npt.ArrayLike,
) -> FloatArray:
    """min(Q, S / (l + 1), x*): how many waiting requests to admit in this iteration; may be a fraction."""
    steady = steady_admissions(
        kv_capacity_tokens=kv_capacity_tokens, prompt_tokens=prompt_tokens, decode_steps=decode_steps
    )
    room = np.maximum(np.asarray(free_kv_tokens, dtype=np.float64), 0.0) / (np.asarray(prompt_tokens) + 1.0)
    return np.asarray(np.minimum(np.minimum(np.maximum(waiting, 0.0), room), steady))


def limit_cycle_free(mix: Mix) -> bool:
    """True where greedy admission at saturation settles: decode lengths (whole numbers) without a common divisor."""
    steps = {round(each) for each in mix.decode_steps[mix.rates_per_second > 0].tolist()}
    return math.gcd(*steps) == 1 if steps else True


def batch_wait_bound(
    *, requests_per_second: npt.ArrayLike, seconds_per_request: npt.ArrayLike, fixed_seconds: npt.ArrayLike
) -> FloatArray:
    """Upper bound on the mean seconds in system where a batch of b takes alpha b + tau0 and all that waits is taken.

    Inf where lambda alpha >= 1 or an argument is negative or not finite. Arguments broadcast.
    """
    rate, alpha, tau = np.broadcast_arrays(
        *(np.asarray(each, dtype=np.float64) for each in (requests_per_second, seconds_per_request, fixed_seconds))
    )
    finite = np.isfinite(rate) & np.isfinite(alpha) & np.isfinite(tau)
    good = finite & (rate >= 0) & (alpha >= 0) & (tau >= 0)
    good &= np.where(good, rate, 0.0) * np.where(good, alpha, 0.0) < 1.0
    rate, alpha, tau = (np.where(good, each, 0.0) for each in (rate, alpha, tau))
    free, more = 1.0 - rate * alpha, 1.0 + rate * alpha
    light = (alpha + tau) / (2.0 * free) * (1.0 + 2.0 * rate * tau + (1.0 - rate * tau) / more)
    heavy = 1.5 * tau / free + 0.5 * alpha * (rate * alpha + 2.0) / (free * more)
    return np.where(good, np.minimum(light, heavy), np.inf)
