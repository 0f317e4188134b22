"""Iteration coefficients from steps whose composition and time are known: weighted non-negative least squares.

    t = d0 + dT * prefill tokens + dN * decode sequences + dKV * KV tokens + dA * attention products      [seconds]

Errors are relative (each row is divided by its time). Terms that the rows do not tell can be held at a given value or
pulled towards it; both are said in the result. Standard errors are those of weighted least squares among the terms that
came out positive, with the rows as independent as their number says: they are lower bounds where rows share causes.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from scipy import optimize

from wattkeeper.domain.errors import WattkeeperError
from wattkeeper.domain.workload import FloatArray
from wattkeeper.physics.catalogue_entries import TERMS
from wattkeeper.physics.profile import IterationCoefficients

_HUBER = 1.345
_MAD = 1.4826
_ROUNDS = 20
_LEAST_SPREAD = 0.005


class FitError(WattkeeperError):
    """The rows cannot be fitted; says why and what would help."""


@dataclass(frozen=True, kw_only=True)
class StepRows:
    """Steps of known composition, (N,) each; `seconds` are positive."""

    prefill_tokens: FloatArray
    decode_sequences: FloatArray
    kv_tokens: FloatArray
    attention_products: FloatArray
    seconds: FloatArray

    def __len__(self) -> int:
        return len(self.seconds)

    def design(self) -> FloatArray:
        """Columns in the order of `TERMS`: what each coefficient is multiplied with, (N, 5)."""
        one = np.ones_like(self.seconds)
        columns = (one, self.prefill_tokens, self.decode_sequences, self.kv_tokens, self.attention_products)
        return np.stack(columns, axis=1)


@dataclass(frozen=True, kw_only=True)
class Term:
    """One coefficient of a fit, in seconds per unit."""

    value: float
    standard_error: float | None
    """Relative; None: held at a given value, or came out zero."""
    fitted: bool
    pulled: bool = False
    """A given value had a say in it."""


@dataclass(frozen=True, kw_only=True)
class IterationFit:
    """Coefficients and how well they describe the rows; errors are relative to the measured time."""

    terms: dict[str, Term] = field(default_factory=dict)
    rows: int
    mape: float
    median_error: float
    p90_error: float
    largest_error: float
    r_squared: float
    """Of times, not of relative errors."""
    condition: float
    """Of the fitted columns scaled to length one: large = the rows do not tell the terms apart."""
    predicted: FloatArray

    @property
    def relative_error(self) -> float:
        """One-sigma relative error of step time: the root mean square that the mean absolute error of a normal has."""
        return self.mape * math.sqrt(math.pi / 2.0)

    def value(self, name: str) -> float:
        """A coefficient in seconds per unit."""
        return self.terms[name].value

    def iteration(self, like: IterationCoefficients) -> IterationCoefficients:
        """The coefficients, with the clock shares of `like`."""
        return replace(
            like,
            d0_seconds=self.value("d0"),
            dt_seconds_per_token=self.value("dt"),
            dn_seconds_per_decode=self.value("dn"),
            dkv_seconds_per_kv_token=self.value("dkv"),
            da_seconds_per_token_squared=self.value("da"),
        )


@dataclass(frozen=True, kw_only=True)
class Pull:
    """A value that a term is drawn to, and its relative one-sigma spread."""

    value: float
    spread: float


def fit(
    rows: StepRows,
    *,
    held: Mapping[str, float] | None = None,
    pulls: Mapping[str, Pull] | None = None,
    robust: bool = False,
) -> IterationFit:
    """Coefficients of the rows. `robust`: rows that lie far off count less (Huber).

    Raises FitError: fewer rows than free terms, or figures that are no step times.
    """
    held, pulls = held or {}, {name: pull for name, pull in (pulls or {}).items() if pull.value > 0}
    free = [name for name in TERMS if name not in held]
    design = rows.design()
    _check(rows, design, free)
    index = {name: position for position, name in enumerate(TERMS)}
    fixed = sum((held[name] * design[:, index[name]] for name in held), np.zeros(len(rows)))
    left = design[:, [index[name] for name in free]]
    shares, wanted = left / rows.seconds[:, None], 1.0 - fixed / rows.seconds
    scale = np.linalg.norm(shares, axis=0)
    seen = scale > 0
    scale = np.where(seen, scale, 1.0)
    shares = shares / scale
    weight = np.ones(len(rows))
    values, spread = np.zeros(len(free)), 1.0
    for _ in range(_ROUNDS if robust else 2):
        root = np.sqrt(weight)
        extra, extra_wanted = _pull_rows(free, pulls, scale, spread)
        matrix = np.concatenate([shares * root[:, None], extra])
        values = optimize.nnls(matrix, np.concatenate([wanted * root, extra_wanted]))[0]
        residual = wanted - shares @ values
        spread = max(_MAD * float(np.median(np.abs(residual))), _LEAST_SPREAD)
        if robust:
            weight = np.minimum(1.0, _HUBER * spread / np.maximum(np.abs(residual), 1e-12))
    errors = _standard_errors(matrix, values, residual, weight, len(free))
    unit = dict(zip(free, values / scale, strict=True))
    terms = {
        name: Term(value=held[name], standard_error=None, fitted=False)
        if name in held
        else Term(
            value=float(unit[name]),
            standard_error=errors[free.index(name)],
            fitted=bool(seen[free.index(name)]),
            pulled=name in pulls,
        )
        for name in TERMS
    }
    seen_shares = shares[:, seen]
    return assessed(rows, terms, condition=float(np.linalg.cond(seen_shares)) if seen_shares.size else 1.0)


def _check(rows: StepRows, design: FloatArray, free: list[str]) -> None:
    if not (np.isfinite(design).all() and np.isfinite(rows.seconds).all()):
        raise FitError("a row has a number that is not finite: leave that row out")
    if len(rows) and (rows.seconds.min() <= 0 or design.min() < 0):
        raise FitError("a row has a step time that is not positive, or a negative amount of work: leave that row out")
    if len(rows) < len(free):
        raise FitError(f"{len(rows)} rows cannot tell {len(free)} terms: give more measurements, at other loads")


def _pull_rows(
    free: list[str], pulls: Mapping[str, Pull], scale: FloatArray, spread: float
) -> tuple[FloatArray, FloatArray]:
    """A row per pulled term: as certain, next to rows of the given spread, as the pull says."""
    matrix, wanted = np.zeros((len(pulls), len(free))), np.zeros(len(pulls))
    for row, (name, pull) in enumerate(pulls.items()):
        column = free.index(name)
        strength = spread / pull.spread
        matrix[row, column] = strength / (pull.value * scale[column])
        wanted[row] = strength
    return matrix, wanted


def _standard_errors(
    matrix: FloatArray, values: FloatArray, residual: FloatArray, weight: FloatArray, free: int
) -> list[float | None]:
    active = values > 0
    freedom = max(len(residual) - int(active.sum()), 1)
    variance = float((weight * residual**2).sum()) / freedom
    inverse = np.linalg.pinv(matrix[:, active].T @ matrix[:, active]) * variance
    deviations = iter(np.sqrt(np.diag(inverse)) / values[active])
    return [float(next(deviations)) if active[position] else None for position in range(free)]


def assessed(rows: StepRows, terms: dict[str, Term], *, condition: float) -> IterationFit:
    """How well given terms describe the rows."""
    predicted = rows.design() @ np.array([terms[name].value for name in TERMS])
    error = np.abs(predicted / rows.seconds - 1.0)
    total = float(((rows.seconds - rows.seconds.mean()) ** 2).sum())
    unexplained = float(((rows.seconds - predicted) ** 2).sum())
    return IterationFit(
        terms=terms,
        rows=len(rows),
        mape=float(error.mean()),
        median_error=float(np.median(error)),
        p90_error=float(np.quantile(error, 0.9)),
        largest_error=float(error.max()),
        r_squared=1.0 - unexplained / total if total > 0 else 0.0,
        condition=condition,
        predicted=predicted,
    )
