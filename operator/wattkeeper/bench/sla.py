"""What the SLA check costs: per candidate in batches, per pass over a fleet, and the exact stepper behind it.

Processor time of one core, the best of some rounds. Conversations on one H100 per replica (Llama 3.1 8B); the services
of a fleet differ in lengths, rates and burstiness, and share four profiles. LightGBM is timed for comparison: the
check does without it.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from rich.table import Table

from wattkeeper.domain import boosting
from wattkeeper.domain.arrivals import POISSON, Dispersion
from wattkeeper.domain.boosting import Booster
from wattkeeper.domain.engine import EngineSettings
from wattkeeper.domain.errors import LibraryMissingError
from wattkeeper.domain.workload import LengthDistribution, Workload
from wattkeeper.physics.profile import ServingProfile
from wattkeeper.physics.profiles import serving_profile
from wattkeeper.queueing import correction, sla
from wattkeeper.queueing.analysis import Asked, analyse
from wattkeeper.queueing.features import Tables
from wattkeeper.queueing.types import Candidates, SlaQuery
from wattkeeper.replica import arrivals, benchmark
from wattkeeper.replica.benchmark import Speed
from wattkeeper.replica.types import ReplicaConfig

_Boosters = tuple[list[Booster], list[Booster]]
_ROUNDS = 5
_PER_SERVICE = 30
"""Candidates of one service in a pass of a fleet."""
_BURSTS = Dispersion(windows_seconds=(5.0, 20.0, 80.0, 320.0), index=(3.0, 6.0, 10.0, 12.0))
_MODELS = (
    ("meta-llama/Llama-3.1-8B-Instruct", 1),
    ("meta-llama/Llama-3.1-70B-Instruct", 4),
    ("Qwen/Qwen3-32B", 2),
    ("Qwen/Qwen3-8B", 1),
)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """One size of question."""

    services: int
    candidates: int
    """Of all services together."""
    closed_seconds: float
    """Closed forms: capacity, clock under a cap, occupancy, latency tails."""
    learnt_seconds: float
    """Learnt correction."""
    lightgbm_seconds: float | None
    """What LightGBM takes for the same trees and rows, on one thread; None: it cannot be loaded."""
    total_seconds: float
    """Both, with what joins and splits them."""

    @property
    def microseconds_per_candidate(self) -> float:
        """Of everything."""
        return 1e6 * self.total_seconds / self.candidates


def measure(
    *, batches: Sequence[int] = (1, 50, 500, 5000), fleets: Sequence[int] = (100, 1000), rounds: int = _ROUNDS
) -> list[Cost]:
    """One service with that many candidates, then fleets of that many services with 30 candidates each."""
    correction.shipped()
    boosters = _boosters()
    asked = [[_query(0, size)] for size in batches]
    asked += [[_query(index, _PER_SERVICE) for index in range(size)] for size in fleets]
    return [_cost(queries, boosters, rounds) for queries in asked]


def stepper_speed(*, requests: int = 40_000, rounds: int = 3) -> list[Speed]:
    """Simulated requests per second on conversation lengths, at a tenth, half and nine tenths of saturation."""
    profile = _profile(*_MODELS[0])
    count = np.zeros(requests)
    prompts, outputs = _lengths(0)
    drawn = arrivals.requests(count, prompt=prompts, output=outputs, seed=1)
    config = ReplicaConfig(
        iteration=profile.iteration, max_num_seqs=256, max_num_batched_tokens=2048, kv_blocks=420_000 // 16
    )
    return benchmark.speeds(
        config, prompt_tokens=drawn.prompt_tokens, output_tokens=drawn.output_tokens, repeats=rounds
    )


def _cost(queries: Sequence[SlaQuery], boosters: _Boosters | None, rounds: int) -> Cost:
    analyses = [
        analyse(query.profile, Asked.of([query]), ttft_percentile=95.0, tpot_percentile=95.0) for query in queries
    ]
    tables = [found.tables for found in analyses if found.tables is not None]
    joined = type(tables[0]).joined(tables)
    total = _best(lambda: sla.predict_fleet(queries), rounds)
    learnt = _best(lambda: correction.shipped().apply(joined), rounds)
    return Cost(
        services=len(queries),
        candidates=sum(len(query.candidates) for query in queries),
        closed_seconds=total - learnt,
        learnt_seconds=learnt,
        lightgbm_seconds=None if boosters is None else _best(lambda: _by_lightgbm(boosters, joined), rounds),
        total_seconds=total,
    )


def _boosters() -> _Boosters | None:
    """The trees of the correction as LightGBM reads them: those of TTFT and of TPOT."""
    payload, _ = correction.read(correction.shipped_path())
    try:
        ttft, tpot = (
            [boosting.read(text) for text in (part.trees, part.spread)] for part in (payload.ttft, payload.tpot)
        )
    except LibraryMissingError:
        return None
    return ttft, tpot


def _by_lightgbm(boosters: _Boosters, tables: Tables) -> None:
    for trees, rows in zip(boosters, (tables.ttft, tables.tpot), strict=True):
        for booster in trees:
            boosting.predict(booster, rows)


def _best(run: Callable[[], object], rounds: int) -> float:
    seconds = []
    for _ in range(rounds):
        start = time.process_time()
        run()
        seconds.append(time.process_time() - start)
    return min(seconds)


def _query(index: int, size: int) -> SlaQuery:
    """A service of its own lengths, rate and burstiness; candidates differ in replicas and power limit."""
    profile = _profile(*_MODELS[index % len(_MODELS)])
    prompt, output = _lengths(index)
    workload = Workload(
        requests_per_second=5.0 + index % 17,
        prompt=prompt,
        output=output,
        dispersion=_BURSTS if index % 2 else POISSON,
    )
    caps = np.append(np.linspace(0.55, 0.95, 9) * profile.gpu.tdp_watts, np.nan)
    at = np.arange(size)
    replicas = 2.0 + at % 10 + index % 5
    ones = np.ones(size)
    candidates = Candidates(
        replicas=np.asarray(replicas, dtype=np.float64),
        power_cap_watts=caps[at % len(caps)],
        clock_ratio=ones,
        max_num_seqs=256.0 * ones,
        max_num_batched_tokens=2048.0 * ones,
        kv_capacity_tokens=400_000.0 * ones,
    )
    return SlaQuery(
        profile=profile, workload=workload, candidates=candidates, ttft_percentile=95.0, tpot_percentile=95.0
    )


def _lengths(index: int) -> tuple[LengthDistribution, LengthDistribution]:
    stretch = 1.0 + 0.01 * (index % 40)
    return (
        LengthDistribution.lognormal(mean=1155 * stretch, coefficient_of_variation=0.95),
        LengthDistribution.lognormal(mean=211 * stretch, coefficient_of_variation=0.77),
    )


def _profile(model: str, gpus: int) -> ServingProfile:
    return serving_profile(
        model=model,
        accelerator="nvidia-h100-sxm",
        gpus_per_replica=gpus,
        engine=EngineSettings(tensor_parallel_size=gpus),
    )


def table(costs: Sequence[Cost]) -> Table:
    """For people."""
    shown = Table(title="SLA check, processor time")
    for heading in ("services", "candidates", "closed forms", "learnt correction", "LightGBM", "per candidate"):
        shown.add_column(heading, justify="right")
    for cost in costs:
        shown.add_row(
            str(cost.services),
            str(cost.candidates),
            f"{1e3 * cost.closed_seconds:.1f} ms",
            f"{1e3 * cost.learnt_seconds:.1f} ms",
            "missing" if cost.lightgbm_seconds is None else f"{1e3 * cost.lightgbm_seconds:.1f} ms",
            f"{cost.microseconds_per_candidate:.0f} us",
        )
    return shown


def speed_table(speeds: Sequence[Speed]) -> Table:
    """For people."""
    shown = Table(title="exact stepper, conversation lengths")
    for heading in ("load", "requests/s", "with single steps", "ratio", "steps per request"):
        shown.add_column(heading, justify="right")
    for speed in speeds:
        shown.add_row(
            f"{speed.load:.0%}",
            f"{speed.requests_per_second:,.0f}",
            f"{speed.single_requests_per_second:,.0f}",
            f"{speed.ratio:.1f}",
            f"{speed.steps_per_request:.1f}",
        )
    return shown
