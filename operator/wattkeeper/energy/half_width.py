"""Half-width of the 90 % interval of a method that gives none itself: conformal, from inner folds of training rows."""

import numpy as np

from wattkeeper.energy.baselines import Method, Rows
from wattkeeper.energy.learned import COVERAGE, IndexArray


def half_width(rows: Rows, method: Method, inner: IndexArray, *, seed: int) -> float:
    """Quantile of |ln(measured / predicted)| over inner folds, each foreseen from the others.

    With a single inner fold there is nothing to hold out by group, and every second row is foreseen from the rest.
    """
    if len(np.unique(inner)) < 2:
        inner = np.arange(len(rows)) % 2
    misses = []
    for number in np.unique(inner):
        held = inner == number
        found = np.maximum(method(rows[~held], rows[held], seed), 1e-9)
        misses.append(np.abs(np.log(rows[held].target / found)))
    return float(np.quantile(np.concatenate(misses), COVERAGE))
