"""Published estimates of capacity: relations among them and bad input."""

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.queueing.fluid_cases import A100_MIXED, CLASSES, ITERATIONS, TWO_TYPES, balance, mix_of
from wattkeeper.queueing import estimators, mean_chain
from wattkeeper.queueing.fluid import Limits
from wattkeeper.queueing.mean_chain import Server
from wattkeeper.queueing.mix import Mix
from wattkeeper.queueing.verdict import Cause


@given(CLASSES, ITERATIONS, st.floats(8e3, 1e6), st.integers(16, 4096))
def test_full_memory_rate_and_the_fluid_balance(classes, iteration, capacity, chunk):
    mix = mix_of(classes)
    assume(mix.rates_per_second.sum() > 1e-6)
    whole = estimators.full_memory_rate(mix, iteration, kv_capacity_tokens=capacity)
    assert whole.cause is Cause.NONE
    fluid_rate = float(balance(mix, iteration, Limits.of(kv_capacity_tokens=capacity)).critical_rate)
    assert whole.requests_per_second == pytest.approx(fluid_rate, rel=1e-9)
    chunked = estimators.full_memory_rate(mix, iteration, kv_capacity_tokens=capacity, chunk_tokens=chunk)
    assert chunked.requests_per_second <= whole.requests_per_second * (1 + 1e-12)
    measured = estimators.full_memory_rate(
        mix, iteration, kv_capacity_tokens=capacity, batch_seconds=whole.batch_seconds
    )
    assert measured.requests_per_second == pytest.approx(whole.requests_per_second)


@pytest.mark.parametrize(
    ("mix", "arguments", "cause"),
    [
        (TWO_TYPES.scaled(math.nan), {}, Cause.RATE_NOT_FINITE),
        (TWO_TYPES.scaled(0.0), {}, Cause.IDLE),
        (TWO_TYPES, {"kv_capacity_tokens": math.nan}, Cause.LIMITS_CONTRADICT),
        (TWO_TYPES, {"kv_capacity_tokens": 500.0}, Cause.REQUEST_EXCEEDS_KV),
        (TWO_TYPES, {"chunk_tokens": 0.0}, Cause.LIMITS_CONTRADICT),
        (TWO_TYPES, {"chunk_tokens": math.nan}, Cause.LIMITS_CONTRADICT),
        (TWO_TYPES, {"batch_seconds": 0.0}, Cause.COEFFICIENTS_INVALID),
    ],
)
def test_full_memory_rate_names_bad_input(mix, arguments, cause):
    found = estimators.full_memory_rate(mix, A100_MIXED, **{"kv_capacity_tokens": 1e5, **arguments})
    assert found.cause is cause
    assert found.requests_per_second == 0.0


def test_steady_admissions_fill_the_memory():
    """Admitting x* per iteration for a whole life makes the resident requests hold exactly the capacity."""
    prompt, steps, capacity = 100, 40, 50_000
    rate = float(estimators.steady_admissions(kv_capacity_tokens=capacity, prompt_tokens=prompt, decode_steps=steps))
    held = sum(rate * (prompt + 1 + age) for age in range(steps))
    assert held == pytest.approx(capacity)


def test_admissions_are_the_least_of_queue_room_and_steady_rate():
    def admit(waiting, free):
        return float(
            estimators.admissions_per_iteration(
                waiting=waiting, free_kv_tokens=free, kv_capacity_tokens=50_000, prompt_tokens=100, decode_steps=40
            )
        )

    assert admit(2, 50_000) == 2
    assert admit(0, 50_000) == 0
    assert admit(1000, 303) == 3
    assert admit(1000, -5) == 0
    assert admit(1000, 50_000) == pytest.approx(50_000 / (40 * 101 + 780))


def test_steady_admissions_of_nonsense_are_none():
    found = estimators.steady_admissions(
        kv_capacity_tokens=np.array([1e5, -1.0, 1e5, np.nan]),
        prompt_tokens=np.array([0.0, 10.0, np.nan, 10.0]),
        decode_steps=5.0,
    )
    assert found.tolist() == [0.0] * 4


@pytest.mark.parametrize(
    ("steps", "free"), [([100], False), ([100, 200], False), ([100, 201], True), ([1], True), ([20, 50], False)]
)
def test_limit_cycles_need_a_common_divisor(steps, free):
    mix = Mix.of(rates_per_second=[1.0] * len(steps), prompt_tokens=10, decode_steps=steps)
    assert estimators.limit_cycle_free(mix) is free
    assert estimators.limit_cycle_free(mix.scaled(0.0))


@given(st.floats(0.0, 4.9), st.floats(0.01, 0.2), st.floats(0.0, 5.0))
def test_batch_bound_is_monotone_in_rate(rate, alpha, tau):
    rates = np.linspace(0.0, rate, 9)
    found = estimators.batch_wait_bound(requests_per_second=rates, seconds_per_request=alpha, fixed_seconds=tau)
    assert np.isfinite(found).all()
    assert found[0] <= alpha + tau + 1e-9
    assert np.all(np.diff(found) >= -1e-9)


def test_batch_bound_beyond_stability_and_of_nonsense():
    found = estimators.batch_wait_bound(
        requests_per_second=np.array([5.0, 6.0, np.nan, -1.0]), seconds_per_request=0.2, fixed_seconds=1.0
    )
    assert np.isinf(found).all()


SERVER = Server(
    alpha_seconds=8.79e-3,
    beta_seconds_per_token=55.74e-6,
    gamma_seconds_per_kv_token=0.294e-6,
    prompt_tokens=512,
    output_tokens=20,
    max_num_seqs=256,
    max_queue=500,
)


def test_mean_chain_against_hand_values():
    """One request alone runs at T(1); at small load the throughput is the rate."""
    alone = mean_chain.means(SERVER, 0.0)
    t1 = 8.79e-3 + 55.74e-6 * 532 / 21 + 0.294e-6 * 522
    assert float(alone.itl_seconds) == pytest.approx(t1 + 55.74e-6 + 0.294e-6 * 522, rel=1e-6)
    assert float(alone.ttft_seconds) == pytest.approx(
        2 * t1 + (55.74e-6 + 0.294e-6) * 512 + 55.74e-6 + 0.294e-6 * 522, rel=1e-6
    )
    assert float(mean_chain.means(SERVER, 5.0).throughput) == pytest.approx(5.0)


def test_mean_chain_is_an_erlang_queue_where_steps_do_not_grow():
    """With constant step time and one slot it is M/M/1: wait = rho s / (1 - rho)."""
    server = Server(
        alpha_seconds=0.01,
        beta_seconds_per_token=0.0,
        gamma_seconds_per_kv_token=0.0,
        prompt_tokens=10,
        output_tokens=9,
        max_num_seqs=1,
        max_queue=2000,
    )
    found = mean_chain.means(server, 8.0)
    assert float(found.wait_seconds) == pytest.approx(0.8 * 0.1 / 0.2)
    assert float(found.in_service) == pytest.approx(0.8)


def test_mean_chain_is_monotone_and_finite():
    found = mean_chain.means(SERVER, np.linspace(0.0, 60.0, 61))
    assert np.isfinite(found.ttft_seconds).all()
    assert np.all(np.diff(found.ttft_seconds) >= -1e-12)
    assert np.all(np.diff(found.itl_seconds) >= -1e-12)
    assert float(found.throughput[-1]) == pytest.approx(SERVER.fastest, rel=1e-6)


def test_mean_chain_names_bad_rates_as_never():
    found = mean_chain.means(SERVER, np.array([-1.0, np.nan, np.inf]))
    assert np.isinf(found.ttft_seconds).all()
    assert found.throughput.tolist() == [0.0] * 3


def test_largest_rate_meets_both_targets_and_no_more():
    rate = mean_chain.largest_rate(SERVER, ttft_seconds=0.2, itl_seconds=0.05)
    assert float(mean_chain.means(SERVER, rate).itl_seconds) == pytest.approx(0.05, rel=1e-6)
    assert mean_chain.largest_rate(SERVER, ttft_seconds=1e-3, itl_seconds=1.0) == 0.0
    assert mean_chain.largest_rate(SERVER, ttft_seconds=1e9, itl_seconds=1e9) == SERVER.fastest
