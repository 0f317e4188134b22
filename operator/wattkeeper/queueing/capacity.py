"""Closed-form capacity of one replica: slots, token budget and KV memory.

With E[.] over requests, l prompt tokens, k decode steps, P the prefill time of a request and c the mean context of a
decoder, e the iterations that a request holds its slot:

    N    = min(max_num_seqs, (C - E[l^2] / 2 E[l]) / (c + E[l] / e))     requests that can be resident
    m    = min(N / e, budget / E[computed + k])                          requests finished per iteration
    lam* = m / (d0 + m * E[P + dN k + dKV sum of contexts])

KV memory C holds the decoders, the prompts under way, and a gap that the prompt at the head of the queue does not fit.
Greedy admission then loses work: the blocks that a completion frees go to a new prompt at once, while the requests that
run grow by k tokens until the next completion and push the youngest out again. So each completion costs about k tokens
of prefill once more, whatever the prompt's length (a long prompt is pushed out seldom, a short one often). Against
saturated runs of the exact stepper (219 memory-bound replicas with random lengths, limits and coefficients) the factor
`RECOMPUTED` fits; without that work the form overstates capacity by up to 25 %.
"""

from dataclasses import dataclass

import numpy as np

from wattkeeper.domain.workload import FloatArray
from wattkeeper.physics import step
from wattkeeper.physics.profile import IterationCoefficients
from wattkeeper.queueing.traits import Traits
from wattkeeper.queueing.types import BoolArray, Candidates, IndexArray

RECOMPUTED = 0.6
"""Prefill tokens computed again per decode step of a request, where KV memory is what limits the replica."""
_RAMP = 0.1
"""Share by which memory must limit a replica below its other limits before all of that work is lost."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of one replica of each candidate that do not depend on the clock; arrays of shape (N,)."""

    slots: FloatArray
    """Requests that can be resident at once."""
    seats: FloatArray
    """The same if KV memory were ample."""
    slot_iterations: FloatArray
    """Iterations for which a request holds its slot."""
    per_iteration: FloatArray
    """Requests finished per iteration at saturation."""
    kv_bound: BoolArray
    """True where KV memory, not slots or the token budget, limits the candidate."""
    recomputed_tokens: FloatArray
    """Prompt tokens computed again per request at saturation."""

    def take(self, at: IndexArray | slice) -> "Limits":
        """The limits of the candidates that an index picks."""
        return Limits(
            slots=self.slots[at],
            seats=self.seats[at],
            slot_iterations=self.slot_iterations[at],
            per_iteration=self.per_iteration[at],
            kv_bound=self.kv_bound[at],
            recomputed_tokens=self.recomputed_tokens[at],
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
    kv_read_share: FloatArray
    """Share of KV reads in `per_decode`, 0..1."""

    @property
    def prefill_variance(self) -> FloatArray:
        """Variance of a request's prefill time."""
        return np.maximum(self.prefill_squared - np.square(self.prefill_mean), 0.0)


def limits(traits: Traits, candidates: Candidates) -> Limits:
    """Slot, budget and KV limits of one replica of each candidate."""
    budget = np.maximum(candidates.max_num_batched_tokens, 1.0)
    slot_iterations = traits.steps_mean + np.maximum(1.0, traits.computed_mean / budget)
    gap = 0.5 * traits.prompt_squared / traits.prompt_mean
    room = np.maximum(candidates.kv_capacity_tokens - gap, 0.3 * candidates.kv_capacity_tokens)
    kv_slots = np.maximum(room / (traits.context_mean + traits.prompt_mean / slot_iterations), 1e-9)
    others = np.minimum(candidates.max_num_seqs, budget)
    by_budget = budget / (traits.computed_mean + traits.steps_mean)
    by_memory = kv_slots / slot_iterations
    unlimited = np.minimum(others / slot_iterations, by_budget)
    pressed = np.clip((1.0 - by_memory / unlimited) / _RAMP, 0.0, 1.0)
    recomputed = RECOMPUTED * pressed * traits.steps_mean
    by_budget = budget / (traits.computed_mean + recomputed + traits.steps_mean)
    slots = np.minimum(others, kv_slots)
    return Limits(
        slots=slots,
        seats=others,
        slot_iterations=slot_iterations,
        per_iteration=np.minimum(slots / slot_iterations, by_budget),
        kv_bound=pressed > 0.0,
        recomputed_tokens=recomputed,
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
        kv_read_share=dkv * traits.context_mean / (dn + dkv * traits.context_mean),
    )


def requests_per_second(traits: Traits, limit: Limits, times: Coefficients) -> FloatArray:
    """The largest rate that one replica of each candidate can serve for long."""
    again = limit.recomputed_tokens / traits.prompt_mean
    prefill = (
        times.prefill_mean
        + times.per_token * limit.recomputed_tokens
        + again * times.per_product * (traits.whole_products_mean)
    )
    work = prefill + traits.steps_mean * times.per_decode
    return np.asarray(limit.per_iteration / (times.fixed + limit.per_iteration * work))
