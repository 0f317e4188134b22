"""Intervals for savings and attainment, from the hours and the seeds of the runs.

Where a trace has at least three blocks, blocks and seeds are drawn with replacement, the same blocks for both policies
that are compared (a paired bootstrap): a block is a day of a trace of three days or more, else an hour. It tells how
far the figure would move on other hours like these. Shorter traces have the Student interval over their seeds. With
one seed and fewer than three blocks there is none for savings. Intervals of attainment are never narrower than Wilson's
for that many requests, so that no missed request does not look like certainty.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from wattkeeper.domain.workload import FloatArray
from wattkeeper.replay.result import Run

LEVEL = 0.95
_DRAWS = 2000
_SEED = 20
_FEWEST_BLOCKS = 3
_HOURS_PER_DAY = 24


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A figure in percent, with its interval where there is one."""

    value: float
    low: float | None = None
    high: float | None = None

    def text(self, digits: int = 1) -> str:
        """Such as `12.3 [10.1, 14.0]`."""
        if self.low is None or self.high is None:
            return f"{self.value:.{digits}f}"
        return f"{self.value:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}]"


def saved(runs: Sequence[Run], baseline: Sequence[Run]) -> Estimate | None:
    """Percent of the baseline's energy that the policy did not use, over the seeds that both have on one trace.

    None where there is no such seed or the baseline used no energy.
    """
    pairs = _pairs(runs, baseline)
    used, of = sum(run.energy.total_kwh for run, _ in pairs), sum(base.energy.total_kwh for _, base in pairs)
    if not pairs or of <= 0.0:
        return None
    blocks = _blocks([(run.hours.energy_kwh, base.hours.energy_kwh) for run, base in pairs])
    return _estimate(used / of, blocks, sign=-1.0)


def attainment(runs: Sequence[Run]) -> Estimate | None:
    """Percent of all requests of all seeds that met the SLO; None where none arrived."""
    met, arrived = sum(run.requests.met for run in runs), sum(run.requests.arrived for run in runs)
    if arrived == 0:
        return None
    found = _estimate(met / arrived, _blocks([(run.hours.met, run.hours.arrived) for run in runs]), sign=1.0)
    # Seeds play the same requests: only one seed's worth of them is evidence.
    low, high = _wilson(met / arrived, arrived / len(runs))
    lows, highs = [100.0 * low, found.low], [100.0 * high, found.high]
    return Estimate(
        value=found.value,
        low=min(each for each in lows if each is not None),
        high=min(100.0, max(each for each in highs if each is not None)),
    )


def _wilson(share: float, count: float) -> tuple[float, float]:
    """Wilson's interval of a share of `count` requests."""
    z = float(stats.norm.ppf((1.0 + LEVEL) / 2.0))
    middle = (share + z**2 / (2.0 * count)) / (1.0 + z**2 / count)
    half = z / (1.0 + z**2 / count) * (share * (1.0 - share) / count + z**2 / (4.0 * count**2)) ** 0.5
    return max(0.0, middle - half), min(1.0, middle + half)


def _pairs(runs: Sequence[Run], baseline: Sequence[Run]) -> list[tuple[Run, Run]]:
    by_seed = {run.seed: run for run in baseline}
    return [(run, by_seed[run.seed]) for run in runs if run.seed in by_seed]


def _blocks(columns: Sequence[tuple[Sequence[float], Sequence[float]]]) -> FloatArray:
    """Numerators and denominators of each seed and block; shape (2, seeds, blocks)."""
    hours = min(len(column) for pair in columns for column in pair)
    size = _HOURS_PER_DAY if hours >= _FEWEST_BLOCKS * _HOURS_PER_DAY else 1
    count = hours // size
    made = np.array([[np.array(column[:hours], dtype=np.float64) for column in pair] for pair in columns])
    # What is left of the last day belongs to it.
    edges = np.arange(count) * size
    return (
        np.asarray(np.add.reduceat(made, edges, axis=2).transpose(1, 0, 2)) if count else np.zeros((2, len(columns), 0))
    )


def _estimate(ratio: float, blocks: FloatArray, *, sign: float) -> Estimate:
    """The ratio in percent (`sign` 1), or what is missing to 100 % (-1)."""
    ends = _ends(blocks)
    percents = [100.0 * each if sign > 0 else 100.0 * (1.0 - each) for each in (ratio, *(ends or ()))]
    if ends is None:
        return Estimate(value=percents[0])
    return Estimate(value=percents[0], low=min(percents), high=max(percents))


def _ends(blocks: FloatArray) -> tuple[float, float] | None:
    """Both ends of the interval of the ratio; None where there is too little for one."""
    _, seeds, count = blocks.shape
    if count >= _FEWEST_BLOCKS:
        rng = np.random.default_rng(_SEED)
        which_seeds = rng.integers(seeds, size=(_DRAWS, seeds, 1))
        which_blocks = rng.integers(count, size=(_DRAWS, 1, count))
        above, below = (part[which_seeds, which_blocks].sum(axis=(1, 2)) for part in blocks)
        known = below > 0.0
        if not known.any():
            return None
        low, high = np.quantile(above[known] / below[known], [(1.0 - LEVEL) / 2.0, (1.0 + LEVEL) / 2.0])
        return float(low), float(high)
    totals = blocks.sum(axis=2)
    if seeds < 2 or count == 0 or not (totals[1] > 0.0).all():
        return None
    each = totals[0] / totals[1]
    half = float(stats.t.ppf((1.0 + LEVEL) / 2.0, seeds - 1) * each.std(ddof=1) / np.sqrt(seeds))
    middle = float(each.mean())
    return max(0.0, middle - half), middle + half
