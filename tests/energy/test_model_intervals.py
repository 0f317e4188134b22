"""How wide the model's intervals are, and that locked clocks leave the learnt correction alone."""

from dataclasses import replace

import numpy as np
import pytest

from tests.energy import fleet
from wattkeeper.energy.calibration import Calibration, CalibrationKernel, Reading
from wattkeeper.energy.model import EnergyModel

SHIPPED, PHYSICS = EnergyModel.load(), EnergyModel.physics_only()


def widths(model, pair, batch=32.0):
    """ln(high / watts) of a busy replica; the limit cuts nothing off at this batch."""
    found = model.watts([fleet.query(fleet.profile(*pair), batch=batch)])[0]
    return float(np.log(found.watts / found.low_watts)[0])


def test_after_many_readings_the_interval_is_that_of_the_noise():
    kernel = CalibrationKernel(level_sd_log=0.5, shape_sd_log=0.1, length_log2_batch=3.0, noise_sd_log=0.05)
    known = Calibration(kernel=kernel, readings=(Reading(batch=32.0, error_log=0.1, weight=1e6),))
    asked = replace(fleet.query(fleet.profile(*fleet.ESTIMATED), batch=32.0), calibration=known)
    found = SHIPPED.watts([asked])[0]
    assert np.log(found.watts / found.low_watts) == pytest.approx(1.645 * 0.05, rel=0.01)
    assert np.log(found.high_watts / found.watts) == pytest.approx(1.645 * 0.05, rel=0.01)


@pytest.mark.parametrize("pair", [fleet.ESTIMATED, fleet.FITTED, fleet.OTHER_GPU])
def test_an_interval_reaches_as_far_up_as_down_until_idle_or_limit_cuts_it(pair):
    served = fleet.profile(*pair)
    found = SHIPPED.watts([fleet.query(served, batch=[1.0, 16.0, 64.0, 512.0])])[0]
    idle, limit = served.energy.idle_watts, served.gpu.tdp_watts
    apart = np.log(found.watts / found.low_watts)
    inside = found.low_watts > idle * 1.001
    assert inside.any() and (apart > 0.0).all()
    upper = np.minimum(found.watts * np.exp(apart), limit)
    assert found.high_watts[inside] == pytest.approx(upper[inside], rel=1e-9)


def test_what_training_never_saw_is_less_sure():
    trained, sibling = fleet.ESTIMATED, ("Qwen/Qwen2.5-14B-Instruct", "nvidia-h100-sxm", 1)
    known, new, other_card = (widths(SHIPPED, pair) for pair in (trained, sibling, fleet.OTHER_GPU))
    assert known < new <= other_card + 1e-9
    assert known < other_card


@pytest.mark.parametrize("clock", [0.6, 0.8])
def test_what_was_learnt_holds_at_a_locked_clock_too(clock):
    """Training knows no locked clocks: the correction is that of the same work at full clock."""
    served = fleet.profile(*fleet.ESTIMATED)
    asked = fleet.query(served, batch=[16.0, 64.0])
    locked = fleet.query(served, batch=[16.0, 64.0], clock=clock)

    def correction(query):
        return SHIPPED.watts([query])[0].watts / PHYSICS.watts([query])[0].watts

    assert correction(locked) == pytest.approx(correction(asked), rel=1e-3)
