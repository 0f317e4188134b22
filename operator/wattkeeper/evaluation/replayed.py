"""The best that a replay can do: a few thousand more requests of the very process of a point through the stepper.

Of a recording, what came just before the half that is predicted. Prompts and answers are drawn
independently from their distributions. What the operator can do with counts is `evaluation.operator_replay`.
"""

import functools
from collections.abc import Callable, Sequence

import numpy as np

from wattkeeper.domain.workload import FloatArray
from wattkeeper.evaluation import workers
from wattkeeper.evaluation.grid import Grid
from wattkeeper.evaluation.methods import Latencies, Method, first_half_seconds
from wattkeeper.evaluation.runs import PERCENTILES, Run
from wattkeeper.replica import arrivals, stepper
from wattkeeper.replica.types import ReplicaConfig

REQUESTS = 5000
_WARM = 0.1
_OTHER_SEED = 500_000_000
_BLOCK_TOKENS = 16

Percentiles = tuple[tuple[float, ...], tuple[float, ...]]
"""TTFT and TPOT in seconds at `PERCENTILES`."""


def replays(
    runs: Sequence[Run],
    grid: Grid,
    *,
    requests: int = REQUESTS,
    processes: int = 1,
    done: Callable[[int], None],
) -> Method:
    """Replay all runs once; the result answers for any of them, by the name of its point."""
    one = functools.partial(_replay, requests=requests)
    tasks = [(run, first_half_seconds(run, grid)) for run in runs]
    answers = workers.each(one, tasks, processes=processes, done=done)
    found = {run.point.name: answer for run, answer in zip(runs, answers, strict=True)}

    def method(asked: Sequence[Run], percentile: float) -> Latencies:
        at = PERCENTILES.index(percentile)
        return Latencies(
            ttft_seconds=np.array([found[run.point.name][0][at] for run in asked]),
            tpot_seconds=np.array([found[run.point.name][1][at] for run in asked]),
        )

    return method


def worse(first: Method, second: Method) -> Method:
    """The larger answer of two methods."""

    def both(runs: Sequence[Run], percentile: float) -> Latencies:
        return first(runs, percentile).worse(second(runs, percentile))

    return both


def _replay(task: tuple[Run, FloatArray], *, requests: int) -> Percentiles:
    run, past = task
    point = run.point
    if point.arrivals.kind == "recorded":
        times = past[-requests:] - past[-requests:][0]
    else:
        rate = point.load * run.saturation_rps
        times = point.arrivals.times(rate=rate, count=requests, seed=point.seed + _OTHER_SEED)
    asked = arrivals.requests(
        times,
        prompt=run.workload.prompt,
        output=run.workload.output,
        seed=point.seed + _OTHER_SEED,
        prefix_hit_ratio=run.workload.prefix_hit_ratio,
    )
    config = ReplicaConfig(
        iteration=point.iteration,
        clock_ratio=point.clock_ratio,
        max_num_seqs=point.max_num_seqs,
        max_num_batched_tokens=point.max_num_batched_tokens,
        kv_blocks=max(1, -(-run.kv_tokens // _BLOCK_TOKENS) + (point.max_num_seqs if point.kv_share is None else 0)),
    )
    outcome = stepper.simulate(config, asked)
    warm = int(_WARM * len(times))
    ttft, tpot = outcome.ttft_seconds[warm:], outcome.tpot_seconds[warm:]
    return _percentiles(ttft[np.isfinite(ttft)]), _percentiles(tpot[np.isfinite(tpot)])


def _percentiles(values: FloatArray) -> tuple[float, ...]:
    if not len(values):
        return tuple(np.inf for _ in PERCENTILES)
    return tuple(map(float, np.percentile(values, PERCENTILES)))
