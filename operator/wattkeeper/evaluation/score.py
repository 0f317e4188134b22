"""How far predictions are from the truth, and how often they would have misled an operator."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from wattkeeper.domain.workload import FloatArray
from wattkeeper.evaluation.methods import Latencies
from wattkeeper.evaluation.runs import SLO_TPOT_SECONDS, SLO_TTFT_SECONDS, Run
from wattkeeper.queueing.types import BoolArray

PLANNED_LOAD = 0.82
"""Up to here the operator plans; beyond, percentiles are no stable numbers."""
BANDS = ((0.0, 0.35), (0.35, 0.65), (0.65, 0.82), (0.82, 0.92), (0.92, np.inf))
MARGINS = (0.0, 0.1, 0.2, 0.5)
PREEMPTING = 0.001
"""Preemptions per request from which on a run counts as preempting."""
_WORST = 99.0
"""Errors are capped here, since a method may say that there is no steady state."""
_RESAMPLES = 500
_INTERVAL = (2.5, 97.5)
_POISSON_TOLERANCE = 0.25


class ArrivalClass(StrEnum):
    """What the arrivals of a run are to the latency model."""

    POISSON = "Poisson-like"
    """No burstier than Poisson at any window, as far as the path can tell."""
    BURSTY = "bursty, kind in training"
    RECORDED = "recorded, kind not in training"


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Median and 90th percentile of relative errors, in percent, with bootstrap intervals over points (95 %)."""

    count: int
    median: float
    p90: float
    median_interval: tuple[float, float]
    p90_interval: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Share:
    """A share in percent with its bootstrap interval over points (95 %)."""

    of: int
    """Cases that it is a share of."""
    percent: float
    interval: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Verdicts:
    """What comes of believing a method at a margin, over all SLO pairs."""

    false_met: Share
    """Of what was accepted: violates the SLO in truth."""
    false_missed: Share
    """Of what meets the SLO in truth: was rejected."""
    edge: Share
    """Of the points: TTFT or TPOT exceeds the prediction by more than the margin. The risk at the cheapest accepted."""


def arrival_class(run: Run) -> ArrivalClass:
    """By kind where it is recorded, else by the dispersion measured on the path.

    An index from k windows scatters by sqrt(2 / (k - 1)): three times that is allowed above the tolerance.
    """
    if run.point.arrivals.kind == "recorded":
        return ArrivalClass.RECORDED
    seen = run.workload.dispersion
    windows, index = np.array(seen.windows_seconds), np.array(seen.index)
    number = np.maximum(run.point.requests / run.workload.requests_per_second / windows, 2.0)
    near = index - 1.0 <= _POISSON_TOLERANCE + 3.0 * np.sqrt(2.0 / (number - 1.0))
    return ArrivalClass.POISSON if near.all() else ArrivalClass.BURSTY


def relative_errors(predicted: FloatArray, real: FloatArray) -> FloatArray:
    """|predicted / real - 1| where the truth is known; at most `_WORST`."""
    known = np.isfinite(real)
    return np.minimum(np.abs(predicted[known] / real[known] - 1.0), _WORST)


def spread(errors: FloatArray, *, seed: int = 0) -> Spread | None:
    """Of relative errors; None where there are none."""
    if not len(errors):
        return None
    percent = 100.0 * errors
    drawn = percent[np.random.default_rng(seed).integers(len(percent), size=(_RESAMPLES, len(percent)))]
    middle, high = np.percentile(drawn, (50.0, 90.0), axis=1)
    return Spread(
        count=len(percent),
        median=float(np.median(percent)),
        p90=float(np.percentile(percent, 90.0)),
        median_interval=_interval(middle),
        p90_interval=_interval(high),
    )


def verdicts(predicted: Latencies, real: Latencies, *, margin: float, seed: int = 0) -> Verdicts:
    """Over every pair of SLO targets, at predictions times 1 + `margin`; points of unknown truth are left out."""
    known = np.isfinite(real.ttft_seconds) & np.isfinite(real.tpot_seconds)
    ttft, tpot = (values[known] * (1.0 + margin) for values in (predicted.ttft_seconds, predicted.tpot_seconds))
    real_ttft, real_tpot = real.ttft_seconds[known], real.tpot_seconds[known]
    accepted, feasible = _met(ttft, tpot), _met(real_ttft, real_tpot)
    exceeds = (real_ttft > ttft * (1.0 + 1e-9)) | (real_tpot > tpot * (1.0 + 1e-9))
    return Verdicts(
        false_met=share((accepted & ~feasible).sum(axis=1), accepted.sum(axis=1), seed=seed),
        false_missed=share((feasible & ~accepted).sum(axis=1), feasible.sum(axis=1), seed=seed),
        edge=share(exceeds.astype(np.float64), np.ones(len(exceeds)), seed=seed),
    )


def share(part: FloatArray, whole: FloatArray, *, seed: int = 0) -> Share:
    """Sum of `part` over sum of `whole`, both per point; 0 where there is nothing."""
    number = len(whole)
    total = float(np.sum(whole))
    if not total:
        return Share(of=0, percent=0.0, interval=(0.0, 0.0))
    weights = np.random.default_rng(seed).multinomial(number, np.full(number, 1.0 / number), size=_RESAMPLES)
    drawn = 100.0 * (weights @ part) / np.maximum(weights @ whole, 1e-12)
    return Share(of=round(total), percent=100.0 * float(np.sum(part)) / total, interval=_interval(drawn))


def loads(runs: Sequence[Run]) -> FloatArray:
    """Rate of each path over simulated saturation: near the load that was designed, not quite it where rates wander."""
    return np.array([run.workload.requests_per_second / run.saturation_rps for run in runs])


def band(runs: Sequence[Run], low: float, high: float) -> BoolArray:
    """Which runs have a load in [low, high)."""
    at = loads(runs)
    return np.asarray((at >= low) & (at < high))


def _met(ttft: FloatArray, tpot: FloatArray) -> BoolArray:
    """Whether each point meets each SLO; shape (N, pairs)."""
    pairs = list(itertools.product(SLO_TTFT_SECONDS, SLO_TPOT_SECONDS))
    return np.stack([(ttft <= goal) & (tpot <= pace) for goal, pace in pairs], axis=1)


def _interval(drawn: FloatArray) -> tuple[float, float]:
    low, high = np.percentile(drawn, _INTERVAL)
    return float(low), float(high)
