"""How much throughput a power limit leaves: a knee with two numbers per card and workload, and what is known of them.

    throughput(cap) / throughput(uncapped) = smooth-min(1, (cap / knee)^steepness)

with smooth-min(1, r) = (1 + r^-k)^(-1/k) in place of min(1, r). Above the knee the card draws less than the limit and
nothing happens; below it the clock falls. The laws of `physics.power` and `physics.step` say where the knee of a
typical card lies and how steep the fall is (`law`); how far a card is from that, in ln(knee / reference watts) and in
ln(steepness), is a Gaussian process each: linear in phase, routed experts, log concurrency and drawn over rated watts,
with a deviation of the card that all its curves share and one of the curve itself. The reference is the power drawn
without a limit where that was measured, else the card's rating.

Readings under a limit condition the two numbers (maximum a posteriori, with the curvature there as their spread). So a
card without data gets the physical law with a wide spread, and `slowest` leans to the safe side of it.
"""

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import optimize

from wattkeeper.domain.workload import FloatArray
from wattkeeper.physics import power, step
from wattkeeper.physics.profile import IterationCoefficients

READING_NOISE_LOG = 0.02
"""Sigma of ln(relative throughput) of one reading: request boundaries and the uncapped run that it is relative to."""
_OWN_SIGMAS = np.array([0.5, 0.7])
"""Width of the prior under which one training curve alone is fitted."""
_SHARPNESS = (4.0, 8.0, 12.0, 20.0, 40.0)
_CARD_SIGMAS = (0.03, 0.1, 0.2, 0.4)
_CURVE_SIGMAS = (0.03, 0.08, 0.15, 0.3)
_SLOPE_SIGMAS = (0.05, 0.15, 0.4)
_TYPICAL_SIGMA = 0.1
_TYPICAL_SPREAD_LOG = 1.5
"""Weak prior of the deviations' sigmas: few cards are known, and their likelihood alone would say anything."""
_LEVEL_SIGMA = 1.0
_DRAWS = 400
_FLOOR_SHARE = 130.0 / 700.0
"""Static over rated watts, of the catalogue's H100; no source tells it for other cards."""
_RATIOS = np.linspace(0.15, 1.0, 400)
_SHARES = np.linspace(0.45, 1.2, 16)
"""Limits over the reference at which the law is turned into a knee."""


@dataclass(frozen=True, kw_only=True)
class CapFacts:
    """What is known before a limit is set."""

    curve: str
    gpu: str
    model: str
    tdp_watts: float
    highest_cap_watts: float
    """The limit without which the curve's throughput is told; a card may take more than its rating."""
    prefill: bool
    moe: bool
    concurrency: float
    uncapped_watts: float | None
    """Drawn per GPU under this load without a limit; None: not measured."""

    @property
    def reference_watts(self) -> float:
        """What the knee is a share of."""
        return self.tdp_watts if self.uncapped_watts is None else self.uncapped_watts

    def columns(self) -> FloatArray:
        """Of the linear part, (4,)."""
        drawn = 0.0 if self.uncapped_watts is None else self.uncapped_watts / self.tdp_watts - 0.95
        return np.array([float(self.prefill), float(self.moe), np.log2(self.concurrency) / 5.0, drawn])


def at_clock(facts: CapFacts, clock_ratio: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Throughput and watts over those at the largest clock, (N,) each, by the laws that planning rests on.

    A prompt step is bound by arithmetic, a decode step by memory but for the share `IterationCoefficients` has.
    """
    clock_share = IterationCoefficients.dt_clock_share if facts.prefill else IterationCoefficients.d0_clock_share
    voltage_share = power.PREFILL_VOLTAGE_SHARE if facts.prefill else power.DECODE_VOLTAGE_SHARE
    seconds, voltage = step.stretch(clock_share, clock_ratio), power.voltage_squared(clock_ratio)
    floor = _FLOOR_SHARE * facts.tdp_watts / facts.reference_watts
    watts = floor * np.sqrt(voltage) + (1.0 - floor) * (1.0 - voltage_share + voltage_share * voltage) / seconds
    return 1.0 / seconds, watts


def law(facts: CapFacts, cap_watts: FloatArray) -> FloatArray:
    """Relative throughput (N,) at the clock whose watts fit under the limit."""
    throughput, watts = at_clock(facts, _RATIOS)
    return np.asarray(np.interp(cap_watts / facts.reference_watts, watts, throughput))


@dataclass(frozen=True, kw_only=True, eq=False)
class CapCurve:
    """Readings of one curve; arrays (N,)."""

    facts: CapFacts
    cap_watts: FloatArray
    relative: FloatArray
    """Throughput over the uncapped one."""

    def take(self, index: npt.NDArray[np.int_]) -> "CapCurve":
        """Some of the readings."""
        return CapCurve(facts=self.facts, cap_watts=self.cap_watts[index], relative=self.relative[index])


@dataclass(frozen=True, kw_only=True)
class Knee:
    """What is believed of one curve: mean (2,) and covariance (2, 2) of ln(knee / reference) and ln(steepness)."""

    reference_watts: float
    sharpness: float
    mean: FloatArray
    covariance: FloatArray

    def relative(self, cap_watts: FloatArray) -> FloatArray:
        """Expected throughput under limits over the uncapped one, (N,), in (0, 1)."""
        return relative(cap_watts / self.reference_watts, self.mean, self.sharpness)

    def quantiles(self, cap_watts: FloatArray, shares: Sequence[float]) -> FloatArray:
        """(len(shares), N) quantiles over what is not known of the knee, from fixed draws; a reading adds its noise."""
        draws = np.random.default_rng(0).standard_normal((_DRAWS, 2))
        root = np.linalg.cholesky(self.covariance + 1e-12 * np.eye(2))
        found = [relative(cap_watts / self.reference_watts, self.mean + root @ each, self.sharpness) for each in draws]
        return np.asarray(np.quantile(found, shares, axis=0))

    def slowest(self, cap_watts: FloatArray) -> FloatArray:
        """Throughput that nine in ten such curves reach, as far as the spread of the knee is right."""
        return np.asarray(self.quantiles(cap_watts, (0.1,))[0])


def relative(cap_over_reference: FloatArray, knee: FloatArray, sharpness: float) -> FloatArray:
    """The knee law for ln(knee) and ln(steepness) in `knee` (2,)."""
    fall = np.exp(knee[1]) * (np.log(cap_over_reference) - knee[0])
    return np.asarray(np.exp(-np.logaddexp(0.0, -sharpness * fall) / sharpness))


class CapModel:
    """The Gaussian processes of both numbers, learnt from curves."""

    def __init__(self, curves: Sequence[CapCurve]) -> None:
        if not curves:
            raise ValueError("at least one curve is needed")
        self._facts = [curve.facts for curve in curves]
        trials = [(sharpness, [_own(curve, sharpness) for curve in curves]) for sharpness in _SHARPNESS]
        self.sharpness, found = min(trials, key=lambda trial: sum(each.error for each in trial[1]))
        self._deviations = np.array([each.mean for each in found]) - self._by_law(self._facts)
        self._noise = np.array([np.diag(each.covariance) for each in found])
        self._sigmas = [self._likeliest(number) for number in (0, 1)]

    def knee(self, facts: CapFacts, readings: CapCurve | None = None) -> Knee:
        """What is believed of a curve, cold or after readings under a limit."""
        moments = np.array([self._moments(facts, number) for number in (0, 1)])
        mean, covariance = self._by_law([facts])[0] + moments[:, 0], np.diag(moments[:, 1])
        if readings is not None and len(readings.cap_watts):
            mean, covariance = _conditioned(readings, self.sharpness, mean, np.sqrt(moments[:, 1]))
        return Knee(reference_watts=facts.reference_watts, sharpness=self.sharpness, mean=mean, covariance=covariance)

    def _by_law(self, facts: Sequence[CapFacts]) -> FloatArray:
        return np.array([_law_knee(each, self.sharpness) for each in facts])

    def _moments(self, facts: CapFacts, number: int) -> tuple[float, float]:
        sigmas = self._sigmas[number]
        between = _kernel(*_alike(self._facts, self._facts), sigmas) + np.diag(self._noise[:, number])
        across = _kernel(*_alike([facts], self._facts), sigmas)[0]
        weights = np.linalg.solve(between, across)
        variance = float(_kernel(*_alike([facts], [facts]), sigmas)[0, 0] - weights @ across)
        return float(weights @ self._deviations[:, number]), max(variance, 1e-6)

    def _likeliest(self, number: int) -> tuple[float, float, float]:
        values, alike = self._deviations[:, number], _alike(self._facts, self._facts)

        def likelihood(sigmas: tuple[float, float, float]) -> float:
            root = np.linalg.cholesky(_kernel(*alike, sigmas) + np.diag(self._noise[:, number]))
            scaled = np.linalg.solve(root, values)
            typical = sum((np.log(each / _TYPICAL_SIGMA) / _TYPICAL_SPREAD_LOG) ** 2 for each in sigmas[:2])
            return float(-0.5 * scaled @ scaled - np.log(np.diag(root)).sum() - 0.5 * typical)

        return max(itertools.product(_CARD_SIGMAS, _CURVE_SIGMAS, _SLOPE_SIGMAS), key=likelihood)


def _alike(left: Sequence[CapFacts], right: Sequence[CapFacts]) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Products of the linear part, and where card and curve are the same."""
    linear = np.array([each.columns() for each in left]) @ np.array([each.columns() for each in right]).T
    card = np.array([[a.gpu == b.gpu for b in right] for a in left], dtype=np.float64)
    curve = np.array([[a.curve == b.curve for b in right] for a in left], dtype=np.float64)
    return linear, card, curve


def _kernel(
    linear: FloatArray, same_card: FloatArray, same_curve: FloatArray, sigmas: tuple[float, float, float]
) -> FloatArray:
    card, curve, slope = sigmas
    return np.asarray(_LEVEL_SIGMA**2 + slope**2 * linear + card**2 * same_card + curve**2 * same_curve)


@dataclass(frozen=True, kw_only=True)
class _Own:
    """What one curve says alone."""

    mean: FloatArray
    covariance: FloatArray
    error: float
    """Mean squared log error that is left."""


@functools.cache
def _own(curve: CapCurve, sharpness: float) -> _Own:
    mean, covariance = _conditioned(curve, sharpness, _law_knee(curve.facts, sharpness), _OWN_SIGMAS)
    shown = relative(curve.cap_watts / curve.facts.reference_watts, mean, sharpness)
    return _Own(mean=mean, covariance=covariance, error=float(np.mean((np.log(shown / curve.relative)) ** 2)))


@functools.cache
def _law_knee(facts: CapFacts, sharpness: float) -> FloatArray:
    """ln(knee / reference) and ln(steepness) of the law."""
    target = np.log(law(facts, _SHARES * facts.reference_watts))

    def misses(knee: FloatArray) -> FloatArray:
        return np.asarray(np.log(relative(_SHARES, knee, sharpness)) - target)

    return np.asarray(optimize.least_squares(misses, np.array([-0.25, 0.0])).x)


def _conditioned(
    readings: CapCurve, sharpness: float, mean: FloatArray, sigmas: FloatArray
) -> tuple[FloatArray, FloatArray]:
    shares, measured = readings.cap_watts / readings.facts.reference_watts, np.log(readings.relative)

    def misses(knee: FloatArray) -> FloatArray:
        reading = (np.log(relative(shares, knee, sharpness)) - measured) / READING_NOISE_LOG
        return np.concatenate([reading, (knee - mean) / sigmas])

    found = optimize.least_squares(misses, mean)
    slopes = np.asarray(found.jac, dtype=np.float64)
    return np.asarray(found.x), np.asarray(np.linalg.inv(slopes.T @ slopes), dtype=np.float64)
