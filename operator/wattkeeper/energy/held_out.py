"""Predictions on runs that no method has seen: what every evaluation hands to the table of scores."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from wattkeeper.domain.workload import FloatArray


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Held-out predictions of several methods for the same N rows; all arrays are (N,)."""

    data: str
    """Name of the data set."""
    target: str
    """What is predicted, with its unit: `W per GPU`, `J/token`, `throughput under cap`."""
    split: str
    """What was held out together: `unseen curve`, `unseen model`, ..."""
    calibration: str = "cold"
    """Readings of the held-out group that a method was given: `cold`, `+1 random`, `+2 designed`. Their rows are not
    among the N."""
    groups: npt.NDArray[np.str_]
    """Rows of one group were held out together; the bootstrap draws groups."""
    fold: npt.NDArray[np.int_]
    measured: FloatArray
    predicted: dict[str, FloatArray]
    """Per method."""
    interval: dict[str, tuple[FloatArray, FloatArray]] = field(default_factory=dict)
    """90 % interval per method (low, high), from the training folds alone."""
    floor: float | None = None
    """100 - MAPE of repeated measurement or of interpolation between neighbours, in percent: what no model can beat."""
    notes: tuple[str, ...] = ()
    x: FloatArray | None = None
    """What the rows of a series are drawn over, such as the power limit."""
    x_name: str = ""
    """With its unit."""
    series: npt.NDArray[np.str_] | None = None
    """Rows of one series are a line over `x`."""

    def __post_init__(self) -> None:
        count = len(self.measured)
        arrays: list[npt.NDArray[Any]] = [self.groups, self.fold, *self.predicted.values()]
        arrays += [end for ends in self.interval.values() for end in ends]
        arrays += [each for each in (self.x, self.series) if each is not None]
        if any(each.shape != (count,) for each in arrays):
            raise ValueError(f"{self.data}, {self.split}: all arrays need {count} entries")


def optimistic_share(predicted: FloatArray, measured: FloatArray, *, beyond: float = 0.02) -> float:
    """Share of rows predicted more than `beyond` too high: for throughput, the unsafe side. In 0..1."""
    return float((predicted / measured - 1.0 > beyond).mean())
