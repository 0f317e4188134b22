"""One replica of every candidate, analysed in closed form: capacity, clock under a cap, occupancy, latency percentiles.

Everything is a few hundred numpy operations on arrays of one entry per candidate, and services of one profile share
them. What comes out is an estimate; `queueing.correction` knows how far it is off.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from wattkeeper.domain.plan import Binding
from wattkeeper.domain.workload import FloatArray, Workload
from wattkeeper.physics.profile import ServingProfile
from wattkeeper.queueing import capacity, features, latency, occupancy, tails, traits
from wattkeeper.queueing.bursts import Bursts
from wattkeeper.queueing.capacity import Coefficients, Limits
from wattkeeper.queueing.features import Tables
from wattkeeper.queueing.traits import Traits
from wattkeeper.queueing.types import BoolArray, Candidates, IndexArray, ObjectArray, SlaQuery

_LONG_PROMPT = 0.999
"""Share of the prompts that must fit the KV memory: what lies beyond is telemetry's guess at a tail."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Candidates of several services of one profile, one after the other; arrays of shape (N,)."""

    workloads: tuple[Workload, ...]
    of_row: IndexArray
    """Which workload each candidate belongs to."""
    candidates: Candidates
    traits: Traits
    rate: FloatArray
    """Of the whole service, requests per second."""

    @staticmethod
    def of(queries: Sequence[SlaQuery]) -> "Asked":
        """All candidates of queries about one profile."""
        workloads = tuple(query.workload for query in queries)
        rows = [len(query.candidates) for query in queries]
        return Asked(
            workloads=workloads,
            of_row=np.repeat(np.arange(len(queries)), rows),
            candidates=Candidates.joined([query.candidates for query in queries]),
            traits=traits.of(workloads, rows),
            rate=np.repeat([float(item.requests_per_second) for item in workloads], rows),
        )


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """What the closed forms say of candidates of one profile; arrays of shape (N,)."""

    capacity_rps: FloatArray
    utilisation: FloatArray
    stable: BoolArray
    cause: ObjectArray
    """`Binding`: why a candidate is not stable, NONE where it is."""
    mean: occupancy.Activity
    clock_ratio: FloatArray
    prefill_tokens_per_second: FloatArray
    decode_tokens_per_second: FloatArray
    ttft_seconds: FloatArray
    """At the asked percentile; inf where not stable."""
    tpot_seconds: FloatArray
    preemption_risk: FloatArray
    loaded: IndexArray
    """The candidates that are stable and have traffic: those that `tables` describes, in their order."""
    tables: Tables | None
    """None where there is no such candidate."""


def analyse(profile: ServingProfile, asked: Asked, *, ttft_percentile: float, tpot_percentile: float) -> Analysis:
    """Analyse candidates of one profile."""
    with np.errstate(divide="ignore", over="ignore", under="ignore", invalid="ignore"):
        return _analyse(profile, asked, ttft_percentile, tpot_percentile)


def _analyse(profile: ServingProfile, asked: Asked, ttft_percentile: float, tpot_percentile: float) -> Analysis:
    request, candidates = asked.traits, _numbers(asked.candidates)
    service_rate = np.where(_rate_known(asked), asked.rate, 0.0)
    limit = capacity.limits(request, candidates)
    lowest = profile.gpu.min_clock_mhz / profile.gpu.max_clock_mhz
    lock = np.clip(candidates.clock_ratio, lowest, 1.0)
    full_clock, held = occupancy.saturated_clock(
        profile, request, limit, power_cap_watts=candidates.power_cap_watts, clock_ratio=lock
    )
    full_times = _held(capacity.coefficients(profile.iteration, request, full_clock), held)
    per_replica = capacity.requests_per_second(request, limit, full_times)
    replicas = np.maximum(candidates.replicas, 0.0)
    rate = np.divide(service_rate, replicas, out=np.zeros_like(replicas), where=replicas > 0)
    served = replicas * per_replica
    utilisation = np.where(served > 0, service_rate / np.maximum(served, 1e-300), np.where(rate > 0, np.inf, 0.0))
    utilisation = np.where((service_rate > 0) & (replicas <= 0), np.inf, utilisation)
    cause = _causes(asked, limit, utilisation)
    stable = cause == Binding.NONE
    utilisation = np.where(stable | (utilisation >= 1.0), utilisation, np.inf)

    carried = occupancy.finite_rate(rate, per_replica)
    bursts = Bursts.of([item.dispersion for item in asked.workloads], asked.of_row, replicas)
    dispersion = bursts.at(request.steps_mean * full_times.fixed)
    mean_clock = occupancy.loaded_clock(
        profile,
        request,
        limit,
        rate=carried,
        dispersion=dispersion,
        power_cap_watts=candidates.power_cap_watts,
        clock_ratio=lock,
    )
    mean_times = _held(capacity.coefficients(profile.iteration, request, mean_clock), held)
    load = occupancy.occupancy(request, limit, mean_times, carried)
    mean = occupancy.activity(request, mean_times, load, carried, dispersion)

    ttft = np.full(len(candidates), np.inf)
    tpot = np.full(len(candidates), np.inf)
    risk = np.ones(len(candidates))
    tables = None
    chosen = np.flatnonzero(stable & (rate > 0))
    idle = stable & (rate == 0)
    if len(chosen):
        # A burst draws more than the mean, so under a cap it runs at a lower clock than the mean does.
        worst = np.minimum(full_clock, mean_clock)
        burst_clock = mean_clock + (worst - mean_clock) * np.sqrt(np.minimum(utilisation, 1.0))
        replica = _replica(profile, request, candidates, limit, burst_clock, held, carried, utilisation, bursts, chosen)
        of_row = asked.of_row[chosen]
        prompts = traits.prompt_nodes(asked.workloads, ttft_percentile, of_row)
        outputs = traits.output_nodes(asked.workloads, of_row)
        met = latency.spread(replica)
        waiting = latency.waits(replica, met, ttft_percentile)
        ttft[chosen] = latency.ttft_seconds(replica, prompts, ttft_percentile, met=met, waiting=waiting)
        tpot[chosen] = latency.tpot_seconds(replica, outputs, tpot_percentile, met=met)
        risk[chosen] = _preemption_risk(candidates.kv_capacity_tokens[chosen], replica, met)
        tables = features.tables(
            replica,
            met=met,
            waiting=waiting,
            preemption_risk=risk[chosen],
            full=capacity.coefficients(profile.iteration, replica.traits, np.ones(len(chosen))),
            ttft_seconds=ttft[chosen],
            tpot_seconds=tpot[chosen],
            ttft_percentile=ttft_percentile,
            tpot_percentile=tpot_percentile,
            quantiles=traits.quantiles(asked.workloads, ttft_percentile, tpot_percentile, of_row),
            max_num_seqs=candidates.max_num_seqs[chosen],
            kv_capacity_tokens=candidates.kv_capacity_tokens[chosen],
            prefix_hit_ratio=np.array([item.prefix_hit_ratio for item in asked.workloads])[of_row],
        )
    if idle.any():
        ttft[idle], tpot[idle] = _unloaded(mean_times, idle)
        risk[idle] = 0.0
    return Analysis(
        capacity_rps=served,
        utilisation=utilisation,
        stable=stable,
        cause=cause,
        mean=mean,
        clock_ratio=mean_clock,
        prefill_tokens_per_second=carried * request.computed_mean,
        decode_tokens_per_second=carried * request.steps_mean,
        ttft_seconds=ttft,
        tpot_seconds=tpot,
        preemption_risk=risk,
        loaded=chosen,
        tables=tables,
    )


def _rate_known(asked: Asked) -> BoolArray:
    return np.asarray(np.isfinite(asked.rate) & (asked.rate >= 0.0))


def _numbers(candidates: Candidates) -> Candidates:
    """Candidates with the least there is in place of what is no number; `_causes` says so of the original."""
    return replace(
        candidates,
        replicas=np.nan_to_num(candidates.replicas, nan=0.0, posinf=0.0),
        clock_ratio=np.nan_to_num(candidates.clock_ratio, nan=0.0),
        max_num_seqs=np.maximum(np.nan_to_num(candidates.max_num_seqs, nan=1.0), 1.0),
        max_num_batched_tokens=np.maximum(np.nan_to_num(candidates.max_num_batched_tokens, nan=1.0), 1.0),
        kv_capacity_tokens=np.maximum(np.nan_to_num(candidates.kv_capacity_tokens, nan=0.0), 0.0),
    )


def _causes(asked: Asked, limit: Limits, utilisation: FloatArray) -> ObjectArray:
    """Why candidates cannot serve what is asked; the gravest reason of each, NONE where there is none."""
    candidates = asked.candidates
    seqs, budget, memory = candidates.max_num_seqs, candidates.max_num_batched_tokens, candidates.kv_capacity_tokens
    longest = np.array([item.prompt.quantile(_LONG_PROMPT) for item in asked.workloads])[asked.of_row]
    found = np.full(len(candidates), Binding.NONE, dtype=object)
    found[~(utilisation < 1.0)] = Binding.STABILITY
    found[(found == Binding.STABILITY) & limit.kv_bound] = Binding.KV_CACHE
    # A prompt that does not fit is never admitted, and blocks all behind it.
    found[~(memory >= np.maximum(longest, asked.traits.context_mean))] = Binding.KV_CACHE
    found[~((seqs >= 1.0) & (budget >= seqs))] = Binding.LIMITS_CONTRADICT
    found[~_rate_known(asked)] = Binding.RATE_UNKNOWN
    return found


def _held(times: Coefficients, factor: FloatArray) -> Coefficients:
    """Times of a card that must idle between steps to meet its cap."""
    return Coefficients(
        fixed=times.fixed * factor,
        per_decode=times.per_decode * factor,
        prefill_mean=times.prefill_mean * factor,
        prefill_squared=times.prefill_squared * np.square(factor),
        per_token=times.per_token * factor,
        per_product=times.per_product * factor,
        kv_read_share=times.kv_read_share,
    )


def _replica(
    profile: ServingProfile,
    request: Traits,
    candidates: Candidates,
    limit: Limits,
    clock: FloatArray,
    held: FloatArray,
    rate: FloatArray,
    utilisation: FloatArray,
    bursts: Bursts,
    chosen: IndexArray,
) -> latency.Replica:
    """The chosen candidates at the clock of their bursts."""
    part, request = limit.take(chosen), request.take(chosen)
    times = _held(capacity.coefficients(profile.iteration, request, clock[chosen]), held[chosen])
    return latency.Replica(
        traits=request,
        limit=part,
        times=times,
        load=occupancy.occupancy(request, part, times, rate[chosen]),
        rate=rate[chosen],
        utilisation=utilisation[chosen],
        bursts=bursts.take(chosen),
        budget=candidates.max_num_batched_tokens[chosen],
    )


def _unloaded(times: Coefficients, idle: BoolArray) -> tuple[FloatArray, FloatArray]:
    """Latency of a single request where there is no traffic."""
    ttft = times.fixed + times.prefill_mean
    tpot = times.fixed + times.per_decode
    return ttft[idle], tpot[idle]


def _preemption_risk(kv_capacity_tokens: FloatArray, replica: latency.Replica, met: latency.Spread) -> FloatArray:
    """Probability that the contexts of all resident requests together exceed the KV memory."""
    request = replica.traits
    prefilling = replica.rate * replica.load.decode_step * request.prompt_mean
    mean = np.maximum(met.mean * request.context_mean + prefilling, 1.0)
    variance = np.square(request.context_mean) * (met.variance + met.mean)
    return tails.gamma_tail(kv_capacity_tokens, mean, variance)
