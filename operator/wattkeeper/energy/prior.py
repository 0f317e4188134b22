"""The physical prior: seconds and joules of a step as positive sums of what it does, fitted to measured runs.

    seconds = sum_k t_k exp(theta_k + delta_k,gpu)
    joules = sum_k (seconds of term k) p_k,gpu / reference,    p = 1 / (1 + exp(-(start_k + phi_k + psi_k,gpu)))

with t_k the terms of `energy.terms` in seconds at the data sheet's figures and p_k the share of the card's power limit
that is drawn while term k runs. Joules are per GPU and over a reference power, so that they have the scale of seconds.
All parts are positive, so that both estimates rise with every kind of work by their form, and watts, their ratio, are
a mean of the shares weighed by time: never above the limit. Each GPU type has its own deviations delta and psi, held
near zero: a type without data goes by the common values. The shares start from what single kernels were measured to
draw (`terms.POWER_SHARES`), and stay there where runs say little.

The fit takes the pseudo-Huber loss of ln(measured / estimated) of seconds, joules and watts together, as runs bound by
something else are far off, and a ridge on theta, delta, phi and psi. Method: L-BFGS with the exact gradient; no
randomness.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import optimize, special

from wattkeeper.domain.workload import FloatArray

REFERENCE_POWER_SHARE = 0.6
"""Joules are taken relative to this share of the card's power limit, about what light decode draws."""
HUBER_WIDTH_LOG = 0.15
"""Residuals beyond this count in proportion to their size instead of its square."""
RIDGE_COMMON = 0.005
"""Pull of theta and phi towards 0, per row."""
RIDGE_GPU = 0.01
"""Pull of a GPU type's deviations towards 0, per row; both chosen on the development rows (docs/accuracy/energy.md)."""
WATTS_WEIGHT = 4.0
"""Of watts in the loss, beside 1 for seconds and 1 for joules: their errors are about half as large."""
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
    terms: FloatArray, gpu: Sequence[str], seconds_log: FloatArray, share_log: FloatArray, *, power_shares: FloatArray,
    used: Sequence[int], ridge: tuple[float, float] = (RIDGE_COMMON, RIDGE_GPU),
) -> tuple[Prior, Prior]:  # fmt: skip
    """Joules (over the reference power) and seconds of a step that fit N rows best; see the module for the loss.

    `seconds_log` and `share_log` (N,) are ln of the measured seconds and of the measured watts over the power limit;
    `power_shares` (K,), above 0 and below 1, is where the share of each column of `terms` (N, K) starts.
    """
    names = sorted(set(gpu))
    columns = terms[:, list(used)]
    count, size = columns.shape
    member = np.array([names.index(each) for each in gpu])
    start = special.logit(power_shares[list(used)])
    pull = HUBER_WIDTH_LOG**2 * np.array([ridge[0], *([ridge[1]] * len(names))])[:, None]

    def cost(flat: FloatArray) -> tuple[float, FloatArray]:
        found = flat.reshape(2, 1 + len(names), size)
        scale, share = found[0, 0] + found[0, 1:], special.expit(start + found[1, 0] + found[1, 1:])
        seconds = np.exp(scale)[member] * columns
        joules = seconds * share[member]
        in_seconds, in_joules = seconds.sum(axis=1), joules.sum(axis=1)
        late, hot = np.log(in_seconds) - seconds_log, np.log(in_joules / in_seconds) - share_log
        loss, slope = 0.0, []
        for error, weight in ((late, 1.0), (late + hot, 1.0), (hot, WATTS_WEIGHT)):
            root = np.sqrt(1.0 + np.square(error / HUBER_WIDTH_LOG))
            loss += weight * HUBER_WIDTH_LOG**2 * float((root - 1.0).mean())
            slope.append(weight * error / root / count)
        of_joules = (slope[1] + slope[2])[:, None] * joules / in_joules[:, None]
        of_seconds = (slope[0] - slope[2])[:, None] * seconds / in_seconds[:, None]
        gradient = np.empty_like(found)
        for row, each in enumerate((of_joules + of_seconds, of_joules * (1.0 - share)[member])):
            gradient[row, 1:] = [each[member == index].sum(axis=0) for index in range(len(names))]
            gradient[row, 0] = gradient[row, 1:].sum(axis=0)
        return loss + float((pull * np.square(found)).sum()) / 2, (gradient + pull * found).ravel()

    begin: npt.NDArray[np.float64] = np.zeros(2 * size * (1 + len(names)))
    found = optimize.minimize(
        cost, begin, jac=True, method="L-BFGS-B", bounds=[(-_BOUND, _BOUND)] * len(begin),
        options={"maxiter": 2000, "maxfun": 4000, "ftol": 1e-12, "gtol": 1e-9},
    ).x.reshape(2, 1 + len(names), size)  # fmt: skip

    def prior(common: FloatArray, own: FloatArray) -> Prior:
        return Prior(
            theta=tuple(map(float, common)),
            gpu_deviation={name: tuple(map(float, row - common)) for name, row in zip(names, own, strict=True)},
            used=tuple(used),
        )

    theta, scale = found[0, 0], found[0, 0] + found[0, 1:]
    drawn, own = special.log_expit(start + found[1, 0]), special.log_expit(start + found[1, 0] + found[1, 1:])
    reference = np.log(REFERENCE_POWER_SHARE)
    return prior(theta + drawn - reference, scale + own - reference), prior(theta, scale)
