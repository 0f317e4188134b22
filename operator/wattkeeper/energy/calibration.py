"""What a few measured points of one deployment teach the model: conditioning instead of retraining.

A deployment's residual ln(measured / predicted) is a random function of log2 batch: a level, plus a smooth shape, plus
the noise of a reading. How large these are, and over how many doublings of the batch the shape turns, is estimated when
the model is trained, on deployments that were held out (`CalibrationKernel`, kept in the model file). Given readings,
the residual at every other batch follows as the posterior of a Gaussian process (Rasmussen and Williams, Gaussian
Processes for Machine Learning, 2006, eq. 2.23 and 2.24):

    k(a, b) = level^2 + shape^2 exp(-((log2 a - log2 b) / length)^2 / 2)
    mean = k(x, X) (k(X, X) + noise^2 / weight)^-1 errors,    var = k(x, x) - k(x, X) (...)^-1 k(X, x)

Without readings this is the prior: no shift, and the full spread.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wattkeeper.domain.workload import FloatArray

_JITTER = 1e-9
"""Added to variances, so that two equal readings without noise leave the matrix invertible."""


@dataclass(frozen=True, kw_only=True)
class CalibrationKernel:
    """Prior of a deployment's residual as a function of log2 batch; deviations are of natural logarithms."""

    level_sd_log: float
    """Of the shift that all batches of a deployment share."""
    shape_sd_log: float
    """Of what changes with the batch."""
    length_log2_batch: float
    """Doublings of the batch over which the shape turns."""
    noise_sd_log: float
    """Of a reading of weight 1 around that function."""

    def __post_init__(self) -> None:
        deviations = (self.level_sd_log, self.shape_sd_log, self.noise_sd_log)
        if not all(math.isfinite(each) and each >= 0.0 for each in deviations):
            raise ValueError("the deviations of a calibration kernel must be finite and not negative")
        if not (math.isfinite(self.length_log2_batch) and self.length_log2_batch > 0.0):
            raise ValueError("the length of a calibration kernel must be finite and above zero")

    @property
    def prior_sd_log(self) -> float:
        """Spread of the residual before anything is measured."""
        return math.hypot(self.level_sd_log, self.shape_sd_log)

    def covariance(self, left: FloatArray, right: FloatArray) -> FloatArray:
        """Prior covariance (N, M) between batches (N,) and (M,)."""
        distance = np.log2(left)[:, None] - np.log2(right)[None, :]
        shape = np.exp(-0.5 * np.square(distance / self.length_log2_batch))
        return np.asarray(self.level_sd_log**2 + self.shape_sd_log**2 * shape)


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One measured operating point of a deployment."""

    batch: float
    """Sequences that decode together."""
    error_log: float
    """ln(measured / predicted) of the uncalibrated prediction at that batch."""
    weight: float = 1.0
    """How many independent readings it stands for: the noise variance is divided by it."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.batch) and self.batch > 0.0):
            raise ValueError(f"a reading needs a finite batch above zero, not {self.batch}")
        if not math.isfinite(self.error_log):
            raise ValueError(f"a reading needs a finite error, not {self.error_log}")
        if not (math.isfinite(self.weight) and self.weight > 0.0):
            raise ValueError(f"a reading needs a finite weight above zero, not {self.weight}")


def condition(
    kernel: CalibrationKernel, readings: Sequence[Reading], batch: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Posterior mean and standard deviation of the residual (natural log) at each batch; both (N,).

    Raises ValueError: a batch is not finite or not above zero.
    """
    asked = _batches(batch)
    if not readings:
        return np.zeros(len(asked)), np.full(len(asked), kernel.prior_sd_log)
    measured = np.array([each.batch for each in readings])
    cross = kernel.covariance(asked, measured)
    solved = np.linalg.solve(_noisy(kernel, readings), cross.T)
    errors = np.array([each.error_log for each in readings])
    variance = kernel.prior_sd_log**2 - np.einsum("ij,ji->i", cross, solved)
    return np.asarray(solved.T @ errors), np.sqrt(np.maximum(variance, 0.0))


def most_informative(
    kernel: CalibrationKernel, readings: Sequence[Reading], reachable_batch: FloatArray, weights: FloatArray
) -> int:
    """Index of the reachable batch that is best measured next.

    The best lowers the mean posterior variance over all reachable batches most; `weights` (N,) say how much each of
    them matters, for example the share of time spent there. Raises ValueError: no batch, or batches or weights that
    are not usable.
    """
    asked = _batches(reachable_batch)
    if not len(asked) or weights.shape != asked.shape:
        raise ValueError("at least one reachable batch is needed, and one weight for each")
    if not (np.isfinite(weights).all() and (weights >= 0.0).all() and weights.sum() > 0.0):
        raise ValueError("weights must be finite, not negative, and not all zero")
    return int(np.argmax(variance_reductions(kernel, readings, asked) @ (weights / weights.sum())))


def variance_reductions(kernel: CalibrationKernel, readings: Sequence[Reading], batch: FloatArray) -> FloatArray:
    """By how much a reading at batch i would lower the posterior variance at batch j; (N, N)."""
    asked = _batches(batch)
    covariance = kernel.covariance(asked, asked)
    if readings:
        cross = kernel.covariance(asked, np.array([each.batch for each in readings]))
        covariance = covariance - cross @ np.linalg.solve(_noisy(kernel, readings), cross.T)
    return np.asarray(np.square(covariance) / (np.diag(covariance)[:, None] + kernel.noise_sd_log**2 + _JITTER))


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What is known of one deployment: the kernel of the model in use, and the readings so far."""

    kernel: CalibrationKernel
    readings: tuple[Reading, ...] = ()

    def factor_and_spread(self, batch: FloatArray) -> tuple[FloatArray, FloatArray]:
        """What to multiply the prediction with at each batch, and the standard deviation (log) that is left; (N,)."""
        mean, spread = condition(self.kernel, self.readings, batch)
        return np.exp(mean), spread


def _batches(batch: FloatArray) -> FloatArray:
    values = np.asarray(batch, dtype=np.float64)
    if values.ndim != 1 or not (np.isfinite(values) & (values > 0.0)).all():
        raise ValueError("batches must be one row of finite numbers above zero")
    return values


def _noisy(kernel: CalibrationKernel, readings: Sequence[Reading]) -> FloatArray:
    """Covariance of the readings, their noise included."""
    measured = np.array([each.batch for each in readings])
    noise = kernel.noise_sd_log**2 / np.array([each.weight for each in readings]) + _JITTER
    return kernel.covariance(measured, measured) + np.diag(noise)
