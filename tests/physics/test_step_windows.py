"""Mean step times from two scrapes, by hand, and each reason to leave a pair out."""

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattkeeper.physics import step_windows
from wattkeeper.physics.step_windows import EngineSample, StepWindow, WindowProblem, between

BEFORE = EngineSample(
    time_seconds=1000.0,
    inter_token_seconds_sum=500.0,
    inter_token_count=50_000.0,
    iteration_tokens_sum=300_000.0,
    iteration_count=4_000.0,
    generation_tokens=52_000.0,
    preemptions=3.0,
    running=11.0,
    kv_tokens=12_000.0,
)


def later(**changes):
    """Five seconds on: 500 steps of 10 ms, 20 decodes each, 5,000 prefill tokens and 25 first tokens."""
    values = {
        "time_seconds": 1005.0,
        "inter_token_seconds_sum": 600.0,
        "inter_token_count": 60_000.0,
        "iteration_tokens_sum": 300_000.0 + 10_000 + 25 + 5_000,
        "iteration_count": 4_500.0,
        "generation_tokens": 52_000.0 + 10_025,
        "running": 21.0,
        "kv_tokens": 20_000.0,
    }
    return dataclasses.replace(BEFORE, **{**values, **changes})


def test_a_busy_window_by_hand():
    assert between(BEFORE, later(), clock_ratio=0.8) == StepWindow(
        time_seconds=1005.0,
        step_seconds=5.0 / 500,
        prefill_tokens=10.0,
        decode_sequences=20.0,
        kv_tokens=16_000.0,
        sampled_sequences=16.0,
        spacing_seconds=5.0,
        clock_ratio=0.8,
    )


def test_a_lighter_window_takes_the_latency_of_its_decodes():
    """4 decodes per step: a decode sees its own and, on average, four others; idle time is not step time."""
    window = between(
        BEFORE,
        later(
            inter_token_count=52_000.0,
            inter_token_seconds_sum=516.0,
            generation_tokens=54_000.0,
            iteration_tokens_sum=303_000.0,
        ),
    )
    assert window.step_seconds == pytest.approx(0.008)
    assert window.decode_sequences == pytest.approx(5.0)
    assert window.kv_tokens == pytest.approx(16_000 * 5 / 4)
    assert window.prefill_tokens == pytest.approx(2.0)


def test_cached_prompt_tokens_are_no_work():
    window = between(BEFORE, later(cached_prompt_tokens=2_000.0))
    assert window.prefill_tokens == pytest.approx(6.0)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"iteration_count": math.nan}, WindowProblem.MISSING),
        ({"time_seconds": 1000.0}, WindowProblem.RESET),
        ({"iteration_count": 10.0}, WindowProblem.RESET),
        ({"generation_tokens": 0.0}, WindowProblem.RESET),
        ({"preemptions": 4.0}, WindowProblem.PREEMPTED),
        ({"running": 0.0}, WindowProblem.IDLED),
        ({"iteration_count": 4_010.0}, WindowProblem.TOO_FEW_STEPS),
        ({"inter_token_count": 50_700.0}, WindowProblem.LIGHT_LOAD),
        ({"iteration_tokens_sum": 305_000.0}, WindowProblem.INCONSISTENT),
        ({"inter_token_seconds_sum": 900.0}, WindowProblem.INCONSISTENT),
        ({"time_seconds": 9e5}, WindowProblem.INCONSISTENT),
    ],
)
def test_pairs_that_say_nothing_are_named(changes, problem):
    assert between(BEFORE, later(**changes)) is problem


@pytest.mark.parametrize("ratio", [0.0, math.nan, 1.2])
def test_an_unknown_clock_is_missing(ratio):
    assert between(BEFORE, later(), clock_ratio=ratio) is WindowProblem.MISSING


ANYTHING = st.floats(allow_nan=True, allow_infinity=True)
SAMPLES = st.builds(EngineSample, **{field.name: ANYTHING for field in dataclasses.fields(EngineSample)})


@given(SAMPLES, SAMPLES)
def test_nothing_raises(before, after):
    found = between(before, after)
    if isinstance(found, StepWindow):
        assert all(math.isfinite(value) for value in vars(found).values())
        assert found.step_seconds > 0


def test_resident_tokens_allow_for_half_empty_blocks():
    assert step_windows.resident_tokens(kv_usage=0.5, capacity_tokens=10_000, running=10, block_size=16) == 4_920
    assert step_windows.resident_tokens(kv_usage=0.0, capacity_tokens=10_000, running=10, block_size=16) == 0
