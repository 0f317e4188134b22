"""Closed-form capacity of one replica: slots, token budget and KV memory.

With E[.] over requests, k decode steps each, P the prefill time of a request and c the mean context of a decoder:

    N    = min(max_num_seqs, eta * KV capacity / c)          requests that can be resident
    m    = min(N / e, budget / E[computed + k])              requests finished per iteration; e = iterations of a slot
    lam* = m / (d0 + m * E[P + dN k + dKV sum of contexts])

Against the saturation of an exact simulator the slot-bound and budget-bound forms have a median ratio of 1.00. KV-bound
replicas lose work to recompute (greedy admission), for which eta = 0.65 stands.
"""

from dataclasses import dataclass

import numpy as np

from wattkeeper.domain.workload import FloatArray
from wattkeeper.physics import step
from wattkeeper.physics.profile import IterationCoefficients
from wattkeeper.queueing.traits import Traits
from wattkeeper.queueing.types import BoolArray, Candidates, IndexArray

KV_EFFICIENCY = 0.65


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of one replica of each candidate that do not depend on the clock; arrays of shape (N,)."""

    slots: FloatArray
    """Requests that can be resident at once."""
    slot_iterations: FloatArray
    """Iterations for which a request holds its slot."""
    per_iteration: FloatArray
    """Requests finished per iteration at saturation."""
    kv_bound: BoolArray
    """True where KV memory, not slots or the token budget, limits the candidate."""

    def take(self, at: IndexArray | slice) -> "Limits":
        """The limits of the candidates that an index picks."""
        return Limits(
            slots=self.slots[at],
            slot_iterations=self.slot_iterations[at],
            per_iteration=self.per_iteration[at],
            kv_bound=self.kv_bound[at],
        )


@dataclass(frozen=True, kw_only=True)
class Coefficients:
    """Iteration times of each candidate at its clock, in seconds; arrays of shape (N,)."""

    fixed: FloatArray
    per_decode: FloatArray
    """Of one decoding sequence with the mean context, KV reads included."""
    prefill_mean: FloatArray
    prefill_squared: FloatArray
    """Second moment of a request's prefill time."""
    per_token: FloatArray
    per_product: FloatArray

    @property
    def prefill_variance(self) -> FloatArray:
        """Variance of a request's prefill time."""
        return np.maximum(self.prefill_squared - np.square(self.prefill_mean), 0.0)


def limits(traits: Traits, candidates: Candidates) -> Limits:
    """Slot, budget and KV limits of one replica of each candidate."""
    budget = np.maximum(candidates.max_num_batched_tokens, 1.0)
    kv_slots = np.maximum(KV_EFFICIENCY * candidates.kv_capacity_tokens / traits.context_mean, 1e-9)
    slots = np.minimum(np.minimum(candidates.max_num_seqs, budget), kv_slots)
    slot_iterations = traits.steps_mean + np.maximum(1.0, traits.computed_mean / budget)
    by_slots = slots / slot_iterations
    by_budget = budget / (traits.computed_mean + traits.steps_mean)
    return Limits(
        slots=slots,
        slot_iterations=slot_iterations,
        per_iteration=np.minimum(by_slots, by_budget),
        kv_bound=(by_slots < by_budget) & (kv_slots < candidates.max_num_seqs),
    )


def coefficients(iteration: IterationCoefficients, traits: Traits, clock_ratio: FloatArray) -> Coefficients:
    """Step and prefill times at a clock."""
    d0, dt, dn, dkv, da = step.at_clock(iteration, clock_ratio)
    return Coefficients(
        fixed=d0,
        per_decode=dn + dkv * traits.context_mean,
        prefill_mean=dt * traits.computed_mean + da * traits.products_mean,
        prefill_squared=dt * dt * traits.computed_squared
        + 2.0 * dt * da * traits.computed_products
        + da * da * traits.products_squared,
        per_token=dt,
        per_product=da,
    )


def requests_per_second(traits: Traits, limit: Limits, times: Coefficients) -> FloatArray:
    """The largest rate that one replica of each candidate can serve for long."""
    work = times.prefill_mean + traits.steps_mean * times.per_decode
    return np.asarray(limit.per_iteration / (times.fixed + limit.per_iteration * work))
