"""Readings by batch: the first counts at once, later ones average, changes are followed, size is bounded."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattkeeper.energy.calibration import CalibrationKernel, Reading, condition
from wattkeeper.energy.learnt import HALF_LIFE_SECONDS, MOST_BINS, MOST_WEIGHT, LearntBin, LearntReadings

KERNEL = CalibrationKernel(level_sd_log=0.25, shape_sd_log=0.1, length_log2_batch=3.0, noise_sd_log=0.05)
BIAS = math.log(1.25)


def after(readings, start=None, *, every=15.0):
    state = start or LearntReadings()
    for index, reading in enumerate(readings):
        state = state.take(reading, KERNEL, now_seconds=1e6 + every * index)
    return state


def factor(state, batch, now=1e6):
    mean, _ = condition(KERNEL, state.readings(now), np.array([batch]))
    return math.exp(float(mean[0]))


def at(batch, error=0.0, weight=1.0):
    return Reading(batch=batch, error_log=error, weight=weight)


def test_the_first_reading_corrects_at_once_and_near_batches_most():
    state = after([at(16.0, BIAS)])
    assert factor(state, 16.0) == pytest.approx(1.25, rel=0.02)
    assert 1.1 < factor(state, 256.0) < factor(state, 16.0)
    _, spread = condition(KERNEL, state.readings(1e6), np.array([16.0, 256.0]))
    assert spread[0] < 0.05 < spread[1] < KERNEL.prior_sd_log


def test_noise_averages_out():
    rng = np.random.default_rng(3)
    state = after([at(16.0, -0.1 + 0.05 * rng.standard_normal()) for _ in range(200)])
    assert factor(state, 16.0) == pytest.approx(math.exp(-0.1), rel=0.05)
    assert len(state.bins) == 1
    assert state.bins[0].weight <= MOST_WEIGHT


@pytest.mark.parametrize("weight", [0.3, 1.0])
def test_a_step_is_followed_within_twenty_ticks_at_every_batch(weight):
    rng = np.random.default_rng(4)

    def readings(error):
        return [at(batch, error + 0.03 * rng.standard_normal(), weight) for batch in (8.0, 16.0, 64.0) * 30]

    settled = after(readings(0.0))
    stepped = after([at(16.0, BIAS, weight)] * 20, settled)
    assert factor(stepped, 16.0) == pytest.approx(1.25, rel=0.03)
    assert factor(stepped, 64.0) > 1.12


def test_a_wild_reading_moves_little():
    settled = after([at(16.0)] * 20)
    assert factor(after([at(16.0, 3.0)], settled), 16.0) == pytest.approx(1.0, abs=0.06)


def test_old_readings_fade():
    state = after([at(16.0, BIAS)] * 20)
    later = 1e6 + 10 * HALF_LIFE_SECONDS
    assert not state.readings(later)
    assert 1.0 < factor(state, 16.0, 1e6 + 5 * HALF_LIFE_SECONDS) <= factor(state, 16.0)


def test_idle_ticks_teach_nothing():
    assert after([at(1.0, BIAS, 0.01)]) == LearntReadings()


@given(st.lists(st.tuples(st.floats(0.5, 4096.0), st.floats(-20.0, 20.0), st.floats(0.001, 5.0)), max_size=80))
def test_bins_stay_bounded_ordered_and_sane(shown):
    state = after([at(*values) for values in shown])
    assert len(state.bins) <= MOST_BINS
    assert [each.batch for each in state.bins] == sorted(each.batch for each in state.bins)
    assert len({each.index for each in state.bins}) == len(state.bins)
    assert all(abs(each.error_log) < 4.0 and 0.0 < each.weight <= MOST_WEIGHT for each in state.bins)


def test_bins_that_make_no_sense_are_left_out():
    good = LearntBin(batch=16.0, error_log=0.1, weight=2.0, seconds=1e6)
    bad = [
        LearntBin(batch=-1.0, error_log=0.1, weight=1.0, seconds=1.0),
        LearntBin(batch=math.nan, error_log=0.1, weight=1.0, seconds=1.0),
        LearntBin(batch=32.0, error_log=9.0, weight=1.0, seconds=1.0),
        LearntBin(batch=32.0, error_log=0.1, weight=0.0, seconds=1.0),
        LearntBin(batch=16.1, error_log=0.2, weight=1.0, seconds=1.0),
    ]
    assert LearntReadings.of([*bad, good]).bins == (good,)


def test_a_reading_weighs_half_after_two_weeks():
    state = after([at(16.0, BIAS)])
    (now,), (later,) = state.readings(1e6), state.readings(1e6 + 14 * 86_400)
    assert later.weight == pytest.approx(now.weight / 2)
