"""Stage 4 of the SLA check: a setting replayed through the exact replica stepper. Pure, and the same for the same seed.

Requests of the whole service (`replica.recorded`, or recorded lengths) are split over the replicas at random, as a
Kubernetes Service does, and as many replicas are simulated as the wanted number of requests needs. Percentiles and
attainment come with a bound on their sampling error: the share of requests beyond a value is averaged over blocks of
time, whose scatter tells its standard error, neighbours' correlation included; the bound on the percentile is the
percentile at a level that much higher (one-sided, 90 %). Where a record is played several times, all its turns count as
one.

Under a power cap the clock follows the work (`replica.governed`), which is slower in bursts than the mean clock.
"""

import math
import time
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wattkeeper.domain.arrivals import ArrivalRecord
from wattkeeper.domain.errors import WattkeeperError
from wattkeeper.domain.plan import Slo
from wattkeeper.domain.replay import ReplayResult, ReplaySetting, ReplayStatus
from wattkeeper.domain.workload import FloatArray, Workload
from wattkeeper.physics.profile import ServingProfile
from wattkeeper.replica import arrivals, governed, recorded, stepper
from wattkeeper.replica.types import IntArray, ReplicaConfig, Requests

DEFAULT_PERCENTILE = 95.0
"""Of a latency that has no target."""
_WARM_SHARE, _COOL_SHARE = 0.15, 0.05
"""Time before and after what is counted, over it."""
_BLOCKS = 20
_STANDARD_ERRORS = 1.33
"""One-sided 90 % of Student's t with 19 degrees of freedom."""
_LARGEST_ERROR = 0.2
"""Of a level: with more there is no bound on the percentile."""
_GROUP = 32
"""Replicas beyond so many are left out: their requests are thinned away before they are made."""
_SLOW = 1.5
"""Growth of the index of dispersion from the shortest to the longest window above which bursts count as slow ..."""
_SLOW_WINDOWS, _MOST_LONGER = 10.0, 4.0
"""... and a made-up process spans so many of the longest window, with at most so many times the wanted requests."""
_FEWEST_REQUESTS = 400
_MOST_STEPS = 400_000.0
"""Prefill iterations and requests of a replay at most, which bounds it to a few seconds."""
_MOST_WINDOWS = 10_000.0
"""The same for windows of a replica under a power cap."""
_MOST_REPEATS = 2_000
_LEAST_RATE = 1e-9
"""Requests per second: in longer gaps the time of a step is lost beside the time of the day, and none would end."""
_DATA_ERRORS = (WattkeeperError, ValueError, ArithmeticError)
_SPLIT = 20


@dataclass(frozen=True, kw_only=True)
class ReplayJob:
    """What is to be replayed. Everything in it can be sent to another process."""

    profile: ServingProfile
    setting: ReplaySetting
    workload: Workload
    """At the rate of the replay."""
    slo: Slo
    arrivals: ArrivalRecord | None = None
    """Recent arrivals of the service; None or too few: a process made up from the workload's dispersion."""
    requests: int = 5000
    """To be counted."""
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class _Served:
    """Counted requests of all simulated replicas; arrays of one entry per request."""

    ttft_seconds: FloatArray
    tpot_seconds: FloatArray
    """nan for answers of one token."""
    block: IntArray
    preemptions: float
    clock_ratio: float


def run(job: ReplayJob) -> ReplayResult:
    """Replay it. Data that cannot be simulated give a result of status INVALID with the reason, no exception."""
    began = time.process_time()
    try:
        with np.errstate(divide="raise", invalid="raise", over="raise"):
            return _run(job, began)
    except _DATA_ERRORS as error:
        ttft, tpot = _percentiles(job.slo)
        return ReplayResult(
            status=ReplayStatus.INVALID,
            message=str(error),
            ttft_percentile=ttft,
            tpot_percentile=tpot,
            cost_seconds=time.process_time() - began,
        )


def _run(job: ReplayJob, began: float) -> ReplayResult:
    config = _config(job)
    rate, replicas = job.workload.requests_per_second, job.setting.replicas
    if not _LEAST_RATE <= rate < math.inf:
        raise ValueError(f"a replay needs a finite rate of at least {_LEAST_RATE:g} requests/s, not {rate}")
    if replicas < 1:
        raise ValueError(f"a replay needs a replica, not {replicas}")
    served, from_record = _serve(job, config)
    if not len(served.block):
        raise ValueError("no request was served in the time counted")
    ttft_percentile, tpot_percentile = _percentiles(job.slo)
    ttft, ttft_upper = _quantile(served.ttft_seconds, served.block, ttft_percentile)
    answered = ~np.isnan(served.tpot_seconds)
    tpot, tpot_upper = _quantile(served.tpot_seconds[answered], served.block[answered], tpot_percentile)
    attainment, attainment_lower = _attainment(served, job.slo)
    enough = math.isfinite(ttft_upper) or math.isinf(ttft)
    enough = enough and (math.isfinite(tpot_upper) or math.isinf(tpot))
    return ReplayResult(
        status=ReplayStatus.DONE if enough else ReplayStatus.TOO_FEW,
        message="" if enough else f"{len(served.block)} requests are too few to bound the percentiles",
        ttft_percentile=ttft_percentile,
        tpot_percentile=tpot_percentile,
        ttft_seconds=ttft,
        ttft_upper_seconds=ttft_upper,
        tpot_seconds=tpot,
        tpot_upper_seconds=tpot_upper,
        attainment=attainment,
        attainment_lower=attainment_lower,
        preemptions_per_request=served.preemptions,
        requests=len(served.block),
        clock_ratio=served.clock_ratio,
        recorded=from_record,
        cost_seconds=time.process_time() - began,
    )


def _percentiles(slo: Slo) -> tuple[float, float]:
    return (
        slo.ttft.percentile if slo.ttft is not None else DEFAULT_PERCENTILE,
        slo.tpot.percentile if slo.tpot is not None else DEFAULT_PERCENTILE,
    )


def _config(job: ReplayJob) -> ReplicaConfig:
    engine, gpu = job.setting.engine, job.profile.gpu
    size = engine.block_size or 16
    tokens = job.setting.kv_capacity_tokens
    if not 0.0 < tokens < math.inf:
        raise ValueError(f"KV capacity of {tokens} tokens")
    lowest = gpu.min_clock_mhz / gpu.max_clock_mhz
    lock = 1.0 if job.setting.clock_mhz is None else job.setting.clock_mhz / gpu.max_clock_mhz
    return ReplicaConfig(
        iteration=job.profile.iteration,
        clock_ratio=min(max(lock, lowest), 1.0),
        max_num_seqs=min(job.setting.max_num_seqs, job.setting.max_num_batched_tokens),
        max_num_batched_tokens=job.setting.max_num_batched_tokens,
        kv_blocks=int(tokens // size),
        block_size=size,
        chunked_prefill=engine.enable_chunked_prefill is not False,
        max_model_len=engine.max_model_len,
    )


def _serve(job: ReplayJob, config: ReplicaConfig) -> tuple[_Served, bool]:
    """Drive as many replicas as are needed for the wanted number of requests."""
    workload, replicas = job.workload, job.setting.replicas
    share = min(1.0, _GROUP / replicas)
    rate, group = workload.requests_per_second * share, min(replicas, _GROUP)
    dispersion = workload.dispersion.thinned(share)
    wanted = _affordable(job, config, rate / group)
    record = job.arrivals if recorded.usable(job.arrivals, rate=rate) else None
    if record is not None:
        turn_seconds = record.span_seconds
        simulated = min(group, math.ceil(wanted * group / (rate * turn_seconds)))
        turns = min(_MOST_REPEATS, math.ceil(wanted * group / (rate * turn_seconds * simulated)))
        counted_seconds = turn_seconds * turns
    else:
        # Slow bursts need time, and one replica with many requests spans more of it than two with few.
        slow = dispersion.windows_seconds[-1] if dispersion.index[-1] > _SLOW * dispersion.index[0] else 0.0
        simulated = 1 if slow else min(group, 2)
        least = wanted * group / (rate * simulated)
        turn_seconds = counted_seconds = max(least, min(_SLOW_WINDOWS * slow, _MOST_LONGER * least))
    warm_seconds = _WARM_SHARE * min(counted_seconds, turn_seconds)
    span = warm_seconds + counted_seconds + _COOL_SHARE * min(counted_seconds, turn_seconds)
    if record is not None:
        times = recorded.from_record(
            record,
            rate=rate,
            dispersion=dispersion,
            start_seconds=-warm_seconds,
            span_seconds=span,
            seed=job.seed,
        )
    else:
        times = recorded.synthetic(rate=rate, dispersion=dispersion, span_seconds=span, seed=job.seed)
    block = np.floor((times - warm_seconds) % turn_seconds / turn_seconds * _BLOCKS).astype(np.int64)
    counted = (times >= warm_seconds) & (times < warm_seconds + counted_seconds)
    sent = _requests(job, times, config)
    place = np.random.default_rng((job.seed, _SPLIT)).random(len(times)) * group
    parts = [_replica(job, config, sent, counted, block, (place >= r) & (place < r + 1)) for r in range(simulated)]
    weights = [max(1, len(part.block)) for part in parts]
    return (
        _Served(
            ttft_seconds=np.concatenate([part.ttft_seconds for part in parts]),
            tpot_seconds=np.concatenate([part.tpot_seconds for part in parts]),
            block=np.concatenate([part.block for part in parts]),
            preemptions=float(np.average([part.preemptions for part in parts], weights=weights)),
            clock_ratio=float(np.average([part.clock_ratio for part in parts], weights=weights)),
        ),
        record is not None,
    )


def _affordable(job: ReplayJob, config: ReplicaConfig, rate_per_replica: float) -> int:
    """The wanted number of requests, or as many as the bounds on work allow."""
    workload = job.workload
    prompt = workload.prompt.mean * (1.0 - workload.prefix_hit_ratio)
    most = _MOST_STEPS / (2.0 + prompt / config.max_num_batched_tokens)
    if job.setting.power_cap_watts is not None:
        # Whichever is less: the time between two requests, or about what one takes alone.
        alone = 1.5 * config.iteration.d0_seconds * workload.output.mean
        most = min(most, _MOST_WINDOWS * governed.window_seconds(config) / min(1.0 / rate_per_replica, alone))
    return max(min(job.requests, int(most)), min(job.requests, _FEWEST_REQUESTS))


def _requests(job: ReplayJob, times: FloatArray, config: ReplicaConfig) -> Requests:
    workload = job.workload
    made = arrivals.requests(
        times,
        prompt=workload.prompt,
        output=workload.output,
        seed=job.seed,
        prefix_hit_ratio=workload.prefix_hit_ratio,
        block_size=config.block_size,
    )
    # Histograms of lengths reach to the edge of a bucket; what was served fitted into the model.
    longest = config.longest_context
    return Requests(
        arrival_seconds=made.arrival_seconds,
        prompt_tokens=np.minimum(made.prompt_tokens, longest),
        output_tokens=made.output_tokens,
        hit_tokens=made.hit_tokens,
    )


def _replica(
    job: ReplayJob,
    config: ReplicaConfig,
    sent: Requests,
    counted: npt.NDArray[np.bool_],
    block: IntArray,
    mine: npt.NDArray[np.bool_],
) -> _Served:
    """One replica with the requests that fall to it."""
    part = Requests(
        arrival_seconds=sent.arrival_seconds[mine],
        prompt_tokens=sent.prompt_tokens[mine],
        output_tokens=sent.output_tokens[mine],
        hit_tokens=None if sent.hit_tokens is None else sent.hit_tokens[mine],
    )
    if job.setting.power_cap_watts is None:
        outcome, clock = stepper.simulate(config, part), config.clock_ratio
    else:
        outcome, clock = governed.simulate(
            config, part, profile=job.profile, power_cap_watts=job.setting.power_cap_watts
        )
    seen = counted[mine]
    ttft = np.where(outcome.refused, np.inf, outcome.ttft_seconds)[seen]
    one_token = outcome.output_tokens <= 1
    tpot = np.where(outcome.refused, np.inf, np.where(one_token, np.nan, outcome.tpot_seconds))[seen]
    return _Served(
        ttft_seconds=ttft,
        tpot_seconds=tpot,
        block=block[mine][seen],
        preemptions=float(outcome.preemptions.sum()) / max(1, len(part)),
        clock_ratio=clock,
    )


def _quantile(values: FloatArray, block: IntArray, percentile: float) -> tuple[float, float]:
    """(percentile, upper bound on it); inf where more of the values than that are."""
    level = percentile / 100.0
    if not len(values):
        return 0.0, 0.0
    ordered = np.sort(values)
    found = _at_level(ordered, level)
    error = _STANDARD_ERRORS * _standard_error(values > found, block)
    if error > _LARGEST_ERROR:
        return found, math.inf
    if level + error <= 1.0:
        return found, _at_level(ordered, level + error)
    # Beyond the last value: at least that, and as far above the percentile as the lower bound is below, in logarithms.
    lower = _at_level(ordered, level - error)
    return found, max(float(ordered[-1]), found * found / lower if lower > 0.0 else 0.0)


def _at_level(ordered: FloatArray, level: float) -> float:
    return float(ordered[min(len(ordered), max(1, math.ceil(level * len(ordered)))) - 1])


def _attainment(served: _Served, slo: Slo) -> tuple[float, float]:
    """(share of requests within both targets, lower bound on it)."""
    met = np.ones(len(served.block), dtype=np.bool_)
    if slo.ttft is not None:
        met &= served.ttft_seconds <= slo.ttft.seconds
    if slo.tpot is not None:
        met &= np.isnan(served.tpot_seconds) | (served.tpot_seconds <= slo.tpot.seconds)
    share = float(met.mean())
    return share, max(0.0, share - _STANDARD_ERRORS * _standard_error(met, block=served.block))


def _standard_error(hits: npt.NDArray[np.bool_], block: IntArray) -> float:
    """Of the share of `hits`: from the scatter of blocks, at least that of independent requests."""
    total, mean = len(hits), float(hits.mean())
    sizes = np.bincount(block, minlength=_BLOCKS).astype(np.float64)
    away = np.bincount(block, weights=hits, minlength=_BLOCKS) - mean * sizes
    scatter = float((away**2).sum()) + 2.0 * max(0.0, float((away[1:] * away[:-1]).sum()))
    # A share of 0 or 1 would claim to be exact: one hit more or less is always possible.
    independent = max(mean * (1.0 - mean), 1.0 / total) / total
    return math.sqrt(max(scatter * _BLOCKS / (_BLOCKS - 1) / total**2, independent))
