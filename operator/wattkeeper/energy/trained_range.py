"""Which factors of a state no training row was like: what fades there, and widens the interval, has a name."""

import math
from dataclasses import dataclass

from wattkeeper.domain.workload import FloatArray
from wattkeeper.energy import factors
from wattkeeper.energy.points import OperatingPoints


@dataclass(frozen=True, kw_only=True)
class Untrained:
    """A factor of one state that training saw nothing like. Values in `unit`."""

    name: str
    unit: str
    value: float | None
    """None: not known."""
    low: float
    """Smallest value in training."""
    high: float


def in_units(low: FloatArray, high: FloatArray) -> dict[str, tuple[float, float]]:
    """Range of each factor in its unit, by name; `low` and `high` are (len(FACTORS),) in the factors' own scales."""
    lows, highs = factors.unscaled(low[None, :])[0], factors.unscaled(high[None, :])[0]
    return {name: (float(lows[index]), float(highs[index])) for index, name in enumerate(factors.NAMES)}


def outside(state: OperatingPoints, low: FloatArray, high: FloatArray) -> list[tuple[Untrained, ...]]:
    """Factors outside the range or not known, of each of N states; `low` and `high` as in `in_units`."""
    table = factors.matrix(state, state.busy_watts)
    beyond = ~((table >= low) & (table <= high))
    values, ranges = factors.unscaled(table), in_units(low, high)
    return [
        tuple(
            Untrained(
                name=factor.name,
                unit=factor.unit,
                value=float(values[row, column]) if math.isfinite(values[row, column]) else None,
                low=ranges[factor.name][0],
                high=ranges[factor.name][1],
            )
            for column, factor in enumerate(factors.FACTORS)
            if beyond[row, column]
        )
        for row in range(len(table))
    ]
