"""Baselines are given a fair chance: what never moved in training cannot throw them off."""

import numpy as np
import pytest

from wattkeeper.energy import baselines
from wattkeeper.energy.baselines import Rows

OFF = 7.9
"""The mean of 57 of these is off by its last bits, so that their standard deviation is not zero."""


def rows(constant: float) -> Rows:
    """Two columns: one that drives the target, and one that does not move."""
    moving = np.linspace(0.0, 3.0, 57)
    table = np.column_stack([moving, np.full(57, constant)])
    target = 2.0 + moving
    return Rows(scaled=table, raw=table, plain=(0, 1), target=target, estimate=target, hardware=target)


@pytest.mark.parametrize("method", [baselines.linear, baselines.log_linear])
def test_a_column_that_is_constant_in_training_does_not_move_a_prediction(method):
    assert rows(OFF).raw[:, 1].std() > 0.0
    known, moved = (method(rows(OFF), rows(value), 0) for value in (OFF, 2.0 * OFF))
    assert moved == pytest.approx(known, rel=1e-6)
