"""On-line refit of a service's iteration coefficients from what its engines measure of themselves.

With the mean step of `physics.step_windows` (p prefill tokens, n decodes, kv resident tokens) and the prior's own
ratios dA / dT and dN / dT kept,

    t = m0 d0 + mT dT (p (1 + dA/dT a) + dN/dT n) + mK dKV kv          a = attention products per prefill token

is linear in the multipliers m of the prior's coefficients, each scaled to the clock of its window. They are found by
non-negative least squares of relative errors, with Huber weights against outliers and exponential forgetting. A weak
prior (each multiplier within half of the common level) decides where the load does not.

KV tokens are seen at scrapes only. Between scrapes of spacing T the context of a sequence forgets its state in about a
life D (answer tokens x step time), so the mean of the two ends is drawn towards n times the slow mean context by
1 - tanh(x) / x, x = T / 2D: the best linear estimate for an exponentially forgetting process. Without that, dKV comes
out too small and dT too large.

A sudden shift (another driver, a neighbour, a slower link) is found where cumulated residuals turn; windows before it
are brought to the new level and count for little from then on.

On simulated engines (tests/physics) a term that counts as identified lies within 6 % of the truth. That takes scrapes
every 2 s, or KV reads that make up a good part of a step; else dKV stays weak, while step times at the loads seen come
out within 3 %.

What is left of the sampling error does not average out with more windows, so at most `EFFECTIVE_WINDOWS` of them (times
the mean weight that their scraped KV tokens got) count towards the standard errors; with that, standard errors agree
with the errors found on simulated engines.
"""

import enum
import math
from dataclasses import dataclass, field, replace

import numpy as np
from scipy import optimize

from wattkeeper.domain.workload import FloatArray
from wattkeeper.physics import step
from wattkeeper.physics.profile import IterationCoefficients
from wattkeeper.physics.step_windows import StepWindow

HALF_LIFE_SECONDS = 3600.0
MOST_WINDOWS = 2000
LEAST_WINDOWS = 24
"""Fewer windows than this change nothing."""
EFFECTIVE_WINDOWS = 16.0
SHIFT_WINDOWS = 24
"""A sudden shift needs this many windows on both sides of it to be believed."""
PRIOR_SPREAD = 0.5
IDENTIFIED_ERROR = 0.06
"""Standard error, relative, up to which a coefficient counts as known from the load."""
POOR_FIT = 0.10
"""Spread of single windows around the fit beyond which the form does not describe this engine."""
DRIFT = 0.03
"""Smallest sudden shift of step times that is told from chance; smaller ones are left to forgetting."""
LEAST_NOISE = 0.002
CONTEXT_WINDOWS = 60.0
"""Memory of the slow mean context, in windows."""
_HUBER = 1.345
_MAD = 1.4826
_ROUNDS = 12
_MOST_BREAKS = 3
_OLD_WINDOWS = 8.0
"""Windows from before a sudden shift, brought to the new level, count together as much as this many new ones."""
_CLEAR_BREAK = 3.0
"""In standard deviations of a random path's end; chance alone exceeds 1.36 once in twenty times."""
_SMALLEST, _LARGEST = 1e-6, 1e12
"""Numbers outside are no measurements."""
_TERMS = ("d0", "dT", "dKV")


class RefitStatus(enum.Enum):
    """How far the load of a service tells its coefficients."""

    TOO_FEW_WINDOWS = "TooFewWindows"
    POOR_FIT = "PoorFit"
    LOAD_TOO_STEADY = "LoadTooSteady"
    """The level is known, but not how it divides among the terms: `Estimate.weak` names them."""
    IDENTIFIED = "Identified"


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What the windows so far say; numbers are finite."""

    status: RefitStatus
    iteration: IterationCoefficients
    """Best coefficients to plan with: the prior's where there are too few windows or the fit is poor, else refitted,
    terms that the load does not tell at the prior's share of the level."""
    prior: IterationCoefficients
    level: float = 1.0
    """Measured over prior step time: known even where the terms are not."""
    standard_errors: dict[str, float] = field(default_factory=dict)
    """Relative, of d0, dT and dKV; `PRIOR_SPREAD` where only the prior speaks."""
    weak: tuple[str, ...] = ()
    """Terms whose standard error exceeds `IDENTIFIED_ERROR`."""
    condition_number: float = math.inf
    """Of the three terms as seen by the load, each scaled to length one; large = they move together."""
    spread: float = 0.0
    """One-sigma relative distance of a window from the fit."""
    shift: float = 1.0
    """Step times since the last sudden shift over those before, at equal load; 1 where there was none."""
    windows: int = 0
    largest_tokens: float = 0.0
    """Tokens per step (prefill and decode) up to which the load has shown the engine."""
    largest_kv_tokens: float = 0.0
    covariance: tuple[tuple[float, ...], ...] = ()
    """Of the multipliers of d0, dT and dKV of `prior`; empty without a fit."""

    @property
    def confidence(self) -> float:
        """0 (nothing but the prior) .. 1 (every term known to a third of `IDENTIFIED_ERROR` or better)."""
        if self.status in (RefitStatus.TOO_FEW_WINDOWS, RefitStatus.POOR_FIT):
            return 0.0
        worst, best = max(self.standard_errors.values()), IDENTIFIED_ERROR / 3.0
        return min(1.0, max(0.0, (PRIOR_SPREAD - worst) / (PRIOR_SPREAD - best)))

    def step_error(
        self,
        *,
        prefill_tokens: float,
        decode_sequences: float,
        kv_tokens: float,
        attention_products: float = 0.0,
        clock_ratio: float = 1.0,
    ) -> float:
        """One-sigma relative error of the step time that `iteration` gives for this step; grows outside the load seen.

        Arguments as of `physics.step.step_seconds`. Without a fit it is `PRIOR_SPREAD`.
        """
        work = {
            "prefill_tokens": prefill_tokens,
            "decode_sequences": decode_sequences,
            "kv_tokens": kv_tokens,
            "attention_products": attention_products,
            "clock_ratio": clock_ratio,
        }
        if not self.covariance:
            return PRIOR_SPREAD
        seconds = np.array(_prior_terms(self.prior, **work))
        total = float(step.step_seconds(self.iteration, **work))
        return math.sqrt(max(float(seconds @ np.array(self.covariance) @ seconds), 0.0)) / total


@dataclass(frozen=True, kw_only=True)
class Refit:
    """Windows of one service under one set of engine arguments; start afresh when those are rolled out anew.

    The prior needs a positive fixed term and no negative ones (ValueError otherwise); a term that it has at zero stays.
    """

    prior: IterationCoefficients
    half_life_seconds: float = HALF_LIFE_SECONDS
    rows: FloatArray = field(default_factory=lambda: np.zeros((0, 8)))
    """Per window: time, measured step seconds, seconds of the three terms under the prior, tokens, KV tokens, and the
    weight that its scraped KV tokens got."""
    context_tokens: float = 0.0
    """Slow mean of KV tokens at the scrapes; with the next one it makes the slow mean context."""
    context_sequences: float = 0.0

    def __post_init__(self) -> None:
        terms = _prior_terms(
            self.prior,
            prefill_tokens=1.0,
            decode_sequences=1.0,
            kv_tokens=1.0,
            attention_products=1.0,
            clock_ratio=1.0,
        )
        if not (all(math.isfinite(term) and term >= 0 for term in terms) and terms[0] > 0):
            raise ValueError(f"a refit needs a prior with a positive fixed term and no negative ones, not {self.prior}")

    def observe(self, window: StepWindow, *, answer_tokens: float, products_per_prefill_token: float = 0.0) -> "Refit":
        """The state after one more window of any engine of the service.

        `answer_tokens` is the mean answer length; `products_per_prefill_token` the mean of chunk (history + chunk / 2)
        over chunk, which is E[l^2] / 2 E[l] without prefix hits. Windows that are not finite change nothing.
        """
        if not _usable(window, answer_tokens, products_per_prefill_token):
            return self
        weight = 1.0 / min(len(self.rows) + 1.0, CONTEXT_WINDOWS)
        context = self.context_tokens + weight * (window.kv_tokens - self.context_tokens)
        sequences = self.context_sequences + weight * (window.sampled_sequences - self.context_sequences)
        slow = context / sequences
        kept = _kept_share(window.spacing_seconds, answer_tokens * window.step_seconds)
        kv_tokens = slow * window.decode_sequences + kept * (window.kv_tokens - slow * window.sampled_sequences)
        terms = _prior_terms(
            self.prior,
            prefill_tokens=window.prefill_tokens,
            decode_sequences=window.decode_sequences,
            kv_tokens=max(kv_tokens, 0.0),
            attention_products=window.prefill_tokens * products_per_prefill_token,
            clock_ratio=window.clock_ratio,
        )
        tokens = window.prefill_tokens + window.decode_sequences
        row = np.array([[window.time_seconds, window.step_seconds, *terms, tokens, kv_tokens, kept]])
        return replace(
            self,
            rows=np.concatenate([self.rows, row])[-MOST_WINDOWS:],
            context_tokens=context,
            context_sequences=sequences,
        )

    def estimate(self) -> Estimate:
        """The best coefficients now; never raises, whatever was observed."""
        rows = self.rows
        if len(rows) < LEAST_WINDOWS:
            return Estimate(
                status=RefitStatus.TOO_FEW_WINDOWS, iteration=self.prior, prior=self.prior, windows=len(rows)
            )
        ages = rows[:, 0].max() - rows[:, 0]
        weight = np.exp2(-ages / self.half_life_seconds)
        terms = rows[:, 2:5]
        shares = terms / rows[:, 1:2]
        most = EFFECTIVE_WINDOWS * float(weight @ rows[:, 7] / weight.sum())
        multipliers, covariance, spread = _fit(shares, weight, most)
        shift = 1.0
        for _ in range(_MOST_BREAKS):
            at, factor = _break(shares @ multipliers)
            if factor == 1.0:
                break
            shift *= factor
            shares[:at] /= factor
            weight[:at] *= min(1.0, _OLD_WINDOWS / weight[:at].sum())
            multipliers, covariance, spread = _fit(shares, weight, most)
        level = _level(shares, weight)
        known = np.asarray(terms.any(axis=0))
        errors = {
            name: float(math.sqrt(covariance[j, j]) / max(multipliers[j], 0.2 * level))
            for j, name in enumerate(_TERMS)
            if known[j]
        }
        weak = tuple(name for name, error in errors.items() if error > IDENTIFIED_ERROR)
        status = RefitStatus.LOAD_TOO_STEADY if weak else RefitStatus.IDENTIFIED
        if spread > POOR_FIT:
            status = RefitStatus.POOR_FIT
        trusted = status is not RefitStatus.POOR_FIT
        return Estimate(
            status=status,
            iteration=_scaled(self.prior, multipliers) if trusted else self.prior,
            prior=self.prior,
            level=level,
            standard_errors=errors,
            weak=weak,
            condition_number=_condition(shares[:, known], weight),
            spread=spread,
            shift=shift,
            windows=len(rows),
            largest_tokens=float(rows[:, 5].max()),
            largest_kv_tokens=float(rows[:, 6].max()),
            covariance=tuple(tuple(line) for line in covariance.tolist()) if trusted else (),
        )


def _level(shares: FloatArray, weight: FloatArray) -> float:
    """Measured step time over the prior's, in the middle of the windows."""
    return _median(1.0 / shares.sum(axis=1), weight)


def _break(fitted: FloatArray) -> tuple[int, float]:
    """(first window after it, measured over fitted after it against before) of the clearest sudden shift.

    Cumulated deviations from the mean are largest where the level changes. A factor of exactly 1: no shift that is
    clear enough and larger than `DRIFT`.
    """
    residual = -np.log(np.maximum(fitted, 1e-9))
    middle = float(np.median(residual))
    reach = 10.0 * max(_MAD * float(np.median(np.abs(residual - middle))), LEAST_NOISE)
    clipped = np.clip(residual, middle - reach, middle + reach)
    path = np.cumsum(clipped - clipped.mean())
    inner = np.abs(path[SHIFT_WINDOWS - 1 : -SHIFT_WINDOWS])
    if not len(inner):
        return 0, 1.0
    at = int(inner.argmax()) + SHIFT_WINDOWS
    factor = math.exp(float(np.median(residual[at:]) - np.median(residual[:at])))
    noise = np.concatenate([clipped[:at] - np.median(clipped[:at]), clipped[at:] - np.median(clipped[at:])]).std()
    clear = inner.max() > _CLEAR_BREAK * max(float(noise), LEAST_NOISE) * math.sqrt(len(fitted))
    return (at, factor) if clear and abs(factor - 1.0) > DRIFT else (0, 1.0)


def _fit(shares: FloatArray, weight: FloatArray, most: float) -> tuple[FloatArray, FloatArray, float]:
    """(multipliers, their covariance, spread): non-negative least squares of 1 = shares @ m with Huber weights.

    At most `most` windows count as independent.
    """
    level = _level(shares, weight)
    prior_precision = np.eye(3) / (PRIOR_SPREAD * level) ** 2
    robust = np.ones(len(shares))
    multipliers = np.full(3, level)
    spread = math.inf
    for _ in range(_ROUNDS):
        residual = 1.0 - shares @ multipliers
        spread = max(_MAD * _median(np.abs(residual), weight), LEAST_NOISE)
        robust = np.minimum(1.0, _HUBER * spread / np.maximum(np.abs(residual), 1e-12))
        information = _independent(weight * robust, most) / spread**2
        normalised = weight * robust / (weight @ robust)
        root = np.sqrt(information * normalised)[:, None]
        design = np.concatenate([root * shares, np.sqrt(prior_precision)])
        wanted = np.concatenate([root[:, 0], np.full(3, 1.0 / PRIOR_SPREAD)])
        before = multipliers
        multipliers = optimize.nnls(design, wanted)[0]
        if np.allclose(multipliers, before, rtol=1e-6, atol=1e-9):
            break
    data = (shares * (information * normalised)[:, None]).T @ shares
    return multipliers, np.linalg.inv(data + prior_precision), spread


def _independent(weight: FloatArray, most: float) -> float:
    """How many independent windows the weighted ones are worth."""
    return float(min(weight.sum() ** 2 / np.square(weight).sum(), most))


def _prior_terms(
    prior: IterationCoefficients,
    *,
    prefill_tokens: float,
    decode_sequences: float,
    kv_tokens: float,
    attention_products: float,
    clock_ratio: float,
) -> tuple[float, float, float]:
    """Seconds of the fixed, the per-token and the KV part of a step under the prior."""
    d0, dt, dn, dkv, da = (float(each) for each in step.at_clock(prior, clock_ratio))
    return d0, dt * prefill_tokens + dn * decode_sequences + da * attention_products, dkv * kv_tokens


def _scaled(prior: IterationCoefficients, multipliers: FloatArray) -> IterationCoefficients:
    m0, mt, mk = (float(each) for each in multipliers)
    return replace(
        prior,
        d0_seconds=prior.d0_seconds * m0,
        dt_seconds_per_token=prior.dt_seconds_per_token * mt,
        dn_seconds_per_decode=None if prior.dn_seconds_per_decode is None else prior.dn_seconds_per_decode * mt,
        dkv_seconds_per_kv_token=prior.dkv_seconds_per_kv_token * mk,
        da_seconds_per_token_squared=prior.da_seconds_per_token_squared * mt,
        host_seconds=prior.host_seconds * m0,
        host_seconds_per_sequence=prior.host_seconds_per_sequence * mt,
        exchange_seconds_per_token=prior.exchange_seconds_per_token * mt,
    )


def _kept_share(spacing_seconds: float, life_seconds: float) -> float:
    """Weight of the scraped KV tokens against the slow context, 0..1."""
    x = 0.5 * spacing_seconds / life_seconds
    return math.tanh(x) / x if x > 1e-6 else 1.0


def _usable(window: StepWindow, answer_tokens: float, products: float) -> bool:
    numbers = [*vars(window).values(), answer_tokens, products]
    if not all(math.isfinite(number) and number < _LARGEST for number in numbers):
        return False
    positive = (window.step_seconds, window.decode_sequences, window.sampled_sequences, answer_tokens)
    others = (products, window.spacing_seconds, window.prefill_tokens, window.kv_tokens)
    return min(positive) > _SMALLEST and min(others) >= 0 and _SMALLEST < window.clock_ratio <= 1.0


def _median(values: FloatArray, weight: FloatArray) -> float:
    order = np.argsort(values)
    running = np.cumsum(weight[order])
    return float(values[order[np.searchsorted(running, 0.5 * running[-1])]])


def _condition(shares: FloatArray, weight: FloatArray) -> float:
    design = shares * np.sqrt(weight)[:, None]
    length = np.linalg.norm(design, axis=0)
    if bool(np.any(length == 0)):
        return math.inf
    return float(min(np.linalg.cond(design / length), 1e12))
