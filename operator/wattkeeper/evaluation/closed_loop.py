"""Inter-token latency of a replica that always decodes B sequences, as a distribution over its steps.

Each sequence that ends is replaced at once, so that a step computes a Poisson number of prompts with mean B / answer
length. A step takes

    ( a f(B) + q P S ) x noise,        S = sum of the drawn prompts over their mean, capped by the token budget

with f(B) the decode step and P the time of a mean prompt of the prior profile, lognormal noise, and gamma prompt
lengths. Every step counts once for each running sequence, so percentiles over steps are those of inter-token latency.
One measured run of a deployment yields a (how fast it decodes), q (how costly its prompts are: length, images and
efficiency together) and the noise: the largest posterior of its percentiles and mean step under wide priors.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats

from wattkeeper.domain.workload import FloatArray

PERCENTILES = (50.0, 90.0, 95.0, 99.0)
_STEPS = 512
_PROMPT_VARIATION = 0.7
"""Coefficient of variation of prompt lengths, assumed."""
_MOST_PROMPTS = 64
_DRAWS = stats.qmc.Sobol(3, seed=1).random(_STEPS)
_NOISE = np.asarray(stats.norm.ppf(np.clip(_DRAWS[:, 2], 1e-4, 1.0 - 1e-4)), dtype=np.float64)
_SHAPE = np.arange(1, _MOST_PROMPTS + 1)[:, None] / _PROMPT_VARIATION**2
_SUMS = np.vstack([np.zeros(_STEPS), stats.gamma.ppf(_DRAWS[:, 1], _SHAPE, scale=_PROMPT_VARIATION**2)])
"""(number of prompts, draw): sum of that many prompts over the mean of one."""
_SPREADS = np.array([1.0, 0.9, 0.6])
"""Of the priors of ln a, ln q and ln noise."""
_TRUST = np.array([0.02, 0.06, 0.06, 0.15, 0.05])
"""Relative error granted to the percentiles and the mean of the calibration run."""
_PENALTY = 50.0
"""A figure that is far off counts no more than this."""
DEFAULT_PRIOR = (0.0, math.log(2.0), math.log(0.04))
"""ln a, ln q, ln noise before anything is known."""


@dataclass(frozen=True, kw_only=True)
class Points:
    """What the prior profile says about N operating points; arrays (N,)."""

    decode_seconds: FloatArray
    """f(B), KV reads included."""
    prompts_per_step: FloatArray
    prompt_seconds: FloatArray
    """P: computing one mean prompt."""
    budget_seconds: FloatArray
    """Computing as many prompt tokens as the budget leaves room for."""

    def __len__(self) -> int:
        return len(self.decode_seconds)

    def prompt_draws(self, row: int) -> FloatArray:
        """Seconds of prompt work in each drawn step of one point, before q."""
        mean = self.prompts_per_step[row]
        counts = np.arange(_MOST_PROMPTS + 1)
        number = np.searchsorted(stats.poisson.cdf(counts, mean), _DRAWS[:, 0])
        sums = _SUMS[np.minimum(number, _MOST_PROMPTS), np.arange(_STEPS)]
        return np.asarray(np.minimum(self.prompt_seconds[row] * sums, self.budget_seconds[row]))


def latencies(points: Points, row: int, found: FloatArray, draws: FloatArray | None = None) -> FloatArray:
    """Seconds at `PERCENTILES`, and the mean step, of one point under (ln a, ln q, ln noise)."""
    scale, prompt, noise = np.exp(found)
    drawn = points.prompt_draws(row) if draws is None else draws
    seconds = (scale * points.decode_seconds[row] + prompt * drawn) * np.exp(noise * _NOISE)
    return np.append(np.percentile(seconds, PERCENTILES), seconds.mean())


def calibrated(
    points: Points, row: int, measured: FloatArray, prior: tuple[float, float, float] = DEFAULT_PRIOR
) -> FloatArray:
    """(ln a, ln q, ln noise) that explain the measured `PERCENTILES` and mean step of one run best."""
    middle = np.array(prior)
    draws = points.prompt_draws(row)
    logs = np.log(measured)

    def cost(found: FloatArray) -> float:
        miss = (np.log(latencies(points, row, found, draws)) - logs) / _TRUST / 2.0
        pull = (found - middle) / _SPREADS
        return float(np.minimum(np.square(miss), _PENALTY).sum() + np.square(pull).sum())

    level = float(np.clip(logs[0] - math.log(points.decode_seconds[row]), -2.0, 3.0))
    starts = [np.array([level, prior[1] + step, prior[2]]) for step in (0.0, 1.0, -1.0)]
    best = min(starts, key=cost)
    found = optimize.minimize(cost, best, method="Nelder-Mead", options={"maxiter": 150, "xatol": 0.01, "fatol": 0.05})
    return np.asarray(found.x, dtype=np.float64)
