"""Where to measure next."""

import numpy as np
import pytest

from wattkeeper.energy.calibration import CalibrationKernel, Reading
from wattkeeper.energy.next_readings import half_width_log, suggest

KERNEL = CalibrationKernel(level_sd_log=0.2, shape_sd_log=0.15, length_log2_batch=2.0, noise_sd_log=0.03)
BATCH = np.array([2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0])
ONES = np.ones(len(BATCH))
NONE = np.zeros(len(BATCH), dtype=bool)


def test_the_first_point_lies_in_the_middle_and_the_next_to_a_side():
    first, second = suggest(KERNEL, [], BATCH, ONES, easy=NONE, most=2)
    assert 4.0 < BATCH[first.index] < 64.0
    assert abs(np.log2(BATCH[second.index] / BATCH[first.index])) >= 2.0
    before = half_width_log(KERNEL, [], BATCH, ONES)
    assert before > first.half_width_log > second.half_width_log > 0.0


def test_what_is_told_is_what_comes_true():
    first = suggest(KERNEL, [], BATCH, ONES, easy=NONE, most=1)[0]
    measured = [Reading(batch=float(BATCH[first.index]), error_log=0.3)]
    assert half_width_log(KERNEL, measured, BATCH, ONES) == pytest.approx(first.half_width_log)


def test_a_point_that_can_be_had_at_once_is_preferred_where_it_is_nearly_as_good():
    easy = BATCH == 8.0
    assert BATCH[suggest(KERNEL, [], BATCH, ONES, easy=easy, most=1)[0].index] == 8.0
    known = [Reading(batch=8.0, error_log=0.0, weight=8.0)]
    assert BATCH[suggest(KERNEL, known, BATCH, ONES, easy=easy, most=1)[0].index] != 8.0


def test_what_matters_more_draws_the_point():
    heavy = np.where(BATCH == 128.0, 50.0, 1.0)
    assert BATCH[suggest(KERNEL, [], BATCH, heavy, easy=NONE, most=1)[0].index] >= 64.0


def test_weights_that_do_not_fit_are_an_error():
    with pytest.raises(ValueError, match="one weight for each"):
        suggest(KERNEL, [], BATCH, ONES[:2], easy=NONE, most=1)


def test_the_noise_of_a_reading_stays_in_the_interval():
    """However much was measured, what the next reading scatters by is left."""
    known = [Reading(batch=float(batch), error_log=0.0, weight=1e6) for batch in BATCH]
    assert half_width_log(KERNEL, known, BATCH, ONES) == pytest.approx(1.645 * 0.03, rel=0.01)


def test_a_point_that_is_worth_little_is_not_taken_because_it_is_easy():
    """At the end of the range a reading is worth about half of one in the middle."""
    kernel = CalibrationKernel(level_sd_log=0.05, shape_sd_log=0.3, length_log2_batch=1.5, noise_sd_log=0.03)
    assert BATCH[suggest(kernel, [], BATCH, ONES, easy=BATCH == 2.0, most=1)[0].index] != 2.0
