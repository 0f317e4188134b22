"""What the exact stepper says of an operating point, and what the latency model is told of it."""

import itertools
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np

from wattkeeper.domain.arrivals import Dispersion
from wattkeeper.domain.workload import FloatArray, LengthDistribution, Workload
from wattkeeper.evaluation.points import OperatingPoint
from wattkeeper.replica import arrivals, saturation, stepper
from wattkeeper.replica.types import IntArray, Outcome, ReplicaConfig, Requests

PERCENTILES = (50.0, 75.0, 90.0, 95.0, 98.0, 99.0, 99.5)
SLO_TTFT_SECONDS = (0.2, 0.5, 1.0, 2.0, 5.0)
SLO_TPOT_SECONDS = (0.015, 0.025, 0.05, 0.1)
"""Every pair is an SLO whose attainment is counted."""
WINDOWS_SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
WARM = 0.05
"""Share of the requests, the first ones, that is not counted."""
_SATURATING_REQUESTS = 20_000
_AMPLE = 3.0
_LENGTH_POINTS = 64
_TAIL_POINTS = 16


@dataclass(frozen=True, kw_only=True)
class Run:
    """A simulated point: what the model is told, and what came out."""

    point: OperatingPoint
    workload: Workload
    """Rate and dispersion of the path itself; lengths without their correlation."""
    kv_tokens: int
    saturation_rps: float
    ttft_seconds: tuple[float, ...]
    """At `PERCENTILES`, over requests after warm-up."""
    tpot_seconds: tuple[float, ...]
    ttft_mean_seconds: float
    tpot_mean_seconds: float
    halves_ttft_p95: tuple[float, float]
    """Of the first and of the second half of the run: how stable the number is."""
    halves_tpot_p95: tuple[float, float]
    attainment: tuple[float, ...]
    """Share of requests within both targets, for every pair of `SLO_TTFT_SECONDS` x `SLO_TPOT_SECONDS`."""
    preempted_share: float
    """Preemptions per request."""


def distribution(tokens: IntArray) -> LengthDistribution:
    """Token counts as a distribution of few points: means of equal groups, finer in the upper tenth."""
    ordered = np.sort(tokens).astype(np.float64)
    cut = int(0.9 * len(ordered))
    groups = [
        *np.array_split(ordered[:cut], _LENGTH_POINTS - _TAIL_POINTS),
        *np.array_split(ordered[cut:], _TAIL_POINTS),
    ]
    values: dict[float, float] = {}
    for group in groups:
        if len(group):
            mean = float(group.mean())
            values[mean] = values.get(mean, 0.0) + len(group) / len(ordered)
    return LengthDistribution(tokens=tuple(values), weights=tuple(values.values()))


def measured_dispersion(times_seconds: FloatArray, *, finest_seconds: float = 0.0) -> Dispersion:
    """Index of dispersion of a path at `WINDOWS_SECONDS`, from `finest_seconds` up, where at least 20 windows fit."""
    windows = [
        window
        for window in WINDOWS_SECONDS
        if window >= finest_seconds and times_seconds[-1] - times_seconds[0] >= 20.0 * window
    ] or [WINDOWS_SECONDS[0]]
    found = np.maximum(np.nan_to_num(arrivals.dispersion(times_seconds, windows), nan=1.0), 1e-2)
    return Dispersion(windows_seconds=tuple(windows), index=tuple(map(float, found)))


def saturating_requests(point: OperatingPoint) -> int:
    """How many of a point's requests, the first ones, its saturation is measured with."""
    return min(max(_SATURATING_REQUESTS, 8 * point.max_num_seqs), point.requests)


def simulate(point: OperatingPoint, recorded: FloatArray | None = None) -> Run | None:
    """Run a point; None where its limits cannot hold its requests at all. Deterministic by the point's seed."""
    prompts, outputs = point.lengths.draw(point.requests, seed=point.seed)
    hits = _hits(point, prompts)
    longest = int((prompts + outputs).max())
    held = point.max_num_seqs * longest
    config = _config(point, held)
    part = slice(0, saturating_requests(point))
    some = {"prompt_tokens": prompts[part], "output_tokens": outputs[part]}
    some_hits = None if hits is None else hits[part]
    full = saturation.saturation(config, **some, hit_tokens=some_hits)
    if point.kv_share is None:
        kv_tokens = held
    else:
        context = float(np.average(prompts + 0.5 * outputs, weights=np.maximum(outputs - 1.0, 1e-9)))
        kv_tokens = max(int(point.kv_share * max(full.sequences, 1.0) * context), longest + config.block_size)
        config = _config(point, kv_tokens)
        full = saturation.saturation(config, **some, hit_tokens=some_hits)
    rate = point.load * full.requests_per_second
    times = point.arrivals.times(rate=rate, count=point.requests, seed=point.seed, recorded=recorded)
    outcome = stepper.simulate(
        config, Requests(arrival_seconds=times, prompt_tokens=prompts, output_tokens=outputs, hit_tokens=hits)
    )
    return _run(point, times, outcome.ttft_seconds, outcome.tpot_seconds, prompts, outputs, kv_tokens, full, outcome)


def _config(point: OperatingPoint, kv_tokens: int) -> ReplicaConfig:
    return ReplicaConfig(
        iteration=point.iteration,
        clock_ratio=point.clock_ratio,
        max_num_seqs=point.max_num_seqs,
        max_num_batched_tokens=point.max_num_batched_tokens,
        kv_blocks=max(1, -(-kv_tokens // 16) + (point.max_num_seqs if point.kv_share is None else 0)),
    )


def _hits(point: OperatingPoint, prompts: IntArray) -> IntArray | None:
    if point.hit_ratio <= 0.0:
        return None
    noise = np.random.default_rng((point.seed, 78)).random(len(prompts))
    return np.asarray((point.hit_ratio * prompts / 16 + noise).astype(np.int64) * 16)


def _run(
    point: OperatingPoint,
    times: FloatArray,
    ttft: FloatArray,
    tpot: FloatArray,
    prompts: IntArray,
    outputs: IntArray,
    kv_tokens: int,
    full: saturation.Saturation,
    outcome: Outcome,
) -> Run | None:
    warm = int(WARM * len(times))
    ttft, tpot = ttft[warm:], tpot[warm:]
    several = np.isfinite(tpot)
    if not several.any():
        return None
    half = len(ttft) // 2
    attained = [
        float(np.mean((ttft <= goal) & ((tpot <= pace) | ~several)))
        for goal, pace in itertools.product(SLO_TTFT_SECONDS, SLO_TPOT_SECONDS)
    ]
    return Run(
        point=point,
        workload=Workload(
            requests_per_second=len(times) / float(times[-1]),
            prompt=distribution(prompts),
            output=distribution(outputs),
            dispersion=measured_dispersion(times),
            prefix_hit_ratio=point.hit_ratio,
        ),
        kv_tokens=kv_tokens,
        saturation_rps=full.requests_per_second,
        ttft_seconds=_percentiles(ttft),
        tpot_seconds=_percentiles(tpot[several]),
        ttft_mean_seconds=float(ttft.mean()),
        tpot_mean_seconds=float(tpot[several].mean()),
        halves_ttft_p95=(_p95(ttft[:half]), _p95(ttft[half:])),
        halves_tpot_p95=(_p95(tpot[:half]), _p95(tpot[half:])),
        attainment=tuple(attained),
        preempted_share=outcome.activity.preemptions / len(times),
    )


def _percentiles(values: FloatArray) -> tuple[float, ...]:
    return tuple(map(float, np.percentile(values, PERCENTILES)))


def _p95(values: FloatArray) -> float:
    finite = values[np.isfinite(values)]
    return float(np.percentile(finite, 95.0)) if len(finite) else float("nan")


def simulate_all(
    points: Sequence[OperatingPoint], *, recorded: dict[str, FloatArray] | None = None, processes: int | None = None
) -> Iterator[Run]:
    """Runs of all points that can run, in their order, on several processes (default: one per core)."""
    workers = processes or os.cpu_count() or 1
    tasks = [(point, (recorded or {}).get(point.name)) for point in points]
    if workers == 1:
        yield from (run for task in tasks if (run := _task(task)) is not None)
        return
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from (run for run in pool.map(_task, tasks, chunksize=4) if run is not None)


def _task(task: tuple[OperatingPoint, FloatArray | None]) -> Run | None:
    point, recorded = task
    return simulate(point, recorded)
