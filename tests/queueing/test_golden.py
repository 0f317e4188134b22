"""Numbers worked out by hand, or printed in the papers, that the fluid model must reproduce to the digits given."""

import numpy as np
import pytest

from tests.queueing.fluid_cases import (
    A100_KV_TOKENS,
    A100_MIXED,
    P512D20,
    PAPER,
    TOY,
    TOY_MIX,
    TWO_TYPES,
    balance,
)
from wattkeeper.queueing import estimators, fluid, nested, thresholds
from wattkeeper.queueing.fluid import Limits, kv_only_form
from wattkeeper.queueing.mix import Mix
from wattkeeper.queueing.verdict import Cause, Constraint


def digits(value, places):
    return f"{float(value):.{places}f}"


def test_one_class_of_the_paper():
    found = balance(P512D20, PAPER)
    assert digits(found.rho, 5) == "0.12606"
    assert digits(found.step_seconds * 1e3, 2) == "15.79"
    assert digits(fluid.inventory(P512D20, found.step_seconds)[0], 4) == "0.3158"
    assert digits(found.memory_tokens, 1) == "3461.9"
    assert round(float(found.critical_rate)) == 159  # no prefill compute in this form, so far above any real engine


@pytest.mark.parametrize(("rate", "memory"), [(50, 34_376), (60, 55_755), (70, 100_322), (80, 250_486)])
def test_chat_lengths_table_of_the_paper(rate, memory):
    found = balance(*chat(rate))
    assert abs(float(found.memory_tokens) - memory) < 1.0


def chat(rate):
    """Any class will do whose d0 w = 298.83 token seconds and d1 w = 0.011307 s."""
    mix = Mix.of(rates_per_second=rate, prompt_tokens=58.6, decode_steps=147.3)
    w = float(mix.kv_integral[0])
    return mix, kv_only_form(d0_seconds=298.83 / w, d1_seconds_per_kv_token=0.011307 / w)


def test_chat_lengths_fill_the_memory_at_the_published_rate():
    found = balance(*chat(50.0), Limits.of(kv_capacity_tokens=A100_KV_TOKENS))
    assert digits(found.critical_rate, 2) == "74.14"
    assert digits(298.83 / 24_430 * 1e3, 1) == "12.2"
    assert digits(0.011307 / 24_430 * 1e6, 3) == "0.463"


def nested_check(counts):
    return nested.check_nested(
        TWO_TYPES,
        PAPER,
        kv_capacity_tokens=A100_KV_TOKENS,
        thresholds=counts,
        horizon_seconds=200.0,
        overflow_probability=1e-3,
    )


def test_two_types_nested():
    plan = nested_check((3, 1))
    second = plan.segments[1]
    assert digits(second.continue_probability, 1) == "0.3"
    assert digits(second.theta, 5) == "0.30571"
    assert digits(second.theta_bound, 5) == "0.26667"
    assert digits(plan.memory_tokens, 0) == "49311"
    assert digits(plan.buffer_tokens, 0) == "30433"
    assert digits(plan.required_tokens, 0) == "79744"
    assert plan.satisfied


def test_two_types_nested_with_more_room():
    plan = nested_check((10, 4))
    assert digits(plan.segments[1].theta, 5) == "0.87106"
    assert digits(plan.memory_tokens, 0) == "175320"
    assert [each.name for each in plan.failures] == ["KvMemory"]


def test_toy_is_in_balance_at_exactly_its_capacity():
    found = balance(TOY_MIX, TOY, Limits.of(kv_capacity_tokens=12))
    assert float(found.step_seconds) == pytest.approx(1.0)
    assert float(fluid.inventory(TOY_MIX, found.step_seconds)[0]) == pytest.approx(4.0)
    assert float(found.memory_tokens) == pytest.approx(12.0)
    assert found.cause.item() is Cause.NONE
    assert found.binding.item() is Constraint.KV_MEMORY
    plan = thresholds.wait_thresholds(TOY_MIX, TOY, kv_capacity_tokens=12)
    assert plan.thresholds == (4,)
    assert plan.satisfied
    assert not plan.strict_slack
    assert thresholds.wait_thresholds(TOY_MIX, TOY, kv_capacity_tokens=11.9).cause is Cause.KV_MEMORY


def test_mixed_form_on_a100():
    """Kernel-fitted coefficients: prefill compute brings the critical rate from 159 down to 29.6 per second."""
    found = balance(P512D20.scaled(23 / 20), A100_MIXED)
    assert digits(found.rho, 3) == "0.778"
    assert digits(found.step_seconds * 1e3, 1) == "39.6"
    assert float(found.memory_tokens) == pytest.approx(9_989, rel=1e-3)
    assert digits(found.critical_rate, 1) == "29.6"


def test_segment_caps_of_the_published_experiment():
    counts, caps = nested.in_service_caps([20, 30], [0.3], total=30)
    assert caps == (21, 9)
    assert counts[1] == pytest.approx(0.3 * counts[0])


@pytest.mark.parametrize(("rate", "bound"), [(0.5, "1.636"), (2.0, "2.786"), (4.0, "8.28")])
def test_batch_service_bound(rate, bound):
    found = estimators.batch_wait_bound(requests_per_second=rate, seconds_per_request=0.2, fixed_seconds=1.0)
    assert digits(found, len(bound) - 2) == bound


def test_full_memory_rate_is_the_fluid_rate_where_prompts_come_whole():
    found = estimators.full_memory_rate(TWO_TYPES, PAPER, kv_capacity_tokens=A100_KV_TOKENS)
    point = balance(TWO_TYPES, PAPER, Limits.of(kv_capacity_tokens=A100_KV_TOKENS))
    assert found.requests_per_second == pytest.approx(float(point.critical_rate), rel=1e-12)


def test_chunked_prompt_by_hand():
    """512 tokens in chunks of 200 hold 200, 400 and 512 tokens for an iteration each, then 513 .. 516 tokens."""
    mix = Mix.of(rates_per_second=1.0, prompt_tokens=512, decode_steps=4)
    assert estimators.chunked_kv_integral(mix, 200)[0] == 200 + 400 + 512 + 513 + 514 + 515 + 516


def test_steady_admissions_by_hand():
    """Four decode iterations hold 513, 514, 515 and 516 tokens."""
    found = estimators.steady_admissions(kv_capacity_tokens=137_000, prompt_tokens=512, decode_steps=4)
    assert float(found) == pytest.approx(137_000 / (513 + 514 + 515 + 516))


def test_numbers_do_not_depend_on_how_classes_are_split():
    split = Mix.of(rates_per_second=[7.0, 13.0], prompt_tokens=512, decode_steps=20)
    assert float(balance(split, PAPER).memory_tokens) == pytest.approx(float(balance(P512D20, PAPER).memory_tokens))
    np.testing.assert_allclose(
        fluid.inventory(split, balance(split, PAPER).step_seconds).sum(),
        fluid.inventory(P512D20, balance(P512D20, PAPER).step_seconds).sum(),
    )
