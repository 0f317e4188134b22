"""The physical prior: a positive sum of what a step does, fitted to measured runs of a training set.

    ln y = ln sum_k exp(theta_k + delta_k,gpu) t_k

with t_k the terms of `energy.terms` in seconds at the data sheet's figures. y is the seconds of a step, or its joules
per GPU over a reference power (so that both have the same scale and theta_k = 0 means "as the data sheet says, at that
power"). All parts are positive, so that the estimate rises with every kind of work by its form. Each GPU type has its
own deviation delta, held near zero: a type without data goes by theta alone.

The fit takes the pseudo-Huber loss of ln(measured / estimated), as runs bound by something else are far off, and a
ridge on theta and delta. Method: L-BFGS with the exact gradient; no randomness.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import optimize

from wattkeeper.domain.workload import FloatArray

REFERENCE_POWER_SHARE = 0.6
"""Joules are taken relative to this share of the card's power limit, about what light decode draws."""
HUBER_WIDTH_LOG = 0.15
"""Residuals beyond this count in proportion to their size instead of its square."""
RIDGE_COMMON = 0.005
"""Pull of theta towards 0, per row."""
RIDGE_GPU = 0.01
"""Pull of a GPU type's deviation towards 0, per row; both chosen on the development rows (docs/accuracy/energy.md)."""
_BOUND = 8.0


@dataclass(frozen=True, kw_only=True)
class Prior:
    """Fitted logarithmic scales of the terms."""

    theta: tuple[float, ...]
    gpu_deviation: dict[str, tuple[float, ...]]
    used: tuple[int, ...]
    """Columns of the term matrix that take part."""

    def log_value(self, terms: FloatArray, gpu: Sequence[str]) -> FloatArray:
        """Ln of the estimate (N,) for a term matrix (N, K) and the GPU type of each row."""
        return np.asarray(np.log(self.parts(terms, gpu).sum(axis=1)))

    def parts(self, terms: FloatArray, gpu: Sequence[str]) -> FloatArray:
        """What each used term adds, (N, len(used))."""
        names = np.asarray(gpu)
        scale = np.tile(np.array(self.theta), (len(terms), 1))
        for name, deviation in self.gpu_deviation.items():
            scale[names == name] += np.array(deviation)
        return np.asarray(np.exp(scale) * terms[:, list(self.used)])


def fit(
    terms: FloatArray, gpu: Sequence[str], target_log: FloatArray, *, used: Sequence[int],
    ridge: tuple[float, float] = (RIDGE_COMMON, RIDGE_GPU), weight: FloatArray | None = None,
) -> Prior:  # fmt: skip
    """The prior that fits ln(target) of N rows best; see the module for loss and penalty."""
    names = sorted(set(gpu))
    columns = terms[:, list(used)]
    count, size = columns.shape
    member = np.array([names.index(each) for each in gpu])
    weights = np.full(count, 1.0 / count) if weight is None else weight / weight.sum()

    def cost(flat: FloatArray) -> tuple[float, FloatArray]:
        theta, delta = flat[:size], flat[size:].reshape(len(names), size)
        parts = np.exp(theta + delta[member]) * columns
        total = parts.sum(axis=1)
        error = (np.log(total) - target_log) / HUBER_WIDTH_LOG
        root = np.sqrt(1.0 + np.square(error))
        loss = HUBER_WIDTH_LOG**2 * float(weights @ (root - 1.0))
        slope = weights * HUBER_WIDTH_LOG * error / root
        each = slope[:, None] * parts / total[:, None]
        by_gpu = np.stack([each[member == index].sum(axis=0) for index in range(len(names))])
        pull = ridge[0] * HUBER_WIDTH_LOG**2, ridge[1] * HUBER_WIDTH_LOG**2
        value = loss + pull[0] * float(theta @ theta) / 2 + pull[1] * float(np.square(delta).sum()) / 2
        gradient = np.concatenate([each.sum(axis=0) + pull[0] * theta, (by_gpu + pull[1] * delta).ravel()])
        return value, gradient

    start: npt.NDArray[np.float64] = np.zeros(size * (1 + len(names)))
    found = optimize.minimize(
        cost, start, jac=True, method="L-BFGS-B", bounds=[(-_BOUND, _BOUND)] * len(start),
        options={"maxiter": 2000, "maxfun": 4000, "ftol": 1e-12, "gtol": 1e-9},
    )  # fmt: skip
    theta, delta = found.x[:size], found.x[size:].reshape(len(names), size)
    return Prior(
        theta=tuple(map(float, theta)),
        gpu_deviation={name: tuple(map(float, row)) for name, row in zip(names, delta, strict=True)},
        used=tuple(used),
    )
