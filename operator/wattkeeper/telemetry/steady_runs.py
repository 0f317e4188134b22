"""The history of one replica becomes steady runs: intervals between scrapes, windows of them, one run per window; pure.

Tokens, requests and steps are differences of counters over a window; the batch is the sum of inter-token latencies over
time, which is the mean number of decoding sequences exactly (the mean of the running gauge at scrapes where an engine
serves no such histogram). Watts are means over the same time. What an interval or a window cannot be used for is named;
see `Reason`.
"""

import enum
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wattkeeper.domain.workload import FloatArray
from wattkeeper.energy.sensor import STUCK_TICKS
from wattkeeper.physics.profile import GpuSpec
from wattkeeper.physics.step_windows import BUSY_DECODES
from wattkeeper.telemetry import steady
from wattkeeper.telemetry.run_history import ReplicaHistory
from wattkeeper.telemetry.steady import Level

MOST_GAP_SECONDS, MOST_GAP_INTERVALS = 120.0, 2.5
"""Between two scrapes, the larger of the two (in usual intervals); longer, and nobody knows what went on."""
STUCK_EQUAL = 1e-4
STUCK_LOAD_MOVE = 0.05
"""Relative; watts that stay the same while the tokens per second move so much are no measurement."""
AT_LIMIT = 0.97
"""Watts over the limit: a card held by it may well draw the same watts for long, and its clock is not free."""
LEAST_BUSY = 0.97
LEAST_REQUESTS = 10.0
"""Finished in a window: fewer say little about lengths."""
MOST_PREEMPTED = 0.01
"""Preemptions per finished request: recomputed work makes no tokens."""
MOST_HITS = 0.95
"""Share of prompt tokens from the prefix cache; hits and prompts are counted at different times of a request, so that
nothing is known of what is computed above it."""
LEAST_TIMED = 0.8
"""Times between tokens over tokens after the first; fewer, and steps make several tokens."""
LEAST_CLOCK = 0.9
"""Over the card's highest: below it, away from the power limit, the clock is locked or the card too hot."""
Bounds = Mapping[str, tuple[float, float]]
LEVELS: Bounds = {
    "batch": (0.5, 0.4),
    "tokens_per_second": (0.5, 0.4),
    "gpu_watts": (0.2, 0.15),
    "clock_mhz": (0.1, 0.05),
}
"""Most spread and most drift of each level in a window (`telemetry.steady`). Those of the load keep the mean watts
within 2 % of the watts at the mean batch; `wattkeeper evaluate own-history` shows what other bounds cost and bring."""


class Reason(enum.StrEnum):
    """Why a stretch of history is in no run."""

    GAP = "no scrape of the engine"
    MISSING = "counters of the engine missing"
    RESTARTED = "engine restarted"
    IDLE = "idle, or hardly busy"
    NO_WATTS = "no watts of all GPUs"
    STUCK = "power sensor stuck"
    LIMIT_CHANGED = "power limit changed"
    CAPPED = "under a power limit below the card's"
    CLOCKED = "clock locked or throttled"
    PREEMPTED = "preemptions"
    PREFIX = "nearly all prompt tokens from the prefix cache"
    SPECULATIVE = "several tokens a step (speculative decoding)"
    FEW_REQUESTS = "too few finished requests"
    SETTLING = steady.SETTLING
    UNSTEADY = steady.UNSTEADY
    SHORT = steady.SHORT


@dataclass(frozen=True, kw_only=True)
class SteadyRun:
    """Means over one steady window of one replica."""

    namespace: str
    pod: str
    start_seconds: float
    """Unix time."""
    seconds: float
    batch: float
    tokens_per_second: float
    """Output tokens."""
    inter_token_seconds: float
    requests_per_second: float
    """Finished."""
    prompt_tokens: float
    """Per request, prefix cache hits included."""
    output_tokens: float
    gpu_watts: float
    """Mean of one card."""
    clock_mhz: float
    """NaN: not measured."""
    limit_watts: float
    """Of one card; NaN: not measured."""
    kv_usage: float
    """Share of the KV cache in use, 0..1; NaN: not served."""
    hit_ratio: float
    """Prompt tokens from the prefix cache, 0..1; NaN: not served."""

    @property
    def computed_tokens(self) -> float:
        """Prompt tokens per request that were computed, at least one."""
        return max(self.prompt_tokens * (1.0 - (self.hit_ratio if math.isfinite(self.hit_ratio) else 0.0)), 1.0)


@dataclass(frozen=True, kw_only=True)
class LeftOutStretch:
    """A stretch of history that is in no run."""

    pod: str
    start_seconds: float
    seconds: float
    reason: Reason


@dataclass(frozen=True, kw_only=True)
class ReplicaRuns:
    """What one replica's history gave. The seconds of runs and stretches add up to those of the history."""

    runs: tuple[SteadyRun, ...]
    left_out: tuple[LeftOutStretch, ...]


def runs_of(
    history: ReplicaHistory,
    *,
    gpu: GpuSpec,
    gpus: int,
    lengths: steady.Lengths | None = None,
    bounds: Bounds = LEVELS,
) -> ReplicaRuns:
    """Steady runs of a replica on `gpus` cards, and what was left out of its history and why."""
    intervals = _intervals(history, gpus)
    if not len(intervals.start_seconds):
        return ReplicaRuns(runs=(), left_out=())
    broken = _broken(intervals, gpu)
    levels = [
        Level(name=name, values=getattr(intervals, name), most_spread=spread, most_drift=drift)
        for name, (spread, drift) in bounds.items()
    ]
    found = steady.cut(intervals.seconds, levels, broken, lengths=lengths)
    runs, stretches = [], [(part.start, part.stop, Reason(part.reason)) for part in found.left_out]
    for start, stop in found.windows:
        run, reason = _run(history, intervals, start, stop, gpu)
        if reason is None:
            runs.append(run)
        else:
            stretches.append((start, stop, reason))
    edges = np.append(intervals.start_seconds, intervals.start_seconds[-1] + intervals.seconds[-1])
    left_out = tuple(
        LeftOutStretch(
            pod=history.pod,
            start_seconds=float(edges[start]),
            seconds=float(intervals.seconds[start:stop].sum()),
            reason=reason,
        )
        for start, stop, reason in sorted(stretches)
    )
    return ReplicaRuns(runs=tuple(runs), left_out=left_out)


@dataclass(frozen=True, kw_only=True)
class _Intervals:
    """Between consecutive scrapes of one engine, (N,) each: changes of counters, means of gauges and of its GPUs."""

    start_seconds: FloatArray
    seconds: FloatArray
    change: Mapping[str, FloatArray]
    """Of counters; NaN where not served."""
    mean: Mapping[str, FloatArray]
    """Of gauges at both ends."""
    least_running: FloatArray
    gpu_watts: FloatArray
    """Mean of one card; NaN where a card has none."""
    clock_mhz: FloatArray
    limit_watts: FloatArray
    """The lowest of all cards."""
    utilisation: FloatArray

    @property
    def batch(self) -> FloatArray:
        """Decoding sequences."""
        return np.asarray(np.where(self.counted, self.change["inter_token_seconds_sum"] / self.seconds, self.running))

    @property
    def counted(self) -> npt.NDArray[np.bool_]:
        """Where the engine serves the times between tokens."""
        return np.isfinite(self.change["inter_token_seconds_sum"])

    @property
    def running(self) -> FloatArray:
        """Mean of the gauge."""
        return self.mean["running"]

    @property
    def tokens_per_second(self) -> FloatArray:
        """Generated."""
        return self.change["generation_tokens"] / self.seconds


_COUNTED = (
    "finished_requests", "prompt_tokens", "cached_prompt_tokens", "generation_tokens", "preemptions",
    "inter_token_seconds_sum", "inter_token_count", "iteration_count",
)  # fmt: skip
_NEEDED = ("finished_requests", "prompt_tokens", "generation_tokens")


def _intervals(history: ReplicaHistory, gpus: int) -> _Intervals:
    """Between the grid times at which a new scrape is seen."""
    scraped = history.scraped_seconds
    new = np.flatnonzero(np.isfinite(scraped))
    new = new[np.concatenate(([True], np.diff(scraped[new]) > 0.0))] if len(new) else new
    before, after = new[:-1], new[1:]
    seconds = scraped[after] - scraped[before]

    def between(values: FloatArray) -> FloatArray:
        """Mean over grid times after `before` up to `after`."""
        known = np.isfinite(values)
        total = np.concatenate(([0.0], np.cumsum(np.where(known, values, 0.0))))
        count = np.concatenate(([0], np.cumsum(known)))
        number = count[after + 1] - count[before + 1]
        return np.where(number > 0, (total[after + 1] - total[before + 1]) / np.maximum(number, 1), np.nan)

    def of_gpus(name: str) -> FloatArray:
        """Mean of all cards that a pod holds at a time, between."""
        columns = [getattr(gpu, name) for gpu in history.gpus]
        return between(_mean(columns)) if columns else np.full(len(after), np.nan)

    engine = history.engine
    running = engine["running"]
    lowest = [gpu.limit_watts for gpu in history.gpus]
    return _Intervals(
        start_seconds=scraped[before],
        seconds=seconds,
        change={name: engine[name][after] - engine[name][before] for name in _COUNTED},
        mean={name: (engine[name][after] + engine[name][before]) / 2.0 for name in ("running", "kv_usage")},
        least_running=np.minimum(running[after], running[before]),
        gpu_watts=between(_watts(history, gpus)),
        clock_mhz=of_gpus("clock_mhz"),
        limit_watts=np.fmin.reduce(lowest)[after] if lowest else np.full(len(after), np.nan),
        utilisation=of_gpus("utilisation"),
    )


def _watts(history: ReplicaHistory, gpus: int) -> FloatArray:
    """Mean of one card; NaN where not exactly all have watts."""
    if history.kepler_watts is not None:
        return history.kepler_watts / gpus
    if not history.gpus:
        return np.full(len(history.times_seconds), np.nan)
    watts = np.vstack([gpu.watts for gpu in history.gpus])
    whole = np.isfinite(watts).sum(axis=0) == gpus
    return np.where(whole, np.where(np.isfinite(watts), watts, 0.0).sum(axis=0) / gpus, np.nan)


def _mean(columns: Sequence[FloatArray]) -> FloatArray:
    stacked = np.vstack(columns)
    known = np.isfinite(stacked)
    count = known.sum(axis=0)
    return np.where(count > 0, np.where(known, stacked, 0.0).sum(axis=0) / np.maximum(count, 1), np.nan)


def _broken(intervals: _Intervals, gpu: GpuSpec) -> list[Reason | None]:
    """Why each interval can be in no window; the first reason that holds."""
    change = intervals.change
    longest = max(MOST_GAP_SECONDS, MOST_GAP_INTERVALS * float(np.median(intervals.seconds)))
    with np.errstate(invalid="ignore"):
        fell = np.any([change[name] < 0.0 for name in _COUNTED], axis=0)
        missing = np.any([~np.isfinite(change[name]) for name in _NEEDED], axis=0) | ~np.isfinite(intervals.batch)
        moved = np.abs(np.diff(intervals.limit_watts, prepend=intervals.limit_watts[:1])) > 1.0
        checks = [
            (intervals.seconds > longest, Reason.GAP),
            (fell, Reason.RESTARTED),
            (missing, Reason.MISSING),
            ((intervals.least_running < 1.0) | (change["generation_tokens"] <= 0.0), Reason.IDLE),
            (~(intervals.gpu_watts > 0.0), Reason.NO_WATTS),
            (_stuck(intervals), Reason.STUCK),
            (moved, Reason.LIMIT_CHANGED),
            (intervals.limit_watts < AT_LIMIT * gpu.tdp_watts, Reason.CAPPED),
        ]
    found: list[Reason | None] = [None] * len(intervals.seconds)
    for bad, reason in checks:
        for index in np.flatnonzero(bad):
            found[index] = found[index] or reason
    return found


def _stuck(intervals: _Intervals) -> npt.NDArray[np.bool_]:
    """Watts that stay the same, away from the limit, while the load moves."""
    watts, load = intervals.gpu_watts, intervals.tokens_per_second
    same = np.abs(np.diff(watts)) <= STUCK_EQUAL * np.abs(watts[:-1])
    bad = np.zeros(len(watts), dtype=np.bool_)
    start = 0
    for stop in [*(np.flatnonzero(~same) + 1).tolist(), len(watts)]:
        run = slice(start, stop)
        if stop - start >= STUCK_TICKS and not watts[start] >= AT_LIMIT * intervals.limit_watts[start]:
            low, high = np.nanmin(load[run]), np.nanmax(load[run])
            bad[run] = high - low > STUCK_LOAD_MOVE * high
        start = stop
    return bad


def _run(
    history: ReplicaHistory, intervals: _Intervals, start: int, stop: int, gpu: GpuSpec
) -> tuple[SteadyRun, Reason | None]:
    """The run of a window, and why it cannot be used after all."""
    rows = slice(start, stop)
    weights = intervals.seconds[rows]
    seconds = float(weights.sum())
    total = {name: float(values[rows].sum()) for name, values in intervals.change.items()}

    def mean(values: FloatArray) -> float:
        known = np.isfinite(values[rows])
        return float(np.average(values[rows][known], weights=weights[known])) if known.any() else math.nan

    batch, tokens, requests = mean(intervals.batch), total["generation_tokens"], total["finished_requests"]
    decodes = total["inter_token_count"]
    run = SteadyRun(
        namespace=history.namespace,
        pod=history.pod,
        start_seconds=float(intervals.start_seconds[start]),
        seconds=seconds,
        batch=batch,
        tokens_per_second=tokens / seconds,
        inter_token_seconds=total["inter_token_seconds_sum"] / decodes if decodes > 0.0 else batch * seconds / tokens,
        requests_per_second=requests / seconds,
        prompt_tokens=total["prompt_tokens"] / requests if requests > 0.0 else math.nan,
        output_tokens=tokens / requests if requests > 0.0 else math.nan,
        gpu_watts=mean(intervals.gpu_watts),
        clock_mhz=mean(intervals.clock_mhz),
        limit_watts=mean(intervals.limit_watts),
        kv_usage=mean(intervals.mean["kv_usage"]),
        hit_ratio=total["cached_prompt_tokens"] / total["prompt_tokens"] if total["prompt_tokens"] > 0.0 else math.nan,
    )
    limit = run.limit_watts if math.isfinite(run.limit_watts) else gpu.tdp_watts
    slow = run.clock_mhz < LEAST_CLOCK * gpu.max_clock_mhz and run.gpu_watts < LEAST_CLOCK * limit
    checks = (
        (_hardly_busy(run, total, intervals, rows), Reason.IDLE),
        (requests < LEAST_REQUESTS, Reason.FEW_REQUESTS),
        (total["preemptions"] > MOST_PREEMPTED * requests, Reason.PREEMPTED),
        (run.hit_ratio > MOST_HITS, Reason.PREFIX),
        (decodes < LEAST_TIMED * (tokens - requests), Reason.SPECULATIVE),
        (slow, Reason.CLOCKED),
    )
    return run, next((reason for bad, reason in checks if bad), None)


def _hardly_busy(run: SteadyRun, total: Mapping[str, float], intervals: _Intervals, rows: slice) -> bool:
    """Whether the engine paused between requests, so that watts are not those of the batch.

    From a mean of `BUSY_DECODES` on it never does. Below, steps times their mean length and the cards' use must both
    say so where they are known, and one must be: steps are weighted with their decodes, which makes them look longer.
    """
    if run.batch >= BUSY_DECODES:
        return False
    use = intervals.utilisation[rows]
    shares = [float(use.mean())] if np.isfinite(use).all() else []
    if math.isfinite(total["iteration_count"]) and total["inter_token_count"] > 0.0:
        shares.append(total["iteration_count"] * run.inter_token_seconds / run.seconds)
    return min(shares, default=0.0) < LEAST_BUSY
