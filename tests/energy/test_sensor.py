"""The sensor's state machine: what it catches and when, and what it must leave alone."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wattkeeper.energy.calibration import Reading
from wattkeeper.energy.sensor import (
    HOLD_TICKS,
    NEW_NORMAL_TICKS,
    REGAIN_TICKS,
    STUCK_TICKS,
    Fault,
    Sensor,
    SensorTick,
)

GPUS = 4
VALUES = st.one_of(st.none(), st.floats(allow_nan=True, allow_infinity=True), st.floats(0.0, 900.0))


def tick(watts=400.0, *, predicted=400.0, running=40.0, gpus=None, setting=1, **values):
    """Four GPUs that draw `watts` each, where `predicted` is expected of each."""
    shown = (watts,) * GPUS if gpus is None else gpus
    error = math.log(watts / predicted) if watts and watts > 0 and math.isfinite(watts) else 0.0
    return SensorTick(
        **{
            "watts_by_gpu": shown,
            "expected_gpus": GPUS,
            "limit_watts": 700.0,
            "cap_watts": 700.0,
            "idle_watts": 70.0,
            "serving": True,
            "running": running,
            "predicted_watts": GPUS * predicted,
            "setting": setting,
            "reading": Reading(batch=16.0, error_log=min(max(error, -3.0), 3.0)),
            **values,
        }
    )


def noisy(count, *, bias=1.0, seed=1, noise=0.05, predicted=400.0):
    """A sensor with noise under a load that swings slowly, as its prediction does."""
    rng = np.random.default_rng(seed)
    for index in range(count):
        level = predicted * (1.0 + 0.3 * math.sin(index / 60.0))
        scatter = math.exp(noise * rng.standard_normal())
        yield tick(level * bias * scatter, predicted=level, running=40.0 * level / predicted)


def run(ticks, sensor=None):
    states = [sensor or Sensor()]
    for each in ticks:
        states.append(states[-1].step(each))
    return states[1:]


@pytest.fixture
def settled():
    """A sensor that was sane for a while."""
    return run(noisy(40))[-1]


@pytest.mark.parametrize("bias", [0.7, 1.0, 1.25])
def test_a_clean_noisy_sensor_is_trusted_for_ten_thousand_ticks(bias):
    states = run(noisy(10_000, bias=bias))
    assert all(state.trusted for state in states)
    assert sum(len(state.learn) for state in states) > 9_900


@given(
    st.lists(st.tuples(VALUES, VALUES, st.floats(), st.booleans(), st.floats(0.0, 1e4), st.integers(0, 2)), max_size=40)
)
@settings(deadline=None)
def test_nothing_that_a_sensor_shows_breaks_it(shown):
    sensor = Sensor()
    for first, second, predicted, serving, running, setting in shown:
        sensor = sensor.step(
            tick(
                gpus=(first, second, first, second), predicted_watts=predicted, serving=serving, running=running,
                setting=setting,
            )
        )  # fmt: skip
        assert sensor.trusted == (sensor.message == "")
        assert sensor.trusted or not sensor.learn


BROKEN = {
    Fault.NEGATIVE: ({"gpus": (400.0, 390.0, -5.0, 400.0)}, 2),
    Fault.ABOVE_LIMIT: ({"gpus": (400.0, 390.0, 1500.0, 400.0)}, 2),
    Fault.ZERO: ({"gpus": (400.0, 390.0, 0.0, 400.0)}, 2),
    Fault.MISSING: ({"gpus": (400.0, 390.0, math.nan, 400.0)}, 4),
}


@pytest.mark.parametrize(("fault", "shown", "within"), [(name, *case) for name, case in BROKEN.items()])
def test_impossible_watts_are_named_in_time_and_never_learnt(settled, fault, shown, within):
    states = run([tick(**shown)] * within, settled)
    assert states[-1].fault is fault
    assert all(state.trusted for state in states[:-1])
    assert not any(state.learn for state in states)
    back = run(noisy(REGAIN_TICKS + 1, seed=3), states[-1])
    assert not back[REGAIN_TICKS - 2].trusted
    assert back[REGAIN_TICKS - 1].trusted


@pytest.mark.parametrize("factor", [2.0, 0.5, 1.8])
def test_a_jump_is_caught_at_its_second_tick_and_over_when_it_goes(settled, factor):
    states = run(noisy(6, bias=factor, seed=2), settled)
    assert [state.fault for state in states[:2]] == [None, Fault.JUMPED]
    assert not any(state.learn for state in states)
    assert "times what it was" in states[1].message
    assert run(noisy(REGAIN_TICKS, seed=3), states[-1])[-1].trusted


def test_a_jump_that_creeps_through_an_exporters_average_is_caught(settled):
    creeping = [tick(400.0 * (1.0 + share)) for share in (0.25, 0.5, 0.75, 1.0)]
    states = run([*creeping, *noisy(3, bias=2.0)], settled)
    assert states[4].fault is Fault.JUMPED
    assert not any(state.learn for state in states)


def test_a_step_of_a_quarter_waits_and_is_then_learnt(settled):
    states = run(noisy(20, bias=1.25, seed=5), settled)
    assert all(state.trusted for state in states)
    assert not any(state.learn for state in states[: HOLD_TICKS - 1])
    assert sum(len(state.learn) for state in states) == 20


def test_one_glitch_is_neither_learnt_nor_believed(settled):
    states = run([tick(1000.0 / 1.3), *noisy(3)], settled)
    assert all(state.trusted for state in states)
    assert not states[0].learn


def test_a_stuck_sensor_is_caught_once_the_load_moves(settled):
    still = [tick(400.0, predicted=400.0)] * 20
    states = run(still, settled)
    assert states[-1].trusted
    assert sum(len(state.learn) for state in states) == 1  # the first of equal ones speaks for itself
    moving = [tick(400.0, predicted=400.0 * (1.0 - 0.05 * min(index, 5)), running=40.0) for index in range(8)]
    caught = run(moving, states[-1])
    assert [state.fault for state in caught].index(Fault.STUCK) <= 4
    assert not any(state.learn for state in caught)
    assert run(noisy(REGAIN_TICKS + 1), caught[-1])[-1].trusted


def test_a_stuck_sensor_is_not_believed_again_for_a_change_of_setting(settled):
    moving = [tick(400.0, predicted=400.0 * (1.0 + 0.05 * index), running=40.0) for index in range(STUCK_TICKS)]
    resized = run([tick(400.0, setting=2)] * (2 * REGAIN_TICKS), run(moving, settled)[-1])
    assert all(state.fault is Fault.STUCK and not state.learn for state in resized[1:])


def test_a_load_that_moves_from_the_first_equal_tick_is_caught_in_six(settled):
    moving = [tick(400.0, predicted=400.0 * (1.0 + 0.05 * index), running=40.0) for index in range(STUCK_TICKS)]
    assert run(moving, settled)[-1].fault is Fault.STUCK


def test_real_idle_and_a_real_limit_are_not_stuck():
    idle = [tick(70.0, predicted=70.0 + 0.05 * index, running=0.0, serving=False) for index in range(100)]
    assert run(idle)[-1].trusted
    capped = [tick(350.0, predicted=260.0 + index, cap_watts=350.0) for index in range(100)]
    assert run(capped)[-1].trusted


def test_a_change_of_load_or_setting_is_no_jump(settled):
    busier = [tick(650.0, predicted=420.0, running=200.0)] * 3  # watts come before the measured rate does
    assert all(state.trusted for state in run(busier, settled))
    resized = [tick(700.0, predicted=400.0, setting=2)] * 2
    states = run(resized, settled)
    assert all(state.trusted and not state.learn for state in states)


def test_what_was_learnt_before_a_restart_tells_a_jump_too():
    states = run([tick(800.0, predicted=400.0, limit_watts=900.0, known_error_log=0.0)] * 2)
    assert states[-1].fault is Fault.JUMPED


def test_a_service_without_an_exporter_is_no_broken_sensor():
    assert run([tick(gpus=())] * 50)[-1].trusted


@pytest.mark.parametrize(("factor", "accepted"), [(1.7, True), (2.0, False)])
def test_a_jump_that_stays_is_taken_for_real_unless_it_is_twofold(factor, accepted):
    # The model was 30 % too high before, so that the new level is no drift.
    before = run(noisy(40, bias=0.7))[-1]
    states = run(noisy(NEW_NORMAL_TICKS + 10, bias=0.7 * factor), before)
    assert states[-1].trusted is accepted


@pytest.mark.parametrize(
    ("watts", "fault"),
    [(1.15 * 700.0, None), (1.3 * 700.0, Fault.ABOVE_LIMIT), (0.4 * 70.0, None), (0.2 * 70.0, Fault.ZERO)],
)
def test_what_no_card_can_draw_is_told_from_what_a_sensor_overshoots(watts, fault):
    """A fifth over the limit is an overshoot, more is not; a serving card below a third of its idle power is off."""
    states = run([tick(watts, predicted=watts)] * 3)
    assert states[-1].fault is fault
