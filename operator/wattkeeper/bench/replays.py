"""What a replay costs: processor time per candidate, and how long evidence takes through a worker process.

Conversations on one H100 per replica (Llama 3.1 8B), Poisson and slowly bursting arrivals, with and without a power
cap, at shares of the rate that the analytic check calls the capacity.
"""

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rich.table import Table

from wattkeeper.controller.workers import Worker
from wattkeeper.domain.arrivals import POISSON, Dispersion
from wattkeeper.domain.engine import EngineSettings
from wattkeeper.domain.plan import LatencyTarget, Slo
from wattkeeper.domain.replay import ReplaySetting
from wattkeeper.domain.workload import LengthDistribution, Workload
from wattkeeper.physics.profile import ServingProfile
from wattkeeper.physics.profiles import serving_profile
from wattkeeper.queueing import replay, sla
from wattkeeper.queueing.types import Candidates

_BURSTS = Dispersion(windows_seconds=(0.1, 1.0, 5.0, 30.0, 60.0), index=(1.2, 2.0, 4.0, 12.0, 20.0))
_REPLICAS = 4
_SEQS, _BUDGET, _KV_TOKENS = 256, 2048, 420_000.0


@dataclass(frozen=True, kw_only=True)
class Cost:
    """One kind of candidate; means over seeds."""

    load: float
    bursty: bool
    power_cap_watts: float | None
    cpu_seconds: float
    """Of one replay, in the worker."""
    answer_seconds: float
    """From handing it to a running worker to its result, wall time."""
    requests: int
    ttft_seconds: float
    ttft_sampling_error: float
    """Upper bound over the percentile, less one; mean over seeds."""
    tpot_seconds: float
    tpot_sampling_error: float


def measure(
    *, loads: Sequence[float] = (0.2, 0.5, 0.7), caps: Sequence[float | None] = (None, 500.0), seeds: int = 5
) -> list[Cost]:
    """Replay each kind of candidate with several seeds, in one worker process."""
    engine = EngineSettings(max_num_seqs=_SEQS, max_num_batched_tokens=_BUDGET)
    profile = serving_profile(
        model="meta-llama/Llama-3.1-8B-Instruct", accelerator="nvidia-h100-sxm", gpus_per_replica=1, engine=engine
    )
    workload = Workload(
        requests_per_second=1.0,
        prompt=LengthDistribution.lognormal(mean=1155, coefficient_of_variation=0.95),
        output=LengthDistribution.lognormal(mean=211, coefficient_of_variation=0.77),
    )
    capacity = _capacity(profile, workload)
    worker = Worker()
    try:
        worker.run(_job(profile, workload, None, engine, 0), timeout_seconds=60.0)  # it has started
        return [
            _cost(worker, profile, workload.at_rate(load * capacity), load, bursty, cap, engine, seeds)
            for load, bursty, cap in itertools.product(loads, (False, True), caps)
        ]
    finally:
        worker.close()


def _capacity(profile: ServingProfile, workload: Workload) -> float:
    candidates = Candidates(
        replicas=np.array([float(_REPLICAS)]),
        power_cap_watts=np.array([np.nan]),
        clock_ratio=np.array([1.0]),
        max_num_seqs=np.array([float(_SEQS)]),
        max_num_batched_tokens=np.array([float(_BUDGET)]),
        kv_capacity_tokens=np.array([_KV_TOKENS]),
    )
    found = sla.predict(profile, workload, candidates, ttft_percentile=95.0, tpot_percentile=95.0)
    return float(found.capacity_rps[0])


def _job(
    profile: ServingProfile, workload: Workload, cap: float | None, engine: EngineSettings, seed: int
) -> replay.ReplayJob:
    return replay.ReplayJob(
        profile=profile,
        setting=ReplaySetting(
            replicas=_REPLICAS,
            power_cap_watts=cap,
            engine=engine,
            max_num_seqs=_SEQS,
            max_num_batched_tokens=_BUDGET,
            kv_capacity_tokens=_KV_TOKENS,
        ),
        workload=workload,
        slo=Slo(ttft=LatencyTarget(percentile=95, seconds=0.5), tpot=LatencyTarget(percentile=95, seconds=0.05)),
        seed=seed,
    )


def _cost(
    worker: Worker,
    profile: ServingProfile,
    workload: Workload,
    load: float,
    bursty: bool,
    cap: float | None,
    engine: EngineSettings,
    seeds: int,
) -> Cost:
    asked = Workload(
        requests_per_second=workload.requests_per_second,
        prompt=workload.prompt,
        output=workload.output,
        dispersion=_BURSTS if bursty else POISSON,
    )
    results, seconds = [], []
    for seed in range(seeds):
        began = time.perf_counter()
        results.append(worker.run(_job(profile, asked, cap, engine, seed), timeout_seconds=60.0))
        seconds.append(time.perf_counter() - began)
    return Cost(
        load=load,
        bursty=bursty,
        power_cap_watts=cap,
        cpu_seconds=float(np.mean([found.cost_seconds for found in results])),
        answer_seconds=float(np.mean(seconds)),
        requests=int(np.mean([found.requests for found in results])),
        ttft_seconds=float(np.mean([found.ttft_seconds for found in results])),
        ttft_sampling_error=float(np.mean([found.ttft_upper_seconds / found.ttft_seconds for found in results])) - 1.0,
        tpot_seconds=float(np.mean([found.tpot_seconds for found in results])),
        tpot_sampling_error=float(np.mean([found.tpot_upper_seconds / found.tpot_seconds for found in results])) - 1.0,
    )


def table(costs: Sequence[Cost]) -> Table:
    """For people."""
    found = Table("load", "arrivals", "cap", "requests", "CPU ms", "answer ms", "TTFT p95 ms", "TPOT p95 ms")
    for cost in costs:
        found.add_row(
            f"{cost.load:.0%}",
            "bursty" if cost.bursty else "Poisson",
            "none" if cost.power_cap_watts is None else f"{cost.power_cap_watts:.0f} W",
            str(cost.requests),
            f"{cost.cpu_seconds * 1000:.0f}",
            f"{cost.answer_seconds * 1000:.0f}",
            f"{cost.ttft_seconds * 1000:.0f} + {cost.ttft_sampling_error:.0%}",
            f"{cost.tpot_seconds * 1000:.1f} + {cost.tpot_sampling_error:.0%}",
        )
    return found
