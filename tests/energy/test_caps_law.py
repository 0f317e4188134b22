"""The knee law of power limits, at points that can be worked out by hand."""

import numpy as np
import pytest

from wattkeeper.energy import caps
from wattkeeper.energy.caps import Knee

SHARP = 200.0


def test_above_the_knee_nothing_is_lost_and_below_it_throughput_goes_with_a_power_of_the_limit():
    shares = np.array([0.35, 0.70, 0.9, 1.4])
    found = caps.relative(shares, np.log([0.7, 2.0]), SHARP)
    assert found == pytest.approx([0.25, 2.0 ** (-1.0 / SHARP), 1.0, 1.0], abs=1e-6)


def test_the_slowest_is_what_nine_in_ten_such_curves_reach():
    knee = Knee(reference_watts=400.0, sharpness=SHARP, mean=np.log([0.9, 1.0]), covariance=np.diag([0.04, 1e-12]))
    # ln(relative) = ln(200 / 400 / knee) far below the knee, so that its 10th percentile is 1.2816 sigma down.
    slowest = knee.slowest(np.array([200.0]))
    assert np.log(slowest) == pytest.approx(np.log(0.5 / 0.9) - 1.2816 * 0.2, abs=0.03)
    low, high = knee.quantiles(np.array([200.0]), (0.05, 0.95))
    assert np.log(high / low) == pytest.approx(2 * 1.645 * 0.2, abs=0.06)
