"""The SLA check: stability, activity and latency percentiles of many candidates of one service at once.

Method: closed-form capacity (`queueing.capacity`), occupancy and clock under a power cap (`queueing.occupancy`), and
two-moment latency tails (`queueing.latency`). Everything is a few hundred numpy operations on arrays of one entry per
candidate. Where the method is unsure it errs towards longer latency.
"""

import numpy as np

from wattkeeper.domain.plan import Binding
from wattkeeper.domain.workload import FloatArray, Workload
from wattkeeper.physics.profile import ServingProfile
from wattkeeper.queueing import capacity, latency, occupancy, tails, traits
from wattkeeper.queueing.capacity import Coefficients, Limits
from wattkeeper.queueing.traits import Traits
from wattkeeper.queueing.types import BoolArray, Candidates, IndexArray, ObjectArray, SlaPrediction


def predict(
    profile: ServingProfile,
    workload: Workload,
    candidates: Candidates,
    *,
    ttft_percentile: float,
    tpot_percentile: float,
) -> SlaPrediction:
    """Stability, load and latency of each candidate; all arrays have the shape (N,) of the candidates.

    The workload's rate is the service's and is shared evenly by the replicas; its dispersion falls with the split.
    Percentiles are in (0, 100), 99.9 at most being sensible. Raises ValueError for percentiles out of range.
    """
    for name, percentile in (("ttft", ttft_percentile), ("tpot", tpot_percentile)):
        if not 0.0 < percentile < 100.0:
            raise ValueError(f"{name}_percentile must lie between 0 and 100, not {percentile}")
    request = traits.of(workload)
    with np.errstate(divide="ignore", over="ignore", under="ignore", invalid="ignore"):
        return _predict(profile, workload, request, candidates, ttft_percentile, tpot_percentile)


def _predict(
    profile: ServingProfile,
    workload: Workload,
    request: Traits,
    candidates: Candidates,
    ttft_percentile: float,
    tpot_percentile: float,
) -> SlaPrediction:
    limit = capacity.limits(request, candidates)
    lowest = profile.gpu.min_clock_mhz / profile.gpu.max_clock_mhz
    lock = np.clip(candidates.clock_ratio, lowest, 1.0)
    full_clock, held = occupancy.saturated_clock(
        profile, request, limit, power_cap_watts=candidates.power_cap_watts, clock_ratio=lock
    )
    full_times = _held(capacity.coefficients(profile.iteration, request, full_clock), held)
    per_replica = capacity.requests_per_second(request, limit, full_times)
    replicas = np.maximum(candidates.replicas, 0.0)
    rate = np.divide(workload.requests_per_second, replicas, out=np.zeros_like(replicas), where=replicas > 0)
    served = replicas * per_replica
    utilisation = np.where(
        served > 0, workload.requests_per_second / np.maximum(served, 1e-300), np.where(rate > 0, np.inf, 0.0)
    )
    if workload.requests_per_second > 0:
        utilisation = np.where(replicas > 0, utilisation, np.inf)
    stable = utilisation < 1.0

    dispersion = 1.0 + max(workload.dispersion - 1.0, 0.0) / np.maximum(replicas, 1.0)
    carried = occupancy.finite_rate(rate, per_replica)
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
    chosen = np.flatnonzero(stable & (rate > 0))
    idle = stable & (rate == 0)
    if len(chosen):
        # A burst draws more than the mean, so under a cap it runs at a lower clock than the mean does.
        worst = np.minimum(full_clock, mean_clock)
        burst_clock = mean_clock + (worst - mean_clock) * np.sqrt(np.minimum(utilisation, 1.0))
        replica = _replica(
            profile, request, candidates, limit, burst_clock, held, carried, utilisation, dispersion, chosen
        )
        ttft[chosen] = latency.ttft_seconds(replica, traits.prompt_nodes(workload, ttft_percentile), ttft_percentile)
        tpot[chosen] = latency.tpot_seconds(replica, traits.output_nodes(workload.output), tpot_percentile)
        risk[chosen] = _preemption_risk(request, candidates.kv_capacity_tokens[chosen], replica)
    if idle.any():
        ttft[idle], tpot[idle] = _unloaded(mean_times, idle)
        risk[idle] = 0.0
    return SlaPrediction(
        stable=stable,
        capacity_rps=served,
        utilisation=utilisation,
        ttft_seconds=ttft,
        tpot_seconds=tpot,
        batch=mean.batch,
        busy=mean.busy,
        step_seconds=mean.step_seconds,
        kv_tokens=mean.kv_tokens,
        clock_ratio=mean_clock,
        prefill_tokens_per_second=carried * request.computed_mean,
        decode_tokens_per_second=carried * request.steps_mean,
        preemption_risk=risk,
        binding=_binding(stable, limit),
    )


def _held(times: Coefficients, factor: FloatArray) -> Coefficients:
    """Times of a card that must idle between steps to meet its cap."""
    return Coefficients(
        fixed=times.fixed * factor,
        per_decode=times.per_decode * factor,
        prefill_mean=times.prefill_mean * factor,
        prefill_squared=times.prefill_squared * np.square(factor),
        per_token=times.per_token * factor,
        per_product=times.per_product * factor,
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
    dispersion: FloatArray,
    chosen: IndexArray,
) -> latency.Replica:
    """The chosen candidates at the clock of their bursts."""
    part = limit.take(chosen)
    times = _held(capacity.coefficients(profile.iteration, request, clock[chosen]), held[chosen])
    return latency.Replica(
        traits=request,
        limit=part,
        times=times,
        load=occupancy.occupancy(request, part, times, rate[chosen]),
        rate=rate[chosen],
        utilisation=utilisation[chosen],
        dispersion=dispersion[chosen],
        budget=candidates.max_num_batched_tokens[chosen],
    )


def _unloaded(times: Coefficients, idle: BoolArray) -> tuple[FloatArray, FloatArray]:
    """Latency of a single request where there is no traffic."""
    ttft = times.fixed + times.prefill_mean
    tpot = times.fixed + times.per_decode
    return ttft[idle], tpot[idle]


def _preemption_risk(request: Traits, kv_capacity_tokens: FloatArray, replica: latency.Replica) -> FloatArray:
    """Probability that the contexts of all resident requests together exceed the KV memory."""
    met = latency.spread(replica)
    prefilling = replica.rate * replica.load.decode_step * request.prompt_mean
    mean = np.maximum(met.mean * request.context_mean + prefilling, 1.0)
    variance = np.square(request.context_mean) * (met.variance + met.mean)
    return tails.gamma_tail(kv_capacity_tokens, mean, variance)


def _binding(stable: BoolArray, limit: Limits) -> ObjectArray:
    binding = np.full(len(stable), Binding.NONE, dtype=object)
    binding[~stable] = Binding.STABILITY
    binding[~stable & limit.kv_bound] = Binding.KV_CACHE
    return binding
