"""Which operating points are best measured next: where a reading narrows the interval of all reachable ones most."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wattkeeper.domain.workload import FloatArray
from wattkeeper.energy.calibration import CalibrationKernel, Reading, condition, most_informative, variance_reductions

BoolArray = npt.NDArray[np.bool_]

_SIGMAS = 1.645
"""From one sigma to a 90 % interval."""
_NEARLY = 0.75


@dataclass(frozen=True, kw_only=True)
class Suggestion:
    """A point to measure."""

    index: int
    """Of the reachable point."""
    half_width_log: float
    """Of the mean 90 % interval over all reachable points once this and the suggestions before it are measured."""


def half_width_log(
    kernel: CalibrationKernel, readings: Sequence[Reading], batch: FloatArray, weights: FloatArray
) -> float:
    """Half-width of the 90 % interval of the watts (natural log), as a weighted root mean square over batches (N,)."""
    _, spread = condition(kernel, readings, batch)
    variance = np.average(np.square(spread) + kernel.noise_sd_log**2, weights=weights)
    return float(_SIGMAS * np.sqrt(variance))


def suggest(
    kernel: CalibrationKernel,
    readings: Sequence[Reading],
    batch: FloatArray,
    weights: FloatArray,
    *,
    easy: BoolArray,
    most: int,
) -> list[Suggestion]:
    """At most `most` points, each the best after those before it.

    `batch` (N,) are the batches of the reachable points, `weights` (N,) how much each matters, `easy` (N,) which can be
    measured at once: one of these is taken where it is worth nearly as much as the best. The spread depends on where is
    measured, not on what is found there, so the second point can be told before the first is measured. Raises
    ValueError: no point, or batches or weights that are not usable.
    """
    known = list(readings)
    found: list[Suggestion] = []
    for _ in range(min(most, len(batch))):
        index = most_informative(kernel, known, batch, weights)
        worth = variance_reductions(kernel, known, batch) @ weights
        near = np.flatnonzero(easy & (worth >= _NEARLY * worth[index]))
        index = int(near[np.argmax(worth[near])]) if len(near) else index
        if any(index == each.index for each in found):
            break
        known.append(Reading(batch=float(batch[index]), error_log=0.0))
        found.append(Suggestion(index=index, half_width_log=half_width_log(kernel, known, batch, weights)))
    return found
