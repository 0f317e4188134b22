"""A Gaussian process over operating points: what is alike behaves alike, and how sure one may be.

    k = amplitude^2 exp(-sum_d ((x_d - x'_d) / length_d)^2 / 2)
        + sum over groups g, where both belong to the same member:
              level_g^2 + shape_g^2 exp(-((b - b') / length_g)^2 / 2)
        + noise^2 where it is the same row

with x the facts (standardised on the training rows) and b log2 of the batch. Groups are what runs have in common
beyond their facts: model, backbone, task and GPU, deployment. Hyperparameters are those of the largest marginal
likelihood of the training rows under weak priors (Rasmussen and Williams 2006, eq. 5.8 and 5.9), from one fixed start.
Residuals may be bounded: runs that are far off are bound by something else than their like.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import linalg, optimize

from wattkeeper.domain.workload import FloatArray

_START_LENGTH, _START_AMPLITUDE, _START_EFFECT, _START_NOISE = 3.0, 0.15, 0.06, 0.06
_START_BATCH_LENGTH = 2.0
_PRIOR_SD = 1.0
"""Of the logarithm of a hyperparameter around its start."""
_LONGEST_LOG = 4.0
_MOST_ITERATIONS = 60
_JITTER = 1e-6


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """N rows: facts (N, D), log2 of the batch (N,), and the member of each of G groups (N, G)."""

    facts: FloatArray
    log2_batch: FloatArray
    groups: npt.NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.facts)

    def __getitem__(self, index: npt.NDArray[np.generic]) -> "Inputs":
        return Inputs(facts=self.facts[index], log2_batch=self.log2_batch[index], groups=self.groups[index])

    def joined(self, other: "Inputs") -> "Inputs":
        """The rows of both."""
        return Inputs(
            facts=np.vstack([self.facts, other.facts]),
            log2_batch=np.concatenate([self.log2_batch, other.log2_batch]),
            groups=np.vstack([self.groups, other.groups]),
        )


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """Hyperparameters (natural logarithms) and the scale of the facts."""

    centre: FloatArray
    spread: FloatArray
    lengths_log: FloatArray
    """(D,)"""
    amplitude_log: float
    effects_log: FloatArray
    """(G, 3): level, shape, length in log2 batch."""
    noise_log: float

    def scaled(self, facts: FloatArray) -> FloatArray:
        """Facts in units of their length."""
        return np.asarray((facts - self.centre) / self.spread / np.exp(self.lengths_log))

    def covariance(self, left: Inputs, right: Inputs) -> FloatArray:
        """Without noise; (N, M)."""
        distance = _squares(self.scaled(left.facts), self.scaled(right.facts))
        total = np.exp(2.0 * self.amplitude_log - 0.5 * distance)
        apart = np.square(left.log2_batch[:, None] - right.log2_batch[None, :])
        for column, (level, shape, length) in enumerate(self.effects_log):
            same = left.groups[:, column][:, None] == right.groups[:, column][None, :]
            total += same * (np.exp(2 * level) + np.exp(2 * shape - 0.5 * apart * np.exp(-2 * length)))
        return np.asarray(total)

    @property
    def variance(self) -> float:
        """Prior variance of the function at any point."""
        return float(np.exp(2 * self.amplitude_log) + np.exp(2 * self.effects_log[:, :2]).sum())


@dataclass(frozen=True, kw_only=True)
class Process:
    """A kernel conditioned on rows with known residuals."""

    kernel: Kernel
    rows: Inputs
    weights: FloatArray
    """(N,): K^-1 residual."""
    factor: FloatArray
    """(N, N): lower Cholesky factor of K with noise."""

    def mean(self, ask: Inputs) -> FloatArray:
        """Posterior mean of the residual, (M,)."""
        return np.asarray(self.kernel.covariance(ask, self.rows) @ self.weights)

    def mean_and_sd(self, ask: Inputs) -> tuple[FloatArray, FloatArray]:
        """Posterior mean and standard deviation (of the function, without noise), both (M,)."""
        cross = self.kernel.covariance(ask, self.rows)
        half = linalg.solve_triangular(self.factor, cross.T, lower=True, check_finite=False)
        variance = self.kernel.variance - np.square(half).sum(axis=0)
        return np.asarray(cross @ self.weights), np.sqrt(np.maximum(variance, 0.0))


def condition(kernel: Kernel, rows: Inputs, residual: FloatArray, *, bound: float = np.inf) -> Process:
    """The process that knows `residual` (N,) at `rows`, within +-`bound`."""
    covariance = kernel.covariance(rows, rows)
    covariance[np.diag_indices_from(covariance)] += np.exp(2 * kernel.noise_log) + _JITTER
    factor = linalg.cholesky(covariance, lower=True, check_finite=False)
    weights = linalg.cho_solve((factor, True), np.clip(residual, -bound, bound), check_finite=False)
    return Process(kernel=kernel, rows=rows, weights=weights, factor=factor)


def fit(rows: Inputs, residual: FloatArray, *, iterations: int = _MOST_ITERATIONS, bound: float = np.inf) -> Process:
    """Hyperparameters of the largest posterior for N rows, and the process conditioned on them (see `condition`)."""
    residual = np.clip(residual, -bound, bound)
    centre, spread = rows.facts.mean(axis=0), rows.facts.std(axis=0)
    spread = np.where(spread > 1e-9, spread, 1.0)
    facts = (rows.facts - centre) / spread
    squares = [np.square(column[:, None] - column[None, :]) for column in facts.T]
    apart = np.square(rows.log2_batch[:, None] - rows.log2_batch[None, :])
    same = [column[:, None] == column[None, :] for column in rows.groups.T]
    dimensions, groups = facts.shape[1], len(same)
    start = np.concatenate([
        np.full(dimensions, np.log(_START_LENGTH)), [np.log(_START_AMPLITUDE)],
        np.tile(np.log([_START_EFFECT, _START_EFFECT, _START_BATCH_LENGTH]), groups), [np.log(_START_NOISE)],
    ])  # fmt: skip
    count = len(rows)
    diagonal = np.diag_indices(count)

    def cost(flat: FloatArray) -> tuple[float, FloatArray]:
        lengths, amplitude = flat[:dimensions], flat[dimensions]
        effects, noise = flat[dimensions + 1 : -1].reshape(groups, 3), flat[-1]
        distance = sum((np.exp(-2 * length) * square for length, square in zip(lengths, squares, strict=True)), 0.0)
        smooth = np.exp(2 * amplitude - 0.5 * distance)
        shapes = [
            mask * np.exp(2 * shape - 0.5 * apart * np.exp(-2 * length))
            for mask, (_, shape, length) in zip(same, effects, strict=True)
        ]
        total = smooth + sum(shapes)
        for mask, (level, _, _) in zip(same, effects, strict=True):
            total += np.exp(2 * level) * mask
        total[diagonal] += np.exp(2 * noise) + _JITTER
        factor = linalg.cholesky(total, lower=True, check_finite=False)
        inverse, _ = linalg.lapack.dpotri(factor, lower=1)
        inverse = np.tril(inverse) + np.tril(inverse, -1).T
        weights = inverse @ residual
        slope = inverse - np.outer(weights, weights)  # d(cost) = sum(slope * dK) / 2
        pull = (flat - start) / _PRIOR_SD
        value = 0.5 * residual @ weights + np.log(np.diag(factor)).sum() + 0.5 * pull @ pull
        weighted = slope * smooth
        gradient = [0.5 * np.exp(-2 * length) * np.vdot(weighted, square) for length, square in
                    zip(lengths, squares, strict=True)]  # fmt: skip
        gradient.append(weighted.sum())
        for mask, shape, (level, _, length) in zip(same, shapes, effects, strict=True):
            with_shape = slope * shape
            gradient += [
                np.exp(2 * level) * slope[mask].sum(), with_shape.sum(),
                0.5 * np.exp(-2 * length) * np.vdot(with_shape, apart),
            ]  # fmt: skip
        gradient.append(np.exp(2 * noise) * np.trace(slope))
        return float(value), np.array(gradient) + pull / _PRIOR_SD

    bounds = [(value - _LONGEST_LOG, value + _LONGEST_LOG) for value in start]
    found = optimize.minimize(
        cost, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": iterations, "ftol": 1e-6}
    ).x
    kernel = Kernel(
        centre=centre, spread=spread, lengths_log=found[:dimensions], amplitude_log=float(found[dimensions]),
        effects_log=found[dimensions + 1 : -1].reshape(groups, 3), noise_log=float(found[-1]),
    )  # fmt: skip
    return condition(kernel, rows, residual)


def _squares(left: FloatArray, right: FloatArray) -> FloatArray:
    """Squared distances between rows, (N, M)."""
    both = np.square(left).sum(axis=1)[:, None] + np.square(right).sum(axis=1)[None, :] - 2.0 * left @ right.T
    return np.asarray(np.maximum(both, 0.0))


def members(*columns: Sequence[str]) -> npt.NDArray[np.str_]:
    """Group columns side by side, (N, G)."""
    return np.stack([np.asarray(column, dtype=np.str_) for column in columns], axis=1)
