"""WAIT and Nested WAIT: conditions, least solutions, scaling, bad input."""

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.queueing.fluid_cases import (
    A100_KV_TOKENS,
    A100_MIXED,
    CLASSES,
    ITERATIONS,
    PAPER,
    TWO_TYPES,
    balance,
    mix_of,
    slower,
)
from wattkeeper.queueing import nested, thresholds
from wattkeeper.queueing.mix import Mix
from wattkeeper.queueing.nested import PromptRule
from wattkeeper.queueing.verdict import Cause

HUGE = 1e12
NESTED = {"horizon_seconds": 200.0, "overflow_probability": 1e-3}


def loaded(classes, iteration, load):
    """The classes at a share of the rate that keeps the engine just busy."""
    mix = mix_of(classes)
    rho = float(balance(mix, iteration).rho)
    assume(0.0 < rho < 1e6)
    return mix.scaled(load / rho)


@given(CLASSES, ITERATIONS, st.floats(0.01, 0.95))
def test_wait_thresholds_are_the_least_that_hold(classes, iteration, load):
    mix = loaded(classes, iteration, load)
    plan = thresholds.wait_thresholds(mix, iteration, kv_capacity_tokens=HUGE)
    assert plan.cause is Cause.NONE
    assert plan.memory_tokens >= float(balance(mix, iteration).memory_tokens) * (1 - 1e-9)
    for index, count in enumerate(plan.thresholds):
        assert (count == 0) == (mix.rates_per_second[index] == 0)
        if count > 1:
            fewer = list(plan.thresholds)
            fewer[index] -= 1
            less = thresholds.check_wait(mix, iteration, kv_capacity_tokens=HUGE, thresholds=fewer)
            assert not less.satisfied or less.step_seconds <= (count - 1) / mix.rates_per_second[index] * (1 + 1e-6)
            assert f"Cadence[{index}]" in [each.name for each in less.failures] or less.satisfied


@given(CLASSES, ITERATIONS, st.floats(0.01, 0.9), st.sampled_from([2.0, 0.25]))
def test_wait_time_scaling(classes, iteration, load, factor):
    mix = loaded(classes, iteration, load)
    before = thresholds.wait_thresholds(mix, iteration, kv_capacity_tokens=A100_KV_TOKENS)
    after = thresholds.wait_thresholds(
        mix.scaled(1 / factor), slower(iteration, factor), kv_capacity_tokens=A100_KV_TOKENS
    )
    assert (after.cause, after.thresholds) == (before.cause, before.thresholds)
    assert [each.holds for each in after.conditions] == [each.holds for each in before.conditions]


@given(CLASSES, ITERATIONS, st.floats(0.01, 0.9), st.floats(1e3, 1e6), st.floats(1.0, 10.0))
def test_more_memory_never_fails_more(classes, iteration, load, capacity, factor):
    mix = loaded(classes, iteration, load)
    less = thresholds.wait_thresholds(mix, iteration, kv_capacity_tokens=capacity)
    more = thresholds.wait_thresholds(mix, iteration, kv_capacity_tokens=capacity * factor)
    assert more.satisfied >= less.satisfied


def test_wait_says_which_inequality_fails_and_by_how_much():
    good = thresholds.wait_thresholds(TWO_TYPES, PAPER, kv_capacity_tokens=A100_KV_TOKENS)
    assert good.satisfied
    assert good.strict_slack
    tight = thresholds.check_wait(TWO_TYPES, PAPER, kv_capacity_tokens=40_000, thresholds=[3, 1])
    assert tight.cause is Cause.CONDITION_FAILS
    (miss,) = tight.failures
    assert miss.name == "KvMemory"
    assert miss.excess == pytest.approx(tight.memory_tokens / 40_000 - 1)
    starved = thresholds.check_wait(TWO_TYPES.scaled(4), PAPER, kv_capacity_tokens=A100_KV_TOKENS, thresholds=[1, 1])
    assert [each.name for each in starved.failures] == ["Cadence[0]", "Inventory"]


@pytest.mark.parametrize(
    ("counts", "cause"),
    [
        ([3], Cause.SHAPES_DISAGREE),
        ([3, math.nan], Cause.THRESHOLDS_INVALID),
        ([3, -1], Cause.THRESHOLDS_INVALID),
        ([3.5, 1], Cause.THRESHOLDS_INVALID),
        ([math.inf, 1], Cause.THRESHOLDS_INVALID),
    ],
)
def test_bad_thresholds_are_named(counts, cause):
    assert thresholds.check_wait(TWO_TYPES, PAPER, kv_capacity_tokens=A100_KV_TOKENS, thresholds=counts).cause is cause
    assert (
        nested.check_nested(TWO_TYPES, PAPER, kv_capacity_tokens=A100_KV_TOKENS, thresholds=counts, **NESTED).cause
        is cause
    )


@pytest.mark.parametrize(
    ("mix", "capacity", "cause"),
    [
        (TWO_TYPES.scaled(math.nan), 1e5, Cause.RATE_NOT_FINITE),
        (TWO_TYPES.scaled(-1.0), 1e5, Cause.RATE_NEGATIVE),
        (TWO_TYPES.scaled(0.0), 1e5, Cause.IDLE),
        (TWO_TYPES.scaled(100.0), 1e5, Cause.OVERLOAD),
        (TWO_TYPES, 500.0, Cause.REQUEST_EXCEEDS_KV),
        (TWO_TYPES, 4000.0, Cause.KV_MEMORY),
        (TWO_TYPES, math.nan, Cause.LIMITS_CONTRADICT),
        (Mix.of(rates_per_second=[], prompt_tokens=[], decode_steps=[]), 1e5, Cause.NO_CLASSES),
    ],
)
def test_impossible_mixes_are_named(mix, capacity, cause):
    assert thresholds.wait_thresholds(mix, PAPER, kv_capacity_tokens=capacity).cause is cause
    assert nested.nested_thresholds(mix, PAPER, kv_capacity_tokens=capacity, **NESTED).cause is cause


@given(st.integers(2, 4000), st.floats(0.001, 0.999), st.floats(0.0, 1.0))
def test_theta_solves_its_equation_above_its_bound(n_before, p, at):
    low, high = math.floor(p * n_before) + 1, n_before - 1
    assume(low <= high)
    n = round(low + at * (high - low))
    theta = nested.theta_roots(np.array([float(n)]), np.array([float(n_before)]), np.array([p]))[0]
    assert theta >= 8.0 * (n - n_before * p) / n_before * (1 - 1e-9)
    logarithm = n_before * math.log1p(p * math.expm1(theta)) - theta * n if theta < 500 else 0.0
    assert abs(logarithm) <= 1e-8 * (1.0 + theta * n)


def test_theta_where_there_is_no_root():
    found = nested.theta_roots(np.array([3.0, 5.0, 1.0]), np.array([10.0, 5.0, 4.0]), np.array([0.3, 0.5, 0.3]))
    assert found[0] == 0.0  # n = p n_before: the queue has no drift back
    assert np.isinf(found[1])
    assert found[2] == 0.0


@given(st.lists(st.tuples(st.floats(0.1, 5.0), st.integers(1, 400)), min_size=1, max_size=6), st.floats(0.02, 0.6))
def test_nested_thresholds_hold(classes, load):
    rates, steps = (np.array(each, dtype=float) for each in zip(*classes, strict=True))
    mix = Mix.of(rates_per_second=rates, prompt_tokens=256, decode_steps=steps)
    mix = mix.scaled(load / float(balance(mix, A100_MIXED).rho))
    plan = nested.nested_thresholds(mix, A100_MIXED, kv_capacity_tokens=HUGE, margin=0.02, **NESTED)
    assume(plan.cause is Cause.NONE or "Cadence" not in [each.name for each in plan.failures])
    assert plan.cause is Cause.NONE
    assert plan.required_tokens == pytest.approx(plan.memory_tokens + plan.buffer_tokens)
    assert sum(each.stages for each in plan.segments) == steps.max() + 1
    assert all(
        later.threshold < earlier.threshold for earlier, later in zip(plan.segments, plan.segments[1:], strict=False)
    )
    assert all(each.theta >= each.theta_bound * (1 - 1e-9) > 0 for each in plan.segments)


@given(
    st.lists(st.tuples(st.floats(0.1, 5.0), st.integers(1, 400)), min_size=1, max_size=4), st.sampled_from([2.0, 0.5])
)
def test_nested_time_scaling(classes, factor):
    rates, steps = (np.array(each, dtype=float) for each in zip(*classes, strict=True))
    mix = Mix.of(rates_per_second=rates / rates.sum(), prompt_tokens=256, decode_steps=steps)
    before = nested.nested_thresholds(mix, A100_MIXED, kv_capacity_tokens=A100_KV_TOKENS, **NESTED)
    after = nested.nested_thresholds(
        mix.scaled(1 / factor),
        slower(A100_MIXED, factor),
        kv_capacity_tokens=A100_KV_TOKENS,
        horizon_seconds=NESTED["horizon_seconds"] * factor,
        overflow_probability=NESTED["overflow_probability"],
    )
    assert after.cause is before.cause
    assert [each.threshold for each in after.segments] == [each.threshold for each in before.segments]
    assert after.required_tokens == pytest.approx(before.required_tokens)


def check_nested(counts, **changes):
    arguments = {"kv_capacity_tokens": A100_KV_TOKENS, "thresholds": counts, **NESTED, **changes}
    return nested.check_nested(TWO_TYPES, PAPER, **arguments)


def test_nested_names_flow_and_nesting():
    assert [each.name for each in check_nested([10, 3]).failures] == ["KvMemory", "Flow[2]"]
    assert math.isinf(check_nested([10, 3]).buffer_tokens)
    level = check_nested([2, 2])
    assert [each.name for each in level.failures] == ["Nesting[2]"]
    assert level.segments[1].buffer_tokens == (512 + 20) * (2 + 2)
    assert check_nested([3, 1], horizon_seconds=math.nan).cause is Cause.THRESHOLDS_INVALID
    assert check_nested([3, 1], overflow_probability=0.0).cause is Cause.THRESHOLDS_INVALID


def test_a_longer_horizon_and_a_smaller_risk_need_more_room():
    base = check_nested([3, 1]).required_tokens
    assert check_nested([3, 1], horizon_seconds=2e4).required_tokens > base
    assert check_nested([3, 1], overflow_probability=1e-9).required_tokens > base


def test_classes_of_one_length_and_without_arrivals_make_no_segments():
    mix = Mix.of(rates_per_second=[7.0, 7.0, 0.0, 6.0], prompt_tokens=512, decode_steps=[20, 20, 30, 50])
    plan = nested.check_nested(mix, PAPER, kv_capacity_tokens=A100_KV_TOKENS, thresholds=[3, 1], **NESTED)
    assert plan == check_nested([3, 1])


def test_prompts_that_differ_enter_as_mean_or_largest():
    mix = Mix.of(rates_per_second=[14.0, 6.0], prompt_tokens=[100, 1000], decode_steps=[20, 50])
    arguments = {"kv_capacity_tokens": A100_KV_TOKENS, "thresholds": [3, 1], **NESTED}
    mean = nested.check_nested(mix, PAPER, **arguments)
    largest = nested.check_nested(mix, PAPER, **arguments, prompt_rule=PromptRule.LARGEST)
    assert [each.prompt_tokens for each in mean.segments] == [pytest.approx(370), 1000]
    assert [each.prompt_tokens for each in largest.segments] == [1000, 1000]
    assert largest.required_tokens > mean.required_tokens


def test_merging_segments_keeps_rates_and_runs_answers_to_the_end():
    mix = Mix.of(rates_per_second=[1.0, 2.0, 3.0], prompt_tokens=[10, 40, 70], decode_steps=[5, 8, 30])
    merged = nested.merge(mix, [10, 20, 40])
    assert merged.rates_per_second.tolist() == [3.0, 3.0]
    assert merged.decode_steps.tolist() == [10.0, 40.0]
    assert merged.prompt_tokens.tolist() == [30.0, 70.0]
    assert float(balance(merged, PAPER).memory_tokens) > float(balance(mix, PAPER).memory_tokens)
    for cuts in ([], [20, 10, 40], [10, 20]):
        with pytest.raises(ValueError, match="cuts"):
            nested.merge(mix, cuts)


ANYTHING = st.floats(allow_nan=True, allow_infinity=True)


@given(
    st.lists(st.tuples(ANYTHING, ANYTHING, ANYTHING), max_size=3),
    st.lists(ANYTHING, max_size=3),
    st.tuples(ANYTHING, ANYTHING, ANYTHING, ANYTHING),
)
def test_nothing_raises(classes, counts, numbers):
    columns = [np.array(each) for each in zip(*classes, strict=True)] or [np.zeros(0)] * 3
    mix = Mix.of(rates_per_second=columns[0], prompt_tokens=columns[1], decode_steps=columns[2])
    capacity, horizon, probability, margin = numbers
    risk = {"horizon_seconds": horizon, "overflow_probability": probability}
    plans = [
        thresholds.check_wait(mix, PAPER, kv_capacity_tokens=capacity, thresholds=counts),
        thresholds.wait_thresholds(mix, PAPER, kv_capacity_tokens=capacity),
        nested.check_nested(mix, PAPER, kv_capacity_tokens=capacity, thresholds=counts, **risk),
        nested.nested_thresholds(mix, PAPER, kv_capacity_tokens=capacity, margin=margin, **risk),
    ]
    for plan in plans:
        assert isinstance(plan.cause, Cause)
        assert not math.isnan(plan.memory_tokens)
        assert not any(
            math.isnan(number) for each in plan.conditions for number in (each.value, each.bound, each.excess)
        )
