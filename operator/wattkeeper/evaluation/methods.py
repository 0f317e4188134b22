"""What is evaluated: methods that tell latency percentiles of runs, and how much they are told of the arrivals."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Protocol

import numpy as np

from wattkeeper.domain.arrivals import Dispersion
from wattkeeper.domain.workload import FloatArray
from wattkeeper.evaluation import grid as designed
from wattkeeper.evaluation.grid import Grid
from wattkeeper.evaluation.runs import PERCENTILES, WARM, Run, distribution, measured_dispersion, saturating_requests
from wattkeeper.physics.profile import ServingProfile
from wattkeeper.queueing import sla
from wattkeeper.queueing.types import BoolArray, Candidates, SlaPrediction, SlaQuery

SCRAPE_SECONDS = 5.0
HALVES_PERCENTILE = 95.0
"""The only percentile that a run keeps of its halves."""


@dataclass(frozen=True, kw_only=True)
class Latencies:
    """Predicted or true, one entry per run; arrays of shape (N,), inf where a method sees no steady state."""

    ttft_seconds: FloatArray
    tpot_seconds: FloatArray

    def where(self, chosen: BoolArray) -> "Latencies":
        """Of some runs only."""
        return Latencies(ttft_seconds=self.ttft_seconds[chosen], tpot_seconds=self.tpot_seconds[chosen])

    def worse(self, other: "Latencies") -> "Latencies":
        """The larger of both, run by run."""
        return Latencies(
            ttft_seconds=np.maximum(self.ttft_seconds, other.ttft_seconds),
            tpot_seconds=np.maximum(self.tpot_seconds, other.tpot_seconds),
        )


class Method(Protocol):
    """Anything that predicts."""

    def __call__(self, runs: Sequence[Run], percentile: float, /) -> Latencies:
        """Latencies at `percentile`, one of `PERCENTILES`, from what the runs' points and workloads tell."""


def truth(runs: Sequence[Run], percentile: float) -> Latencies:
    """What the stepper says; nan where the view of a run does not keep this percentile."""
    at = PERCENTILES.index(percentile)
    return Latencies(
        ttft_seconds=np.array([run.ttft_seconds[at] for run in runs]),
        tpot_seconds=np.array([run.tpot_seconds[at] for run in runs]),
    )


# The operator's own method


def model(runs: Sequence[Run], percentile: float) -> Latencies:
    """The latency model's best guess."""
    found = predictions(runs, percentile)
    return _latencies(found, "ttft_seconds", "tpot_seconds")


def model_upper(runs: Sequence[Run], percentile: float) -> Latencies:
    """What the latency model expects to be exceeded in one case of ten, as the planner uses it."""
    found = predictions(runs, percentile)
    return _latencies(found, *_UPPER)


_UPPER = ("ttft_upper_seconds", "tpot_upper_seconds")
HAS_UPPER = set(_UPPER) <= {field.name for field in fields(SlaPrediction)}
"""Whether the latency model knows its own error."""


def predictions(runs: Sequence[Run], percentile: float) -> list[SlaPrediction]:
    """One candidate per run: one replica, no power limit."""
    return sla.predict_fleet([_query(run, percentile) for run in runs])


def capacity_rps(runs: Sequence[Run]) -> FloatArray:
    """Requests per second that the latency model takes for the replica's capacity."""
    return np.array([float(found.capacity_rps[0]) for found in predictions(runs, 95.0)])


def _latencies(found: Sequence[SlaPrediction], ttft: str, tpot: str) -> Latencies:
    return Latencies(
        ttft_seconds=np.array([float(getattr(each, ttft)[0]) for each in found]),
        tpot_seconds=np.array([float(getattr(each, tpot)[0]) for each in found]),
    )


def _query(run: Run, percentile: float) -> SlaQuery:
    def one(value: float) -> FloatArray:
        return np.array([float(value)])

    return SlaQuery(
        profile=profile_of(run),
        workload=run.workload,
        candidates=Candidates(
            replicas=one(1),
            power_cap_watts=one(math.nan),
            clock_ratio=one(run.point.clock_ratio),
            max_num_seqs=one(run.point.max_num_seqs),
            max_num_batched_tokens=one(run.point.max_num_batched_tokens),
            kv_capacity_tokens=one(run.kv_tokens),
        ),
        ttft_percentile=percentile,
        tpot_percentile=percentile,
    )


def profile_of(run: Run) -> ServingProfile:
    """The point's coefficients on a card that is never slowed by its power limit, since the stepper knows no power."""
    base = designed.ENGINES[0].profile
    return replace(
        base,
        gpu=replace(base.gpu, tdp_watts=1e9),
        iteration=run.point.iteration,
        kv_capacity_tokens=float(run.kv_tokens),
    )


# Views: the same runs, with less known about the arrivals


def scraped(runs: Sequence[Run]) -> list[Run]:
    """Dispersion known only at windows of a scrape interval and longer."""
    return [replace(run, workload=replace(run.workload, dispersion=_coarse(run.workload.dispersion))) for run in runs]


def saturating(runs: Sequence[Run]) -> list[Run]:
    """Lengths of just the requests that saturation was measured with: a few thousand scatter by some percent."""
    return [_saturating(run) for run in runs]


def _saturating(run: Run) -> Run:
    prompts, outputs = run.point.lengths.draw(run.point.requests, seed=run.point.seed)
    part = slice(0, saturating_requests(run.point))
    seen = replace(run.workload, prompt=distribution(prompts[part]), output=distribution(outputs[part]))
    return replace(run, workload=seen)


def first_half(runs: Sequence[Run], grid: Grid) -> list[Run]:
    """Rate and dispersion of the first half of each path; what came out is that of the second half."""
    return [_first_half(run, grid) for run in runs]


def first_half_seconds(run: Run, grid: Grid) -> FloatArray:
    """Arrivals of the first half of a run's path, those of its warm-up included."""
    point = run.point
    times = point.arrivals.times(
        rate=point.load * run.saturation_rps,
        count=point.requests,
        seed=point.seed,
        recorded=grid.arrivals_of(point.name),
    )
    warm = int(WARM * len(times))
    return times[: warm + (len(times) - warm) // 2]


def _first_half(run: Run, grid: Grid) -> Run:
    times = first_half_seconds(run, grid)
    kept = [percentile == HALVES_PERCENTILE for percentile in PERCENTILES]
    return replace(
        run,
        workload=replace(
            run.workload,
            requests_per_second=len(times) / float(times[-1]),
            dispersion=measured_dispersion(times),
        ),
        ttft_seconds=tuple(run.halves_ttft_p95[1] if keep else math.nan for keep in kept),
        tpot_seconds=tuple(run.halves_tpot_p95[1] if keep else math.nan for keep in kept),
    )


def _coarse(dispersion: Dispersion) -> Dispersion:
    """Only windows of a scrape interval and longer; the longest one where there is none."""
    pairs = list(zip(dispersion.windows_seconds, dispersion.index, strict=True))
    kept = [pair for pair in pairs if pair[0] >= SCRAPE_SECONDS] or pairs[-1:]
    windows, index = zip(*kept, strict=True)
    return Dispersion(windows_seconds=windows, index=index)
