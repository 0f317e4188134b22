"""Conditioning a deployment's residual on a few readings."""

from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattkeeper.energy import calibration
from wattkeeper.energy.calibration import Calibration, CalibrationKernel, Reading

KERNEL = CalibrationKernel(level_sd_log=0.2, shape_sd_log=0.1, length_log2_batch=2.0, noise_sd_log=0.03)
BATCHES = np.array([1.0, 8.0, 64.0, 512.0])
readings = st.builds(
    Reading,
    batch=st.floats(0.5, 4096.0),
    error_log=st.floats(-1.5, 1.5),
    weight=st.floats(0.1, 100.0),
)


def test_without_readings_it_is_the_prior() -> None:
    mean, spread = calibration.condition(KERNEL, [], BATCHES)
    assert np.array_equal(mean, np.zeros(4))
    assert spread == pytest.approx(np.full(4, np.hypot(0.2, 0.1)))


def test_many_readings_are_their_mean() -> None:
    errors = np.random.default_rng(1).normal(0.3, 0.03, size=200)
    mean, spread = calibration.condition(
        KERNEL, [Reading(batch=64.0, error_log=each) for each in errors], np.array([64.0])
    )
    assert mean[0] == pytest.approx(errors.mean(), abs=1e-3)
    assert spread[0] < 0.005


def test_one_heavy_reading_counts_as_many() -> None:
    many = calibration.condition(KERNEL, [Reading(batch=8.0, error_log=0.2)] * 5, BATCHES)
    heavy = calibration.condition(KERNEL, [Reading(batch=8.0, error_log=0.2, weight=5.0)], BATCHES)
    assert np.allclose(many[0], heavy[0], atol=1e-6)
    assert np.allclose(many[1], heavy[1], atol=1e-6)


def test_the_first_reading_counts_most() -> None:
    means = [
        calibration.condition(KERNEL, [Reading(batch=64.0, error_log=0.3)] * count, np.array([64.0]))[0][0]
        for count in range(4)
    ]
    steps = np.diff(means)
    assert steps[0] > 0.9 * 0.3
    assert steps[0] > steps[1] > steps[2] > 0.0


@given(st.lists(readings, max_size=8), readings)
def test_another_reading_never_widens(before: list[Reading], new: Reading) -> None:
    _, wide = calibration.condition(KERNEL, before, BATCHES)
    _, narrow = calibration.condition(KERNEL, [*before, new], BATCHES)
    assert (narrow <= wide + 1e-7).all()


@given(st.lists(readings, max_size=6), st.randoms())
def test_the_order_of_readings_does_not_matter(some: list[Reading], random: Random) -> None:
    shuffled = list(some)
    random.shuffle(shuffled)
    assert np.allclose(
        calibration.condition(KERNEL, some, BATCHES), calibration.condition(KERNEL, shuffled, BATCHES), atol=1e-6
    )


@given(st.lists(readings, max_size=4))
def test_the_most_informative_batch_lowers_the_mean_variance_most(before: list[Reading]) -> None:
    weights = np.array([0.1, 0.4, 0.3, 0.2])
    best = calibration.most_informative(KERNEL, before, BATCHES, weights)
    left = [
        weights @ calibration.condition(KERNEL, [*before, Reading(batch=batch, error_log=0.0)], BATCHES)[1] ** 2
        for batch in BATCHES
    ]
    assert left[best] == pytest.approx(min(left), rel=1e-6, abs=1e-12)


def test_the_next_point_is_far_from_the_measured_one() -> None:
    even = np.full(4, 0.25)
    first = calibration.most_informative(KERNEL, [], BATCHES, even)
    assert BATCHES[first] in (8.0, 64.0)
    known = [Reading(batch=64.0, error_log=0.1, weight=10.0), Reading(batch=512.0, error_log=0.1, weight=10.0)]
    assert BATCHES[calibration.most_informative(KERNEL, known, BATCHES, even)] in (1.0, 8.0)


def test_a_calibration_gives_factor_and_spread() -> None:
    learnt = Calibration(kernel=KERNEL, readings=(Reading(batch=64.0, error_log=np.log(1.25), weight=50.0),))
    factor, spread = learnt.factor_and_spread(BATCHES)
    assert factor[2] == pytest.approx(1.25, rel=0.01)
    assert 1.1 < factor[0] < 1.25
    assert spread[2] < spread[0] < KERNEL.prior_sd_log


@pytest.mark.parametrize(
    "wrong", [{"batch": 0.0}, {"batch": np.nan}, {"error_log": np.inf}, {"weight": 0.0}, {"weight": -1.0}]
)
def test_impossible_readings_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="a reading needs"):
        Reading(**{"batch": 8.0, "error_log": 0.1, **wrong})


def test_impossible_kernels_and_batches_are_refused() -> None:
    with pytest.raises(ValueError, match="deviations"):
        CalibrationKernel(level_sd_log=-0.1, shape_sd_log=0.1, length_log2_batch=2.0, noise_sd_log=0.0)
    with pytest.raises(ValueError, match="length"):
        CalibrationKernel(level_sd_log=0.1, shape_sd_log=0.1, length_log2_batch=0.0, noise_sd_log=0.0)
    with pytest.raises(ValueError, match="batches"):
        calibration.condition(KERNEL, [], np.array([0.0]))
    with pytest.raises(ValueError, match="weight"):
        calibration.most_informative(KERNEL, [], BATCHES, np.zeros(4))
