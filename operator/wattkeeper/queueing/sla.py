"""The SLA check: stability, activity and latency percentiles of many candidates of many services at once.

Method: closed-form capacity (`queueing.capacity`), occupancy and clock under a power cap (`queueing.occupancy`), and
two-moment latency tails (`queueing.latency`). Everything is a few hundred numpy operations on arrays of one entry per
candidate, and services of one profile share them: a call costs about a millisecond whatever its size. Where the method
is unsure it errs towards longer latency.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from wattkeeper.domain.plan import Binding
from wattkeeper.domain.workload import FloatArray, Workload
from wattkeeper.physics.profile import ServingProfile
from wattkeeper.queueing import capacity, latency, occupancy, tails, traits
from wattkeeper.queueing.capacity import Coefficients, Limits
from wattkeeper.queueing.traits import Traits
from wattkeeper.queueing.types import BoolArray, Candidates, IndexArray, ObjectArray, SlaPrediction, SlaQuery

_ROWS_PER_PASS = 2048
"""More rows at once would leave the processor's caches."""


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
    query = SlaQuery(
        profile=profile,
        workload=workload,
        candidates=candidates,
        ttft_percentile=ttft_percentile,
        tpot_percentile=tpot_percentile,
    )
    return predict_fleet([query])[0]


def predict_fleet(queries: Sequence[SlaQuery]) -> list[SlaPrediction]:
    """The same for many services, one answer per query in their order."""
    groups: dict[tuple[ServingProfile, float, float], list[int]] = defaultdict(list)
    for index, query in enumerate(queries):
        groups[query.profile, query.ttft_percentile, query.tpot_percentile].append(index)
    answers: dict[int, SlaPrediction] = {}
    for (profile, ttft_percentile, tpot_percentile), members in groups.items():
        for part in _passes(queries, members):
            asked = _Asked.of([queries[index] for index in part])
            with np.errstate(divide="ignore", over="ignore", under="ignore", invalid="ignore"):
                found = _predict(profile, asked, ttft_percentile, tpot_percentile)
            end = 0
            for index in part:
                begin, end = end, end + len(queries[index].candidates)
                answers[index] = found.part(slice(begin, end))
    return [answers[index] for index in range(len(queries))]


def _passes(queries: Sequence[SlaQuery], members: Sequence[int]) -> Iterator[list[int]]:
    """Members in lots of at most so many rows, one query at least."""
    lot: list[int] = []
    rows = 0
    for index in members:
        size = len(queries[index].candidates)
        if lot and rows + size > _ROWS_PER_PASS:
            yield lot
            lot, rows = [], 0
        lot.append(index)
        rows += size
    yield lot


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """Candidates of several services of one profile, one after the other; arrays of shape (N,)."""

    workloads: tuple[Workload, ...]
    of_row: IndexArray
    """Which workload each candidate belongs to."""
    candidates: Candidates
    traits: Traits
    rate: FloatArray
    """Of the whole service, requests per second."""
    dispersion: FloatArray

    @staticmethod
    def of(queries: Sequence[SlaQuery]) -> "_Asked":
        workloads = tuple(query.workload for query in queries)
        rows = [len(query.candidates) for query in queries]
        return _Asked(
            workloads=workloads,
            of_row=np.repeat(np.arange(len(queries)), rows),
            candidates=Candidates.joined([query.candidates for query in queries]),
            traits=traits.of(workloads, rows),
            rate=np.repeat([float(item.requests_per_second) for item in workloads], rows),
            dispersion=np.repeat([float(item.dispersion.at(1.0)) for item in workloads], rows),
        )


def _predict(profile: ServingProfile, asked: _Asked, ttft_percentile: float, tpot_percentile: float) -> SlaPrediction:
    request, candidates = asked.traits, asked.candidates
    limit = capacity.limits(request, candidates)
    lowest = profile.gpu.min_clock_mhz / profile.gpu.max_clock_mhz
    lock = np.clip(candidates.clock_ratio, lowest, 1.0)
    full_clock, held = occupancy.saturated_clock(
        profile, request, limit, power_cap_watts=candidates.power_cap_watts, clock_ratio=lock
    )
    full_times = _held(capacity.coefficients(profile.iteration, request, full_clock), held)
    per_replica = capacity.requests_per_second(request, limit, full_times)
    replicas = np.maximum(candidates.replicas, 0.0)
    rate = np.divide(asked.rate, replicas, out=np.zeros_like(replicas), where=replicas > 0)
    served = replicas * per_replica
    utilisation = np.where(served > 0, asked.rate / np.maximum(served, 1e-300), np.where(rate > 0, np.inf, 0.0))
    utilisation = np.where((asked.rate > 0) & (replicas <= 0), np.inf, utilisation)
    stable = utilisation < 1.0

    dispersion = 1.0 + np.maximum(asked.dispersion - 1.0, 0.0) / np.maximum(replicas, 1.0)
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
        of_row = asked.of_row[chosen]
        prompts = traits.prompt_nodes(asked.workloads, ttft_percentile, of_row)
        ttft[chosen] = latency.ttft_seconds(replica, prompts, ttft_percentile)
        tpot[chosen] = latency.tpot_seconds(replica, traits.output_nodes(asked.workloads, of_row), tpot_percentile)
        risk[chosen] = _preemption_risk(candidates.kv_capacity_tokens[chosen], replica)
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
    part, request = limit.take(chosen), request.take(chosen)
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


def _preemption_risk(kv_capacity_tokens: FloatArray, replica: latency.Replica) -> FloatArray:
    """Probability that the contexts of all resident requests together exceed the KV memory."""
    request, met = replica.traits, latency.spread(replica)
    prefilling = replica.rate * replica.load.decode_step * request.prompt_mean
    mean = np.maximum(met.mean * request.context_mean + prefilling, 1.0)
    variance = np.square(request.context_mean) * (met.variance + met.mean)
    return tails.gamma_tail(kv_capacity_tokens, mean, variance)


def _binding(stable: BoolArray, limit: Limits) -> ObjectArray:
    binding = np.full(len(stable), Binding.NONE, dtype=object)
    binding[~stable] = Binding.STABILITY
    binding[~stable & limit.kv_bound] = Binding.KV_CACHE
    return binding
