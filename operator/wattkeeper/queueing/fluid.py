"""Fluid equilibrium of one replica: step time, inventory, KV memory, and the load at which it becomes unstable.

With the sums of `queueing.mix` over classes of rate lambda_j, and x_j the seconds of work of one request,

    rho = sum(lambda_j x_j)                  must stay below 1
    dT* = d0 / (1 - rho)                     step time in balance
    n_j = lambda_j dT*                       requests of class j at each of their l'_j + 1 stages
    M*  = sum(n_j w_j)                       KV tokens resident

In the form of Ao, Luo, Simchi-Levi, Wang (arXiv 2504.11320) a step takes d0 + d1 (all resident tokens), so x_j = d1 w_j
(`kv_only_form`). The MIXED form of `physics.profile` has

    x_j = dT l_j + dN l'_j + dKV (w_j - l_j) + dA c_j (h_j + c_j / 2),    c computed, h cached prompt tokens

and contains it: dT = dKV = d1, dN = dA = 0. A limit R on a quantity whose sum per second is Q (KV tokens: W; requests
in service; tokens per iteration) is met at the factor R / (d0 Q + R rho) on all rates; without limits the factor is
1 / rho. These conditions are necessary, not sufficient: greedy admission loses work to recompute when KV memory is
short (`queueing.capacity`).
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wattkeeper.domain.workload import FloatArray
from wattkeeper.physics import step
from wattkeeper.physics.profile import IterationCoefficients
from wattkeeper.queueing.mix import Load, Mix
from wattkeeper.queueing.types import BoolArray, ObjectArray
from wattkeeper.queueing.verdict import ROUNDING, Cause, Condition, Constraint

COMPUTE_BOUND = 0.95
"""A limit that is met only beyond this rho is not what is scarce: lifting it would gain less than 5 %."""

_CONSTRAINTS = (Constraint.KV_MEMORY, Constraint.SLOTS, Constraint.TOKEN_BUDGET, Constraint.COMPUTE)
_CAUSES = {
    Constraint.KV_MEMORY: Cause.KV_MEMORY,
    Constraint.SLOTS: Cause.SLOTS,
    Constraint.TOKEN_BUDGET: Cause.TOKEN_BUDGET,
    Constraint.COMPUTE: Cause.OVERLOAD,
}


def kv_only_form(*, d0_seconds: float, d1_seconds_per_kv_token: float) -> IterationCoefficients:
    """The iteration time of arXiv 2504.11320, Eq. 1: d0 + d1 (prompt tokens of prefills + contexts of decodes)."""
    return IterationCoefficients(
        d0_seconds=d0_seconds,
        dt_seconds_per_token=d1_seconds_per_kv_token,
        dkv_seconds_per_kv_token=d1_seconds_per_kv_token,
        da_seconds_per_token_squared=0.0,
        dn_seconds_per_decode=0.0,
    )


@dataclass(frozen=True, kw_only=True)
class Times:
    """Coefficients of the MIXED form in seconds; arrays that broadcast with loads and limits."""

    fixed: FloatArray
    per_token: FloatArray
    per_decode: FloatArray
    per_kv_token: FloatArray
    per_product: FloatArray

    @staticmethod
    def of(iteration: IterationCoefficients, clock_ratio: npt.ArrayLike = 1.0) -> "Times":
        """At a clock over the largest, in (0, 1]; the shape is that of `clock_ratio`.

        Clocks out of range come out as coefficients that `equilibrium` refuses.
        """
        ratio = np.asarray(clock_ratio, dtype=np.float64)
        known = np.where((ratio > 0.0) & (ratio <= 1.0), ratio, 1.0)
        with np.errstate(all="ignore"):
            d0, dt, dn, dkv, da = step.at_clock(iteration, known)
        return Times(
            fixed=np.where(known == ratio, d0, -1.0), per_token=dt, per_decode=dn, per_kv_token=dkv, per_product=da
        )

    @property
    def valid(self) -> BoolArray:
        """Where the fixed time is positive and no term is negative or not finite."""
        terms = np.broadcast_arrays(self.fixed, self.per_token, self.per_decode, self.per_kv_token, self.per_product)
        finite = np.logical_and.reduce([np.isfinite(term) & (term >= 0.0) for term in terms])
        return np.asarray(finite & (terms[0] > 0.0))


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of one replica; arrays that broadcast; inf where there is none."""

    kv_capacity_tokens: FloatArray
    max_num_seqs: FloatArray
    max_num_batched_tokens: FloatArray
    max_model_len: FloatArray

    @staticmethod
    def of(
        *,
        kv_capacity_tokens: npt.ArrayLike = np.inf,
        max_num_seqs: npt.ArrayLike = np.inf,
        max_num_batched_tokens: npt.ArrayLike = np.inf,
        max_model_len: npt.ArrayLike = np.inf,
    ) -> "Limits":
        """Limits from numbers or arrays."""
        return Limits(
            kv_capacity_tokens=np.asarray(kv_capacity_tokens, dtype=np.float64),
            max_num_seqs=np.asarray(max_num_seqs, dtype=np.float64),
            max_num_batched_tokens=np.asarray(max_num_batched_tokens, dtype=np.float64),
            max_model_len=np.asarray(max_model_len, dtype=np.float64),
        )

    @property
    def valid(self) -> BoolArray:
        """Where every limit is at least one and the token budget is not below the request limit."""
        budget, slots = self.max_num_batched_tokens, self.max_num_seqs
        positive = (self.kv_capacity_tokens >= 1.0) & (slots >= 1.0) & (budget >= 1.0) & (self.max_model_len >= 1.0)
        return np.asarray(positive & ((budget >= slots) | np.isinf(slots)))


@dataclass(frozen=True, kw_only=True)
class Equilibrium:
    """The balance of each point; arrays of one shape, never NaN.

    Bad input and impossible requests have scale 0 and infinite everything; an overloaded point has its rho and infinite
    step time and inventory.
    """

    cause: ObjectArray
    """`Cause`: NONE or IDLE where the load is served, else why not."""
    rho: FloatArray
    step_seconds: FloatArray
    in_service: FloatArray
    """Requests admitted and not finished."""
    memory_tokens: FloatArray
    """M*."""
    tokens_per_step: FloatArray
    critical_scale: FloatArray
    """Factor on all rates up to which the mix is served; inf for an idle mix."""
    critical_rate: FloatArray
    """Requests per second at that factor; 0 for an idle mix, of which it cannot be known."""
    binding: ObjectArray
    """`Constraint` that the growing load meets first."""

    @property
    def stable(self) -> BoolArray:
        """Where the load can be served for long."""
        return np.asarray((self.cause == Cause.NONE) | (self.cause == Cause.IDLE))


def equilibrium(load: Load, times: Times, limits: Limits) -> Equilibrium:
    """The fluid balance of every point; loads, times and limits broadcast against one another."""
    with np.errstate(all="ignore"):
        return _equilibrium(load, times, limits)


def _equilibrium(load: Load, times: Times, limits: Limits) -> Equilibrium:
    work = (
        times.per_token * load.computed_tokens
        + times.per_decode * load.decode_steps
        + times.per_kv_token * load.kv_reads
        + times.per_product * load.products
    )
    # A prompt longer than the budget takes several iterations, at least its share of the budget each.
    slots = load.decode_steps + np.maximum(load.requests, load.computed_tokens / limits.max_num_batched_tokens)
    tokens = load.computed_tokens + load.decode_steps
    scales = np.stack(
        np.broadcast_arrays(
            1.0 / (times.fixed * load.kv_integral / limits.kv_capacity_tokens + work),
            1.0 / (times.fixed * slots / limits.max_num_seqs + work),
            1.0 / (times.fixed * tokens / limits.max_num_batched_tokens + work),
            1.0 / work,
        )
    )
    idle = load.cause == Cause.IDLE
    scale = np.where(idle, np.inf, scales.min(axis=0))
    scarce = np.where(scale >= COMPUTE_BOUND * scales[-1], len(_CONSTRAINTS) - 1, scales.argmin(axis=0))
    step_seconds = np.where(work < 1.0, times.fixed / np.maximum(1.0 - work, 1e-300), np.inf)

    cause = np.broadcast_to(load.cause, scale.shape).copy()
    for index, constraint in enumerate(_CONSTRAINTS[:-1]):
        cause[(scales[:-1].argmin(axis=0) == index) & (scale < 1.0 - ROUNDING)] = _CAUSES[constraint]
    cause[np.broadcast_to(work >= 1.0, scale.shape)] = Cause.OVERLOAD
    impossible = [
        (load.longest_tokens > limits.kv_capacity_tokens, Cause.REQUEST_EXCEEDS_KV),
        (load.longest_tokens > limits.max_model_len, Cause.REQUEST_EXCEEDS_MODEL_LENGTH),
        (~limits.valid, Cause.LIMITS_CONTRADICT),
        (~times.valid, Cause.COEFFICIENTS_INVALID),
    ]
    served = np.ones(scale.shape, dtype=bool)
    for where, name in impossible:
        cause[np.broadcast_to(where, scale.shape)] = name
        served &= ~where
    bad_load = np.broadcast_to((load.cause != Cause.NONE) & ~idle, scale.shape)
    cause[bad_load] = np.broadcast_to(load.cause, scale.shape)[bad_load]
    served &= ~bad_load

    def sound(values: FloatArray) -> FloatArray:
        return np.where(served, values, np.inf)

    def inventory(per_second: FloatArray) -> FloatArray:
        return sound(np.where(np.isinf(step_seconds), np.inf, per_second * step_seconds))

    binding = np.empty(scale.shape, dtype=object)
    for index, constraint in enumerate(_CONSTRAINTS):
        binding[scarce == index] = constraint
    return Equilibrium(
        cause=cause,
        rho=sound(work),
        step_seconds=sound(step_seconds),
        in_service=inventory(slots),
        memory_tokens=inventory(load.kv_integral),
        tokens_per_step=inventory(tokens),
        critical_scale=np.where(served, scale, 0.0),
        critical_rate=np.where(served & ~idle, scale * load.requests, 0.0),
        binding=binding,
    )


def inventory(mix: Mix, step_seconds: npt.ArrayLike) -> FloatArray:
    """n_j = lambda_j dT: requests of each class at each of its stages; shape of `step_seconds` plus (J,)."""
    return np.asarray(np.asarray(step_seconds, dtype=np.float64)[..., None] * mix.rates_per_second)


def conditions(point: Equilibrium, limits: Limits) -> tuple[Condition, ...]:
    """The inequalities behind one point (all arrays of shape ()), for words and status."""
    return (
        Condition(
            name="Compute", statement="work arriving per second rho < 1", value=float(point.rho), bound=1.0, strict=True
        ),
        Condition(
            name="KvMemory",
            statement="KV tokens resident M* <= capacity",
            value=float(point.memory_tokens),
            bound=_bound(limits.kv_capacity_tokens),
        ),
        Condition(
            name="Slots",
            statement="requests in service <= max_num_seqs",
            value=float(point.in_service),
            bound=_bound(limits.max_num_seqs),
        ),
        Condition(
            name="TokenBudget",
            statement="tokens per iteration <= max_num_batched_tokens",
            value=float(point.tokens_per_step),
            bound=_bound(limits.max_num_batched_tokens),
        ),
    )


def _bound(limit: FloatArray) -> float:
    value = float(limit)
    return 0.0 if np.isnan(value) else value
