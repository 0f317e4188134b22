"""The replay stage as the operator runs it, as a method: `queueing.replay` on counts of the preceding half of a path.

What it is told is what a view of the run tells (rate, dispersion, lengths) and the counts per scrape of the last few
thousand arrivals before the half that is predicted.
"""

import functools
import math
from collections.abc import Callable, Sequence

import numpy as np

from wattkeeper.domain.arrivals import ArrivalRecord
from wattkeeper.domain.plan import LatencyTarget, Slo
from wattkeeper.domain.replay import ReplayResult, ReplaySetting
from wattkeeper.domain.workload import FloatArray
from wattkeeper.evaluation import workers
from wattkeeper.evaluation.grid import Grid
from wattkeeper.evaluation.methods import SCRAPE_SECONDS, Latencies, Method, first_half_seconds, profile_of
from wattkeeper.evaluation.runs import Run
from wattkeeper.queueing import replay

REQUESTS = 5000
_RECORDED_REQUESTS = 6000
"""That the record goes back."""


def replays(
    views: Sequence[Run],
    grid: Grid,
    *,
    percentile: float,
    requests: int = REQUESTS,
    processes: int = 1,
    done: Callable[[int], None],
) -> tuple[Method, Method]:
    """(best guess, bound with the sampling error) from one replay of each run, for this percentile only."""
    one = functools.partial(_replay, percentile=percentile, requests=requests)
    tasks = [(run, record_of(first_half_seconds(run, grid))) for run in views]
    answers = workers.each(one, tasks, processes=processes, done=done)
    found = {run.point.name: answer for run, answer in zip(views, answers, strict=True)}
    return _method(found, percentile, "ttft_seconds", "tpot_seconds"), _method(
        found, percentile, "ttft_upper_seconds", "tpot_upper_seconds"
    )


def record_of(
    times_seconds: FloatArray, *, requests: int = _RECORDED_REQUESTS, bin_seconds: float = SCRAPE_SECONDS
) -> ArrivalRecord:
    """Counts per scrape of the last `requests` arrivals."""
    part = times_seconds[-requests:]
    first = math.floor(part[0] / bin_seconds)
    edges = bin_seconds * np.arange(first, math.ceil(part[-1] / bin_seconds) + 1)
    if len(edges) < 2:
        edges = np.array([edges[0], edges[0] + bin_seconds])
    counts, _ = np.histogram(times_seconds, edges)
    return ArrivalRecord(edges_seconds=tuple(map(float, edges)), counts=tuple(map(float, counts)))


def _method(found: dict[str, ReplayResult], percentile: float, ttft: str, tpot: str) -> Method:
    def method(runs: Sequence[Run], asked: float) -> Latencies:
        if asked != percentile:
            raise ValueError(f"runs were replayed for p{percentile:g}, not p{asked:g}")
        return Latencies(
            ttft_seconds=np.array([float(getattr(found[run.point.name], ttft)) for run in runs]),
            tpot_seconds=np.array([float(getattr(found[run.point.name], tpot)) for run in runs]),
        )

    return method


def _replay(task: tuple[Run, ArrivalRecord], *, percentile: float, requests: int) -> ReplayResult:
    run, record = task
    point, profile = run.point, profile_of(run)
    target = LatencyTarget(percentile=percentile, seconds=1.0)
    spare = point.max_num_seqs * 16 if point.kv_share is None else 0
    return replay.run(
        replay.ReplayJob(
            profile=profile,
            setting=ReplaySetting(
                replicas=1,
                clock_mhz=point.clock_ratio * profile.gpu.max_clock_mhz,
                max_num_seqs=point.max_num_seqs,
                max_num_batched_tokens=point.max_num_batched_tokens,
                kv_capacity_tokens=float(run.kv_tokens + spare + 15),
            ),
            workload=run.workload,
            slo=Slo(ttft=target, tpot=target),
            arrivals=record,
            requests=requests,
            seed=point.seed,
        )
    )
