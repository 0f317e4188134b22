import math
from dataclasses import replace

import numpy as np
import pytest

from tests.energy import fleet
from wattkeeper.energy import caution, points
from wattkeeper.energy.calibration import Calibration, CalibrationKernel, Reading
from wattkeeper.energy.caution import Read
from wattkeeper.energy.model import EnergyModel

LENGTHS = {"prompt_tokens": 400.0, "output_tokens": 300.0}
KERNEL = CalibrationKernel(level_sd_log=0.1, shape_sd_log=0.05, length_log2_batch=3.0, noise_sd_log=0.04)


@pytest.fixture(scope="module")
def physics():
    return EnergyModel.physics_only()


def readings(*errors, batch=32.0, weight=8.0):
    return Calibration(
        kernel=KERNEL,
        readings=tuple(
            Reading(batch=batch * 2.0**index, error_log=error, weight=weight) for index, error in enumerate(errors)
        ),
    )


def read(profile, calibration, model, *, cap=None):
    return caution.from_readings(profile, calibration, model=model, cap_watts=cap, **LENGTHS)


def full_watts(profile, batch=32.0):
    lengths = {name: np.array([value]) for name, value in LENGTHS.items()}
    return float(points.closed_loop(profile, batch=np.array([batch]), multimodal=np.zeros(1), **lengths).busy_watts[0])


def test_an_estimated_pair_is_planned_at_its_rating_and_a_measured_one_is_believed():
    assert caution.unread(fleet.profile(*fleet.ESTIMATED)) == math.inf
    assert caution.unread(fleet.profile(*fleet.FITTED)) == 1.0


def test_readings_say_how_much_more_a_deployment_draws(physics):
    profile = fleet.profile(*fleet.ESTIMATED)
    found = read(profile, readings(math.log(1.3)), physics)
    floor, estimate = profile.energy.static_watts, full_watts(profile)
    least = (1.27 * estimate - floor) / (estimate - floor)
    assert least < found.factor < least + 0.25
    assert not found.at_limit
    assert read(profile, readings(-0.3), physics).factor == 1.0


@pytest.mark.parametrize("weight", [2.0, 8.0])
def test_what_nine_in_ten_such_deployments_draw_less_than_counts(physics, weight):
    profile, calibration = fleet.profile(*fleet.ESTIMATED), readings(0.2, weight=weight)
    floor, estimate = profile.energy.static_watts, full_watts(profile)
    factor, spread = calibration.factor_and_spread(np.array([32.0]))
    upper = (estimate * factor[0] * math.exp(1.2816 * spread[0]) - floor) / (estimate - floor)
    assert upper - 0.001 <= read(profile, calibration, physics).factor <= upper + 0.051


def test_more_readings_leave_less_to_fear(physics):
    profile = fleet.profile(*fleet.ESTIMATED)
    few, many = (read(profile, readings(0.1, weight=weight), physics).factor for weight in (2.0, 8.0))
    assert many <= few


def test_the_batch_that_draws_most_over_its_estimate_counts(physics):
    profile = fleet.profile(*fleet.ESTIMATED)
    one, both = (read(profile, readings(*errors), physics).factor for errors in ((0.0,), (0.0, 0.3)))
    assert both > one


def test_without_readings_nothing_is_known(physics):
    profile = fleet.profile(*fleet.ESTIMATED)
    assert read(profile, Calibration(kernel=KERNEL), physics) is None
    assert read(profile, readings(0.4, weight=1.0), physics) is None


def test_caution_in_force_does_not_change_what_readings_say(physics):
    profile = fleet.profile(*fleet.ESTIMATED)
    wary = replace(profile, cap_caution=2.0)
    assert read(wary, readings(0.2), physics) == read(profile, readings(0.2), physics)


def test_readings_at_a_limit_only_add(physics):
    profile = fleet.profile(*fleet.FITTED)
    watts = full_watts(profile)
    at_limit = read(profile, readings(0.0), physics, cap=watts)
    below = read(profile, readings(0.0), physics, cap=1.5 * watts)
    assert (at_limit.at_limit, below.at_limit) == (True, False)
    assert caution.remembered(1.4, at_limit, unread=1.0) == 1.4
    assert caution.remembered(1.4, below, unread=1.0) == below.factor
    assert caution.remembered(None, at_limit, unread=math.inf) == math.inf
    assert caution.remembered(1.1, Read(factor=1.3, at_limit=True), unread=math.inf) == 1.3


def test_a_measured_pair_is_believed_within_its_interval_and_no_further(physics):
    profile = fleet.profile(*fleet.FITTED)
    assert read(profile, readings(0.05, 0.08), physics).factor == 1.0
    assert read(profile, readings(0.0, 0.2), physics).factor > 1.1
