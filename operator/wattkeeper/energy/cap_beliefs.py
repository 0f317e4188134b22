"""Throughput under a power limit by the law of clock and watts, with its numbers drawn instead of known.

At clock ratio r, with V(r) falling in a line from 1 to `voltage` at `voltage_ratio` and constant below,

    throughput(r) = 1 / (c / r + (1 - c) max(1, MEMORY_KNEE / r))
    watts(r)      = static V + (demand - static) (1 - a + a V^2) throughput(r)

(`physics.step`, `physics.power`; a is the share of dynamic energy that falls with the voltage). A card under a limit
runs at the clock whose watts fit; what it does at its highest limit is what throughput is relative to. Five numbers are
not known of a card and its load: c, static, the two of the voltage, and the watts that it would draw at full clock.

Each measured curve tells what they were there. An unseen curve is believed to be somewhere near one of these: draws
take a measured curve (those of the same card and the same phase more often) and move its numbers by the spread that
they may differ by. Readings weigh the draws by how well they foresee them (importance sampling; Robert and Casella,
Monte Carlo Statistical Methods, 2004, ch. 3). So one deep reading says much of all limits, and one where the limit
hardly bites says little.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy import optimize, special
from scipy.stats import qmc

from wattkeeper.domain.workload import FloatArray
from wattkeeper.energy.caps import CapCurve, CapFacts
from wattkeeper.physics import power, step

NUMBERS = ("logit c", "ln static / rated", "logit voltage ratio", "logit voltage", "ln demand / rated")
_DRAWS = 2048
_RATIOS = np.linspace(0.08, 1.0, 64)
_LEAST_VOLTAGE = 0.4
"""Over that at full clock; no card goes below."""
_CLOCK_SHARES = {True: 0.9, False: 0.35}
"""Prompts, decode: near those of `IterationCoefficients`, of which the logit is finite."""
_STATIC_SHARE, _VOLTAGE_RATIO, _VOLTAGE = 0.186, 0.4545, 0.76
"""As `physics.roofline` and `physics.power` assume them."""
_ASSUMED_SIGMAS = np.array([1.0, 0.5, 0.7, 0.7, 0.25])
"""By how much (one sigma) each of `NUMBERS` may be off the catalogue's assumption: c from 0.35 to 0.6, static by a
factor of 1.6, the voltage's bend from 0.45 to 0.62 and its depth from 0.76 to 0.86, the demand by a quarter."""
_CARD_SIGMAS = 0.7 * _ASSUMED_SIGMAS
"""By how much they may be off those of a measured curve."""
_SAME_CARD = 0.5
"""Two curves of one card differ by this share of `_CARD_SIGMAS`."""
_OTHER_PHASE_WEIGHT, _SAME_CARD_WEIGHT = 0.2, 4.0
_FIT_NOISE_LOG = 0.01
_NOISE_LOG = 0.012
"""Sigma of ln(relative throughput) of one reading, and of what the law leaves out."""
_AT_THE_LIMIT = 0.985
"""A card that draws more than this share of its highest limit would draw more without it."""
_KNOWN_WATTS_LOG = 0.01
_LEAST_OVER_STATIC = 0.01
_STARTS = 4


@dataclass(frozen=True, kw_only=True, eq=False)
class LimitBelief:
    """What is believed of one curve at J limits: draws of ln(relative throughput), and how likely each is."""

    cap_watts: FloatArray
    log_relative: FloatArray
    """(draws, J)."""
    log_weights: FloatArray
    """(draws,), the largest is 0."""

    def after(self, index: Sequence[int], relative: FloatArray) -> "LimitBelief":
        """After readings of the relative throughput at some of the limits."""
        if not len(index):
            return self
        missed = (self.log_relative[:, list(index)] - np.log(relative)) / _NOISE_LOG
        weights = self.log_weights - 0.5 * np.square(missed).sum(axis=1)
        return replace(self, log_weights=weights - weights.max())

    def quantiles(self, shares: Sequence[float]) -> FloatArray:
        """(len(shares), J) quantiles of the relative throughput; 0.5 is the prediction."""
        order = np.argsort(self.log_relative, axis=0)
        sorted_values = np.take_along_axis(self.log_relative, order, axis=0)
        below = np.cumsum(np.exp(self.log_weights)[order], axis=0)
        found = [(below < share * below[-1]).sum(axis=0) for share in shares]
        return np.exp(np.take_along_axis(sorted_values, np.array(found), axis=0))

    def most_informative(self) -> int:
        """Index of the limit whose reading lowers the variance over all limits most, as far as draws are Gaussian."""
        weights = np.exp(self.log_weights)
        weights = weights / weights.sum()
        deviations = self.log_relative - weights @ self.log_relative
        covariance = (deviations * weights[:, None]).T @ deviations
        gain = np.square(covariance) / (np.diag(covariance)[:, None] + _NOISE_LOG**2)
        return int(np.argmax(gain.sum(axis=1)))


class SampledLaw:
    """Draws of the law's numbers, learnt from curves whose uncapped watts were measured."""

    def __init__(self, curves: Sequence[CapCurve]) -> None:
        """Raises ValueError: no curve, or one without its uncapped watts."""
        if not curves or any(curve.facts.uncapped_watts is None for curve in curves):
            raise ValueError("at least one curve is needed, and the uncapped watts of all")
        self._facts = [curve.facts for curve in curves]
        self._numbers = np.array([fitted(curve) for curve in curves])

    def belief(self, facts: CapFacts, cap_watts: FloatArray) -> LimitBelief:
        """Before any reading of a curve under a limit, at `cap_watts` (J,)."""
        normal, uniform = _normal_draws()
        same = np.array([each.gpu == facts.gpu for each in self._facts])
        phase = np.array([each.prefill == facts.prefill for each in self._facts])
        of_card = np.array([sum(each.gpu == other.gpu for other in self._facts) for each in self._facts])
        chances = np.where(phase, 1.0, _OTHER_PHASE_WEIGHT) * np.where(same, _SAME_CARD_WEIGHT, 1.0) / of_card
        ends = np.cumsum(chances / chances.sum())
        picked = np.minimum(np.searchsorted(ends, uniform), len(ends) - 1)
        moved = normal * _CARD_SIGMAS * np.where(same, _SAME_CARD, 1.0)[picked][:, None]
        numbers = self._numbers[picked] + moved
        if facts.uncapped_watts is not None:
            known = np.log(facts.uncapped_watts / facts.tdp_watts)
            exact = known + _KNOWN_WATTS_LOG * normal[:, -1]
            numbers[:, -1] = np.maximum(numbers[:, -1], known) if _at_the_limit(facts) else exact
        return LimitBelief(
            cap_watts=cap_watts,
            log_relative=np.log(relative(numbers, facts, cap_watts)),
            log_weights=np.zeros(len(numbers)),
        )


def relative(numbers: FloatArray, facts: CapFacts, cap_watts: FloatArray) -> FloatArray:
    """Throughput under limits over that at the highest one, (n, J), for draws (n, 5) of `NUMBERS`."""
    shares = special.expit(numbers[:, [0, 2, 3]])
    clock_share, bend, depth = (shares[:, [column]] for column in range(3))
    voltage_floor = _LEAST_VOLTAGE + (1.0 - _LEAST_VOLTAGE) * depth
    demand = np.exp(numbers[:, [4]])
    static = np.minimum(np.exp(numbers[:, [1]]), 0.8 * demand)
    voltage = voltage_floor + (1.0 - voltage_floor) * np.maximum(0.0, (_RATIOS - bend) / (1.0 - bend))
    share = power.PREFILL_VOLTAGE_SHARE if facts.prefill else power.DECODE_VOLTAGE_SHARE
    memory = np.maximum(1.0, step.MEMORY_KNEE / _RATIOS)
    throughput = 1.0 / (clock_share / _RATIOS + (1.0 - clock_share) * memory)
    watts = static * voltage + (demand - static) * (1.0 - share + share * voltage**2) * throughput
    asked = np.append(cap_watts, facts.highest_cap_watts) / facts.tdp_watts
    found = _interpolated(asked, watts, throughput)
    # Below the smallest clock the card idles in between: what is left over its floor makes the throughput.
    room = np.maximum(asked - static * voltage_floor, _LEAST_OVER_STATIC)
    stretched = throughput[:, :1] * room / np.maximum(watts[:, :1] - static * voltage_floor, _LEAST_OVER_STATIC)
    found = np.where(asked < watts[:, :1], np.minimum(stretched, throughput[:, :1]), found)
    return np.asarray(found[:, :-1] / found[:, -1:])


def _interpolated(asked: FloatArray, x: FloatArray, y: FloatArray) -> FloatArray:
    """The y at `asked` (J,) for each row of rising x and of y, (n, R); the ends hold beyond them."""
    index = np.clip((x[:, :, None] <= asked).sum(axis=1) - 1, 0, x.shape[1] - 2)
    low, high = (np.take_along_axis(x, at, axis=1) for at in (index, index + 1))
    below, above = (np.take_along_axis(y, at, axis=1) for at in (index, index + 1))
    return np.asarray(below + (above - below) * np.clip((asked - low) / (high - low), 0.0, 1.0))


@functools.cache
def fitted(curve: CapCurve) -> FloatArray:
    """The numbers (5,) of one curve with its uncapped watts, no further from the catalogue's than it asks for."""
    facts = curve.facts
    drawn = (facts.tdp_watts if facts.uncapped_watts is None else facts.uncapped_watts) / facts.tdp_watts
    middle = np.array(
        [
            special.logit(_CLOCK_SHARES[facts.prefill]),
            np.log(_STATIC_SHARE),
            special.logit(_VOLTAGE_RATIO),
            special.logit((_VOLTAGE - _LEAST_VOLTAGE) / (1.0 - _LEAST_VOLTAGE)),
            np.log(drawn),
        ]
    )
    sigmas = _ASSUMED_SIGMAS.copy()
    if not _at_the_limit(facts):
        sigmas[-1] = _KNOWN_WATTS_LOG
    target = np.log(curve.relative)

    def misses(numbers: FloatArray) -> FloatArray:
        found = np.log(relative(numbers[None], facts, curve.cap_watts)[0])
        return np.concatenate([(found - target) / _FIT_NOISE_LOG, (numbers - middle) / sigmas])

    shifts = np.random.default_rng(0).standard_normal((_STARTS, len(middle))) * sigmas
    shifts[0] = 0.0
    best = min((optimize.least_squares(misses, middle + shift) for shift in shifts), key=lambda each: float(each.cost))
    return np.asarray(best.x, dtype=np.float64)


def _at_the_limit(facts: CapFacts) -> bool:
    return facts.uncapped_watts is not None and facts.uncapped_watts > _AT_THE_LIMIT * facts.highest_cap_watts


@functools.cache
def _normal_draws() -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Standard normal draws (n, 5) and uniform ones (n,) that fill the space evenly (Sobol)."""
    points = np.clip(qmc.Sobol(len(NUMBERS) + 1, seed=1).random(_DRAWS), 1e-6, 1.0 - 1e-6)
    return special.ndtri(points[:, :-1]), points[:, -1]
